"""A published emotion classifier for transformers' AutoModelForAudioClassification and pipeline.

Importing this module registers it with transformers' Auto classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import ModelOutput, can_return_tuple

from gmp_utils import GmpError
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.heads import mean_over_time
from gmp_utils.runs import hardware


class RecognizerConfig(PretrainedConfig):
    """Configuration of a `Recognizer`."""

    model_type = "gmp-tl"
    keys_to_ignore_at_inference: ClassVar = ["female", "ratings"]  # by transformers' Trainer
    network: dict | None = None  # configuration of its `EmotionClassifier`
    temperature: float = 1.0
    has_gender_head: bool = False
    ratings: list | None = None
    rating_ranges: list | None = None  # of the training utterances; outputs are clamped to them


@dataclass
class RecognizerOutput(ModelOutput):
    """Mean cross-entropy, calibrated logits, hidden states, probability of a female voice, and ratings."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (batch, emotions)
    hidden_states: tuple[Tensor, ...] | None = None  # see `SpeechModel.hidden_states`
    female: Tensor | None = None  # (batch,)
    ratings: Tensor | None = None  # (batch, ratings)


class Recognizer(PreTrainedModel):
    """An emotion classifier with its temperature, and linear heads for gender and ratings.

    The input of the gender head is the mean of the frames that enter the Transformer. The input of the rating
    head is the mean of the frames that enter the emotion head.
    """

    config_class = RecognizerConfig
    main_input_name = "input_values"

    def __init__(self, config: RecognizerConfig):
        super().__init__(config)
        self.network = EmotionClassifier(AutoConfig.for_model(**config.network))
        size = self.network.config.hidden_size
        self.gender_head = nn.Linear(size, 1) if config.has_gender_head else None
        self.rating_head = nn.Linear(size, len(config.ratings)) if config.ratings else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """No-op: weights are loaded or fitted."""

    def forward_uncalibrated(
        self, inputs: Tensor, lengths: Tensor, *, all_layers: bool = False
    ) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Uncalibrated logits, and the inputs of the rating head (`mean`) and gender head (`layer0_mean`).

        With `all_layers`, all hidden states are returned too, as `states`. See `SpeechModel.hidden_states`
        for the arguments.
        """
        network, mixed = self.network, self.network.config.mix_layers
        layers = range(network.n_layers + 1 if mixed or all_layers else 1)
        layers = [*layers, network.config.head_layer]
        (*states, frames), valid = network.hidden_states(inputs, lengths, layers=layers)
        if mixed:
            frames = network.mix(states)
        logits = network.logits(network.head(frames, valid)).float()
        mean, layer0_mean = mean_over_time(frames, valid), mean_over_time(states[0], valid)
        outputs = {"logits": logits, "mean": mean, "layer0_mean": layer0_mean}
        return outputs | ({"states": tuple(states)} if all_layers else {})

    def recognize(
        self,
        inputs: Tensor,
        lengths: Tensor,
        labels: Tensor | None = None,
        *,
        all_layers: bool = False,
    ) -> RecognizerOutput:
        """Same as `forward`, with the inputs of `forward_uncalibrated`."""
        outputs = self.forward_uncalibrated(inputs, lengths, all_layers=all_layers)
        loss = female = ratings = None
        logits, states = outputs["logits"] / self.config.temperature, outputs.get("states")
        if labels is not None:
            loss = F.cross_entropy(logits, labels)
        if self.gender_head:
            female = self.gender_head(outputs["layer0_mean"]).sigmoid().squeeze(1)
        if self.rating_head:
            lowest, highest = outputs["mean"].new_tensor(self.config.rating_ranges).T
            ratings = self.rating_head(outputs["mean"]).clamp(lowest, highest)
        return RecognizerOutput(loss, logits, states, female, ratings)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> RecognizerOutput:
        """Classify waveforms, (batch, samples), as Wav2Vec2FeatureExtractor returns them.

        They have 16 kHz, zero mean and unit variance. The padding is zero, and so is its mask. With
        `labels`, (batch,) int64, the output has a loss.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.int64)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        lengths = attention_mask.sum(dim=1)
        return self.recognize(input_values, lengths, labels, all_layers=output_hidden_states)


def load_recognizer(model: str | Path) -> Recognizer:
    """Open a published model: a folder, or a name on the hub."""
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        if not isinstance(config, RecognizerConfig):
            raise ValueError(f"a {config.model_type} model, expected {RecognizerConfig.model_type}")
        recognizer, report = Recognizer.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {min(report['missing_keys'])}")
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = f"model {str(model)!r}: {str(error).splitlines()[0]}"
        raise GmpError(f"{reason}. Expected a model published by notebook 09.") from error
    return recognizer.eval().to(hardware.device())


AutoConfig.register(RecognizerConfig.model_type, RecognizerConfig)
AutoFeatureExtractor.register(RecognizerConfig, Wav2Vec2FeatureExtractor)
AutoModelForAudioClassification.register(RecognizerConfig, Recognizer)
