"""Corpora: a folder of recordings to a manifest, one row per utterance."""

from importlib import import_module
from pathlib import Path

import pandas as pd

from gmp_utils.errors import GmpError

CORPORA = ("synthetic", "emodb")


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
        optionally `valence`, `arousal`, `dominance` (1 to 7), `session`, `text`, and the part that
        carries the emotion, `emotion_start` and `emotion_end` in seconds.

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


def load(corpus: str, folder: str | Path, emotions: list[str] | None = None) -> pd.DataFrame:
    """Read a corpus.

    Parameters
    ----------
    corpus : str
        One of `CORPORA`.
    folder : str or Path
        Where its recordings are.
    emotions : list of str, optional
        Keep these only; all if none are given.

    Returns
    -------
    manifest : DataFrame
        A row per utterance, checked, see `check`.

    Raises
    ------
    GmpError
        For an unknown corpus, a missing folder, a folder without its recordings, an emotion that
        the corpus does not have.
    """
    if corpus not in CORPORA:
        raise GmpError(f"corpus {corpus!r}: expected one of {', '.join(CORPORA)}.")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise GmpError(f"corpus_dir {str(folder)!r}: no such folder; give the folder of {corpus}.")
    manifest = import_module(f"gmp_utils.corpora.{corpus}").load(folder)
    if manifest.empty:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:3]) or "nothing"
        raise GmpError(
            f"corpus_dir {str(folder)!r}: no recording is named as {corpus} names them "
            f"(found {found}, …); give the folder that holds the recordings."
        )
    if emotions:
        absent = sorted(set(emotions) - set(manifest.emotion))
        if absent:
            present = ", ".join(sorted(set(manifest.emotion)))
            raise GmpError(f"emotions {absent}: {corpus} has {present}.")
        manifest = manifest[manifest.emotion.isin(emotions)].reset_index(drop=True)
    return check(manifest)
