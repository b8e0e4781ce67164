"""Recordings to one store of 16 kHz waveforms, and a report of what was found in them."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.data.ragged import Ragged

SILENCE = 1e-3  # peak of a silent recording, 60 dB below full scale
FULL_SCALE = 0.999  # a sample beyond it is clipped
CLIPPED_SHARE = 1e-3  # of a clipped recording's samples
CHUNK = 500  # recordings that an interruption may lose


def _header(path: str, start: float, end: float | None) -> tuple[int, int, int, str | None]:
    """Samples at 16 kHz, the recording's own rate and channels; or why it cannot be used."""
    try:
        with audio.open_audio(path) as recording:
            first, last = audio.sample_range(recording, path, start, end)
            rate = recording.samplerate
            return audio.resampled_length(last - first, rate), rate, recording.channels, None
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
        found |= {
            "seconds": n_samples / audio.SAMPLE_RATE,
            "peak": 0.0,
            "clipped": 0.0,
            "digest": "",
        }
        if not unreadable:
            try:
                samples, rate = audio.read(path, start, end)
            except GmpError as error:
                unreadable = str(error)
            else:
                level = np.abs(samples).max(axis=1)
                found["peak"], found["clipped"] = level.max(), np.mean(level >= FULL_SCALE)
                waveform = audio.convert(samples, rate)
                stored = np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)
                if len(stored) != store.lengths[utterance]:
                    unreadable = f"{path}: changed while it was read; read it again."
                else:
                    found["digest"] = hashlib.sha256(stored.tobytes()).hexdigest()[:16]
                    store[utterance][:] = stored
        return found | {"unreadable": unreadable}

    with tqdm(desc="decode", total=len(rows), unit="file", disable=None) as bar:
        for first in range(0, len(rows), CHUNK):
            portion = portions / f"{first:09d}.parquet"
            chosen = slice(first, first + CHUNK)
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
