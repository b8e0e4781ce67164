"""Baselines of stage 06 that need no encoder: eGeMAPS functionals with an SVM, and the majority."""

import warnings
from importlib.util import find_spec
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
from sklearn.svm import SVC
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.evaluation.collect import write_predictions
from gmp_utils.evaluation.metrics import uar
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.heads import mean_over_time
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.experiments import OPENSMILE
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import FINETUNE, INITIALIZATIONS, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features

BASELINES = ("egemaps", "majority")
GRID = (1e-3, 1e-2, 1e-1, 1.0)  # of the SVM's C
C = 1e-2  # where a protocol does not choose on anything
KINDS = ("text", "late-fusion", "embedding-fusion")
WEIGHTS = np.linspace(0, 1, 21)  # of speech, in late fusion
ALPHAS = (1e-3, 1e-1, 10.0)  # the perceptron's penalties
PASSES = 300  # of the perceptron over the training speakers, at most
TOPICS = 100  # dimensions of TF-IDF that the perceptron is given


def functionals(corpus: Corpus) -> Path:
    """88 functionals of every utterance; computed once for a run.

    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016; the extended set, version 2.

    Parameters
    ----------
    corpus : Corpus

    Returns
    -------
    stage : Path
        With functionals.parquet, (n_utterances, 88), indexed by utterance.

    Raises
    ------
    GmpError
        Without openSMILE.
    """
    check_baselines(["egemaps"])

    def build(folder: Path) -> None:
        import opensmile

        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        rows = [
            smile.process_signal(corpus.waveforms[name] / 32767, audio.SAMPLE_RATE).iloc[0]
            for name in tqdm(corpus.manifest.utterance, "eGeMAPS", disable=None)
        ]
        table = pd.DataFrame(rows).set_index(corpus.manifest.index)
        table.to_parquet(folder / "functionals.parquet")

    return make_stage(
        corpus.stage.parent / "egemaps",
        build,
        parameters={},
        stages=[corpus.stage],
        module=__name__,
    )


