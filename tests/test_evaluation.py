"""Metrics, tables of results and their figures."""

import numpy as np
import pandas as pd
import pytest
from conftest import classifier, write_noise_corpus
from scipy import stats
from sklearn.metrics import accuracy_score

from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import comparison, metrics, tables
from gmp_utils.figures import series
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.runs import experiments
from gmp_utils.training.features import embed_and_classify, model_inputs


def test_recalls_by_hand():
    true = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "d", "a"]
    assert metrics.uar(true, predicted) == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert metrics.macro_f1(true, predicted) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # a class that is only predicted does not count
    assert metrics.uar(["a", "a"], ["a", "b"]) == 0.5
    assert metrics.uar(["a", "a", "c"], ["a", "a", "b"]) == 0.5


def predictions(n_speakers, variant="GMPs", system="CE", right=0.7, seed=0):
    rng = np.random.default_rng(0)
    rows = [
        (f"s{speaker}", 1 + speaker // 2, emotion, emotion if rng.random() < right else "sad")
        for speaker in range(n_speakers)
        for emotion in ("angry", "happy", "sad")
        for _ in range(20)
    ]
    table = pd.DataFrame(rows, columns=["speaker", "fold", "true", "predicted"])
    gender = np.where(table.speaker.str[1:].astype(int) % 2, "male", "female")
    classifier = {"variant": variant, "system": system, "seed": seed, "gender_uar": np.nan}
    return table.assign(gender=gender, **classifier)


def table_of(predictions, **declared):
    plain = {"variants": {}, "runs": [], "impossible": {}}
    plain["paper"] = experiments.declared("table3").paper
    scored = tables.scores(predictions)
    return tables.results_table(predictions, plain | declared, scored).set_index(tables.SYSTEM)


def test_the_table_has_the_papers_numbers_next_to_ours():
    both = pd.concat([predictions(6), predictions(6, "no GMPs", "AMS", 0.9)])
    table = table_of(both)
    assert table.loc[("GMPs", "AMS"), "UAR"] == "not run"
    papers_uar, papers_war = tables.PAPER
    assert "IEMOCAP" in papers_uar
    assert table.loc[("GMPs", "AMS"), papers_uar] == "82.0"
    assert table.loc[("no GMPs", "CE"), papers_war] == "75.8"
    ours = both[both.variant == "GMPs"]
    numbers = [100 * metrics.uar(ours.true, ours.predicted), *tables.scores(ours).iloc[0, 3:5]]
    assert table.loc[("GMPs", "CE"), "UAR"] == "{:.1f} [{:.1f}, {:.1f}]".format(*numbers)
    assert table.loc[("GMPs", "CE"), "speakers"] == 6


def test_the_gender_uar_is_that_of_the_multitask_models():
    """One model per fold, and none for the variant without GMPs: 90 and 70 give 80 ± 14.1."""
    both = pd.concat([predictions(4), predictions(4, "no GMPs")])
    assert "gender UAR, validation" not in table_of(both)
    first = both.fold == both.fold.min()
    both["gender_uar"] = np.where(first, 0.9, 0.7)
    both.loc[both.variant == "no GMPs", "gender_uar"] = np.nan
    column = table_of(both)["gender UAR, validation"]
    assert column["GMPs", "CE"] == "80.0 ± 14.1"
    assert column["no GMPs", "CE"] == ""


def test_what_was_declared_and_not_run_stays_in_the_table():
    members = [{"variant": name, "systems": ["ce"]} for name in ("GMPs", "other")]
    table = table_of(predictions(4), variants={"GMPs": {}, "other": {}}, runs=members, paper={})
    assert table.index.tolist() == [("GMPs", "CE"), ("other", "CE")]
    assert table["UAR"]["other", "CE"] == "not run"
    assert table["folds"].tolist() == [2, 0]
    assert not set(tables.PAPER) & set(table)


def test_folds_with_their_standard_deviation_over_seeds():
    """On one fold, all and then half are correct: 100 and 50 give 75 ± 35.4. The other fold has one seed."""
    first, second = predictions(4, right=1.0), predictions(4, right=1.0, seed=1)
    half = second.index % 2 == 0
    second.loc[half, "predicted"] = "none"
    second = second[second.fold == first.fold.min()]
    table = tables.by_fold(pd.concat([first, second])).xs("UAR", level="metric")
    seeds = [100 * metrics.uar(rows.true, rows.predicted) for rows in (first, second)]
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    low, high = sorted(first.fold.unique())
    assert spread > 10
    assert table[f"fold {low}"]["GMPs, CE"] == f"{mean:.1f} ± {spread:.1f}"
    assert table[f"fold {high}"]["GMPs, CE"] == "100.0"
    # the standard deviation of two numbers is half their distance times the root of two
    over_folds = f"{(mean + 100) / 2:.1f} ± {(100 - mean) / 2 * 2**0.5:.1f}"
    assert table["over folds"]["GMPs, CE"] == over_folds


def test_published_results_are_those_of_the_papers():
    table = tables.published()
    assert table.UAR["GMP-TL"] == 82.0
    assert table.loc["P-TAPT", "session 2"] == "80.2 ± 0.9"
    sessions = table.loc[["V-FT", "TAPT", "P-TAPT"]].filter(like="session")
    means = sessions.map(lambda text: float(text.split()[0])).mean(axis=1)
    assert ((means - table.UAR[means.index].astype(float)).abs() < 0.06).all()  # rounded to a tenth


def test_recall_by_group():
    """Recalls of each speaker are averaged, as all have 20 utterances of each emotion."""
    emotions, rows = ["angry", "happy", "sad"], predictions(8)
    rows = rows.assign(group=rows.gender)
    table = tables.recall_table(rows, emotions).set_index(["group", "emotion"])
    assert table.index.tolist() == [
        (gender, name) for gender in ("female", "male") for name in [*emotions, "UAR"]
    ]
    women = rows.query("gender == 'female'")
    uar = 100 * metrics.uar(women.true, women.predicted)
    assert table.recall["female", "UAR"] == pytest.approx(uar)
    right = (women.true == women.predicted)[women.true == "angry"]
    hits = 100 * right.groupby(women.speaker).mean()
    half = stats.t.ppf(0.975, 3) * hits.std() / 2
    expected = [hits.mean(), hits.mean() - half, min(100, hits.mean() + half)]
    assert table.loc[("female", "angry")].tolist() == pytest.approx(expected)
    figure = series.recalls_by_group({"a": tables.recall_table(rows, emotions)}, "")
    assert figure.data[0].error_y.arrayminus[0] == pytest.approx(half)


def test_gaps_between_groups():
    """Speakers with as many utterances of each emotion: Welch's test of the speakers' UARs."""
    rows = predictions(9)
    rows["group"] = np.where(rows.speaker.isin(["s0", "s1", "s2", "s3"]), "a", "b")
    rows.loc[rows.group == "b", "predicted"] = rows.true
    rows.loc[rows.speaker == "s8", "predicted"] = "sad"
    (row,) = tables.group_gaps(rows).itertuples(index=False)
    uars = 100 * rows.groupby(["group", "speaker"])[["true", "predicted"]].apply(
        lambda table: metrics.uar(table.true, table.predicted)
    )
    interval = stats.ttest_ind(uars["b"], uars["a"], equal_var=False).confidence_interval()
    assert row[:3] == ("GMPs", "CE", "b − a")
    assert row[3:] == pytest.approx((uars["b"].mean() - uars["a"].mean(), *interval))
    rare = rows[(rows.group == "b") | (rows.true != "sad")]  # then a mean over two emotions each
    shared = rows[rows.true != "sad"]
    assert tables.group_gaps(rare).equals(tables.group_gaps(shared))
    few = rows[rows.speaker != "s0"]
    mixed = pd.concat([rows, rows.query("speaker == 's0'").assign(group="b")])
    for table in map(tables.group_gaps, (few, mixed)):
        assert table.difference.notna().all() and table[["low", "high"]].isna().all(axis=None)


def test_many_systems_have_rows_of_panels():
    """Plotly limits the space between rows. UAR is last, even if the first group lacks an emotion."""
    rows = predictions(4).assign(group="a")
    table = tables.recall_table(rows[rows.true != "angry"], ["angry", "happy", "sad"])
    table = pd.concat(
        [table, tables.recall_table(rows.assign(group="b"), ["angry", "happy", "sad"])]
    )
    figure = series.recalls_by_group({str(number): table for number in range(56)}, "")
    assert figure.layout.xaxis.categoryarray == ("angry", "happy", "sad", "UAR")
    assert figure.layout.height == 130 + 290 * 19


def test_confusions_have_the_recalls_with_their_intervals():
    """Angry is predicted as itself or as sad, and sad as itself. Two speakers give no interval."""
    emotions, rows = ["angry", "happy", "sad"], predictions(4)
    (panel,) = series.confusions({"a": rows}, emotions).data
    recall, low, high = 100 * np.array(comparison.with_intervals(rows)["angry"])
    assert panel.text[0].tolist() == [
        f"{recall:.0f}<br>[{low:.0f}, {high:.0f}]", "0", f"{100 - recall:.0f}"
    ]  # fmt: skip
    assert panel.text[2].tolist() == ["0", "0", "100<br>[100, 100]"]
    (panel,) = series.confusions({"a": predictions(2)}, emotions).data
    assert panel.text[2].tolist() == ["0", "0", "100"]


def test_spread_over_folds_and_over_seeds():
    both = pd.concat([predictions(4), predictions(4, right=0.9, seed=1)])
    table = table_of(both)
    for name, metric, by in (
        ("UAR", metrics.uar, "fold"), ("WAR", accuracy_score, "fold"), ("UAR", metrics.uar, "seed"),
    ):  # fmt: skip
        values = [100 * metric(rows.true, rows.predicted) for _, rows in both.groupby(by)]
        mean, half = sum(values) / 2, abs(values[0] - values[1]) / 2
        assert table[f"{name} by {by}"]["GMPs", "CE"] == f"{mean:.1f} ± {half * 2**0.5:.1f}"
        assert table[f"{name} by {by}"]["no GMPs", "CE"] == "not run"
    assert table["seeds"]["GMPs", "CE"] == 2
    assert (
        table["macro-F1"]["GMPs", "CE"]
        == f"{100 * metrics.macro_f1(both.true, both.predicted):.1f}"
    )
    alone = table_of(predictions(2))
    assert alone["UAR by fold"]["GMPs", "CE"] == "only one"
    assert "[" not in alone["UAR"]["GMPs", "CE"]


def test_every_fold_and_seed_is_a_point_next_to_its_systems_mean():
    both = pd.concat([predictions(4), predictions(4, right=0.9, seed=1)])
    points, means = tables.scores_by_fold(both), tables.scores(both)
    assert len(points) == 2 * 2
    assert means.UAR.tolist() == [pytest.approx(100 * metrics.uar(both.true, both.predicted))]
    assert (means["UAR low"] < means.UAR).all()
    figure = series.systems(points, means, joined=False)
    assert [len(trace.y) for trace in figure.data] == [4, 1]
    assert figure.data[1].error_y.array[0] == pytest.approx(means["UAR high"][0] - means.UAR[0])
    assert figure.layout.title.text.endswith(f"up to {points.UAR.std():.1f}")
    alone = series.systems(points, means, joined=True).data[1]
    assert alone.error_y.array[0] == figure.data[1].error_y.array[0]
    means = pd.concat([means, means.assign(variant="no GMPs", UAR=50.0)])
    band = series.systems(points, means, joined=True).data[1]
    assert list(band.y) == [means["UAR high"].iloc[0]] * 2 + [means["UAR low"].iloc[0]] * 2


def test_speakers_are_drawn_once_per_system():
    scores = {"a": pd.Series({"s": 50.0, "t": 90.0}), "b": pd.Series({"s": 60.0, "t": 70.0})}
    figure = series.speakers(scores)
    assert [list(trace.y) for trace in figure.data] == [[50, 60], [90, 70], [70, 65]]
    title = figure.layout.title.text
    assert title == "Speakers of a system differ by up to 40 points, the systems' means by 5"
    scores = {"a": pd.Series({"s": 50.0, "t": 90.0, "u": 50.0, "v": 90.0})}
    # the standard deviation is 20 times the root of 4 / 3
    half = stats.t.ppf(0.975, 3) * 20 * (4 / 3) ** 0.5 / 2
    assert series.speakers(scores).data[-1].error_y.array[0] == pytest.approx(half)


def test_the_selected_epoch_is_a_star():
    columns = {"CE loss": [2, 1], "CE selected": [False, True], "AMS loss": [3, 2]}
    history = pd.DataFrame({"epoch": [1, 2], "selected": [True, False]} | columns)
    panels = {"loss": {"CE": "CE loss", "AMS": "AMS loss"}}
    figure = series.curves(history, panels, x="epoch", title="")
    symbols = [list(trace.marker.symbol) for trace in figure.data]
    assert symbols == [["circle", "star"], ["star", "circle"]]
    assert figure.layout.yaxis.title.text == "loss"


def test_features_before_and_after_training_are_drawn(tmp_path, tiny_encoder):
    """Those after training are features of the saved model."""
    run = write_noise_corpus(tmp_path / "run")
    stages = [classifier(run, tiny_encoder, loss) for loss in ("ams", "ce")]
    names = open_corpus(str(run)).partition(1)["validation"]
    model = EmotionClassifier.load(str(stages[0] / "model"))
    expected, _ = embed_and_classify(model, model_inputs(model, open_corpus(str(run))), names)
    values = pd.read_parquet(stages[0] / "features.parquet")
    np.testing.assert_allclose(values.loc["after"], expected, atol=1e-5)  # batches differ
    assert not np.allclose(values.loc["before"], expected, atol=1e-2)
    figure = series.feature_planes({"CE": stages[1], "AMS": stages[0]})
    titles = [note.text.split(" (")[0] for note in figure.layout.annotations]
    assert titles == ["before", "after, CE", "after, AMS"]
    assert sum(len(trace.x) for trace in figure.data) == 3 * len(names)
