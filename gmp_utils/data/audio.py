"""Recordings and arrays as 16 kHz mono waveforms."""

import io
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import soundfile
import soxr

from gmp_utils import GmpError

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS = 0.025  # one frame of the encoder
FULL_SCALE = 0.999  # samples beyond it are clipped
BLOCK = 2**20  # samples of all channels that are decoded at a time
NO_LENGTH = 2**63 - 1  # libsndfile's number of samples if the header has none
FRAME_HOP, FRAME_WINDOW = 320, 400  # samples, of the encoder's frames


def decode(path: str) -> np.ndarray:
    """Decode a recording to 16 kHz mono, (n_samples,) float32 in [-1, 1].

    Channels are averaged, and soxr resamples with its quality "HQ". A recording that cannot be decoded, is
    shorter than 25 ms or has NaN or infinite samples raises a GmpError.
    """
    return read(path)[0]


def read(path: str, start: float = 0.0, end: float | None = None) -> tuple[np.ndarray, dict]:
    """Decode a part of a recording (seconds; None or NaN for its end) as `decode` does.

    Returns also a dict of `sample_rate` (Hz), `channels`, `peak` and the share of `clipped` samples.
    """
    if not os.path.isfile(path):
        raise GmpError(f"{path}: not there, or not a file.")
    levels = []  # by block: samples, peak and clipped samples of the loudest channel

    def mono(file: soundfile.SoundFile, n_samples: int) -> Iterator[np.ndarray]:
        size = BLOCK // file.channels
        for block in file.blocks(size, frames=n_samples, dtype="float32", always_2d=True):
            level = np.abs(block).max(axis=1)
            levels.append((len(level), level.max(initial=0), (level >= FULL_SCALE).sum()))
            yield block.mean(axis=1)

    try:
        with soundfile.SoundFile(path) as file:
            description = {"sample_rate": file.samplerate, "channels": file.channels}
            first, n_samples = _sample_range(file, path, start, end)
            file.seek(first)
            waveform = _resample(path, mono(file, n_samples), file.samplerate)
    except (OSError, RuntimeError, TypeError) as error:  # the last for headerless .raw
        reason = getattr(error, "error_string", str(error)) or "damaged"
        raise GmpError(f"{path}: cannot be decoded ({reason}).") from error
    (n_decoded, _, n_clipped), peak = np.sum(levels, axis=0), np.max(levels, axis=0)[1]
    if n_decoded < n_samples:
        raise GmpError(f"{path}: truncated, found {n_decoded:.0f} of {n_samples} samples.")
    description |= {"peak": float(peak), "clipped": float(n_clipped / n_samples)}
    return waveform, description


def _sample_range(file, path: str, start: float, end: float | None) -> tuple[int, int]:
    """First sample and number of samples of a part of a recording."""
    rate, n_samples = file.samplerate, file.frames
    if n_samples == NO_LENGTH:
        raise GmpError(f"{path}: its header has no length; encode it again, to a file.")
    first, last = round(start * rate), n_samples if pd.isna(end) else round(end * rate)
    if not 0 <= first <= last <= n_samples:
        raise GmpError(f"{path}: {start} to {end} s is not in {n_samples / rate:.3f} s of audio.")
    return first, _check_length(path, last - first, rate)


def _check_length(what: str, n_samples: int, rate: int) -> int:
    if n_samples < MIN_SECONDS * rate:
        seconds = n_samples / rate
        raise GmpError(f"{what}: {seconds:.4f} s of audio, expected at least {MIN_SECONDS} s.")
    return n_samples


def from_array(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Convert (n_samples,) or (n_samples, channels) samples as `decode` does.

    They are floats from -1 to 1, or integers with full scale at the limits of their type.
    """
    if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
        raise GmpError(
            f"audio: an array of {samples.dtype} and shape {samples.shape}, expected integers or "
            "floats, (samples,) or (samples, channels)."
        )
    _check_length("audio", len(samples), sample_rate)
    if samples.dtype.kind in "iu":
        limits = np.iinfo(samples.dtype)
        half = (limits.max - limits.min + 1) / 2
        samples = (samples - (limits.max + 1 - half)) / half
    mono = samples.reshape(len(samples), -1).mean(axis=1, dtype=np.float32)
    return _resample("audio", [mono], sample_rate)


def _resample(what: str, blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """Resample and concatenate the mono blocks of one recording."""
    resampler, pieces = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1), []
    for block in blocks:
        if not np.isfinite(block).all():
            raise GmpError(f"{what}: has NaN or infinite samples, expected numbers from -1 to 1.")
        pieces.append(resampler.resample_chunk(block))
    rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    return np.concatenate([*pieces, rest])


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Scale an utterance, without padding, to zero mean and unit variance."""
    waveform = waveform.astype(np.float32)
    return (waveform - waveform.mean()) / max(float(waveform.std()), 1e-7)


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Convert samples from -1 to 1 to int16, full scale at 32767, with clipping."""
    return np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    """Convert int16 samples to float32 from -1 to 1."""
    return samples.astype(np.float32) / 32767


def wav(waveform: np.ndarray) -> bytes:
    """A WAV file of 16 kHz int16 samples."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(waveform), SAMPLE_RATE, format="WAV")
    return file.getvalue()
