"""Recalls, concordance, and the predictions that every classifier leaves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import recall_score

LOSS_NAMES = {
    "ce": "CE",
    "ams": "AMS",
    "ce-then-ams": "CE then AMS",
    "egemaps": "SVM on eGeMAPS",
    "majority": "majority",
    "text": "text alone",
    "late-fusion": "with text, late",
    "embedding-fusion": "with text, embeddings",
}


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


def predictions_table(
    manifest: pd.DataFrame, utterances: list[str], scores: np.ndarray, emotions: list[str]
) -> pd.DataFrame:
    """Scores as the table that every classifier leaves.

    Parameters
    ----------
    manifest : DataFrame
        Indexed by utterance.
    utterances : list of str
    scores : (n_utterances, n_classes) float
        The greatest wins.
    emotions : list of str
        Names of the classes.

    Returns
    -------
    predictions : DataFrame
        utterance, speaker, gender, true, predicted, and a column of scores per emotion.
    """
    rows = manifest.loc[utterances, ["utterance", "speaker", "gender"]].reset_index(drop=True)
    rows["true"] = manifest.loc[utterances, "emotion"].to_numpy()
    rows["predicted"] = np.array(emotions)[scores.argmax(axis=1)]
    return pd.concat([rows, pd.DataFrame(scores, columns=emotions)], axis=1)


def write_predictions(
    folder: Path,
    manifest: pd.DataFrame,
    parts: dict[str, list[str]],
    scores: dict[str, np.ndarray],
    emotions: list[str],
) -> None:
    """Keep the predictions of those parts of a fold that have scores in `folder/predictions.parquet`."""
    tables = [
        predictions_table(manifest, parts[part], own, emotions).assign(part=part)
        for part, own in scores.items()
    ]
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
