"""Corpora: a folder of recordings to a manifest, one row per utterance.

A module per corpus has `EMOTIONS`, from the corpus's labels to the names that are used here, and
`load`, from the folder to the manifest with `label` instead of `emotion`.
"""

from importlib import import_module
from pathlib import Path

import pandas as pd

from gmp_utils.errors import GmpError

CORPORA = (
    *("synthetic", "table", "iemocap", "msp_podcast", "msp_improv"),
    *("crema_d", "ravdess", "emodb", "savee", "tess", "esd"),
)


def _schema():
    import pandera.pandas as pa

    def optional(kind, *checks):
        return pa.Column(kind, *checks, nullable=True, required=False)

    on_scale = pa.Check.in_range(1, 7)
    return pa.DataFrameSchema(
        {
            "utterance": pa.Column(str, unique=True),
            "path": pa.Column(str),
            "speaker": pa.Column(str),
            "gender": pa.Column(str, pa.Check.isin(["female", "male"])),
            "emotion": pa.Column(str),
            "valence": optional(float, on_scale),
            "arousal": optional(float, on_scale),
            "dominance": optional(float, on_scale),
            "session": optional(str),
            "split": optional(str),
            "text": optional(str),
            "emotion_start": optional(float, pa.Check.ge(0)),
            "emotion_end": optional(float, pa.Check.ge(0)),
        },
        strict=True,
    )


def check(manifest: pd.DataFrame) -> pd.DataFrame:
    """Check a manifest against the schema.

    Parameters
    ----------
    manifest : DataFrame
        A row per utterance: `utterance`, `path`, `speaker`, `gender` (female, male), `emotion`;
        optionally `valence`, `arousal`, `dominance` (1 to 7), `session`, `split`, `text`, and the
        part that carries the emotion, `emotion_start` and `emotion_end` in seconds.

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
        row = case["index"]
        where = f"row {int(row)} of the manifest, " if pd.notna(row) else ""
        raise GmpError(
            f"{where}column {case['column']}: found {case['failure_case']}, "
            f"expected {case['check']}."
        ) from errors


def load(
    corpus: str,
    folder: str | Path,
    emotions: list[str] | None = None,
    label_map: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Read a corpus.

    Parameters
    ----------
    corpus : str
        One of `CORPORA`.
    folder : str or Path
        Where its recordings are; the file of a `table`.
    emotions : list of str, optional
        Keep these only; all if none are given.
    label_map : dict of str to str, optional
        Changes to the corpus's `EMOTIONS`, such as ``{"exc": "excited"}``.

    Returns
    -------
    manifest : DataFrame
        A row per utterance, checked, see `check`.

    Raises
    ------
    GmpError
        For an unknown corpus, a missing folder, a folder without its recordings, a label that no
        map names, an emotion that the corpus does not have.
    """
    if corpus not in CORPORA:
        raise GmpError(f"corpus {corpus!r}: expected one of {', '.join(CORPORA)}.")
    folder = Path(folder).expanduser()
    if not (folder.is_file() if corpus == "table" else folder.is_dir()):
        kind = "file" if corpus == "table" else "folder"
        raise GmpError(f"corpus_dir {str(folder)!r}: no such {kind}; give the {kind} of {corpus}.")
    module = import_module(f"gmp_utils.corpora.{corpus}")
    manifest = module.load(folder)
    if manifest.empty:
        inside = [folder] if folder.is_file() else folder.iterdir()
        found = ", ".join(sorted(path.name for path in inside)[:3]) or "nothing"
        raise GmpError(
            f"corpus_dir {str(folder)!r}: no recording is named as {corpus} names them "
            f"(found {found}, …); give the folder that holds the recordings."
        )
    names = module.EMOTIONS | (label_map or {})
    if corpus == "table":
        names = {label: label for label in manifest.label} | names
    unnamed = manifest[~manifest.label.isin(names)]
    if len(unnamed):
        raise GmpError(
            f"{unnamed.path.iloc[0]}: label {unnamed.label.iloc[0]!r}; {corpus} has "
            f"{', '.join(module.EMOTIONS)}. Name it in label_map."
        )
    manifest = manifest.assign(emotion=manifest.label.map(names)).drop(columns="label")
    if emotions:
        absent = sorted(set(emotions) - set(manifest.emotion))
        if absent:
            present = ", ".join(sorted(set(manifest.emotion)))
            raise GmpError(f"emotions {absent}: {corpus} has {present}.")
        manifest = manifest[manifest.emotion.isin(emotions)].reset_index(drop=True)
    return check(manifest)
