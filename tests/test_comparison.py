"""Statistics against values computed by hand, leave-one-out loops and simulations."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from gmp_utils.evaluation import comparison, metrics, ratings, tables


def test_intervals_of_recalls_by_leaving_speakers_out():
    """A class that no remaining utterance has does not count."""
    rng = np.random.default_rng(0)
    true = rng.choice(["angry", "happy", "sad"], 60, p=[0.6, 0.38, 0.02])
    table = pd.DataFrame({"speaker": np.repeat(list("stuvw"), 12), "true": true})
    table["predicted"] = np.where(rng.random(60) < 0.6, table.true, "bored")
    assert table[table.true == "sad"].speaker.nunique() == 1
    intervals = comparison.with_intervals(table)
    for name, metric in (("UAR", metrics.uar), ("WAR", accuracy_score)):
        value, low, high = intervals[name]
        assert value == pytest.approx(metric(table.true, table.predicted))
        others = [table[table.speaker != speaker] for speaker in "stuvw"]
        left_out = [metric(rows.true, rows.predicted) for rows in others]
        error = np.sqrt(4 / 5 * np.sum((left_out - np.mean(left_out)) ** 2))  # Tukey's, for n = 5
        half = 2.776445 * error  # t(0.975, 4)
        assert (low, high) == pytest.approx((max(value - half, 0), value + half), abs=1e-6)
    assert np.isnan(comparison.with_intervals(table[table.speaker < "v"])["UAR"][1:]).all()


def counted(rng, shape, n_speakers, spread, *, mean=0.7, others=0.0):
    """Correct predictions and utterances, (n_speakers, *shape, 2, 4); recalls differ by speaker and class."""
    recalls = mean + np.array([-0.1, -0.05, 0.05, 0.1]) + others
    recalls = recalls + rng.normal(0, spread, (n_speakers, *shape, 4))
    n = rng.poisson(8, (n_speakers, *[1] * len(shape), 4))
    n = np.broadcast_to(n, recalls.shape)
    return np.stack([rng.binomial(n, np.clip(recalls, 0, 1)), n], axis=-2)


@pytest.mark.parametrize("n_speakers", [5, 12, 24])
def test_intervals_cover_95_percent(n_speakers):
    """4,000 draws, with a standard error of 0.35%: UAR, WAR and CCC are covered 93 to 97 times in 100."""
    rng = np.random.default_rng(0)
    for mean, spread in product((0.7, 0.87), (0.05, 0.12)):
        sums = counted(rng, (4000,), n_speakers, spread, mean=mean)
        hits, n = counted(rng, (1,), 100_000, spread, mean=mean).sum(axis=(0, 1, 3))
        recall = hits / n  # below `mean` where recalls are clipped at 1
        for values in (sums, sums.sum(axis=-1, keepdims=True)):
            low, high = comparison.jackknife_interval(values)
            assert 0.93 < np.mean((low <= recall) & (recall <= high)) < 0.97
    # ratings of a speaker are shifted; predictions follow in part
    true = rng.normal(0, 0.7, (n_speakers, 4000, 1)) + rng.normal(0, 1, (n_speakers, 4000, 20))
    predicted = 0.6 * true + rng.normal(0, 0.3, (n_speakers, 4000, 1))
    predicted += rng.normal(0, 0.5, true.shape)
    variance = 0.7**2 + 1
    ccc = 2 * 0.6 * variance / (variance + 0.36 * variance + 0.3**2 + 0.5**2)
    low, high = comparison.jackknife_interval(ratings.moments(true, predicted), ratings.ccc_of_sums)
    assert 0.93 < np.mean((low <= ccc) & (ccc <= high)) < 0.97


DESIGNS = [(n, k) for n in (5, 10, 24) for k in (3, 5, 10)]
VARIANCES = [(1, 1, 0), (1, 1, 1), (1, 0.25, 0.25), (0.25, 1, 0.25)]


def simulated(rng, draws, n, k, variances):
    """Values (draws, n_speakers, n_seeds) with these variances of their mean."""
    scales = np.sqrt(np.array(variances) * (n, k, n * k))
    shapes = (draws, n, 1), (draws, 1, k), (draws, n, k)
    return sum(rng.normal(0, scale, shape) for scale, shape in zip(scales, shapes))


@pytest.mark.parametrize(("n", "k"), DESIGNS)
def test_at_most_6_percent_of_null_effects_are_significant(n, k):
    """10,000 draws: a standard error of 0.2%. In 60,000 draws of the worst case, 5.6% are significant.

    The interval matches the test, so it covers at least 94%.
    """
    rng = np.random.default_rng(0)
    for variances in VARIANCES:
        values = simulated(rng, 10_000, n, k, variances)
        mean, noise = values.mean(axis=(1, 2)), comparison.variances_of_mean(values)
        found = comparison.p_value(mean, noise, n, k) < 0.05
        assert 0.01 < found.mean() <= 0.06
        assert (found == (np.abs(mean) > comparison.half_width(noise, n, k))).all()


@pytest.mark.parametrize(("n", "k"), [(6, 3), (10, 5), (24, 10)])
def test_at_most_6_percent_of_null_effects_in_recalls_are_significant(n, k):
    """Networks of one system: recalls vary between seeds, and between folds of two speakers."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.02, (2, 1, 2000, k, 1))
    folds = np.repeat(rng.normal(0, 0.03, (2, n // 2, 2000, k, 1)), 2, axis=1)
    speakers = rng.normal(0, 0.05, (2, n, 2000, 1, 1))  # of one system only
    first, second = (
        comparison.pseudo_values(counted(np.random.default_rng(1), (2000, k), n, 0.05, others=x))
        for x in seeds + folds + speakers
    )
    values = np.moveaxis(second - first, 0, 1)
    noise = comparison.variances_of_mean(values)
    assert np.mean(comparison.p_value(values.mean(axis=(1, 2)), noise, n, k) < 0.05) <= 0.06


@pytest.mark.parametrize(("n", "k"), DESIGNS[::2])
@pytest.mark.parametrize("level", [0.05, 0.05 / 9])
def test_the_minimum_detectable_difference_is_found_with_80_percent_power(n, k, level):
    """4,000 draws: a standard error of 0.6 points, and of 0.3 for the draws that the number is based on."""
    rng = np.random.default_rng(1)
    for speakers, seeds, interaction in VARIANCES[1:]:
        expected = np.array([speakers + interaction, seeds + interaction, interaction])
        difference = comparison.minimum_detectable_difference(expected, n, k, level)
        values = difference + simulated(rng, 4000, n, k, (speakers, seeds, interaction))
        noise = comparison.variances_of_mean(values)
        p = comparison.p_value(values.mean(axis=(1, 2)), noise, n, k)
        assert np.mean(p < level) == pytest.approx(0.8, abs=0.03)


def test_p_is_that_of_the_random_effect_that_varies():
    rng = np.random.default_rng(0)
    speakers, seeds = rng.normal(1, 1, (6, 1)), rng.normal(1, 1, (1, 5))
    for values, effects in (
        (speakers + 0 * seeds, speakers[:, 0]),
        (seeds + 0 * speakers, seeds[0]),
    ):
        noise = comparison.variances_of_mean(values)
        p = comparison.p_value(values.mean(), noise, 6, 5)
        assert p == pytest.approx(stats.ttest_1samp(effects, 0).pvalue)
    noise = comparison.variances_of_mean(speakers + seeds)
    of_mean = speakers.var(ddof=1) / 6 + seeds.var(ddof=1) / 5
    assert comparison._standard_errors(noise, 6, 5)[0][2] == pytest.approx(np.sqrt(of_mean))


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04, 0.3 times 4, 3, 2, 1: 0.04, 0.06, 0.08, 0.3, never falling
    corrected = comparison.holm([0.04, 0.01, 0.3, 0.02])
    assert corrected == pytest.approx([0.08, 0.04, 0.3, 0.06])
    assert comparison.holm([0.04, 0.035]) == pytest.approx([0.07, 0.07])


def sums(systems, seeds=(0, 1, 2)):
    """Scores by system, one per speaker, as the sums of `comparisons`, and again for each seed."""
    rows = [
        (name, speaker, seed, "", score / 100, 1)
        for name, scores in systems.items()
        for seed in seeds
        for speaker, score in enumerate(scores)
    ]
    columns = ["system", "speaker", "seed", "label", "total", "n"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:4])


PLAIN, BETTER = [10, 20, 30, 40, 50, 60], [40, 40, 60, 60, 80, 80]


def test_a_pair_is_compared_speaker_by_speaker():
    """The same predictions with every seed, as from systems without a random seed."""
    table = comparison.comparisons(sums({"a": PLAIN, "b": BETTER}), [("a", "b"), ("b", "a")])
    assert table.compared.tolist() == ["a → b", "b → a"]
    assert table.speakers.tolist() == [6, 6]
    assert table.difference.tolist() == pytest.approx([25, -25])
    assert table.seed_deviation.tolist() == pytest.approx([0, 0])
    # gains 30, 20, 30, 20, 30, 20: standard deviation sqrt(30); t(0.975, 5) = 2.570582
    assert table.low[0] == pytest.approx(25 - 2.570582 * np.sqrt(30 / 6), abs=1e-4)
    assert table.high[0] == pytest.approx(25 + 2.570582 * np.sqrt(30 / 6), abs=1e-4)
    p = 2 * stats.t.sf(25 / np.sqrt(30 / 6), 5)
    assert table.p.tolist() == pytest.approx([2 * p] * 2)  # in two comparisons
    assert table.finding.tolist() == ["25.0 points higher", "25.0 points lower"]


def test_three_seeds_by_hand():
    """Gains of 1, 2 and 6 points with a standard deviation of sqrt(7) over seeds: t = 3 / sqrt(7 / 3)."""
    gains = [
        sums({"a": PLAIN, "b": [score + gain for score in PLAIN]}, [seed])
        for seed, gain in enumerate((1, 2, 6))
    ]
    row = comparison.comparisons(pd.concat(gains), [("a", "b")]).iloc[0]
    assert (row.speakers, row.seeds, row.difference) == (6, 3, pytest.approx(3))
    assert row.seed_deviation == pytest.approx(np.sqrt(7))
    assert row.p == pytest.approx(2 * stats.t.sf(3 / np.sqrt(7 / 3), 2))
    assert row.low == pytest.approx(3 - 4.302653 * np.sqrt(7 / 3), abs=1e-5)  # t(0.975, 2)
    text = (
        f"no significant difference (minimum detectable difference: {row.minimum_detectable:.1f} "
    )
    assert row.finding == text + "points)"


def test_fewer_than_three_seeds_give_no_finding_about_systems():
    both = [sums({"a": PLAIN, "b": BETTER}), sums({"a": PLAIN}, [3, 4])]
    both = pd.concat([both[0].query("system == 'a' or seed < 2"), both[1]])
    row = comparison.comparisons(both, [("a", "b")]).iloc[0]
    text = (
        "25.0 points higher in these training runs; a finding about the systems needs three seeds"
    )
    assert (row.seeds, row.finding) == (2, text)
    assert row.low == pytest.approx(25 - 2.570582 * np.sqrt(30 / 6), abs=1e-4)
    assert np.isnan([row.p, row.minimum_detectable]).all()


def test_only_seeds_with_all_shared_speakers_are_compared():
    """An interrupted run: seed 2 has two speakers, and one speaker is only in "a"."""
    table = sums({"a": PLAIN, "b": BETTER}).query("not (system == 'b' and speaker == 5)")
    row = comparison.comparisons(table.query("seed < 2 or speaker < 2"), [("a", "b")]).iloc[0]
    assert (row.speakers, row.seeds) == (5, 2)
    assert row.difference == pytest.approx(np.mean([30, 20, 30, 20, 30]))


def test_more_comparisons_make_findings_less_likely():
    systems = sums({"a": PLAIN, "b": BETTER})
    few, many = (comparison.comparisons(systems, [("a", "b")] * n).iloc[0] for n in (1, 3))
    assert many.p == pytest.approx(3 * few.p)
    noise = np.array([30 / 6, 0, 0])
    for row, n in ((few, 1), (many, 3)):
        expected = comparison.minimum_detectable_difference(noise, 6, 3, 0.05 / n)
        assert row.minimum_detectable == pytest.approx(expected)


def test_too_few_speakers_are_not_compared():
    table = comparison.comparisons(sums({"a": [1, 2], "b": [8, 9]}), [("a", "b")])
    assert table.finding.tolist() == ["no statement from 2 speakers"]
    assert table.difference.isna().all()
    assert comparison.comparisons(sums({"a": [1, 2]}), []).empty


DECLARATION = {"against": None, "variants": {}, "primary": {}}
WITHOUT, WITH, AMS = ("no GMPs", "CE"), ("GMPs", "CE"), ("GMPs", "AMS")


def test_systems_that_differ_in_one_thing_are_compared():
    """Different variants are compared only with the named one, by their first systems if they share none."""
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


def test_the_difference_is_that_of_the_table():
    """Pooled UAR, for speakers with different frequencies of the classes."""
    rng = np.random.default_rng(0)
    rows = [
        (*system, speaker, seed, true, true if rng.random() < right else "c")
        for system, right in ((WITHOUT, 0.5), (WITH, 0.9))
        for seed in range(3)
        for number, speaker in enumerate("stuvwx")
        for true in "a" * (2 + number) + "b" * (9 - number)
    ]
    columns = ["variant", "system", "speaker", "seed", "true", "predicted"]
    predictions = pd.DataFrame(rows, columns=columns).assign(fold=1)
    row = tables.uar_comparisons(predictions, DECLARATION).iloc[0]
    assert row.compared == "no GMPs, CE → GMPs, CE"
    assert row.difference == pytest.approx(np.diff(tables.scores(predictions).UAR).item())
    assert row.finding == f"{row.difference:.1f} points higher"


def test_systems_are_compared_within_their_share_of_labels():
    """Each is compared with the line of the reference variant."""
    variants = {f"{x}%, {line}": {"labeled_share": x / 100} for x in (5, 100) for line in "ab"}
    table = pd.DataFrame(
        [
            (variant, "AMS", speaker, 0, true, "sad" if wrong or variant == "5%, b" else true)
            for variant, speaker_of_errors in zip([*variants, "other"], "stuvw")
            for speaker in "stuvw"
            for true in ("angry", "sad")
            for wrong in [speaker == speaker_of_errors]
        ],
        columns=["variant", "system", "speaker", "seed", "true", "predicted"],
    ).assign(fold=1)
    declaration = DECLARATION | {"variants": variants | {"other": {}}}
    compared = tables.uar_comparisons(table, declaration | {"against": "100%, a"})
    assert compared.set_index("compared").difference.to_dict() == {
        "5%, a, AMS → 5%, b, AMS": pytest.approx(-40),
        "100%, a, AMS → 100%, b, AMS": pytest.approx(0),
    }
    assert len(tables.uar_comparisons(table, declaration)) == 2
    assert len(tables.uar_comparisons(table, DECLARATION)) == 10
    same = table.assign(predicted=table.true)
    assert tables.uar_comparisons(same, DECLARATION).empty  # as of a probe that variants share


def test_primary_outcomes_come_first_and_are_corrected_among_themselves():
    """Also if one was not run, if `against` is in neither, and only with their labels."""
    rng = np.random.default_rng(0)
    rows = [
        (variant, "AMS", speaker, seed, true, true if rng.random() < right else "sad")
        for variant, right in (("a", 0.5), ("b", 0.6), ("c", 0.7))
        for speaker in "stuvwx"
        for seed in range(3)
        for true in ["angry"] * 20
    ]
    columns = ["variant", "system", "speaker", "seed", "true", "predicted"]
    table = pd.DataFrame(rows, columns=columns).assign(fold=1)
    outcomes = {"all labels": ["b, AMS → c, AMS", "b, AMS → not run, AMS"]}
    declaration = DECLARATION | {"against": "a", "primary": outcomes}
    compared = tables.uar_comparisons(table, declaration)
    assert compared.primary.tolist() == [True, False, False]
    assert compared.compared[0] == "b, AMS → c, AMS"
    named = table.assign(system=table.variant + ", AMS")
    sums = comparison.class_sums(named, ["system", "speaker", "seed"])
    alone = comparison.comparisons(sums, [("b, AMS", "c, AMS")], n_primary=1, n_outcomes=2)
    others = comparison.comparisons(sums, [("a, AMS", "b, AMS"), ("a, AMS", "c, AMS")])
    assert compared.p.tolist() == [*alone.p, *others.p]
    assert compared.minimum_detectable.tolist() == [
        *alone.minimum_detectable,
        *others.minimum_detectable,
    ]
    assert "primary" not in tables.uar_comparisons(table, declaration, "few labels")


def test_readouts_are_compared_by_their_mean_uar():
    """Without probes of all labels. With 16 labels, one of two draws is correct, for some speakers both."""
    rows = [
        (name, "probe", speaker, seed, labels, draw, true, true if right else "sad")
        for name in ("a", "b")
        for speaker in range(6)
        for seed in range(3)
        for labels in (1, 16, np.inf)
        for draw in (0, 1)
        for right in [name == "b" and labels == 16 and draw <= speaker % 2]
        for true in ("angry", "sad")
    ]
    columns = ["variant", "system", "speaker", "seed", "labels", "draw", "true", "predicted"]
    declaration = DECLARATION | {"primary": {"few labels": ["a, probe → b, probe"]}}
    table = pd.DataFrame(rows, columns=columns).assign(fold=1)
    row = tables.readout_comparisons(table, declaration).iloc[0]
    # 100 instead of 50 in a quarter of the conditions, or in half of them: gains 12.5 and 25
    half = stats.t.ppf(0.975, 5) * 6.25 * (6 / 5) ** 0.5 / 6**0.5
    assert [row.difference, row.low, row.high] == pytest.approx([18.75, 18.75 - half, 18.75 + half])
    assert row.p == pytest.approx(2 * stats.t.sf(18.75 / (half / stats.t.ppf(0.975, 5)), 5))
    assert (row.speakers, row.seeds, row.finding) == (6, 3, "18.8 points higher")
    assert row.primary
    by_number = tables.differences_by("labels", table, declaration)
    assert by_number.labels.tolist() == ["1", "16", "all"]
    assert by_number.difference.to_numpy() == pytest.approx([0, 37.5, 0])
    by_emotion = tables.differences_by("true", table, declaration)
    assert by_emotion.emotion.tolist() == ["angry", "sad"]
    assert by_emotion.difference.to_numpy() == pytest.approx([37.5, 0])
    assert tables.differences_by("labels", table, DECLARATION).empty
    unfinished = table[table.variant == "a"]
    assert tables.differences_by("labels", unfinished, declaration).empty


def test_folds_are_units_by_hand():
    """Cluster-robust: with four folds, 4 / 3 of the summed squares of the folds' sums of deviations."""
    values, folds = np.array([1.0, 3, 4, 6, 8, 2])[:, None], ["u", "u", "v", "w", "w", "x"]
    by_fold = comparison.fold_values(values, folds)
    deviations = np.array([4 - 8, 4 - 4, 14 - 8, 2 - 4])  # summed by fold; the mean is 4
    assert by_fold[:, 0] == pytest.approx(4 + deviations * 4 / 6)
    expected = 4 / 3 * np.square(deviations).sum() / 6**2
    assert comparison.variances_of_mean(by_fold)[0] == pytest.approx(expected)


def test_speakers_of_a_fold_share_a_model():
    """4,000 draws: five folds of two speakers, whose effects vary as much as the speakers', and no seeds."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(4000, 10, 1)) + np.repeat(rng.normal(size=(4000, 5, 1)), 2, axis=1)
    values, folds = np.repeat(effects, 3, axis=2), np.repeat(range(5), 2)
    p = [
        comparison.p_value(units.mean(axis=(-2, -1)), noise, units.shape[-2], 3)
        for units in (values, comparison.fold_values(values, folds))
        for noise in [comparison.variances_of_mean(units)]
    ]
    assert (p[0] < 0.05).mean() > 0.08
    assert (np.maximum(*p) < 0.05).mean() < 0.06  # a standard error of 0.35%


def test_the_widest_interval_counts():
    """Both speakers of each of five folds gain 1, 2, 3, 4 or 5 points. Three folds are too few for a test."""
    table = sums({"a": [0] * 10, "b": np.repeat([1, 2, 3, 4, 5], 2)})
    by_speaker, by_fold, alone, few = (
        comparison.comparisons(table, [("a", "b")], pd.Series(folds)).iloc[0]
        for folds in ([0] * 10, np.repeat(range(5), 2), range(10), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    )
    assert by_speaker.equals(alone) and by_speaker.equals(few)
    half = 2.262157 * np.sqrt(20 / 9 / 10)  # t(0.975, 9), and the speakers' variance
    assert [by_speaker.low, by_speaker.high] == pytest.approx([3 - half, 3 + half], abs=1e-5)
    half = 2.776445 * np.sqrt(2.5 / 5)  # t(0.975, 4), and the folds'
    assert [by_fold.low, by_fold.high] == pytest.approx([3 - half, 3 + half], abs=1e-5)
    assert by_fold.p == pytest.approx(2 * stats.t.sf(3 / np.sqrt(2.5 / 5), 4))
    assert by_fold.minimum_detectable > by_speaker.minimum_detectable
