"""Speech synthesis by espeak-ng through its C API."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import soundfile

from gmp_utils import GmpError

SAMPLE_RATE = 22050  # Hz, what espeak-ng produces
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_RETRIEVAL, _CHARS_UTF8 = 1, 1
_PHONEME, _PHONEME_EVENTS = 7, 1  # espeak_EVENT_TYPE, and the option that requests such events
_chunks: list[np.ndarray] = []
_phonemes: list[tuple[int, str]] = []  # first sample, and espeak's mnemonic


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h, with the member of its union that names phonemes."""

    _numbers = "type", "unique_identifier", "text_position", "length", "audio_position", "sample"
    _fields_ = [(name, ctypes.c_int) for name in _numbers]
    _fields_ += [("user_data", ctypes.c_void_p), ("name", ctypes.c_char * 8)]


@ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
def _collect(samples, n_samples, events):
    if samples and n_samples > 0:
        _chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
    found = takewhile(lambda event: event.type, events)  # type 0 ends the list
    _phonemes.extend(
        (event.sample, event.name.decode()) for event in found if event.type == _PHONEME
    )
    return 0


@cache
def _library() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    library.espeak_Initialize(_RETRIEVAL, 500, data, _PHONEME_EVENTS)
    library.espeak_SetSynthCallback(_collect)
    return library


def speak(
    text: str, voice: str, rate: float, pitch: float, pitch_range: float
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Synthesize a phrase; returns it without silence around it, and each phoneme's start (s) and name.

    Samples are float32 in [-1, 1] at `SAMPLE_RATE`. Names are espeak-ng's mnemonics; those of pauses start
    with "_". `voice` is a language and a variant, such as "en-us+f2". `rate` is in words per minute, clipped
    to [80, 450]. `pitch` and `pitch_range` are clipped to [0, 99], and 50 is the voice's default.
    """
    library = _library()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise GmpError(f"voice {voice!r}: espeak-ng does not have it.")
    library.espeak_SetParameter(_RATE, int(np.clip(rate, 80, 450)), 0)
    library.espeak_SetParameter(_PITCH, int(np.clip(pitch, 0, 99)), 0)
    library.espeak_SetParameter(_RANGE, int(np.clip(pitch_range, 0, 99)), 0)
    _chunks.clear()
    _phonemes.clear()
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(_chunks).astype(np.float32) / 2**15
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    phonemes = [((start - int(loud[0])) / SAMPLE_RATE, name) for start, name in _phonemes]
    return samples[loud[0] : loud[-1] + 1], phonemes


def set_level(samples: np.ndarray, level: float) -> np.ndarray:
    """Scale samples to an RMS of 0.05, raised by `level` dB."""
    rms = np.sqrt(np.mean(samples**2))
    return samples * (0.05 / rms) * 10 ** (level / 20)


def write_recording(path: Path, samples: np.ndarray, rng: np.random.Generator) -> None:
    """Write a recording with a little noise added."""
    samples = samples + rng.normal(0, 0.001, len(samples))
    soundfile.write(path, samples.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")


def in_fresh_processes(function: Callable, tasks: Iterable[tuple]) -> list[bytes]:
    """Call a function in a new process for each task; returns their outputs.

    espeak-ng keeps state between calls: only in a new process does a seed determine the samples.
    """
    from gmp_utils.runs.hardware import cores  # not needed in the new processes

    load = f"from {function.__module__} import {function.__name__} as function"

    def call(task: tuple) -> bytes:
        command = [sys.executable, "-c", f"{load}; function(*{task!r})"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(call, tasks))
