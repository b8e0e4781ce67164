"""Stage 09: emotions over time in recordings.

Recordings, or their utterances, are processed in overlapping windows. A window's output is assigned to its
central part, which in the first and the last window extends to the end of the recording or utterance.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from scipy.special import softmax
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data.audio import (
    MIN_SECONDS,
    SAMPLE_RATE,
    find_recordings,
    is_recording,
    load,
    to_float,
)
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.collect import corpus_of
from gmp_utils.models.recognizer import Recognizer, load_recognizer
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.stages.publish import find_or_publish
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances

MARGIN = 0.2  # seconds of a window that are kept before and after its speech
MIN_SPEECH = 0.1  # share of a window's part below which it has no emotion
PAUSE = 0.5  # seconds, minimum pause between utterances
BATCHES_PER_SORT = 10  # batches of windows that are sorted by length together


def window_grid(first: int, last: int, window: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows between two samples, and the parts they describe: starts and ends, (n_windows, 2) int64 each.

    Starts are evenly spaced, at most `hop` samples apart, and the last window ends at `last`. The parts are
    separated at the middles of the overlaps.
    """
    n_windows = 1 + math.ceil(max(last - first - window, 0) / hop)
    starts = np.linspace(first, max(last - window, first), n_windows).round().astype(np.int64)
    ends = np.minimum(starts + window, last)
    edges = np.concatenate([[first], (starts[1:] + ends[:-1]) // 2, [last]])
    return np.stack([starts, ends], axis=1), np.stack([edges[:-1], edges[1:]], axis=1)


@cache
def _speech_detector() -> Callable[[torch.Tensor], list[dict[str, int]]]:
    import silero_vad

    model = silero_vad.load_silero_vad()
    return partial(silero_vad.get_speech_timestamps, model=model, sampling_rate=SAMPLE_RATE)


def detect_speech(waveform: np.ndarray) -> np.ndarray:
    """Segments of speech, (n_segments, 2) starts and ends in samples, by Silero VAD.

    It runs in one thread, because several take up to 20 times as long on its small matrices. Its import would
    limit the whole process to one.
    """
    n_threads = torch.get_num_threads()
    try:
        detect = _speech_detector()
        torch.set_num_threads(1)
        segments = detect(torch.from_numpy(waveform))
    finally:
        torch.set_num_threads(n_threads)
    return pd.DataFrame(segments, columns=["start", "end"]).to_numpy(np.int64)


def split_at_pauses(segments: np.ndarray, n_samples: int) -> np.ndarray:
    """Utterances, (n_utterances, 2): segments of speech less than a `PAUSE` apart, and a `MARGIN` around."""
    is_pause = segments[1:, 0] - segments[:-1, 1] >= PAUSE * SAMPLE_RATE
    starts, ends = segments[np.r_[True, is_pause], 0], segments[np.r_[is_pause, True], 1]
    margin = int(MARGIN * SAMPLE_RATE)
    return np.stack([starts - margin, ends + margin], axis=1).clip(0, n_samples)


def speech_shares(segments: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share of each part, (n_parts,), that segments of speech cover."""
    starts, ends = parts.T
    overlap = np.minimum(segments[:, 1:], ends) - np.maximum(segments[:, :1], starts)
    return overlap.clip(0).sum(axis=0) / (ends - starts)


def trim(waveform: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Trim a window, (n_samples,), to its speech and a `MARGIN` before and after it.

    At a trimmed end, digital silence is removed from the margin, too.
    """
    margin = int(MARGIN * SAMPLE_RATE)
    start, end = segments[0, 0] - margin, segments[-1, 1] + margin
    trimmed = waveform[max(start, 0) : end]
    if start >= 0:
        trimmed = np.trim_zeros(trimmed, "f")
    return trimmed if end > len(waveform) else np.trim_zeros(trimmed, "b")


def expand_folders(paths: str | os.PathLike | Sequence) -> list[str]:
    """Paths of recordings. A folder is replaced by all recordings below it."""
    recordings = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        if not str(path) or "://" in str(path):
            raise GmpError(f"audio: found {str(path)!r}, expected a file or folder on disk.")
        folder = Path(path).expanduser()
        files = [folder]
        if folder.is_dir():
            files = find_recordings(folder.rglob("*"))
            if not files:
                raise GmpError(f"{folder}: no recordings below it (wav, flac, mp3, m4a, …).")
        recordings += map(str, files)
    return list(dict.fromkeys(recordings))


def _classify(recognizer: Recognizer, windows: Sequence[np.ndarray]) -> pd.DataFrame:
    """Emotion, confidence, scores, and outputs of the gender and rating heads, of each window."""
    lengths = pd.Series(map(len, windows)).sort_values(kind="stable")
    names, values = list(map(str, lengths.index)), [windows[index] for index in lengths.index]
    inputs = Ragged(np.concatenate(values), dict(zip(names, lengths.tolist())))
    config = recognizer.config
    outputs = features.outputs(recognizer.recognize, Utterances(inputs, names))
    table = pd.DataFrame(softmax(outputs["logits"], axis=1), lengths.index, [*config.label2id])
    table = table.assign(emotion=table.idxmax(axis=1), confidence=table.max(axis=1))
    if "female" in outputs:
        table["female"] = outputs["female"]
    if "ratings" in outputs:
        table[config.ratings] = outputs["ratings"]
    return table.sort_index()


def _recognize_sources(
    recognizer: Recognizer,
    sources: dict[str, Callable[[], np.ndarray]],
    window: int,
    hop: int,
    by_utterance: bool,
) -> pd.DataFrame:
    """The table of `recognize` for functions that return 16 kHz waveforms."""
    limit = BATCHES_PER_SORT * features.ENCODER_SECONDS[hardware.device()] * SAMPLE_RATE
    parts, outputs, errors, windows = [], [], {}, []
    for name, source in tqdm(sources.items(), "recognize", unit="recording", disable=None):
        try:
            waveform = source()
        except GmpError as error:
            errors[name] = str(error)
            continue
        segments = detect_speech(waveform)
        spans = [(0, len(waveform))]
        if by_utterance and len(segments):
            spans = split_at_pauses(segments, len(waveform))
        grids = zip(*(window_grid(*span, window, hop) for span in spans))
        limits, described = map(np.concatenate, grids)
        speech = speech_shares(segments, described)
        times = dict(zip(("start", "end"), described.T / SAMPLE_RATE))
        parts.append(pd.DataFrame({"file": name, **times, "speech": speech}))
        for start, end in limits[speech >= MIN_SPEECH]:
            inside = (segments[:, 1] > start) & (segments[:, 0] < end)
            windows.append(trim(waveform[start:end], segments[inside] - start).copy())
            if sum(map(len, windows)) > limit:
                outputs.append(_classify(recognizer, windows))
                windows = []
    if windows:
        outputs.append(_classify(recognizer, windows))
    if not parts:
        raise GmpError(" ".join(errors.values()) or "audio: found no recordings.")
    table, config = pd.concat(parts, ignore_index=True), recognizer.config
    gender = ["female"] if config.has_gender_head else []
    numbers = ["confidence", *config.label2id, *gender, *config.ratings]
    speech = table.pop("speech")
    spoken = speech >= MIN_SPEECH
    results = pd.concat(outputs).set_axis(table.index[spoken]) if outputs else pd.DataFrame()
    results = results.reindex(table.index, columns=["emotion", *numbers])
    results = results.astype({"emotion": object} | dict.fromkeys(numbers, float))
    results["emotion"] = results.emotion.where(spoken, None)
    failed = pd.DataFrame({"file": list(errors), "error": list(errors.values())})
    tables = table.join(results).assign(speech=speech, error=None), failed
    return pd.concat(tables, ignore_index=True)


def _sources(audio: Any, sample_rate: float | None) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that return 16 kHz waveforms, by path, or for audio in memory by number, "" for one."""
    several, sources = isinstance(audio, Iterable) and not is_recording(audio), {}
    for number, item in enumerate(audio if several else [audio]):
        if not is_recording(item):
            kinds = 'bytes, a binary file, samples, (rate, samples) or {"array", "sampling_rate"}'
            found = f"audio: found {type(item).__name__}"
            raise GmpError(f"{found}, expected a path, a folder, {kinds}, or a list of them.")
        if isinstance(item, str | os.PathLike):
            sources |= {path: partial(load, path, sample_rate) for path in expand_folders(item)}
        else:
            sources[str(number) if several else ""] = partial(load, item, sample_rate)
    return sources


def recognize(
    audio: Any,
    model: str | os.PathLike | Recognizer = "runs/demo",
    sample_rate: int | None = None,
    window: float = 6.0,
    hop: float = 3.0,
    by_utterance: bool = False,
) -> pd.DataFrame:
    """Recognize emotions over time.

    The table has a row per window: `file`, `start` and `end` (s) of the part that it describes, `emotion` and
    its calibrated `confidence`, the probability of each emotion and of a `female` voice, the ratings that the
    model predicts, and `speech`, the share of the part that is speech. Below a share of `MIN_SPEECH`,
    `emotion` is None and the numbers are NaN. A recording that could not be read has a row with its `error`.

    Parameters
    ----------
    audio : path, samples, bytes, file, or sequence of them
        Recordings of any length, rate and number of channels that FFmpeg reads, folders of them, or what
        `gmp_utils.data.audio.load` takes.
    model : str, path or Recognizer
        A published model's folder or hub name, or a run; see `gmp_utils.stages.publish.find_or_publish`.
    sample_rate : int, optional
        Hz, of an array or a tensor.
    window, hop : float
        Length of windows, and maximum distance between their starts (s). A recording or utterance no longer
        than a window is one window, like training utterances. Silence at the ends of windows is left out.
    by_utterance : bool
        Divide recordings into utterances first, at pauses of at least `PAUSE` seconds. Pauses have no row.
        A recording without speech is not divided into utterances.
    """
    if not MIN_SECONDS <= hop <= window < math.inf:
        expected = f"{MIN_SECONDS} <= hop <= window, in seconds"
        raise GmpError(f"hop {hop} and window {window}: expected {expected}.")
    sources = _sources(audio, sample_rate)
    if not isinstance(model, Recognizer):
        model = load_recognizer(find_or_publish(str(model)))
    n_window, n_hop = (round(seconds * SAMPLE_RATE) for seconds in (window, hop))
    model = model.to(hardware.device())
    return _recognize_sources(model, sources, n_window, n_hop, by_utterance)


def example(stage: Path, path: Path, seed: int = 0) -> list[tuple[str, float, float]]:
    """Write a recording of one utterance per emotion, by test speakers of a stage of 06, and white noise.

    Each is followed by a second of silence. Returns the labels, emotions or "noise", with start and end (s).
    """
    corpus, rng = corpus_of(stage), np.random.default_rng(seed)
    test = corpus.partition(read_json(stage / "params.json")["fold"])["test"]
    sounds = {
        emotion: to_float(corpus.waveforms[rng.choice(names)])
        for emotion, names in corpus.manifest.loc[test].groupby("emotion").utterance
    }
    sounds["noise"] = 0.1 * rng.normal(size=5 * SAMPLE_RATE)
    pieces, parts, start = [], [], 0.0
    for label, sound in sounds.items():
        end = start + len(sound) / SAMPLE_RATE
        parts.append((label, start, end))
        pieces += [sound, np.zeros(SAMPLE_RATE)]
        start = end + 1
    soundfile.write(path, np.concatenate(pieces[:-1]), SAMPLE_RATE)
    return parts
