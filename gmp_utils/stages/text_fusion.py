"""Text baselines of stage 06: transcripts alone, or fused with speech."""

import warnings
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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from gmp_utils import GmpError, check_choice
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.heads import mean_over_time
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import make_stage
from gmp_utils.stages.baselines import Fold, Scores
from gmp_utils.training import features

TEXT_KINDS = ("text", "late-fusion", "embedding-fusion")
SPEECH_WEIGHTS = sorted(np.linspace(0, 1, 21), key=lambda w: abs(w - 0.5))  # nearest to 0.5 first
MLP_ALPHAS = (10.0, 1e-1, 1e-3)  # L2 penalties
MLP_SIZE = 64
MLP_EPOCHS = 300  # at most
TOPICS = 100  # dimensions of TF-IDF in embedding fusion

Features = dict[str, np.ndarray | csr_matrix]  # by part, (n_utterances, dim)


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
    model = AutoModel.from_pretrained(source, trust_remote_code=False, dtype=torch.float32)
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
    texts = corpus.manifest.reindex(columns=["text"]).text
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

    def fuse(weight: float) -> Scores:
        return {part: weight * by_speech[part] + (1 - weight) * by_text[part] for part in by_text}

    weight, scores = fold.select(fuse, SPEECH_WEIGHTS, 0.5)
    return scores, {"speech_weight": weight, "parameters": metrics["parameters"] + 1}


def _fuse_embeddings(fold: Fold, text: Features, speech: Path, seed: int) -> tuple[Scores, dict]:
    """Scores and metrics of a multilayer perceptron on the network's features and text features."""
    network = EmotionClassifier.load(str(speech / "model"))
    inputs = features.model_inputs(network, fold.corpus)
    x = {}
    for part in ("train", *fold.scored_parts):
        embeddings, _ = features.embed_and_classify(network, inputs, fold.parts[part])
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
    part that the protocol selects on, or "embedding-fusion", a multilayer perceptron on the features of both.
    `speech` is a stage of `gmp_utils.stages.finetune.finetune`. `text_encoder` is "tf-idf", which embedding
    fusion reduces to `TOPICS` dimensions, or a model for `embed`.
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
