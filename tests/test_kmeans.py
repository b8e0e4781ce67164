from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import homogeneity_score

from gmp_utils import GmpError
from gmp_utils.runs import hardware
from gmp_utils.stages.label_quality import mean_runs, variance_explained
from gmp_utils.training import kmeans
from gmp_utils.training.kmeans import assign, fit_kmeans


def test_kmeans_uses_all_frames_and_finds_clear_clusters():
    rng = np.random.default_rng(0)
    centers = 20 * rng.normal(size=(4, 8))
    truth = rng.integers(4, size=3000)
    frames = centers[truth] + rng.normal(size=(3000, 8))
    labels = assign(frames, *fit_kmeans(frames, [12]))
    assert homogeneity_score(truth, labels) > 0.99  # 12 clusters never mix the 4 true ones
    # Three of 2000 frames are far away: faiss's default would train on 3 * 256 of them.
    frames = np.zeros((2000, 2)) + rng.normal(0, 0.01, (2000, 2))
    frames[[5, 700, 1500]] += 100
    (centroids,) = fit_kmeans(frames, [2])
    assert np.sort(centroids[:, 0]).tolist() == pytest.approx([0, 100], abs=0.1)


def test_more_clusters_than_frames_are_rejected():
    with pytest.raises(GmpError, match="scale 11: more clusters than the 10 frames"):
        fit_kmeans(np.random.default_rng(0).normal(size=(10, 3)), [4, 11])


def mixture(n, dim=24):
    """Frames of 40 overlapping kinds."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(40, dim))
    return (centers[rng.integers(40, size=n)] + rng.normal(size=(n, dim))).astype(np.float16)


def inertia(frames, centroids):
    return np.square(frames - centroids[assign(frames, centroids)]).sum(dtype=np.float64)


@pytest.mark.parametrize("chunk", [kmeans.CHUNK, 700])
def test_kmeans_of_gpus_equals_faiss_from_the_same_initial_centroids(monkeypatch, chunk):
    """It runs on the CPU here: all scales in one pass, whole and in chunks. Inertia agrees within 0.1%."""
    monkeypatch.setattr(kmeans, "CHUNK", chunk)
    monkeypatch.setattr(hardware, "device", lambda: "cpu")
    frames, scales = mixture(5000), [8, 64, 256]
    theirs = fit_kmeans(frames, scales, seed=3)
    ours = kmeans.lloyd(torch.from_numpy(frames), scales, 3, 25, "cpu")
    for k, expected, centroids in zip(scales, theirs, ours, strict=True):
        assert expected.shape == centroids.shape == (k, 24)
        assert inertia(frames, centroids.numpy()) == pytest.approx(
            inertia(frames, expected), rel=1e-3
        )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-3)
    nearest = kmeans.nearest_centroid(torch.from_numpy(frames).float(), ours[2])
    np.testing.assert_array_equal(nearest, assign(frames, ours[2].numpy()))


def test_the_nearest_of_close_centroids_is_that_of_float64():
    """Float32 rounds products of 768 terms by about 1e-3, so a centroid as near as this may be chosen."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(500, 768)).astype(np.float32)
    centroids = (frames[:1] + rng.normal(0, 0.01, (64, 768))).astype(np.float32)
    found = kmeans.nearest_centroid(torch.from_numpy(frames), torch.from_numpy(centroids)).numpy()
    squares = np.square(frames[:, None].astype(float) - centroids.astype(float)).sum(axis=-1)
    chosen = np.take_along_axis(squares, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, squares.min(axis=1), atol=2e-3)
    assert (found == squares.argmin(axis=1)).mean() > 0.99


def test_empty_clusters_are_reseeded():
    """Nine of ten initial centroids are equal, so that eight of them get no frame."""
    frames = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    frames[:360] = 5.0
    (centroids,) = kmeans.lloyd(frames, [10], 0, 25, "cpu")
    assert torch.isfinite(centroids).all()
    assert len(np.unique(assign(frames.numpy(), centroids.numpy()))) > 5


def test_mean_runs_by_hand_and_over_all_permutations():
    first, second = np.array([0, 0, 1, 1, 0]), np.array([2, 3, 3])
    orders = [1 + np.count_nonzero(np.diff(x)) for x in permutations(first)]
    found, permuted = mean_runs([first, second])
    assert found == pytest.approx(8 / 5)
    assert permuted == pytest.approx(8 / (np.mean(orders) + 7 / 3))  # 2, 3 and 2 runs of [2, 3, 3]


def test_variance_explained_by_hand_and_by_chance():
    # Within: 1 + 1 + 1 + 1 = 4 over n - k = 2. Total: 36 + 16 + 16 + 36 = 104 over n - 1 = 3.
    found = variance_explained(np.array([0, 2, 10, 12]), np.array([5, 5, 7, 7]))
    assert found == pytest.approx(1 - 2 / (104 / 3))
    assert np.isnan(variance_explained(np.arange(3), np.arange(3)))
    rng = np.random.default_rng(0)
    drawn = [variance_explained(rng.normal(size=60), rng.integers(30, size=60)) for _ in range(300)]
    assert np.mean(drawn) == pytest.approx(0, abs=3 * np.std(drawn) / 300**0.5)  # eta squared: 0.5
