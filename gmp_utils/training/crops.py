"""Random crops of segments of speech, for pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gmp_utils.data.audio import FRAME_HOP, FRAME_WINDOW, normalize
from gmp_utils.data.ragged import Ragged
from gmp_utils.training.batching import FRAMES_PER_SECOND, Utterances


@dataclass(eq=False)
class Crops(Utterances):
    """Crops of segments, waveforms or CNN outputs, and their masks.

    They are drawn from seed, epoch and index, so a validation set, whose epoch is always 0, is fixed.
    """

    crop_seconds: float = 1.0

    @classmethod
    def of(cls, inputs: Ragged, names: Sequence[str], crop_seconds: float, **settings) -> "Crops":
        """As many crops of each segment per epoch as fit into it."""
        rows = crop_rows(crop_seconds, inputs.kind)
        repeated = [name for name in names for _ in range(inputs.lengths[name] // rows)]
        return cls(inputs, repeated, crop_seconds=crop_seconds, **settings)

    def __post_init__(self):
        super().__post_init__()
        self.seconds = np.full(len(self.utterances), self.crop_seconds)

    def __getitem__(self, index: int) -> dict:
        epoch, index = divmod(index, len(self))
        name, rng = self.utterances[index], np.random.default_rng([self.seed, epoch, index])
        waveform = self.inputs.kind == "waveform"
        hop, rows = FRAME_HOP if waveform else 1, crop_rows(self.crop_seconds, self.inputs.kind)
        first = int(rng.integers((self.inputs.lengths[name] - rows) // hop + 1))  # frame
        values = self.inputs[name][first * hop : first * hop + rows]
        values = normalize(values) if waveform else values
        item = {"inputs": values if torch.is_tensor(values) else np.array(values)}
        n_frames = crop_rows(self.crop_seconds, "cnn")
        if self.frame_labels is not None:
            labels = self.frame_labels[name][first : first + n_frames]
            item["frame_labels"] = np.array(labels, dtype=np.int64)
        return item | {"mask": self.masking.draw(n_frames, rng)}


def crop_rows(crop_seconds: float, kind: str) -> int:
    """Frames of a crop, or samples that yield this many, if the kind of `Ragged` is "waveform"."""
    n_frames = round(crop_seconds * FRAMES_PER_SECOND)
    return (n_frames - 1) * FRAME_HOP + FRAME_WINDOW if kind == "waveform" else n_frames
