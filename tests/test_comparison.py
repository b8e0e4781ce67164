"""Statistics against values computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gmp_utils import comparison, evaluation


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
    smallest = comparison.smallest_difference(spread)
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


def predictions(speakers, right):
    """Of ten utterances per speaker and system, so many are right."""
    rows = []
    for system, shares in right.items():
        for speaker, n_right in zip(speakers, shares):
            for number in range(10):
                found = "a" if number < n_right else "b"
                rows.append((*system, speaker, "a", found))
    return pd.DataFrame(rows, columns=["GMPs", "loss", "speaker", "true", "predicted"])


def test_systems_that_differ_in_one_thing_are_compared_speaker_by_speaker():
    table = comparison.comparisons(
        predictions(
            "stuvwx",
            {("no", "CE"): [1, 2, 3, 4, 5, 6], ("yes", "CE"): [4, 4, 6, 6, 8, 8],
             ("yes", "AMS"): [4, 5, 5, 6, 9, 7]},
        ),
        evaluation.war,
    ).set_index("compared")  # fmt: skip
    assert list(table.index) == ["GMPs no, CE → GMPs yes, CE", "GMPs yes, AMS → GMPs yes, CE"]
    gain = table.loc["GMPs no, CE → GMPs yes, CE"]
    assert (gain.speakers, gain.difference) == (6, pytest.approx(25))
    assert gain.p == pytest.approx(
        2 * 2 / 64
    )  # the only one of 64, on both sides, of two questions
    assert gain.low < 25 < gain.high
    assert gain.finding.startswith("no difference shown: below")  # 0.0625
    alone = comparison.comparisons(
        predictions(
            "stuvwx", {("no", "CE"): [1, 2, 3, 4, 5, 6], ("yes", "CE"): [4, 4, 6, 6, 8, 8]}
        ),
        evaluation.war,
    )
    assert alone.finding.tolist() == ["25.0 points more"]
    worse = predictions("stuvwx", {("no", "CE"): [9] * 6, ("yes", "CE"): [4, 4, 6, 6, 8, 8]})
    assert comparison.comparisons(worse, evaluation.war).finding.tolist() == ["30.0 points less"]


def test_few_speakers_say_nothing():
    two = predictions("st", {("no", "CE"): [1, 2], ("yes", "CE"): [8, 9]})
    table = comparison.comparisons(two, evaluation.uar)
    assert table.finding.tolist() == ["no statement from 2 speakers"]
    assert table.difference.isna().all()
    one = two[two.GMPs == "no"]
    assert comparison.comparisons(one, evaluation.uar).empty
