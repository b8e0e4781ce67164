"""Baselines of stage 06: a probe, eGeMAPS, the majority class, and text alone or fused with speech."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from gmp_utils import GmpError, check_choice
from gmp_utils.data.audio import SAMPLE_RATE, to_float
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.evaluation.metrics import uar
from gmp_utils.evaluation.predictions import write_predictions
from gmp_utils.evaluation.readout import PROBE_C, write_readout
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import mean_over_time
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.experiments import check_opensmile
from gmp_utils.runs.files import read_json, text_digest, write_json
from gmp_utils.runs.paths import FINETUNE, fold_folder, stage_folder, stage_of
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features

PROBES = {  # the probed model of each
    "probe": "encoder",
    "probe-z": "encoder",
    "probe-multitask": "multitask",
    "probe-retrained": "retrained",
}
BASELINES = (*PROBES, "egemaps", "majority")
SVM_C = (1e-3, 1e-2, 1e-1, 1.0)
TEXT_KINDS = ("text", "late-fusion", "embedding-fusion")
SPEECH_WEIGHTS = np.linspace(0, 1, 21)  # in late fusion
MLP_ALPHAS = (10.0, 1e-1, 1e-3)  # L2 penalties
MLP_SIZE = 64
MLP_EPOCHS = 300  # at most
TOPICS = 100  # dimensions of TF-IDF in embedding fusion

Scores = dict[str, np.ndarray]  # by part, (n_utterances, n_classes)
Features = dict[str, np.ndarray | csr_matrix]  # by part, (n_utterances, dim)


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


def functionals(corpus: Corpus) -> Path:
    """Make the stage with the 88 eGeMAPS functionals of every utterance, functionals.parquet.

    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016; the extended set, version 2.
    """

    def build(folder: Path) -> None:
        import opensmile

        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        rows = [
            smile.process_signal(to_float(corpus.waveforms[name]), SAMPLE_RATE).iloc[0]
            for name in tqdm(corpus.manifest.utterance, "eGeMAPS", disable=None)
        ]
        table = pd.DataFrame(rows).set_index(corpus.manifest.index)
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
        folder, stages = trained.parent / "probe" / trained.name, [corpus.stage, trained]
        return make_stage(folder, build, parameters={}, stages=stages)
    fingerprint, parameters = weights.fingerprint(encoder), {"encoder": encoder}
    folder = corpus.stage.parent / "probe" / text_digest(fingerprint)[:12]
    stages, inputs = [corpus.stage], [fingerprint]
    return make_stage(folder, build, parameters=parameters, stages=stages, inputs=inputs)


def train_probe(fold: Fold, statistics: np.ndarray) -> Pipeline:
    """Logistic regression on one layer of `layer_statistics`, (n_utterances, dim), of the training part."""
    rows = fold.corpus.manifest.index.get_indexer(fold.parts["train"])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=5000))
    return probe.fit(statistics[rows], fold.labels["train"])


def fit_probe(fold: Fold, statistics: np.ndarray) -> tuple[Scores, dict]:
    """Scores and metrics of logistic regression on `layer_statistics` of the layer selected on validation."""
    index, n_layers = fold.corpus.manifest.index, statistics.shape[1]

    def fit(layer: int) -> Scores:
        probe = train_probe(fold, statistics[:, layer])
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


def check_baselines(baselines: list[str]) -> None:
    """Raise a GmpError for unknown baselines, and for eGeMAPS without openSMILE."""
    for name in baselines:
        check_choice("baseline", name, BASELINES)
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

    "probe" and "probe-z" are probes of the pre-trained `encoder`, the others of the models of 02 and 05.
    "probe-z" uses z-scores by speaker, which is transductive: they use the audio of all utterances of a test
    speaker. With `readout_draws`, a probe also has a readout.parquet (see `gmp_utils.evaluation.readout`),
    whose draws depend on the `seed`. Otherwise, `finetune_from` and `seed` only name the networks that the
    baseline is listed with.
    """
    check_baselines([baseline])
    corpus = open_corpus(run_dir)
    stages = [corpus.stage]
    if baseline == "egemaps":
        stages.append(functionals(corpus))
    elif PROBES.get(baseline) == "encoder":
        corpus.check_encoder(encoder, fold)
        stages.append(layer_statistics(corpus, encoder))
    elif baseline in PROBES:
        trained = stage_folder(run_dir, stage_of(PROBES[baseline]), fold)
        stages.append(layer_statistics(corpus, encoder, trained))

    def build(folder: Path) -> None:
        data = Fold(corpus, fold)
        if baseline == "egemaps":
            results = fit_svm(data, pd.read_parquet(stages[-1] / "functionals.parquet"))
        elif baseline in PROBES:
            statistics = np.load(stages[-1] / "statistics.npy")
            if baseline == "probe-z":
                statistics = z_by_speaker(statistics, corpus.manifest.speaker)
            results = fit_probe(data, statistics)
            if readout_draws:
                options = {"n_draws": readout_draws, "seed": seed}
                write_readout(folder, corpus.manifest, data.parts, statistics, **options)
        else:
            results = _majority(data)
        data.write(folder, *results)

    parameters = {"fold": fold, "loss": baseline, "finetune_from": finetune_from}
    return make_stage(
        fold_folder(run_dir, fold) / FINETUNE / finetune_from / baseline,
        build,
        parameters=parameters | {"seed": seed, "readout_draws": readout_draws},
        stages=stages,
    )


