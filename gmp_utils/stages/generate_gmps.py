"""Stage 04: gender-augmented multi-scale pseudo-labels from a layer's frames (stage 1b of the paper)."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from transformers import set_seed

from gmp_utils import GmpError, check_choice
from gmp_utils.data.audio import frame_seconds
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.metrics import adjusted_information, attributes
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import GENERATE_GMPS, TRAIN_MULTITASK, fold_folder, stage_folder
from gmp_utils.runs.stage import make_stage, upstream
from gmp_utils.stages.train_multitask import describe_gender, gender_augmented
from gmp_utils.training.features import layer_frames, layer_states_by_length, model_inputs
from gmp_utils.training.kmeans import assign, fit_kmeans

NORMALIZATIONS = ("none", "speaker", "utterance")
REFITTED_FRAMES = 100_000  # random frames that k-means is fitted to again, at most


def generate_gmps(
    run_dir: str,
    fold: int,
    *,
    layer: int = -3,
    scales: Sequence[int] = (64, 512, 4096),
    clustered_model: str = "multitask",
    permuted: bool = False,
    normalize_frames: str = "none",
    encoder: str = "embedded",
    kmeans_frames: int = 0,
    seed: int = 0,
) -> Path:
    """Cluster a layer's frames by k-means at several scales, and assign every frame to its clusters.

    k-means is fitted to the training speakers, or to all speakers under a transductive protocol. The stage
    has centroids-<K>.npy, labels.npy and labels.parquet (a `Ragged` of frames × scales), and metrics.json, in
    which `stability_<K>` is the mean adjusted Rand index of the clusters, on the part that the protocol
    selects on, and those of two further k-means with other seeds.

    Parameters
    ----------
    clustered_model : str
        "multitask", the model of stage 02; or as a control "encoder", the pre-trained encoder, or "random",
        the same architecture with random weights.
    permuted : bool
        As a control, shuffle the labels over each utterance's frames.
    normalize_frames : str
        Before clustering: "none"; "speaker", to mean 0 and standard deviation 1 over a speaker's frames; or
        "utterance", to mean 0 over an utterance's. No labels are used, but held-out speakers are normalized
        by their own audio, which is transductive. Their pseudo-labels are used only for evaluation.
    kmeans_frames : int
        Number of random frames that k-means is fitted to, 0 for all. Each takes 6 bytes × hidden size.
    """
    check_choice("clustered_model", clustered_model, ("multitask", "encoder", "random"))
    check_choice("normalize_frames", normalize_frames, NORMALIZATIONS)
    if not len(scales):
        raise GmpError("scales: found none, expected numbers of clusters such as [64, 512, 4096].")
    if kmeans_frames < 0:
        raise GmpError(f"kmeans_frames: found {kmeans_frames}, expected 0 for all, or more.")
    corpus, folder = open_corpus(run_dir), fold_folder(run_dir, fold)
    inputs = []
    if clustered_model != "multitask":
        corpus.check_encoder(encoder, fold)
        inputs = [weights.fingerprint(encoder)]
    parameters = {"fold": fold, "clustered_model": clustered_model, "layer": layer}
    parameters |= {"scales": list(scales), "permuted": permuted}
    parameters |= {"normalize_frames": normalize_frames}
    parameters |= {"kmeans_frames": kmeans_frames, "seed": seed}
    stages = upstream(GENERATE_GMPS, parameters)
    stage = make_stage(
        folder / GENERATE_GMPS,
        partial(_write_labels, corpus, encoder, parameters),
        parameters=parameters,
        stages=[stage_folder(run_dir, stage, fold) for stage in stages],
        inputs=inputs,
    )
    if normalize_frames == "speaker":
        print("TRANSDUCTIVE: frames of held-out speakers are normalized by all of their audio.")
    if clustered_model == "multitask":
        print(describe_gender(folder / TRAIN_MULTITASK, parameters["layer"]))
    return stage


def _write_labels(corpus: Corpus, encoder: str, parameters: dict, folder: Path) -> None:
    """Fit k-means to the frames of the unsupervised parts, and write the labels of all utterances."""
    scales, seed, limit = (parameters[name] for name in ("scales", "seed", "kmeans_frames"))
    model = load_clustered_model(folder, encoder, parameters)
    names = list(corpus.manifest.index)
    inputs, parts = model_inputs(model, corpus), corpus.partition(parameters["fold"])
    unlabeled = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]
    frames = layer_frames(model, inputs, names, parameters["layer"], folder / "frames")
    normalize(frames, corpus.manifest.speaker, parameters["normalize_frames"])
    labels = Ragged.create(folder / "labels", frames.lengths, np.int32, shape=(len(scales),))
    n_frames = sum(frames.lengths[name] for name in unlabeled)
    n_frames = min(limit or n_frames, n_frames)
    needed, free = 6 * n_frames * frames.values.shape[1], hardware.free_memory()
    hardware.estimate(f"k-means of {n_frames:,} frames", needed, free, "Lower kmeans_frames.")
    sample = frames.sample(unlabeled, limit, seed)
    is_multitask = parameters["clustered_model"] == "multitask"
    trained = folder.with_name(TRAIN_MULTITASK)
    augmented = is_multitask and gender_augmented(trained, parameters["layer"])
    metrics = {"gender_augmented": augmented}
    refitted = frames.sample(unlabeled, min(limit or REFITTED_FRAMES, REFITTED_FRAMES), seed)
    samples = enumerate((sample, refitted, refitted))
    fits = [fit_kmeans(fitted, scales, seed + number) for number, fitted in samples]
    scored = frames.rows(parts[corpus.protocol.selection_part])
    for stream, (k, *centroids) in enumerate(zip(scales, *fits)):
        np.save(folder / f"centroids-{k}.npy", centroids[0], allow_pickle=False)
        labels.values[:, stream] = assign(frames.values, centroids[0])
        pairs = combinations([assign(scored, centers) for centers in centroids], 2)
        metrics[f"stability_{k}"] = np.mean([adjusted_rand_score(*pair) for pair in pairs])
    if parameters["permuted"]:  # over each utterance's frames, all scales together
        rng = np.random.default_rng(seed)
        for name in labels.lengths:
            labels[name][:] = rng.permutation(labels[name])
    labels.flush()
    frames.remove()
    write_json(folder / "metrics.json", metrics)


def load_clustered_model(stage: Path, encoder: str, parameters: dict) -> SpeechModel:
    """The model whose frames a stage clusters: that of stage 02, the encoder, or one with random weights."""
    source = str(stage.with_name(TRAIN_MULTITASK) / "model")
    if parameters["clustered_model"] != "multitask":
        source = weights.resolve(encoder)
    model = SpeechModel.load(source)
    if parameters["clustered_model"] == "random":
        set_seed(parameters["seed"])
        model = SpeechModel(model.config)
    return model


def normalize(frames: Ragged, speakers: pd.Series, how: str) -> None:
    """Normalize frames in place, by one of `NORMALIZATIONS`; `speakers` are indexed by utterance."""
    if how == "none":
        return
    groups = speakers if how == "speaker" else speakers.index.to_series()
    for names in groups.groupby(groups).groups.values():
        n, total, squares = sum(frames.lengths[name] for name in names), 0.0, 0.0
        for name in names:  # a speaker's frames may not fit into memory
            values = frames[name].astype(np.float64)
            total, squares = total + values.sum(axis=0), squares + np.square(values).sum(axis=0)
        mean, deviation = total / n, 1.0
        if how == "speaker":
            deviation = np.sqrt(np.maximum(squares / n - mean**2, 1e-12))
        for name in names:
            frames[name][:] = (frames[name] - mean) / deviation


def streams(stage: Path, encoder: str, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Pseudo-labels, (frames,) int32 by "K = 64" and so on, of a recording that is not in the corpus.

    `waveform` is (n_samples,) float32 or int16 at 16 kHz. `encoder` is used unless `stage` clustered the
    multi-task model. Normalization by speaker uses the recording's own mean and standard deviation.
    """
    parameters = read_json(stage / "params.json")
    model, layers = load_clustered_model(stage, encoder, parameters), [parameters["layer"]]
    recording = Ragged(waveform, {"recording": len(waveform)})
    (states,) = dict(layer_states_by_length(model, recording, ["recording"], layers))["recording"]
    frames = Ragged(states, {"recording": len(states)})
    normalize(frames, pd.Series({"recording": "unknown"}), parameters["normalize_frames"])
    centroids = {k: np.load(stage / f"centroids-{k}.npy") for k in parameters["scales"]}
    return {f"K = {k}": assign(frames.values, array) for k, array in centroids.items()}


