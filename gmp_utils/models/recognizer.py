"""A published emotion classifier, as transformers' AutoModelForAudioClassification and pipeline load it.

Importing this module registers it with transformers' Auto classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import ModelOutput

from gmp_utils import GmpError
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.heads import mean_over_time
from gmp_utils.runs import hardware


class RecognizerConfig(PretrainedConfig):
    """Configuration of a `Recognizer`."""

    model_type = "gmp-tl"
    network: dict | None = None  # configuration of its `EmotionClassifier`
    temperature: float = 1.0
    has_gender_head: bool = False
    ratings: list | None = None
    rating_ranges: list | None = None  # of the training utterances; outputs are clamped to them


@dataclass
class RecognizerOutput(ModelOutput):
    """Calibrated logits, probability of a female voice, and ratings."""

    logits: Tensor | None = None  # (batch, emotions)
    female: Tensor | None = None  # (batch,)
    ratings: Tensor | None = None  # (batch, ratings)


class Recognizer(PreTrainedModel):
    """An emotion classifier with its temperature, and linear heads for gender and ratings.

    The input of the gender head is the mean of the frames that enter the Transformer, that of the rating
    head the mean of the emotion head's input.
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

    def forward_uncalibrated(self, inputs: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Logits as trained, and the inputs of the rating head (`mean`) and the gender head (`layer0_mean`).

        See `SpeechModel.hidden_states` for the arguments.
        """
        network, mixed = self.network, self.network.config.mix_layers
        layers = range(network.n_layers + 1) if mixed else (0, network.config.head_layer)
        states, valid = network.hidden_states(inputs, lengths, layers=layers)
        frames = network.mix(states) if mixed else states[-1]
        logits = network.logits(network.head(frames, valid)).float()
        mean, layer0_mean = mean_over_time(frames, valid), mean_over_time(states[0], valid)
        return {"logits": logits, "mean": mean, "layer0_mean": layer0_mean}

    def recognize(self, inputs: Tensor, lengths: Tensor) -> RecognizerOutput:
        """As `forward`, with the inputs of `forward_uncalibrated`."""
        outputs = self.forward_uncalibrated(inputs, lengths)
        female = ratings = None
        if self.gender_head:
            female = self.gender_head(outputs["layer0_mean"]).sigmoid().squeeze(1)
        if self.rating_head:
            lowest, highest = outputs["mean"].new_tensor(self.config.rating_ranges).T
            ratings = self.rating_head(outputs["mean"]).clamp(lowest, highest)
        return RecognizerOutput(outputs["logits"] / self.config.temperature, female, ratings)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **_options
    ) -> RecognizerOutput:
        """Classify waveforms, (batch, samples), as Wav2Vec2FeatureExtractor returns them.

        They have 16 kHz, zero mean, unit variance, and zeros in the padding, where the mask is 0.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.int64)
        return self.recognize(input_values, attention_mask.sum(dim=1))


def load_recognizer(model: str | Path) -> Recognizer:
    """Open a published model: a folder, or a name on the hub."""
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        if not isinstance(config, RecognizerConfig):
            raise ValueError(f"a {config.model_type} model, expected {RecognizerConfig.model_type}")
        recognizer, report = Recognizer.from_pretrained(
            model, use_safetensors=True, output_loading_info=True
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
