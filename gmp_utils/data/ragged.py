"""Sequences of unequal length in one memory-mapped array: waveforms, frames, labels."""

import mmap
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError


class Ragged:
    """One array of all utterances, and where each of them begins.

    On disk it is two files, `<name>.npy` and `<name>.parquet` (utterance, offset, length, kind).

    Parameters
    ----------
    values : (n_total, ...) ndarray
        Utterance after utterance.
    utterances : sequence of str
    lengths : sequence of int
        Rows of `values` of each utterance.
    kind : str
        "waveform" (samples), "cnn" or "hidden" (frames × dimensions), or "labels" (frames × streams).
    """

    def __init__(
        self, values: np.ndarray, utterances: Sequence[str], lengths: Sequence[int], *, kind: str
    ):
        self.values, self.kind = values, kind
        self.utterances = list(utterances)
        self.lengths = dict(zip(self.utterances, map(int, lengths)))
        starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        self._start = dict(zip(self.utterances, starts.tolist()))

    def __getitem__(self, utterance: str) -> np.ndarray:
        start = self._start[utterance]
        return self.values[start : start + self.lengths[utterance]]

    def __reduce__(self):
        """Pickle the path of a file instead of its values."""
        if isinstance(self.values, np.memmap):
            return Ragged.open, (Path(self.values.filename).with_suffix(""),)
        values = self.values, self.utterances, list(self.lengths.values())
        return partial(Ragged, kind=self.kind), values

    def rows(self, utterances: Sequence[str]) -> np.ndarray:
        """Concatenate the rows of some utterances, in the order given."""
        return np.concatenate([self[name] for name in utterances])

    def sample(self, utterances: Sequence[str], n: int, seed: int) -> np.ndarray:
        """Draw `n` rows of some utterances, in order; all rows for 0, or if there are fewer."""
        ends = np.cumsum([self.lengths[name] for name in utterances])
        if not 0 < n < ends[-1]:
            return self.rows(utterances)
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(ends[-1], n, replace=False))
        starts = np.concatenate([[0], ends[:-1]])
        chosen = zip(utterances, np.split(drawn, np.searchsorted(drawn, ends[:-1])), starts)
        return np.concatenate([self[name][rows - start] for name, rows, start in chosen])

    def flush(self) -> None:
        """Write changes to disk, and release the memory that they took."""
        self.values.flush()
        self.values.base.madvise(mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Delete both files."""
        path = Path(self.values.filename)
        path.unlink()
        path.with_suffix(".parquet").unlink()

    @classmethod
    def create(
        cls,
        stem: Path,
        utterances: Sequence[str],
        lengths: Sequence[int],
        dtype: type,
        *,
        kind: str,
        shape: tuple[int, ...] = (),
    ) -> "Ragged":
        """Create a writable one on disk, filled with zeros.

        `stem` is its path without a suffix; `shape` that of a row, ``()`` for samples and ``(dim,)`` for
        frames.
        """
        table = pd.DataFrame({"utterance": list(utterances), "length": list(lengths)})
        table["offset"], table["kind"] = table.length.cumsum() - table.length, kind
        table.to_parquet(stem.with_suffix(".parquet"), index=False)
        total = (int(table.length.sum()), *shape)
        values = np.lib.format.open_memmap(stem.with_suffix(".npy"), "w+", dtype, total)
        if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process
            with stem.with_suffix(".npy").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, values.offset + max(values.nbytes, 1))
        return cls(values, utterances, lengths, kind=kind)

    @classmethod
    def open(cls, stem: Path, mode: str = "r") -> "Ragged":
        """Open one for reading, or with mode "r+" for writing too."""
        try:
            table = pd.read_parquet(stem.with_suffix(".parquet"))
            values = np.load(stem.with_suffix(".npy"), mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise GmpError(f"{stem}: cannot be read ({error}); make it again.") from error
        if len(values) != table.length.sum():
            raise GmpError(
                f"{stem}.npy has {len(values)} rows, its index says {table.length.sum()}; "
                "make it again."
            )
        return cls(values, table.utterance, table.length, kind=table.kind.iloc[0])
