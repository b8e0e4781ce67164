"""Statistics against values computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gmp_utils.evaluation import comparison, metrics


def test_an_interval_is_student_s():
    # mean 2, deviation 1, three values; t(0.975, 2) = 4.302653
    assert comparison.interval([1, 2, 3]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_the_smallest_difference_is_found_eight_times_in_ten():
    """Differences drawn with that mean: t tests find them as often as promised.

    4,000 draws: a deviation of 0.6 points; the formula itself is off by two points at n = 10.
    """
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 3, 10)
    spread = 3 * (spread - spread.mean()) / spread.std(ddof=1)
    smallest = comparison.minimum_detectable_effect(spread)
    assert smallest == pytest.approx((2.262157 + 0.883404) * 3 / np.sqrt(10), abs=1e-5)
    draws = rng.normal(smallest, 3, (4000, 10))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.04
    )


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # only +++ reaches 6
        ([3, 1, -1], 6 / 8),  # 5, 3, 3 reach 3
        ([-1, -2, -3, -4], 2 / 16),
        ([1, -1, 1, -1], 1),
    ],
)
def test_signs_are_flipped_in_every_way(differences, p):
    assert comparison.sign_flip(differences) == pytest.approx(p)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04, 0.3 times 4, 3, 2, 1: 0.04, 0.06, 0.08, 0.3, never falling
    found = comparison.holm([0.04, 0.01, 0.3, 0.02])
    assert found == pytest.approx([0.08, 0.04, 0.3, 0.06])
    assert comparison.holm([0.04, 0.035]) == pytest.approx([0.07, 0.07])
    assert comparison.holm([0.6, 0.7]) == pytest.approx([1, 1])


def predictions(speakers, right, seed=0):
    """Of ten utterances per speaker and system, so many are right."""
    rows = []
    for system, shares in right.items():
        for speaker, n_right in zip(speakers, shares):
            for number in range(10):
                found = "a" if number < n_right else "b"
                rows.append((*system, speaker, seed, "a", found))
    return pd.DataFrame(rows, columns=["variant", "loss", "speaker", "seed", "true", "predicted"])


WITHOUT, WITH, AMS = ("no GMPs", "CE"), ("GMPs", "CE"), ("GMPs", "AMS")


def test_systems_that_differ_in_one_thing_are_compared_speaker_by_speaker():
    right = {WITHOUT: [1, 2, 3, 4, 5, 6], WITH: [4, 4, 6, 6, 8, 8], AMS: [4, 5, 5, 6, 9, 7]}
    table = comparison.comparisons(predictions("stuvwx", right), metrics.war)
    table = table.set_index("compared")
    assert list(table.index) == ["no GMPs, CE → GMPs, CE", "GMPs, CE → GMPs, AMS"]
    gain = table.loc["no GMPs, CE → GMPs, CE"]
    assert (gain.speakers, gain.difference) == (6, pytest.approx(25))
    # the only one of 64, on both sides, of two questions
    assert gain.p == pytest.approx(2 * 2 / 64)
    assert gain.low < 25 < gain.high
    none = "no difference shown: 6 speakers cannot show any in 2 comparisons"
    assert table.finding.tolist() == [none] * 2
    assert table.smallest.isna().all()
    alone = {WITHOUT: [1, 2, 3, 4, 5, 6], WITH: [4, 4, 6, 6, 8, 8]}
    table = comparison.comparisons(predictions("stuvwx", alone), metrics.war)
    assert table.finding.tolist() == ["25.0 points more"]
    worse = predictions("stuvwx", {WITHOUT: [9] * 6, WITH: [4, 4, 6, 6, 8, 8]})
    assert comparison.comparisons(worse, metrics.war).finding.tolist() == ["30.0 points less"]


def test_systems_without_a_loss_in_common_are_compared_by_the_first_of_each():
    """A family: against one of them, and nothing is said of the others' further losses."""
    right = {
        ("V-FT", "CE"): [1, 2, 3, 4], ("GMP-TL", "AMS"): [2, 3, 4, 5],
        ("GMP-TL", "CE then AMS"): [9, 9, 9, 9], ("majority", "majority"): [1, 1, 1, 1],
    }  # fmt: skip
    table = comparison.comparisons(predictions("stuv", right), metrics.war, "V-FT")
    assert table.compared.tolist() == [
        "V-FT, CE → GMP-TL, AMS",
        "V-FT, CE → majority, majority",
        "GMP-TL, AMS → GMP-TL, CE then AMS",
    ]
    assert table.difference[0] == pytest.approx(10)


