"""Baselines of stage 06: probes, eGeMAPS and the majority class."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC
from tqdm import tqdm

from gmp_utils import GmpError, check_choice
from gmp_utils.data.audio import SAMPLE_RATE, to_float
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.metrics import uar
from gmp_utils.evaluation.predictions import write_predictions
from gmp_utils.evaluation.readout import PROBE_C, write_readout
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.losses import LOSSES
from gmp_utils.runs import weights
from gmp_utils.runs.experiments import EGEMAPS, check_opensmile
from gmp_utils.runs.files import text_digest, write_json
from gmp_utils.runs.paths import FINETUNE, fold_folder, run_and_fold, stage_folder, stage_of
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features

PROBES = {  # the probed model of each
    "probe": "encoder",
    "probe-z": "encoder",
    "self-training": "encoder",
    "probe-multitask": "multitask",
    "probe-retrained": "retrained",
    "probe-ce": "ce",
    "probe-ams": "ams",
}
BASELINES = (*PROBES, *sorted(EGEMAPS), "majority")
SELF_TRAINING_ROUNDS = 10  # in each, an equal number of utterances gets labels
SVM_C = (1e-3, 1e-2, 1e-1, 1.0)

Scores = dict[str, np.ndarray]  # by part, (n_utterances, n_classes)


class Fold:
    """Utterances and emotion labels of the non-empty parts of a fold, and how the protocol selects."""

    def __init__(self, corpus: Corpus, fold: int):
        self.corpus, self.n_classes = corpus, len(corpus.emotions)
        self.parts = {part: names for part, names in corpus.partition(fold).items() if names}
        self.labels = {part: corpus.labels(names, "emotion") for part, names in self.parts.items()}
        self.scored_parts = [part for part in ("validation", "test") if part in self.parts]

    def uar(self, scores: Scores) -> float:
        """UAR on the part that the protocol selects on."""
        part = self.corpus.protocol.selection_part
        return uar(self.labels[part], scores[part].argmax(axis=1))

    def select(self, fit: Callable[[float], Scores], values: Sequence[float], default: float):
        """The first value with the highest UAR, or the default if nothing is selected, and its scores."""
        if self.corpus.protocol.selection == "last":
            values = [default]
        candidates = [(value, fit(value)) for value in values]
        return max(candidates, key=lambda candidate: self.uar(candidate[1]))

    def write(self, folder: Path, scores: Scores, metrics: dict) -> None:
        """Write predictions.parquet and metrics.json."""
        corpus = self.corpus
        write_predictions(folder, corpus.manifest, self.parts, scores, corpus.emotions)
        write_json(folder / "metrics.json", metrics | {"emotion_uar": self.uar(scores)})


def egemaps(waveforms: Ragged, utterances: Sequence[str]) -> pd.DataFrame:
    """The 88 eGeMAPS functionals of utterances.

    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016; the extended set, version 2.
    """
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    rows = [
        smile.process_signal(to_float(waveforms[name]), SAMPLE_RATE).iloc[0]
        for name in tqdm(utterances, "eGeMAPS", disable=None)
    ]
    return pd.DataFrame(rows).set_index(pd.Index(utterances))


def functionals(corpus: Corpus) -> Path:
    """Make the stage with the `egemaps` of every utterance, functionals.parquet."""

    def build(folder: Path) -> None:
        table = egemaps(corpus.waveforms, corpus.manifest.index)
        table.to_parquet(folder / "functionals.parquet")

    folder = corpus.stage.parent / "egemaps"
    return make_stage(folder, build, parameters={}, stages=[corpus.stage])


def layer_statistics(corpus: Corpus, encoder: str, trained: Path | None = None) -> Path:
    """Make the stage with a model's `pooled_layers` in the manifest's order, statistics.npy.

    The model is that of the stage `trained`, if given, or else the encoder.
    """

    def build(folder: Path) -> None:
        model = SpeechModel.load(str(trained / "model") if trained else weights.resolve(encoder))
        inputs, names = features.model_inputs(model, corpus), list(corpus.manifest.index)
        np.save(folder / "statistics.npy", features.pooled_layers(model, inputs, names))

    if trained:
        fold = fold_folder(*run_and_fold(trained))
        folder = fold / "probe" / "-".join(trained.relative_to(fold).parts)
        return make_stage(folder, build, parameters={}, stages=[corpus.stage, trained])
    fingerprint, parameters = weights.fingerprint(encoder), {"encoder": encoder}
    folder = corpus.stage.parent / "probe" / text_digest(fingerprint)[:12]
    stages, inputs = [corpus.stage], [fingerprint]
    return make_stage(folder, build, parameters=parameters, stages=stages, inputs=inputs)


def train_probe(fold: Fold, statistics: np.ndarray, *, self_training: bool = False) -> Pipeline:
    """Logistic regression on one layer of `layer_statistics`, (n_utterances, dim), of the training part.

    With `self_training`, it is trained in `SELF_TRAINING_ROUNDS`. After each, the utterances of the part
    "unlabeled" of which it is most certain get the predicted labels.
    """
    index, labels = fold.corpus.manifest.index, fold.labels["train"]
    x = statistics[index.get_indexer(fold.parts["train"])]
    scaler, classifier = StandardScaler().fit(x), LogisticRegression(C=PROBE_C, max_iter=5000)
    if self_training:
        unlabeled = statistics[index.get_indexer(fold.parts["unlabeled"])]
        size = math.ceil(len(unlabeled) / SELF_TRAINING_ROUNDS)
        schedule = {"criterion": "k_best", "k_best": size, "max_iter": None}
        classifier = SelfTrainingClassifier(classifier, **schedule)
        x = np.concatenate([x, unlabeled])
        labels = np.pad(labels, (0, len(unlabeled)), constant_values=-1)
    return make_pipeline(scaler, classifier.fit(scaler.transform(x), labels))


def fit_probe(
    fold: Fold, statistics: np.ndarray, *, self_training: bool = False
) -> tuple[Scores, dict]:
    """Scores and metrics of `train_probe` on `layer_statistics`, of the layer selected on validation."""
    index, n_layers = fold.corpus.manifest.index, statistics.shape[1]

    def fit(layer: int) -> Scores:
        probe = train_probe(fold, statistics[:, layer], self_training=self_training)
        return {
            part: probe.predict_log_proba(statistics[index.get_indexer(fold.parts[part]), layer])
            for part in fold.scored_parts
        }

    layer, scores = fold.select(fit, range(n_layers), n_layers - 1)
    return scores, {"layer": layer, "parameters": fold.n_classes * (statistics.shape[2] + 1)}


def z_by_speaker(statistics: np.ndarray, speakers: pd.Series) -> np.ndarray:
    """Z-scores of statistics over the utterances of each speaker, test speakers included."""
    z = np.empty_like(statistics)
    for rows in speakers.reset_index(drop=True).groupby(speakers.to_numpy()).groups.values():
        mean, deviation = statistics[rows].mean(axis=0), statistics[rows].std(axis=0)
        z[rows] = (statistics[rows] - mean) / np.maximum(deviation, 1e-6)
    return z


def fit_svm(fold: Fold, x: pd.DataFrame) -> tuple[Scores, dict]:
    """Scores and metrics of a linear SVM on features, indexed by utterance."""
    rows = {part: x.loc[names] for part, names in fold.parts.items()}

    def fit(c: float) -> Scores:
        svm = SVC(C=c, kernel="linear", class_weight="balanced")
        model = make_pipeline(StandardScaler(), svm).fit(rows["train"], fold.labels["train"])
        scores = {part: model.decision_function(rows[part]) for part in fold.scored_parts}
        if fold.n_classes == 2:
            scores = {part: np.stack([-score, score], axis=1) for part, score in scores.items()}
        return scores

    c, scores = fold.select(fit, SVM_C, 1e-2)
    n_pairs = fold.n_classes * (fold.n_classes - 1) // 2
    return scores, {"C": c, "parameters": n_pairs * (x.shape[1] + 1)}


def _majority(fold: Fold) -> tuple[Scores, dict]:
    """The emotions' training counts as scores of every utterance."""
    counts = np.bincount(fold.labels["train"], minlength=fold.n_classes).astype(float)
    scores = {part: np.tile(counts, (len(fold.parts[part]), 1)) for part in fold.scored_parts}
    return scores, {"parameters": 0}


