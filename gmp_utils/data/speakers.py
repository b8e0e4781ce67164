"""Speaker similarity: cosines of mean features, and the Gaussian mixtures of Sridhar & Busso.

Everything here uses audio and speaker identity only, no labels.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from gmp_utils import GmpError

COMPONENTS = 10  # of the PCA
MIXTURE = 2  # Gaussians per speaker, with diagonal covariances
DRAWS = 2000  # for the divergence of two mixtures
FLOOR = 1e-3  # added to variances


def similarities(means: pd.DataFrame, training: Sequence[str]) -> pd.DataFrame:
    """Cosine similarity of speakers' mean features, speakers × training speakers."""
    return pd.DataFrame(cosine_similarity(means, means.loc[training]), means.index, training)


def nearest_speakers(similarity: pd.DataFrame, k: int) -> dict[str, list[str]]:
    """The k most similar speakers of each row, most similar first; all if there are fewer."""
    if k < 1:
        raise GmpError(f"neighbors: found {k}, expected 1 or more.")
    order = np.argsort(-similarity.to_numpy(), axis=1, kind="stable")[:, :k]
    return {name: similarity.columns[row].tolist() for name, row in zip(similarity.index, order)}


def speaker_weights(similarity: pd.DataFrame, k: int) -> pd.DataFrame:
    """Each speaker as a mixture of training speakers: itself, or its k nearest with equal weights.

    Weights have the shape of `similarity`, speakers × training speakers; rows sum to one.
    """
    weights = pd.DataFrame(0.0, similarity.index, similarity.columns)
    for name, nearest in nearest_speakers(similarity, k).items():
        parts = [name] if name in similarity.columns else nearest
        weights.loc[name, parts] = 1 / len(parts)
    return weights


def divergences(
    functionals: pd.DataFrame, test: Sequence[str], training: Sequence[str], *, seed: int
) -> pd.DataFrame:
    """KL divergence of test speakers' Gaussian mixtures from training speakers'.

    Sridhar & Busso, "Unsupervised Personalization of an Emotion Recognition System", 2022 (arXiv
    2201.07876): PCA of functionals, a mixture of Gaussians per speaker, Kullback-Leibler divergence. It is
    estimated from draws, as mixtures have no closed form. They use ComParE's functionals, this project an
    encoder's means and standard deviations. Numbers of components and of Gaussians are stand-ins.

    Parameters
    ----------
    functionals : (n_utterances, dim) DataFrame
        Indexed by speaker. The PCA is fitted on the training speakers.

    Returns
    -------
    divergences : DataFrame
        Test × training speakers, in nats; 0 or more up to noise.
    """
    fitted = functionals.loc[functionals.index.isin(training)].to_numpy()
    scaler = StandardScaler().fit(fitted)
    pca = PCA(min(COMPONENTS, *fitted.shape), random_state=seed).fit(scaler.transform(fitted))
    reduced = pca.transform(scaler.transform(functionals.to_numpy()))
    reduced /= np.sqrt(pca.explained_variance_[0])

    def mixture(name: str) -> GaussianMixture:
        points = reduced[functionals.index == name]
        points = np.repeat(points, 2, axis=0) if len(points) == 1 else points  # it needs two
        size = min(MIXTURE, len(np.unique(points, axis=0)))
        model = GaussianMixture(size, covariance_type="diag", reg_covar=FLOOR, random_state=seed)
        return model.fit(points)

    candidates = {name: mixture(name) for name in training}
    rows = {}
    for name in test:
        own = mixture(name)
        points = own.sample(DRAWS)[0]
        log_density = own.score(points)
        rows[name] = {o: log_density - model.score(points) for o, model in candidates.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def count_choices(similarity: pd.DataFrame, k: int) -> pd.Series:
    """How many rows have each column among their k most similar."""
    names = sum(nearest_speakers(similarity, k).values(), [])
    return pd.Series(names).value_counts().reindex(similarity.columns, fill_value=0)


def shift(values: pd.DataFrame, reference: pd.DataFrame) -> float:
    """KL divergence of two sets of (n, dim) values, as Gaussians with diagonal covariances, in nats."""
    mean, variance = values.mean(axis=0), values.var(axis=0, ddof=0) + FLOOR
    mean_all, variance_all = reference.mean(axis=0), reference.var(axis=0, ddof=0) + FLOOR
    terms = (variance + (mean - mean_all) ** 2) / variance_all - 1
    return float(np.sum(terms - np.log(variance / variance_all)) / 2)
