"""Corpora: manifests of folders of recordings, with one row per utterance."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError, check_choice
from gmp_utils.data.corpora import iemocap, msp, synthetic, synthetic_speakers, table
from gmp_utils.data.corpora._labels import normalized_name, validate
from gmp_utils.data.corpora.acted import ACTED
from gmp_utils.data.corpora.synthetic_speakers import RATINGS

# The reader of each corpus, which returns `label` instead of `emotion`, and the emotions of its labels.
CORPORA: dict[str, tuple[Callable[..., pd.DataFrame], dict[str, str]]] = {
    "synthetic": (synthetic.load, synthetic.EMOTIONS),
    "synthetic_speakers": (synthetic.load, synthetic_speakers.EMOTIONS),
    "table": (table.load, {}),  # labels are kept as emotions
    "iemocap": (iemocap.load, iemocap.EMOTIONS),
    "msp_podcast": (msp.load_podcast, msp.PODCAST_EMOTIONS),
    "msp_improv": (msp.load_improv, msp.IMPROV_EMOTIONS),
} | {name: (corpus.load, corpus.emotions) for name, corpus in ACTED.items()}
NO_EMOTIONS = {"no agreement", "other"}  # labels of IEMOCAP and MSP-Podcast
RATING_SCALE = (1, 7)
SCALES = {"iemocap": (1, 5), "msp_improv": (1, 5)}  # other than RATING_SCALE
EMBEDDED = {"emodb": Path(__file__).with_name("emodb")}  # recordings that the package contains


def check(manifest: pd.DataFrame) -> pd.DataFrame:
    """Validate a manifest.

    Parameters
    ----------
    manifest : DataFrame
        A row per utterance: `corpus`, `utterance` and `path`; `speaker`, `gender` (female, male) and
        `emotion`, which may be missing; and optional columns: `start` and `end` in the recording, `valence`,
        `arousal` and `dominance` on a scale from `rating_min` to `rating_max`, `session`, `split`, `text`,
        `emotion_start` and `emotion_end` of the emotional part, and `phonemes`, each after its start, as in
        "0.05 aI 0.15 f". Times are in seconds.
    """
    import pandera.pandas as pa

    def optional(names: str, kind: type, *checks) -> dict:
        column = pa.Column(kind, *checks, nullable=True, required=False, coerce=kind is float)
        return dict.fromkeys(names.split(), column)

    in_seconds = pa.Check.in_range(0, 1e6)
    columns = {
        "corpus": pa.Column(str),
        "utterance": pa.Column(str, unique=True),
        "path": pa.Column(str),
        "speaker": pa.Column(str, nullable=True),
        "gender": pa.Column(str, pa.Check.isin(["female", "male"]), nullable=True),
        "emotion": pa.Column(str, nullable=True),
        **optional("session split group text phonemes", str),
        **optional("valence arousal dominance rating_min rating_max", float),
        **optional("start end emotion_start emotion_end", float, in_seconds),
    }
    manifest = validate(pa.DataFrameSchema(columns, strict=True), manifest, "manifest")
    for column in ("speaker", "emotion"):
        names = pd.Series(manifest[column].dropna().unique(), dtype=str)
        same = names[names.map(normalized_name).duplicated(keep=False)]
        if len(same):
            raise GmpError(f"{column}: found {', '.join(map(repr, same))}, expected one spelling.")
    genders = manifest.groupby("speaker").gender.nunique()
    if genders.max() > 1:
        raise GmpError(
            f"speaker {genders.idxmax()!r}: found two genders, expected the same in all rows."
        )
    return manifest


def load(
    corpus: str,
    folder: str | Path,
    *,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
    rating_scale: Sequence[float] = RATING_SCALE,
) -> pd.DataFrame:
    """Read the manifest (see `check`) of one of `CORPORA` from its folder, or from the file of a table.

    Utterances of other `emotions` (default: all) are excluded, and their number is printed. `label_map`
    overrides the emotions of single labels, as in ``{"exc": "excited"}``. With `outside`, a table may list
    recordings outside its folder. `rating_scale` is the lowest and the highest rating of a table.
    """
    rows, names = _read(corpus, folder, outside, rating_scale)
    return _keep(check(_to_emotions(rows, names, _texts(label_map))), emotions)


def cross_corpus(
    train: tuple[str, str | Path],
    test: tuple[str, str | Path],
    *,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
    rating_scale: Sequence[float] = RATING_SCALE,
) -> pd.DataFrame:
    """Read a corpus to train on and one to test on, each by its name and folder; see `load`.

    Utterances and speakers are prefixed with their corpus, and `split` is "train" or "test". By default,
    `emotions` are those that both corpora have. Ratings are converted to the scale of the training corpus.
    """
    if train[0] == test[0]:
        raise GmpError(f"corpus and test_corpus are both {train[0]}; leave test_corpus empty.")
    pairs = {"train": train, "test": test}
    corpora = {part: _read(*pair, outside, rating_scale) for part, pair in pairs.items()}
    loaded, label_map = {}, _texts(label_map)
    for part, (rows, names) in corpora.items():
        foreign = set(corpora["test" if part == "train" else "train"][1]) - set(names)
        changes = {label: label_map[label] for label in label_map if label not in foreign}
        loaded[part] = _to_emotions(rows, names, changes)
    loaded["test"] = _rescale(loaded["test"], loaded["train"])
    if not emotions:
        loaded = {part: _mask_no_emotions(rows) for part, rows in loaded.items()}
    common = set.intersection(*(set(rows.emotion.dropna()) for rows in loaded.values()))
    if len(common) < 2:
        shared = f"{train[0]} and {test[0]} share the emotions {sorted(common)}"
        raise GmpError(f"{shared}, expected two or more; give them common names in label_map.")
    for part, rows in loaded.items():
        rows = _keep(rows, emotions or sorted(common))
        prefixed = {name: rows.corpus + "/" + rows[name] for name in ("utterance", "speaker")}
        loaded[part] = rows.assign(split=part, **prefixed)
    return check(pd.concat(loaded.values(), ignore_index=True))


def _rescale(rows: pd.DataFrame, to: pd.DataFrame) -> pd.DataFrame:
    """Convert ratings to the scale of another corpus, if both have some."""
    bounds = ["rating_min", "rating_max"]
    if "rating_min" in rows and "rating_min" in to:
        (low, high), (to_low, to_high) = (table[bounds].iloc[0] for table in (rows, to))
        ratings = rows[rows.columns.intersection(RATINGS)].astype(float)
        ratings = (ratings - low) / (high - low) * (to_high - to_low) + to_low
        rows = rows.assign(**ratings, rating_min=to_low, rating_max=to_high)
    return rows


def _check_ratings(rows: pd.DataFrame, corpus: str, scale: Sequence[float]) -> pd.DataFrame:
    """Check that ratings are on their scale, and add it to the rows."""
    if len(scale) != 2 or not scale[0] < scale[1]:
        raise GmpError(f"rating_scale {scale}: expected the lowest and the highest rating.")
    low, high = scale
    names = rows.columns.intersection(RATINGS)
    for name in names:
        rating = rows[name].astype(float)
        slack = corpus != "table"  # a few of IEMOCAP's are outside
        for row in rows[(rating < low - slack) | (rating > high + slack)].itertuples():
            found = f"{row.utterance}: {name} {rating[row.Index]:g}, expected {low:g} to {high:g}"
            raise GmpError(f"{found}; correct it, or set rating_scale of notebook 01 for a table.")
    return rows.assign(rating_min=float(low), rating_max=float(high)) if len(names) else rows


def _read(
    corpus: str, folder: str | Path, outside: bool, rating_scale: Sequence[float]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Manifest of a corpus with its own labels, and the emotions of these labels."""
    check_choice("corpus", corpus, CORPORA)
    folder, is_table = Path(folder).expanduser(), corpus == "table"
    if not (os.path.isfile(folder) if is_table else os.path.isdir(folder)):
        kind = "file" if is_table else "folder"
        raise GmpError(f"corpus_dir {str(folder)!r}: no such {kind}; give the {kind} of {corpus}.")
    read, emotions = CORPORA[corpus]
    scale = rating_scale if is_table else SCALES.get(corpus, RATING_SCALE)
    rows = read(folder, outside) if is_table else read(folder)
    if rows.empty:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:3]) or "nothing"
        problem = f"{folder}: no recording is named as {corpus} names them (found {names}, …)"
        raise GmpError(f"{problem}; give the folder of the recordings.")
    if is_table:
        emotions = {label: label for label in rows.label.dropna()}
    rows = rows.assign(corpus=corpus).reset_index(drop=True)
    return _check_ratings(rows, corpus, scale), emotions


