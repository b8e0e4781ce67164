"""Modules on top of the encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from gmp_utils import GmpError, check_choice

HEADS = ("bilstm", "mean", "linear")
POOLINGS = ("mean", "mean+std", "attentive")
ATTENTION = 128  # hidden units of the attention, as in ECAPA-TDNN (Desplanques et al., 2020)
MIN_VARIANCE = 1e-10  # under the square root, whose gradient is infinite at 0


@dataclass(frozen=True)
class HeadConfig:
    """An utterance classifier's head, and what is trained."""

    head: str = "bilstm"  # see `UtteranceHead`
    pooling: str = "mean"  # over time, see `Pooling`
    dropout: float = 0.0  # of the feature, before the classifier
    head_layer: int = -1  # hidden state that is the head's input
    mix_layers: bool = False  # all hidden states are the input, see `LayerMix`
    lstm_size: int = 256  # per direction; 0 for no BiLSTM
    projection_size: int = 256  # of the feature, except with head "mean"
    train_encoder: bool = True  # if false, only the head is trained
    train_cnn: bool = False  # train the encoder's CNN too
    frozen_layers: int = 0  # number of lowest layers that are frozen, with the CNN; 0 for none
    lora_rank: int = 0  # rank of LoRA's updates; the rest of the encoder is frozen; 0 for no LoRA
    spec_augment: bool = False  # in training, see `gmp_utils.training.batching.SPEC_AUGMENT`
    class_weights: bool = False  # weight the cross-entropy by n / (n_classes · n of the class)

    def __post_init__(self):
        for name, choices in (("head", HEADS), ("pooling", POOLINGS)):
            check_choice(name, getattr(self, name), choices)
        partial_training = self.frozen_layers or self.lora_rank
        if min(self.frozen_layers, self.lora_rank) < 0:
            raise GmpError("frozen_layers and lora_rank: expected 0 or more.")
        if self.train_cnn and (partial_training or not self.train_encoder):
            raise GmpError("train_cnn: expected train_encoder, and no frozen_layers or lora_rank.")
        if partial_training and not self.train_encoder:
            raise GmpError("frozen_layers and lora_rank: expected train_encoder.")


def mean_over_time(frames: Tensor, weights: Tensor) -> Tensor:
    """Mean, (batch, dim), of frames, (batch, frames, dim), by weights or a mask, (batch, frames)."""
    weights = weights.unsqueeze(-1).to(frames.dtype)
    total = partial(torch.sum, dim=1, dtype=torch.float32)  # float16 would overflow
    return (total(frames * weights) / total(weights)).to(frames.dtype)


def projection(
    size_in: int, size: int, size_out: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear, ReLU (or another activation), linear: the paper's "linear projection module"."""
    return nn.Sequential(nn.Linear(size_in, size), activation(), nn.Linear(size, size_out))


class LayerMix(nn.Module):
    """A weighted mean of all hidden states. The weights are a softmax of parameters, initially uniform.

    Yang et al., "SUPERB", 2021, section 3. It equals s3prl's featurizer without normalization.
    """

    def __init__(self, n_layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_layers + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize uniform weights."""
        nn.init.zeros_(self.weight)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Mix hidden states, each (batch, frames, dim), from layer 0 to the last."""
        weights = self.weight.softmax(dim=0)
        return sum(weight * state for weight, state in zip(weights, states))


class Pooling(nn.Module):
    """Pool frames into one vector per utterance, of dimension `size`, by statistics over time.

    | pooling | statistics | source |
    |---|---|---|
    | mean | mean | GMP-TL, V-FT and SUPERB |
    | mean+std | mean and standard deviation | Snyder et al., "X-vectors", 2018 |
    | attentive | both, of frames weighted by attention | Okabe et al., "Attentive Statistics Pooling", 2018 |
    """

    def __init__(self, dim: int, pooling: str = "mean"):
        super().__init__()
        self.size = dim if pooling == "mean" else 2 * dim
        self.has_std = pooling != "mean"
        attentive = pooling == "attentive"
        self.attention = projection(dim, ATTENTION, 1, nn.Tanh) if attentive else None

    def forward(self, frames: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors, (batch, size), of frames, (batch, frames, dim), with a mask, (batch, frames)."""
        weights = attention_mask
        if self.attention:
            scores = self.attention(frames).squeeze(-1).masked_fill(~attention_mask, -math.inf)
            weights = scores.softmax(dim=1)
        mean = mean_over_time(frames, weights)
        if not self.has_std:
            return mean
        variance = mean_over_time((frames - mean.unsqueeze(1)) ** 2, weights)
        return torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()], dim=-1)


class UtteranceHead(nn.Module):
    """Map frames to one feature vector per utterance, of dimension `size`.

    | head | modules | source |
    |---|---|---|
    | bilstm | BiLSTM (unless `lstm_size` is 0), `Pooling`, projection | GMP-TL, figure 1 |
    | mean | `Pooling`, ReLU | V-FT, as in section 2 of P-TAPT |
    | linear | `Pooling`, a linear layer | SUPERB's emotion task |

    The feature has dropout, as in BertForSequenceClassification.
    """

    def __init__(self, dim: int, config: HeadConfig | PretrainedConfig):
        super().__init__()
        directions = 2 if config.head == "bilstm" and config.lstm_size else 0
        lstms = [nn.LSTM(dim, config.lstm_size, batch_first=True) for _ in range(directions)]
        self.lstm = nn.ModuleList(lstms)
        self.pooling = Pooling(directions * config.lstm_size or dim, config.pooling)
        size, projected = self.pooling.size, config.projection_size
        self.size = size if config.head == "mean" else projected
        if config.head == "bilstm":
            self.projection = projection(size, projected, projected)
        else:
            self.projection = nn.ReLU() if config.head == "mean" else nn.Linear(size, projected)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor, attention_mask: Tensor) -> Tensor:
        """Features, (batch, size), of frames, (batch, frames, dim), with a mask, (batch, frames)."""
        if self.lstm:
            forward, backward = self.lstm
            forward_states, _ = forward(frames)
            backward_states, _ = backward(_reverse(frames, attention_mask))
            backward_states = _reverse(backward_states, attention_mask)
            frames = torch.cat([forward_states, backward_states], dim=-1)
        return self.dropout(self.projection(self.pooling(frames, attention_mask)))


def _reverse(frames: Tensor, attention_mask: Tensor) -> Tensor:
    """Reverse each utterance's frames in time, but not its padding.

    Two LSTMs with this equal a bidirectional one with packed sequences, but are three times as fast on a CPU.
    """
    steps = torch.arange(frames.shape[1], device=frames.device)
    last = attention_mask.sum(dim=1, keepdim=True) - 1
    index = torch.where(attention_mask, last - steps, steps)
    return frames.gather(1, index.unsqueeze(-1).expand_as(frames))


class CosineClassifier(nn.Module):
    """Cosines of features with one vector per class, without bias."""

    def __init__(self, dim: int, n_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier initialization."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Cosines, (batch, n_classes), of features, (batch, dim)."""
        return F.normalize(features) @ F.normalize(self.weight).T


class ClusterHeads(nn.Module):
    """One projection per set of pseudo-labels (a stream), to the logits of its clusters.

    The activation is "relu", or "tanh" as in P-TAPT.
    """

    def __init__(self, dim: int, scales: Sequence[int], size: int = 256, activation: str = "relu"):
        super().__init__()
        layer = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        self.streams = nn.ModuleList(projection(dim, size, scale, layer) for scale in scales)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Logits, (n_frames, scale) for each stream, of frames, (n_frames, dim)."""
        return [stream(frames) for stream in self.streams]
