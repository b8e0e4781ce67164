"""Probes, clusters, similarity and maps of layers on data with known answers."""

import os

import numpy as np
import pandas as pd
import pytest
from conftest import python
from scipy import stats
from scipy.stats import ortho_group
from sklearn.metrics import adjusted_mutual_info_score

from gmp_utils import GmpError
from gmp_utils.evaluation import geometry, metrics
from gmp_utils.figures import layers
from gmp_utils.stages import probe_layers
from gmp_utils.training.kmeans import fit_kmeans

EMOTIONS = ("angry", "happy", "neutral", "sad")


def points_of(n_speakers=6, each=40):
    """Utterances of speakers, the first four of whom are training speakers."""
    rng = np.random.default_rng(0)
    n = n_speakers * each
    speaker = np.repeat(np.arange(n_speakers), each)
    parts = np.array(["train"] * 4 + ["validation", "test"])[speaker]
    return pd.DataFrame({
        "utterance": [f"u{index:03d}" for index in range(n)], "emotion": np.resize(EMOTIONS, n),
        "gender": np.where(speaker % 2, "male", "female"), "speaker": speaker.astype(str),
        "arousal": rng.normal(3, 1, n), "part": parts,
    })  # fmt: skip


def one_hot(column):
    return pd.get_dummies(column).to_numpy(dtype=float)


def test_a_layer_that_encodes_the_labels_scores_one_and_noise_scores_chance():
    points = points_of(each=200)
    noise = np.random.default_rng(1).normal(size=(len(points), 8))
    tasks = ["emotion", "gender", "speaker"]
    holding = np.hstack(
        [*(5 * one_hot(points[task]) for task in tasks), points[["arousal"]], noise]
    )
    scores = {
        name: pd.DataFrame(probe_layers.probe_layer(x, points, "validation")).set_index("task")
        for name, x in (("holding", holding), ("noise", noise))
    }
    assert list(scores["noise"].index) == ["emotion", "gender", "speaker", "arousal"]
    assert scores["noise"].metric.tolist() == ["UAR", "UAR", "UAR", "CCC"]
    assert scores["noise"].chance.tolist() == [1 / 4, 1 / 2, 1 / 2, 0]
    # one validation speaker has one gender, so its UAR is all or nothing on average
    classes = ["emotion", "speaker"]
    assert scores["holding"].score[classes].tolist() == [1, 1]
    assert scores["holding"].score["arousal"] > 0.95
    # 200 utterances are scored: four standard deviations of 0.03
    assert scores["noise"].score["emotion"] == pytest.approx(1 / 4, abs=0.12)
    assert scores["noise"].score["speaker"] == pytest.approx(1 / 2, abs=0.14)
    assert scores["noise"].score["arousal"] == pytest.approx(0, abs=0.1)


def test_intervals_of_probes_are_over_speakers_or_utterances():
    """Recall is the mean of correct predictions, so its interval is the t-interval of a mean."""
    correct = np.array([1, 1, 0, 1, 0, 1, 1, 1] * 5)
    scored = pd.DataFrame({"true": "sad", "predicted": np.where(correct, "sad", "angry")})
    scored["utterance"], by_speaker = np.arange(40), [0.9, 0.6, 0.8, 0.7]
    few = probe_layers._interval(scored.assign(speaker=np.arange(40) % 3), "UAR")
    half = stats.t.ppf(0.975, 39) * stats.sem(correct)
    assert few == {
        "low": pytest.approx(0.75 - half), "high": pytest.approx(0.75 + half), "over": "utterances"
    }  # fmt: skip
    right = np.concatenate([np.arange(10) < 10 * share for share in by_speaker])
    scored = scored.assign(speaker=np.repeat(np.arange(4), 10))
    scored["predicted"] = np.where(right, "sad", "angry")
    many = probe_layers._interval(scored, "UAR")
    half = stats.t.ppf(0.975, 3) * stats.sem(by_speaker)
    assert (many["low"], many["over"]) == (pytest.approx(0.75 - half), "speakers")
    # the CCC of a perfect prediction is 1 without any of the speakers, too
    rated = scored.assign(true=np.arange(40.0), predicted=np.arange(40.0))
    assert probe_layers._interval(rated, "CCC")["low"] == pytest.approx(1)


def test_agreement_of_neighbors_by_hand():
    """Two speakers with two emotions at two places: neighbors of the other speaker share the emotion."""
    points = pd.DataFrame({"speaker": list("aaaabbbb"), "emotion": list("ssttsstt")})
    points = points.assign(utterance=np.arange(8), part="validation", y=0.0)
    points["x"] = np.where(points.emotion == "s", 0.0, 9.0)
    points = pd.concat([points] * 6, ignore_index=True).assign(utterance=np.arange(48))
    assert layers.neighbor_agreement(points, "emotion") == (1, 0.5)
    unlabeled = points.assign(emotion=None)  # does not count
    both = pd.concat([points, unlabeled], ignore_index=True)
    assert layers.neighbor_agreement(both, "emotion") == (1, 0.5)
    shared, chance = layers.neighbor_agreement(points, "speaker")
    assert chance == pytest.approx(23 / 47)
    assert shared < 1