def _texts(label_map: dict | None) -> dict[str, str]:
    """Convert a map of labels to text; YAML reads digits as numbers."""
    for label, emotion in (label_map or {}).items():
        if emotion in (None, ""):
            raise GmpError(f"label_map: {label} has no emotion; name one, or remove the line.")
    return {str(label): str(emotion) for label, emotion in (label_map or {}).items()}


def _to_emotions(
    rows: pd.DataFrame, names: dict[str, str], label_map: dict[str, str]
) -> pd.DataFrame:
    """Replace labels by emotions."""
    labels = set(names) | set(rows.label.dropna())
    for label in label_map:
        check_choice("label_map", label, sorted(labels))
    names = names | label_map
    unnamed = rows[rows.label.notna() & ~rows.label.isin(names)]
    if len(unnamed):
        row = unnamed.iloc[0]
        problem = f"{row.path}: label {row.label!r}; {row.corpus} has {', '.join(names)}"
        raise GmpError(f"{problem}. Add it to label_map.")
    return rows.assign(emotion=rows.label.map(names).astype(object)).drop(columns="label")


def _mask_no_emotions(rows: pd.DataFrame) -> pd.DataFrame:
    """Remove labels that are no emotions. In a table, every label is one."""
    named = ~rows.emotion.isin(NO_EMOTIONS) | (rows.corpus == "table")
    return rows.assign(emotion=rows.emotion.where(named, None))


def _keep(manifest: pd.DataFrame, emotions: list[str] | None) -> pd.DataFrame:
    """Select the utterances of some emotions and those without one; print how many are excluded."""
    emotions, corpus = list(map(str, emotions or [])), manifest.corpus.iloc[0]
    if not emotions:
        manifest = _mask_no_emotions(manifest)
    counts = manifest.emotion.value_counts()
    absent = sorted(set(emotions) - set(counts.index))
    if absent:
        present = ", ".join(sorted(counts.index)) or "none"
        raise GmpError(f"emotions {absent}: {corpus} has {present}.")
    excluded = counts.drop(emotions or counts.index)
    if len(excluded):
        listed = ", ".join(f"{emotion} {count}" for emotion, count in excluded.items())
        print(f"{corpus}: {excluded.sum()} utterances of other emotions are excluded ({listed})")
    return manifest[~manifest.emotion.isin(excluded.index)].reset_index(drop=True)
