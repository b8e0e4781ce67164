"""Stage 02: HuBERT learns emotion and gender together (stage 1a of the paper)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import set_seed

from gmp_utils import encoders, evaluation, features, runs, weights
from gmp_utils.batching import Utterances
from gmp_utils.errors import GmpError
from gmp_utils.heads import UtteranceHead
from gmp_utils.preparation import Corpus, open_corpus
from gmp_utils.ragged import Ragged
from gmp_utils.training import Schedule, train

STAGE = "02_train_multitask"
SETTINGS = ("alpha", "head_layer", "lstm_size", "projection_size", "train_cnn")


class UtteranceModel(encoders.SpeechModel):
    """HuBERT and `UtteranceHead`: what stages 02 and 06 add their classifiers to."""

    def _build_heads(self, config) -> None:
        self.head = UtteranceHead(config.hidden_size, config.lstm_size, config.projection_size)

    def embed(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Feature of each utterance, (batch, projection_size); see `SpeechModel.hidden_states`."""
        (frames,), valid = self.hidden_states(inputs, lengths, layers=(self.config.head_layer,))
        return self.head(frames, valid)


class MultitaskModel(UtteranceModel):
    """A linear classifier each for emotion and gender."""

    def _build_heads(self, config) -> None:
        super()._build_heads(config)
        self.emotion = nn.Linear(config.projection_size, len(config.emotions))
        self.gender = nn.Linear(config.projection_size, 2)

    def forward(
        self, inputs: Tensor, lengths: Tensor, emotion: Tensor, gender: Tensor
    ) -> dict[str, Tensor]:
        """Classify utterances, and compare with their labels.

        Parameters
        ----------
        inputs, lengths
            See `SpeechModel.hidden_states`.
        emotion, gender : (batch,) int64

        Returns
        -------
        outputs : dict
            `loss` = α · CE(emotion) + (1 − α) · CE(gender), paper equation 1; `emotion_logits`
            (batch, emotions) and `gender_logits` (batch, 2); while training each task's loss.
        """
        feature = self.embed(inputs, lengths)
        outputs = {"emotion_logits": self.emotion(feature), "gender_logits": self.gender(feature)}
        emotion_loss = F.cross_entropy(outputs["emotion_logits"].float(), emotion)
        gender_loss = F.cross_entropy(outputs["gender_logits"].float(), gender)
        if self.training:
            outputs |= {"emotion_loss": emotion_loss, "gender_loss": gender_loss}
        alpha = self.config.alpha
        return {"loss": alpha * emotion_loss + (1 - alpha) * gender_loss, **outputs}


def labelled(
    corpus: Corpus, inputs: Ragged, utterances: list[str], tasks: tuple[str, ...]
) -> Utterances:
    """Utterances with their labels for some tasks ("emotion", "gender")."""
    targets = {task: corpus.labels(utterances, task) for task in tasks}
    return Utterances(inputs, utterances, targets)


def task_metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Mean cross-entropy and UAR of a task.

    Parameters
    ----------
    logits : (n_utterances, n_classes) float
    labels : (n_utterances,) int
    task : str
        Prefix of the names.
    """
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return {f"{task}_ce": float(loss), f"{task}_uar": evaluation.uar(labels, logits.argmax(axis=1))}


def _metrics(prediction) -> dict[str, float]:
    emotion = task_metrics(prediction.predictions[0], prediction.label_ids[0], "emotion")
    return emotion | task_metrics(prediction.predictions[1], prediction.label_ids[1], "gender")


def train_multitask(
    run_dir: str,
    fold: int,
    encoder: str,
    schedule: Schedule,
    alpha: float = 0.9,
    head_layer: int = -1,
    lstm_size: int = 256,
    projection_size: int = 256,
    train_cnn: bool = False,
) -> Path:
    """Train on a fold's training speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
        From 1.
    encoder : str
        See `gmp_utils.weights.resolve`.
    schedule : Schedule
    alpha : float
        Weight of emotion, 0 to 1; 1 leaves gender out.
    head_layer : int
        Hidden state that the head reads.
    lstm_size, projection_size : int
        See `UtteranceHead`.
    train_cnn : bool

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/.

    Raises
    ------
    GmpError
        For an `alpha` outside 0 to 1, or if stage 01 is not there.
    """
    if not 0 <= alpha <= 1:
        raise GmpError(f"alpha: found {alpha}, expected 0 to 1.")
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    corpus.check_encoder(encoder, fold)
    parts = corpus.split(fold)
    parameters = {
        "fold": fold,
        "encoder": encoder,
        "alpha": alpha,
        "head_layer": head_layer,
        "lstm_size": lstm_size,
        "projection_size": projection_size,
        "train_cnn": train_cnn,
        "schedule": vars(schedule),
    }

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        model = MultitaskModel.load(
            weights.resolve(encoder),
            emotions=corpus.emotions,
            **{name: parameters[name] for name in SETTINGS},
        )
        inputs = features.model_inputs(model, corpus)
        sets = [
            labelled(corpus, inputs, parts[part], ("emotion", "gender"))
            for part in ("train", corpus.protocol.compared_on)
        ]
        selection = corpus.protocol.selection
        train(model, *sets, folder, schedule, _metrics, "emotion_uar", selection)

    return runs.make_stage(
        run / f"fold{fold}" / STAGE,
        build,
        parameters=parameters,
        stages=[corpus.stage],
        inputs=[weights.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
