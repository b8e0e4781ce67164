"""Speaker similarity: cosines of mean features, and the Gaussian mixtures of Sridhar & Busso.

Only audio and speaker identity are used, no labels.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils import GmpError

COMPONENTS = 10  # of the PCA
MIXTURE = 2  # Gaussians per speaker, with diagonal covariances
DRAWS = 2000  # samples that estimate the divergence of two mixtures
FLOOR = 1e-3  # added to variances


def similarities(means: pd.DataFrame, training: Sequence[str]) -> pd.DataFrame:
    """Cosine similarity of speakers' mean features, speakers × training speakers."""
    return pd.DataFrame(cosine_similarity(means, means.loc[training]), means.index, training)


def nearest_speakers(similarity: pd.DataFrame, k: int) -> pd.DataFrame:
    """Whether each column is among the k most similar speakers of a row, bool."""
    if k < 1:
        raise GmpError(f"neighbors: found {k}, expected 1 or more.")
    return similarity.rank(axis=1, ascending=False, method="first") <= k


def speaker_weights(similarity: pd.DataFrame, k: int) -> pd.DataFrame:
    """Weights of training speakers for each speaker, in rows that sum to 1.

    Training speakers are represented by themselves, others by their k nearest with equal weights.
    """
    chosen = nearest_speakers(similarity, k)
    for name in similarity.index.intersection(similarity.columns):
        chosen.loc[name] = similarity.columns == name
    return chosen.div(chosen.sum(axis=1), axis=0)


def divergences(
    functionals: pd.DataFrame, test: Sequence[str], training: Sequence[str], *, seed: int
) -> pd.DataFrame:
    """KL divergence of test speakers' Gaussian mixtures from training speakers'.

    Sridhar & Busso, "Unsupervised Personalization of an Emotion Recognition System", 2022 (arXiv
    2201.07876), with an encoder's means and standard deviations instead of ComParE's functionals. The
    numbers of components and Gaussians are our choice, and the divergence is estimated by sampling.
    `functionals`, (n_utterances, dim), are indexed by speaker. The PCA is fitted on the training speakers.
    Divergences, (n_test, n_training), are in nats.
    """
    fitted = functionals.loc[functionals.index.isin(training)].to_numpy()
    pca = PCA(min(COMPONENTS, *fitted.shape), random_state=seed)
    reduced = make_pipeline(StandardScaler(), pca).fit(fitted).transform(functionals.to_numpy())
    reduced /= np.sqrt(pca.explained_variance_[0])

    def mixture(name: str) -> GaussianMixture:
        points = reduced[functionals.index == name]
        points = np.repeat(points, 2, axis=0) if len(points) == 1 else points  # two are required
        size = min(MIXTURE, len(np.unique(points, axis=0)))
        model = GaussianMixture(size, covariance_type="diag", reg_covar=FLOOR, random_state=seed)
        return model.fit(points)

    candidates, rows = [mixture(name) for name in training], []
    for model in map(mixture, test):
        points = model.sample(DRAWS)[0]
        score = model.score(points)
        rows.append([score - candidate.score(points) for candidate in candidates])
    return pd.DataFrame(rows, test, training)


def shift(values: pd.DataFrame, reference: pd.DataFrame) -> float:
    """KL divergence (nats) of values from a reference, (n, dim), as Gaussians with diagonal covariances."""
    variance, reference_variance = (x.var(axis=0, ddof=0) + FLOOR for x in (values, reference))
    squared = (values.mean(axis=0) - reference.mean(axis=0)) ** 2
    terms = (variance + squared) / reference_variance - 1
    return float(np.sum(terms - np.log(variance / reference_variance)) / 2)
