"""Stage 03: what each layer knows of emotion, gender, speaker and ratings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils.data.corpus import RATINGS, Corpus, open_corpus
from gmp_utils.evaluation import geometry
from gmp_utils.evaluation.metrics import ccc, uar
from gmp_utils.models.encoder import SpeechModel, frame_seconds
from gmp_utils.runs import weights
from gmp_utils.runs.paths import PROBE_LAYERS, run_folder, stage_of
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.kmeans import assign, fit_kmeans

CLASSES = ("emotion", "gender", "speaker")
KNOWN = ("utterance", *CLASSES, *RATINGS, "emotion_start", "emotion_end")
FRAMES_EACH = 12  # frames drawn from an utterance, at most, for probes, maps and few clusters
POINTS_PER_CLUSTER = 10  # drawn for clusters, at least, where there are so many frames
PROBED_FRAMES = 3000  # of each part of a fold, for probes of frames and maps, at most
COMPARED_FRAMES = 1200  # for CKA, at most
DRAWN_FRAMES = 100_000  # in memory at every layer, at most, unless there are more clusters to fill


def probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], metric: str
) -> float:
    """Score of a linear probe on standardised features.

    Parameters
    ----------
    train, test : tuple of (n, dim) float and (n,) labels or ratings
    metric : str
        "UAR" of a logistic regression (L2, C = 0.1), or "CCC" of a ridge regression (L2, 100) of a
        rating, such as arousal.
    """
    linear, score = {
        "UAR": (LogisticRegression(C=0.1, max_iter=2000), uar),
        "CCC": (Ridge(alpha=100.0), ccc),
    }[metric]
    fitted = make_pipeline(StandardScaler(), linear).fit(*train)
    return score(test[1], fitted.predict(test[0]))


def probe_layer(x: np.ndarray, points: pd.DataFrame, compared: str) -> list[dict]:
    """Probe one layer for everything that is known.

    Emotion, gender and ratings are learnt from the training part; speakers from half of each one's
    held-out utterances, and scored on the other. A task with less than two values to learn is left
    out.

    Parameters
    ----------
    x : (n, dim) float
        Means of utterances, or frames.
    points : DataFrame
        Of each: `utterance`, `part`, and what is known.
    compared : str
        The part that is scored.

    Returns
    -------
    rows : list of dict
        `task`; `metric`, "UAR" or "CCC"; `score`; and `chance`.
    """
    held_out = points.part.isin(["validation", "test"])
    tested = points[held_out].drop_duplicates("utterance").sample(frac=1, random_state=0)
    odd = points.utterance.map(dict(zip(tested.utterance, _rank(tested, "speaker") % 2)))
    across = points.part == "train", points.part == compared
    halves = held_out & (odd == 0), held_out & (odd == 1)
    rows = []
    for task in points.columns.intersection([*CLASSES, *RATINGS]):
        known = points[task].notna()
        learnt, scored = (known & part for part in (halves if task == "speaker" else across))
        n_values = points[task][learnt].nunique()
        if n_values > 1 and scored.any():
            sets = [(x[part], points[task][part].to_numpy()) for part in (learnt, scored)]
            metric, chance = ("UAR", 1 / n_values) if task in CLASSES else ("CCC", 0.0)
            score = probe(*sets, metric)
            rows.append({"task": task, "metric": metric, "score": score, "chance": chance})
    return rows


def purity(true: Sequence, clusters: Sequence) -> float:
    """Share of the points that belong to the most frequent class of their cluster.

    Parameters
    ----------
    true, clusters : (n,) sequence
    """
    return float(contingency_matrix(true, clusters).max(axis=0).sum() / len(true))


def cluster_layer(
    x: np.ndarray, points: pd.DataFrame, compared: str, scales: list[int], seed: int
) -> list[dict]:
    """Cluster one layer's frames, and ask what the clusters tell.

    Parameters
    ----------
    x, points, compared
        See `probe_layer`; with `carries`, true of frames in the part that carries the emotion, where
        that is known.
    scales : list of int
    seed : int
        Of k-means, which hears the training part.

    Returns
    -------
    rows : list of dict
        `K`, what is `known` of the compared part's frames, `nmi` and `purity` of the clusters with it,
        and `cluster_usage`: the clusters in use (the exponential of their entropy) over K.
    """
    scored = points.part == compared
    asked = {name: (name, scored) for name in CLASSES if points[name].notna().all()}
    asked = {name: rows for name, rows in asked.items() if points[name][scored].nunique() > 1}
    if "carries" in points and (scored & points.carries).any():
        asked["emotion, where it is"] = ("emotion", scored & points.carries)
    rows = []
    for k, centroids in zip(scales, fit_kmeans(x[points.part == "train"], scales, seed)):
        clusters = assign(x, centroids)
        shares = np.bincount(clusters[scored], minlength=k) / scored.sum()
        for known, (name, chosen) in asked.items():
            true, found = points[name][chosen], clusters[chosen]
            row = {"K": k, "known": known, "nmi": normalized_mutual_info_score(true, found)}
            row |= {"purity": purity(true, found), "cluster_usage": np.exp(entropy(shares)) / k}
            rows.append(row)
    return rows


def _rank(table: pd.DataFrame, column: str) -> pd.Series:
    """0, 1, 2, … of each row among those of the same value."""
    return table.groupby(column, dropna=False).cumcount()


def _decibels(samples: np.ndarray) -> float:
    """Mean energy of int16 samples; 0 dB is full scale, silence is put at -100."""
    return 10 * np.log10(np.mean((samples / 32768.0) ** 2) + 1e-10)


def _draw(
    network: SpeechModel, corpus: Corpus, points: pd.DataFrame, each: int, seed: int
) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
    """Mean over time, and some frames, of utterances: (layers, n, dim) and a row for each n.

    Which frames are drawn depends on the seed, the utterances and how many frames these have only.
    Rows gain `energy` (dB below full scale) and, for frames, `seconds` (the middle of each) and
    `drawn` (0, 1, … within the utterance: fewer frames are the first of more).
    """
    inputs, layers = features.model_inputs(network, corpus), range(network.n_layers + 1)
    order = {name: number for number, name in enumerate(points.index)}
    means, frames, drawn, chosen, energy, energies = ([None] * len(order) for _ in range(6))
    for name, states in features.layer_states(network, inputs, list(points.index), layers):
        number = order[name]
        rng = np.random.default_rng([seed, number])
        at_random = rng.permutation(states.shape[1])[:each]
        drawn[number] = np.argsort(at_random)
        chosen[number] = at_random[drawn[number]]
        means[number] = states.mean(axis=1, dtype=np.float32)
        frames[number] = states[:, chosen[number]]
        waveform, starts = corpus.waveforms[name], chosen[number] * 320
        energy[number] = _decibels(waveform)
        energies[number] = [_decibels(waveform[start : start + 400]) for start in starts]
    points = points.assign(energy=energy)
    table = points.loc[np.repeat(points.index, list(map(len, drawn)))]
    table = table.assign(
        seconds=frame_seconds(np.concatenate(chosen)),
        energy=np.concatenate(energies),
        drawn=np.concatenate(drawn),
    )
    if "emotion_start" in table:
        table["carries"] = table.seconds.between(table.emotion_start, table.emotion_end, "left")
    return {
        "utterances": (np.stack(means, axis=1), points.reset_index(drop=True)),
        "frames": (np.concatenate(frames, axis=1), table.reset_index(drop=True)),
    }


def probe_layers(
    run_dir: str,
    fold: int,
    model: str,
    encoder: str,
    scales: list[int],
    map_points: int = 1800,
    seed: int = 0,
) -> Path:
    """Probe, cluster, compare and map the layers of a model.

    What is learnt is learnt from the training part of a fold, and scored on its validation, so that a
    layer may be chosen by it (on its test part, if the protocol compares epochs there). Of more than
    8,000 utterances a sample is taken.

    Parameters
    ----------
    run_dir : str
    fold : int
    model : str
        One of `gmp_utils.runs.paths.MODELS`.
    encoder : str
        See `gmp_utils.runs.weights.resolve`.
    scales : list of int
        Numbers of clusters.
    map_points : int
        Frames, and utterances, on a map, at most; see `gmp_utils.evaluation.geometry.map_layers`.
    seed : int

    Returns
    -------
    stage : Path
        With probes.parquet (layer, of, task, metric, score, chance; `of` is "utterances" or "frames"),
        clusters.parquet (layer, and see `cluster_layer`), similarity.parquet (layer, to, of, cka; `of`
        is this "model" or the untouched "encoder") and maps.parquet (of, and see
        `gmp_utils.evaluation.geometry.map_layers`).

    Raises
    ------
    GmpError
        For another `model`, or if its stage is not there.
    """
    corpus, run = open_corpus(run_dir), run_folder(run_dir)
    stage = run / stage_of(model).format(fold=fold)
    untouched = weights.resolve(encoder)
    corpus.check_encoder(encoder, fold)
    compared = corpus.protocol.selection_part

    def build(folder: Path) -> None:
        network = SpeechModel.load(untouched if model == "encoder" else str(stage / "model"))
        layers = range(network.n_layers + 1)
        points = corpus.manifest[corpus.manifest.columns.intersection(KNOWN)]
        points = points.assign(part=corpus.protocol.parts(corpus.manifest, fold))
        needed = max(DRAWN_FRAMES, POINTS_PER_CLUSTER * max(scales))
        if len(points) * FRAMES_EACH > needed:
            points = points.sample(needed // FRAMES_EACH, random_state=seed).sort_index()
        n_training = int((points.part == "train").sum())
        for_clusters = -(-POINTS_PER_CLUSTER * max(scales) // n_training)
        each = max(FRAMES_EACH, for_clusters)
        drawn = _draw(network, corpus, points, max(each, -(-map_points // len(points))), seed)
        frames, table = drawn["frames"]
        asked = np.flatnonzero(table.drawn < each)
        frames, table = frames[:, asked], table.iloc[asked].reset_index(drop=True)
        few = {"utterances": drawn["utterances"], "frames": _some(frames, table, seed)}
        probes = [
            {"layer": layer, "of": of, **row}
            for of, (x, rows) in few.items()
            for layer in layers
            for row in probe_layer(x[layer], rows, compared)
        ]
        clusters = [
            {"layer": layer, **row}
            for layer in layers
            for row in cluster_layer(frames[layer], table, compared, scales, seed)
        ]
        pd.DataFrame(probes).to_parquet(folder / "probes.parquet", index=False)
        pd.DataFrame(clusters).to_parquet(folder / "clusters.parquet", index=False)
        held_out = points[points.part == compared]
        own = _frames(network, corpus, held_out, seed)
        others = {"model": own}
        if model != "encoder":
            others["encoder"] = _frames(SpeechModel.load(untouched), corpus, held_out, seed)
        similarity = [
            {"layer": layer, "to": to, "of": of, "cka": geometry.cka(own[layer], states[to])}
            for of, states in others.items()
            for layer in layers
            for to in layers
        ]
        pd.DataFrame(similarity).to_parquet(folder / "similarity.parquet", index=False)
        drawn_maps = [
            geometry.map_layers(x, rows, compared, map_points, seed).assign(of=of)
            for of, (x, rows) in drawn.items()
        ]
        pd.concat(drawn_maps).to_parquet(folder / "maps.parquet", index=False)

    return make_stage(
        run / f"fold{fold}" / PROBE_LAYERS / model,
        build,
        parameters={
            "fold": fold,
            "model": model,
            "encoder": encoder,
            "scales": scales,
            "map_points": map_points,
            "seed": seed,
        },
        stages=list(dict.fromkeys([corpus.stage, stage])),
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def cka_to_pretrained(
    run_dir: str, fold: int, encoder: str, models: dict[str, Path], seed: int = 0
) -> pd.DataFrame:
    """How far trainings moved each layer, by its CKA with the untouched encoder's.

    Parameters
    ----------
    run_dir : str
    fold : int
    encoder : str
        What they started from.
    models : dict of str to Path
        Folders of models, by the names that they get in the table.
    seed : int
        Of the frames that are drawn from the part of the fold that epochs are compared on.

    Returns
    -------
    table : DataFrame
        layer, model, cka.
    """
    corpus = open_corpus(run_dir)
    parts = corpus.protocol.parts(corpus.manifest, fold)
    points = corpus.manifest.loc[parts == corpus.protocol.selection_part, ["utterance"]]
    before = _frames(SpeechModel.load(weights.resolve(encoder)), corpus, points, seed)
    rows = []
    for name, folder in models.items():
        after = _frames(SpeechModel.load(str(folder)), corpus, points, seed)
        pairs = enumerate(zip(before, after))
        rows += [
            {"layer": layer, "model": name, "cka": geometry.cka(*pair)} for layer, pair in pairs
        ]
    return pd.DataFrame(rows)


def _frames(network: SpeechModel, corpus: Corpus, points: pd.DataFrame, seed: int) -> np.ndarray:
    """(layers, n, dim) of some frames, the same ones whatever the network."""
    few = points.sample(min(len(points), COMPARED_FRAMES // FRAMES_EACH), random_state=seed)
    return _draw(network, corpus, few, FRAMES_EACH, seed)["frames"][0]


def _some(x: np.ndarray, points: pd.DataFrame, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """At most `PROBED_FRAMES` of each part's points."""
    shuffled = points.sample(frac=1, random_state=seed)
    chosen = np.sort(shuffled.index[_rank(shuffled, "part") < PROBED_FRAMES])
    return x[:, chosen], points.loc[chosen].reset_index(drop=True)
