"""Stage 02: train an encoder on emotion and gender (stage 1a of the paper)."""

import math
from functools import partial
from pathlib import Path

from transformers import EvalPrediction, set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.metrics import task_metrics
from gmp_utils.models.classifiers import GENDER_UAR, MultitaskModel, load_classifier, tasks
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import TRAIN_MULTITASK, fold_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training.features import labeled_sets
from gmp_utils.training.trainer import TrainingConfig, train


def train_multitask(
    run_dir: str,
    fold: int,
    encoder: str,
    training: TrainingConfig,
    *,
    alpha: float = 0.9,
    frame_weight: float = 0.0,
    network: HeadConfig = HeadConfig(),
) -> Path:
    """Train on the training speakers of a fold; returns the stage with history.csv, metrics.json and model/.

    `alpha` is the weight of the emotion loss, 0 to 1; 1 needs no gender labels. `frame_weight` is that of a
    cross-entropy of frames, see `MultitaskModel.forward`.
    """
    if not 0 <= alpha <= 1:
        raise GmpError(f"alpha: found {alpha}, expected 0 to 1.")
    if frame_weight < 0:
        raise GmpError(f"frame_weight: found {frame_weight}, expected 0 or more.")
    corpus = open_corpus(run_dir)
    corpus.check_encoder(encoder, fold)
    parts, protocol = corpus.partition(fold), corpus.protocol
    weighting, source = {"alpha": alpha, "frame_weight": frame_weight}, weights.resolve(encoder)

    def build(folder: Path) -> None:
        set_seed(training.seed)
        data = {"corpus": corpus, "train": parts["train"], "network": network}
        model = load_classifier(MultitaskModel, source, new_heads=True, **data, **weighting)
        datasets = labeled_sets(model, corpus, fold, tasks(alpha), training.seed)
        metrics = partial(_metrics, tasks(alpha))
        selection = {"selection_metric": "emotion_uar", "selection": protocol.selection}
        train(model, *datasets, folder, training, compute_metrics=metrics, **selection)
        corpus.write_training_recordings(folder / "model", fold, source)

    settings = weighting | vars(network) | {"training": vars(training)}
    return make_stage(
        fold_folder(run_dir, fold) / TRAIN_MULTITASK,
        build,
        parameters={"fold": fold, "encoder": encoder, **settings},
        stages=[corpus.stage],
        inputs=[weights.fingerprint(encoder)],
    )


def _metrics(trained_tasks: tuple[str, ...], prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of all tasks."""
    logits, labels = prediction.predictions, prediction.label_ids
    if len(trained_tasks) == 1:  # Trainer does not wrap a single array
        logits, labels = [logits], [labels]
    metrics = map(task_metrics, logits, labels, trained_tasks)
    metrics = {name: value for task in metrics for name, value in task.items()}
    if "gender" in trained_tasks and len(set(labels[1])) == 1:
        metrics["gender_uar"] = math.nan  # a constant would have 1
    return metrics


def gender_augmented(stage: Path, layer: int = -1) -> bool:
    """Whether a finished stage learned gender, so that clusters of a layer are gender-augmented."""
    metrics, settings = (read_json(stage / f"{name}.json") for name in ("metrics", "params"))
    n_states = weights.n_layers(str(stage / "model")) + 1
    is_partial = settings["frozen_layers"] or settings["lora_rank"]
    lowest = settings["frozen_layers"] + 1 if is_partial else 0
    learned = metrics.get("gender_uar", 0.0) >= GENDER_UAR
    return learned and settings["train_encoder"] and layer % n_states >= lowest


def describe_gender(stage: Path, layer: int = -1) -> str:
    """State whether a finished stage learned gender, and what pseudo-labels of the layer may be called."""
    uar = read_json(stage / "metrics.json").get("gender_uar")
    are = "are" if gender_augmented(stage, layer) else "are not"
    if uar is None:
        reason = "Gender was no task"
    elif math.isnan(uar):
        reason = "It is unknown whether gender was learned, because all validation speakers have one gender"
    elif uar >= GENDER_UAR and are == "are not":
        reason = "The layer was frozen"
    else:
        learned = "learned" if uar >= GENDER_UAR else f"NOT learned (below {GENDER_UAR})"
        reason = f"Gender was {learned}: its UAR on the validation speakers is {uar:.2f}"
    return f"{reason}. Pseudo-labels from this model {are} called gender-augmented."
