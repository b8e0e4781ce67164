"""Who sounds like whom: vectors of speakers, their neighbours, the acoustic similarity of Sridhar & Busso.

Everything here hears utterances and who speaks them, and none of their labels.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from gmp_utils import GmpError

COMPONENTS = 10  # of the PCA
MIXTURE = 2  # Gaussians of each speaker, with diagonal covariances
DRAWS = 2000  # for the divergence of two mixtures
FLOOR = 1e-3  # added to the variances of a speaker with few utterances


def by_speaker(vectors: np.ndarray, speakers: Sequence[str], how: str = "mean") -> pd.DataFrame:
    """Summarise utterances by speaker.

    Parameters
    ----------
    vectors : (n_utterances, dim) float
    speakers : (n_utterances,) sequence of str
    how : str
        "mean" or "max".

    Returns
    -------
    table : DataFrame
        A row per speaker, in alphabetical order.
    """
    return pd.DataFrame(vectors).groupby(np.asarray(speakers)).agg(how)


def cosines(of: pd.DataFrame, among: pd.DataFrame) -> pd.DataFrame:
    """Cosine similarity of speakers' vectors.

    Parameters
    ----------
    of, among : DataFrame
        A row per speaker.

    Returns
    -------
    cosines : DataFrame
        Speakers `of` × speakers `among`.
    """
    one, other = (
        table.to_numpy() / np.linalg.norm(table.to_numpy(), axis=1, keepdims=True)
        for table in (of, among)
    )
    return pd.DataFrame(one @ other.T, index=of.index, columns=among.index)


def nearest_speakers(alike: pd.DataFrame, k: int) -> dict[str, list[str]]:
    """The k most similar speakers of each, most similar first; all if there are fewer.

    Parameters
    ----------
    alike : DataFrame
        As `cosines` returns it.
    k : int

    Raises
    ------
    GmpError
        For a `k` below 1.
    """
    if k < 1:
        raise GmpError(f"neighbours: found {k}, expected 1 or more.")
    order = np.argsort(-alike.to_numpy(), axis=1, kind="stable")[:, :k]
    return {name: alike.columns[row].tolist() for name, row in zip(alike.index, order)}


def speaker_weights(alike: pd.DataFrame, k: int) -> pd.DataFrame:
    """How speakers are made up of those that a model knows: themselves, or their k nearest in equal parts.

    Parameters
    ----------
    alike : DataFrame
        Any speakers × those that the model knows.
    k : int

    Returns
    -------
    weights : DataFrame
        Of the same shape; rows sum to one.
    """
    weights = pd.DataFrame(0.0, index=alike.index, columns=alike.columns)
    for name, known in nearest_speakers(alike, k).items():
        made_of = [name] if name in alike.columns else known
        weights.loc[name, made_of] = 1 / len(made_of)
    return weights


def divergences(
    vectors: np.ndarray, speakers: Sequence[str], of: Sequence[str], among: Sequence[str], seed: int
) -> pd.DataFrame:
    """How little speakers cover what others sound like: KL divergence of mixtures of Gaussians.

    Sridhar & Busso, "Unsupervised Personalization of an Emotion Recognition System", 2022 (arXiv
    2201.07876): PCA of functionals, a mixture of Gaussians per speaker, Kullback-Leibler divergence; here
    from draws, as mixtures have no closed form. They take ComParE's functionals, we an encoder's means and
    deviations. Numbers of components and of Gaussians are stand-ins.

    Parameters
    ----------
    vectors : (n_utterances, dim) float
        Functionals of utterances.
    speakers : (n_utterances,) sequence of str
    of, among : sequence of str
        Speakers; the PCA is learnt from `among`.
    seed : int

    Returns
    -------
    divergences : DataFrame
        Speakers `of` × speakers `among`, 0 or more up to noise, in nats.
    """
    speakers = np.asarray(speakers)
    heard = vectors[np.isin(speakers, among)]
    scaler = StandardScaler().fit(heard)
    size = min(COMPONENTS, *heard.shape)
    pca = PCA(size, random_state=seed).fit(scaler.transform(heard))
    reduced = pca.transform(scaler.transform(vectors))
    reduced /= np.sqrt(pca.explained_variance_[0])

    def model(name: str) -> GaussianMixture:
        own = reduced[speakers == name]
        own = np.repeat(own, 2, axis=0) if len(own) == 1 else own  # scikit-learn asks for two
        n = min(MIXTURE, len(np.unique(own, axis=0)))
        return GaussianMixture(n, covariance_type="diag", reg_covar=FLOOR, random_state=seed).fit(
            own
        )

    known = {name: model(name) for name in among}
    rows = {}
    for name in of:
        own = model(name)
        points = own.sample(DRAWS)[0]
        rows[name] = {
            other: own.score_samples(points).mean() - theirs.score_samples(points).mean()
            for other, theirs in known.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index")[list(among)]


def adaptation_set(alike: pd.DataFrame, k: int) -> pd.Series:
    """How many of some speakers chose each other speaker as one of their k nearest.

    Parameters
    ----------
    alike : DataFrame
        Speakers to adapt to × speakers to choose from; greater is nearer.
    k : int

    Returns
    -------
    chosen : Series
        By speaker, 0 for those that nobody chose.
    """
    names = [name for own in nearest_speakers(alike, k).values() for name in own]
    return pd.Series(names).value_counts().reindex(alike.columns, fill_value=0)


def shift(values: np.ndarray, reference: np.ndarray) -> float:
    """KL divergence of a speaker's values from those of many, both taken as Gaussians without covariances.

    Parameters
    ----------
    values : (n, dim) float
    reference : (m, dim) float

    Returns
    -------
    divergence : float
        In nats, summed over dimensions.
    """
    (mean, variance), (mean_all, variance_all) = (
        (own.mean(axis=0), own.var(axis=0) + FLOOR) for own in (values, reference)
    )
    terms = variance / variance_all + (mean - mean_all) ** 2 / variance_all - 1
    return float(np.sum(terms - np.log(variance / variance_all)) / 2)