def tfidf(texts: list[str], train: list[int]) -> csr_matrix:
    """TF-IDF of words and word pairs, fitted on the training texts."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return vectorizer.fit([texts[index] for index in train]).transform(texts)


def topics(words: csr_matrix, train: list[int], seed: int) -> np.ndarray:
    """The first `TOPICS` dimensions of latent semantic analysis, fitted on the training texts."""
    svd = TruncatedSVD(min(TOPICS, words.shape[1], len(train)), random_state=seed)
    return svd.fit(words[train]).transform(words)


def embed(texts: list[str], encoder: str) -> np.ndarray:
    """Mean over tokens of a text encoder's last layer, (n_texts, dim) float32."""
    source, vectors = weights.resolve(encoder), []
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = AutoModel.from_pretrained(source, trust_remote_code=False)
    model.eval().to(hardware.device())
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), 32), "text", disable=None):
            batch = texts[start : start + 32]
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(hardware.device())
            states = model(**tokens).last_hidden_state.float()
            vectors.append(mean_over_time(states, tokens["attention_mask"].bool()))
    return torch.cat(vectors).cpu().numpy()


def _transcripts(corpus: Corpus) -> list[str]:
    """The text of every utterance; raises a GmpError if any has none."""
    texts = corpus.manifest.get("text", pd.Series(None, corpus.manifest.index, dtype=object))
    missing = texts.index[texts.isna()]
    if len(missing):
        found = f"{missing[0]} has no text ({len(missing)} such of {len(texts)})"
        raise GmpError(f"{found}; add transcripts, or leave text empty in notebook 06.")
    return texts.tolist()


def check_text(run_dir: str, kinds: list[str], text_encoder: str, losses: list[str]) -> None:
    """Raise a GmpError for text baselines that cannot be trained next to networks of these losses."""
    if not kinds:
        return
    for kind in kinds:
        check_choice("text", kind, TEXT_KINDS)
    if not losses:
        raise GmpError("text with losses []: there is no network to fuse it with; add a loss.")
    _transcripts(open_corpus(run_dir))
    if text_encoder != "tf-idf":
        AutoTokenizer.from_pretrained(weights.resolve(text_encoder), trust_remote_code=False)


def best_speech_weight(speech: np.ndarray, text: np.ndarray, true: np.ndarray) -> float:
    """The weight of speech with the highest UAR, and among ties the one nearest to 0.5."""
    scores = [uar(true, (w * speech + (1 - w) * text).argmax(axis=1)) for w in SPEECH_WEIGHTS]
    best = SPEECH_WEIGHTS[np.isclose(scores, max(scores))]
    return float(best[np.abs(best - 0.5).argmin()])


def _classify_text(fold: Fold, text: Features) -> tuple[Scores, dict]:
    """Scores and metrics of logistic regression on text features."""
    model = LogisticRegression(max_iter=1000, class_weight="balanced")
    if isinstance(text["train"], np.ndarray):
        model = make_pipeline(StandardScaler(), model)
    model.fit(text["train"], fold.labels["train"])
    scores = {part: model.predict_proba(text[part]) for part in fold.scored_parts}
    return scores, {"parameters": fold.n_classes * (text["train"].shape[1] + 1)}


