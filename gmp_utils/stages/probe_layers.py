"""Stage 03: what each layer encodes of emotion, gender, speaker, sentence, phonemes and ratings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils.data.audio import frame_seconds, to_float
from gmp_utils.data.corpus import RATINGS, Corpus, open_corpus
from gmp_utils.evaluation import geometry
from gmp_utils.evaluation.comparison import MIN_SPEAKERS, jackknife_interval, with_intervals
from gmp_utils.evaluation.metrics import ATTRIBUTES, adjusted_information, attributes, ccc, uar
from gmp_utils.evaluation.ratings import ccc_of_sums, moments
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import weights
from gmp_utils.runs.paths import PROBE_LAYERS, fold_folder, stage_folder, stage_of
from gmp_utils.runs.stage import make_stage, upstream
from gmp_utils.training import features
from gmp_utils.training.kmeans import assign, fit_kmeans

COLUMNS = ("utterance", *ATTRIBUTES, *RATINGS, "emotion_start", "emotion_end", "phonemes")
SENTENCES = 50  # at most, the most frequent
FRAMES_PER_UTTERANCE = 12  # at most, for probes, maps and few clusters
FRAMES_PER_CLUSTER = 10  # at least, if the corpus has as many
PROBED_FRAMES = 3000  # at most, of each part of a fold
COMPARED_FRAMES = 1200  # at most, for CKA
DRAWN_FRAMES = 100_000  # in memory for each layer, unless the clusters need more

Points = tuple[np.ndarray, pd.DataFrame]  # (layers, n, dim), and a row for each of the n


def _probe(metric: str) -> Pipeline:
    """A linear probe that is scored by "UAR" or "CCC"."""
    model = LogisticRegression(C=0.1, max_iter=2000) if metric == "UAR" else Ridge(alpha=100.0)
    return make_pipeline(StandardScaler(), model)


def probe_layer(x: np.ndarray, points: pd.DataFrame, part: str) -> list[dict]:
    """Probe one layer for every class and rating, and score one part.

    Logistic regressions of classes are scored by UAR, ridge regressions of ratings by CCC. Training is on the
    training part, except for speakers, which are learned from half of the utterances of each validation and
    test speaker, and scored on the other half. A task with fewer than two values in training is skipped.
    `x`, (n, dim), are means of utterances or frames. `points` has `utterance`, `part`, classes and ratings
    of each. Rows have the score, its 95% interval and the chance level, see `_interval`.
    """
    unseen = points.part.isin(["validation", "test"])
    utterances = points[unseen].drop_duplicates("utterance").sample(frac=1, random_state=0)
    half = dict(zip(utterances.utterance, utterances.groupby("speaker").cumcount() % 2))
    half = points.utterance.map(half)
    rows = []
    for task in points.columns.intersection([*ATTRIBUTES, "phoneme", *RATINGS]):
        train, test = points.part == "train", points.part == part
        if task == "speaker":
            train, test = unseen & (half == 0), unseen & (half == 1)
        labeled, labels = points[task].notna(), points[task].to_numpy()
        train, test = train & labeled, test & labeled
        n_values = points[task][train].nunique()
        if n_values > 1 and test.any():
            metric, chance = ("CCC", 0.0) if task in RATINGS else ("UAR", 1 / n_values)
            model = _probe(metric).fit(x[train], labels[train])
            scored = points[test].assign(true=labels[test], predicted=model.predict(x[test]))
            score = (uar if metric == "UAR" else ccc)(scored.true, scored.predicted)
            row = {"task": task, "metric": metric, "score": score, "chance": chance}
            rows.append(row | _interval(scored, metric))
    return rows


def _interval(scored: pd.DataFrame, metric: str) -> dict:
    """`low` and `high` of a score, by jackknife `over` speakers, or utterances if speakers are too few."""
    over = "speaker" if scored.speaker.nunique() >= MIN_SPEAKERS else "utterance"
    if metric == "UAR":
        _, low, high = with_intervals(scored, over)["UAR"]
    else:
        pairs = (rows[["true", "predicted"]].to_numpy(float).T for _, rows in scored.groupby(over))
        sums = np.stack([moments(*pair) for pair in pairs])
        low, high = jackknife_interval(sums, ccc_of_sums, lowest=-1)
    return {"low": low, "high": high, "over": f"{over}s"}


def cluster_layer(
    x: np.ndarray, points: pd.DataFrame, part: str, centroids: list[np.ndarray]
) -> list[dict]:
    """Compare the clusters of one layer's frames of a part with its attributes.

    Rows have the `adjusted_information` (`ami`) of each number of clusters K and attribute. See `probe_layer`
    for `x` and `points`, which also has `is_emotional` if emotional segments are annotated.
    """
    x, points = x[points.part == part], points[points.part == part]
    compared = {name: (name, np.full(len(points), True)) for name in attributes(points)}
    if "is_emotional" in points and points.is_emotional.any():
        compared["emotion (emotional frames)"] = ("emotion", points.is_emotional.to_numpy())
    rows = []
    for centers in centroids:
        clusters, k = assign(x, centers), len(centers)
        for attribute, (column, chosen) in compared.items():
            pair = points[column].to_numpy()[chosen], clusters[chosen]
            ami = adjusted_information(*pair, points.utterance[chosen], points.speaker[chosen])
            rows.append({"K": k, "attribute": attribute, "ami": ami})
    return rows


def bag_uar(counts: np.ndarray, points: pd.DataFrame, part: str, task: str = "emotion") -> float:
    """UAR of a probe of bags of clusters: the square roots of their shares of an utterance's frames.

    NaN without labels of the task, emotion or gender. `counts`, (n_utterances, k), are numbers of frames.
    """
    shares = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    labeled, labels = points[task].notna(), points[task].to_numpy()
    train, scored = (labeled & (points.part == name) for name in ("train", part))
    if points[task][train].nunique() < 2 or not scored.any():
        return np.nan
    model = _probe("UAR").fit(shares[train], labels[train])
    return uar(labels[scored], model.predict(shares[scored]))


def _decibels(samples: np.ndarray) -> float:
    """Mean energy of int16 samples in dB below full scale, at least -100."""
    return 10 * np.log10(np.mean(to_float(samples) ** 2) + 1e-10)


def phoneme_at(phonemes: str, seconds: float) -> str | None:
    """The phoneme at a time, without its stress; None in pauses. See `gmp_utils.data.corpora.check`."""
    words = phonemes.split()
    place = np.searchsorted(np.array(words[::2], float), seconds, side="right") - 1
    name = words[2 * place + 1].strip("',") if place >= 0 else "_"
    return None if name.startswith("_") else name


def _sentences(manifest: pd.DataFrame, parts: pd.Series) -> pd.Series:
    """Texts that at least half of the training speakers, and at least two, say; others are missing."""
    texts = manifest.reindex(columns=["text"]).text
    training = manifest.speaker[parts == "train"]
    speakers = training.groupby(texts).nunique()
    repeated = speakers[speakers >= max(2, training.nunique() / 2)]
    return texts.where(texts.isin(repeated.nlargest(SENTENCES).index))


def _choose_utterances(corpus: Corpus, fold: int, scales: Sequence[int], seed: int) -> pd.DataFrame:
    """Utterances of a fold with their attributes, a sample of them if they have too many frames."""
    parts = corpus.protocol.parts(corpus.manifest, fold)
    manifest = corpus.manifest.assign(sentence=_sentences(corpus.manifest, parts))
    points = manifest[manifest.columns.intersection(COLUMNS)].assign(part=parts)
    n_frames = max(DRAWN_FRAMES, FRAMES_PER_CLUSTER * max(scales))
    if len(points) * FRAMES_PER_UTTERANCE > n_frames:
        return points.sample(n_frames // FRAMES_PER_UTTERANCE, random_state=seed).sort_index()
    return points


def _draw(
    network: SpeechModel, corpus: Corpus, points: pd.DataFrame, n_frames: int, seed: int
) -> dict[str, Points]:
    """Mean over time, and up to `n_frames` frames, of each utterance, by unit.

    The frames depend only on the seed, the utterances and their lengths. Rows gain `energy` (dB below full
    scale) and, for frames, `seconds` (the middle of each) and `draw` (0, 1, … within the utterance: a smaller
    draw is the start of a larger one).
    """
    inputs, layers = features.model_inputs(network, corpus), range(network.n_layers + 1)
    order, drawn = {name: number for number, name in enumerate(points.index)}, {}
    for name, states in features.layer_states_by_length(network, inputs, list(order), layers):
        rng, waveform = np.random.default_rng([seed, order[name]]), corpus.waveforms[name]
        shuffled = rng.permutation(states.shape[1])[:n_frames]
        draw = np.argsort(shuffled)
        chosen = shuffled[draw]
        energies = [_decibels(waveform[start : start + 400]) for start in chosen * 320]
        mean = states.mean(axis=1, dtype=np.float32)
        columns = {"seconds": frame_seconds(chosen), "energy": energies, "draw": draw}
        table = pd.DataFrame(columns, [name] * len(chosen))
        drawn[name] = mean, _decibels(waveform), states[:, chosen], table
    means, energy, frames, tables = zip(*(drawn[name] for name in order))
    table, points = points.join(pd.concat(tables)), points.assign(energy=energy)
    if "emotion_start" in table:
        in_segment = table.seconds.between(table.emotion_start, table.emotion_end, "left")
        table = table.assign(is_emotional=in_segment)
    if "phonemes" in table:
        table["phoneme"] = list(map(phoneme_at, table.pop("phonemes").fillna(""), table.seconds))
    return {
        "utterances": (np.stack(means, axis=1), points.reset_index(drop=True)),
        "frames": (np.concatenate(frames, axis=1), table.reset_index(drop=True)),
    }


def _cluster_layers(
    network: SpeechModel, corpus: Corpus, points: pd.DataFrame, frames: Points, part: str, **kmeans
) -> list[dict]:
    """`cluster_layer` of every layer, clustered on the training part's frames, and `bag_uar` of each K.

    Bags are of all frames of the utterances, which are encoded again for this.
    """
    (x, table), inputs = frames, features.model_inputs(network, corpus)
    centroids = [fit_kmeans(states[table.part == "train"], **kmeans) for states in x]
    sizes = [len(centers) for centers in centroids[0]]
    bags = {(i, k): np.zeros((len(points), k), np.uint16) for i in range(len(x)) for k in sizes}
    order, layers = {name: number for number, name in enumerate(points.index)}, range(len(x))
    for name, states in features.layer_states_by_length(network, inputs, list(order), layers):
        for layer, of_layer in enumerate(centroids):
            for k, centers in zip(sizes, of_layer):
                counts = np.bincount(assign(states[layer], centers), minlength=k)
                bags[layer, k][order[name]] = counts
    uars = {key: bag_uar(counts, points, part) for key, counts in bags.items()}
    return [
        {"layer": layer, **row, "bag_uar": uars[layer, row["K"]]}
        for layer, states in enumerate(x)
        for row in cluster_layer(states, table, part, centroids[layer])
    ]


def _frames(source: str, corpus: Corpus, points: pd.DataFrame, seed: int) -> np.ndarray:
    """Hidden states (layers, n, dim) of some frames, the same ones for every model."""
    n = min(len(points), COMPARED_FRAMES // FRAMES_PER_UTTERANCE)
    points = points.sample(n, random_state=seed)
    return _draw(SpeechModel.load(source), corpus, points, FRAMES_PER_UTTERANCE, seed)["frames"][0]


def _similarity(
    sources: dict[str, str], corpus: Corpus, points: pd.DataFrame, seed: int
) -> list[dict]:
    """CKA of each layer of the source "model" with each layer of all sources."""
    layers = {name: _frames(source, corpus, points, seed) for name, source in sources.items()}
    return [
        {"layer": i, "reference_layer": j, "reference": name, "cka": geometry.cka(x, y)}
        for name, references in layers.items()
        for i, x in enumerate(layers["model"])
        for j, y in enumerate(references)
    ]


def probe_layers(
    run_dir: str,
    fold: int,
    *,
    model: str,
    encoder: str,
    scales: list[int],
    map_points: int = 1800,
    seed: int = 0,
) -> Path:
    """Probe, cluster, compare and map the layers of a model, one of `gmp_utils.runs.paths.MODELS`.

    Probes and clusters are trained on the training part of a fold and scored on the part that the protocol
    selects on, so that a layer may be chosen by them. Larger corpora are sampled (see `DRAWN_FRAMES`), and
    maps have at most `map_points` frames or utterances.

    The stage has probes.parquet (layer, unit, for "utterances" and "frames", and see `probe_layer`),
    clusters.parquet (layer, and see `cluster_layer` and `bag_uar`), similarity.parquet (layer,
    reference_layer, reference, cka, for this "model" and the original "encoder") and maps.parquet (unit, and
    see `gmp_utils.evaluation.geometry.map_layers`).
    """
    corpus, stage = open_corpus(run_dir), stage_folder(run_dir, stage_of(model), fold)
    original, part = weights.resolve(encoder), corpus.protocol.selection_part
    corpus.check_encoder(encoder, fold)

    def build(folder: Path) -> None:
        sources = {"model": str(stage / "model"), "encoder": original}
        if model == "encoder":
            sources = {"model": original}
        points = _choose_utterances(corpus, fold, scales, seed)
        n_training = int((points.part == "train").sum())
        n_frames = max(FRAMES_PER_UTTERANCE, -(-FRAMES_PER_CLUSTER * max(scales) // n_training))
        n_drawn = max(n_frames, -(-map_points // len(points)))
        network = SpeechModel.load(sources["model"])
        drawn = _draw(network, corpus, points, n_drawn, seed)
        frames, table = drawn["frames"]
        kept = table.draw < n_frames
        frames, table = frames[:, kept], table[kept].reset_index(drop=True)
        shuffled = table.sample(frac=1, random_state=seed)
        chosen = np.sort(shuffled.index[shuffled.groupby("part").cumcount() < PROBED_FRAMES])
        probed = drawn | {"frames": (frames[:, chosen], table.loc[chosen])}
        probes = [
            {"layer": layer, "unit": unit, **row}
            for unit, (x, rows) in probed.items()
            for layer, states in enumerate(x)
            for row in probe_layer(states, rows, part)
        ]
        kmeans = {"scales": scales, "seed": seed}
        clusters = _cluster_layers(network, corpus, points, (frames, table), part, **kmeans)
        similarity = _similarity(sources, corpus, points[points.part == part], seed)
        sampling = {"part": part, "n_points": map_points, "seed": seed}
        maps = [geometry.map_layers(*drawn[unit], **sampling).assign(unit=unit) for unit in drawn]
        tables = {"probes": probes, "clusters": clusters, "similarity": similarity}
        for name, rows in (tables | {"maps": pd.concat(maps)}).items():
            pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet", index=False)

    parameters = {"fold": fold, "model": model, "encoder": encoder, "scales": scales}
    parameters |= {"map_points": map_points, "seed": seed}
    return make_stage(
        fold_folder(run_dir, fold) / PROBE_LAYERS / model,
        build,
        parameters=parameters,
        stages=[stage_folder(run_dir, name, fold) for name in upstream(PROBE_LAYERS, parameters)],
        inputs=[weights.fingerprint(encoder)],
    )


def cka_to_pretrained(
    run_dir: str, fold: int, encoder: str, models: dict[str, Path], seed: int = 0
) -> pd.DataFrame:
    """CKA of each layer of trained models, folders by name, with the encoder that they were trained from.

    Frames are drawn from the part that the protocol selects on. Columns are layer, model and cka.
    """
    corpus = open_corpus(run_dir)
    parts = corpus.protocol.parts(corpus.manifest, fold)
    points = corpus.manifest.loc[parts == corpus.protocol.selection_part, ["utterance"]]
    before = _frames(weights.resolve(encoder), corpus, points, seed)
    return pd.DataFrame(
        {"layer": layer, "model": name, "cka": geometry.cka(x, y)}
        for name, folder in models.items()
        for layer, (x, y) in enumerate(zip(before, _frames(str(folder), corpus, points, seed)))
    )
