"""What sits on top of the encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_over_time(frames: Tensor, valid: Tensor) -> Tensor:
    """Average the valid frames of each utterance.

    Parameters
    ----------
    frames : (batch, frames, dim) float32
    valid : (batch, frames) bool

    Returns
    -------
    means : (batch, dim) float32
    """
    weights = valid.unsqueeze(-1).to(frames.dtype)
    return (frames * weights).sum(dim=1) / weights.sum(dim=1)


def _reverse(frames: Tensor, valid: Tensor) -> Tensor:
    """Turn each utterance's valid frames round in time, and leave its padding where it is.

    With this two plain LSTMs are a bidirectional one that never sees padding; packed sequences give
    the same and cost three times as much on a CPU.
    """
    steps = torch.arange(frames.shape[1], device=frames.device)
    index = torch.where(valid, valid.sum(dim=1, keepdim=True) - 1 - steps, steps)
    return frames.gather(1, index.unsqueeze(-1).expand_as(frames))


def projection(size_in: int, size: int, size_out: int) -> nn.Sequential:
    """Linear, ReLU, Linear: the paper's "linear projection module"."""
    return nn.Sequential(nn.Linear(size_in, size), nn.ReLU(), nn.Linear(size, size_out))


class UtteranceHead(nn.Module):
    """Frames to one feature per utterance: BiLSTM, mean over time, projection (paper, figure 1).

    Parameters
    ----------
    dim : int
        Of the encoder's frames.
    lstm_size : int
        Per direction; 0 leaves the BiLSTM out.
    projection_size : int
        Of the feature.
    """

    def __init__(self, dim: int, lstm_size: int = 256, projection_size: int = 256):
        super().__init__()
        directions = 2 if lstm_size else 0
        self.lstm = nn.ModuleList(
            nn.LSTM(dim, lstm_size, batch_first=True) for _ in range(directions)
        )
        self.projection = projection(2 * lstm_size or dim, projection_size, projection_size)

    def forward(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Summarise utterances.

        Parameters
        ----------
        frames : (batch, frames, dim) float32
        valid : (batch, frames) bool
            Padding is False, and comes last.

        Returns
        -------
        features : (batch, projection_size) float32
        """
        if self.lstm:
            forward, backward = self.lstm
            ahead, _ = forward(frames)
            back, _ = backward(_reverse(frames, valid))
            frames = torch.cat([ahead, _reverse(back, valid)], dim=-1)
        return self.projection(mean_over_time(frames, valid))


class CosineClassifier(nn.Module):
    """Cosine of a feature with one vector per class, no bias."""

    def __init__(self, dim: int, n_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions at random; lengths do not matter."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Cosines.

        Parameters
        ----------
        features : (batch, dim) float32

        Returns
        -------
        cosines : (batch, n_classes) float32
        """
        return F.normalize(features) @ F.normalize(self.weight).T


class StreamHeads(nn.Module):
    """One projection per stream of pseudo-labels, to the logits of its clusters.

    Parameters
    ----------
    dim : int
        Of the encoder's frames.
    scales : sequence of int
        Clusters of each stream.
    size : int
        Hidden units of each projection.
    """

    def __init__(self, dim: int, scales: list[int], size: int = 256):
        super().__init__()
        self.streams = nn.ModuleList(projection(dim, size, scale) for scale in scales)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Logits of each stream.

        Parameters
        ----------
        frames : (n_frames, dim) float32

        Returns
        -------
        logits : list of (n_frames, scale) float32
        """
        return [stream(frames) for stream in self.streams]
