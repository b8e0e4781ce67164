"""Stage 02: an encoder learns emotion and gender together (stage 1a of the paper)."""

from functools import partial
from pathlib import Path

from transformers import EvalPrediction, set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.metrics import task_metrics
from gmp_utils.models.classifiers import MultitaskModel, load_classifier, tasks
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import weights
from gmp_utils.runs.paths import TRAIN_MULTITASK, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.features import labelled
from gmp_utils.training.trainer import TrainingConfig, train


def _metrics(learnt: tuple[str, ...], prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    if len(learnt) == 1:  # Trainer gives a single array as it is
        return task_metrics(logits, labels, *learnt)
    return task_metrics(logits[0], labels[0], "emotion") | task_metrics(
        logits[1], labels[1], "gender"
    )


def train_multitask(
    run_dir: str,
    fold: int,
    encoder: str,
    schedule: TrainingConfig,
    alpha: float = 0.9,
    network: HeadConfig = HeadConfig(),
    frame_weight: float = 0.0,
) -> Path:
    """Train on a fold's training speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
        From 1.
    encoder : str
        See `gmp_utils.runs.weights.resolve`.
    schedule : Schedule
    alpha : float
        Weight of emotion, 0 to 1; 1 leaves gender out, which nobody needs to know then.
    network : Network
    frame_weight : float
        Of the frames' own cross-entropy, beside the utterances'; see `MultitaskModel.forward`.

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/.

    Raises
    ------
    GmpError
        For an `alpha` outside 0 to 1, a `frame_weight` below 0, or if stage 01 is not there.
    """
    if not 0 <= alpha <= 1:
        raise GmpError(f"alpha: found {alpha}, expected 0 to 1.")
    if frame_weight < 0:
        raise GmpError(f"frame_weight: found {frame_weight}, expected 0 or more.")
    corpus, run = open_corpus(run_dir), run_folder(run_dir)
    corpus.check_encoder(encoder, fold)
    parts = corpus.partition(fold)
    parameters = {
        "fold": fold,
        "encoder": encoder,
        "alpha": alpha,
        **vars(network),
        "frame_weight": frame_weight,
        "schedule": vars(schedule),
    }

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        source, own = weights.resolve(encoder), {"alpha": alpha, "frame_weight": frame_weight}
        model = load_classifier(MultitaskModel, source, corpus, parts["train"], network, **own)
        inputs = features.model_inputs(model, corpus)
        masked_size = model.config.hidden_size if network.spec_augment else 0
        sets = [
            labelled(corpus, inputs, parts[part], tasks(alpha), *masks)
            for part, masks in (
                ("train", (masked_size, schedule.seed)),
                (corpus.protocol.selection_part, ()),
            )
        ]
        selection = corpus.protocol.selection
        metrics = partial(_metrics, tasks(alpha))
        train(model, *sets, folder, schedule, metrics, "emotion_uar", selection)

    return make_stage(
        run / f"fold{fold}" / TRAIN_MULTITASK,
        build,
        parameters=parameters,
        stages=[corpus.stage],
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
