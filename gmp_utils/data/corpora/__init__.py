"""Corpora: a folder of recordings to a manifest, one row per utterance.

A module per corpus has `EMOTIONS`, from the corpus's labels to the names that are used here, and
`load`, from the folder to the manifest with `label` instead of `emotion`.
"""

import os
from importlib import import_module
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora.names import check_folder, check_name

CORPORA = (
    *("synthetic", "synthetic_speakers", "table", "iemocap", "msp_podcast", "msp_improv"),
    *("crema_d", "ravdess", "emodb", "savee", "tess", "esd"),
)
EXPECTED = {"field_uniqueness": "each once", "not_nullable": "a value"}  # pandera's words in ours


def _schema():
    import pandera.pandas as pa

    def optional(kind, *checks):
        return pa.Column(kind, *checks, nullable=True, required=False, coerce=kind is float)

    seconds = pa.Check.in_range(0, 1e6)
    on_scale = pa.Check.in_range(0, 7)  # scales begin at 1; IEMOCAP has single ratings below
    return pa.DataFrameSchema(
        {
            "corpus": pa.Column(str),
            "utterance": pa.Column(str, unique=True),
            "path": pa.Column(str),
            "start": optional(float, seconds),
            "end": optional(float, seconds),
            "speaker": pa.Column(str, nullable=True),
            "gender": pa.Column(str, pa.Check.isin(["female", "male"]), nullable=True),
            "emotion": pa.Column(str, nullable=True),
            "valence": optional(float, on_scale),
            "arousal": optional(float, on_scale),
            "dominance": optional(float, on_scale),
            "session": optional(str),
            "split": optional(str),
            "text": optional(str),
            "emotion_start": optional(float, seconds),
            "emotion_end": optional(float, seconds),
        },
        strict=True,
    )


