"""Representational similarity of layers (CKA), and maps of them (UMAP)."""

from contextlib import suppress

import numpy as np
import pandas as pd
import torch
from scipy.linalg import orthogonal_procrustes


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centered kernel alignment, debiased.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, with the unbiased
    estimator of Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021, equation 3: without
    it, few points in many dimensions always look similar. It is 1 for representations (n, dim) that differ by
    a rotation, shift and scale, and 0 on average for unrelated ones.
    """
    n, grams = len(x), []
    for values in (x, y):
        values = values - values.mean(axis=0, dtype=np.float64)
        gram = values @ values.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        rows = a.sum(axis=1), b.sum(axis=1)
        sums = rows[0].sum() * rows[1].sum() / (n - 1) / (n - 2)
        return np.sum(a * b) + sums - 2 * rows[0] @ rows[1] / (n - 2)

    a, b = grams
    return float(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


def umap_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Project (n, dim) vectors to (n, 2) by UMAP, whose compiled code (ten seconds) is cached on disk."""
    import umap
    from numba.core.dispatcher import Dispatcher

    for module in (umap.umap_, umap.layouts, umap.utils):
        for compiled in vars(module).values():
            if isinstance(compiled, Dispatcher):
                with suppress(RuntimeError):  # no writable folder
                    compiled.enable_caching()
    n_neighbors, n_threads = min(15, len(vectors) - 1), torch.get_num_threads()
    mapper = umap.UMAP(n_neighbors=n_neighbors, n_epochs=200, random_state=seed, n_jobs=1)
    points = mapper.fit_transform(vectors.astype(np.float32))
    # numba has set the threads of OpenMP, and thereby those of torch, to all cores
    torch.set_num_threads(n_threads)
    return points


def map_layers(
    x: np.ndarray, points: pd.DataFrame, *, part: str, n_points: int, seed: int
) -> pd.DataFrame:
    """UMAP of every layer, each rotated onto the previous one so that points stay in place.

    `x` is (layers, n, dim), and `points` has `utterance` and `part` of each of the n points. Utterances are
    drawn from a part and the training part until they have `n_points` points (UMAP is exact and fast below
    4096). The drawn points are returned once per layer in the same order, with `layer`, `x` and `y`.
    """
    names = points.utterance[points.part.isin(["train", part])].unique()
    names = np.random.default_rng(seed).permutation(np.sort(names))
    counts = points.utterance.value_counts()[names].cumsum()
    drawn = points.utterance.isin(names[: max(int((counts <= n_points).sum()), 1)]).to_numpy()
    maps, previous = [], None
    for layer, states in enumerate(x):
        plane = umap_map(states[drawn], seed)
        plane = plane - plane.mean(axis=0)
        if previous is not None:
            plane = plane @ orthogonal_procrustes(plane, previous)[0]
        previous = plane
        maps.append(points[drawn].assign(layer=layer, x=plane[:, 0], y=plane[:, 1]))
    return pd.concat(maps, ignore_index=True)
