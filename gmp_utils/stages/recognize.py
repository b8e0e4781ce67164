"""Stage 09: recordings in, emotions over time out.

A recording longer than a window is heard window by window, each overlapping the next, while it is being read.
Each window tells of its middle, which it hears best; the first and the last reach the recording's ends.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from threading import Event

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data.audio import (
    MIN_SECONDS,
    SAMPLE_RATE,
    check_length,
    check_rate,
    check_samples,
    convert,
    length,
    stream,
)
from gmp_utils.evaluation.collect import corpus_of
from gmp_utils.models.recognizer import Recognizer
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.stages import publish
from gmp_utils.stages.publish import open_recognizer
from gmp_utils.training import features

ALSO = ("aif", "oga", "opus", "sph")  # suffixes that are not names of formats
SUFFIXES = {f".{name.lower()}" for name in (*soundfile.available_formats(), *ALSO)}
BATCHES_PER_SORT = 10  # batches, whose windows are sorted by length
PREFETCH_SAMPLES = 96 * SAMPLE_RATE  # samples of a recording that wait, decoded
READERS = min(8, os.cpu_count() or 1)


def window_grid(n_samples: int, window: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Where windows begin, and which part of each is told.

    Parameters
    ----------
    n_samples : int
        Of the recording.
    window, hop : int
        Samples of a window, and at most so many from one to the next.

    Returns
    -------
    starts : (n_windows,) int64
        Evenly spaced, the last window ends where the recording does. A recording that is not longer than a
        window is one.
    edges : (n_windows + 1,) int64
        Of the parts, from 0 to `n_samples`: the middles of what two neighbours share.
    """
    n_windows = 1 + math.ceil(max(n_samples - window, 0) / hop)
    starts = np.linspace(0, max(n_samples - window, 0), n_windows).round().astype(np.int64)
    middles = (starts[1:] + starts[:-1] + window) // 2
    return starts, np.concatenate([[0], middles, [n_samples]])


