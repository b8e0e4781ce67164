"""Stage 05: retrain an encoder on the pseudo-labels of masked frames (stage 2 of the paper)."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import set_seed

from gmp_utils import GmpError, check_choice
from gmp_utils.data.corpus import open_corpus
from gmp_utils.models.contrastive import ContrastiveModel, contrastive_metrics
from gmp_utils.models.masked_prediction import LOSS_ON, MaskedPredictionModel, stream_metrics
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import GENERATE_GMPS, RETRAIN, TRAIN_MULTITASK, fold_folder, stage_folder
from gmp_utils.runs.stage import (
    check_and_identify,
    check_same_encoder,
    make_stage,
    upstream,
)
from gmp_utils.training.batching import Masking, Utterances
from gmp_utils.training.features import model_inputs, open_labels
from gmp_utils.training.trainer import TrainingConfig, train

CHOICES = {
    "objective": ("clusters", "contrastive", "own"),
    "retrain_from": ("encoder", "multitask"),
    "loss_on": LOSS_ON,
    "activation": ("relu", "tanh"),
    "retrain_selection": ("last", "validation"),
}


def retrain(
    run_dir: str,
    fold: int,
    encoder: str,
    training: TrainingConfig,
    *,
    retrain_from: str = "encoder",
    objective: str = "clusters",
    masking: Masking = Masking(0.8, 10),
    loss_on: str = "masked",
    stream_hidden_size: int = 256,
    activation: str = "relu",
    train_cnn: bool = False,
    retrain_selection: str = "last",
) -> Path:
    """Retrain on the training speakers of a fold: on pseudo-labels, or with the encoder's own objective.

    Returns the stage with history.csv, metrics.json and model/.

    Training starts from the initial "encoder", or from "multitask", the model of stage 02. The objective
    "clusters" predicts the pseudo-labels of stage 04; "contrastive" is wav2vec 2.0's and needs no stage 04;
    "own" is the one that the encoder was pre-trained with. For the contrastive objective, processes count
    codes separately, so results depend slightly on the number of processes. Each stream's head has
    `stream_hidden_size` hidden units. The `retrain_selection` "last" keeps the model of the last step,
    "validation" the one that the protocol selects by the loss.
    """
    network = {"loss_on": loss_on, "activation": activation}
    network |= {"stream_hidden_size": stream_hidden_size, "train_cnn": train_cnn}
    settings = {"objective": objective, "retrain_from": retrain_from, **network}
    settings["retrain_selection"] = retrain_selection
    for name, choices in CHOICES.items():
        check_choice(name, settings[name], choices)
    if objective == "own":
        objective = settings["objective"] = weights.pretraining_objective(encoder)
    if objective == "contrastive" and train_cnn:
        raise GmpError('objective "contrastive" needs a frozen CNN: set train_cnn to false.')
    corpus, fold_dir = open_corpus(run_dir), fold_folder(run_dir, fold)
    corpus.check_encoder(encoder, fold)
    parts, protocol = corpus.partition(fold), corpus.protocol
    source = weights.resolve(encoder)
    if retrain_from == "multitask":
        source = str(fold_dir / TRAIN_MULTITASK / "model")

    def build(folder: Path) -> None:
        set_seed(training.seed)
        model, labels, metrics = _load(objective, source, fold_dir / GENERATE_GMPS, network)
        inputs = model_inputs(model, corpus)
        unlabeled = [name for part in protocol.unsupervised_parts for name in parts[part]]
        utterances = sorted(unlabeled, key=inputs.lengths.get), parts[protocol.selection_part]
        options = {"frame_labels": labels, "masking": masking, "seed": training.seed}
        datasets = [Utterances(inputs, names, **options) for names in utterances]
        selection = "last" if retrain_selection == "last" else protocol.selection
        scoring = {"compute_metrics": metrics, "selection_metric": "validation_loss"}
        train(model, *datasets, folder, training, **scoring, selection=selection)
        corpus.write_training_recordings(folder / "model", fold, source)

    stages = [stage_folder(run_dir, stage, fold) for stage in upstream(RETRAIN, settings)]
    check_same_encoder(stages[1:], encoder)
    settings |= {"masking": vars(masking), "training": vars(training)}
    return make_stage(
        fold_dir / RETRAIN,
        build,
        parameters={"fold": fold, "encoder": encoder, **settings},
        stages=stages,
        inputs=[weights.fingerprint(encoder)],
    )


def _load(objective: str, source: str, gmps: Path, network: dict) -> tuple:
    """Model, pseudo-labels (or None) and metrics of an objective."""
    if objective == "contrastive":
        model = ContrastiveModel.load(source, train_encoder=True, train_cnn=False)
        return model, None, contrastive_metrics
    labels, scales = open_labels(gmps)
    network = network | {"train_encoder": True, "scales": scales}
    model = MaskedPredictionModel.load(source, new_heads=True, **network)
    return model, labels, partial(stream_metrics, scales)


def accuracies(run_dir: str, fold: int) -> pd.DataFrame:
    """Accuracy of a finished stage at masked frames of the validation speakers.

    Columns are `accuracy`, its `chance` level, and the `column` of history.csv. Rows are streams, or one for
    the contrastive objective.
    """
    stage = fold_folder(run_dir, fold) / RETRAIN
    check_and_identify(stage, "metrics.json", "params.json")
    selected = read_json(stage / "metrics.json")
    if read_json(stage / "params.json")["objective"] == "contrastive":
        rows = {"among frames": ("accuracy", selected["chance"])}
    else:
        labels, scales = open_labels(stage.with_name(GENERATE_GMPS))
        corpus = open_corpus(run_dir)
        validation = corpus.partition(fold)[corpus.protocol.selection_part]
        levels = chance(labels.rows(validation))
        rows = {f"K = {k}": (f"accuracy_{k}", level) for k, level in zip(scales, levels)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["column", "chance"])
    return table.assign(accuracy=table.column.map(selected))


def chance(labels: np.ndarray) -> np.ndarray:
    """Frequency of the most frequent cluster of each stream, from (n_frames, streams) labels."""
    return np.array([np.bincount(stream).max() / len(stream) for stream in labels.T])
