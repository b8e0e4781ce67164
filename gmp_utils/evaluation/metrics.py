"""Recalls, concordance and calibration: numbers from arrays."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import recall_score
from torch.nn import functional as F

BINS = 10


def recalls(true: Sequence, predicted: Sequence, classes: Sequence) -> np.ndarray:
    """Recall of each class.

    Parameters
    ----------
    true, predicted : (n_utterances,) sequence
    classes : sequence
        All classes, also those absent here.

    Returns
    -------
    recalls : (n_classes,) float64
        NaN for a class that `true` does not hold.
    """
    return recall_score(true, predicted, labels=classes, average=None, zero_division=np.nan)


def uar(true: Sequence, predicted: Sequence) -> float:
    """Unweighted average recall: mean recall over the classes that occur in `true`."""
    return float(np.mean(recalls(true, predicted, np.unique(true))))


def war(true: Sequence, predicted: Sequence) -> float:
    """Weighted average recall: accuracy."""
    return float(np.mean(np.asarray(true) == np.asarray(predicted)))


def ccc(true: np.ndarray, predicted: np.ndarray) -> float:
    """Concordance correlation coefficient: 1 for equality, lower for any shift, scale or noise.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", 1989.

    Parameters
    ----------
    true, predicted : (n,) float
    """
    covariance = np.mean((true - np.mean(true)) * (predicted - np.mean(predicted)))
    shift = np.mean(true) - np.mean(predicted)
    return float(2 * covariance / (np.var(true) + np.var(predicted) + shift**2))


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
    return {f"{task}_ce": float(loss), f"{task}_uar": uar(labels, logits.argmax(axis=1))}


def class_separation(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
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


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What logits have to be divided by, for their softmax to be as sure as it is right.

    Targets are smoothed by one utterance in as many as there are, as Platt's are ("Probabilistic Outputs for
    Support Vector Machines", 1999), so that a few utterances without an error do not make it certain.

    Parameters
    ----------
    logits : (n_utterances, n_classes) float
    labels : (n_utterances,) int

    Returns
    -------
    temperature : float
        Above 1 where the classifier is too sure; from 0.01 to 100.
    """
    n, classes = logits.shape
    targets = np.full((n, classes), 1 / (n + 1) / classes)
    targets[np.arange(n), labels] += n / (n + 1)

    def cross_entropy(logarithm: float) -> float:
        return -np.mean(np.sum(targets * log_softmax(logits / np.exp(logarithm), axis=1), axis=1))

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.01), np.log(100)), method="bounded")
    return float(np.exp(found.x))


def reliability(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """How often a classifier is right when it is so sure.

    Parameters
    ----------
    confidence : (n_utterances,) float
        Its highest probability, 0 to 1.
    correct : (n_utterances,) bool

    Returns
    -------
    table : DataFrame
        A row for each of ten equally wide ranges that holds any: mean `confidence`, `accuracy`, `utterances`.
    """
    rows = pd.DataFrame({"confidence": confidence, "accuracy": np.asarray(correct, dtype=float)})
    rows["range"] = np.minimum((rows.confidence * BINS).astype(int), BINS - 1)
    grouped = rows.groupby("range")
    return grouped.mean().assign(utterances=grouped.size()).reset_index(drop=True)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean distance of confidence and accuracy in `reliability`: the ECE of Guo et al., equation 3."""
    table = reliability(confidence, correct)
    distance = (table.confidence - table.accuracy).abs()
    return float(np.average(distance, weights=table.utterances))
