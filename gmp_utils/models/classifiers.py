"""Utterance classifiers of stages 02 and 06: an encoder, a head and linear or cosine classifiers."""

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from gmp_utils.data.corpus import Corpus
from gmp_utils.models import heads
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.losses import am_softmax

FRAME_HEAD = 128  # hidden units of the frame classifier, as in P-TAPT's code
GENDER_UAR = 0.8  # minimum for learned gender; probes of the embedded encoder have 0.94 on EmoDB


def tasks(alpha: float) -> tuple[str, ...]:
    """Tasks of the multi-task model: only the emotion if α is 1."""
    return ("emotion",) if alpha == 1 else ("emotion", "gender")


class UtteranceModel(SpeechModel):
    """An encoder and an `UtteranceHead`."""

    def _build_heads(self, config) -> None:
        if config.mix_layers:
            self.mix = heads.LayerMix(config.num_hidden_layers)
        self.head = heads.UtteranceHead(config.hidden_size, config)

    def frames(self, inputs: Tensor, lengths: Tensor, **masks: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the head, (batch, frames, dim), and its attention mask; see `hidden_states`."""
        mixed = self.config.mix_layers
        layers = range(self.n_layers + 1) if mixed else (self.config.head_layer,)
        states, attention_mask = self.hidden_states(inputs, lengths, layers=layers, **masks)
        return self.mix(states) if mixed else states[0], attention_mask

    def embed(self, inputs: Tensor, lengths: Tensor, **masks: Tensor) -> Tensor:
        """Embedding of each utterance, (batch, head.size)."""
        return self.head(*self.frames(inputs, lengths, **masks))

    def emotion_loss(
        self, logits: Tensor, emotion: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy over utterances, with class weights if the model has any.

        Logits are (batch, emotions), or (batch, frames, emotions) with an attention mask. Losses of frames
        are averaged by utterance first.
        """
        targets = emotion
        if attention_mask is not None:
            targets = emotion.unsqueeze(1).expand(attention_mask.shape)
        losses = F.cross_entropy(logits.float().movedim(-1, 1), targets, reduction="none")
        if attention_mask is not None:
            losses = heads.mean_over_time(losses.unsqueeze(-1), attention_mask).squeeze(-1)
        if self.config.emotion_weights:
            losses = losses * losses.new_tensor(self.config.emotion_weights)[emotion]
        return losses.mean()


class MultitaskModel(UtteranceModel):
    """Stage 02: classifies emotion, gender unless α is 1, and frames if `frame_weight` is above 0."""

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        self.emotion = nn.Linear(self.head.size, len(config.emotions))
        if "gender" in tasks(config.alpha):
            self.gender = nn.Linear(self.head.size, 2)
        if config.frame_weight:
            sizes = config.hidden_size, FRAME_HEAD, len(config.emotions)
            self.frame_emotion = heads.projection(*sizes, nn.Tanh)

    def logits(self, feature: Tensor) -> Tensor:
        """Logits of emotions, (batch, emotions), of features."""
        return self.emotion(feature)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        emotion: Tensor,
        gender: Tensor | None = None,
        **masks: Tensor,
    ) -> dict[str, Tensor]:
        """Logits, (batch, emotions) and (batch, 2), and the loss; see `SpeechModel.hidden_states`.

        `loss` = α · CE(emotion) + (1 − α) · CE(gender), equation 1 of the paper, + `frame_weight` · the mean
        CE of each frame with its utterance's emotion (P-TAPT, section 3.1). In training, each loss is
        returned too.
        """
        frames, attention_mask = self.frames(inputs, lengths, **masks)
        feature, alpha = self.head(frames, attention_mask), self.config.alpha
        outputs = {"emotion_logits": self.logits(feature)}
        losses = {"emotion_loss": self.emotion_loss(outputs["emotion_logits"], emotion)}
        loss = alpha * losses["emotion_loss"]
        if "gender" in tasks(alpha):
            outputs["gender_logits"] = self.gender(feature)
            losses["gender_loss"] = F.cross_entropy(outputs["gender_logits"].float(), gender)
            loss = loss + (1 - alpha) * losses["gender_loss"]
        if self.config.frame_weight:
            frame_logits = self.frame_emotion(frames)
            losses["frame_loss"] = self.emotion_loss(frame_logits, emotion, attention_mask)
            loss = loss + self.config.frame_weight * losses["frame_loss"]
        return {"loss": loss, **outputs, **(losses if self.training else {})}


class EmotionClassifier(UtteranceModel):
    """Stage 06: a linear (CE) or cosine (AM-Softmax) classifier."""

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        classifier = nn.Linear if config.loss == "ce" else heads.CosineClassifier
        self.classifier = classifier(self.head.size, len(config.emotions))

    def logits(self, feature: Tensor) -> Tensor:
        """Logits, (batch, emotions), of features. For AM-Softmax they are scaled cosines."""
        return self._scaled(self.classifier(feature))

    def _scaled(self, scores: Tensor) -> Tensor:
        return scores if self.config.loss == "ce" else self.config.scale * scores

    def forward(
        self, inputs: Tensor, lengths: Tensor, emotion: Tensor, **masks: Tensor
    ) -> dict[str, Tensor]:
        """`logits` (batch, emotions) and `loss`, with the margin in training only; see `hidden_states`."""
        scores, config = self.classifier(self.embed(inputs, lengths, **masks)), self.config
        logits = self._scaled(scores)
        if config.loss == "ce":
            return {"loss": self.emotion_loss(logits, emotion), "logits": logits}
        margin = config.margin if self.training else 0.0
        loss = am_softmax(scores, emotion, scale=config.scale, margin=margin)
        return {"loss": loss, "logits": logits}


def load_classifier(
    model_class: type[UtteranceModel],
    source: str,
    *,
    corpus: Corpus,
    train: list[str],
    network: heads.HeadConfig,
    **settings,
) -> UtteranceModel:
    """Load a classifier of a corpus's emotions (`SpeechModel.load`), with class weights of `train`."""
    labels, class_weights = corpus.labels(train, "emotion"), []
    if network.class_weights:
        weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
        class_weights = weights.tolist()
    settings |= vars(network) | {"emotions": corpus.emotions, "emotion_weights": class_weights}
    return model_class.load(source, **settings)
