"""Recordings to one store of 16 kHz waveforms, and a report of what was found in them."""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from torchaudio.transforms import Resample
from tqdm import tqdm

from gmp_utils.errors import GmpError
from gmp_utils.ragged import Ragged

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS = 0.025  # one frame of the encoder
SILENCE = 1e-3  # peak of a silent recording, 60 dB below full scale
FULL_SCALE = 0.999  # a sample beyond it is clipped
CLIPPED_SHARE = 1e-3  # of a clipped recording's samples
RATES = (4000, 384000)  # Hz, lowest and highest
KERNEL = 2**22  # numbers in a resampling filter, 16 MB; 441 * 160 for 44100 Hz
LOUDEST = 2.0**31  # of 32-bit integers kept as floats, 1 is full scale
LONGEST = 2**30  # samples of all channels of a recording, 4 GB while it is decoded
DENSE = 64  # samples per byte; headers that say more are believed after decoding
BLOCK = 2**20  # samples of all channels
UNKNOWN = 2**63 - 1  # libsndfile's length of a recording whose header has none
PIPED = 2**31 - 2**20  # bytes; who writes to a pipe promises more, not knowing the length
# libsndfile's log: bytes that a header promises, and those that are there
CUT = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
PORTION = 500  # recordings that an interruption may lose


def decode(path: str) -> np.ndarray:
    """Read a recording as 16 kHz mono.

    Parameters
    ----------
    path : str

    Returns
    -------
    waveform : (n_samples,) float32
        In [-1, 1], channels averaged.

    Raises
    ------
    GmpError
        If the file cannot be decoded, ends too early, is longer than memory allows or than its header
        knows, or holds values that are no numbers; if its rate is not from 4 to 384 kHz, or its ratio to
        16 kHz is of whole numbers whose product is above 2**22, such as 44101 : 16000.
    """
    return _convert(*_read(path, 0.0, None))


@contextmanager
def _opened(path: str) -> Iterator[soundfile.SoundFile]:
    if not os.path.isfile(path):
        raise GmpError(f"{path}: not there, or not a file.")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as recording:
            yield recording
    except (OSError, RuntimeError, MemoryError, TypeError) as error:  # the last for .raw
        reason = getattr(error, "error_string", str(error)) or "damaged"
        raise GmpError(f"{path}: cannot be decoded ({reason}).") from error


