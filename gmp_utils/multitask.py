"""Stage 02: an encoder learns emotion and gender together (stage 1a of the paper)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction, set_seed

from gmp_utils import evaluation, features, runs, weights
from gmp_utils.batching import SPEC_AUGMENT, Utterances
from gmp_utils.errors import GmpError
from gmp_utils.heads import Network
from gmp_utils.networks import MultitaskModel, UtteranceModel, tasks
from gmp_utils.preparation import Corpus, open_corpus
from gmp_utils.ragged import Ragged
from gmp_utils.training import Schedule, train

STAGE = "02_train_multitask"


def labelled(
    corpus: Corpus,
    inputs: Ragged,
    utterances: list[str],
    tasks: tuple[str, ...],
    masked_size: int = 0,
    seed: int = 0,
) -> Utterances:
    """Utterances with their labels for some tasks ("emotion", "gender").

    Parameters
    ----------
    corpus : Corpus
    inputs : Ragged
    utterances : list of str
    tasks : tuple of str
    masked_size : int
        The model's hidden size, where frames and features are masked by `SPEC_AUGMENT`; else 0.
    seed : int
        Of the masks.
    """
    targets = {task: corpus.labels(utterances, task) for task in tasks}
    masking = SPEC_AUGMENT[0] if masked_size else None
    return Utterances(inputs, utterances, targets, None, masking, seed, masked_size)


def load(
    kind: type[UtteranceModel],
    source: str,
    corpus: Corpus,
    train: list[str],
    network: Network,
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
    schedule: Schedule,
    alpha: float = 0.9,
    network: Network = Network(),
    frame_weight: float = 0.0,
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
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    corpus.check_encoder(encoder, fold)
    parts = corpus.split(fold)
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
        model = load(MultitaskModel, source, corpus, parts["train"], network, **own)
        inputs = features.model_inputs(model, corpus)
        masked_size = model.config.hidden_size if network.spec_augment else 0
        sets = [
            labelled(corpus, inputs, parts[part], tasks(alpha), *masks)
            for part, masks in (
                ("train", (masked_size, schedule.seed)),
                (corpus.protocol.compared_on, ()),
            )
        ]
        selection = corpus.protocol.selection
        metrics = partial(_metrics, tasks(alpha))
        train(model, *sets, folder, schedule, metrics, "emotion_uar", selection)

    return runs.make_stage(
        run / f"fold{fold}" / STAGE,
        build,
        parameters=parameters,
        stages=[corpus.stage],
        inputs=[weights.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
