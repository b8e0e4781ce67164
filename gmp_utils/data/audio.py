"""Recordings of any kind as waveforms of 16 kHz, mono, or why they cannot be."""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

import numpy as np
import pandas as pd
import soundfile
import torch
import torchaudio
from torchaudio.transforms import Resample

from gmp_utils import GmpError

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS = 0.025  # one frame of the encoder
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
MEL = {"n_fft": 400, "hop_length": 320, "n_mels": 40, "center": False}  # the encoder's frames


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
    return convert(*read(path, 0.0, None))


def length(path: str) -> int:
    """Samples at 16 kHz of a recording of any length, as its header says; raises as `stream`."""
    with open_audio(path) as recording:
        _, last = sample_range(recording, path, 0.0, None, math.inf)
        return resampled_length(last, recording.samplerate)


def stream(path: str) -> Iterator[np.ndarray]:
    """Read a recording of any length as 16 kHz mono, a few seconds at a time.

    Parameters
    ----------
    path : str

    Yields
    ------
    waveform : (n_samples,) float32
        One piece after the other; together they are what `decode` returns.

    Raises
    ------
    GmpError
        As `decode` does, but for the length; also when a damaged part is reached.
    """
    with open_audio(path) as recording:
        _, last = sample_range(recording, path, 0.0, None, math.inf)
        recording.seek(0)
        rate = recording.samplerate
        step = rate // math.gcd(rate, SAMPLE_RATE)  # after so many the resampler begins alike
        margin = 0 if rate == SAMPLE_RATE else step * (_resampler(rate).width // step + 2)
        size = max(BLOCK // recording.channels // step * step, 2 * margin + step)
        pending, ready, found = np.zeros(0, np.float32), 0, 0
        while found < last:
            samples = recording.read(min(size, last - found), dtype="float32", always_2d=True)
            if not len(samples):
                break
            check_samples(path, samples)
            found += len(samples)
            pending = np.concatenate([pending, samples.mean(axis=1)])
            until = len(pending) // step * step - margin if found < last else len(pending)
            if found == last or until > ready + margin:
                piece = convert(pending[:, None], rate)
                yield piece[ready * SAMPLE_RATE // rate : resampled_length(until, rate)]
                pending, ready = pending[until - margin :], margin
        if found < last:
            raise GmpError(f"{path}: cut short, {found} of {last} samples are there.")


@contextmanager
def open_audio(path: str) -> Iterator[soundfile.SoundFile]:
    """Open a recording; what libsndfile cannot read is refused in words."""
    if not os.path.isfile(path):
        raise GmpError(f"{path}: not there, or not a file.")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as recording:
            yield recording
    except (OSError, RuntimeError, MemoryError, TypeError) as error:  # the last for .raw
        reason = getattr(error, "error_string", str(error)) or "damaged"
        raise GmpError(f"{path}: cannot be decoded ({reason}).") from error


def read(path: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Samples (samples, channels) as they are, and their rate."""
    with open_audio(path) as recording:
        first, last = sample_range(recording, path, start, end)
        recording.seek(first)
        samples = recording.read(last - first, dtype="float32", always_2d=True)
        rate = recording.samplerate
    if len(samples) < last - first:
        raise GmpError(f"{path}: cut short, {len(samples)} of {last - first} samples are there.")
    check_samples(path, samples)
    return samples, rate


def check_samples(what: str, samples: np.ndarray) -> None:
    """Refuse samples that are no numbers, or beyond what 32-bit integers are as floats."""
    loudest = np.abs(samples).max(initial=0)
    if not loudest <= LOUDEST:
        raise GmpError(f"{what}: holds a sample of {loudest}, expected numbers between -1 and 1.")


def check_length(what: str, n_samples: int, rate: int) -> None:
    """Refuse what is shorter than one frame of an encoder."""
    if n_samples / rate < MIN_SECONDS:
        raise GmpError(
            f"{what}: {n_samples / rate:.4f} s of audio, expected at least {MIN_SECONDS} s."
        )


def resampled_length(n_samples: int, rate: int) -> int:
    """Samples at 16 kHz."""
    return -(-n_samples * SAMPLE_RATE // rate)


@lru_cache(maxsize=8)
def _resampler(rate: int) -> Resample:
    return Resample(rate, SAMPLE_RATE)


def convert(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples (samples, channels) of a rate (Hz) as 16 kHz mono, (n_samples,) float32."""
    waveform = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        expected = resampled_length(len(samples), rate)
        waveform = _resampler(rate)(waveform)
        # torchaudio rounds in 32 bits and may be a sample off
        waveform = torch.nn.functional.pad(waveform, (0, expected - len(waveform)))
    return waveform.numpy()


def check_rate(what: str, rate: int) -> None:
    """Refuse a rate that no filter of a reasonable size brings to 16 kHz."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    kernel = (rate // divisor) * (SAMPLE_RATE // divisor)
    if not RATES[0] <= rate <= RATES[1] or kernel > KERNEL:
        raise GmpError(
            f"{what}: sampled at {rate} Hz, expected a usual rate from {RATES[0]} to {RATES[1]} Hz; "
            f"convert it to {SAMPLE_RATE} Hz."
        )


def sample_range(
    recording: soundfile.SoundFile,
    path: str,
    start: float,
    end: float | None,
    longest: float = LONGEST,
) -> tuple[int, int]:
    """First sample, and the one behind the last, of a part of a recording; checks the header."""
    rate, frames = recording.samplerate, recording.frames
    check_rate(path, rate)
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
    if not 0 <= first <= last <= frames:
        raise GmpError(
            f"{path}: no part from {start} to {end} s in {frames / rate:.3f} s of audio."
        )
    check_length(path, last - first, rate)
    if (last - first) * recording.channels > longest:
        raise GmpError(
            f"{path}: {(last - first) / rate / 3600:.1f} h of audio, says its header, expected at most "
            f"{longest / recording.channels / rate / 3600:.1f} h; cut it."
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


def normalize(waveform: np.ndarray) -> np.ndarray:
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


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Logarithmic mel spectrogram on the encoder's frames.

    Parameters
    ----------
    waveform : (n_samples,) ndarray
        At 16 kHz.

    Returns
    -------
    mel : (40, n_frames) float32
    """
    transform = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **MEL)
    return torch.log(transform(torch.from_numpy(normalize(waveform))) + 1e-3).numpy()


@cache
def _mfcc() -> torchaudio.transforms.MFCC:
    """Its filters, built once for thousands of pieces."""
    return torchaudio.transforms.MFCC(SAMPLE_RATE, 13, melkwargs=MEL)


def mfcc_frames(waveform: np.ndarray) -> np.ndarray:
    """13 MFCCs with deltas and their deltas, on the encoder's frames.

    Parameters
    ----------
    waveform : (n_samples,) ndarray
        At 16 kHz.

    Returns
    -------
    frames : (n_frames, 39) float32
    """
    mfcc = _mfcc()(torch.from_numpy(normalize(waveform)))
    delta = torchaudio.functional.compute_deltas(mfcc)
    return torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T.numpy()


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Samples from -1 to 1 as int16, full scale at 32767; louder ones are clipped."""
    return np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 samples as float32 from -1 to 1, the inverse of `to_int16`."""
    return samples.astype(np.float32) / 32767


def wav(waveform: np.ndarray) -> bytes:
    """A WAV file of 16 kHz int16 samples."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(waveform), SAMPLE_RATE, format="WAV")
    return file.getvalue()
