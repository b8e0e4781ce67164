"""Recordings to one store of 16 kHz waveforms."""

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
MIN_SAMPLES = 400  # one frame of the encoder, 25 ms


def _info(path: str) -> tuple[int, int]:
    """Length in samples at 16 kHz, and the recording's own rate in Hz."""
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError) as error:
        raise GmpError(
            f"{path}: not a readable recording ({error}); expected a format that libsndfile reads "
            "(wav, flac, ogg, mp3). Repair it or remove it from the corpus."
        ) from error
    n_samples = -(-info.frames * SAMPLE_RATE // info.samplerate)
    if n_samples < MIN_SAMPLES:
        raise GmpError(
            f"{path}: {info.frames / info.samplerate:.3f} s of audio, expected at least 0.025 s. "
            "Remove it from the corpus."
        )
    return n_samples, info.samplerate


def decode(path: str, resample: dict[int, Resample] | None = None) -> np.ndarray:
    """Read a recording as 16 kHz mono.

    Parameters
    ----------
    path : str
    resample : dict of int to Resample, optional
        Resamplers by source rate in Hz, kept from one call to the next.

    Returns
    -------
    waveform : (n_samples,) float32
        In [-1, 1], channels averaged.

    Raises
    ------
    GmpError
        If the file cannot be decoded or holds values that are no numbers.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise GmpError(f"{path}: cannot be decoded ({error}).") from error
    waveform = torch.from_numpy(samples.mean(axis=1))
    if not torch.isfinite(waveform).all():
        raise GmpError(f"{path}: holds NaN or infinite samples; repair it or remove it.")
    if rate != SAMPLE_RATE:
        resample = {} if resample is None else resample
        if rate not in resample:
            resample[rate] = Resample(rate, SAMPLE_RATE)
        waveform = resample[rate](waveform)
    return waveform.numpy()


def write_store(manifest: pd.DataFrame, stem: Path) -> Ragged:
    """Decode every recording of a manifest once.

    Parameters
    ----------
    manifest : DataFrame
        With `utterance` and `path`.
    stem : Path
        Where the store goes, without ending.

    Returns
    -------
    waveforms : Ragged
        int16, full scale at 32767.

    Raises
    ------
    GmpError
        Naming the first recording that cannot be used.
    """
    with ThreadPoolExecutor() as pool:
        infos = list(pool.map(_info, manifest.path))
    resample = {rate: Resample(rate, SAMPLE_RATE) for _, rate in infos if rate != SAMPLE_RATE}
    lengths = [n_samples for n_samples, _ in infos]
    store = Ragged.create(stem, manifest.utterance, lengths, np.int16)

    def write(row: tuple[str, str]) -> None:
        utterance, path = row
        waveform = decode(path, resample)
        if len(waveform) != store.lengths[utterance]:
            raise GmpError(
                f"{path}: its header promises {store.lengths[utterance]} samples at 16 kHz, "
                f"{len(waveform)} could be read; the file is cut short."
            )
        store[utterance][:] = np.round(waveform.clip(-1, 1) * 32767)

    rows = list(zip(manifest.utterance, manifest.path))
    with ThreadPoolExecutor() as pool:
        list(tqdm(pool.map(write, rows), "decode", len(rows), unit="file", disable=None))
    store.values.flush()
    return store


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
