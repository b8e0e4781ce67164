"""Batches of utterances: similar lengths together, a budget of seconds, span masks without padding."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from gmp_utils.data.audio import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE, normalize
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import hardware

FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_HOP
BUCKET = 2500  # utterances that are sorted together, at most


@dataclass(frozen=True)
class Masking:
    """Span masks as in HuBERT.

    Attributes
    ----------
    probability : float
        Share of frames that spans would cover if none overlapped; 0 for no masks.
    length : int
        Frames per span.
    min_spans : int
        Per utterance.
    """

    probability: float
    length: int
    min_spans: int = 2

    def draw(self, n_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the mask of an utterance, (n_frames,) bool.

        Hsu et al., "HuBERT", 2021, section II-C. The number of spans is rounded at random. Spans
        start at different frames and may overlap. An utterance not longer than a span gets spans
        of half its length.
        """
        mask = np.zeros(n_frames, dtype=bool)
        if not self.probability:
            return mask
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
    """A dataset of utterances, for training or inference.

    Indices continue from epoch to epoch: ``epoch * len(dataset) + index``. The epoch changes nothing but
    the masks, which depend on seed, epoch and utterance only.

    Attributes
    ----------
    inputs : Ragged
        Waveforms, normalized on the fly, or outputs of the CNN.
    utterances : list of str
    targets : dict of str to (n_utterances,) int64 or (n_utterances, n) float32
        Labels by task.
    frame_labels : Ragged, optional
        (frames, streams) of pseudo-labels.
    masking : Masking, optional
        Of frames.
    seed : int
        Of the masks.
    hidden_size : int
        Of the model, to mask features too; 0 for no such masks.
    seconds : (n_utterances,) float64
        Durations.
    """

    inputs: Ragged
    utterances: Sequence[str]
    targets: dict[str, np.ndarray] | None = None
    frame_labels: Ragged | None = None
    masking: Masking | None = None
    seed: int = 0
    hidden_size: int = 0
    seconds: np.ndarray = field(init=False)

    def __post_init__(self):
        self.utterances, self.targets = list(self.utterances), self.targets or {}
        rate = SAMPLE_RATE if self.inputs.kind == "waveform" else FRAMES_PER_SECOND
        self.seconds = np.array([self.inputs.lengths[name] / rate for name in self.utterances])

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict:
        epoch, index = divmod(index, len(self))
        name = self.utterances[index]
        values, n_frames = self.inputs[name], self.inputs.lengths[name]
        if self.inputs.kind == "waveform":
            values, n_frames = normalize(values), (n_frames - FRAME_WINDOW) // FRAME_HOP + 1
        item = {"inputs": values if torch.is_tensor(values) else np.array(values)}
        item.update({task: labels[index] for task, labels in self.targets.items()})
        if self.frame_labels is not None:
            item["frame_labels"] = np.array(self.frame_labels[name], dtype=np.int64)
        if self.masking is not None:
            rng = np.random.default_rng([self.seed, epoch, index])
            item["mask"] = self.masking.draw(n_frames, rng)
            if self.hidden_size:
                item["feature_mask"] = SPEC_AUGMENT[1].draw(self.hidden_size, rng)
        return item


def to_gpu_if_it_fits(inputs: Ragged) -> Ragged:
    """Copy CNN outputs to the GPU if they take at most half of its free memory.

    Batches are then assembled on the GPU, without a copy at every step.
    """
    if inputs.kind == "waveform" or not hardware.fits(inputs.values.nbytes):
        return inputs
    values = torch.tensor(inputs.values, device=hardware.device())
    return Ragged(values, inputs.utterances, list(inputs.lengths.values()), kind=inputs.kind)


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Pad utterances with zeros into a batch; `lengths` are those without padding."""
    batch = {"lengths": torch.tensor([len(item["inputs"]) for item in items])}
    for key in items[0]:
        tensors = [torch.as_tensor(item[key]) for item in items]
        batch[key] = pad_sequence(tensors, True) if tensors[0].ndim else torch.stack(tensors)
    return batch


@dataclass
class DurationBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, of at most so many padded seconds.

    A shuffled half of the utterances (at most `BUCKET`) is sorted by length and cut into batches, then
    the other half: little is padding (4 % for IEMOCAP's lengths in batches of 64), and batches differ
    from epoch to epoch.

    Attributes
    ----------
    dataset : Utterances
    max_seconds : float
        Bound of the longest utterance × the number of utterances. A longer utterance is a batch by
        itself.
    max_utterances : int
    shuffle : bool
        False keeps the dataset's order, for evaluation.
    seed : int
    n_batches : int
        The least number of batches; the largest are halved to reach it.
    process, n_processes : int
        Shuffled batches are divided among processes, so that all of them make every step. Other
        batches are dealt out whole.
    """

    dataset: Utterances
    max_seconds: float
    max_utterances: int = 64
    shuffle: bool = True
    seed: int = 0
    n_batches: int = 0
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
        """All processes' batches of this epoch, as indices without the epoch."""
        lengths = self.dataset.seconds
        portions = [np.arange(len(lengths))]
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            order = rng.permutation(len(lengths))
            n_portions = max(2, math.ceil(len(order) / BUCKET))
            n_portions = min(n_portions, math.ceil(len(order) / self.max_utterances))
            portions = np.array_split(order, n_portions)
            portions = [part[np.argsort(lengths[part], kind="stable")] for part in portions]
        batches = [batch for portion in portions for batch in self._cut(portion)]
        while len(batches) < self.n_batches:
            largest = max(range(len(batches)), key=lambda index: len(batches[index]))
            whole = batches[largest]
            batches[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        if self.shuffle:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        return batches

    def _cut(self, portion: np.ndarray) -> Iterator[list[int]]:
        """Cut a portion, in its order, into batches."""
        batch, longest = [], 0.0
        for index in portion.tolist():
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
            # a batch with fewer utterances than processes goes to each of them
            divided = self.shuffle and len(batch) >= self.n_processes
            yield [first + index for index in (batch[share] if divided else batch)]

    def __len__(self) -> int:
        return len(list(iter(self)))
