"""Recordings and arrays as 16 kHz mono waveforms."""

import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import soundfile
import soxr

from gmp_utils import GmpError
from gmp_utils.runs.files import text_digest

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS = 0.025  # one frame of the encoder
FULL_SCALE = 0.999  # samples beyond it are clipped
LARGEST = 4.0  # maximum of a floating-point recording, 12 dB above full scale
CANCELED = 1e-4  # -40 dB: minimum power of the channels' mean, relative to their mean power
ROUNDED = 0.01  # seconds by which the end of a part may be after the last sample
BLOCK = 2**20  # samples of all channels that are decoded at once
NO_LENGTH = 2**63 - 1  # libsndfile's number of samples if the header has none
# Errors of decoders; TypeError is soundfile's for a headerless .raw
UNDECODABLE = (av.FFmpegError, OSError, RuntimeError, TypeError, ValueError)
PATH_COLUMNS = ["path", "file_name", "file"]  # of tables: ours, Hugging Face's, audformat's
FRAME_HOP, FRAME_WINDOW = 320, 400  # samples, of the encoder's frames
ALIASES = "aif oga opus sph".split()  # suffixes that are not names of libsndfile's formats
OF_FFMPEG = "aac amr m4a mkv mov mp4 webm wma".split()
SUFFIXES = {f".{name.lower()}" for name in (*soundfile.available_formats(), *ALIASES, *OF_FFMPEG)}


def find_recordings(paths: Iterable[Path], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """The recordings among some files, sorted, without macOS's `._` files."""
    found = [path for path in paths if path.suffix.lower() in suffixes]
    return sorted(path for path in found if not path.name.startswith("._"))


class _Content(io.BytesIO):
    """A file in memory, called "audio" in messages."""

    def __str__(self) -> str:
        return "audio"


def is_recording(item: Any) -> bool:
    """Whether `load` accepts an item. None, lists and iterators are not accepted."""
    kinds = str | os.PathLike | bytes | bytearray | Mapping | np.ndarray
    pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Real)
    return isinstance(item, kinds) or pair or any(hasattr(item, x) for x in ("read", "detach"))


def load(recording: Any, sample_rate: float | None = None) -> np.ndarray:
    """Convert a recording to 16 kHz mono as `decode` does.

    Parameters
    ----------
    recording : path, bytes, binary file, ndarray, tensor, (sample_rate, samples), or dict
        A dict has `bytes` or `path`, or `sampling_rate` and `array` or `raw`, see `from_array`.
    sample_rate : float, optional
        Hz, of an ndarray or a tensor.
    """
    if isinstance(recording, io.TextIOBase):
        raise GmpError("audio: found a file open in text mode, expected mode 'rb'.")
    if hasattr(recording, "read"):
        if recording.seekable():
            recording.seek(0)
        recording = recording.read()
    if isinstance(recording, Mapping) and not {"array", "raw"} & {*recording}:
        recording = recording.get("bytes") or recording.get("path") or recording
    bare = isinstance(recording, np.ndarray) or hasattr(recording, "detach")
    if bare != (sample_rate is not None):
        raise GmpError("sample_rate: give it (in Hz) with an array or tensor, and only then.")
    if isinstance(recording, str | os.PathLike):
        return decode(os.fspath(recording))
    if isinstance(recording, bytes | bytearray):
        return decode(_Content(recording))
    if isinstance(recording, Mapping):
        samples = recording.get("array", recording.get("raw"))
        sample_rate = recording.get("sampling_rate")
    else:
        sample_rate, samples = (sample_rate, recording) if bare else recording
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    return from_array(np.asarray(samples), sample_rate)


def decode(path: str | _Content) -> np.ndarray:
    """Decode a recording to 16 kHz mono, (n_samples,) float32 in [-1, 1].

    Channels are averaged, and soxr resamples with its quality "HQ". A recording that cannot be decoded, is
    shorter than 25 ms, has NaN or infinite samples or channels that cancel out raises a GmpError.
    """
    return read(path)[0]


