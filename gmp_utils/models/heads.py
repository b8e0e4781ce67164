"""What sits on top of the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmp_utils import GmpError

HEADS = ("bilstm", "relu", "linear")


@dataclass(frozen=True)
class HeadConfig:
    """What reads an encoder's frames to classify utterances, and what of both is trained, and how.

    Attributes
    ----------
    head : str
        See `UtteranceHead`.
    head_layer : int
        Hidden state that the head reads.
    mix_layers : bool
        It reads all of them instead, see `LayerMix`.
    lstm_size : int
        Of the BiLSTM, per direction.
    projection_size : int
        Of the feature, but for the "relu" head.
    train_encoder : bool
        False trains the head alone.
    train_cnn : bool
        Train the encoder's convolutional front end too.
    spec_augment : bool
        Mask spans of frames and of features while training, see `gmp_utils.training.batching.SPEC_AUGMENT`.
    class_weights : bool
        Weigh an utterance's cross-entropy by how rare its emotion is in training: n / (classes × n of
        the class), so that every class counts the same.
    """

    head: str = "bilstm"
    head_layer: int = -1
    mix_layers: bool = False
    lstm_size: int = 256
    projection_size: int = 256
    train_encoder: bool = True
    train_cnn: bool = False
    spec_augment: bool = False
    class_weights: bool = False

    def __post_init__(self):
        if self.head not in HEADS:
            raise GmpError(f"head {self.head!r}: expected one of {', '.join(HEADS)}.")
        if self.train_cnn and not self.train_encoder:
            raise GmpError(
                "train_cnn true with train_encoder false: the CNN is part of the encoder."
            )


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


def projection(
    size_in: int, size: int, size_out: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear, ReLU, Linear: the paper's "linear projection module"; or with another non-linearity."""
    return nn.Sequential(nn.Linear(size_in, size), activation(), nn.Linear(size, size_out))


class LayerMix(nn.Module):
    """A weighted mean of all hidden states, its weights learnt.

    Yang et al., "SUPERB", 2021, section 3; weights are a softmax, equal at first, as in s3prl's
    featurizer without normalisation.
    """

    def __init__(self, n_layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_layers + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All layers alike."""
        nn.init.zeros_(self.weight)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Mix.

        Parameters
        ----------
        states : sequence of (batch, frames, dim) float32
            From the encoder's input, 0, to its last layer.

        Returns
        -------
        frames : (batch, frames, dim) float32
        """
        weights = self.weight.softmax(dim=0)
        return sum(weight * state for weight, state in zip(weights, states))


class UtteranceHead(nn.Module):
    """Frames to one feature per utterance.

    | head | what it does | where from |
    |---|---|---|
    | bilstm | BiLSTM, mean over time, projection | GMP-TL, figure 1 |
    | relu | mean over time, ReLU | V-FT, as in P-TAPT's section 2 |
    | linear | mean over time, a linear layer | SUPERB's emotion task |

    Parameters
    ----------
    dim : int
        Of the encoder's frames.
    head : str
    lstm_size : int
        Per direction; 0 leaves the BiLSTM out.
    projection_size : int
        Of the feature, but for "relu", whose feature has `dim`.
    """

    def __init__(
        self, dim: int, lstm_size: int = 256, projection_size: int = 256, head: str = "bilstm"
    ):
        super().__init__()
        directions = 2 if head == "bilstm" and lstm_size else 0
        self.lstm = nn.ModuleList(
            nn.LSTM(dim, lstm_size, batch_first=True) for _ in range(directions)
        )
        self.size = dim if head == "relu" else projection_size
        if head == "bilstm":
            width = 2 * lstm_size or dim
            self.projection = projection(width, projection_size, projection_size)
        else:
            self.projection = nn.ReLU() if head == "relu" else nn.Linear(dim, projection_size)

    def forward(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Summarise utterances.

        Parameters
        ----------
        frames : (batch, frames, dim) float32
        valid : (batch, frames) bool
            Padding is False, and comes last.

        Returns
        -------
        features : (batch, size) float32
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


class ClusterHeads(nn.Module):
    """One projection per stream of pseudo-labels, to the logits of its clusters.

    Parameters
    ----------
    dim : int
        Of the encoder's frames.
    scales : sequence of int
        Clusters of each stream.
    size : int
        Hidden units of each projection.
    activation : str
        Of these: "relu", or "tanh" as P-TAPT's.
    """

    def __init__(self, dim: int, scales: list[int], size: int = 256, activation: str = "relu"):
        super().__init__()
        kind = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        self.streams = nn.ModuleList(projection(dim, size, scale, kind) for scale in scales)

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
