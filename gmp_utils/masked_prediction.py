"""Stage 05: HuBERT learns to predict the pseudo-labels of masked frames (stage 2 of the paper)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction, set_seed

from gmp_utils import encoders, features, multitask, pseudo_labels, runs, weights
from gmp_utils.batching import Masking, Utterances
from gmp_utils.errors import GmpError
from gmp_utils.heads import StreamHeads
from gmp_utils.losses import stream_loss
from gmp_utils.preparation import open_corpus
from gmp_utils.training import Schedule, train

STAGE = "05_retrain"


class MaskedPredictionModel(encoders.SpeechModel):
    """HuBERT with span masks, and a projection to the clusters of each scale."""

    def _build_heads(self, config) -> None:
        self.streams = StreamHeads(config.hidden_size, config.scales, config.projection_size)

    def forward(
        self, inputs: Tensor, lengths: Tensor, frame_labels: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Predict pseudo-labels, and compare.

        Parameters
        ----------
        inputs, lengths
            See `SpeechModel.hidden_states`.
        frame_labels : (batch, frames, streams) int64
        mask : (batch, frames) bool

        Returns
        -------
        outputs : dict
            `loss`, see `stream_loss`, and `n_frames` (batch,) that it counts; at evaluation, by
            utterance and stream, `ce` (summed cross-entropy) and `correct` (frames).
        """
        (frames,), valid = self.hidden_states(inputs, lengths, mask)
        chosen = mask if self.config.loss_on == "masked" else valid
        logits = self.streams(frames[chosen])
        loss = stream_loss(logits, frame_labels, chosen, self.config.combine)
        outputs = {"loss": loss, "n_frames": chosen.sum(dim=1)}
        if self.training:
            return outputs
        rows = chosen.nonzero()[:, 0]
        targets = frame_labels[chosen]

        def per_utterance(values: list[Tensor]) -> Tensor:
            stacked = torch.stack(values, dim=1).float()
            return stacked.new_zeros(len(chosen), stacked.shape[1]).index_add_(0, rows, stacked)

        pairs = list(zip(logits, targets.unbind(dim=1)))
        losses = [F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs]
        correct = [x.argmax(dim=-1) == y for x, y in pairs]
        return outputs | {"ce": per_utterance(losses), "correct": per_utterance(correct)}


def stream_metrics(scales: list[int], prediction: EvalPrediction) -> dict[str, float]:
    """`masked_loss`, and `accuracy_<K>` of each stream."""
    n_frames, ce, correct = prediction.predictions
    accuracies = correct.sum(axis=0) / n_frames.sum()
    return {
        "masked_loss": float(ce.sum() / n_frames.sum()),
        **{f"accuracy_{k}": float(value) for k, value in zip(scales, accuracies)},
    }


def retrain(
    run_dir: str,
    fold: int,
    encoder: str,
    schedule: Schedule,
    retrain_from: str = "encoder",
    masking: Masking = Masking(0.8, 10),
    loss_on: str = "masked",
    projection_size: int = 256,
    train_cnn: bool = False,
    combine: str = "sum",
) -> Path:
    """Retrain on the pseudo-labels of a fold's training speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    encoder : str
        See `gmp_utils.weights.resolve`.
    schedule : Schedule
    retrain_from : str
        "encoder" starts from the initial encoder, "multitask" from the model of stage 02.
    masking : Masking
    loss_on : str
        "masked" frames, or "all".
    projection_size : int
    train_cnn : bool
    combine : str
        Of the streams' losses, see `stream_loss`.

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/.

    Raises
    ------
    GmpError
        For another `retrain_from`, `loss_on` or `combine`, or if stage 04 is not there.
    """
    if retrain_from not in ("encoder", "multitask"):
        raise GmpError(f'retrain_from {retrain_from!r}: expected "encoder" or "multitask".')
    if loss_on not in ("masked", "all"):
        raise GmpError(f'loss_on {loss_on!r}: expected "masked" or "all".')
    if combine not in ("sum", "mean"):
        raise GmpError(f'combine {combine!r}: expected "sum" or "mean".')
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    stages = run / f"fold{fold}"
    labels, scales = pseudo_labels.open_labels(stages / pseudo_labels.STAGE)
    corpus.check_encoder(encoder, fold)
    parts = corpus.split(fold)
    heard = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]
    compared = parts[corpus.protocol.compared_on]
    source, made_from = weights.resolve(encoder), [corpus.stage, stages / pseudo_labels.STAGE]
    if retrain_from == "multitask":
        source = str(stages / multitask.STAGE / "model")
        made_from.append(stages / multitask.STAGE)

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        model = MaskedPredictionModel.load(
            source,
            scales=scales,
            projection_size=projection_size,
            loss_on=loss_on,
            train_cnn=train_cnn,
            combine=combine,
        )
        inputs = features.model_inputs(model, corpus)
        sets = [
            Utterances(inputs, names, None, labels, masking, schedule.seed)
            for names in (sorted(heard, key=inputs.lengths.get), compared)
        ]
        selection, metrics = corpus.protocol.selection, partial(stream_metrics, scales)
        train(model, *sets, folder, schedule, metrics, "masked_loss", selection)

    return runs.make_stage(
        stages / STAGE,
        build,
        parameters={
            "fold": fold,
            "encoder": encoder,
            "retrain_from": retrain_from,
            "masking": vars(masking),
            "loss_on": loss_on,
            "projection_size": projection_size,
            "train_cnn": train_cnn,
            "combine": combine,
            "schedule": vars(schedule),
        },
        stages=made_from,
        inputs=[weights.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def chance(labels: np.ndarray) -> np.ndarray:
    """Accuracy of always naming the most frequent cluster, per stream.

    Parameters
    ----------
    labels : (n_frames, streams) int
    """
    return np.array([np.bincount(stream).max() / len(stream) for stream in labels.T])