def frame_table(corpus: Corpus, labels: Ragged, utterances: list[str]) -> pd.DataFrame:
    """Pseudo-labels of utterances, a row per frame.

    Columns are utterance, speaker, gender, emotion, and the clusters `stream0`, `stream1`, …. If the manifest
    has the emotional part of each utterance, `is_emotional` is True within it.
    """
    lengths = [labels.lengths[name] for name in utterances]
    rows = corpus.manifest.loc[utterances].loc[lambda table: table.index.repeat(lengths)]
    table = rows[["utterance", "speaker", "gender", "emotion"]].reset_index(drop=True)
    for stream, clusters in enumerate(labels.rows(utterances).T):
        table[f"stream{stream}"] = clusters
    if "emotion_start" in rows:
        seconds = np.concatenate([frame_seconds(np.arange(length)) for length in lengths])
        start, end = rows.emotion_start.to_numpy(), rows.emotion_end.to_numpy()
        table["is_emotional"] = (seconds >= start) & (seconds < end)
    return table


def agreement(table: pd.DataFrame, scales: list[int]) -> pd.DataFrame:
    """`adjusted_information` of a `frame_table`: streams × (streams, and its `attributes`)."""
    streams = {f"K = {k}": table[f"stream{stream}"] for stream, k in enumerate(scales)}
    frames, nothing = np.arange(len(table)), np.zeros(len(table))
    ami = {
        name: [adjusted_information(column, x, frames, nothing) for x in streams.values()]
        for name, column in streams.items()
    }
    for name in attributes(table):
        groups = table.utterance, table.speaker
        ami[name] = [adjusted_information(table[name], x, *groups) for x in streams.values()]
    return pd.DataFrame(ami, index=list(streams))
