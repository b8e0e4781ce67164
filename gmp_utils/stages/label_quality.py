"""Quality of the pseudo-labels of stage 04: what they predict, and how stable and how long they are."""

from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils.data.acoustic_features import VOICED, prosody_frames
from gmp_utils.data.corpus import Corpus
from gmp_utils.runs.files import read_json
from gmp_utils.stages.probe_layers import bag_uar
from gmp_utils.training.features import open_labels


def label_quality(stage: Path, corpus: Corpus) -> pd.DataFrame:
    """Describe the pseudo-labels of the part that the protocol selects on, a row per scale.

    Columns are the `bag UAR` of emotion and gender (see `bag_uar`), the stage's `stability`, `run, frames`,
    `permuted, frames` and `run, ms` (see `mean_runs`), `eta2 log F0` of voiced frames and `eta2 energy` (see
    `variance_explained`).
    """
    (labels, scales), fold = open_labels(stage), read_json(stage / "params.json")["fold"]
    parts, part = corpus.partition(fold), corpus.protocol.selection_part
    points = corpus.manifest.assign(part=corpus.protocol.parts(corpus.manifest, fold))
    points = points.loc[parts["train"] + parts[part]]
    prosody = np.concatenate([prosody_frames(corpus.waveforms[name]) for name in parts[part]])
    is_voiced, metrics, rows = prosody[:, 1] > VOICED, read_json(stage / "metrics.json"), {}
    for stream, k in enumerate(scales):
        counts = [np.bincount(labels[name][:, stream], minlength=k) for name in points.index]
        clusters = [labels[name][:, stream] for name in parts[part]]
        (frames, permuted), clusters = mean_runs(clusters), np.concatenate(clusters)
        bags = np.stack(counts), points, part
        rows[f"K = {k}"] = {
            "bag UAR, emotion": bag_uar(*bags),
            "bag UAR, gender": bag_uar(*bags, "gender"),
            "stability": metrics[f"stability_{k}"],
            "run, frames": frames,
            "permuted, frames": permuted,
            "run, ms": 20 * frames,
            "eta2 log F0": variance_explained(prosody[is_voiced, 0], clusters[is_voiced]),
            "eta2 energy": variance_explained(prosody[:, 2], clusters),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def mean_runs(utterances: list[np.ndarray]) -> tuple[float, float]:
    """Mean number of frames per run of a label, and its expected value for labels permuted in time.

    The permutations of n labels, n_c of them in cluster c, have 1 + n - Σ n_c² / n runs on average (Barton
    and David, "Multiple runs", 1957).
    """
    n = sum(map(len, utterances))
    runs = sum(1 + np.count_nonzero(np.diff(x)) for x in utterances)
    expected = sum(1 + len(x) - np.square(np.bincount(x)).sum() / len(x) for x in utterances)
    return n / runs, float(n / expected)


def variance_explained(values: np.ndarray, clusters: np.ndarray) -> float:
    """Share of the variance between clusters: eta squared, corrected to be 0 for random clusters.

    Kelley, "An Unbiased Correlation Ratio Measure", 1935. NaN if every value has its own cluster.
    """
    values, n_used = pd.Series(values, dtype=float), len(np.unique(clusters))
    if len(values) <= n_used:
        return np.nan
    within = (values - values.groupby(clusters).transform("mean")).pow(2).sum()
    return float(1 - within / (len(values) - n_used) / values.var())
