"""Stage 05: an encoder learns to predict the pseudo-labels of masked frames (stage 2 of the paper)."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.models.contrastive import ContrastiveModel, contrastive_metrics
from gmp_utils.models.masked_prediction import MaskedPredictionModel, stream_metrics
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import GENERATE_GMPS, RETRAIN, TRAIN_MULTITASK, run_folder
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Masking, Utterances
from gmp_utils.training.trainer import TrainingConfig, train


def retrain(
    run_dir: str,
    fold: int,
    encoder: str,
    schedule: TrainingConfig,
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
        See `gmp_utils.runs.weights.resolve`.
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
        Of the streams' projections, see `ClusterHeads`.
    objective : str
        "clusters" are those of stage 04; "contrastive" is wav2vec 2.0's, see
        `gmp_utils.models.contrastive`, which needs no stage 04; "own" is what the encoder was
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
    corpus, run = open_corpus(run_dir), run_folder(run_dir)
    stages = run / f"fold{fold}"
    labels, scales = None, []
    source, made_from = weights.resolve(encoder), [corpus.stage]
    if objective == "clusters":
        labels, scales = features.open_labels(stages / GENERATE_GMPS)
        made_from.append(stages / GENERATE_GMPS)
    corpus.check_encoder(encoder, fold)
    parts = corpus.partition(fold)
    heard = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]
    compared = parts[corpus.protocol.selection_part]
    if retrain_from == "multitask":
        source = str(stages / TRAIN_MULTITASK / "model")
        made_from.append(stages / TRAIN_MULTITASK)

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

    return make_stage(
        stages / RETRAIN,
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
        inputs=[weights.fingerprint(encoder)],
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
    stages = run_folder(run_dir) / f"fold{fold}"
    check_and_identify(stages / RETRAIN, "metrics.json", "params.json")
    selected = read_json(stages / RETRAIN / "metrics.json")
    if read_json(stages / RETRAIN / "params.json")["objective"] == "contrastive":
        rows = {"among frames": ("accuracy", selected["chance"])}
    else:
        labels, scales = features.open_labels(stages / GENERATE_GMPS)
        corpus = open_corpus(run_dir)
        held_out = corpus.partition(fold)[corpus.protocol.selection_part]
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