def test_a_task_with_nothing_to_learn_is_skipped():
    points = points_of().assign(gender="male", arousal=np.nan)
    points.loc[points.part == "test", "part"] = "validation"
    x = np.random.default_rng(0).normal(size=(len(points), 4))
    rows = probe_layers.probe_layer(x, points, "validation")
    assert [row["task"] for row in rows] == ["emotion", "speaker"]


def test_speakers_are_trained_and_scored_on_different_utterances():
    """Frames that encode only their utterance do not help to classify the other half."""
    points = points_of(each=10)
    frames = points.loc[points.index.repeat(5)].reset_index(drop=True)
    x = one_hot(frames.utterance)
    rows = pd.DataFrame(probe_layers.probe_layer(x, frames, "validation")).set_index("task")
    assert rows.score["speaker"] == pytest.approx(0.5, abs=1e-9)


def test_every_speaker_is_in_both_halves_whatever_utterances_are_called():
    """In RAVDESS, names end with the actor, so every other name is of every other actor."""
    points = points_of(each=10).sort_values("speaker", kind="stable")
    number = points.groupby("speaker").cumcount()
    points["utterance"] = [f"{n:02d}-{speaker}" for n, speaker in zip(number, points.speaker)]
    x = one_hot(points.speaker)
    rows = pd.DataFrame(probe_layers.probe_layer(x, points, "validation")).set_index("task")
    assert rows.score["speaker"] == 1


