"""Sequences of unequal length in one memory-mapped array: waveforms, frames or labels."""

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError


class Ragged:
    """Concatenated arrays of utterances: `values`, (n_total, ...), and the number of rows of each, `lengths`.

    A row is a sample, (), a frame, (dim,), or the labels of a frame, (n_streams,). On disk there are two
    files, `<name>.npy` and `<name>.parquet` (utterance, length).
    """

    def __init__(self, values: np.ndarray, lengths: Mapping[str, int]):
        self.values, self.lengths, self.utterances = values, dict(lengths), list(lengths)
        self._start = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist()))

    @property
    def is_waveform(self) -> bool:
        """Whether rows are samples."""
        return self.values.ndim == 1

    def __getitem__(self, utterance: str) -> np.ndarray:
        start = self._start[utterance]
        return self.values[start : start + self.lengths[utterance]]

    def __reduce__(self):
        """Pickle a memory-mapped array as the path of its file."""
        if isinstance(self.values, np.memmap):
            return Ragged.open, (Path(self.values.filename).with_suffix(""),)
        return Ragged, (self.values, self.lengths)

    def rows(self, utterances: Sequence[str]) -> np.ndarray:
        """Concatenate the rows of some utterances."""
        return np.concatenate([self[name] for name in utterances])

    def sample(self, utterances: Sequence[str], n: int, seed: int) -> np.ndarray:
        """Draw `n` rows of some utterances, in order; all rows if `n` is 0 or there are fewer."""
        ends = np.cumsum([self.lengths[name] for name in utterances])
        if not 0 < n < ends[-1]:
            return self.rows(utterances)
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(ends[-1], n, replace=False))
        starts = np.concatenate([[0], ends[:-1]])
        chosen = zip(utterances, np.split(drawn, np.searchsorted(drawn, ends[:-1])), starts)
        return np.concatenate([self[name][rows - start] for name, rows, start in chosen])

    def flush(self) -> None:
        """Write changes to disk, and release their memory."""
        self.values.flush()
        self.values.base.madvise(mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Delete both files."""
        path = Path(self.values.filename)
        path.unlink()
        path.with_suffix(".parquet").unlink()

    @classmethod
    def create(
        cls, stem: Path, lengths: Mapping[str, int], dtype: type, shape: tuple[int, ...] = ()
    ) -> "Ragged":
        """Create a writable `Ragged` on disk, filled with zeros.

        `stem` is the path without suffix, `shape` that of a row: ``()`` for samples, ``(dim,)`` for frames.
        """
        table = pd.DataFrame({"utterance": list(lengths), "length": list(lengths.values())})
        table.to_parquet(stem.with_suffix(".parquet"), index=False)
        total = (int(table.length.sum()), *shape)
        values = np.lib.format.open_memmap(stem.with_suffix(".npy"), "w+", dtype, total)
        if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process
            with stem.with_suffix(".npy").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, values.offset + max(values.nbytes, 1))
        return cls(values, lengths)

    @classmethod
    def open(cls, stem: Path) -> "Ragged":
        """Open a `Ragged` for reading."""
        try:
            table = pd.read_parquet(stem.with_suffix(".parquet"))
            values = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise GmpError(f"{stem}: cannot be read ({error}); make it again.") from error
        return cls(values, dict(zip(table.utterance, table.length.tolist())))
