"""Is one system better than another, or is it noise: paired by speaker, with few speakers in mind."""

from collections.abc import Callable, Sequence
from itertools import combinations

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
        `uar` or `war` of `gmp_utils.evaluation.metrics`.
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


def minimum_detectable_effect(values: Sequence[float], level: float = LEVEL) -> float:
    """The mean difference that so many speakers, spread like these, would show 8 times in 10.

    Parameters
    ----------
    values : (n,) float
        Differences, one per speaker.
    level : float
        Of the two-sided test.
    """
    freedom = len(values) - 1
    needed = stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(POWER, freedom)
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


def speaker_scores(predictions: pd.DataFrame, metric: Callable) -> pd.Series:
    """Score of each speaker with each seed, in points.

    Parameters
    ----------
    predictions : DataFrame
        With `speaker`, `seed`, `true` and `predicted`.
    metric : callable
        `uar` or `war` of `gmp_utils.evaluation.metrics`.

    Returns
    -------
    scores : Series
        By speaker and seed.
    """
    groups = predictions.groupby(["speaker", "seed"])
    return groups[["true", "predicted"]].apply(lambda own: 100 * metric(own.true, own.predicted))


def speaker_labels(predictions: pd.DataFrame, names: bool = False) -> dict[str, str]:
    """What figures call the speakers, for figures are handed on.

    Parameters
    ----------
    predictions : DataFrame
        With `speaker`.
    names : bool
        Whether to use their names, for "speaker 1", "speaker 2", … in the names' order.
    """
    speakers = sorted(predictions.speaker.unique())
    return {one: one if names else f"speaker {n}" for n, one in enumerate(speakers, start=1)}


def comparisons(
    predictions: pd.DataFrame, metric: Callable, against: str | None = None
) -> pd.DataFrame:
    """Compare systems that differ in one thing, the variant or the loss.

    Variants that have no loss in common, as other systems of the family, are compared by the first of each.

    Parameters
    ----------
    predictions : DataFrame
        As `gmp_utils.evaluation.collect.collect` returns them.
    metric : callable
        See `speaker_scores`.
    against : str, optional
        The variant that the other variants are compared with; every two of them without it.

    Returns
    -------
    table : DataFrame
        A row per comparison over the speakers and seeds that both have, seeds averaged within
        speakers: `compared`, `speakers`, mean `difference` (points, second less first), its interval
        `low` to `high`, `p` of the sign-flip test by Holm's correction, the `smallest` difference that
        could have been shown among so many comparisons, NaN where signs of so few speakers cannot
        show any, and the `finding` in words. Numbers are NaN for fewer than `MIN_SPEAKERS` speakers.
    """
    systems = {
        system: speaker_scores(own, metric)
        for system, own in predictions.groupby(["variant", "loss"], sort=False)
    }
    losses: dict[str, list[str]] = {}
    for variant, loss in systems:
        losses.setdefault(variant, []).append(loss)
    rows = []
    for first, second in combinations(sorted(systems, key=lambda one: one[0] != against), 2):
        same_variant, same_loss = first[0] == second[0], first[1] == second[1]
        apart = set(losses[first[0]]).isdisjoint(losses[second[0]])
        leading = all(loss == losses[variant][0] for variant, loss in (first, second))
        comparable = same_variant != same_loss or (apart and leading)
        if not comparable or not (same_variant or against in (None, first[0])):
            continue
        gains = (systems[second] - systems[first]).dropna().groupby("speaker").mean().to_numpy()
        row = {"compared": f"{', '.join(first)} → {', '.join(second)}", "speakers": len(gains)}
        if len(gains) >= MIN_SPEAKERS:
            row["difference"] = gains.mean()
            row["low"], row["high"] = interval(gains)
            row["p"], row["gains"] = sign_flip(gains), gains
        rows.append(row)
    columns = ["compared", "speakers", "difference", "low", "high", "p", "smallest"]
    table = pd.DataFrame(rows, columns=[*columns, "gains"])
    tested = table.p.notna()
    level = LEVEL / max(tested.sum(), 1)  # of the smallest p, by Holm's correction
    table.loc[tested, "smallest"] = [
        minimum_detectable_effect(gains, level) if 2.0 ** (1 - len(gains)) < level else np.nan
        for gains in table.gains[tested]
    ]
    table.loc[tested, "p"] = holm(table.p[tested])
    table["finding"] = [_finding(row, tested.sum()) for row in table.itertuples()]
    return table.drop(columns="gains")


def _finding(row, n_compared: int) -> str:
    if np.isnan(row.difference):
        return f"no statement from {row.speakers} speakers"
    if row.p < LEVEL:
        return f"{abs(row.difference):.1f} points {'more' if row.difference > 0 else 'less'}"
    if np.isnan(row.smallest):
        return f"no difference shown: {row.speakers} speakers cannot show any in {n_compared} comparisons"
    return f"no difference shown: below {row.smallest:.1f} points it could hardly have been"