def _fuse_late(fold: Fold, text: Features, speech: Path) -> tuple[Scores, dict]:
    """Scores and metrics of weighted means of the probabilities of text and speech."""
    by_text, metrics = _classify_text(fold, text)
    table = pd.read_parquet(speech / "predictions.parquet").set_index("utterance")
    logits = {part: table.loc[fold.parts[part], fold.corpus.emotions] for part in by_text}
    by_speech = {part: softmax(rows.to_numpy(), axis=1) for part, rows in logits.items()}
    weight, part = 0.5, fold.corpus.protocol.selection_part
    if fold.corpus.protocol.selection != "last":
        weight = best_speech_weight(by_speech[part], by_text[part], fold.labels[part])
    scores = {part: weight * by_speech[part] + (1 - weight) * by_text[part] for part in by_text}
    return scores, {"speech_weight": weight, "parameters": metrics["parameters"] + 1}


def _fuse_embeddings(fold: Fold, text: Features, speech: Path, seed: int) -> tuple[Scores, dict]:
    """Scores and metrics of a perceptron on the network's features and text features."""
    network = EmotionClassifier.load(str(speech / "model"))
    inputs = features.model_inputs(network, fold.corpus)
    x = {}
    for part, names in fold.parts.items():
        embeddings, _ = features.embed_and_classify(network, inputs, names)
        x[part] = np.hstack([embeddings, text[part]])

    def fit(alpha: float) -> Scores:
        mlp = MLPClassifier((MLP_SIZE,), alpha=alpha, max_iter=MLP_EPOCHS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # MLP_EPOCHS is deliberate
            model = make_pipeline(StandardScaler(), mlp).fit(x["train"], fold.labels["train"])
        return {part: model.predict_proba(x[part]) for part in fold.scored_parts}

    alpha, scores = fold.select(fit, MLP_ALPHAS, 1e-1)
    n_parameters = (x["train"].shape[1] + 1) * MLP_SIZE + (MLP_SIZE + 1) * fold.n_classes
    return scores, {"alpha": alpha, "parameters": n_parameters}


def fuse(
    run_dir: str, fold: int, *, kind: str, speech: Path, text_encoder: str = "tf-idf", seed: int = 0
) -> Path:
    """Classify transcripts, alone or fused with speech, in a stage next to that of the speech.

    `kind` is "text" alone (logistic regression), "late-fusion" of probabilities, with the best weight on the
    part that the protocol selects on, or "embedding-fusion", a perceptron on the features of both. `speech`
    is a stage of `gmp_utils.stages.finetune.finetune`. `text_encoder` is "tf-idf", which embedding fusion
    reduces to `TOPICS` dimensions, or a model for `embed`.
    """
    corpus = open_corpus(run_dir)
    transcripts, index = _transcripts(corpus), corpus.manifest.index

    def build(folder: Path) -> None:
        data = Fold(corpus, fold)
        rows = {part: index.get_indexer(names) for part, names in data.parts.items()}
        if text_encoder == "tf-idf":
            words = tfidf(transcripts, rows["train"])
            if kind == "embedding-fusion":
                words = topics(words, rows["train"], seed)
        else:
            words = embed(transcripts, text_encoder)
        text = {part: words[numbers] for part, numbers in rows.items()}
        if kind == "embedding-fusion":
            results = _fuse_embeddings(data, text, speech, seed)
        elif kind == "late-fusion":
            results = _fuse_late(data, text, speech)
        else:
            results = _classify_text(data, text)
        data.write(folder, *results)

    network, fused = read_json(speech / "params.json"), kind != "text"
    parameters = {"fold": fold, "loss": kind} | ({"speech": network["loss"]} if fused else {})
    parameters |= {"finetune_from": network["finetune_from"], "text_encoder": text_encoder}
    return make_stage(
        speech.with_name(kind),
        build,
        parameters=parameters | {"seed": seed},
        stages=[corpus.stage, *[speech] * fused],
        inputs=[] if text_encoder == "tf-idf" else [weights.fingerprint(text_encoder)],
    )