def iter_windows(
    pieces: Iterator[np.ndarray], starts: np.ndarray, window: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut what comes piece by piece into overlapping windows.

    Parameters
    ----------
    pieces : iterator of (n_samples,) float32
        One after the other.
    starts : (n_windows,) int64
    window : int

    Yields
    ------
    number : int
    waveform : (n_samples,) float32
        `window` samples, or all there are of a shorter recording.
    """
    kept, first, number = np.zeros(0, np.float32), 0, 0
    for piece in pieces:
        kept = np.concatenate([kept, piece])
        while number < len(starts) and starts[number] + window <= first + len(kept):
            begin = starts[number] - first
            yield number, kept[begin : begin + window]
            number += 1
        if number:
            passed = starts[min(number, len(starts) - 1)] - first
            kept, first = kept[passed:], first + passed
    if number < len(starts):
        yield number, kept


def recordings(audio: str | os.PathLike | Sequence) -> list[str]:
    """Paths of recordings: of those named, and of all below folders that are named.

    Raises
    ------
    GmpError
        If a folder holds none.
    """
    named = [audio] if isinstance(audio, str | os.PathLike) else list(audio)
    paths = []
    for path in (Path(own).expanduser() for own in named):
        below = [path]
        if path.is_dir():
            below = sorted(own for own in path.rglob("*") if own.suffix.lower() in SUFFIXES)
            if not below:
                raise GmpError(f"{path}: no recordings below it (wav, flac, ogg, mp3).")
        paths += map(str, below)
    return paths


def printable(text: str) -> str:
    """The same with escapes for what is not UTF-8 in names of files."""
    return os.fsencode(text).decode(errors="backslashreplace")


def from_memory(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """A waveform in memory as 16 kHz mono.

    Parameters
    ----------
    samples : (n_samples,) or (n_samples, channels) ndarray
        Floats from -1 to 1, or integers.
    sample_rate : int
        Hz.

    Returns
    -------
    waveform : (n_samples,) float32

    Raises
    ------
    GmpError
        For other shapes, values that are no numbers, less than a frame, or a rate that does not go.
    """
    numbers = samples.dtype.kind in "iuf"
    if not numbers or samples.ndim not in (1, 2) or len(samples) < samples[:1].size:
        raise GmpError(
            f"audio: an array of {samples.dtype} and shape {samples.shape}, expected integers or floats, "
            "(samples,) or (samples, channels)."
        )
    if np.issubdtype(samples.dtype, np.integer):
        lowest, highest = np.iinfo(samples.dtype).min, np.iinfo(samples.dtype).max
        samples = (samples - (lowest + highest + 1) / 2) / ((highest - lowest + 1) / 2)
    sample_rate = int(sample_rate)
    check_rate("audio", sample_rate)
    check_length("audio", len(samples), sample_rate)
    samples = samples.reshape(len(samples), -1).astype(np.float32)
    check_samples("audio", samples)
    return convert(samples, sample_rate)


def _windows(
    sources: dict[str, Callable[[], Iterator[np.ndarray]]],
    starts: dict[str, np.ndarray],
    window: int,
) -> Iterator[tuple[str, int, np.ndarray | GmpError]]:
    """Windows of all sources in order, decoded ahead; an error in place of the rest of its source."""
    stopped = Event()

    def put(ready: Queue, item) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except Full:
                continue

    def read(name: str, ready: Queue) -> None:
        try:
            for found in iter_windows(sources[name](), starts[name], window):
                put(ready, found)
                if stopped.is_set():
                    return
        except Exception as error:  # raised, or told of, by who listens
            put(ready, (-1, error))
        put(ready, None)

    names, waiting = iter(sources), deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            while True:
                for name in islice(names, 2 * READERS - len(waiting)):
                    waiting.append((name, Queue(max(1, PREFETCH_SAMPLES // window))))
                    pool.submit(read, *waiting[-1])
                if not waiting:
                    return
                name, ready = waiting.popleft()
                while (item := ready.get()) is not None:
                    if isinstance(item[1], Exception) and not isinstance(item[1], GmpError):
                        raise item[1]
                    yield name, *item
        finally:
            stopped.set()


def _recognize_sources(
    model: Recognizer,
    sources: dict[str, Callable[[], Iterator[np.ndarray]]],
    lengths: dict[str, int],
    window: int,
    hop: int,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """`recognize`, of sources that give 16 kHz piece by piece; damaged ones apart, with the reason."""
    plans = {name: window_grid(samples, window, hop) for name, samples in lengths.items()}
    starts = {name: own for name, (own, _) in plans.items()}
    portion = BATCHES_PER_SORT * features.ENCODER_SECONDS[hardware.device()] * SAMPLE_RATE
    tables, damaged, waiting = [], {}, []

    def hear() -> None:
        waiting.sort(key=lambda item: len(item[2]))
        store = publish.concatenate([waveform for *_, waveform in waiting])
        found = publish.recognized(model, store, store.utterances)
        parts = [plans[name][1][number : number + 2] / SAMPLE_RATE for name, number, _ in waiting]
        table = pd.DataFrame(parts, columns=["start", "end"])
        table.insert(0, "file", [name for name, *_ in waiting])
        scores = pd.DataFrame(found["emotions"], columns=[*model.config.label2id])
        table["emotion"], table["confidence"] = scores.idxmax(axis=1), scores.max(axis=1)
        table = table.join(scores)
        if "female" in found:
            table["female"] = found["female"]
        if "ratings" in found:
            table = table.join(pd.DataFrame(found["ratings"], columns=model.config.ratings))
        tables.append(table.assign(speech=found["speech"]))
        waiting.clear()

    with tqdm(
        desc="recognise", total=sum(map(len, starts.values())), unit="window", disable=None
    ) as bar:
        for name, number, heard in _windows(sources, starts, window):
            if isinstance(heard, GmpError):
                damaged[name] = printable(str(heard))
                continue
            waiting.append((name, number, heard))
            bar.update()
            if sum(len(waveform) for *_, waveform in waiting) > portion:
                hear()
        if waiting:
            hear()
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"file": []})
    table = table[~table.file.isin(damaged)]
    order = table.file.map({name: index for index, name in enumerate(sources)})
    if len(table):
        table = table.assign(order=order).sort_values(["order", "start"]).drop(columns="order")
    return table.reset_index(drop=True), damaged


def recognize(
    audio: str | os.PathLike | Sequence | np.ndarray,
    model: str | os.PathLike | Recognizer = "runs/demo",
    sample_rate: int | None = None,
    window: float = 6.0,
    hop: float = 3.0,
) -> pd.DataFrame:
    """Recognise emotions over time.

    Parameters
    ----------
    audio : path, sequence of paths, or (samples,) or (samples, channels) ndarray
        Recordings of any length, rate and channels that libsndfile reads; folders stand for all recordings
        below them.
    model : str, path or Recognizer
        See `gmp_utils.stages.publish.open_recognizer`.
    sample_rate : int, optional
        Hz, of an array.
    window, hop : float
        Seconds that are heard at once, and at most so many from one window to the next. Recordings that are
        not longer than a window are heard whole, as the utterances of training were.

    Returns
    -------
    table : DataFrame
        A row per window: `file`, `start` and `end` (s) of the part that it tells of, `emotion`, its
        calibrated `confidence`, the probability of each emotion, of a `female` voice, ratings where the
        model knows them, and the probability that it is `speech`. A recording that could not be read has
        a row with its `error` alone.

    Raises
    ------
    GmpError
        If nothing could be read, for an array without its rate, or a hop that is longer than the window.
    """
    if not MIN_SECONDS <= hop <= window < math.inf:
        raise GmpError(
            f"hop {hop} and window {window}: expected {MIN_SECONDS} <= hop <= window, in seconds."
        )
    in_memory = isinstance(audio, np.ndarray)
    if in_memory != (sample_rate is not None):
        raise GmpError("sample_rate: expected with a NumPy array, in Hz, and with one only.")
    recognizer = model if isinstance(model, Recognizer) else open_recognizer(str(model))
    sources, lengths, unread = {}, {}, {}
    if in_memory:
        waveform = from_memory(audio, sample_rate)
        sources, lengths = {"": lambda: iter([waveform])}, {"": len(waveform)}
    for path in [] if in_memory else dict.fromkeys(recordings(audio)):
        name = printable(path)
        try:
            lengths[name] = length(path)
            sources[name] = partial(stream, path)
        except GmpError as error:
            unread[name] = printable(str(error))
    size = (round(seconds * SAMPLE_RATE) for seconds in (window, hop))
    table, damaged = _recognize_sources(recognizer.to(hardware.device()), sources, lengths, *size)
    unread |= damaged
    if table.empty:
        raise GmpError(" ".join(unread.values()) or "audio: no recordings were named.")
    failed = pd.DataFrame({"file": list(unread), "error": list(unread.values())})
    return pd.concat([table.assign(error=None), failed], ignore_index=True)


def example(stage: Path, path: Path, seed: int = 0) -> list[tuple[str, float, float]]:
    """Write a recording to try things on: an utterance per emotion of the test speakers, and noise.

    Parameters
    ----------
    stage : Path
        Of `gmp_utils.stages.finetune.finetune`.
    path : Path
        Of the WAV file, 16 kHz; one second of silence comes behind each utterance, five of noise at the end.
    seed : int
        Of the choice.

    Returns
    -------
    parts : list of (str, float, float)
        What is there, an emotion as labelled or "noise", from and to (s).
    """
    corpus, rng = corpus_of(stage), np.random.default_rng(seed)
    test = corpus.split(read_json(stage / "params.json")["fold"])["test"]
    labels = corpus.manifest.emotion.loc[test]
    pieces, parts, at, sounds = [], [], 0.0, {}
    for emotion in sorted(set(labels)):
        sounds[emotion] = corpus.waveforms[rng.choice(labels.index[labels == emotion])] / 32768
    sounds["noise"] = 0.2 * publish.noise("white", 5 * SAMPLE_RATE, rng)
    for name, sound in sounds.items():
        parts.append((name, at, at + len(sound) / SAMPLE_RATE))
        pieces += [sound, np.zeros(SAMPLE_RATE)]
        at = parts[-1][2] + 1
    soundfile.write(path, np.concatenate(pieces[:-1]), SAMPLE_RATE)
    return parts
