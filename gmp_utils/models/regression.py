"""Regression of valence, arousal and dominance, optionally conditioned on a speaker embedding.

A regression head is called an interpreter here, as in PAPT's published code (arXiv 2309.02418).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from gmp_utils import GmpError
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import mean_over_time
from gmp_utils.models.losses import concordance_loss
from gmp_utils.models.masked_prediction import MaskedPredictionModel

# Where a speaker embedding goes: added to the frames that enter the Transformer, prepended to them, or added
# to the last layer's frames (PAPT's ablation).
SPEAKER_POSITIONS = ("none", "input", "prefix", "output")
INTERPRETERS = ("mlp", "transformer")
WIDTH = 128  # of the small Transformer
REPRESENTATIONS = ("none", "mean", "max", "learned", "papt")
ADAPTATIONS = ("all", "unique", "oversampling", "weighting")


def all_gather_ragged(rows: Tensor) -> Tensor:
    """Concatenate (n, ...) rows of all processes, where n may differ.

    Gradients are summed over the processes, so they are right once the processes average them.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    sizes = torch.cat(counts).tolist()
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    gathered = all_gather(torch.cat([rows, padding]).contiguous())
    return torch.cat([padded[:size] for padded, size in zip(gathered, sizes)])


class MlpInterpreter(nn.Module):
    """Mean over time, then dim → 128 → 32 → ratings, as in PAPT's published evaluation code.

    ReLU, dropout of 0.1 and batch norm after either hidden layer. The speaker embedding is added to every
    frame. With several processes, batch statistics are those of each process.
    """

    def __init__(self, dim: int, n_ratings: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(dim, 128), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(128)),
            *(nn.Linear(128, 32), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(32)),
            nn.Linear(32, n_ratings),
        )

    def forward(
        self, frames: Tensor, attention_mask: Tensor, embedding: Tensor | None = None
    ) -> Tensor:
        """Ratings (batch, n_ratings) of frames (batch, frames, dim); `embedding` is (batch, dim)."""
        x = mean_over_time(frames, attention_mask)
        self.layers.train(self.training and len(x) > 1)  # one utterance: running statistics
        return self.layers(x if embedding is None else x + embedding)


class TransformerInterpreter(nn.Module):
    """Two layers of width 128 over [speaker embedding; frames], read out at the first token."""

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
        """Zero-initialize the first token."""
        nn.init.zeros_(self.first)

    def forward(
        self, frames: Tensor, attention_mask: Tensor, embedding: Tensor | None = None
    ) -> Tensor:
        """Ratings (batch, n_ratings); see `MlpInterpreter`."""
        x = self.project(frames)
        first = self.first.expand(len(x), 1, -1)
        if embedding is not None:
            first = first + self.project(embedding).unsqueeze(1)
        padding = F.pad(~attention_mask, (1, 0), value=False)
        states = self.encoder(torch.cat([first, x], dim=1), src_key_padding_mask=padding)
        return self.output(states[:, 0])


@dataclass(frozen=True)
class RatingModelConfig:
    """A system: speaker representation, regression head, and adaptation to the test speakers.

    `position` is that of PAPT's embedding; "none" continues masked prediction without one.

    | representation | speaker embedding |
    |---|---|
    | none | none |
    | mean, max | mean, or maximum, of the speaker's utterances by the pre-trained encoder |
    | learned | learned with the ratings |
    | papt | learned during continued masked prediction (`PaptModel`), then with the ratings |
    """

    representation: str = "none"
    interpreter: str = "mlp"
    position: str = "output"
    adaptation: str | None = None

    def __post_init__(self):
        for field, allowed in (
            ("representation", REPRESENTATIONS),
            ("interpreter", INTERPRETERS),
            ("position", SPEAKER_POSITIONS),
            ("adaptation", ADAPTATIONS),
        ):
            value = getattr(self, field)
            if value is not None and value not in allowed:
                raise GmpError(f"{field} {value!r}: expected one of {', '.join(allowed)}.")

    @property
    def name(self) -> str:
        """In tables and folders."""
        position = self.position if self.representation == "papt" else None
        parts = (self.representation, position, self.interpreter, self.adaptation)
        return "-".join(filter(None, parts))

    @property
    def initial_model(self) -> str | None:
        """The stage whose model training starts from; None for the pre-trained encoder."""
        if self.adaptation:
            return replace(self, adaptation=None).name
        return f"papt-{self.position}" if self.representation == "papt" else None

    @property
    def references(self) -> list[str]:
        """Names of the systems that this one is compared with, as it differs from them in one thing."""
        if self.representation == "papt" and self.position == "none":
            return []
        names = [replace(self, representation="none").name, replace(self, position="none").name]
        if self.adaptation:
            names = [replace(self, adaptation="all").name]
        return [name for name in names if name != self.name]

    @property
    def learns_embeddings(self) -> bool:
        """Whether an embedding of each training speaker is among the weights."""
        from_papt = self.representation == "papt" and self.position != "none"
        return self.representation == "learned" or from_papt


