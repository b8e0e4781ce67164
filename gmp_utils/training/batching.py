"""Batches of utterances of similar length, limited in seconds, and span masks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from gmp_utils import GmpError
from gmp_utils.data.audio import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE, normalize
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import hardware

FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_HOP
BUCKET = 2500  # utterances that are sorted together, at most


@dataclass(frozen=True)
class Masking:
    """Span masks as in HuBERT."""

    probability: float  # share of frames that spans cover if none overlap
    length: int  # frames per span
    min_spans: int = 2  # per utterance

    def __post_init__(self):
        if self.probability <= 0:
            found = f"mask_probability: found {self.probability}"
            raise GmpError(f"{found}, expected above 0; masked prediction needs masks.")

    def draw(self, n_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the mask of an utterance, (n_frames,) bool.

        Hsu et al., "HuBERT", 2021, section II-C. The number of spans is rounded stochastically. Spans start
        at different frames and may overlap. Utterances no longer than a span get spans of half their frames.
        """
        mask = np.zeros(n_frames, dtype=bool)
        length = self.length if n_frames > self.length else max(n_frames // 2, 1)
        n_starts = n_frames - length + 1
        n_spans = int(self.probability * n_frames / length + rng.random())
        n_spans = min(max(n_spans, self.min_spans), n_starts)
        starts = rng.choice(n_starts, n_spans, replace=False)
        mask[(starts[:, None] + np.arange(length)).ravel()] = True
        return mask


# V-FT's masks of frames and of features (github.com/b04901014/FT-w2v2-ser).
SPEC_AUGMENT = Masking(0.08, 15, 2), Masking(0.05, 64, 1)


@dataclass(eq=False)
class Utterances(Dataset):
    """A dataset of utterances, or of random crops of them, for training or inference.

    Indices continue from epoch to epoch: ``epoch * len(dataset) + index``. The epoch changes only the crops
    and masks, which are drawn from seed, epoch and index.
    """

    inputs: Ragged  # waveforms, normalized on the fly, or outputs of the CNN
    utterances: Sequence[str]
    targets: dict[str, np.ndarray] | None = None  # labels by task, a row per utterance
    frame_labels: Ragged | None = None  # pseudo-labels, (frames, streams)
    masking: Masking | None = None  # of frames
    seed: int = 0  # of crops and masks
    hidden_size: int = 0  # of the model, if features are masked too
    crop_seconds: float = 0.0  # 0 for whole utterances

    def __post_init__(self):
        self.utterances, self.targets = list(self.utterances), self.targets or {}
        rate = SAMPLE_RATE if self.inputs.is_waveform else FRAMES_PER_SECOND
        seconds = [
            self.crop_seconds or self.inputs.lengths[name] / rate for name in self.utterances
        ]
        self.seconds = np.array(seconds)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict:
        epoch, index = divmod(index, len(self))
        name, rng = self.utterances[index], np.random.default_rng([self.seed, epoch, index])
        values, labels = self.inputs[name], self.frame_labels and self.frame_labels[name]
        if self.crop_seconds:
            values, labels = self._crop(values, labels, rng)
        n_frames = len(values)
        if self.inputs.is_waveform:
            values, n_frames = normalize(values), (n_frames - FRAME_WINDOW) // FRAME_HOP + 1
        item = {"inputs": values if torch.is_tensor(values) else np.array(values)}
        item.update({task: labels[index] for task, labels in self.targets.items()})
        if labels is not None:
            item["frame_labels"] = np.array(labels, dtype=np.int64)
        if self.masking is not None:
            item["mask"] = self.masking.draw(n_frames, rng)
            if self.hidden_size:
                item["feature_mask"] = SPEC_AUGMENT[1].draw(self.hidden_size, rng)
        return item

    def _crop(self, values, labels, rng: np.random.Generator) -> tuple:
        rows, hop = crop_rows(self.crop_seconds, self.inputs.is_waveform), 1
        if self.inputs.is_waveform:
            hop = FRAME_HOP
        first = int(rng.integers((len(values) - rows) // hop + 1))  # frame
        if labels is not None:
            labels = labels[first : first + crop_rows(self.crop_seconds, False)]
        return values[first * hop : first * hop + rows], labels


def crop_rows(crop_seconds: float, is_waveform: bool) -> int:
    """Number of frames of a crop, or of their samples."""
    n_frames = round(crop_seconds * FRAMES_PER_SECOND)
    return (n_frames - 1) * FRAME_HOP + FRAME_WINDOW if is_waveform else n_frames


def crops(inputs: Ragged, names: Sequence[str], crop_seconds: float, **settings) -> Utterances:
    """A dataset of random crops: per epoch as many of each utterance as fit into it."""
    rows = crop_rows(crop_seconds, inputs.is_waveform)
    repeated = [name for name in names for _ in range(inputs.lengths[name] // rows)]
    return Utterances(inputs, repeated, crop_seconds=crop_seconds, **settings)


def to_gpu_if_it_fits(inputs: Ragged) -> Ragged:
    """Copy CNN outputs to the GPU if they fit into half of its free memory, so that no batch is copied."""
    if inputs.is_waveform or not hardware.fits(inputs.values.nbytes):
        return inputs
    values = torch.tensor(inputs.values, device=hardware.device())
    return Ragged(values, inputs.lengths)


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Pad utterances with zeros into a batch. Its `lengths` do not count the padding."""
    batch = {"lengths": torch.tensor([len(item["inputs"]) for item in items])}
    for key in items[0]:
        tensors = [torch.as_tensor(item[key]) for item in items]
        batch[key] = pad_sequence(tensors, True) if tensors[0].ndim else torch.stack(tensors)
    return batch


@dataclass
class DurationBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, limited in padded seconds.

    Each shuffled half of the utterances (up to `BUCKET` at a time) is sorted by length and cut into batches.
    There is little padding (4% for IEMOCAP's lengths in batches of 64), and batches differ from epoch to
    epoch. Every process gets a part of each shuffled batch, so all of them take part in every step. Batches
    that are not shuffled are distributed whole.
    """

    dataset: Utterances
    max_seconds: float  # longest utterance × number of utterances, if there are several
    max_utterances: int = 64
    shuffle: bool = True  # False keeps the dataset's order, for evaluation
    seed: int = 0
    n_batches: int = 0  # minimum, reached by halving the largest batches
    process: int = 0
    n_processes: int = 1
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Use the batches and masks of this epoch from now on."""
        self.epoch = epoch

    def fix_batches_per_epoch(self, epochs: int) -> None:
        """Give every epoch as many batches as the one with the most: Trainer plans with one number."""
        current = self.epoch
        for self.epoch in range(epochs):
            self.n_batches = max(self.n_batches, len(self._batches()))
        self.epoch = current

    def _batches(self) -> list[list[int]]:
        """Batches of this epoch for all processes together, as indices within the epoch."""
        seconds = self.dataset.seconds
        if not self.shuffle:
            return list(self._cut(range(len(seconds))))
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(seconds))
        n_buckets = max(2, math.ceil(len(order) / BUCKET))
        n_buckets = min(n_buckets, math.ceil(len(order) / self.max_utterances))
        buckets = np.array_split(order, n_buckets)
        buckets = [bucket[np.argsort(seconds[bucket], kind="stable")] for bucket in buckets]
        batches = [batch for bucket in buckets for batch in self._cut(bucket.tolist())]
        while len(batches) < self.n_batches:
            largest = max(range(len(batches)), key=lambda index: len(batches[index]))
            batch = batches[largest]
            batches[largest : largest + 1] = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _cut(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Cut indices into batches, in order."""
        batch, longest = [], 0.0
        for index in indices:
            longest = max(longest, self.dataset.seconds[index])
            full = len(batch) == self.max_utterances
            if batch and (full or longest * (len(batch) + 1) > self.max_seconds):
                yield batch
                batch, longest = [], self.dataset.seconds[index]
            batch.append(index)
        if batch:
            yield batch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * len(self.dataset.seconds)
        batches, share = self._batches(), slice(self.process, None, self.n_processes)
        for batch in batches if self.shuffle else batches[share]:
            # every process gets a whole batch if it has fewer utterances than processes
            divided = self.shuffle and len(batch) >= self.n_processes
            yield [first + index for index in (batch[share] if divided else batch)]

    def __len__(self) -> int:
        return len(list(iter(self)))
