"""Stage 05: an encoder learns to predict the pseudo-labels of masked frames (stage 2 of the paper)."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction, set_seed

from gmp_utils import encoders, features, multitask, pseudo_labels, runs, weights
from gmp_utils.batching import Masking, Utterances
from gmp_utils.contrastive import ContrastiveModel, contrastive_metrics
from gmp_utils.errors import GmpError
from gmp_utils.heads import StreamHeads
from gmp_utils.losses import stream_loss, sum_by_utterance
from gmp_utils.preparation import open_corpus
from gmp_utils.training import Schedule, train

STAGE = "05_retrain"


class MaskedPredictionModel(encoders.SpeechModel):
    """HuBERT with span masks, and a projection to the clusters of each scale."""

    def _build_heads(self, config) -> None:
        sizes = config.scales, config.projection_size
        self.streams = StreamHeads(config.hidden_size, *sizes, config.activation)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        frame_labels: Tensor,
        mask: Tensor,
        speaker: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict pseudo-labels, and compare.

        Parameters
        ----------
        inputs, lengths, speaker
            See `SpeechModel.hidden_states`.
        frame_labels : (batch, frames, streams) int64
        mask : (batch, frames) bool

        Returns
        -------
        outputs : dict
            `loss`, see `stream_loss`, and `n_frames` (batch,) that it counts; at evaluation, by
            utterance and stream, `ce` (summed cross-entropy) and `correct` (frames).
        """
        (frames,), valid = self.hidden_states(inputs, lengths, mask, speaker=speaker)
        chosen = mask if self.config.loss_on == "masked" else valid
        logits = self.streams(frames[chosen])
        loss = stream_loss(logits, frame_labels, chosen, self.config.combine)
        outputs = {"loss": loss, "n_frames": chosen.sum(dim=1)}
        if self.training:
            return outputs
        pairs = list(zip(logits, frame_labels[chosen].unbind(dim=1)))
        losses = [F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs]
        correct = [(x.argmax(dim=-1) == y).float() for x, y in pairs]
        ce, correct = (
            sum_by_utterance(torch.stack(each, dim=1), chosen) for each in (losses, correct)
        )
        return outputs | {"ce": ce, "correct": correct}


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
    activation: str = "relu",
    objective: str = "clusters",
) -> Path:
    """Retrain on a fold's training speakers: on their pseudo-labels, or by an encoder's own objective.

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
    activation : str
        Of the streams' projections, see `StreamHeads`.
    objective : str
        "clusters" are those of stage 04; "contrastive" is wav2vec 2.0's, see
        `gmp_utils.contrastive`, which needs no stage 04; "own" is the one of the two that the encoder was
        made with. In several processes, or pieces, the contrastive objective's codes are counted in each,
        which is not quite the same.

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/.

    Raises
    ------
    GmpError
        For another `retrain_from`, `loss_on`, `combine`, `activation` or `objective`, an objective that the
        encoder does not have, or if stage 04 is needed and not there.
    """
    objective = weights.own_objective(encoder) if objective == "own" else objective
    if objective not in ("clusters", "contrastive"):
        raise GmpError(f'objective {objective!r}: expected "clusters", "contrastive" or "own".')
    if objective == "contrastive" and not masking.probability:
        raise GmpError('objective "contrastive" is about masked frames: mask_probability above 0.')
    if objective == "contrastive" and train_cnn:
        raise GmpError('objective "contrastive" takes its targets from the CNN: train_cnn false.')
    if activation not in ("relu", "tanh"):
        raise GmpError(f'activation {activation!r}: expected "relu" or "tanh".')
    if retrain_from not in ("encoder", "multitask"):
        raise GmpError(f'retrain_from {retrain_from!r}: expected "encoder" or "multitask".')
    if loss_on not in ("masked", "all"):
        raise GmpError(f'loss_on {loss_on!r}: expected "masked" or "all".')
    if combine not in ("sum", "mean"):
        raise GmpError(f'combine {combine!r}: expected "sum" or "mean".')
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    stages = run / f"fold{fold}"
    labels, scales = None, []
    source, made_from = weights.resolve(encoder), [corpus.stage]
    if objective == "clusters":
        labels, scales = pseudo_labels.open_labels(stages / pseudo_labels.STAGE)
        made_from.append(stages / pseudo_labels.STAGE)
    corpus.check_encoder(encoder, fold)
    parts = corpus.split(fold)
    heard = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]
    compared = parts[corpus.protocol.compared_on]
    if retrain_from == "multitask":
        source = str(stages / multitask.STAGE / "model")
        made_from.append(stages / multitask.STAGE)

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        if objective == "clusters":
            settings = {"scales": scales, "projection_size": projection_size, "loss_on": loss_on}
            settings |= {"combine": combine, "activation": activation, "train_cnn": train_cnn}
            model = MaskedPredictionModel.load(source, train_encoder=True, **settings)
        else:
            model = ContrastiveModel.load(source, train_encoder=True, train_cnn=False)
        inputs = features.model_inputs(model, corpus)
        sets = [
            Utterances(inputs, names, None, labels, masking, schedule.seed)
            for names in (sorted(heard, key=inputs.lengths.get), compared)
        ]
        selection, metrics = corpus.protocol.selection, contrastive_metrics
        if objective == "clusters":
            metrics = partial(stream_metrics, scales)
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
            "activation": activation,
            "objective": objective,
            "schedule": vars(schedule),
        },
        stages=made_from,
        inputs=[weights.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def accuracies(run_dir: str, fold: int) -> pd.DataFrame:
    """How well a finished stage foretells masked frames of the speakers that it was compared on.

    Parameters
    ----------
    run_dir : str
    fold : int

    Returns
    -------
    found : DataFrame
        A row per stream, or one for the contrastive objective: `accuracy`, that `chance` would have, and
        the `column` of history.csv.
    """
    stages = runs.run_folder(run_dir) / f"fold{fold}"
    runs.identity(stages / STAGE, "metrics.json", "params.json")
    selected = runs.read_json(stages / STAGE / "metrics.json")
    if runs.read_json(stages / STAGE / "params.json")["objective"] == "contrastive":
        rows = {"among frames": ("accuracy", selected["chance"])}
    else:
        labels, scales = pseudo_labels.open_labels(stages / pseudo_labels.STAGE)
        corpus = open_corpus(run_dir)
        held_out = corpus.split(fold)[corpus.protocol.compared_on]
        by_chance = chance(labels.rows(held_out))
        rows = {f"K = {k}": (f"accuracy_{k}", share) for k, share in zip(scales, by_chance)}
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["column", "chance"])
    return found.assign(accuracy=found.column.map(selected))


def chance(labels: np.ndarray) -> np.ndarray:
    """Accuracy of always naming the most frequent cluster, per stream.

    Parameters
    ----------
    labels : (n_frames, streams) int
    """
    return np.array([np.bincount(stream).max() / len(stream) for stream in labels.T])
