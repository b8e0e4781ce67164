"""Recalls, concordance, class separation, clusters and calibration: numbers from arrays."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.metrics import f1_score, recall_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import LeaveOneGroupOut

BINS = 10
ATTRIBUTES = ("emotion", "gender", "speaker", "sentence")
PERMUTATIONS = 10  # of labels, to estimate the chance level


def uar(true: Sequence, predicted: Sequence) -> float:
    """Unweighted average recall: mean recall over the classes that occur in `true`."""
    return float(recall_score(true, predicted, labels=np.unique(true), average="macro"))


def macro_f1(true: Sequence, predicted: Sequence) -> float:
    """Mean F1 score over the classes that occur in `true`."""
    return float(f1_score(true, predicted, labels=np.unique(true), average="macro"))


def ccc(true: np.ndarray, predicted: np.ndarray) -> float:
    """Concordance correlation coefficient: 1 for equality, lower for any shift, scale or noise.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", 1989.
    """
    covariance = np.mean((true - np.mean(true)) * (predicted - np.mean(predicted)))
    shift = np.mean(true) - np.mean(predicted)
    return float(2 * covariance / (np.var(true) + np.var(predicted) + shift**2))


def task_metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Mean cross-entropy of logits (n_utterances, n_classes), and UAR, named after the task."""
    loss = -np.mean(log_softmax(logits, axis=1)[np.arange(len(labels)), labels])
    return {f"{task}_ce": float(loss), f"{task}_uar": uar(labels, logits.argmax(axis=1))}


def class_separation(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Cosine distances of vectors (n_utterances, dim), and their ratio.

    `inter_class` is the mean distance between class centers, `intra_class` that of utterances to theirs.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    classes, index = np.unique(labels, return_inverse=True)
    centers = np.stack([unit[labels == label].mean(axis=0) for label in classes])
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    inter = float(np.mean(1 - (centers @ centers.T)[np.triu_indices(len(centers), 1)]))
    intra = float(np.mean(1 - np.sum(unit * centers[index], axis=1)))
    return {"inter_class": inter, "intra_class": intra, "ratio": inter / max(intra, 1e-9)}


def adjusted_information(
    labels: np.ndarray, clusters: np.ndarray, units: np.ndarray, groups: np.ndarray
) -> float:
    """Adjusted mutual information (AMI) of labels and clusters of frames, normalized by the smaller entropy.

    It follows Vinh et al., "Information Theoretic Measures for Clusterings Comparison", 2010, but the chance
    level is the mean over random permutations of the labels among the units (utterances) of each group
    (speaker). The closed form permutes labels among frames. It is above 0 even for unrelated labels, because
    frames of an utterance are similar, and takes minutes for a million frames and thousands of clusters.
    Labels that are constant within each group, such as gender, are permuted among all units, so their value
    includes any other difference between the groups. The value is 0 on average for unrelated labels that vary
    within groups, and 1 for clusters that determine the labels. Arrays are (n_frames,); the
    frames of a unit share label and group.
    """
    units = pd.factorize(units)[0]
    counts, first = contingency_matrix(units, clusters, sparse=True), np.unique(units, True)[1]
    labels, groups = (pd.factorize(np.asarray(values)[first])[0] for values in (labels, groups))
    if pd.Series(labels).groupby(groups).nunique().max() == 1:
        groups = np.zeros_like(groups)

    def information(labels: np.ndarray) -> tuple[float, float]:
        indicator = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
        table = (indicator @ counts).toarray()
        entropies = entropy(table.sum(axis=0)), entropy(table.sum(axis=1))
        return sum(entropies) - entropy(table, axis=None), min(entropies)

    rng, order, by_chance = np.random.default_rng(0), np.argsort(groups, kind="stable"), []
    for _ in range(PERMUTATIONS):
        permuted = np.empty_like(labels)
        permuted[order] = labels[np.lexsort((rng.random(len(labels)), groups))]
        by_chance.append(information(permuted)[0])
    (found, highest), chance = information(labels), np.mean(by_chance)
    return float((found - chance) / max(highest - chance, 1e-9))


def attributes(frames: pd.DataFrame) -> list[str]:
    """The `ATTRIBUTES` that all frames have and that vary.

    The speaker is left out if each gender has only one speaker.
    """
    found = [name for name in ATTRIBUTES if name in frames and frames[name].notna().all()]
    found = [name for name in found if frames[name].nunique() > 1]
    if "gender" in found and frames.groupby("gender").speaker.nunique().max() == 1:
        found.remove("speaker")
    return found


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are divided by to calibrate their softmax, from 0.01 to 100.

    Guo et al., "On Calibration of Modern Neural Networks", 2017. Targets are smoothed by one utterance in n,
    as in Platt, "Probabilistic Outputs for Support Vector Machines", 1999, so that confidence stays below 1
    for a few utterances without errors.
    """
    n, n_classes = logits.shape
    targets = np.full((n, n_classes), 1 / (n + 1) / n_classes)
    targets[np.arange(n), labels] += n / (n + 1)

    def cross_entropy(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -np.mean(np.sum(targets * scaled, axis=1))

    bounds = np.log(0.01), np.log(100)
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def temperature(logits: np.ndarray, labels: np.ndarray, speakers: np.ndarray) -> float:
    """`fit_temperature` where it lowers the cross-entropy of held-out speakers, otherwise 1.

    One speaker is left out at a time. The value is 1 for a single speaker.
    """
    if len(np.unique(speakers)) < 2:
        return 1.0
    scaled = np.empty_like(logits)
    for fitted, left_out in LeaveOneGroupOut().split(logits, groups=speakers):
        scaled[left_out] = logits[left_out] / fit_temperature(logits[fitted], labels[fitted])
    before, after = (task_metrics(values, labels, "")["_ce"] for values in (logits, scaled))
    return fit_temperature(logits, labels) if after < before else 1.0


def confidence_bins(confidence: pd.Series) -> pd.Series:
    """The bin of each confidence, from 0 to 9."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Mean `confidence`, `accuracy` and number of `utterances` in each of `confidence_bins` that has any."""
    rows = pd.DataFrame({"confidence": confidence, "accuracy": np.asarray(correct, dtype=float)})
    bins = rows.groupby(confidence_bins(rows.confidence))
    return bins.mean().assign(utterances=bins.size()).reset_index(drop=True)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability` (ECE)."""
    table = reliability(confidence, correct)
    distance = (table.confidence - table.accuracy).abs()
    return float(np.average(distance, weights=table.utterances))