def test_phonemes_of_frames_by_hand():
    phonemes, seconds = "0.05 'I 0.15 f 0.21 _: 0.30 t", (0.04, 0.05, 0.14, 0.2, 0.25, 0.9)
    names = [probe_layers.phoneme_at(phonemes, second) for second in seconds]
    assert names == [None, "I", "I", "f", None, "t"]
    assert probe_layers.phoneme_at("", 0.1) is None  # of a corpus without phonemes
    points = points_of().assign(phoneme=names * (len(points_of()) // len(names)))
    rows = probe_layers.probe_layer(one_hot(points.phoneme), points, "validation")
    expected = {"task": "phoneme", "metric": "UAR", "score": 1, "chance": 1 / 3}
    assert any(expected.items() <= row.items() for row in rows)


def test_information_of_one_frame_per_utterance_is_that_of_scikit_learn():
    """Chance is then that of the closed form. Means of ten permutations differ from it by 0.002."""
    rng = np.random.default_rng(0)
    labels, frames = rng.integers(4, size=2000), np.arange(2000)
    clusters = np.where(rng.random(2000) < 0.3, labels, rng.integers(16, size=2000))
    expected = adjusted_mutual_info_score(labels, clusters, average_method="min")
    found = metrics.adjusted_information(labels, clusters, frames, 0 * frames)
    assert found == pytest.approx(expected, abs=0.005)
    assert metrics.adjusted_information(labels, labels + 4 * (frames % 3), frames, 0 * frames) == 1


def test_similar_frames_of_an_utterance_are_no_information():
    """An utterance's frames are in one cluster, and speakers prefer some clusters and some emotions."""
    rng, plain, found, genders = np.random.default_rng(0), [], [], []
    utterance, speaker = np.repeat(np.arange(60), 20), np.repeat([0, 1], 600)
    for _ in range(20):
        emotion = np.repeat(rng.random(60) < np.repeat([0.2, 0.8], 30), 20)
        cluster = np.repeat(rng.integers(8, size=60), 20) + 4 * speaker
        plain.append(adjusted_mutual_info_score(emotion, cluster, average_method="min"))
        found.append(metrics.adjusted_information(emotion, cluster, utterance, speaker))
        # gender is constant within speakers, so it is permuted among all utterances
        determined = cluster + 12 * speaker
        genders.append(metrics.adjusted_information(speaker, determined, utterance, speaker))
    assert np.mean(plain) > 0.2
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / 20**0.5)
    assert np.std(found) < 0.1
    assert genders == pytest.approx([1] * 20)


def test_sentences_that_at_least_half_of_the_training_speakers_say():
    parts = pd.Series(["train"] * 6 + ["validation"] * 2)
    texts, speakers = ["a", "b", "a", "b", "a", "c", "a", "c"], list("11223345")
    manifest = pd.DataFrame({"text": texts, "speaker": speakers})
    found = probe_layers._sentences(manifest, parts)
    assert found.fillna("-").tolist() == ["a", "b", "a", "b", "a", "-", "a", "-"]
    assert probe_layers._sentences(manifest[["speaker"]], parts).isna().all()


def test_bags_of_clusters_by_hand():
    """Shares distinguish the emotions for any length of an utterance. Ratings alone give no UAR."""
    points = points_of(each=8)
    counts = 9 * one_hot(points.emotion) + 1
    counts *= np.arange(1, len(points) + 1)[:, None]
    assert probe_layers.bag_uar(counts, points, "validation") == 1
    assert np.isnan(probe_layers.bag_uar(counts, points.assign(emotion=None), "validation"))
    by_gender = one_hot(points.gender) + 1
    assert probe_layers.bag_uar(by_gender, points, "validation", "gender") == 1


def test_cka_by_another_form_of_its_definition():
    """Unbiased HSIC is the inner product of U-centered matrices (Székely and Rizzo, 2014)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    y = np.hstack([x[:, :2], rng.normal(size=(40, 3))])
    n, centered = len(x), []
    for values in (x, y):
        gram = values @ values.T
        np.fill_diagonal(gram, 0)
        means = gram.sum(0) / (n - 2)
        gram = gram - means - means[:, None] + gram.sum() / (n - 1) / (n - 2)
        np.fill_diagonal(gram, 0)
        centered.append(gram)
    a, b = centered
    expected = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    assert geometry.cka(x, y) == pytest.approx(expected)


def test_clusters_that_are_the_emotions():
    """Emotional frames encode the emotion, and all others are equal."""
    points = points_of(each=80).drop(columns="arousal").replace({"part": {"test": "validation"}})
    points["is_emotional"] = np.arange(len(points)) // 4 % 2 == 0
    x = 10 * one_hot(points.emotion) * points.is_emotional.to_numpy()[:, None]
    x = (x + np.random.default_rng(0).normal(0, 0.01, x.shape)).astype(np.float32)
    centroids = fit_kmeans(x[points.part == "train"], [5])
    rows = pd.DataFrame(probe_layers.cluster_layer(x, points, "validation", centroids))
    rows = rows.set_index("attribute")
    emotional = "emotion (emotional frames)"
    assert list(rows.index) == ["emotion", "gender", emotional]  # a woman and a man: no speaker
    assert rows.ami[emotional] == pytest.approx(1)
    assert 0 < rows.ami["emotion"] < 0.9
    one_speaker = points[points.speaker != "5"]
    x_of_one = x[: len(one_speaker)]
    rows_of_one = probe_layers.cluster_layer(x_of_one, one_speaker, "validation", centroids)
    assert [row["attribute"] for row in rows_of_one] == ["emotion", emotional]


def test_maps_are_rotated_onto_each_other(monkeypatch):
    """A rotated and mirrored copy of a map is aligned with it."""
    points = points_of(each=10)
    plane = np.random.default_rng(0).normal(size=(len(points), 2))
    mirrored = plane @ ortho_group.rvs(2, random_state=3) * [1, -1] + 5
    monkeypatch.setattr(geometry, "umap_map", lambda x, seed: x)
    both = np.stack([plane, mirrored])
    drawn = geometry.map_layers(both, points, part="validation", n_points=1800, seed=0)
    assert set(drawn.part) == {"train", "validation"}
    first, second = (drawn[drawn.layer == layer][["x", "y"]].to_numpy() for layer in (0, 1))
    assert len(first) == 50
    np.testing.assert_allclose(first, second - second.mean(axis=0) + first.mean(axis=0), atol=1e-6)
    few = geometry.map_layers(both, points, part="validation", n_points=20, seed=0)
    assert few.groupby("layer").size().tolist() == [20, 20]
    with pytest.raises(GmpError, match="layer 2: this model has layers 0 to 1"):
        layers.maps(few.assign(unit="frames"), "frames", [-1, 2])
    maps = layers.maps(few.assign(unit="frames"), "frames", [-8, -1])
    assert [note.text for note in maps.layout.annotations[:2]] == ["layer 0", "layer 1"]


def test_maps_leave_the_number_of_threads_as_it_was():
    """In a new process, because numba sets the threads of OpenMP, which torch shares, only once."""
    code = (
        "import numpy as np, torch; from gmp_utils.evaluation.geometry import umap_map\n"
        "before = torch.get_num_threads(); umap_map(np.random.default_rng(0).normal(size=(50, 4)), 0)\n"
        "print('threads', before, torch.get_num_threads())"
    )
    limits = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = python("-c", code, env=os.environ | limits)
    assert "threads 1 1" in done.stdout, done.stderr


def test_layers_of_a_corpus_without_emotions_are_drawn():
    """The title is about the first task."""
    row = {"unit": "utterances", "low": 0.4, "high": 0.8, "chance": 0.0}
    ccc = [
        {"layer": layer, "task": "valence", "metric": "CCC", "score": layer / 10 + 0.3}
        for layer in range(4)
    ]
    figure = layers.layer_curves(pd.DataFrame([row | rating for rating in ccc]))
    assert figure.layout.title.text.startswith(
        "Valence, utterances: CCC 0.30 to 0.60; 3 of 4 layers"
    )
