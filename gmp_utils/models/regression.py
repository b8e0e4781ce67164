"""Continuous emotion: valence, arousal and dominance, rated by a network that may be told who speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from gmp_utils import GmpError
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import mean_over_time
from gmp_utils.models.losses import concordance_loss
from gmp_utils.models.masked_prediction import MaskedPredictionModel

# Where a speaker's embedding goes: added to the frames that enter the Transformer, prepended to them as one more
# frame, or added to the last layer's frames (the ablation of PAPT, arXiv 2309.02418).
SPEAKER_POSITIONS = ("none", "input", "prefix", "output")
INTERPRETERS = ("mlp", "transformer")
WIDTH = 128  # of the small Transformer
REPRESENTATIONS = ("none", "mean", "max", "learned", "papt")


def all_gather_ragged(rows: Tensor) -> Tensor:
    """The rows of all processes, one after the other; gradients go back to each one's own.

    Summed over the processes, as often as there are: they are right once the processes average theirs.

    Parameters
    ----------
    rows : (n, ...) Tensor
        n may differ from process to process.

    Returns
    -------
    rows : (n of all, ...) Tensor
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    each = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(each, own)
    counts = torch.cat(each).tolist()
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    padded = all_gather(torch.cat([rows, padding]).contiguous())
    return torch.cat([own[:count] for own, count in zip(padded, counts)])


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all processes' utterances; one alone, which varies nowhere, gets past statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        everyone = all_gather_ragged(input) if self.training else input
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


@dataclass(frozen=True)
class RatingModelConfig:
    """What is told of a speaker, and what rates.

    Attributes
    ----------
    representation : str
        | representation | the speaker's vector |
        |---|---|
        | none | there is none |
        | mean, max | mean, or maximum, of the speaker's utterances by the untouched encoder |
        | learnt | learnt with the ratings |
        | papt | learnt while masked prediction goes on, then with the ratings |
    interpreter : str
        "mlp" or "transformer".
    position : str
        Of PAPT's vector, see `SPEAKER_POSITIONS`; "none" goes on without one.
    """

    representation: str = "none"
    interpreter: str = "mlp"
    position: str = "output"

    def __post_init__(self):
        for name, known in (
            ("representation", REPRESENTATIONS),
            ("interpreter", INTERPRETERS),
            ("position", SPEAKER_POSITIONS),
        ):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise GmpError(f"{name} {found!r}: expected one of {', '.join(known)}.")

    @property
    def name(self) -> str:
        """In tables and folders."""
        where = f"-{self.position}" if self.representation == "papt" else ""
        return f"{self.representation}{where}-{self.interpreter}"

    @property
    def learns_embeddings(self) -> bool:
        """Whether there is a vector for each training speaker among the weights."""
        from_papt = self.representation == "papt" and self.position != "none"
        return self.representation == "learned" or from_papt


def rating_model_configs(
    representations: Sequence[str], interpreters: Sequence[str], positions: Sequence[str]
) -> list[RatingModelConfig]:
    """All representations with all interpreters; PAPT's positions with the first, "output" with all.

    Parameters
    ----------
    representations, interpreters, positions : sequence of str
        See `RatingModelConfig`.
    """
    first, *others = interpreters
    found = [
        RatingModelConfig(told, rates)
        for rates in interpreters
        for told in representations
        if told != "papt"
    ]
    if "papt" in representations:
        found += [RatingModelConfig("papt", first, position) for position in positions]
        found += [RatingModelConfig("papt", rates) for rates in others if "output" in positions]
    return found