def _svm(
    corpus: Corpus, parts: dict[str, list[str]], x: pd.DataFrame
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of the held-out parts by the C that the protocol selects, and what was selected."""
    judged, n = corpus.protocol.selection_part, len(corpus.emotions)
    y = {part: corpus.labels(names, "emotion") for part, names in parts.items()}
    grid = (C,) if corpus.protocol.selection == "last" else GRID
    fitted = []
    for c in grid:
        model = make_pipeline(StandardScaler(), SVC(C=c, kernel="linear", class_weight="balanced"))
        model.fit(x.loc[parts["train"]], y["train"])
        scores = {}
        for part, names in parts.items():
            if part != "train" and names:
                own = model.decision_function(x.loc[names])
                scores[part] = own if own.ndim == 2 else np.stack([-own, own], axis=1)
        fitted.append((uar(y[judged], scores[judged].argmax(axis=1)), c, scores))
    score, c, scores = max(fitted, key=lambda one: one[0])  # of equals the smallest C
    return scores, {"C": c, "emotion_uar": score, "parameters": n * (n - 1) // 2 * (x.shape[1] + 1)}


def _majority(corpus: Corpus, parts: dict[str, list[str]]) -> tuple[dict[str, np.ndarray], dict]:
    labels = corpus.labels(parts["train"], "emotion")
    counts = np.bincount(labels, minlength=len(corpus.emotions)).astype(float)
    found = {
        part: np.tile(counts, (len(names), 1))
        for part, names in parts.items()
        if part != "train" and names
    }
    return found, {"parameters": 0}


def check_baselines(baselines: list[str]) -> None:
    """Refuse unknown baselines, and those that cannot be, before any work is done."""
    for name in baselines:
        if name not in BASELINES:
            raise GmpError(f"baseline {name!r}: expected one of {', '.join(BASELINES)}.")
    if "egemaps" in baselines and find_spec("opensmile") is None:
        raise GmpError(OPENSMILE)


def classify(run_dir: str, fold: int, baseline: str, use_gmps: bool = False, seed: int = 0) -> Path:
    """Learn a baseline from a fold's training speakers, and classify its validation and test speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    baseline : str
        Of `BASELINES`.
    use_gmps : bool
        Which networks it stands beside; like the seed it changes nothing, and is kept for tables.
    seed : int

    Returns
    -------
    stage : Path
        With predictions.parquet (validation and test) and metrics.json.

    Raises
    ------
    GmpError
        For another baseline, for eGeMAPS without openSMILE, or if stage 01 is not there.
    """
    check_baselines([baseline])
    corpus = open_corpus(run_dir)
    parts, made_from = corpus.partition(fold), [corpus.stage]
    if baseline == "egemaps":
        made_from.append(functionals(corpus))

    def build(folder: Path) -> None:
        if baseline == "egemaps":
            x = pd.read_parquet(made_from[-1] / "functionals.parquet")
            scores, metrics = _svm(corpus, parts, x)
        else:
            scores, metrics = _majority(corpus, parts)
        write_predictions(folder, corpus.manifest, parts, scores, corpus.emotions)
        write_json(folder / "metrics.json", metrics)

    return make_stage(
        run_folder(run_dir) / f"fold{fold}" / FINETUNE / INITIALIZATIONS[use_gmps] / baseline,
        build,
        parameters={"fold": fold, "loss": baseline, "use_gmps": use_gmps, "seed": seed},
        stages=made_from,
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def _tfidf(texts: list[str], heard: list[int]) -> csr_matrix:
    """TF-IDF of words and pairs of words, of a vocabulary that only some texts shape."""
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        tfidf.fit([texts[index] for index in heard])
    except ValueError as error:
        raise GmpError(
            f"text: no words in the training speakers' transcripts ({error})."
        ) from error
    return tfidf.transform(texts)


def _topics(words: csr_matrix, heard: list[int], seed: int) -> np.ndarray:
    """Their `TOPICS` strongest directions in some texts (latent semantic analysis)."""
    svd = TruncatedSVD(min(TOPICS, words.shape[1], len(heard)), random_state=seed)
    return svd.fit(words[heard]).transform(words)


def embed(texts: list[str], encoder: str) -> np.ndarray:
    """Represent transcripts by a text encoder of transformers, its last layer averaged over tokens.

    Parameters
    ----------
    texts : list of str
    encoder : str
        A folder, or a name on the hub.

    Returns
    -------
    vectors : (n_texts, dim) float32
    """
    source = weights.resolve(encoder)
    tokenizer = _tokenizer(encoder)
    model = AutoModel.from_pretrained(
        weights.as_safetensors(source), use_safetensors=True, trust_remote_code=False
    )
    model.eval().to(hardware.device())
    vectors = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), 32), "text", disable=None):
            batch = texts[start : start + 32]
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(hardware.device())
            states = model(**tokens).last_hidden_state.float()
            vectors.append(mean_over_time(states, tokens["attention_mask"].bool()))
    return torch.cat(vectors).cpu().numpy()


def _tokenizer(encoder: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(weights.resolve(encoder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise GmpError(
            f"text_encoder {encoder!r}: no tokenizer could be read there ({str(error).splitlines()[0]}). "
            'Expected "tf-idf", a folder, or a name on the hub and a network to reach it.'
        ) from error


def _transcripts(corpus: Corpus) -> list[str]:
    """One per utterance of the manifest.

    Raises
    ------
    GmpError
        If some have none.
    """
    said = corpus.manifest.get("text", pd.Series(None, corpus.manifest.index, dtype=object))
    without = said.index[said.isna()]
    if len(without):
        raise GmpError(
            f"{without[0]} has no text ({len(without)} such of {len(said)}): fusion needs a transcript of "
            "every utterance; complete the corpus, or leave text out of notebook 06."
        )
    return said.tolist()


def check_text(run_dir: str, text: list[str], text_encoder: str, losses: list[str]) -> None:
    """Refuse what cannot be fused, before networks are trained for it.

    Parameters
    ----------
    run_dir : str
    text : list of str
        Of `KINDS`; with none there is nothing to refuse.
    text_encoder : str
    losses : list of str
        Of the networks; the first is joined with the text.

    Raises
    ------
    GmpError
    """
    if not text:
        return
    for kind in text:
        if kind not in KINDS:
            raise GmpError(f"text: found {kind!r}, expected some of {', '.join(KINDS)}.")
    if not losses:
        raise GmpError("text with losses []: there is no network to join it with; name a loss.")
    _transcripts(open_corpus(run_dir))
    if text_encoder != "tf-idf":
        _tokenizer(text_encoder)


def _probabilities(model, x: np.ndarray, n_classes: int) -> np.ndarray:
    """Of all emotions, (n, n_classes), also of those that a classifier never met."""
    found = np.zeros((x.shape[0], n_classes))
    found[:, model.classes_] = model.predict_proba(x)
    return found


def weight_of_speech(speech: np.ndarray, text: np.ndarray, true: np.ndarray) -> float:
    """The weight that recognises most; of equals the one that is nearest to a half.

    Parameters
    ----------
    speech, text : (n_utterances, n_classes) float
        Probabilities of utterances that neither model learnt from.
    true : (n_utterances,) int64

    Returns
    -------
    weight : float
        0 to 1, of `WEIGHTS`.
    """
    scores = [uar(true, (w * speech + (1 - w) * text).argmax(axis=1)) for w in WEIGHTS]
    best = WEIGHTS[np.isclose(scores, max(scores))]
    return float(best[np.abs(best - 0.5).argmin()])


def fuse(
    run_dir: str, fold: int, kind: str, speech: Path, text_encoder: str = "tf-idf", seed: int = 0
) -> Path:
    """Classify transcripts, or transcripts and speech together.

    Parameters
    ----------
    run_dir : str
    fold : int
    kind : str
        "text" alone (logistic regression); "late-fusion", whose weight is the best on what the protocol
        selects on (a half where it selects on nothing); or "embedding-fusion", whose perceptron learns
        from the training speakers' embeddings, which the network knows better than any others.
    speech : Path
        A stage of `gmp_utils.stages.finetune.finetune`.
    text_encoder : str
        "tf-idf", or see `embed`. The perceptron is given TF-IDF's strongest directions.
    seed : int
        Of the perceptron, and of these.

    Returns
    -------
    stage : Path
        Beside `speech`, with predictions.parquet and metrics.json.

    Raises
    ------
    GmpError
        For another kind, or where transcripts are missing.
    """
    if kind not in KINDS:
        raise GmpError(f"text: found {kind!r}, expected some of {', '.join(KINDS)}.")
    corpus = open_corpus(run_dir)
    parts, names = corpus.partition(fold), list(corpus.manifest.index)
    transcripts = _transcripts(corpus)
    place = {name: index for index, name in enumerate(names)}
    rows = {part: [place[name] for name in own] for part, own in parts.items() if own}
    y = {part: corpus.labels(parts[part], "emotion") for part in rows}
    judged, held_out = corpus.protocol.selection_part, [part for part in rows if part != "train"]
    choose, n = corpus.protocol.selection != "last", len(corpus.emotions)

    def by_text(words) -> tuple[dict[str, np.ndarray], dict]:
        model = LogisticRegression(max_iter=1000, class_weight="balanced")
        if text_encoder != "tf-idf":
            model = make_pipeline(StandardScaler(), model)
        model.fit(words[rows["train"]], y["train"])
        found = {part: _probabilities(model, words[rows[part]], n) for part in held_out}
        return found, {"parameters": n * (words.shape[1] + 1)}

    def late(words) -> tuple[dict[str, np.ndarray], dict]:
        texts, metrics = by_text(words)
        table = pd.read_parquet(speech / "predictions.parquet").set_index("utterance")
        heard = {
            part: softmax(table.loc[parts[part], corpus.emotions].to_numpy(), axis=1)
            for part in held_out
        }
        w = weight_of_speech(heard[judged], texts[judged], y[judged]) if choose else 0.5
        found = {part: w * heard[part] + (1 - w) * texts[part] for part in held_out}
        return found, {"weight of speech": w, "parameters": metrics["parameters"] + 1}

    def joint(words) -> tuple[dict[str, np.ndarray], dict]:
        if text_encoder == "tf-idf":
            words = _topics(words, rows["train"], seed)
        network = EmotionClassifier.load(str(speech / "model"))
        inputs = features.model_inputs(network, corpus)
        vectors = {
            part: features.embed_and_classify(network, corpus, inputs, parts[part])[0]
            for part in rows
        }
        x = {part: np.hstack([vectors[part], words[rows[part]]]) for part in rows}
        fitted = []
        for alpha in ALPHAS if choose else ALPHAS[1:2]:
            mlp = MLPClassifier((64,), alpha=alpha, max_iter=PASSES, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes are meant
                model = make_pipeline(StandardScaler(), mlp).fit(x["train"], y["train"])
            found = {part: _probabilities(model, x[part], n) for part in held_out}
            score = uar(y[judged], found[judged].argmax(axis=1))
            fitted.append((score, alpha, found))
        _, alpha, found = max(fitted, key=lambda one: one[:2])  # of equals the simplest
        size = x["train"].shape[1]
        return found, {"alpha": alpha, "parameters": (size + 1) * 64 + 65 * n}

    def build(folder: Path) -> None:
        if text_encoder == "tf-idf":
            words = _tfidf(transcripts, rows["train"])
        else:
            words = embed(transcripts, text_encoder)
        found, metrics = {"text": by_text, "late-fusion": late, "embedding-fusion": joint}[kind](
            words
        )
        metrics["emotion_uar"] = uar(y[judged], found[judged].argmax(axis=1))
        write_predictions(folder, corpus.manifest, parts, found, corpus.emotions)
        write_json(folder / "metrics.json", metrics)

    given = read_json(speech / "params.json")
    joined = {} if kind == "text" else {"speech": given["loss"]}
    known = [] if text_encoder == "tf-idf" else [weights.fingerprint(text_encoder)]
    return make_stage(
        speech.with_name(kind),
        build,
        parameters={
            "fold": fold,
            "loss": kind,
            **joined,
            "use_gmps": given["use_gmps"],
            "text_encoder": text_encoder,
            "seed": seed,
        },
        stages=[corpus.stage, *([speech] if joined else [])],
        inputs=known,
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
