"""Corpora whose file names say everything."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd


def scan(folder: Path, pattern: str, row: Callable[[re.Match], dict]) -> pd.DataFrame:
    """Read a manifest from file names.

    Parameters
    ----------
    folder : Path
        Searched with all below it; macOS's `._` files are passed over.
    pattern : str
        Of the whole file name; files that do not match are no recordings of the corpus.
    row : callable
        A match to `speaker`, `gender`, `label` and more, see `gmp_utils.corpora.check`.

    Returns
    -------
    manifest : DataFrame
        A row per recording, in order of path.
    """
    names = re.compile(pattern)
    found = ((path, names.fullmatch(path.name)) for path in sorted(folder.rglob("*.wav")))
    return pd.DataFrame(
        {"utterance": path.stem, "path": str(path), **row(match)} for path, match in found if match
    )
