"""Acoustic features of a 16 kHz waveform on the encoder's frames: mel spectrum, MFCCs and prosody."""

from functools import cache

import numpy as np
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

from gmp_utils.data.audio import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE, normalize
from gmp_utils.runs import hardware

MEL = {"n_fft": FRAME_WINDOW, "hop_length": FRAME_HOP, "n_mels": 40, "center": False}
F0_WINDOW = 1024  # samples around the middle of a frame, almost four periods of the lowest F0
SHORTEST_PERIOD, LONGEST_PERIOD = 40, 267  # samples: F0 of 400 to 60 Hz
VOICED = 0.4  # minimum periodicity of a voiced frame
REFERENCE_F0 = 150.0  # Hz, where log F0 is 0
OCTAVE_COST = 0.04  # per octave of the period, whose multiples are periods too


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram, (40, n_frames)."""
    transform = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **MEL)
    return torch.log(transform(torch.from_numpy(normalize(waveform))) + 1e-3).numpy()


@cache
def _mfcc() -> torchaudio.transforms.MFCC:
    return torchaudio.transforms.MFCC(SAMPLE_RATE, 13, melkwargs=MEL).to(hardware.device())


def mfcc_frames(waveform: np.ndarray) -> np.ndarray:
    """13 MFCCs, their deltas and delta-deltas, (n_frames, 39)."""
    mfcc = _mfcc()(torch.from_numpy(normalize(waveform)).to(hardware.device()))
    delta = torchaudio.functional.compute_deltas(mfcc)
    return torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T.cpu().numpy()


def prosody_frames(waveform: np.ndarray) -> np.ndarray:
    """Log F0 in octaves relative to 150 Hz, periodicity, log energy, and their deltas, (n_frames, 6).

    F0 is at the maximum of the autocorrelation from 60 to 400 Hz, smoothed by a median over five frames. The
    periodicity is this maximum. Below 0.4 a frame is unvoiced, and its log F0 is 0. Energy is relative to
    the whole waveform's.
    """
    samples = torch.from_numpy(normalize(waveform)).to(hardware.device())
    margin = (F0_WINDOW - FRAME_WINDOW) // 2
    windows = F.pad(samples, (margin, margin)).unfold(0, F0_WINDOW, FRAME_HOP)
    correlation = _autocorrelation(windows - windows.mean(dim=1, keepdim=True))
    periods = torch.arange(SHORTEST_PERIOD, LONGEST_PERIOD, device=samples.device)
    heights = correlation[:, SHORTEST_PERIOD:LONGEST_PERIOD]
    best = (heights - OCTAVE_COST * (periods / SHORTEST_PERIOD).log2()).argmax(dim=1)
    periodicity = heights.gather(1, best[:, None])[:, 0].clamp(0, 1)
    octaves = torch.log2(SAMPLE_RATE / periods[best] / REFERENCE_F0)
    smooth = F.pad(octaves[None], (2, 2), mode="replicate")[0].unfold(0, 5, 1).median(dim=1).values
    energy = torch.log(windows.square().mean(dim=1) + 1e-3)
    prosody = torch.stack([smooth * (periodicity > VOICED), periodicity, energy])
    slopes = torchaudio.functional.compute_deltas(prosody, win_length=9)
    return torch.cat([prosody, slopes]).T.cpu().numpy()


def _autocorrelation(windows: Tensor) -> Tensor:
    """Normalized autocorrelation by lag in samples, (n_frames, lags), divided by that of the taper.

    Boersma, "Accurate short-term analysis of the fundamental frequency", 1993.
    """
    size = windows.shape[1]
    taper = torch.hann_window(size, device=windows.device)
    of_signal, of_taper = (
        torch.fft.irfft(torch.fft.rfft(x, 2 * size).abs().square())[..., :LONGEST_PERIOD]
        for x in (windows * taper, taper)
    )
    return of_signal / (of_signal[:, :1] + 1e-5) * of_taper[0] / of_taper
