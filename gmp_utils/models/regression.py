"""Regression of valence, arousal and dominance, optionally conditioned on a speaker embedding.

A regression head is called an interpreter here, as in PAPT's published code (arXiv 2309.02418).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from gmp_utils import check_choice
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import mean_over_time
from gmp_utils.models.losses import concordance_loss
from gmp_utils.models.masked_prediction import MaskedPredictionModel

# A speaker embedding is added to the frames that enter the Transformer, prepended to them, or added to the
# last layer's frames (PAPT's ablation).
SPEAKER_POSITIONS = ("none", "input", "prefix", "output")
WIDTH = 128  # of the small Transformer
REPRESENTATIONS = ("none", "mean", "max", "learned", "papt")
ADAPTATIONS = ("all", "unique", "oversampling", "weighting")


def all_gather_ragged(rows: Tensor) -> Tensor:
    """Concatenate (n, ...) rows of all processes, where n may differ.

    Gradients are summed over the processes, so they are correct after the processes average them.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    sizes = torch.cat(all_gather(torch.tensor([len(rows)], device=rows.device))).tolist()
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    gathered = all_gather(torch.cat([rows, padding]).contiguous())
    return torch.cat([padded[:size] for padded, size in zip(gathered, sizes)])


class MlpInterpreter(nn.Module):
    """Mean over time, then dim → 128 → 32 → ratings, as in PAPT's published evaluation code.

    The speaker embedding is added to every frame. Batch-norm statistics are those of each process's share.
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
        """Ratings (batch, n_ratings) of frames (batch, frames, dim) with an embedding (batch, dim)."""
        x = mean_over_time(frames, attention_mask)
        self.layers.train(self.training and len(x) > 1)  # running statistics for one utterance
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


INTERPRETERS = {"mlp": MlpInterpreter, "transformer": TransformerInterpreter}


@dataclass(frozen=True)
class RatingModelConfig:
    """A system: speaker representation, regression head, and adaptation to the test speakers.

    `position` is where PAPT's embedding is added. With "none", masked prediction is continued without one.

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
        choices = REPRESENTATIONS, INTERPRETERS, SPEAKER_POSITIONS, ADAPTATIONS
        for (field, value), allowed in zip(vars(self).items(), choices):
            if value is not None:
                check_choice(field, value, allowed)

    @property
    def name(self) -> str:
        """Name in tables and folders."""
        position = self.position if self.representation == "papt" else None
        parts = (self.representation, position, self.interpreter, self.adaptation)
        return "-".join(filter(None, parts))

    @property
    def initial_model(self) -> str | None:
        """The stage whose model training starts from, or None for the pre-trained encoder."""
        if self.adaptation:
            return replace(self, adaptation=None).name
        return f"papt-{self.position}" if self.representation == "papt" else None

    @property
    def references(self) -> list[str]:
        """Names of the systems that this one is compared with, which differ from it in one field."""
        if self.representation == "papt" and self.position == "none":
            return []
        changes = [{"representation": "none"}, {"position": "none"}]
        changes = [{"adaptation": "all"}] if self.adaptation else changes
        names = [replace(self, **change).name for change in changes]
        return [name for name in names if name != self.name]

    @property
    def has_fixed_embeddings(self) -> bool:
        """Whether speaker embeddings are computed from utterances by the pre-trained encoder."""
        return self.representation in ("mean", "max")

    @property
    def learns_embeddings(self) -> bool:
        """Whether an embedding of each training speaker is among the weights."""
        by_papt = self.representation == "papt" and self.position != "none"
        return by_papt or self.representation == "learned"


def rating_model_configs(
    representations: Sequence[str], interpreters: Sequence[str], positions: Sequence[str]
) -> list[RatingModelConfig]:
    """All pairs of representation and interpreter; only the first one has positions other than "output"."""
    pairs = [(name, head) for head in interpreters for name in representations if name != "papt"]
    configs = [RatingModelConfig(representation, head) for representation, head in pairs]
    if "papt" in representations:
        first, *later = interpreters
        configs += [RatingModelConfig("papt", first, position) for position in positions]
        configs += [RatingModelConfig("papt", head) for head in later if "output" in positions]
    return configs


class SpeakerEmbeddings(nn.Linear):
    """Map weights of speakers, (batch, n_speakers), to embeddings, (batch, dim)."""

    def reset_parameters(self) -> None:
        """Zero-initialize the embeddings."""
        nn.init.zeros_(self.weight)


class SpeakerConditionedModel(SpeechModel):
    """An encoder that takes a speaker embedding at one of `SPEAKER_POSITIONS`."""

    def _build_heads(self, config) -> None:
        if config.n_speakers:
            self.speakers = SpeakerEmbeddings(config.n_speakers, config.hidden_size, False)
        super()._build_heads(config)

    def hidden_states(self, *args, speaker: Tensor | None = None, **kwargs):
        """`SpeechModel.hidden_states`, with the weights of speakers, (batch, n_speakers) float32."""
        embedding = None if speaker is None else self.speakers(speaker).unsqueeze(1)
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
    """An encoder and an interpreter of its last layer's frames, which are the inputs if it is frozen.

    The loss is computed on the whole batch of all processes.
    """

    loss_of_batch = True

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        interpreter = INTERPRETERS[config.interpreter]
        self.interpreter = interpreter(config.hidden_size, len(config.attributes))
        if config.fixed_embeddings:
            self.project = nn.Linear(config.hidden_size, config.hidden_size)

    def predict(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None = None, **_targets: Tensor
    ) -> dict[str, Tensor]:
        """`ratings` (batch, attributes) on the corpus's scale, and `features` (batch, dim).

        `speaker` holds weights of training speakers, (batch, n_speakers), or fixed embeddings, (batch, dim).
        Features are the frames' mean over time, plus the embedding where the interpreter gets one.
        """
        config, embedding = self.config, None
        inside = config.speaker_position in ("input", "prefix")
        if self.train_encoder:
            condition = speaker if inside else None
            (frames,), attention_mask = self.hidden_states(inputs, lengths, speaker=condition)
        else:
            frames = inputs.float()
            attention_mask = torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]
        features = mean_over_time(frames, attention_mask)
        if speaker is not None and not (inside and config.interpreter == "mlp"):
            embedding = (self.project if config.fixed_embeddings else self.speakers)(speaker)
            features = features + embedding
        ratings = self.interpreter(frames, attention_mask, embedding)
        mean, std = map(ratings.new_tensor, (config.label_mean, config.label_std))
        return {"ratings": ratings * std + mean, "features": features}

    def forward(
        self, inputs: Tensor, lengths: Tensor, ratings: Tensor, sample_weight: Tensor, **speaker
    ) -> dict[str, Tensor]:
        """`concordance_loss`, and `predicted` ratings, (batch, attributes); see `predict`."""
        predicted = self.predict(inputs, lengths, **speaker)["ratings"]
        compared = predicted, ratings, sample_weight
        if self.training:
            compared = map(all_gather_ragged, compared)
        return {"loss": concordance_loss(*compared), "predicted": predicted}
