"""Stage 06: fine-tuning on the utterances' emotions with AM-Softmax or cross-entropy (stage 3)."""

from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from gmp_utils import evaluation, features, hardware, masked_prediction, runs, weights
from gmp_utils.errors import GmpError
from gmp_utils.heads import Network
from gmp_utils.multitask import labelled, load, task_metrics
from gmp_utils.networks import EmotionClassifier
from gmp_utils.preparation import Corpus, open_corpus
from gmp_utils.ragged import Ragged
from gmp_utils.training import Schedule, train

STAGE = "06_finetune"
LOSSES = ("ce", "ams", "ce-then-ams")


def separation(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How far classes are apart, and how wide each is, in cosine distance.

    Parameters
    ----------
    vectors : (n_utterances, dim) float
    labels : (n_utterances,) int

    Returns
    -------
    separation : dict
        `between`: mean distance between class centres; `within`: mean distance of an utterance to
        its class's centre; `ratio` of the two.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centres = np.stack([unit[labels == label].mean(axis=0) for label in np.unique(labels)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    pairs = np.triu_indices(len(centres), 1)
    between = float(np.mean(1 - (centres @ centres.T)[pairs]))
    own = centres[np.searchsorted(np.unique(labels), labels)]
    within = float(np.mean(1 - np.sum(unit * own, axis=1)))
    return {"between": between, "within": within, "ratio": between / max(within, 1e-9)}


def apply(
    model: EmotionClassifier, corpus: Corpus, inputs: Ragged, utterances: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embed and classify utterances.

    Returns
    -------
    vectors : (n_utterances, head.size) float32
    logits : (n_utterances, emotions) float32
    """
    dataset = labelled(corpus, inputs, utterances, ())
    model.eval().to(hardware.device())
    with torch.inference_mode():
        vectors = [found.float() for _, found in features.batches(dataset, "classify", model.embed)]
        logits = [model.logits(feature).float() for feature in vectors]
    return torch.cat(vectors).cpu().numpy(), torch.cat(logits).cpu().numpy()


def _metrics(prediction) -> dict[str, float]:
    return task_metrics(prediction.predictions, prediction.label_ids, "emotion")


def finetune(
    run_dir: str,
    fold: int,
    encoder: str,
    loss: str,
    schedule: Schedule,
    use_gmps: bool = True,
    scale: float = 30.0,
    margin: float = 0.2,
    network: Network = Network(),
) -> Path:
    """Fine-tune on a fold's training speakers, and classify its validation and test speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    encoder : str
        See `gmp_utils.weights.resolve`.
    loss : str
        "ce", "ams", or "ce-then-ams": AM-Softmax from the CE model of the same fold.
    schedule : Schedule
    use_gmps : bool
        True starts from the model of stage 05, False from the initial encoder.
    scale, margin : float
        Of AM-Softmax, which knows no class weights.
    network : Network

    Returns
    -------
    stage : Path
        With history.csv, metrics.json, separation.json (of the classes, before and after training),
        predictions.parquet (validation and test) and model/.

    Raises
    ------
    GmpError
        For an unknown loss, or if what it starts from is not there.
    """
    if loss not in LOSSES:
        raise GmpError(f"loss {loss!r}: expected one of {', '.join(LOSSES)}.")
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    stages = run / f"fold{fold}"
    own = stages / STAGE / runs.STARTS[use_gmps]
    source, made_from = weights.resolve(encoder), [corpus.stage]
    if loss == "ce-then-ams" and not (own / "ce").is_dir():
        raise GmpError('loss "ce-then-ams" starts from the CE model: run loss "ce" first.')
    if use_gmps or loss == "ce-then-ams":
        before = own / "ce" if loss == "ce-then-ams" else stages / masked_prediction.STAGE
        source, made_from = str(before / "model"), [corpus.stage, before]
    corpus.check_encoder(encoder, fold)
    parts = corpus.split(fold)
    settings = {"loss": "ce" if loss == "ce" else "ams", "scale": scale, "margin": margin}

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        model = load(EmotionClassifier, source, corpus, parts["train"], network, **settings)
        inputs = features.model_inputs(model, corpus)
        part, selection = corpus.protocol.compared_on, corpus.protocol.selection
        emotions = corpus.labels(parts[part], "emotion")
        before = apply(model, corpus, inputs, parts[part])[0]
        masks = (model.config.hidden_size if network.spec_augment else 0, schedule.seed)
        sets = [
            labelled(corpus, inputs, names, ("emotion",), *own)
            for names, own in ((parts["train"], masks), (parts[part], ()))
        ]
        train(model, *sets, folder, schedule, _metrics, "emotion_uar", selection)
        after = {
            held_out: apply(model, corpus, inputs, parts[held_out])
            for held_out in ("validation", "test")
            if parts[held_out]
        }
        spread = {"before": before, "after": after[part][0]}
        spread = {when: separation(vectors, emotions) for when, vectors in spread.items()}
        runs.write_json(folder / "separation.json", spread)
        logits = {held_out: own for held_out, (_, own) in after.items()}
        evaluation.write_predictions(folder, corpus.manifest, parts, logits, corpus.emotions)

    return runs.make_stage(
        own / loss,
        build,
        parameters={
            "fold": fold,
            "encoder": encoder,
            "use_gmps": use_gmps,
            **settings,
            **vars(network),
            "loss": loss,
            "schedule": vars(schedule),
        },
        stages=made_from,
        inputs=[weights.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