def _read(path: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Samples (samples, channels) as they are, and their rate."""
    with _opened(path) as recording:
        first, last = _span(recording, path, start, end)
        recording.seek(first)
        samples = recording.read(last - first, dtype="float32", always_2d=True)
        rate = recording.samplerate
    if len(samples) < last - first:
        raise GmpError(f"{path}: cut short, {len(samples)} of {last - first} samples are there.")
    loudest = np.abs(samples).max()
    if not loudest <= LOUDEST:
        raise GmpError(f"{path}: holds a sample of {loudest}, expected numbers between -1 and 1.")
    return samples, rate


def _length(n_samples: int, rate: int) -> int:
    """Samples at 16 kHz."""
    return -(-n_samples * SAMPLE_RATE // rate)


@lru_cache(maxsize=8)
def _resampler(rate: int) -> Resample:
    return Resample(rate, SAMPLE_RATE)


def _convert(samples: np.ndarray, rate: int) -> np.ndarray:
    waveform = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        expected = _length(len(samples), rate)
        waveform = _resampler(rate)(waveform)
        # torchaudio rounds in 32 bits and may be a sample off
        waveform = torch.nn.functional.pad(waveform, (0, expected - len(waveform)))
    return waveform.numpy()


def _span(
    recording: soundfile.SoundFile, path: str, start: float, end: float | None
) -> tuple[int, int]:
    """First sample, and the one behind the last, of a part of a recording; checks the header."""
    rate, frames = recording.samplerate, recording.frames
    divisor = math.gcd(rate, SAMPLE_RATE)
    kernel = (rate // divisor) * (SAMPLE_RATE // divisor)
    if not RATES[0] <= rate <= RATES[1] or kernel > KERNEL:
        raise GmpError(
            f"{path}: sampled at {rate} Hz, expected a usual rate from {RATES[0]} to {RATES[1]} Hz; "
            f"convert it to {SAMPLE_RATE} Hz."
        )
    if frames == UNKNOWN:
        raise GmpError(f"{path}: does not say how long it is; write it anew, to a file, no pipe.")
    first = round(start * rate)
    last = frames if end is None or pd.isna(end) else round(end * rate)
    cut = CUT.search(recording.extra_info)
    if cut and last == frames and int(cut[1]) < PIPED:
        promised = frames * int(cut[1]) / max(int(cut[2]), 1)
        if promised - frames >= MIN_SECONDS * rate:
            raise GmpError(
                f"{path}: cut short, {frames / rate:.3f} of {promised / rate:.3f} s are there."
            )
    if not 0 <= first < last <= frames:
        raise GmpError(
            f"{path}: no part from {start} to {end} s in {frames / rate:.3f} s of audio."
        )
    if (last - first) / rate < MIN_SECONDS:
        raise GmpError(
            f"{path}: {(last - first) / rate:.3f} s of audio, expected at least {MIN_SECONDS} s."
        )
    if (last - first) * recording.channels > LONGEST:
        raise GmpError(
            f"{path}: {(last - first) / rate / 3600:.1f} h of audio, says its header, expected at most "
            f"{LONGEST / recording.channels / rate / 3600:.1f} h; cut it."
        )
    if last > DENSE * os.path.getsize(path):
        _count(recording, path, last)
    return first, last


def _count(recording: soundfile.SoundFile, path: str, n_samples: int) -> None:
    """Decode block by block, to see whether there is as much as the header says."""
    found = 0
    while found < n_samples:
        block = recording.read(BLOCK // recording.channels, dtype="float32", always_2d=True)
        if not len(block):
            raise GmpError(f"{path}: cut short, {found} of {n_samples} samples are there.")
        found += len(block)


def _header(path: str, start: float, end: float | None) -> tuple[int, int, int, str | None]:
    """Samples at 16 kHz, the recording's own rate and channels; or why it cannot be used."""
    try:
        with _opened(path) as recording:
            first, last = _span(recording, path, start, end)
            rate = recording.samplerate
            return _length(last - first, rate), rate, recording.channels, None
    except GmpError as error:
        return 0, 0, 0, str(error)


def write_store(manifest: pd.DataFrame, stem: Path) -> tuple[Ragged, pd.DataFrame]:
    """Decode every recording of a manifest once.

    What cannot be decoded is reported, not raised. After an interruption the same call goes on behind
    the last portion that was finished.

    Parameters
    ----------
    manifest : DataFrame
        With `utterance` and `path`, and `start` and `end` (seconds) of parts of recordings.
    stem : Path
        Where the store goes, without ending.

    Returns
    -------
    waveforms : Ragged
        int16, full scale at 32767; zeros, or nothing, for what is unreadable.
    report : DataFrame
        A row per utterance: `utterance`, `path`, `sample_rate` (Hz), `channels`, `seconds`, `peak`,
        share of `clipped` samples (of any channel, as recorded), `digest` of what is stored, and
        `unreadable`, the reason or None.
    """
    starts = manifest.start.fillna(0.0) if "start" in manifest else [0.0] * len(manifest)
    ends = manifest.end if "end" in manifest else [None] * len(manifest)
    rows = list(zip(manifest.utterance, manifest.path, starts, ends))
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(_header, *list(zip(*rows))[1:]))
    portions = stem.with_name(f"{stem.name}-portions")
    if portions.is_dir():
        store = Ragged.open(stem, mode="r+")
    else:
        lengths = [n_samples for n_samples, *_ in headers]
        store = Ragged.create(stem, manifest.utterance, lengths, np.int16)
        portions.mkdir()

    def write(row: tuple, header: tuple) -> dict:
        (utterance, path, start, end), (n_samples, rate, channels, unreadable) = row, header
        found = {"utterance": utterance, "path": path, "sample_rate": rate, "channels": channels}
        found |= {"seconds": n_samples / SAMPLE_RATE, "peak": 0.0, "clipped": 0.0, "digest": ""}
        if not unreadable:
            try:
                samples, rate = _read(path, start, end)
            except GmpError as error:
                unreadable = str(error)
            else:
                level = np.abs(samples).max(axis=1)
                found["peak"], found["clipped"] = level.max(), np.mean(level >= FULL_SCALE)
                waveform = _convert(samples, rate)
                stored = np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)
                if len(stored) != store.lengths[utterance]:
                    unreadable = f"{path}: changed while it was read; read it again."
                else:
                    found["digest"] = hashlib.sha256(stored.tobytes()).hexdigest()[:16]
                    store[utterance][:] = stored
        return found | {"unreadable": unreadable}

    with tqdm(desc="decode", total=len(rows), unit="file", disable=None) as bar:
        for first in range(0, len(rows), PORTION):
            portion = portions / f"{first:09d}.parquet"
            chosen = slice(first, first + PORTION)
            if not portion.is_file():
                with ThreadPoolExecutor() as pool:
                    found = list(pool.map(write, rows[chosen], headers[chosen]))
                store.flush()
                new = portion.with_suffix(".new")
                pd.DataFrame(found).to_parquet(new, index=False)
                os.replace(new, portion)
            bar.update(len(rows[chosen]))
    report = pd.concat(map(pd.read_parquet, sorted(portions.glob("*.parquet"))), ignore_index=True)
    shutil.rmtree(portions)
    return store, report


