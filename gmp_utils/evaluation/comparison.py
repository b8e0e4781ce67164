"""Compare systems over the same speakers: intervals, tests and detectable differences."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy
from scipy import stats

MIN_SPEAKERS = 4  # an interval from fewer speakers is meaningless
LEVEL = 0.05
POWER = 0.8
BOOTSTRAP_SAMPLES = 1000


def bootstrap_interval(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic, from 1000 bootstrap samples of speakers.

    Speakers are resampled with all their utterances (a cluster bootstrap). Below `MIN_SPEAKERS` speakers both
    ends are NaN. `sums`, (n_speakers, ...), are sums over each speaker's utterances, e.g. confusion matrices.
    `statistic` maps resampled totals, (1000, ...), to values, (1000,).
    """
    n = len(sums)
    if n < MIN_SPEAKERS:
        return np.nan, np.nan
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), BOOTSTRAP_SAMPLES)
    low, high = np.nanpercentile(statistic(np.tensordot(counts, sums, 1)), [2.5, 97.5])
    return float(low), float(high)


def with_intervals(
    predictions: pd.DataFrame, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """UAR and WAR, each with the ends of its 95 % interval by `bootstrap_interval`, 0 to 1."""
    rows = predictions.assign(correct=predictions.true == predictions.predicted, n=1)
    counts = rows.groupby(["speaker", "true"])[["correct", "n"]].sum().unstack(fill_value=0)
    sums = counts.to_numpy().reshape(len(counts), 2, -1)  # of each speaker and class

    def uar(totals: np.ndarray) -> np.ndarray:
        correct, n = np.moveaxis(totals, -2, 0)
        return (correct / np.maximum(n, 1)).sum(axis=-1) / (n > 0).sum(axis=-1)

    def war(totals: np.ndarray) -> np.ndarray:
        correct, n = np.moveaxis(totals.sum(axis=-1), -1, 0)
        return correct / n

    return {
        name: (float(metric(sums.sum(axis=0))), *bootstrap_interval(sums, metric, seed))
        for name, metric in (("UAR", uar), ("WAR", war))
    }


def minimum_detectable_difference(differences: Sequence[float], level: float = LEVEL) -> float:
    """The mean difference that a two-sided t test detects with 80 % power, given these differences."""
    freedom = len(differences) - 1
    quantiles = stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(POWER, freedom)
    return float(quantiles * stats.sem(differences))


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference by sign flips: all of up to 13 speakers, 9,999 random ones of more."""
    samples, rng = (np.asarray(differences),), np.random.default_rng(0)
    test = stats.permutation_test(samples, np.mean, permutation_type="samples", rng=rng)
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction for multiple comparisons (1979)."""
    ordered = pd.Series(p_values, dtype=float).reset_index(drop=True).sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).sort_index().to_numpy()


def group_scores(groups: DataFrameGroupBy, metric: Callable) -> pd.Series:
    """A metric of each group's true and predicted labels, in points."""
    return 100 * groups[["true", "predicted"]].apply(lambda rows: metric(rows.true, rows.predicted))


def speaker_scores(predictions: pd.DataFrame, metric: Callable) -> pd.Series:
    """A metric of true and predicted labels by speaker and seed, in points."""
    return group_scores(predictions.groupby(["speaker", "seed"]), metric)


def speaker_labels(predictions: pd.DataFrame, names: bool = False) -> dict[str, str]:
    """What figures call the speakers: their names, or "speaker 1", "speaker 2", … in the names' order."""
    speakers = enumerate(sorted(predictions.speaker.unique()), start=1)
    return {name: name if names else f"speaker {number}" for number, name in speakers}


def comparisons(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Compare pairs of systems, the second minus the first, paired by speaker.

    `scores` has `system`, `speaker`, `seed` and `score` in points. Speakers and seeds that both systems have
    are compared, seeds averaged within speakers. There is a row per pair: `compared`, `speakers`, the mean
    `difference` (points), its 95 % interval `low` to `high` (Student's t), `p` of the sign-flip test after
    Holm's correction, the `minimum_detectable` difference at the corrected level, and the `finding` as text.
    Numbers are NaN for fewer than `MIN_SPEAKERS` speakers. `minimum_detectable` is also NaN where the
    speakers are too few for significance in all comparisons.
    """
    by_system = scores.pivot(index=["speaker", "seed"], columns="system", values="score")
    differences = [(by_system[second] - by_system[first]).dropna() for first, second in pairs]
    differences = [values.groupby("speaker").mean().to_numpy() for values in differences]
    table = pd.DataFrame({"compared": [f"{first} → {second}" for first, second in pairs]})
    table["speakers"] = [len(values) for values in differences]
    table[["difference", "low", "high", "p", "minimum_detectable"]] = np.nan
    tested = np.flatnonzero(table.speakers >= MIN_SPEAKERS)
    for row in tested:
        values, level = differences[row], LEVEL / len(tested)  # of the smallest p, as Holm corrects
        low, high = stats.ttest_1samp(values, 0).confidence_interval()
        numbers = values.mean(), low, high, sign_flip(values)
        table.loc[row, ["difference", "low", "high", "p"]] = numbers
        if 2.0 ** (1 - len(values)) < level:
            table.loc[row, "minimum_detectable"] = minimum_detectable_difference(values, level)
    table.loc[tested, "p"] = holm(table.p[tested])
    return table.assign(finding=[_finding(row, len(tested)) for row in table.itertuples()])


def _finding(row, n_compared: int) -> str:
    if np.isnan(row.difference):
        return f"no statement from {row.speakers} speakers"
    if row.p < LEVEL:
        return f"{abs(row.difference):.1f} points {'higher' if row.difference > 0 else 'lower'}"
    if np.isnan(row.minimum_detectable):
        reason = f"{row.speakers} speakers cannot show one in {n_compared} comparisons"
    else:
        reason = f"minimum detectable difference: {row.minimum_detectable:.1f} points"
    return f"no significant difference ({reason})"
