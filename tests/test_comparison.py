"""Statistics against values computed by hand and brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gmp_utils.evaluation import comparison, metrics, tables


def test_bootstrap_interval_by_brute_force():
    """Sums of resampled speakers, in a loop: the same percentiles up to 1000 other draws."""
    rng = np.random.default_rng(3)
    sums = np.stack([rng.normal(5, 2, 8), rng.integers(5, 9, 8)], axis=1)  # total and count
    low, high = comparison.bootstrap_interval(sums, lambda totals: totals[:, 0] / totals[:, 1])
    draws = [sums[rng.integers(0, 8, 8)].sum(axis=0) for _ in range(20_000)]
    expected = np.percentile([total / count for total, count in draws], [2.5, 97.5])
    assert (low, high) == pytest.approx(expected, abs=0.03)


def test_bootstrap_interval_repeats_and_needs_four_speakers():
    sums = np.arange(5.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002, nothing draws from the global state
    interval = comparison.bootstrap_interval(sums, lambda totals: totals, 1)
    assert comparison.bootstrap_interval(sums, lambda totals: totals, 1) == interval
    assert comparison.bootstrap_interval(sums, lambda totals: totals, 2) != interval
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert np.isnan(comparison.bootstrap_interval(sums[:3], lambda totals: totals)).all()


def test_intervals_of_recalls_by_brute_force():
    """Whole speakers are drawn, and a class that no drawn utterance has does not count."""
    rng = np.random.default_rng(0)
    true = rng.choice(["angry", "happy", "sad"], 60, p=[0.7, 0.25, 0.05])
    table = pd.DataFrame({"speaker": np.repeat(list("stuvw"), 12), "true": true})
    table["predicted"] = np.where(rng.random(60) < 0.6, table.true, "bored")
    groups = [group for _, group in table.groupby("speaker")]
    draws = [pd.concat([groups[i] for i in rng.integers(0, 5, 5)]) for _ in range(2000)]
    intervals = comparison.with_intervals(table)
    for name, metric in (("UAR", metrics.uar), ("WAR", metrics.war)):
        value, low, high = intervals[name]
        assert value == pytest.approx(metric(table.true, table.predicted))
        values = [metric(draw.true, draw.predicted) for draw in draws]
        assert (low, high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.02)


def test_the_minimum_detectable_difference_is_found_with_80_percent_power():
    """4,000 draws: a standard deviation of 0.6 points; the formula itself is off by two at n = 10."""
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 3, 10)
    spread = 3 * (spread - spread.mean()) / spread.std(ddof=1)
    difference = comparison.minimum_detectable_difference(spread)
    assert difference == pytest.approx((2.262157 + 0.883404) * 3 / np.sqrt(10), abs=1e-5)
    p_values = stats.ttest_1samp(rng.normal(difference, 3, (4000, 10)), 0, axis=1).pvalue
    assert np.mean(p_values < 0.05) == pytest.approx(0.8, abs=0.04)


def test_signs_are_flipped_in_every_way():
    assert comparison.sign_flip([1, 2, 3]) == 2 / 8  # only +++ reaches 6
    assert comparison.sign_flip([3, 1, -1]) == 6 / 8  # 5, 3, 3 reach 3
    assert comparison.sign_flip([-1, -2, -3, -4]) == 2 / 16
    assert comparison.sign_flip([1, -1, 1, -1]) == 1


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04, 0.3 times 4, 3, 2, 1: 0.04, 0.06, 0.08, 0.3, never falling
    corrected = comparison.holm([0.04, 0.01, 0.3, 0.02])
    assert corrected == pytest.approx([0.08, 0.04, 0.3, 0.06])
    assert comparison.holm([0.04, 0.035]) == pytest.approx([0.07, 0.07])


def scores(systems, seed=0):
    """Scores by system, one per speaker."""
    rows = [(name, n, seed, v) for name, values in systems.items() for n, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["system", "speaker", "seed", "score"])


PLAIN, BETTER = [10, 20, 30, 40, 50, 60], [40, 40, 60, 60, 80, 80]


def test_a_pair_is_compared_speaker_by_speaker():
    table = comparison.comparisons(scores({"a": PLAIN, "b": BETTER}), [("a", "b"), ("b", "a")])
    assert table.compared.tolist() == ["a → b", "b → a"]
    assert table.speakers.tolist() == [6, 6]
    assert table.difference.tolist() == [25, -25]
    # gains 30, 20, 30, 20, 30, 20: standard deviation sqrt(30); t(0.975, 5) = 2.570582
    assert table.low[0] == pytest.approx(25 - 2.570582 * np.sqrt(30 / 6), abs=1e-4)
    assert table.high[0] == pytest.approx(25 + 2.570582 * np.sqrt(30 / 6), abs=1e-4)
    # the largest of 64 sums, on both sides, in two comparisons
    assert table.p.tolist() == pytest.approx([2 * 2 / 64] * 2)
    assert table.minimum_detectable.isna().all()
    text = "no significant difference (6 speakers cannot show one in 2 comparisons)"
    assert table.finding.tolist() == [text] * 2


def test_a_significant_difference():
    for pair, finding in ((("a", "b"), "25.0 points higher"), (("b", "a"), "25.0 points lower")):
        table = comparison.comparisons(scores({"a": PLAIN, "b": BETTER}), [pair])
        assert table.finding.tolist() == [finding]


def test_the_minimum_detectable_difference_grows_with_every_comparison():
    """Ten speakers: p is at least 1/512, so 25 comparisons are possible and 26 are not."""
    first = 10 * np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    second = 10 * np.array([2, 1, 4, 3, 6, 5, 8, 7, 3, 1])
    systems = scores({"first": first, **{f"v{n}": second for n in range(26)}})
    pairs = [("first", f"v{n}") for n in range(26)]
    for n in (1, 3, 25):
        row = comparison.comparisons(systems, pairs[:n]).iloc[0]
        expected = comparison.minimum_detectable_difference(second - first, 0.05 / n)
        assert row.minimum_detectable == pytest.approx(expected)
        text = f"no significant difference (minimum detectable difference: {expected:.1f} points)"
        assert row.finding == text
    findings = comparison.comparisons(systems, pairs).finding
    text = "no significant difference (10 speakers cannot show one in 26 comparisons)"
    assert findings.tolist() == [text] * 26


def test_seeds_are_averaged_within_speakers_and_only_shared_ones_count():
    """Three seeds do not make twelve speakers of four."""
    both = [
        scores({"a": [20, 20, 20, 20], "b": [40, 30, 40, 30]}, seed=0),
        scores({"a": [20, 20, 20, 20], "b": [20, 30, 80, 30]}, seed=1),
        scores({"b": [90, 90, 90, 90]}, seed=2),
    ]
    row = comparison.comparisons(pd.concat(both), [("a", "b")]).iloc[0]
    assert row.speakers == 4
    assert row.difference == pytest.approx(np.mean([10, 10, 40, 10]))
    assert row.p == pytest.approx(2 / 16)


def test_few_speakers_allow_no_statement():
    table = comparison.comparisons(scores({"a": [1, 2], "b": [8, 9]}), [("a", "b")])
    assert table.finding.tolist() == ["no statement from 2 speakers"]
    assert table.difference.isna().all()
    assert comparison.comparisons(scores({"a": [1, 2]}), []).empty


WITHOUT, WITH, AMS = ("no GMPs", "CE"), ("GMPs", "CE"), ("GMPs", "AMS")


def test_systems_that_differ_in_one_thing_are_compared():
    """Others with the named variant only, by the first system of each where they share none."""
    pairs = tables.comparable_pairs([WITHOUT, WITH, AMS])
    assert pairs == [("no GMPs, CE", "GMPs, CE"), ("GMPs, CE", "GMPs, AMS")]
    assert tables.comparable_pairs([WITH]) == []
    systems = [("early", "CE"), ("late", "CE"), ("late", "AMS"), ("middle", "CE")]
    pairs = [("middle, CE", "early, CE"), ("middle, CE", "late, CE"), ("late, CE", "late, AMS")]
    assert tables.comparable_pairs(systems, "middle") == pairs
    assert len(tables.comparable_pairs(systems)) == 4
    systems = [("V-FT", "CE"), ("GMP-TL", "AMS"), ("GMP-TL", "CE then AMS"), ("SVM", "SVM")]
    chain = ("GMP-TL, AMS", "GMP-TL, CE then AMS")
    pairs = [("V-FT, CE", "GMP-TL, AMS"), ("V-FT, CE", "SVM, SVM"), chain]
    assert tables.comparable_pairs(systems, "V-FT") == pairs


def test_uar_of_all_pairs():
    rows = [
        (*system, speaker, 0, "a", "a" if number < n_right else "b")
        for system, all_right in ((WITHOUT, [1, 2, 3, 4, 5, 6]), (WITH, [4, 4, 6, 6, 8, 8]))
        for speaker, n_right in zip("stuvwx", all_right)
        for number in range(10)
    ]
    columns = ["variant", "system", "speaker", "seed", "true", "predicted"]
    row = tables.uar_comparisons(pd.DataFrame(rows, columns=columns)).iloc[0]
    assert (row.compared, row.finding) == ("no GMPs, CE → GMPs, CE", "25.0 points higher")