def check_readable(report: pd.DataFrame) -> None:
    """Refuse a report with anything unreadable.

    Raises
    ------
    GmpError
        Naming the first.
    """
    reasons = report.unreadable.dropna()
    if len(reasons):
        raise GmpError(
            f"{reasons.iloc[0]} Expected a recording that libsndfile reads (wav, flac, ogg, mp3); "
            f"repair it or remove it ({len(reasons)} such)."
        )


def faults(report: pd.DataFrame, min_seconds: float, max_seconds: float) -> pd.DataFrame:
    """What is wrong with recordings.

    Parameters
    ----------
    report : DataFrame
        Of `write_store`.
    min_seconds, max_seconds : float
        Shorter is "short", longer is "long".

    Returns
    -------
    faults : DataFrame
        `utterance`, `fault` ("unreadable", "silent", "clipped", "short" or "long") and what was
        `found`; a recording may have several.
    """
    readable = report.unreadable.isna()
    peak = 20 * np.log10(report.peak.clip(lower=1e-6))
    tests = {
        "unreadable": (~readable, report.unreadable),
        "silent": (readable & (report.peak < SILENCE), peak.map("peak at {:.0f} dB".format)),
        "clipped": (report.clipped > CLIPPED_SHARE, report.clipped.map("{:.1%} of samples".format)),
        "short": (readable & (report.seconds < min_seconds), report.seconds.map("{:.2f} s".format)),
        "long": (report.seconds > max_seconds, report.seconds.map("{:.2f} s".format)),
    }
    return pd.concat(
        [
            pd.DataFrame({"utterance": report.utterance[has], "fault": fault, "found": found[has]})
            for fault, (has, found) in tests.items()
        ],
        ignore_index=True,
    )


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, over this utterance alone and before any padding.

    Parameters
    ----------
    waveform : (n_samples,) ndarray

    Returns
    -------
    waveform : (n_samples,) float32
    """
    waveform = waveform.astype(np.float32)
    return (waveform - waveform.mean()) / max(float(waveform.std()), 1e-7)
