"""Stage 06: fine-tune on the utterances' emotions with AM-Softmax or cross-entropy (stage 3 of the paper)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from sklearn.metrics import accuracy_score
from transformers import EvalPrediction, set_seed

from gmp_utils import GmpError, check_choice
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.metrics import task_metrics, uar
from gmp_utils.evaluation.predictions import write_predictions
from gmp_utils.models.classifiers import EmotionClassifier, load_classifier
from gmp_utils.models.heads import HeadConfig
from gmp_utils.models.losses import LOSSES
from gmp_utils.runs import weights
from gmp_utils.runs.paths import FINETUNE, INITIAL_MODELS, fold_folder, stage_folder
from gmp_utils.runs.stage import check_same_encoder, make_stage, upstream
from gmp_utils.training.features import embed_and_classify, labeled_sets
from gmp_utils.training.trainer import TrainingConfig, train


def finetune(
    run_dir: str,
    fold: int,
    encoder: str,
    loss: str,
    training: TrainingConfig,
    *,
    finetune_from: str = "retrained",
    scale: float = 30.0,
    margin: float = 0.2,
    network: HeadConfig = HeadConfig(),
) -> Path:
    """Fine-tune on the training speakers of a fold, and classify its validation and test speakers.

    Returns the stage with history.csv, metrics.json, model/, predictions.parquet (validation and test) and
    features.parquet (of the part on which the epoch is selected, "before" and "after" training, indexed by
    emotion).

    The loss is "ce", "ams", "ce-then-ams", or as its control "ce-then-ce". The last two start from the CE
    model of the same fold, so they have twice the updates and a second warm-up. The others start from the
    "retrained" model (of stage 05), "multitask" (of stage 02, with a new head) or the "encoder". `scale` and
    `margin` are AM-Softmax's, which has no class weights. Its gradients are clipped to `scale` times the norm
    for CE.
    """
    check_choice("loss", loss, LOSSES)
    check_choice("finetune_from", finetune_from, INITIAL_MODELS)
    corpus, start = open_corpus(run_dir), {"finetune_from": finetune_from, "loss": loss}
    stages = [stage_folder(run_dir, stage, fold) for stage in upstream(FINETUNE, start)]
    if loss.startswith("ce-then-") and not stages[-1].is_dir():
        raise GmpError(f'loss "{loss}" starts from the CE model: run loss "ce" first.')
    check_same_encoder(stages[1:], encoder)
    source = str(stages[-1] / "model") if len(stages) > 1 else weights.resolve(encoder)
    corpus.check_encoder(encoder, fold)
    parts, protocol = corpus.partition(fold), corpus.protocol
    settings = {"loss": loss.split("-")[-1], "scale": scale, "margin": margin}

    def build(folder: Path) -> None:
        set_seed(training.seed)
        data = {"corpus": corpus, "train": parts["train"], "network": network}
        data["new_heads"] = not loss.startswith("ce-then-")
        model = load_classifier(EmotionClassifier, source, **data, **settings)
        datasets = labeled_sets(model, corpus, fold, ("emotion",), training.seed)
        classify = partial(embed_and_classify, model, datasets[0].inputs)
        validation = datasets[1].utterances
        vectors = {"before": classify(validation)[0]}
        selection = {"selection_metric": "emotion_uar", "selection": protocol.selection}
        factor = scale if settings["loss"] == "ams" else 1.0  # by which its gradients are larger
        schedule = replace(training, max_grad_norm=factor * training.max_grad_norm)
        train(model, *datasets, folder, schedule, compute_metrics=_metrics, **selection)
        corpus.write_training_recordings(folder / "model", fold, source)
        outputs = {part: classify(parts[part]) for part in ("validation", "test") if parts[part]}
        vectors["after"] = outputs[protocol.selection_part][0]
        emotions = corpus.manifest.emotion[validation].to_numpy(str)
        table = pd.concat({when: pd.DataFrame(x, emotions) for when, x in vectors.items()})
        table.rename(columns=str).to_parquet(folder / "features.parquet")
        logits = {part: part_logits for part, (_, part_logits) in outputs.items()}
        write_predictions(folder, corpus.manifest, parts, logits, corpus.emotions)

    parameters = vars(network) | settings | start | {"training": vars(training)}
    return make_stage(
        fold_folder(run_dir, fold) / FINETUNE / finetune_from / loss,
        build,
        parameters={"fold": fold, "encoder": encoder, **parameters},
        stages=stages,
        inputs=[weights.fingerprint(encoder)],
    )


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of the validation set."""
    return task_metrics(prediction.predictions, prediction.label_ids, "emotion")


def score_test_speakers(stages: dict[str, Path]) -> pd.DataFrame:
    """UAR, WAR and numbers of test utterances and speakers, by system."""
    rows = {}
    for system, stage in stages.items():
        test = pd.read_parquet(stage / "predictions.parquet").query("part == 'test'")
        rows[system] = {
            "UAR": uar(test.true, test.predicted),
            "WAR": accuracy_score(test.true, test.predicted),
            "utterances": len(test),
            "speakers": test.speaker.nunique(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
