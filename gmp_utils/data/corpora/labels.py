"""Files of labels: what they say of recordings, and where they may send the reader."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pyarrow import parquet

from gmp_utils import GmpError


def read_table(
    path: Path, needed: Sequence[str], texts: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame:
    """Read a CSV or parquet file.

    Parameters
    ----------
    path : Path
        Parquet if it ends so, else CSV in UTF-8.
    needed : sequence of str
        Columns that have to be there.
    texts, numbers : sequence of str
        Columns that hold texts, or numbers, where they are there. Others are not looked at.

    Returns
    -------
    table : DataFrame
        Rows are numbered from 0.

    Raises
    ------
    GmpError
        If it is no such file, has no rows, a column is missing or there twice, rows are longer than the
        header, or a value is of another type; names the row, counted from 1 behind the header.
    """
    try:
        if path.suffix == ".parquet":
            read = parquet.ParquetFile(path).read()
            read.validate(full=True)
            index = [name for name in read.column_names if name.startswith("__index_level_")]
            table = read.drop_columns(index).to_pandas(ignore_metadata=True)
        else:
            table = pd.read_csv(path, compression=None, dtype=dict.fromkeys(texts, str))
    except Exception as error:  # bytes from elsewhere: readers of them raise whatever they like
        raise GmpError(
            f"{path}: not a table that can be read ({error}); expected CSV in UTF-8, or parquet."
        ) from error
    columns = ", ".join(map(str, table.columns))
    for name in needed:
        if name not in table:
            raise GmpError(f"{path}: no column {name!r}; found {columns}.")
    if not table.columns.is_unique:
        raise GmpError(f"{path}: found the columns {columns}, expected each once.")
    if table.empty:
        raise GmpError(
            f"{path}: found no row below the header, {columns}; expected one per recording."
        )
    if not isinstance(table.index, pd.RangeIndex):
        raise GmpError(f"{path}: its rows have more fields than its header, {columns}.")
    for name in table.columns.intersection([*texts, *numbers]):
        if name in texts:
            fits, kind = table[name].map(lambda value: isinstance(value, str)), "a text"
        else:
            values = table[name].map(_float).astype(float)
            fits, kind = values.notna(), "a number"
        wrong = ~fits.astype(bool) & table[name].notna()
        if wrong.any():
            row = wrong.argmax()
            found = table[name].tolist()[row]
            raise GmpError(f"{path}, row {row + 1}: {name} is {found!r}, expected {kind}.")
        if name in numbers:
            table[name] = values
    return table


def _float(value: object) -> float:
    """A value as a number, NaN if it is none; pandas' own way fails for lists and for 400 digits."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def locate(names: pd.Series, folder: Path, file: Path, advice: str | None) -> list[str]:
    """Find recordings that a file of labels names; those that lead out of a folder are not looked for.

    Parameters
    ----------
    names : Series of str
        Paths from `folder` on, a row for each.
    folder : Path
        It may be a link itself; links in it must not leave it.
    file : Path
        Where the names are from, for the message.
    advice : str or None
        What to do about one that leads out; None if they may lead anywhere.

    Returns
    -------
    paths : list of str

    Raises
    ------
    GmpError
        If one leads out or is not there; names the row, counted from 1 behind the header, and the path.
    """
    root = os.path.realpath(folder)
    for row, name in enumerate(names, start=1):
        if pd.isna(name) or "\0" in name:
            raise GmpError(f"{file}, row {row}: no path of a recording, found {name!r}.")
        if advice and not Path(os.path.realpath(folder / name)).is_relative_to(root):
            raise GmpError(f"{file}, row {row}: {name!r} leads out of {folder}; {advice}.")
    paths = [str(folder / name) for name in names]
    for row, path in enumerate(paths, start=1):
        if not os.path.isfile(path):
            raise GmpError(f"{file}, row {row}: no recording {path}; add it, or take the row out.")
    return paths


def number(text: str, where: str) -> float:
    """Read a number that stands `where`, the file and the recording.

    Raises
    ------
    GmpError
        If it is none, such as "1.2.3".
    """
    try:
        return float(text)
    except ValueError as error:
        raise GmpError(f"{where}: found {text!r}, expected a number; mend the file.") from error
