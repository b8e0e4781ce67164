"""Stage 06: fine-tuning on the utterances' emotions with AM-Softmax or cross-entropy (stage 3)."""

from pathlib import Path

from transformers import set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.collect import write_predictions
from gmp_utils.evaluation.metrics import class_separation, task_metrics
from gmp_utils.models.classifiers import LOSSES, EmotionClassifier, load_classifier
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import weights
from gmp_utils.runs.files import write_json
from gmp_utils.runs.paths import FINETUNE, INITIALIZATIONS, RETRAIN, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.features import embed_and_classify, labelled
from gmp_utils.training.trainer import TrainingConfig, train


def _metrics(prediction) -> dict[str, float]:
    return task_metrics(prediction.predictions, prediction.label_ids, "emotion")


def finetune(
    run_dir: str,
    fold: int,
    encoder: str,
    loss: str,
    schedule: TrainingConfig,
    use_gmps: bool = True,
    scale: float = 30.0,
    margin: float = 0.2,
    network: HeadConfig = HeadConfig(),
) -> Path:
    """Fine-tune on a fold's training speakers, and classify its validation and test speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    encoder : str
        See `gmp_utils.runs.weights.resolve`.
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
    corpus, run = open_corpus(run_dir), run_folder(run_dir)
    stages = run / f"fold{fold}"
    own = stages / FINETUNE / INITIALIZATIONS[use_gmps]
    source, made_from = weights.resolve(encoder), [corpus.stage]
    if loss == "ce-then-ams" and not (own / "ce").is_dir():
        raise GmpError('loss "ce-then-ams" starts from the CE model: run loss "ce" first.')
    if use_gmps or loss == "ce-then-ams":
        before = own / "ce" if loss == "ce-then-ams" else stages / RETRAIN
        source, made_from = str(before / "model"), [corpus.stage, before]
    corpus.check_encoder(encoder, fold)
    parts = corpus.partition(fold)
    settings = {"loss": "ce" if loss == "ce" else "ams", "scale": scale, "margin": margin}

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        model = load_classifier(
            EmotionClassifier, source, corpus, parts["train"], network, **settings
        )
        inputs = features.model_inputs(model, corpus)
        part, selection = corpus.protocol.selection_part, corpus.protocol.selection
        emotions = corpus.labels(parts[part], "emotion")
        before = embed_and_classify(model, corpus, inputs, parts[part])[0]
        masks = (model.config.hidden_size if network.spec_augment else 0, schedule.seed)
        sets = [
            labelled(corpus, inputs, names, ("emotion",), *own)
            for names, own in ((parts["train"], masks), (parts[part], ()))
        ]
        train(model, *sets, folder, schedule, _metrics, "emotion_uar", selection)
        after = {
            held_out: embed_and_classify(model, corpus, inputs, parts[held_out])
            for held_out in ("validation", "test")
            if parts[held_out]
        }
        spread = {"before": before, "after": after[part][0]}
        spread = {when: class_separation(vectors, emotions) for when, vectors in spread.items()}
        write_json(folder / "separation.json", spread)
        logits = {held_out: own for held_out, (_, own) in after.items()}
        write_predictions(folder, corpus.manifest, parts, logits, corpus.emotions)

    return make_stage(
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
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
