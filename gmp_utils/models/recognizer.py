"""A trained classifier as a model of transformers' own kind: waveforms in, calibrated scores out.

It is one folder, which `AutoModelForAudioClassification` and `pipeline("audio-classification")` load after
`import gmp_utils`, without code from elsewhere.
"""

from dataclasses import dataclass

import torch
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

from gmp_utils.data.audio import SAMPLE_RATE
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.heads import mean_over_time


class RecognizerConfig(PretrainedConfig):
    """What a `Recognizer` is made of.

    Attributes
    ----------
    network : dict
        Configuration of the `EmotionClassifier`.
    temperature : float
        Its logits are divided by it, see `gmp_utils.evaluation.metrics.temperature`.
    has_gender_head : bool
        Whether there is a readout for it.
    ratings : list of str
        What there are readouts for, of valence, arousal and dominance.
    rating_ranges : list of [float, float, float]
        Lowest, mean and highest of each, of the training utterances.
    """

    model_type = "gmp-tl"
    network: dict | None = None
    temperature: float = 1.0
    has_gender_head: bool = False
    ratings: list | None = None
    rating_ranges: list | None = None

    def network_config(self) -> PretrainedConfig:
        """The same as transformers' configuration of that encoder."""
        return AutoConfig.for_model(**self.network)


@dataclass
class RecognizerOutput(ModelOutput):
    """What a `Recognizer` hears in utterances.

    Attributes
    ----------
    logits : (batch, emotions) float32
        Logarithms of calibrated probabilities.
    speech : (batch,) float32
        Probability that it is speech at all.
    female : (batch,) float32, optional
        Probability that the voice is a woman's.
    ratings : (batch, ratings) float32, optional
        On the corpus's scale, within the range of the training utterances.
    """

    logits: Tensor | None = None
    speech: Tensor | None = None
    female: Tensor | None = None
    ratings: Tensor | None = None


class Recognizer(PreTrainedModel):
    """An emotion classifier with its temperature, and linear readouts of its frames.

    Speech and gender are read where frames enter the Transformer, ratings where the classifier reads them.

    Where it hears no speech, probabilities go to chance: of `n` emotions each gets
    speech · softmax(logits / temperature) + (1 − speech) / n. So does that of a woman's voice, and ratings
    go to their mean.
    """

    config_class = RecognizerConfig
    main_input_name = "input_values"

    def __init__(self, config: RecognizerConfig):
        super().__init__(config)
        self.network = EmotionClassifier(config.network_config())
        size = self.network.config.hidden_size
        self.speech = nn.Linear(size, 1)
        self.female = nn.Linear(size, 1) if config.has_gender_head else None
        self.ratings = nn.Linear(size, len(config.ratings)) if config.ratings else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: all is read from a file, or set."""

    def raw(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What temperature and readouts are applied to.

        Parameters
        ----------
        inputs, lengths
            See `gmp_utils.models.encoder.SpeechModel.hidden_states`.

        Returns
        -------
        logits : (batch, emotions) float32
            As trained.
        entering : (batch, hidden_size) float32
            Mean of the frames that enter the Transformer: how it sounds.
        means : (batch, hidden_size) float32
            Mean of the frames that the classifier's head reads.
        """
        network, mixed = self.network, self.network.config.mix_layers
        layers = range(network.n_layers + 1) if mixed else (0, network.config.head_layer)
        states, valid = network.hidden_states(inputs, lengths, layers=layers)
        frames = network.mix(states) if mixed else states[1]
        entering, means = (mean_over_time(own, valid) for own in (states[0], frames))
        return network.logits(network.head(frames, valid)), entering, means

    def recognize(self, inputs: Tensor, lengths: Tensor) -> RecognizerOutput:
        """As `forward`, of inputs and lengths as `forward_uncalibrated` takes them."""
        logits, entering, means = self.raw(inputs, lengths)
        calibrated = (logits / self.config.temperature).softmax(dim=1)
        speech = self.speech(entering).sigmoid()
        chance, female, ratings = 1 / calibrated.shape[1], None, None
        calibrated = chance + speech * (calibrated - chance)
        if self.female:
            female = (0.5 + speech * (self.female(entering).sigmoid() - 0.5)).squeeze(1)
        if self.ratings:
            lowest, mean, highest = means.new_tensor(self.config.rating_ranges).T
            ratings = mean + speech * (self.ratings(means).clamp(lowest, highest) - mean)
        return RecognizerOutput(
            logits=calibrated.clamp_min(1e-9).log(),
            speech=speech.squeeze(1),
            female=female,
            ratings=ratings,
        )

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **_options
    ) -> RecognizerOutput:
        """Recognise utterances.

        Parameters
        ----------
        input_values : (batch, samples) float32
            16 kHz, each of zero mean and unit variance, zeros after its end, as the feature extractor
            in the model's folder makes them.
        attention_mask : (batch, samples) int64, optional
            1 where there are samples, 0 after the end.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.int64)
        return self.recognize(input_values, attention_mask.sum(dim=1))


def feature_extractor() -> Wav2Vec2FeatureExtractor:
    """What waveforms go through before a `Recognizer`."""
    return Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=True
    )


AutoConfig.register(RecognizerConfig.model_type, RecognizerConfig)


AutoFeatureExtractor.register(RecognizerConfig, Wav2Vec2FeatureExtractor)


AutoModelForAudioClassification.register(RecognizerConfig, Recognizer)
