"""Recordings and their names."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError


def check_folder(folder: Path) -> None:
    """Refuse a folder in which recordings would be overlooked or could not be kept.

    Raises
    ------
    GmpError
        Naming what cannot be listed, or a recording's name that is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        name = os.path.basename(error.filename)
        if name == "lost+found" or name.startswith("."):  # systems' own
            return
        raise GmpError(
            f"{error.filename!r}: cannot be listed ({error.strerror}), so recordings would be "
            "overlooked; make it readable, or give a folder without it."
        ) from error

    for where, folders, files in os.walk(folder, onerror=refuse):
        for name in (*folders, *files):
            if name.endswith(".wav"):
                check_name(Path(where, name))


def check_name(path: Path) -> None:
    """Refuse a path that is not UTF-8: no manifest can hold it.

    Raises
    ------
    GmpError
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise GmpError(
            f"{str(path)!r}: a name that is not UTF-8, expected one; rename it."
        ) from error


def scan(folder: Path, pattern: str, row: Callable[[re.Match], dict]) -> pd.DataFrame:
    """Read the manifest of a corpus whose file names say everything.

    Parameters
    ----------
    folder : Path
        Searched with all below it; macOS's `._` files are passed over.
    pattern : str
        Of the whole file name.
    row : callable
        A match to `speaker`, `gender`, `label` and more, see `gmp_utils.data.corpora.check`.

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