def check_baselines(baselines: list[str], losses: Sequence[str] = LOSSES) -> None:
    """Raise a GmpError for unknown baselines, probes of other networks, and eGeMAPS without openSMILE."""
    if not (baselines or losses):
        raise GmpError("losses and baselines: found none, expected at least one of them.")
    for name in baselines:
        check_choice("baseline", name, BASELINES)
        if PROBES.get(name) in {*LOSSES} - {*losses}:
            found = f"baseline {name!r}: found losses {losses}"
            raise GmpError(f"{found}, expected {PROBES[name]!r} too.")
    check_opensmile(baselines)


def classify(
    run_dir: str,
    fold: int,
    *,
    baseline: str,
    encoder: str = "embedded",
    finetune_from: str = "encoder",
    seed: int = 0,
    readout_draws: int = 0,
) -> Path:
    """Train one of `BASELINES` on a fold's training speakers, and write predictions of the others.

    The probes "probe", "probe-z" and "self-training" use the pre-trained `encoder`, "probe-multitask" and
    "probe-retrained" the models of 02 and 05, and "probe-ce" and "probe-ams" the network that was fine-tuned
    from the model `finetune_from` with that loss. "self-training" also uses the training utterances without
    labels (see `train_probe`). "probe-z" and "egemaps-z" use z-scores by speaker, which is transductive:
    they use the audio of all utterances of a test speaker. With `readout_draws`, all probes but
    "self-training" also have a readout.parquet (see `gmp_utils.evaluation.readout`), whose draws depend on
    the `seed`. Otherwise, `finetune_from` and `seed` only name the networks that the baseline is listed with.
    """
    check_baselines([baseline])
    corpus, self_training = open_corpus(run_dir), baseline == "self-training"
    folder, stages = fold_folder(run_dir, fold) / FINETUNE / finetune_from, [corpus.stage]
    if self_training and not corpus.partition(fold)["unlabeled"]:
        raise GmpError(f"baseline {baseline!r}: all utterances have labels; lower labeled_share.")
    if baseline in EGEMAPS:
        stages.append(functionals(corpus))
    elif PROBES.get(baseline) == "encoder":
        corpus.check_encoder(encoder, fold)
        stages.append(layer_statistics(corpus, encoder))
    elif baseline in PROBES:
        model = PROBES[baseline]
        trained = (
            folder / model if model in LOSSES else stage_folder(run_dir, stage_of(model), fold)
        )
        stages.append(layer_statistics(corpus, encoder, trained))

    def build(folder: Path) -> None:
        data = Fold(corpus, fold)
        speakers = corpus.manifest.speaker
        if baseline in EGEMAPS:
            table = pd.read_parquet(stages[-1] / "functionals.parquet")
            if baseline == "egemaps-z":
                table[:] = z_by_speaker(table.to_numpy(), speakers)
            results = fit_svm(data, table)
        elif baseline in PROBES:
            statistics = np.load(stages[-1] / "statistics.npy", mmap_mode="r")
            if baseline == "probe-z":
                statistics = z_by_speaker(statistics, speakers)
            results = fit_probe(data, statistics, self_training=self_training)
            if readout_draws and not self_training:
                options = {"n_draws": readout_draws, "seed": seed}
                write_readout(folder, corpus.manifest, data.parts, statistics, **options)
        else:
            results = _majority(data)
        data.write(folder, *results)

    parameters = {"fold": fold, "loss": baseline, "finetune_from": finetune_from}
    return make_stage(
        folder / baseline,
        build,
        parameters=parameters | {"seed": seed, "readout_draws": readout_draws},
        stages=stages,
    )
