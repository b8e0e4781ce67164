"""A table of recordings, CSV or parquet.

Columns: `path` (relative to the file's folder; or one of `PATH_COLUMNS`) and `speaker`; optionally
`utterance`, `emotion`, `gender`, `group`, `session`, `split`, `text`, `valence`, `arousal`, `dominance`, and,
for parts of recordings, `start` and `end` (seconds).
"""

import os
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.audio import PATH_COLUMNS
from gmp_utils.data.corpora._labels import locate, read_table

TEXTS = ("path", "utterance", "speaker", "gender", "group", "session", "emotion", "split", "text")
NUMBERS = ("start", "end", "valence", "arousal", "dominance")
ADVICE = 'copy it there, or allow it: the parameter "outside" of notebook 01'


def load(path: Path, outside: bool = False) -> pd.DataFrame:
    """Read the manifest. Recordings must be below the table's folder unless `outside` is true."""
    columns = {"required": ("path", "speaker"), "texts": TEXTS, "numbers": NUMBERS}
    table = read_table(path, **columns, aliases=dict.fromkeys(PATH_COLUMNS[1:], "path"))
    known = [*TEXTS, *NUMBERS]
    meant = dict(zip(known, known)) | {"label": "emotion"}
    for name in table.columns.difference(known):
        if expected := meant.get(name.strip().lower()):
            raise GmpError(f"{path}: column {name!r}, expected {expected!r}; rename it.")
    table = table[table.columns.intersection(known)]  # others are ignored
    recordings = locate(table.path, path.parent, path, None if outside else ADVICE)
    parts = table.reindex(columns=["start", "end"]).fillna({"start": 0.0})
    if (parts.end <= parts.start).any():
        row = parts[parts.end <= parts.start].iloc[0]
        found = f"start {row.start:g}, end {row.end:g}"
        raise GmpError(f"{path}, row {row.name + 1}: {found}; expected a later end, in seconds.")
    parts["path"] = list(map(os.path.realpath, recordings))
    labels = table.columns.intersection(["speaker", "emotion"])
    described = parts.join(table[labels]).drop_duplicates()
    contradictions = described.index[described.duplicated(list(parts))]
    if len(contradictions):
        number = contradictions[0]
        found = f"{table.path[number]} has another speaker or emotion in an earlier row"
        raise GmpError(f"{path}, row {number + 1}: {found}; expected the same in both.")
    if "utterance" not in table:
        table["utterance"] = table.path.str.replace(r"\.\w+$", "", regex=True)
        if "start" in table:
            table["utterance"] += table.start.map("@{:.10g}".format)
    table = table.assign(path=recordings).rename(columns={"emotion": "label"})
    return table.assign(**{name: None for name in ("label", "gender") if name not in table})
