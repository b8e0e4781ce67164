"""What a recording sounds like without an encoder: mel spectrograms and MFCCs, on the encoder's frames."""

from functools import cache

import numpy as np
import torch
import torchaudio

from gmp_utils import audio

MEL = {"n_fft": 400, "hop_length": 320, "n_mels": 40, "center": False}  # the encoder's frames


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
    transform = torchaudio.transforms.MelSpectrogram(audio.SAMPLE_RATE, **MEL)
    return torch.log(transform(torch.from_numpy(audio.normalise(waveform))) + 1e-3).numpy()


@cache
def _mfcc() -> torchaudio.transforms.MFCC:
    """Its filters, built once for thousands of pieces."""
    return torchaudio.transforms.MFCC(audio.SAMPLE_RATE, 13, melkwargs=MEL)


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
    mfcc = _mfcc()(torch.from_numpy(audio.normalise(waveform)))
    delta = torchaudio.functional.compute_deltas(mfcc)
    return torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T.numpy()
