"""Helpers for readers of corpora: tables of labels, and paths of recordings."""

import os
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.audio import find_recordings

SUFFIXES = {".wav", ".flac", ".mp3"}  # of corpora, whose videos do not count
GENDERS = {"F": "female", "M": "male"}
EXPECTED = {  # names of pandera's checks, as messages
    "field_uniqueness": "unique values",
    "not_nullable": "a value",
    "dtype('string[pyarrow]')": "text",
    "dtype('str')": "text",
    "isin(['female', 'male'])": "female or male",
}


def validate(schema, table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Validate a table with a pandera schema; errors name column, row (from 1) and value."""
    import pandera.errors  # takes a second

    try:
        return schema.validate(table, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        case = errors.failure_cases.iloc[0]
        check, value = case["check"], case["failure_case"]
        columns = ", ".join(map(str, table.columns))
        if check == "column_in_dataframe":
            raise GmpError(f"{what}: no column {value}, found {columns}.") from errors
        if check == "column_in_schema":
            expected = ", ".join(schema.columns)
            raise GmpError(f"{what}: column {value}, expected some of {expected}.") from errors
        row = f", row {int(case['index']) + 1}" if pd.notna(case["index"]) else ""
        expected = f"found {value}, expected {EXPECTED.get(check, check)}"
        raise GmpError(f"{what}{row}, column {case['column']}: {expected}.") from errors


def read_table(
    path: Path,
    *,
    required: Sequence[str],
    texts: Sequence[str],
    numbers: Sequence[str],
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Read a table of labels, parquet or CSV in UTF-8, with columns of texts and numbers.

    `aliases` are other names of columns of texts.
    """
    import pandera.pandas as pa

    expected, texts = dict.fromkeys(texts, str) | dict.fromkeys(numbers), [*texts, *aliases]
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
            table = table.reset_index(drop=not {*table.columns}.isdisjoint(table.index.names))
            kinds = table.select_dtypes(["category", "integer"]).columns.intersection(texts)
            table = table.astype(dict.fromkeys(kinds, str))
        else:  # in texts, only an empty cell is a missing value
            missing = dict.fromkeys(texts, "") | {
                name: ["", "nan", "NaN", "NA"] for name in numbers
            }
            options = {"keep_default_na": False, "na_values": missing, "index_col": False}
            with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
                table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), **options)
    except pd.errors.ParserWarning as error:  # perhaps a comma in a text without quotes
        found = "a row has more cells than the first"
        raise GmpError(f"{path}: {found}; put texts with commas in quotes.") from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        problem = f"{path}: cannot be read as a table ({error})"
        raise GmpError(f"{problem}; expected CSV in UTF-8, or parquet.") from error
    if table.empty:
        raise GmpError(f"{path}: no rows, expected one for each recording.")
    for alias, name in aliases.items():
        table = table if name in table else table.rename(columns={alias: name})
    columns = {
        name: pa.Column(kind, nullable=True, required=name in required)
        for name, kind in expected.items()
    }
    table = validate(pa.DataFrameSchema(columns, unique_column_names=True), table, str(path))
    for name in table.columns.intersection(numbers):  # float() would accept 1_000
        values = pd.to_numeric(table[name].astype(object), errors="coerce").astype(float)
        for row in table.index[values.isna() & table[name].notna()]:
            found = f"found {table[name][row]}, expected a number"
            raise GmpError(f"{path}, row {row + 1}, column {name}: {found}.")
        table[name] = values
    names = table.columns.intersection(expected).difference(["path", "FileName", *numbers])
    for name in names:
        cleaned = table[name].map(
            lambda text: unicodedata.normalize("NFC", text).strip() or None, na_action="ignore"
        )
        table[name] = cleaned.astype(table[name].dtype)
    return table


def normalized_name(name: str) -> str:
    """Normalize a name for comparison: ignore case, width, white space and invisible characters."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in text if unicodedata.category(letter)[0] not in "CZ")


def locate(names: pd.Series, folder: Path, file: Path, advice: str | None) -> list[str]:
    """Paths of the recordings that a table of labels, `file`, names relative to a folder.

    Paths and links that lead out of the folder are rejected with `advice`, unless it is None.
    """
    root = os.path.realpath(folder)
    for number, name in enumerate(names, start=1):
        row = f"{file}, row {number}"
        if pd.isna(name):
            raise GmpError(f"{row}: no path of a recording.")
        if advice and not Path(os.path.realpath(folder / name)).is_relative_to(root):
            raise GmpError(f"{row}: {name!r} leads out of {folder}; {advice}.")
        if not os.path.isfile(folder / name):
            raise GmpError(f"{row}: no recording {folder / name}; add it, or remove the row.")
    return [str(folder / name) for name in names]


def add_unlabeled(manifest: pd.DataFrame, recordings: Iterable[Path]) -> pd.DataFrame:
    """Append the recordings that a manifest lacks, named by their paths."""
    if manifest.empty:  # the folder of another corpus
        return manifest
    labelled = set(manifest.path)
    rest = [
        str(path) for path in find_recordings(recordings, SUFFIXES) if str(path) not in labelled
    ]
    return pd.concat([manifest, pd.DataFrame({"utterance": rest, "path": rest})], ignore_index=True)
