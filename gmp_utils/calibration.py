"""PLDC: ratings of an unseen speaker, moved to where similar training speakers' labels lie.

Personalised label distribution calibration (arXiv 2309.02418, section 3.3). It knows no label of the speaker,
but hears all of the speaker's utterances at once, which a result has to say.
"""

import numpy as np
import pandas as pd

from gmp_utils.errors import GmpError

VARIANTS = ("mean", "scale", "both")


def statistics(
    ratings: pd.Series, speakers: pd.Series, neighbours: list[str], pooled: bool
) -> tuple:
    """Mean and deviation of the labels of some speakers.

    Parameters
    ----------
    ratings, speakers : (n_utterances,) Series
        Of the training speakers.
    neighbours : list of str
    pooled : bool
        Of all their labels together, as the authors' code has it; or, as the paper writes, the means of
        each one's mean and deviation.

    Returns
    -------
    mean, deviation : float
        Population moments.
    """
    own = ratings[speakers.isin(neighbours)]
    if pooled:
        return float(own.mean()), float(own.std(ddof=0))
    each = own.groupby(speakers[own.index])
    return float(each.mean().mean()), float(each.std(ddof=0).mean())


def calibrate(
    predicted: np.ndarray, mean: float, deviation: float, variant: str = "both"
) -> np.ndarray:
    """Move one speaker's predictions, ỹ = (y − μ) / σ · σ̄ + μ̄.

    Parameters
    ----------
    predicted : (n_utterances,) float
        All of the speaker's.
    mean, deviation : float
        μ̄ and σ̄, of similar speakers' labels.
    variant : str
        "mean" leaves the scale as it is, "scale" the mean. The paper writes both; its authors found the scale
        alone best on MSP-Podcast.

    Returns
    -------
    calibrated : (n_utterances,) float
        As predicted where it is a single utterance, which has no distribution; without a new scale where
        all predictions are equal.

    Raises
    ------
    GmpError
        For another variant.
    """
    if variant not in VARIANTS:
        raise GmpError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    if len(predicted) < 2:
        return predicted
    own, spread = predicted.mean(), predicted.std()
    scale = deviation / spread if variant != "mean" and spread > 0 else 1.0
    return (predicted - own) * scale + (own if variant == "scale" else mean)


def pldc(
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    alike: pd.DataFrame,
    neighbours: dict[str, list[str]],
    variant: str = "both",
    pooled: bool = True,
    gate: float = -1.0,
) -> pd.Series:
    """Calibrate the predictions of many speakers.

    Parameters
    ----------
    predictions : DataFrame
        `speaker` and `predicted`; further columns, labels among them, are not looked at.
    training : DataFrame
        `speaker` and `true` of the training speakers' utterances.
    alike : DataFrame
        Cosines, speakers × training speakers.
    neighbours : dict of str to list of str
        See `gmp_utils.speakers.nearest`.
    variant, pooled
        See `calibrate` and `statistics`.
    gate : float
        Speakers whose neighbours are less similar than this, on average, stay as they are.

    Returns
    -------
    calibrated : Series
        In the order of `predictions`.
    """
    found = predictions.predicted.astype(float)
    for speaker, own in predictions.groupby("speaker").predicted:
        near = neighbours[speaker]
        if alike.loc[speaker, near].mean() >= gate:
            goal = statistics(training.true, training.speaker, near, pooled)
            found[own.index] = calibrate(own.to_numpy(), *goal, variant)
    return found
