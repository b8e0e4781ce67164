"""Your own recordings: a CSV or parquet file with a row for each.

Columns: `path` (relative ones are below the file's folder) and `speaker`; any of `utterance`,
`emotion`, `gender`, `session`, `split`, `text`, `valence`, `arousal`, `dominance` (1 to 7), and `start`
and `end` (seconds), if a row is a part of its recording.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.errors import GmpError

EMOTIONS: dict[str, str] = {}  # the table's own names are kept


def load(path: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.corpora.load`.

    Raises
    ------
    GmpError
        If a needed column is missing, or a recording.
    """
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
    else:
        words = ("path", "utterance", "speaker", "gender", "session", "emotion", "split", "text")
        table = pd.read_csv(path, dtype=dict.fromkeys(words, str))
    for name in ("path", "speaker"):
        if name not in table:
            raise GmpError(f"{path}: no column {name!r}; found {', '.join(table.columns)}.")
    if table.path.isna().any():
        raise GmpError(f"{path}, row {table.path.isna().argmax() + 1}: no path; expected one.")
    recordings = table.path.map(lambda name: path.parent / name)
    absent = recordings[~recordings.map(Path.is_file)]
    if len(absent):
        raise GmpError(f"{path}, row {absent.index[0] + 1}: no recording {absent.iloc[0]}.")
    if "utterance" not in table:
        table["utterance"] = table.path.str.replace(r"\.\w+$", "", regex=True)
        if "start" in table:
            table["utterance"] += table.start.map("@{:g}".format)
    table = table.assign(path=recordings.map(str)).rename(columns={"emotion": "label"})
    return table.assign(**{name: None for name in ("label", "gender") if name not in table})