def rating_model_configs(
    representations: Sequence[str], interpreters: Sequence[str], positions: Sequence[str]
) -> list[RatingModelConfig]:
    """All representations with all interpreters; PAPT's positions with the first, "output" with all."""
    configs = [
        RatingModelConfig(representation, interpreter)
        for interpreter in interpreters
        for representation in representations
        if representation != "papt"
    ]
    if "papt" in representations:
        first, *others = interpreters
        configs += [RatingModelConfig("papt", first, position) for position in positions]
        configs += [RatingModelConfig("papt", other) for other in others if "output" in positions]
    return configs


class SpeakerEmbeddings(nn.Linear):
    """From weights of speakers, (batch, n_speakers), to embeddings, (batch, dim); zero-initialized."""

    def reset_parameters(self) -> None:
        """Zero-initialize."""
        nn.init.zeros_(self.weight)


class SpeakerConditionedModel(SpeechModel):
    """An encoder that takes a speaker embedding at one of `SPEAKER_POSITIONS`."""

    def _build_heads(self, config) -> None:
        if config.n_speakers:
            self.speakers = SpeakerEmbeddings(config.n_speakers, config.hidden_size, False)
        super()._build_heads(config)

    def hidden_states(self, *args, speaker: Tensor | None = None, **kwargs):
        """`SpeechModel.hidden_states`, with the weights of speakers, (batch, n_speakers) float32."""
        embedding = None
        if speaker is not None and self.config.speaker_position != "none":
            embedding = self.speakers(speaker).unsqueeze(1)
        return super().hidden_states(*args, embedding=embedding, **kwargs)

    def _embed(self, *args, embedding: Tensor | None) -> Tensor:
        x = super()._embed(*args)
        added = embedding is not None and self.config.speaker_position == "input"
        return x + embedding.to(x) if added else x

    def _run_layers(self, x: Tensor, attention_mask: Tensor, indices, embedding: Tensor | None):
        position = "none" if embedding is None else self.config.speaker_position
        if position == "prefix":
            x = torch.cat([embedding.to(x), x], dim=1)
            attention_mask = F.pad(attention_mask, (1, 0), value=True)
        states = super()._run_layers(x, attention_mask, indices)
        if position == "prefix":
            return {index: state[:, 1:] for index, state in states.items()}
        if position == "output" and self.n_layers in states:
            states[self.n_layers] = states[self.n_layers] + embedding
        return states


class PaptModel(SpeakerConditionedModel, MaskedPredictionModel):
    """Masked prediction with an embedding for each training speaker."""


class AttributeModel(SpeakerConditionedModel):
    """An encoder, and an interpreter of its last layer's frames.

    Where the encoder is not trained, the inputs are these frames, computed once. The loss is that of a whole
    batch, of all processes together.
    """

    loss_of_batch = True

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        head = {"mlp": MlpInterpreter, "transformer": TransformerInterpreter}[config.interpreter]
        self.interpreter = head(config.hidden_size, len(config.attributes))
        if config.fixed_embeddings:
            self.project = nn.Linear(config.hidden_size, config.hidden_size)

    def encode(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames, their attention mask, and the speaker embedding for the interpreter."""
        embedding = None
        if speaker is not None:
            embed = self.project if self.config.fixed_embeddings else self.speakers
            embedding = embed(speaker)
        inside = self.config.speaker_position in ("input", "prefix")
        if self.train_encoder:
            (frames,), attention_mask = self.hidden_states(
                inputs, lengths, speaker=speaker if inside else None
            )
        else:
            frames = inputs.float()
            attention_mask = torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]
        if inside and self.config.interpreter == "mlp":
            embedding = None  # the frames contain it
        return frames, attention_mask, embedding

    def predict(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ratings (batch, attributes) on the corpus's scale, and features (batch, dim).

        Features are the frames' mean over time, plus the embedding where the interpreter gets one.
        """
        frames, attention_mask, embedding = self.encode(inputs, lengths, speaker)
        ratings = self.interpreter(frames, attention_mask, embedding)
        mean, std = map(ratings.new_tensor, (self.config.label_mean, self.config.label_std))
        ratings, means = ratings * std + mean, mean_over_time(frames, attention_mask)
        return ratings, means if embedding is None else means + embedding

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        ratings: Tensor,
        speaker: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, see `concordance_loss`, and `predicted` (batch, attributes).

        `ratings` is (batch, attributes), `sample_weight` (batch,). `speaker` holds weights of training
        speakers, (batch, n_speakers), or fixed embeddings, (batch, hidden_size).
        """
        predicted, _ = self.predict(inputs, lengths, speaker)
        if sample_weight is None:
            sample_weight = torch.ones_like(ratings[:, 0])
        compared = predicted, ratings, sample_weight
        if self.training:
            compared = map(all_gather_ragged, compared)
        return {"loss": concordance_loss(*compared), "predicted": predicted}