@cache
def corpus_digest(path: str | None) -> str:
    """Digest of names, sizes and times of the files in a corpus's folder, or of a table's recordings."""
    folder = Path(path or os.devnull)
    files = folder.rglob("*")
    if folder.is_file():
        with suppress(OSError, ValueError, LookupError):  # notebook 01 reports what is wrong
            read = pd.read_parquet if folder.suffix.lower() == ".parquet" else pd.read_csv
            names = read(folder).reset_index().filter(PATH_COLUMNS).iloc[:, 0]
            files = {folder.parent / str(name) for name in names}
    stats = [(os.fspath(file), file.stat()) for file in sorted(files) if file.is_file()]
    return text_digest(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


def read(
    path: str | _Content, start: float = 0.0, end: float | None = None
) -> tuple[np.ndarray, dict]:
    """Decode a part of a recording (seconds; None or NaN for its end) as `decode` does.

    Also returns `peak`, the maximum absolute value of the mean over channels, and `clipped`, the share of
    clipped samples.
    """
    in_memory = isinstance(path, _Content)
    if not in_memory and not os.path.isfile(path):
        raise GmpError(f"{path}: not there, or not a file.")
    levels = _Levels()
    try:
        rate, blocks = _open(path, start, end)
        waveform = _resample(path, map(levels.mean, blocks), rate)
    except GmpError:
        raise
    except UNDECODABLE as error:
        with _Content(path.getvalue()) if in_memory else open(path, "rb") as file:
            if file.read(20).startswith(b"version https://git-"):
                raise GmpError(f"{path}: a git-lfs pointer; run `git lfs pull`.") from error
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None)
        raise GmpError(
            f"{path}: cannot be decoded ({reason or str(error) or 'damaged'})."
        ) from error
    levels.check(path, rate)
    if pd.notna(end) and levels.n < round((end - ROUNDED) * rate) - round(start * rate):
        seconds = start + levels.n / rate
        raise GmpError(f"{path}: {start} to {end} s is not in {seconds:.3f} s of audio.")
    return waveform, {"peak": float(levels.peak), "clipped": float(levels.clipped / levels.n)}


class _Levels:
    """Number, power and peaks of a recording's samples, gathered while its channels are averaged."""

    n = clipped = power = power_of_mean = loudest = peak = 0

    def mean(self, block: np.ndarray) -> np.ndarray:
        """Mean over the channels of (n_samples, channels) float32."""
        mean, level = block.mean(axis=1, dtype=np.float32), np.abs(block).max(axis=1)
        self.n += len(block)
        self.clipped += (level >= FULL_SCALE).sum()  # of the loudest channel
        self.power += np.square(block).mean(axis=1).sum()
        self.power_of_mean += mean @ mean
        self.loudest = max(self.loudest, level.max(initial=0))
        self.peak = max(self.peak, np.abs(mean).max(initial=0))
        return mean

    def check(self, what: str, rate: int) -> None:
        """Reject a recording that is too short, out of range, or canceled out by averaging."""
        if self.n < MIN_SECONDS * rate:
            seconds = self.n / rate
            raise GmpError(f"{what}: {seconds:.4f} s of audio, expected at least {MIN_SECONDS} s.")
        if self.loudest > LARGEST:
            raise GmpError(f"{what}: has a sample of {self.loudest:g}, expected -1 to 1; scale it.")
        if self.power_of_mean < CANCELED * self.power:
            raise GmpError(f"{what}: its channels cancel out in their mean; keep one of them.")


def _open(
    path: str | _Content, start: float, end: float | None
) -> tuple[int, Iterator[np.ndarray]]:
    """Sample rate and blocks, (n_samples, channels) float32, of a part of a recording.

    FFmpeg decodes MP3, files without a length in their header, and files that libsndfile cannot read.
    """
    with suppress(soundfile.LibsndfileError):
        file = soundfile.SoundFile(path)
        if file.format != "MP3" and file.frames != NO_LENGTH:
            return _open_with_libsndfile(file, path, start, end)
        file.close()
    if isinstance(path, _Content):
        path.seek(0)
    return _open_with_ffmpeg(path, start, end)


