"""Temperatures and reliability, by hand and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from conftest import classifier
from scipy import stats
from scipy.special import softmax

from gmp_utils.evaluation import metrics, tables
from gmp_utils.figures import series


def drawn(n, classes, scale, seed=0):
    """Logits that are `scale` times too large, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_a_temperature_is_the_factor_by_which_logits_are_too_large(scale):
    logits, labels = drawn(20000, 4, scale)
    temperature = metrics.fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)  # its standard error here is about 0.01
    correct = logits.argmax(axis=1) == labels
    after = softmax(logits / temperature, axis=1).max(axis=1)
    assert metrics.expected_calibration_error(after, correct) < 0.02


def test_a_few_utterances_without_error_do_not_drive_confidence_to_one():
    labels = np.arange(8) % 4
    logits = 10 * np.eye(4)[labels]
    scale = metrics.fit_temperature(logits, labels)
    confidence = softmax(logits / scale, axis=1).max(axis=1)
    # the smoothed target itself: 8/9 + 1/36
    assert confidence == pytest.approx(8 / 9 + 1 / 36, abs=1e-3)


def test_a_temperature_that_does_not_help_left_out_speakers_is_not_used():
    """Two speakers with opposite temperatures, and a single speaker, who cannot be left out."""
    (first, *few), (second, *many) = drawn(500, 4, 0.3), drawn(500, 4, 3.0, seed=1)
    speakers = np.repeat(["a", "b"], 500)
    opposite = np.concatenate([first, second]), np.concatenate([*few, *many])
    assert metrics.temperature(*opposite, speakers) == 1
    similar = drawn(1000, 4, 3.0)
    assert metrics.temperature(*similar, speakers) == metrics.fit_temperature(*similar) > 2
    assert metrics.temperature(*similar, np.repeat("a", 1000)) == 1


def test_reliability_by_hand():
    confidence = np.array([0.31, 0.39, 0.95, 0.97, 1.0])
    correct = np.array([False, True, True, True, False])
    table = metrics.reliability(confidence, correct)
    assert table.utterances.tolist() == [2, 3]
    assert table.confidence.tolist() == pytest.approx([0.35, 2.92 / 3])
    assert table.accuracy.tolist() == pytest.approx([1 / 2, 2 / 3])
    expected = (2 * 0.15 + 3 * (2.92 - 2) / 3) / 5
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_a_reliability_diagram_per_network():
    """Calibrated, or not, with one or two validation speakers."""
    rows = {"correct": [True, False] * 5, "uncalibrated": 0.95, "calibrated": 0.55, "speaker": "s"}
    table = pd.DataFrame(rows).assign(variant="GMPs", system="CE", validation_speakers=2)
    unused = table.assign(system="AMS", calibrated=0.95)
    alone = unused.assign(variant="no GMPs", validation_speakers=1)
    figure = series.reliability_diagrams(pd.concat([table, unused, alone]))
    assert [note.text.replace("<br>", ": ") for note in figure.layout.annotations[:3]] == [
        "GMPs, CE: ECE 0.45 → 0.05",
        "GMPs, AMS: ECE 0.45, not calibrated (no gain on validation)",
        "no GMPs, AMS: ECE 0.45, not calibrated (one validation speaker)",
    ]
    assert len(figure.data) == 3 * 3 and list(figure.data[2].y) == [0.5]


def test_the_accuracy_of_a_bin_has_an_interval_over_speakers():
    """Speakers with accuracies 0, ½, ½ and 1 in one bin, and a single speaker in the other."""
    correct = [False, False, True, False, False, True, True, True, True]
    table = pd.DataFrame({"speaker": list("aabbccdda"), "correct": correct})
    points = tables.calibration(table.assign(p=[0.55] * 8 + [0.95]), "p")
    half = stats.t.ppf(0.975, 3) * np.std([0, 0.5, 0.5, 1], ddof=1) / 2
    assert (points.accuracy[0], points.utterances[0]) == (0.5, 8)
    assert half > 0.5 and points.loc[0, ["low", "high"]].tolist() == [0, 1]  # clipped
    assert points.loc[1, ["low", "high"]].isna().all()


def test_networks_of_a_run(noise_corpus, tiny_encoder):
    """Temperatures are those of each fold's validation speakers, and confidences those of test utterances."""
    for loss in ("ce", "ams"):
        stage = classifier(noise_corpus, tiny_encoder, loss)
    table = tables.confidences(str(noise_corpus))
    assert set(table.system) == {"CE", "AMS"} and len(table) == 2 * 24
    rows = table[table.system == "AMS"].set_index("utterance")
    predictions = pd.read_parquet(stage / "predictions.parquet").set_index("utterance")
    test, validation = (predictions[predictions.part == part] for part in ("test", "validation"))
    emotions = ["angry", "happy", "neutral", "sad"]
    assert rows.correct.equals(test.true == test.predicted)
    labels = validation.true.map(emotions.index)
    logits = validation[emotions].to_numpy()
    temperature = metrics.temperature(logits, labels.to_numpy(), validation.speaker)
    expected = softmax(test[emotions] / temperature, axis=1).max(axis=1)
    assert rows.calibrated.to_numpy() == pytest.approx(np.asarray(expected))
