"""Corpora: a folder of recordings to a manifest, one row per utterance."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora import iemocap, msp, synthetic, synthetic_speakers, table
from gmp_utils.data.corpora._labels import validate
from gmp_utils.data.corpora.acted import ACTED

# What reads a corpus, with `label` instead of `emotion`, and the emotions that its labels mean.
CORPORA: dict[str, tuple[Callable[..., pd.DataFrame], dict[str, str]]] = {
    "synthetic": (synthetic.load, synthetic.EMOTIONS),
    "synthetic_speakers": (synthetic_speakers.load, synthetic_speakers.EMOTIONS),
    "table": (table.load, {}),  # its own names are kept
    "iemocap": (iemocap.load, iemocap.EMOTIONS),
    "msp_podcast": (msp.load_podcast, msp.PODCAST_EMOTIONS),
    "msp_improv": (msp.load_improv, msp.IMPROV_EMOTIONS),
} | {name: (corpus.load, corpus.emotions) for name, corpus in ACTED.items()}


def _schema():
    import pandera.pandas as pa

    def optional(names: str, kind: type, *checks) -> dict:
        column = pa.Column(kind, *checks, nullable=True, required=False, coerce=kind is float)
        return dict.fromkeys(names.split(), column)

    seconds = pa.Check.in_range(0, 1e6)
    on_scale = pa.Check.in_range(0, 7)  # scales begin at 1; IEMOCAP has single ratings below
    columns = {
        "corpus": pa.Column(str),
        "utterance": pa.Column(str, unique=True),
        "path": pa.Column(str),
        "speaker": pa.Column(str, nullable=True),
        "gender": pa.Column(str, pa.Check.isin(["female", "male"]), nullable=True),
        "emotion": pa.Column(str, nullable=True),
        **optional("session split text", str),
        **optional("valence arousal dominance", float, on_scale),
        **optional("start end emotion_start emotion_end", float, seconds),
    }
    return pa.DataFrameSchema(columns, strict=True)


def check(manifest: pd.DataFrame) -> pd.DataFrame:
    """Validate a manifest.

    Parameters
    ----------
    manifest : DataFrame
        A row per utterance: `corpus`, `utterance`, `path`; `speaker`, `gender` (female, male) and
        `emotion`, missing where they are unknown; optionally `start` and `end` of the part of a
        recording that it is (seconds), `valence`, `arousal`, `dominance` (1 to 7), `session`, `split`,
        `text`, and the part that carries the emotion, `emotion_start` and `emotion_end` (seconds).
    """
    return validate(_schema(), manifest, "manifest")


def load(
    corpus: str,
    folder: str | Path,
    *,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
) -> pd.DataFrame:
    """Read the manifest of a corpus; see `check`.

    Parameters
    ----------
    corpus : str
        One of `CORPORA`.
    folder : str or Path
        Folder of its recordings; the file of a `table`.
    emotions : list of str, optional
        Keep these only, and print what is excluded; default: all.
    label_map : dict of str to str, optional
        Changes to the emotions that labels mean, such as ``{"exc": "excited"}``.
    outside : bool
        Whether a `table` may name recordings that are not below its folder.
    """
    rows, names = _read(corpus, folder, outside)
    return check(_keep(_to_emotions(rows, names, label_map or {}), emotions))


def cross_corpus(
    train: tuple[str, str | Path],
    test: tuple[str, str | Path],
    *,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
) -> pd.DataFrame:
    """Read two corpora, each by its name and folder: one to train on and one to test on.

    Utterances and speakers begin with their corpus's name, and `split` is "train" or "test". Kept are
    `emotions`, or those of both corpora. See `load`.
    """
    if train[0] == test[0]:
        raise GmpError(
            f"corpus and test_corpus are both {train[0]}; to test within a corpus, fold it."
        )
    corpora = {"train": _read(*train, outside), "test": _read(*test, outside)}
    loaded = {}
    for part, (rows, names) in corpora.items():
        others = corpora["test" if part == "train" else "train"][1]
        changes = {
            label: emotion
            for label, emotion in (label_map or {}).items()
            if label in names or label not in others
        }
        loaded[part] = _to_emotions(rows, names, changes)
    common = set.intersection(*(set(rows.emotion.dropna()) for rows in loaded.values()))
    if len(common) < 2:
        raise GmpError(
            f"{train[0]} and {test[0]} share the emotions {sorted(common)}, expected two or more; "
            "give them common names in label_map."
        )
    for part, rows in loaded.items():
        rows = _keep(rows, emotions or sorted(common))
        named = {name: rows.corpus + "/" + rows[name] for name in ("utterance", "speaker")}
        loaded[part] = rows.assign(split=part, **named)
    return check(pd.concat(loaded.values(), ignore_index=True))


def _read(corpus: str, folder: str | Path, outside: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows of a corpus with its own labels, and the emotions that these mean."""
    if corpus not in CORPORA:
        raise GmpError(f"corpus {corpus!r}: expected one of {', '.join(CORPORA)}.")
    folder = Path(folder).expanduser()
    if not (os.path.isfile(folder) if corpus == "table" else os.path.isdir(folder)):
        kind = "file" if corpus == "table" else "folder"
        raise GmpError(f"corpus_dir {str(folder)!r}: no such {kind}; give the {kind} of {corpus}.")
    read, emotions = CORPORA[corpus]
    rows = read(folder, outside) if corpus == "table" else read(folder)
    if rows.empty:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:3]) or "nothing"
        raise GmpError(
            f"{folder}: no recording is named as {corpus} names them (found {names}, …); give the "
            "folder that holds the recordings."
        )
    if corpus == "table":
        emotions = {label: label for label in rows.label.dropna()}
    return rows.assign(corpus=corpus).reset_index(drop=True), emotions


def _to_emotions(
    rows: pd.DataFrame, names: dict[str, str], label_map: dict[str, str]
) -> pd.DataFrame:
    """Replace the corpus's labels by emotions."""
    labels = set(names) | set(rows.label.dropna())
    for label in label_map:
        if label not in labels:
            raise GmpError(f"label_map: {label!r}, expected some of {', '.join(sorted(labels))}.")
    names = names | label_map
    unnamed = rows[rows.label.notna() & ~rows.label.isin(names)]
    if len(unnamed):
        first = unnamed.iloc[0]
        raise GmpError(
            f"{first.path}: label {first.label!r}; {first.corpus} has {', '.join(names)}. Add it to "
            "label_map."
        )
    return rows.assign(emotion=rows.label.map(names).astype(object)).drop(columns="label")


def _keep(manifest: pd.DataFrame, emotions: list[str] | None) -> pd.DataFrame:
    """The utterances of some emotions, and those without one; prints what is excluded."""
    counts, corpus = manifest.emotion.value_counts(), manifest.corpus.iloc[0]
    absent = sorted(set(emotions or []) - set(counts.index))
    if absent:
        present = ", ".join(sorted(counts.index)) or "none"
        raise GmpError(f"emotions {absent}: {corpus} has {present}.")
    excluded = counts.drop(emotions or counts.index)
    if len(excluded):
        listed = ", ".join(f"{emotion} {count}" for emotion, count in excluded.items())
        print(f"{corpus}: {excluded.sum()} utterances of other emotions are excluded ({listed})")
    return manifest[~manifest.emotion.isin(excluded.index)].reset_index(drop=True)
