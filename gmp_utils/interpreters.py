"""What reads ratings out of an encoder's frames, and of a vector that tells who speaks."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from gmp_utils import distributed
from gmp_utils.heads import mean_over_time

INTERPRETERS = ("mlp", "transformer")
WIDTH = 128  # of the small Transformer


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all processes' utterances; one alone, which varies nowhere, gets past statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        everyone = distributed.gathered(input) if self.training else input
        mean, variance = self.running_mean, self.running_var
        if self.training and (everyone != everyone[0]).any():
            mean, variance = everyone.mean(dim=0), everyone.var(dim=0, unbiased=False)
            with torch.no_grad():
                n = len(everyone)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        return (input - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class MlpInterpreter(nn.Module):
    """Mean over time, then dim → 128 → 32 → ratings.

    As in PAPT's published evaluation code (arXiv 2309.02418): ReLU, dropout of 0.1 and batch norm behind
    either hidden layer. The speaker's vector is added to every frame.

    Parameters
    ----------
    dim : int
        Of the encoder's frames, and of the vector.
    n_ratings : int
    """

    def __init__(self, dim: int, n_ratings: int):
        super().__init__()
        sizes = (dim, 128, 32)
        hidden = [
            part
            for before, after in pairwise(sizes)
            for part in (nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.1), BatchNorm(after))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], n_ratings))

    def forward(self, frames: Tensor, valid: Tensor, vector: Tensor | None = None) -> Tensor:
        """Rate utterances.

        Parameters
        ----------
        frames : (batch, frames, dim) float32
        valid : (batch, frames) bool
        vector : (batch, dim) float32, optional
            Of each utterance's speaker.

        Returns
        -------
        ratings : (batch, n_ratings) float32
        """
        means = mean_over_time(frames, valid)
        return self.layers(means if vector is None else means + vector)


class TransformerInterpreter(nn.Module):
    """Two layers of 128 over [speaker's vector; frames], read where the vector, or a learnt one, stood.

    Parameters
    ----------
    dim : int
        Of the encoder's frames, and of the vector.
    n_ratings : int
    """

    def __init__(self, dim: int, n_ratings: int):
        super().__init__()
        self.project = nn.Linear(dim, WIDTH)
        self.first = nn.Parameter(torch.empty(WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, n_ratings))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What stands before the frames begins at zero."""
        nn.init.zeros_(self.first)

    def forward(self, frames: Tensor, valid: Tensor, vector: Tensor | None = None) -> Tensor:
        """Rate utterances; see `MlpInterpreter`."""
        x = self.project(frames)
        first = self.first.expand(len(x), 1, -1)
        if vector is not None:
            first = first + self.project(vector).unsqueeze(1)
        x = torch.cat([first, x], dim=1)
        padding = torch.cat([valid.new_zeros(len(x), 1), ~valid], dim=1)
        return self.output(self.encoder(x, src_key_padding_mask=padding)[:, 0])
