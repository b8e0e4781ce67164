"""Networks that classify utterances, as stages 02 and 06 train them: an encoder, a head, classifiers."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from gmp_utils.data.corpus import Corpus
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import (
    CosineClassifier,
    HeadConfig,
    LayerMix,
    UtteranceHead,
    mean_over_time,
    projection,
)
from gmp_utils.models.losses import am_softmax

FRAME_HEAD = 128  # hidden units of the frames' classifier, as in P-TAPT's published code
LOSSES = ("ce", "ams", "ce-then-ams")


def tasks(alpha: float) -> tuple[str, ...]:
    """What is learnt of an utterance: its gender too, unless emotion has all the weight."""
    return ("emotion",) if alpha == 1 else ("emotion", "gender")


class UtteranceModel(SpeechModel):
    """An encoder and `UtteranceHead`."""

    def _build_heads(self, config) -> None:
        if config.mix_layers:
            self.mix = LayerMix(config.num_hidden_layers)
        sizes = config.lstm_size, config.projection_size
        self.head = UtteranceHead(config.hidden_size, *sizes, config.head)

    def frames(self, inputs: Tensor, lengths: Tensor, **masks: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads of each utterance, and where it is valid; see `SpeechModel.hidden_states`."""
        if self.config.mix_layers:
            layers = range(self.n_layers + 1)
            states, valid = self.hidden_states(inputs, lengths, layers=layers, **masks)
            return self.mix(states), valid
        layers = (self.config.head_layer,)
        (frames,), valid = self.hidden_states(inputs, lengths, layers=layers, **masks)
        return frames, valid

    def embed(self, inputs: Tensor, lengths: Tensor, **masks: Tensor) -> Tensor:
        """Feature of each utterance, (batch, head.size)."""
        return self.head(*self.frames(inputs, lengths, **masks))

    def emotion_loss(self, logits: Tensor, emotion: Tensor, valid: Tensor | None = None) -> Tensor:
        """Cross-entropy, averaged over utterances with the weights of their classes, if there are any.

        Parameters
        ----------
        logits : (batch, emotions) or (batch, frames, emotions) float32
            An utterance's frames are averaged first.
        emotion : (batch,) int64
        valid : (batch, frames) bool, optional
            With logits of frames.

        Returns
        -------
        loss : () float32
        """
        each = emotion if valid is None else emotion.unsqueeze(1).expand(valid.shape)
        losses = F.cross_entropy(logits.float().movedim(-1, 1), each, reduction="none")
        if valid is not None:
            losses = mean_over_time(losses.unsqueeze(-1), valid).squeeze(-1)
        if self.config.emotion_weights:
            losses = losses * losses.new_tensor(self.config.emotion_weights)[emotion]
        return losses.mean()


class MultitaskModel(UtteranceModel):
    """Of stage 02: classifies emotion; gender, unless α is 1; and frames, if they have a loss."""

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        self.emotion = nn.Linear(self.head.size, len(config.emotions))
        if "gender" in tasks(config.alpha):
            self.gender = nn.Linear(self.head.size, 2)
        if config.frame_weight:
            sizes = config.hidden_size, FRAME_HEAD, len(config.emotions)
            self.frame_emotion = projection(*sizes, nn.Tanh)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        emotion: Tensor,
        gender: Tensor | None = None,
        **masks: Tensor,
    ) -> dict[str, Tensor]:
        """Classify utterances, and compare with their labels.

        Parameters
        ----------
        inputs, lengths, **masks
            See `SpeechModel.hidden_states`.
        emotion, gender : (batch,) int64
            No gender where α is 1.

        Returns
        -------
        outputs : dict
            `loss` = α · CE(emotion) + (1 − α) · CE(gender), paper equation 1, + the weight of frames ·
            the mean CE of each frame with its utterance's emotion (P-TAPT, section 3.1);
            `emotion_logits` (batch, emotions) and, with gender, `gender_logits` (batch, 2); while
            training each part's loss.
        """
        frames, valid = self.frames(inputs, lengths, **masks)
        feature = self.head(frames, valid)
        alpha, frame_weight = self.config.alpha, self.config.frame_weight
        outputs = {"emotion_logits": self.emotion(feature)}
        losses = {"emotion_loss": self.emotion_loss(outputs["emotion_logits"], emotion)}
        loss = alpha * losses["emotion_loss"]
        if "gender" in tasks(alpha):
            outputs["gender_logits"] = self.gender(feature)
            losses["gender_loss"] = F.cross_entropy(outputs["gender_logits"].float(), gender)
            loss = loss + (1 - alpha) * losses["gender_loss"]
        if frame_weight:
            losses["frame_loss"] = self.emotion_loss(self.frame_emotion(frames), emotion, valid)
            loss = loss + frame_weight * losses["frame_loss"]
        return {"loss": loss, **outputs, **(losses if self.training else {})}


class EmotionClassifier(UtteranceModel):
    """Of stage 06: a linear (CE) or cosine (AM-Softmax) classifier."""

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        classifier = nn.Linear if config.loss == "ce" else CosineClassifier
        self.classifier = classifier(self.head.size, len(config.emotions))

    def logits(self, feature: Tensor) -> Tensor:
        """Logits, (batch, emotions), of utterances' features; for AM-Softmax they are scaled cosines."""
        return self._scaled(self.classifier(feature))

    def _scaled(self, scores: Tensor) -> Tensor:
        return scores if self.config.loss == "ce" else self.config.scale * scores

    def forward(
        self, inputs: Tensor, lengths: Tensor, emotion: Tensor, **masks: Tensor
    ) -> dict[str, Tensor]:
        """Classify utterances, and compare with their labels.

        Parameters
        ----------
        inputs, lengths, **masks
            See `SpeechModel.hidden_states`.
        emotion : (batch,) int64

        Returns
        -------
        outputs : dict
            `loss`, with the margin while training only, and `logits` (batch, emotions).
        """
        scores, config = self.classifier(self.embed(inputs, lengths, **masks)), self.config
        logits = self._scaled(scores)
        if config.loss == "ce":
            return {"loss": self.emotion_loss(logits, emotion), "logits": logits}
        margin = config.margin if self.training else 0.0
        loss = am_softmax(scores, emotion, config.scale, margin)
        return {"loss": loss, "logits": logits}


def load_classifier(
    kind: type[UtteranceModel],
    source: str,
    corpus: Corpus,
    train: list[str],
    network: HeadConfig,
    **own,
) -> UtteranceModel:
    """A classifier of a corpus's emotions, see `SpeechModel.load`.

    Parameters
    ----------
    kind : type
    source : str
    corpus : Corpus
    train : list of str
        Utterances that classes are counted in.
    network : Network
    **own
        Further settings that `kind` reads.
    """
    labels = corpus.labels(train, "emotion")
    counts = np.bincount(labels, minlength=len(corpus.emotions))
    rarity = len(labels) / (len(counts) * np.maximum(counts, 1))
    class_weights = rarity.tolist() if network.class_weights else []
    settings = vars(network) | {"emotions": corpus.emotions, "emotion_weights": class_weights}
    return kind.load(source, **settings, **own)
