"""How sure a classifier is, and how far that can be believed.

A softmax is surer than it is right. One number, the temperature, is fitted on the validation speakers, and
everybody else's logits are divided by it (Guo et al., "On Calibration of Modern Neural Networks", 2017,
section 4.2).
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from gmp_utils.classifiers import classifiers, corpus_of
from gmp_utils.evaluation import LOSS_NAMES
from gmp_utils.finetuning import LOSSES

BINS = 10
COLOURS = {"as trained": "#999999", "calibrated": "#0072B2"}


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


def confidences(run_dir: str) -> pd.DataFrame:
    """How sure the networks of a run or an experiment were of their test utterances.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        `variant`, `loss`, `fold`, `seed`, `utterance`, `correct`, confidence `as trained` and `calibrated` on
        the fold's validation speakers. Empty where there are no networks, or no validation speakers.
    """
    tables, networks = [], {LOSS_NAMES[loss] for loss in LOSSES}
    for one in classifiers(run_dir).itertuples(index=False):
        predictions = pd.read_parquet(one.stage / "predictions.parquet")
        held_out, tested = (
            predictions[predictions.part == part] for part in ("validation", "test")
        )
        if one.loss not in networks or held_out.empty:
            continue
        emotions = corpus_of(one.stage).emotions
        labels = held_out.true.map(emotions.index).to_numpy()
        scale = temperature(held_out[emotions].to_numpy(dtype=float), labels)
        logits = tested[emotions].to_numpy(dtype=float)
        own = tested[["utterance"]].assign(correct=tested.true == tested.predicted)
        own["as trained"] = softmax(logits, axis=1).max(axis=1)
        own["calibrated"] = softmax(logits / scale, axis=1).max(axis=1)
        keys = {key: getattr(one, key) for key in ("variant", "loss", "fold", "seed")}
        tables.append(own.assign(**keys))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figure(table: pd.DataFrame) -> go.Figure:
    """Confidence against accuracy, as trained and calibrated; a point's area says how many utterances.

    Parameters
    ----------
    table : DataFrame
        Of `confidences`.
    """
    drawn = go.Figure()
    drawn.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#cccccc", "dash": "dash"},
        name="as sure as right",
    )  # fmt: skip
    errors = {}
    for name, colour in COLOURS.items():
        errors[name] = calibration_error(table[name], table.correct)
        points = reliability(table[name], table.correct)
        sizes = 36 * np.sqrt(points.utterances / len(table))
        drawn.add_scatter(
            x=points.confidence, y=points.accuracy, text=points.utterances, mode="markers+lines", name=name,
            marker={"color": colour, "size": sizes}, line={"color": colour},
            hovertemplate="%{text} utterances: confidence %{x:.2f}, right %{y:.2f}<extra></extra>",
        )  # fmt: skip
    title = "Confidence is off by {calibrated:.2f} on average, {as trained:.2f} before calibration"
    return drawn.update_layout(
        title=title.format(**errors),
        xaxis={"title": "confidence", "range": [0, 1.02]},
        yaxis={"title": "share that is right", "range": [-0.05, 1.05]},
    )