def check(manifest: pd.DataFrame) -> pd.DataFrame:
    """Check a manifest against the schema.

    Parameters
    ----------
    manifest : DataFrame
        A row per utterance: `corpus`, `utterance`, `path`; `speaker`, `gender` (female, male) and
        `emotion`, or nothing where they are not known; optionally `start` and `end` of the part of a
        recording that it is (seconds), `valence`, `arousal`, `dominance` (1 to 7), `session`, `split`,
        `text`, and the part that carries the emotion, `emotion_start` and `emotion_end` (seconds).

    Raises
    ------
    GmpError
        Naming column, row and value of the first offence.
    """
    import pandera.errors

    try:
        return _schema().validate(manifest, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        case = errors.failure_cases.iloc[0]
        if case["check"] == "column_in_schema":
            known = ", ".join(_schema().columns)
            raise GmpError(f"column {case['failure_case']}: expected some of {known}.") from errors
        row = case["index"]
        where = f"row {int(row)} of the manifest ({manifest.path[row]}), " if pd.notna(row) else ""
        expected = EXPECTED.get(case["check"], case["check"])
        raise GmpError(
            f"{where}column {case['column']}: found {case['failure_case']}, expected {expected}."
        ) from errors


def load(
    corpus: str,
    folder: str | Path,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
) -> pd.DataFrame:
    """Read a corpus.

    Parameters
    ----------
    corpus : str
        One of `CORPORA`.
    folder : str or Path
        Where its recordings are; the file of a `table`.
    emotions : list of str, optional
        Keep these only, and print what goes; all if none are given.
    label_map : dict of str to str, optional
        Changes to the corpus's `EMOTIONS`, such as ``{"exc": "excited"}``.
    outside : bool
        May a `table` name recordings that are not below its folder.

    Returns
    -------
    manifest : DataFrame
        A row per utterance, checked, see `check`.

    Raises
    ------
    GmpError
        For an unknown corpus, a missing folder, a folder without its recordings or with one that
        cannot be listed, names that are not UTF-8, labels that cannot be read or that name a recording
        elsewhere, a label that no map names or that the corpus does not have, an emotion that the
        corpus does not have.
    """
    rows, names = _read(corpus, folder, outside)
    return check(_keep(_name(rows, names, label_map or {}), emotions))


def cross_corpus(
    train: tuple[str, str | Path],
    test: tuple[str, str | Path],
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
    outside: bool = False,
) -> pd.DataFrame:
    """Two corpora as one: what is learnt on the first is tested on the second.

    Parameters
    ----------
    train, test : (corpus, folder)
        See `load`.
    emotions : list of str, optional
        Keep these only; all that both corpora have if none are given.
    label_map : dict of str to str, optional
        Changes to the `EMOTIONS` of both.
    outside : bool
        See `load`.

    Returns
    -------
    manifest : DataFrame
        As from `load`; utterances and speakers begin with their corpus's name, and `split` is
        "train" or "test".

    Raises
    ------
    GmpError
        If it is the same corpus twice, they share fewer than two emotions, or an asked emotion is
        not in both; and as `load`.
    """
    if train[0] == test[0]:
        raise GmpError(f"{train[0]} is asked for twice; to test within a corpus, fold it.")
    given = {"train": _read(*train, outside), "test": _read(*test, outside)}
    loaded = {}
    for part, (rows, names) in given.items():
        others = given["test" if part == "train" else "train"][1]
        own = {
            old: new for old, new in (label_map or {}).items() if old in names or old not in others
        }
        loaded[part] = _name(rows, names, own)
    common = set.intersection(*(set(rows.emotion.dropna()) for rows in loaded.values()))
    if len(common) < 2:
        raise GmpError(
            f"{train[0]} and {test[0]} share the emotions {sorted(common)}, expected two or more; "
            "name them alike in label_map."
        )
    for part, rows in loaded.items():
        rows = _keep(rows, emotions or sorted(common))
        named = {name: rows.corpus + "/" + rows[name] for name in ("utterance", "speaker")}
        loaded[part] = rows.assign(split=part, **named)
    return check(pd.concat(loaded.values(), ignore_index=True))


def _read(corpus: str, folder: str | Path, outside: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """A corpus's rows with its own labels, and what these are called here."""
    if corpus not in CORPORA:
        raise GmpError(f"corpus {corpus!r}: expected one of {', '.join(CORPORA)}.")
    folder = Path(folder).expanduser()
    if not (os.path.isfile(folder) if corpus == "table" else os.path.isdir(folder)):
        kind = "file" if corpus == "table" else "folder"
        raise GmpError(f"corpus_dir {str(folder)!r}: no such {kind}; give the {kind} of {corpus}.")
    module = import_module(f"gmp_utils.data.corpora.{corpus}")
    check_name(folder)
    if corpus == "table":
        rows = module.load(folder, outside)
    else:
        check_folder(folder)
        rows = module.load(folder)
    if rows.empty:
        inside = [folder] if folder.is_file() else folder.iterdir()
        names = sorted(path.name.encode(errors="backslashreplace").decode() for path in inside)
        found = ", ".join(names[:3]) or "nothing"
        raise GmpError(
            f"corpus_dir {str(folder)!r}: no recording is named as {corpus} names them "
            f"(found {found}, …); give the folder that holds the recordings."
        )
    own = {label: label for label in rows.label.dropna()} if corpus == "table" else {}
    return rows.assign(corpus=corpus).reset_index(drop=True), own | module.EMOTIONS


def _name(rows: pd.DataFrame, names: dict[str, str], label_map: dict[str, str]) -> pd.DataFrame:
    """The corpus's labels as emotions."""
    labels = set(names) | set(rows.label.dropna())
    for label in label_map:
        if label not in labels:
            raise GmpError(
                f"label_map: found {label!r}, expected some of {', '.join(sorted(labels))}."
            )
    names = names | label_map
    unnamed = rows[rows.label.notna() & ~rows.label.isin(names)]
    if len(unnamed):
        raise GmpError(
            f"{unnamed.path.iloc[0]}: label {unnamed.label.iloc[0]!r}; {unnamed.corpus.iloc[0]} has "
            f"{', '.join(names)}. Name it in label_map."
        )
    return rows.assign(emotion=rows.label.map(names).astype(object)).drop(columns="label")


def _keep(manifest: pd.DataFrame, emotions: list[str] | None) -> pd.DataFrame:
    """The utterances of some emotions, and those of none that is known; says what goes."""
    counts, corpus = manifest.emotion.value_counts(), manifest.corpus.iloc[0]
    absent = sorted(set(emotions or []) - set(counts.index))
    if absent:
        present = ", ".join(sorted(counts.index)) or "none"
        raise GmpError(f"emotions {absent}: {corpus} has {present}.")
    gone = counts.drop(emotions or counts.index)
    if len(gone):
        listed = ", ".join(f"{emotion} {count}" for emotion, count in gone.items())
        print(f"{corpus}: {gone.sum()} utterances of other emotions are left out ({listed})")
    kept = manifest[~manifest.emotion.isin(gone.index)]
    return kept.reset_index(drop=True)