def _open_with_libsndfile(
    file: soundfile.SoundFile, path: str | _Content, start: float, end: float | None
) -> tuple[int, Iterator[np.ndarray]]:
    """`_open` for files with a length in their header."""
    rate, first = file.samplerate, round(start * file.samplerate)
    n_samples = (file.frames if pd.isna(end) else round(end * rate)) - first

    def blocks() -> Iterator[np.ndarray]:
        with file:
            if first:  # some formats cannot seek
                file.seek(min(first, file.frames))
            options = {"frames": n_samples, "dtype": "float32", "always_2d": True}
            n_decoded = 0
            for block in file.blocks(BLOCK // file.channels, **options):
                yield block
                n_decoded += len(block)
            n_expected = min(n_samples, file.frames - first)
            if n_decoded < n_expected:
                raise GmpError(f"{path}: truncated, found {n_decoded} of {n_expected} samples.")

    return rate, blocks()


def _open_with_ffmpeg(
    path: str | _Content, start: float, end: float | None
) -> tuple[int, Iterator[np.ndarray]]:
    """`_open` for the first audio stream of any file that FFmpeg reads, to its end."""
    # FFmpeg would read the part of a relative path before a colon as a protocol
    container = av.open(path if isinstance(path, _Content) else os.path.abspath(path))
    stream = next(iter(container.streams.audio), None)
    if stream is None or stream.codec_context is None:
        raise GmpError(f"{path}: has no audio, or no decoder for it.")
    rate = stream.codec_context.sample_rate
    first, last = round(start * rate), None if pd.isna(end) else round(end * rate)

    def blocks() -> Iterator[np.ndarray]:
        resampler, position = av.AudioResampler("fltp", stream.codec_context.layout, rate), 0
        with container:
            for frame in chain(container.decode(stream), [None]):
                if last is not None and position >= last:
                    break
                for part in resampler.resample(frame):
                    block = part.to_ndarray().T
                    stop = None if last is None else max(last - position, 0)
                    yield block[max(first - position, 0) : stop]
                    position += len(block)

    return rate, blocks()


def from_array(samples: np.ndarray, sample_rate: float) -> np.ndarray:
    """Convert (n_samples,), (n_samples, channels) or (channels, n_samples) as `decode` does.

    Samples are floats from -1 to 1, or integers of up to 32 bits with full scale at the limits of their type.
    The shorter of two axes is the channel axis.
    """
    wide = samples.dtype in (np.int64, np.uint64)  # NumPy's default integers rarely have full scale
    usable = samples.dtype.kind in "iuf" and samples.ndim in (1, 2) and samples.size
    if wide or not usable:
        found = f"audio: an array of {samples.dtype} and shape {samples.shape}"
        expected = "floats or integers of up to 32 bits, (samples,) or (samples, channels)"
        raise GmpError(f"{found}, expected {expected}.")
    if not isinstance(sample_rate, Real) or not 1000 <= sample_rate < np.inf:
        raise GmpError(
            f"sample_rate: found {sample_rate!r}, expected a number of Hz, at least 1000."
        )
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.dtype.kind in "iu":
        limits = np.iinfo(samples.dtype)
        half = (limits.max - limits.min + 1) / 2
        samples = (samples - (limits.max + 1 - half)) / half
    levels = _Levels()
    mono = levels.mean(samples.reshape(len(samples), -1).astype(np.float32))
    levels.check("audio", sample_rate)
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


def frame_seconds(frames: np.ndarray) -> np.ndarray:
    """Middle of frames, counted from 0, in seconds."""
    return frames * 0.02 + 0.0125


def frame_at(seconds: np.ndarray) -> np.ndarray:
    """Frames (int64) at times in seconds, the inverse of `frame_seconds`."""
    return ((seconds - 0.0125) / 0.02).round().astype(np.int64)
