"""Compare systems over speakers and seeds: intervals, tests and detectable differences."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy, SeriesGroupBy
from scipy import stats

MIN_SPEAKERS = 4  # fewer speakers give no meaningful interval
MIN_FOLDS = 4  # fewer folds are too few for a test
MIN_SEEDS = 3  # fewer training runs do not show how much results vary
LEVEL = 0.05
POWER = 0.8
DRAWS = 20_000  # of the simulated power


def mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Mean over labels of total / n, of sums (..., 2, n_labels); labels with n = 0 do not count.

    For correct predictions and utterances by class, this is UAR. For a single label it is a mean.
    """
    totals, n = np.moveaxis(sums, -2, 0)
    return (totals / np.maximum(n, 1)).sum(axis=-1) / (n > 0).sum(axis=-1)


def class_sums(predictions: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Numbers of correct predictions (`total`) and of utterances (`n`) by keys and true class."""
    rows = predictions.assign(total=predictions.true == predictions.predicted, n=1)
    sums = rows.groupby([*keys, "true"])[["total", "n"]].sum()
    return sums.rename_axis(index={"true": "label"})


def pseudo_values(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = mean_of_ratios
) -> np.ndarray:
    """Jackknife pseudo-values n θ − (n − 1) θ₋ᵢ of a statistic θ of sums over n speakers (Tukey, 1958).

    `sums`, (n_speakers, ...), are sums over each speaker's utterances, such as counts by class.
    """
    n, total = len(sums), sums.sum(axis=0)
    return n * statistic(total) - (n - 1) * statistic(total - sums)


def jackknife_interval(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = mean_of_ratios,
    lowest: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """95% interval, by jackknife over speakers and Student's t, of a statistic from `lowest` to 1.

    Both ends are NaN below `MIN_SPEAKERS` speakers. The coverage is only about 0.91 where recalls are near 1
    and differ much between fewer than ten speakers. See also `pseudo_values`.
    """
    if len(sums) < MIN_SPEAKERS:
        return np.nan, np.nan
    half = stats.t.isf(LEVEL / 2, len(sums) - 1) * stats.sem(pseudo_values(sums, statistic))
    low, high = np.clip(statistic(sums.sum(axis=0)) + np.array([-half, half]), lowest, 1)
    return low, high


def with_intervals(
    predictions: pd.DataFrame, over: str = "speaker"
) -> dict[str, tuple[float, float, float]]:
    """UAR, WAR and the recall of each class, with the ends of their `jackknife_interval`, 0 to 1."""
    counts = class_sums(predictions, [over]).unstack(fill_value=0)
    sums = counts.to_numpy().reshape(len(counts), 2, -1)  # of each speaker and class
    metrics = {"UAR": sums, "WAR": sums.sum(axis=-1, keepdims=True)}
    classes = counts.columns.unique("label")
    metrics |= {name: sums[..., [place]] for place, name in enumerate(classes)}
    return {
        name: (
            float(mean_of_ratios(values.sum(axis=0))),
            *jackknife_interval(values[values[:, 1].any(axis=-1)]),  # speakers that have the class
        )
        for name, values in metrics.items()
    }


def uar_difference(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, float, float]:
    """Difference in UAR between two groups of speakers, first minus second, with Welch's 95% interval.

    Classes that one of them lacks do not count. The interval is NaN below `MIN_SPEAKERS` speakers of either,
    and if they share speakers. See also `pseudo_values`.
    """
    shared = set(first.true) & set(second.true)
    if not shared:
        return np.nan, np.nan, np.nan
    first, second = (table[table.true.isin(shared)] for table in (first, second))
    counts = [class_sums(table, ["speaker"]).unstack(fill_value=0) for table in (first, second)]
    sums = [table.to_numpy().reshape(len(table), 2, -1) for table in counts]
    difference = float(np.subtract(*(mean_of_ratios(table.sum(axis=0)) for table in sums)))
    if min(map(len, sums)) < MIN_SPEAKERS or set(first.speaker) & set(second.speaker):
        return difference, np.nan, np.nan
    low, high = stats.ttest_ind(*map(pseudo_values, sums), equal_var=False).confidence_interval()
    half = (high - low) / 2
    return difference, difference - half, difference + half


def variances_of_mean(values: np.ndarray) -> np.ndarray:
    """Variances of the mean of values (..., n_speakers, n_seeds): by speaker, by seed, interaction, (3, ...).

    In expectation, the first two include the third. Below `MIN_SEEDS` seeds the last two are 0.
    """
    n, k = values.shape[-2:]
    speakers, seeds = values.mean(axis=-1, keepdims=True), values.mean(axis=-2, keepdims=True)
    by_speaker = speakers.var(axis=(-2, -1), ddof=1) / n
    if k < MIN_SEEDS:
        return np.stack([by_speaker, 0 * by_speaker, 0 * by_speaker])
    residuals = values - speakers - seeds + speakers.mean(axis=-2, keepdims=True)
    interaction = np.square(residuals).sum(axis=(-2, -1)) / (n - 1) / (k - 1) / (n * k)
    return np.stack([by_speaker, seeds.var(axis=(-2, -1), ddof=1) / k, interaction])


def fold_values(values: np.ndarray, folds: Sequence) -> np.ndarray:
    """Values (..., n_folds, n_seeds) with the same mean as speakers' values (..., n_speakers, n_seeds).

    With folds as units, variances are cluster-robust (Liang and Zeger, 1986): the speakers of a fold are
    tested with the same model, so their values may be correlated.
    """
    number = pd.factorize(np.asarray(folds))[0]
    members = np.eye(number.max() + 1)[number].T  # (n_folds, n_speakers)
    mean = values.mean(axis=-2, keepdims=True)
    return mean + members @ (values - mean) * (len(members) / len(number))


def _standard_errors(variances: np.ndarray, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors for n speakers and k seeds, and their degrees of freedom, (3, ...).

    The random effects are speakers, seeds, and both (crossed; Satterthwaite, 1946). The third alone would
    reject too often where one of the two dominates and has few values.
    """
    speakers, seeds, interaction = np.maximum(variances, 1e-12)
    crossed = speakers + seeds
    freedom = crossed**2 / (speakers**2 / (n - 1) + seeds**2 / max(k - 1, 1))
    squares = speakers, seeds, np.maximum(crossed - interaction, 1e-12)
    return np.sqrt(squares), np.stack(np.broadcast_arrays(n - 1, max(k - 1, 1), freedom))


def p_value(differences: np.ndarray, variances: np.ndarray, n: int, k: int) -> np.ndarray:
    """Two-sided p of mean differences, the largest of three t tests: over speakers, seeds and both.

    `variances` are those of `variances_of_mean`, from n speakers and k seeds.
    """
    errors, freedom = _standard_errors(variances, n, k)
    return (2 * stats.t.sf(np.abs(differences) / errors, freedom)).max(axis=0)


def half_width(variances: np.ndarray, n: int, k: int, level: float = LEVEL) -> np.ndarray:
    """Half-width of the widest of the intervals that match the tests of `p_value`."""
    errors, freedom = _standard_errors(variances, n, k)
    return (stats.t.isf(level / 2, freedom) * errors).max(axis=0)


def minimum_detectable_difference(
    variances: np.ndarray, n: int, k: int, level: float = LEVEL
) -> float:
    """The mean difference whose `p_value` is below the level with 80% power, by simulation."""
    rng, freedom = np.random.default_rng(0), np.array([n - 1, k - 1, (n - 1) * (k - 1)])[:, None]
    drawn = variances[:, None] * rng.chisquare(freedom, (3, DRAWS)) / freedom
    noise = rng.normal(0, _standard_errors(variances, n, k)[0].max(), DRAWS)
    return float(np.quantile(half_width(drawn, n, k, level) - noise, POWER))


def holm(p_values: Sequence[float], n_tests: int = 0) -> np.ndarray:
    """Holm's correction for multiple comparisons (1979), of which `n_tests` are planned."""
    ordered = pd.Series(p_values, dtype=float).reset_index(drop=True).sort_values()
    steps = ordered * (max(n_tests, len(ordered)) - np.arange(len(ordered)))
    return steps.cummax().clip(upper=1).sort_index().to_numpy()


def group_scores(groups: DataFrameGroupBy, metric: Callable) -> pd.Series:
    """A metric of each group's true and predicted labels, in percent."""
    return 100 * groups[["true", "predicted"]].apply(lambda rows: metric(rows.true, rows.predicted))


def speaker_scores(predictions: pd.DataFrame, metric: Callable) -> pd.Series:
    """A metric of true and predicted labels by speaker, in percent, averaged over seeds."""
    by_seed = group_scores(predictions.groupby(["speaker", "seed"]), metric)
    return by_seed.groupby("speaker").mean()


def speaker_means(groups: SeriesGroupBy) -> pd.DataFrame:
    """Mean of each group's speakers, and its 95% interval by Student's t.

    The interval is from `low` to `high`, with its `half_width`, and NaN for fewer than `MIN_SPEAKERS`.
    """
    n, mean = groups.size(), groups.mean()
    half = (stats.t.isf(LEVEL / 2, n - 1) * groups.sem()).where(n >= MIN_SPEAKERS)
    return mean.to_frame().assign(half_width=half, low=mean - half, high=mean + half)


def speaker_labels(predictions: pd.DataFrame, names: bool = False) -> dict[str, str]:
    """Speakers' labels in figures: their names, or "speaker 1", "speaker 2", … in alphabetical order."""
    speakers = enumerate(sorted(predictions.speaker.unique()), start=1)
    return {name: name if names else f"speaker {number}" for number, name in speakers}


def _shared(tables: Sequence[pd.DataFrame]) -> tuple[list[np.ndarray], pd.Index]:
    """Sums of two systems, (speakers, seeds, 2, labels), for shared speakers and seeds, and the speakers."""
    index = tables[0].index.intersection(tables[1].index)
    grid = pd.crosstab(index.get_level_values("speaker"), index.get_level_values("seed"))
    seeds = grid.columns[grid.all()]
    index, shape = pd.MultiIndex.from_product([grid.index, seeds]), (len(grid), len(seeds), 2)
    sums = [table.loc[index].to_numpy().reshape(*shape, table.shape[1] // 2) for table in tables]
    return sums, grid.index


def _compare(
    first: np.ndarray, second: np.ndarray, folds: Sequence, level: float
) -> dict[str, float]:
    """A row of `comparisons`, p without Holm's correction; `folds` are those of the speakers."""
    n, k = first.shape[:2]
    row = {"speakers": n, "seeds": k}
    if n < MIN_SPEAKERS or not k:
        return row
    by_seed = 100 * (mean_of_ratios(second.sum(axis=0)) - mean_of_ratios(first.sum(axis=0)))
    units = [100 * (pseudo_values(second) - pseudo_values(first))]  # speakers, and folds
    if MIN_FOLDS <= len(set(folds)) < n:
        units.append(fold_values(units[0], folds))
    noises = [(variances_of_mean(values), len(values), k) for values in units]
    mean, half = by_seed.mean(), max(half_width(*noise) for noise in noises)
    row |= {"difference": mean, "low": mean - half, "high": mean + half}
    row["seed_deviation"] = by_seed.std(ddof=1) if k > 1 else np.nan
    if k >= MIN_SEEDS:
        row["p"] = max(p_value(mean, *noise) for noise in noises)
        minima = [minimum_detectable_difference(*noise, level) for noise in noises]
        row["minimum_detectable"] = max(minima)
    return row


def comparisons(
    sums: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    folds: pd.Series | None = None,
    *,
    n_primary: int = 0,
    n_outcomes: int = 0,
) -> pd.DataFrame:
    """Compare pairs of systems, the second minus the first, by their `mean_of_ratios` in points.

    `sums` are `total` and `n` by system, speaker, seed and label. There is a row per pair: `compared`, the
    `speakers` and `seeds` that both systems have, the mean `difference` over seeds, its standard deviation
    over seeds (`seed_deviation`), its 95% interval `low` to `high`, `p` after Holm's correction, the
    `minimum_detectable` difference, and the `finding` as text. Holm's correction is applied separately to the
    first `n_primary` pairs, of `n_outcomes` declared ones, and to the others. The interval is not corrected.
    The minimum is for the strictest of Holm's levels, so its power is at least 80% whatever the other pairs'
    p are.

    Interval and test use jackknife pseudo-values, over speakers and seeds, and also over the `folds` of the
    speakers if there are at least `MIN_FOLDS`. The widest interval and the largest p are reported. With fewer
    than `MIN_SEEDS` seeds, there is no test, and the interval does not include the variation between seeds. A
    system without a random seed has the same predictions with every seed, so it adds no variance between
    seeds. Numbers are NaN below `MIN_SPEAKERS` speakers.
    """
    wide = sums.unstack(fill_value=0)
    shared = [_shared([wide.loc[name] for name in pair]) for pair in pairs]
    folds = pd.Series(0, wide.index.unique("speaker")) if folds is None else folds
    sizes = np.array([systems[0].shape[:2] for systems, _ in shared]).reshape(-1, 2)
    tested = np.flatnonzero((sizes >= [MIN_SPEAKERS, MIN_SEEDS]).all(axis=1))
    families = [tested[tested < n_primary], tested[tested >= n_primary]]
    n_tests = [max(len(families[0]), n_outcomes), len(families[1])]
    levels = [LEVEL / max(n, 1) for n in n_tests]  # the strictest of Holm's
    columns = ["compared", "speakers", "seeds", "difference", "seed_deviation", "low", "high"]
    rows = [
        _compare(*systems, folds[speakers], levels[i >= n_primary])
        for i, (systems, speakers) in enumerate(shared)
    ]
    table = pd.DataFrame(rows, columns=[*columns, "p", "minimum_detectable"])
    table["compared"] = [f"{first} → {second}" for first, second in pairs]
    for family, n in zip(families, n_tests):
        table.loc[family, "p"] = holm(table.p[family], n)
    return table.assign(finding=[_finding(row) for row in table.itertuples()])


def _finding(row) -> str:
    if np.isnan(row.difference):
        return f"no statement from {row.speakers} speakers"
    size = f"{abs(row.difference):.1f} points {'higher' if row.difference > 0 else 'lower'}"
    if row.seeds < MIN_SEEDS:
        return f"{size} in these training runs; a finding about the systems needs three seeds"
    if row.p < LEVEL:
        return size
    minimum = f"minimum detectable difference: {row.minimum_detectable:.1f} points"
    return f"no significant difference ({minimum})"