def test_what_could_have_been_shown_gets_larger_with_every_comparison():
    """Ten speakers: p is 1/512 at least, so 25 questions may be asked of them and 26 may not."""
    first, second = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2], [2, 1, 4, 3, 6, 5, 8, 7, 3, 1]
    alone = {WITHOUT: first, WITH: second}
    one = comparison.comparisons(predictions("abcdefghij", alone), metrics.war).iloc[0]
    gains = 10 * (np.array(second) - first)
    assert one.smallest == pytest.approx(comparison.minimum_detectable_effect(gains))
    three = comparison.comparisons(
        predictions("abcdefghij", alone | {("other", "CE"): second}), metrics.war
    )
    assert three.smallest[0] == pytest.approx(comparison.minimum_detectable_effect(gains, 0.05 / 3))
    assert three.smallest[0] > one.smallest
    assert one.finding == (
        f"no difference shown: below {one.smallest:.1f} points it could hardly have been"
    )
    many = {("first", "CE"): first} | {(f"v{n}", "CE"): second for n in range(26)}
    table = comparison.comparisons(predictions("abcdefghij", many), metrics.war, "first")
    assert len(table) == 26
    assert set(table.finding) == {
        "no difference shown: 10 speakers cannot show any in 26 comparisons"
    }


def test_others_are_compared_with_the_named_variant_only():
    right = {(name, "CE"): [1, 2, 3, 4] for name in ("early", "late", "middle")}
    right["late", "AMS"] = [2, 2, 2, 2]
    table = comparison.comparisons(predictions("stuv", right), metrics.war, "middle")
    assert set(table.compared) == {
        "middle, CE → early, CE", "middle, CE → late, CE", "late, CE → late, AMS",
    }  # fmt: skip
    assert len(comparison.comparisons(predictions("stuv", right), metrics.war)) == 4


def test_seeds_are_averaged_within_speakers_and_only_shared_ones_count():
    """Three seeds do not make twelve speakers of four."""
    tables = [
        predictions("stuv", {WITHOUT: [2, 2, 2, 2], WITH: [4, 3, 4, 3]}, seed=0),
        predictions("stuv", {WITHOUT: [2, 2, 2, 2], WITH: [2, 3, 8, 3]}, seed=1),
        predictions("stuv", {WITH: [9, 9, 9, 9]}, seed=2),
    ]
    table = comparison.comparisons(pd.concat(tables), metrics.war)
    gain = table.iloc[0]
    gains = [10, 10, 40, 10]  # means of 20 and 0, 10 and 10, 20 and 60, 10 and 10
    assert gain.speakers == 4
    assert gain.difference == pytest.approx(np.mean(gains))
    assert (gain.low, gain.high) == pytest.approx(comparison.interval(gains))
    assert gain.p == pytest.approx(2 / 16)


def test_few_speakers_say_nothing():
    two = predictions("st", {WITHOUT: [1, 2], WITH: [8, 9]})
    table = comparison.comparisons(two, metrics.uar)
    assert table.finding.tolist() == ["no statement from 2 speakers"]
    assert table.difference.isna().all()
    one = two[two.variant == "GMPs"]
    assert comparison.comparisons(one, metrics.uar).empty