class SpeakerTable(nn.Module):
    """One embedding per speaker, zero-initialized."""

    def __init__(self, n_speakers: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_speakers, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero-initialize."""
        nn.init.zeros_(self.weight)

    def forward(self, speaker: Tensor) -> Tensor:
        """Embeddings, (batch, dim), for weights of speakers, (batch, n_speakers)."""
        return speaker @ self.weight


class SpeakerConditionedModel(SpeechModel):
    """An encoder that takes a speaker embedding at one of `SPEAKER_POSITIONS`."""

    def _build_heads(self, config) -> None:
        if config.n_speakers:
            self.speakers = SpeakerTable(config.n_speakers, config.hidden_size)
        super()._build_heads(config)

    def hidden_states(self, *args, speaker: Tensor | None = None, **kwargs):
        """`SpeechModel.hidden_states`, with the weights of speakers, (batch, n_speakers) float32."""
        vector = None
        if speaker is not None and self.config.speaker_position != "none":
            vector = self.speakers(speaker).unsqueeze(1)
        return super().hidden_states(*args, vector=vector, **kwargs)

    def _embed(self, *args, vector: Tensor | None) -> Tensor:
        x = super()._embed(*args)
        added = vector is not None and self.config.speaker_position == "input"
        return x + vector.to(x) if added else x

    def _run_layers(self, x: Tensor, attention_mask: Tensor, indices, vector: Tensor | None):
        position = "none" if vector is None else self.config.speaker_position
        if position == "prefix":
            x = torch.cat([vector.to(x), x], dim=1)
            attention_mask = F.pad(attention_mask, (1, 0), value=True)
        states = super()._run_layers(x, attention_mask, indices)
        if position == "prefix":
            return {index: state[:, 1:] for index, state in states.items()}
        if position == "output" and self.n_layers in states:
            states[self.n_layers] = states[self.n_layers] + vector
        return states


class PaptModel(SpeakerConditionedModel, MaskedPredictionModel):
    """Masked prediction with an embedding for each training speaker."""


class AttributeModel(SpeakerConditionedModel):
    """An encoder and an interpreter of its last layer's frames.

    Where the encoder is not trained the frames themselves are its inputs, once computed for all epochs. The
    loss is that of a whole batch, of all processes together, and cannot be computed in pieces.
    """

    loss_of_batch = True

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        sizes = config.hidden_size, len(config.attributes)
        kind = {"mlp": MlpInterpreter, "transformer": TransformerInterpreter}[config.interpreter]
        self.interpreter = kind(*sizes)
        if config.fixed_vectors:
            self.project = nn.Linear(config.hidden_size, config.hidden_size)

    def read(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames, where they are valid, and what the interpreter is told of the speaker."""
        vector = None
        if speaker is not None:
            vector = self.project(speaker) if self.config.fixed_vectors else self.speakers(speaker)
        inside = self.config.speaker_position in ("input", "prefix")
        if self.train_encoder:
            (frames,), valid = self.hidden_states(
                inputs, lengths, speaker=speaker if inside else None
            )
        else:
            frames = inputs.float()
            valid = torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]
        if inside and self.config.interpreter == "mlp":
            vector = None  # the frames have it
        return frames, valid, vector

    def rate(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rate utterances.

        Returns
        -------
        ratings : (batch, attributes) float32
            On the corpus's scale.
        features : (batch, dim) float32
            Mean over time of each utterance's frames, with the vector where it is added.
        """
        spread, offset = (
            inputs.new_tensor(each, dtype=torch.float32)
            for each in (self.config.spread, self.config.offset)
        )
        frames, valid, vector = self.read(inputs, lengths, speaker)
        means = mean_over_time(frames, valid)
        ratings = self.interpreter(frames, valid, vector) * spread + offset
        return ratings, means if vector is None else means + vector

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        ratings: Tensor,
        speaker: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Rate utterances, and compare.

        Parameters
        ----------
        inputs, lengths
            See `SpeechModel.hidden_states`; or frames, where the encoder is not trained.
        ratings : (batch, attributes) float32
        speaker : (batch, n_speakers) or (batch, hidden_size) float32, optional
            How much of each speaker's vector, or a vector.
        weight : (batch,) float32, optional

        Returns
        -------
        outputs : dict
            `loss`, see `concordance_loss`, and `predicted` (batch, attributes).
        """
        predicted, _ = self.rate(inputs, lengths, speaker)
        weight = torch.ones_like(ratings[:, 0]) if weight is None else weight
        compared = predicted, ratings, weight
        if self.training:
            compared = map(all_gather_ragged, compared)
        return {"loss": concordance_loss(*compared), "predicted": predicted}
