"""espeak-ng through its C API: text and prosody in, samples out, nothing played."""

import ctypes
from functools import cache

import numpy as np

from gmp_utils import GmpError

SAMPLE_RATE = 22050  # Hz, what espeak-ng produces
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_RETRIEVAL, _CHARS_UTF8 = 1, 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
_chunks: list[np.ndarray] = []


@_CALLBACK
def _collect(samples, n_samples, _events):
    if samples and n_samples > 0:
        _chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
    return 0


@cache
def _library() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(_RETRIEVAL, 500, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(_collect)
    return library


def speak(text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
    """Speak a text.

    Parameters
    ----------
    text : str
        One phrase of English.
    voice : str
        Language and variant, such as ``"en-us+f2"``.
    rate : int
        Words per minute, 80 to 450.
    pitch, pitch_range : int
        0 to 100, 50 is the voice's own.

    Returns
    -------
    samples : (n_samples,) float32
        In [-1, 1], at `SAMPLE_RATE` Hz, without the silence around it.

    Raises
    ------
    GmpError
        For a voice that espeak-ng does not have.
    """
    library = _library()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise GmpError(f"voice {voice!r}: espeak-ng does not have it.")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, int(value), 0)
    _chunks.clear()
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(_chunks).astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    return samples[loud[0] : loud[-1] + 1]
