"""Quality of the pseudo-labels of stage 04: what they predict, how stable and how long they are."""

from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from gmp_utils.data.acoustic_features import VOICED, prosody_frames
from gmp_utils.data.corpus import Corpus
from gmp_utils.runs.files import read_json
from gmp_utils.stages.generate_gmps import load_clustered_model, normalize
from gmp_utils.stages.probe_layers import bag_uar
from gmp_utils.training.features import layer_frames, model_inputs, open_labels
from gmp_utils.training.kmeans import assign, fit_kmeans

REFITTED_FRAMES = 100_000  # random frames that k-means is fitted to again, at most


def label_quality(stage: Path, corpus: Corpus, encoder: str) -> pd.DataFrame:
    """Describe the pseudo-labels of the utterances that the protocol selects on, a row per scale.

    Columns are `bag UAR` (see `bag_uar`), `stability`, `run, frames`, `permuted, frames` and `run, ms` (see
    `mean_runs`), `eta2 log F0` of voiced frames and `eta2 energy` (see `variance_explained`).
    """
    (labels, scales), fold = open_labels(stage), read_json(stage / "params.json")["fold"]
    parts, part = corpus.partition(fold), corpus.protocol.selection_part
    points = corpus.manifest.assign(part=corpus.protocol.parts(corpus.manifest, fold))
    points = points.loc[parts["train"] + parts[part]]
    prosody = np.concatenate([prosody_frames(corpus.waveforms[name]) for name in parts[part]])
    is_voiced, stable, rows = prosody[:, 1] > VOICED, stability(stage, corpus, encoder), {}
    for stream, k in enumerate(scales):
        counts = [np.bincount(labels[name][:, stream], minlength=k) for name in points.index]
        clusters = [labels[name][:, stream] for name in parts[part]]
        (frames, permuted), clusters = mean_runs(clusters), np.concatenate(clusters)
        rows[f"K = {k}"] = {
            "bag UAR": bag_uar(np.stack(counts), points, part),
            "stability": stable[k],
            "run, frames": frames,
            "permuted, frames": permuted,
            "run, ms": 20 * frames,
            "eta2 log F0": variance_explained(prosody[is_voiced, 0], clusters[is_voiced]),
            "eta2 energy": variance_explained(prosody[:, 2], clusters),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def stability(stage: Path, corpus: Corpus, encoder: str) -> dict[int, float]:
    """Mean adjusted Rand index, by scale, of the stage's clusters and two k-means with other seeds."""
    settings, protocol = read_json(stage / "params.json"), corpus.protocol
    model = load_clustered_model(stage, encoder, settings)
    scales, seed, parts = settings["scales"], settings["seed"], corpus.partition(settings["fold"])
    scored = parts[protocol.selection_part]
    fitted = [name for part in protocol.unsupervised_parts for name in parts[part]]
    with TemporaryDirectory(dir=stage.parent, prefix=".frames") as folder:
        names, stem = list(dict.fromkeys(fitted + scored)), Path(folder) / "frames"
        frames = layer_frames(model, model_inputs(model, corpus), names, settings["layer"], stem)
        normalize(frames, corpus.manifest.speaker[names], settings["normalize_frames"])
        x, sample = frames.rows(scored), frames.sample(fitted, REFITTED_FRAMES, seed)
    own = [np.load(stage / f"centroids-{k}.npy") for k in scales]
    runs = [own, *(fit_kmeans(sample, scales, seed + n) for n in (1, 2))]
    stable = {}
    for k, centroids in zip(scales, zip(*runs)):
        pairs = combinations([assign(x, centers) for centers in centroids], 2)
        stable[k] = float(np.mean([adjusted_rand_score(*pair) for pair in pairs]))
    return stable


def mean_runs(utterances: list[np.ndarray]) -> tuple[float, float]:
    """Mean frames per run of one label, and its expected value for labels permuted in time.

    The permutations of n labels, n_c of them in cluster c, have 1 + n - Σ n_c² / n runs on average (Barton
    and David, "Multiple runs", 1957).
    """
    n = sum(map(len, utterances))
    runs = sum(1 + np.count_nonzero(np.diff(x)) for x in utterances)
    expected = sum(1 + len(x) - np.square(np.bincount(x)).sum() / len(x) for x in utterances)
    return n / runs, float(n / expected)


def variance_explained(values: np.ndarray, clusters: np.ndarray) -> float:
    """Share of the variance that is between clusters: eta squared, corrected to 0 for random clusters.

    Kelley, "An Unbiased Correlation Ratio Measure", 1935. NaN if every value has a cluster of its own.
    """
    values, n_used = pd.Series(values, dtype=float), len(np.unique(clusters))
    if len(values) <= n_used:
        return np.nan
    within = (values - values.groupby(clusters).transform("mean")).pow(2).sum()
    return float(1 - within / (len(values) - n_used) / values.var())
