"""How layers arrange the same points: compared by CKA, drawn by UMAP."""

from contextlib import suppress
from functools import cache
from types import ModuleType

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment, debiased: how alike two layers arrange the same points.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, with the unbiased
    estimator of Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021, equation 3:
    without it few points in many dimensions look alike whatever they are.

    Parameters
    ----------
    x, y : (n, dim) float
        Dimensions may differ.

    Returns
    -------
    similarity : float
        1 for representations that differ by a rotation, a shift and a scale only, 0 on average for
        unrelated ones.
    """
    grams = []
    for values in (x, y):
        values = values - values.mean(axis=0, dtype=np.float64)
        gram = values @ values.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    n = len(x)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        rows = a.sum(axis=1), b.sum(axis=1)
        sums = rows[0].sum() * rows[1].sum() / (n - 1) / (n - 2)
        return np.sum(a * b) + sums - 2 * rows[0] @ rows[1] / (n - 2)

    a, b = grams
    return float(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


@cache
def _umap() -> ModuleType:
    """The library, told to keep on disk what it compiles: that takes ten seconds, once."""
    import umap
    from numba.core.dispatcher import Dispatcher

    for module in (umap.umap_, umap.layouts, umap.utils):
        for compiled in vars(module).values():
            if isinstance(compiled, Dispatcher):
                with suppress(RuntimeError):  # nowhere to write
                    compiled.enable_caching()
    return umap


def umap_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Two dimensions by UMAP.

    Parameters
    ----------
    vectors : (n, dim) float
    seed : int

    Returns
    -------
    points : (n, 2) float32
    """
    neighbours = min(15, len(vectors) - 1)
    mapper = _umap().UMAP(n_neighbors=neighbours, n_epochs=200, random_state=seed, n_jobs=1)
    return mapper.fit_transform(vectors.astype(np.float32))


def map_layers(
    x: np.ndarray, points: pd.DataFrame, compared: str, n_points: int, seed: int
) -> pd.DataFrame:
    """UMAP of every layer, each turned onto the one before, so that points keep their place.

    Parameters
    ----------
    x : (layers, n, dim) float
    points, compared
        See `gmp_utils.stages.probe_layers.probe_layer`.
    n_points : int
        Utterances are drawn from the training part and the one compared until they have so many
        points. UMAP is exact, and quick, below 4096.
    seed : int

    Returns
    -------
    maps : DataFrame
        The points drawn, once per layer, with `layer`, `x` and `y`, in the same order.
    """
    names = points.utterance[points.part.isin(["train", compared])].unique()
    names = np.random.default_rng(seed).permutation(np.sort(names))
    counts = points.utterance.value_counts()[names].cumsum()
    chosen = points.utterance.isin(names[: max(int((counts <= n_points).sum()), 1)]).to_numpy()
    maps, before = [], None
    for layer, states in enumerate(x):
        place = umap_map(states[chosen], seed)
        place = place - place.mean(axis=0)
        if before is not None:
            place = place @ orthogonal_procrustes(place, before)[0]
        before = place
        maps.append(points[chosen].assign(layer=layer, x=place[:, 0], y=place[:, 1]))
    return pd.concat(maps, ignore_index=True)
