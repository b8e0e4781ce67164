"""Recordings and their names."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd


def scan(folder: Path, pattern: str, row: Callable[[re.Match], dict]) -> pd.DataFrame:
    """Read the manifest of a corpus whose file names say everything.

    Parameters
    ----------
    folder : Path
        Searched with all below it; macOS's `._` files are passed over.
    pattern : str
        Of the whole file name.
    row : callable
        A match to `speaker`, `gender`, `label` and more, see `gmp_utils.corpora.check`.

    Returns
    -------
    manifest : DataFrame
        A row per recording, in order of path; those whose names do not match come last and have a
        path only. Empty if none matches.
    """
    names = re.compile(pattern)
    paths = sorted(folder.rglob("*.wav"))
    found = ((path, names.fullmatch(path.name)) for path in paths)
    rows = [
        {"utterance": path.stem, "path": str(path), **row(match)} for path, match in found if match
    ]
    return with_unlabelled(pd.DataFrame(rows), paths)


def with_unlabelled(manifest: pd.DataFrame, recordings: Iterable[Path]) -> pd.DataFrame:
    """A manifest, and behind it the recordings that it has not: a path, and that as the name.

    Parameters
    ----------
    manifest : DataFrame
        With `path`; left as it is if it is empty.
    recordings : iterable of Path
        macOS's `._` files are passed over.
    """
    if manifest.empty:
        return manifest
    labelled = set(manifest.path)
    paths = [str(path) for path in sorted(recordings) if not path.name.startswith("._")]
    rest = [path for path in paths if path not in labelled]
    return pd.concat([manifest, pd.DataFrame({"utterance": rest, "path": rest})], ignore_index=True)
