"""A store of 16 kHz waveforms, and a report on the recordings."""

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import hardware

QUEUED = 1024  # recordings that are decoded ahead of writing, at most
SILENCE = 1e-3  # peak of a silent recording, 60 dB below full scale
CLIPPED_SHARE = 1e-3  # minimum share of a clipped recording's samples


def write_store(manifest: pd.DataFrame, stem: Path) -> tuple[Ragged, pd.DataFrame]:
    """Decode the recordings of a manifest into a store at `stem`, a path without suffix, and report on them.

    The store is int16, full scale at 32767. Recordings that cannot be decoded are empty. The report has
    `utterance`, `path`, `seconds`, `peak` and share of `clipped` samples (before resampling), `digest` of the
    stored samples, and `unreadable`, the reason or None.
    """
    parts = manifest.reindex(columns=["start", "end"])
    rows = list(zip(manifest.utterance, manifest.path, parts.start.fillna(0.0), parts.end))
    report, lengths = [], {}
    # Samples go to a temporary file first, as their lengths are unknown.
    with tempfile.TemporaryFile(dir=stem.parent) as spool:
        with ThreadPoolExecutor(hardware.cores()) as pool:
            decoded = chain.from_iterable(  # a faster pool than disk would fill the memory
                pool.map(lambda row: _decode(*row), rows[first : first + QUEUED])
                for first in range(0, len(rows), QUEUED)
            )
            for samples, row in tqdm(decoded, "decode", len(rows), unit="file", disable=None):
                spool.write(samples.tobytes())
                lengths[row["utterance"]] = len(samples)
                report.append(row)
        spool.seek(0)
        store = Ragged.create(stem, lengths, np.int16)
        for utterance, length in lengths.items():
            store[utterance][:] = np.fromfile(spool, np.int16, length)
    store.flush()
    return store, pd.DataFrame(report)


def _decode(utterance: str, path: str, start: float, end: float) -> tuple[np.ndarray, dict]:
    """Samples (int16) of an utterance, and its row of the report."""
    row = {"utterance": utterance, "path": path, "unreadable": None}
    try:
        waveform, description = audio.read(path, start, end)
    except GmpError as error:
        row |= {"peak": 0.0, "clipped": 0.0, "seconds": 0.0}
        return np.zeros(0, np.int16), row | {"digest": "", "unreadable": str(error)}
    samples = audio.to_int16(waveform)
    digest = hashlib.sha256(samples.tobytes()).hexdigest()[:16]
    seconds = len(samples) / audio.SAMPLE_RATE
    return samples, row | description | {"seconds": seconds, "digest": digest}


def check_readable(report: pd.DataFrame) -> None:
    """Raise a GmpError that names the first unreadable recording of a report."""
    reasons = report.unreadable.dropna()
    if len(reasons):
        raise GmpError(f"{reasons.iloc[0]} Repair it or remove it ({len(reasons)} such).")


def find_problems(report: pd.DataFrame, min_seconds: float, max_seconds: float) -> pd.DataFrame:
    """Problems of recordings: `utterance`, `problem` and `detail`; a recording may have several.

    They are "unreadable", "silent", "clipped", "short" (< `min_seconds`) and "long" (> `max_seconds`).
    """
    readable = report.unreadable.isna()
    peak = 20 * np.log10(report.peak.clip(lower=1e-6))
    seconds = report.seconds.map("{:.2f} s".format)
    tests = {
        "unreadable": (~readable, report.unreadable),
        "silent": (readable & (report.peak < SILENCE), peak.map("peak at {:.0f} dB".format)),
        "clipped": (report.clipped > CLIPPED_SHARE, report.clipped.map("{:.1%} of samples".format)),
        "short": (readable & (report.seconds < min_seconds), seconds),
        "long": (report.seconds > max_seconds, seconds),
    }
    tables = [
        pd.DataFrame({"utterance": report.utterance, "problem": name, "detail": detail})[has]
        for name, (has, detail) in tests.items()
    ]
    return pd.concat(tables, ignore_index=True)
