"""Recordings to one store of 16 kHz waveforms, and a report of what was found in them."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
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
        If the file cannot be decoded, ends too early or holds values that are no numbers.
    """
    return _convert(*_read(path, 0.0, None), {})


def _read(path: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Samples (samples, channels) as they are, and their rate."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, first, last = _span(file, start, end)
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise GmpError(f"{path}: cannot be decoded ({error}).") from error
    if len(samples) < last - first:
        raise GmpError(f"{path}: cut short, {len(samples)} of {last - first} samples are there.")
    if not np.isfinite(samples).all():
        raise GmpError(f"{path}: holds NaN or infinite samples.")
    return samples, rate


def _length(n_samples: int, rate: int) -> int:
    """Samples at 16 kHz."""
    return -(-n_samples * SAMPLE_RATE // rate)


def _convert(samples: np.ndarray, rate: int, resample: dict[int, Resample]) -> np.ndarray:
    waveform = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        if rate not in resample:
            resample[rate] = Resample(rate, SAMPLE_RATE)
        expected = _length(len(samples), rate)
        waveform = resample[rate](waveform)
        # torchaudio rounds in 32 bits and may be a sample off
        waveform = torch.nn.functional.pad(waveform, (0, expected - len(waveform)))
    return waveform.numpy()


def _span(file: soundfile.SoundFile, start: float, end: float | None) -> tuple[int, int, int]:
    """Rate in Hz, first sample and the one behind the last of a part of a recording."""
    rate = file.samplerate
    first = round(start * rate)
    last = file.frames if end is None or pd.isna(end) else round(end * rate)
    if not 0 <= first < last <= file.frames:
        raise GmpError(
            f"{file.name}: no part from {start} to {end} s in {file.frames / rate:.3f} s of audio."
        )
    if (last - first) / rate < MIN_SECONDS:
        raise GmpError(
            f"{file.name}: {(last - first) / rate:.3f} s of audio, expected at least {MIN_SECONDS} s."
        )
    return rate, first, last


def _header(path: str, start: float, end: float | None) -> tuple[int, int, int, str | None]:
    """Samples at 16 kHz, the recording's own rate and channels; or why it cannot be used."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, first, last = _span(file, start, end)
            return _length(last - first, rate), rate, file.channels, None
    except GmpError as error:
        return 0, 0, 0, str(error)
    except (OSError, RuntimeError) as error:
        return 0, 0, 0, f"{path}: not a readable recording ({error})"


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
    rates = {rate for _, rate, *_ in headers} - {0, SAMPLE_RATE}
    resample = {rate: Resample(rate, SAMPLE_RATE) for rate in rates}
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
                waveform = _convert(samples, rate, resample)
                stored = np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)
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
