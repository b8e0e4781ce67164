"""Is one system better than another, or is it noise: paired by speaker, with few speakers in mind."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from confidence_intervals import evaluate_with_conf_int
from scipy import stats

MIN_SPEAKERS = 4  # an interval by speaker from fewer says nothing
LEVEL = 0.05
POWER = 0.8


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean, by Student's t.

    Parameters
    ----------
    values : (n,) float
        One per speaker.
    """
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def with_interval(
    predictions: pd.DataFrame, metric: Callable, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """A metric and its 95 % interval, from 1000 bootstrap samples of speakers.

    Parameters
    ----------
    predictions : DataFrame
        With `true`, `predicted` and `speaker`.
    metric : callable
        `uar` or `war` of `gmp_utils.evaluation`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    value : float
    interval : (float, float) or None
        None for fewer than `MIN_SPEAKERS` speakers.
    """
    true, predicted = (predictions[name].to_numpy() for name in ("true", "predicted"))
    if predictions.speaker.nunique() < MIN_SPEAKERS:
        return metric(true, predicted), None
    np.random.seed(seed)  # noqa: NPY002, the package draws from the global state
    value, (low, high) = evaluate_with_conf_int(
        predicted,
        metric,
        labels=true,
        conditions=predictions.speaker.astype("category").cat.codes.to_numpy(),
    )
    return float(value), (float(low), float(high))


def smallest_difference(values: Sequence[float]) -> float:
    """The mean difference that so many speakers, spread like these, would show 8 times in 10.

    Parameters
    ----------
    values : (n,) float
        Differences, one per speaker.
    """
    freedom = len(values) - 1
    needed = stats.t.ppf(1 - LEVEL / 2, freedom) + stats.t.ppf(POWER, freedom)
    return float(needed * stats.sem(values))


def sign_flip(values: Sequence[float]) -> float:
    """Two-sided p of a mean difference: how often signs at random give one as far from zero.

    Exact up to 13 speakers, from 9,999 draws with more.

    Parameters
    ----------
    values : (n,) float
        Differences, one per speaker.
    """
    found = stats.permutation_test(
        (np.asarray(values),), np.mean, permutation_type="samples", rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction for having asked several questions.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Parameters
    ----------
    p_values : (n,) float

    Returns
    -------
    corrected : (n,) float
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(steps)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def by_speaker(predictions: pd.DataFrame, metric: Callable) -> pd.Series:
    """Score of each speaker, in points.

    Parameters
    ----------
    predictions : DataFrame
        With `speaker`, `true` and `predicted`.
    metric : callable
        `uar` or `war` of `gmp_utils.evaluation`.
    """
    groups = predictions.groupby("speaker")
    return pd.Series({name: 100 * metric(rows.true, rows.predicted) for name, rows in groups})


def comparisons(predictions: pd.DataFrame, metric: Callable) -> pd.DataFrame:
    """Compare every two systems that differ in one thing: GMPs, or the loss.

    Parameters
    ----------
    predictions : DataFrame
        As `gmp_utils.results.collect` returns them.
    metric : callable
        See `by_speaker`.

    Returns
    -------
    table : DataFrame
        A row per comparison over the speakers that both tested: `compared`, `speakers`, mean
        `difference` (points, second less first), its interval `low` to `high`, `p` of the sign-flip
        test by Holm's correction, the `smallest` difference that could have been shown, and the
        `finding` in words. Numbers are NaN for fewer than `MIN_SPEAKERS` speakers.
    """
    systems = [
        (gmps, loss, by_speaker(rows, metric))
        for (gmps, loss), rows in predictions.groupby(["GMPs", "loss"])
    ]
    rows = []
    for number, (gmps, loss, first) in enumerate(systems):
        for other_gmps, other_loss, second in systems[number + 1 :]:
            if (gmps == other_gmps) == (loss == other_loss):
                continue
            row = {"compared": f"GMPs {gmps}, {loss} → GMPs {other_gmps}, {other_loss}"}
            gains = (second - first).dropna().to_numpy()
            row["speakers"] = len(gains)
            if len(gains) >= MIN_SPEAKERS:
                row["difference"] = gains.mean()
                row["low"], row["high"] = interval(gains)
                row["p"], row["smallest"] = sign_flip(gains), smallest_difference(gains)
            rows.append(row)
    columns = ["compared", "speakers", "difference", "low", "high", "p", "smallest"]
    table = pd.DataFrame(rows, columns=columns)
    tested = table.p.notna()
    table.loc[tested, "p"] = holm(table.p[tested])
    table["finding"] = [_finding(row) for row in table.itertuples()]
    return table


def _finding(row) -> str:
    if np.isnan(row.difference):
        return f"no statement from {row.speakers} speakers"
    if row.p < LEVEL:
        return f"{abs(row.difference):.1f} points {'more' if row.difference > 0 else 'less'}"
    return f"no difference shown: below {row.smallest:.0f} points it could hardly have been"
