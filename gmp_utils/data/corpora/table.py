"""A table of recordings, CSV or parquet.

Columns: `path` (relative to the file's folder) and `speaker`; optionally `utterance`, `emotion`, `gender`,
`session`, `split`, `text`, `valence`, `arousal`, `dominance`, and, for parts of recordings,
`start` and `end` (seconds).
"""

from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora._labels import locate, read_table

TEXTS = ("path", "utterance", "speaker", "gender", "session", "emotion", "split", "text")
NUMBERS = ("start", "end", "valence", "arousal", "dominance")
ADVICE = 'copy it there, or allow it: the parameter "outside" of notebook 01'


def load(path: Path, outside: bool = False) -> pd.DataFrame:
    """Read the manifest; recordings must be below the table's folder unless `outside` is true."""
    table = read_table(path, required=("path", "speaker"), texts=TEXTS, numbers=NUMBERS)
    if "label" in table:
        raise GmpError(f"{path}: column 'label', expected 'emotion'; rename it.")
    table = table[table.columns.intersection([*TEXTS, *NUMBERS])]  # others are passed over
    recordings = locate(table.path, path.parent, path, None if outside else ADVICE)
    if "utterance" not in table:
        table["utterance"] = table.path.str.replace(r"\.\w+$", "", regex=True)
        if "start" in table:
            table["utterance"] += table.start.map("@{:.10g}".format)
    table = table.assign(path=recordings).rename(columns={"emotion": "label"})
    return table.assign(**{name: None for name in ("label", "gender") if name not in table})
