"""Utterances to batches: similar lengths together, a budget of seconds, masks that stay in bounds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from gmp_utils.data.audio import SAMPLE_RATE, normalize
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import hardware

FRAMES_PER_SECOND = 50  # of the encoder
BUCKET = 2500  # utterances that are sorted together, at most


@dataclass(frozen=True)
class Masking:
    """Span masks as HuBERT draws them.

    Attributes
    ----------
    probability : float
        Share of frames that spans would cover if none overlapped; 0 for no masks.
    length : int
        Frames per span.
    min_spans : int
        At least so many per utterance.
    """

    probability: float
    length: int
    min_spans: int = 2

    def draw(self, n_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Mask one utterance.

        Hsu et al., "HuBERT", 2021, section II-C; the number of spans is rounded at random, spans
        start at different frames and may overlap. An utterance not longer than a span gets spans
        of half its length.

        Parameters
        ----------
        n_frames : int
        rng : numpy Generator

        Returns
        -------
        mask : (n_frames,) bool
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


# What V-FT masks of frames, and of features (github.com/b04901014/FT-w2v2-ser).
SPEC_AUGMENT = Masking(0.08, 15, 2), Masking(0.05, 64, 1)


class Utterances(Dataset):
    """What a model is trained on or asked about.

    Parameters
    ----------
    inputs : Ragged
        Normalised on the fly if they are waveforms; outputs of the CNN are taken as they are.
    utterances : sequence of str
    targets : dict of str to (n_utterances,) int64 or (n_utterances, n) float32, optional
        One label, or row, per utterance and task.
    frame_labels : Ragged, optional
        (frames, streams) of pseudo-labels.
    masking : Masking, optional
        Of frames.
    seed : int
        Of the masks: they depend on it, the epoch and the utterance, on nothing else.
    hidden_size : int
        Of the model, whose features are masked, too; 0 for no such masks.
    """

    def __init__(
        self,
        inputs: Ragged,
        utterances: Sequence[str],
        targets: dict[str, np.ndarray] | None = None,
        frame_labels: Ragged | None = None,
        masking: Masking | None = None,
        seed: int = 0,
        hidden_size: int = 0,
    ):
        self.inputs, self.utterances, self.hidden_size = inputs, list(utterances), hidden_size
        self.targets, self.frame_labels = targets or {}, frame_labels
        self.masking, self.seed, self.epoch = masking, seed, 0
        rate = SAMPLE_RATE if inputs.values.ndim == 1 else FRAMES_PER_SECOND
        self.seconds = np.array([inputs.lengths[name] / rate for name in self.utterances])

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict:
        name = self.utterances[index]
        values = self.inputs[name]
        if values.ndim == 1:
            values = normalize(values)  # of 16 kHz; a frame is 400 samples, and 320 from the next
        item = {"inputs": values if torch.is_tensor(values) else np.array(values)}
        item.update({task: labels[index] for task, labels in self.targets.items()})
        if self.frame_labels is not None:
            item["frame_labels"] = np.array(self.frame_labels[name], dtype=np.int64)
        if self.masking is not None:
            n_frames = len(values) if values.ndim == 2 else (len(values) - 80) // 320
            rng = np.random.default_rng([self.seed, self.epoch, index])
            item["mask"] = self.masking.draw(n_frames, rng)
            if self.hidden_size:
                item["feature_mask"] = SPEC_AUGMENT[1].draw(self.hidden_size, rng)
        return item


def to_gpu_if_it_fits(inputs: Ragged) -> Ragged:
    """The CNN's output on the GPU, where it takes at most half of the free memory; else as it is.

    Batches are then put together there, and nothing is copied at every step.
    """
    placed = torch.is_tensor(inputs.values)
    if placed or inputs.values.ndim == 1 or not hardware.fits(inputs.values.nbytes):
        return inputs
    values = torch.tensor(inputs.values, device=hardware.device())
    return Ragged(values, inputs.utterances, list(inputs.lengths.values()))


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Pad utterances with zeros into a batch, and say how long each is (`lengths`)."""
    batch = {"lengths": torch.tensor([len(item["inputs"]) for item in items])}
    for key in items[0]:
        tensors = [torch.as_tensor(item[key]) for item in items]
        batch[key] = pad_sequence(tensors, True) if tensors[0].ndim else torch.stack(tensors)
    return batch


@dataclass
class DurationBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length under a budget.

    A shuffled half of the utterances (`CHUNK` at most) is sorted by length and cut where the padded
    size would pass the budget, and so on with the rest: little is padding (4 % for IEMOCAP's lengths
    in batches of 64), and batches differ from epoch to epoch.

    Attributes
    ----------
    dataset : Utterances
        Its `epoch` is kept in step, so that masks change too.
    budget : float
        Seconds: longest × number of utterances stays below it; one utterance longer than that makes
        a batch alone.
    max_utterances : int
    shuffle : bool
        False keeps the dataset's order (for evaluation).
    seed : int
    n_batches : int
        At least so many: the largest batches are halved where there are fewer.
    process, n_processes : int
        Which of how many processes this is. Shuffled batches are dealt out utterance by utterance, so
        that all take every step together; others batch by batch.
    """

    dataset: Utterances
    budget: float
    max_utterances: int = 64
    shuffle: bool = True
    seed: int = 0
    n_batches: int = 0
    process: int = 0
    n_processes: int = 1
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle, and draw masks, for this epoch."""
        self.epoch = self.dataset.epoch = epoch

    def fix_batches_per_epoch(self, epochs: int) -> None:
        """Give every one of so many epochs as many batches as the one with most of them.

        Trainer plans with one number of batches for all epochs.
        """
        now = self.epoch
        for self.epoch in range(epochs):
            self.n_batches = max(self.n_batches, len(self._batches()))
        self.epoch = now

    def _batches(self) -> list[list[int]]:
        lengths = self.dataset.seconds
        portions = [np.arange(len(lengths))]
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            order = rng.permutation(len(lengths))
            halves = max(2, math.ceil(len(order) / BUCKET))
            portions = np.array_split(
                order, min(halves, math.ceil(len(order) / self.max_utterances))
            )
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
        """Utterances in this order, as many in a batch as the budget allows."""
        batch, longest = [], 0.0
        for index in portion.tolist():
            longest = max(longest, self.dataset.seconds[index])
            if len(batch) == self.max_utterances or longest * (len(batch) + 1) > self.budget:
                if batch:
                    yield batch
                batch, longest = [], self.dataset.seconds[index]
            batch.append(index)
        if batch:
            yield batch

    def _share(self) -> list[list[int]]:
        """What this process does; a batch too small for every process to get some, all of them do."""
        batches, mine = self._batches(), slice(self.process, None, self.n_processes)
        if not self.shuffle:
            return batches[mine]
        return [batch if len(batch) < self.n_processes else batch[mine] for batch in batches]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._share())

    def __len__(self) -> int:
        return len(self._share())
