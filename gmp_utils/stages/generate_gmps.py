"""Stage 04: gender-augmented multi-scale pseudo-labels from a layer's frames (stage 1b of the paper)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from sklearn.metrics import normalized_mutual_info_score
from transformers import set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.encoder import SpeechModel, frame_seconds
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import GENERATE_GMPS, TRAIN_MULTITASK, fold_folder, stage_folder
from gmp_utils.runs.stage import make_stage, upstream
from gmp_utils.stages.train_multitask import describe_gender, gender_augmented
from gmp_utils.training.features import layer_frames, layer_states_by_length, model_inputs
from gmp_utils.training.kmeans import assign, fit_kmeans


def generate_gmps(
    run_dir: str,
    fold: int,
    *,
    layer: int = -3,
    scales: Sequence[int] = (64, 512, 4096),
    clustered_model: str = "multitask",
    permuted: bool = False,
    encoder: str = "embedded",
    kmeans_frames: int = 0,
    seed: int = 0,
) -> Path:
    """Cluster a layer's frames by k-means at several scales, and assign every frame to its clusters.

    k-means is fitted to the training speakers, or to all speakers under a transductive protocol. The stage
    has centroids-<K>.npy, metrics.json, labels.npy and labels.parquet: a `Ragged` of frames × scales.

    Parameters
    ----------
    clustered_model : str
        "multitask", the model of stage 02; or as a control "encoder", the initial one, or "random", the same
        architecture with random weights.
    permuted : bool
        As a control: shuffle the labels over each utterance's frames.
    kmeans_frames : int
        Number of random frames that k-means is fitted to; 0 for all. Each takes 6 bytes × hidden size.
    """
    if clustered_model not in ("multitask", "encoder", "random"):
        expected = "expected multitask, encoder or random"
        raise GmpError(f"clustered_model {clustered_model!r}: {expected}.")
    if not len(scales):
        raise GmpError("scales: found none, expected numbers of clusters such as [64, 512, 4096].")
    if kmeans_frames < 0:
        raise GmpError(f"kmeans_frames: found {kmeans_frames}, expected 0 for all, or more.")
    corpus, folder = open_corpus(run_dir), fold_folder(run_dir, fold)
    source, inputs = str(folder / TRAIN_MULTITASK / "model"), []
    if clustered_model != "multitask":
        corpus.check_encoder(encoder, fold)
        source, inputs = weights.resolve(encoder), [weights.fingerprint(encoder)]
    parameters = {"fold": fold, "clustered_model": clustered_model, "layer": layer}
    parameters |= {"scales": list(scales), "permuted": permuted}
    parameters |= {"kmeans_frames": kmeans_frames, "seed": seed}
    stages = upstream(GENERATE_GMPS, parameters)
    stage = make_stage(
        folder / GENERATE_GMPS,
        partial(_write_labels, corpus, source, parameters),
        parameters=parameters,
        stages=[stage_folder(run_dir, stage, fold) for stage in stages],
        inputs=inputs,
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
    if clustered_model == "multitask":
        print(describe_gender(folder / TRAIN_MULTITASK))
    return stage


def _write_labels(corpus: Corpus, source: str, parameters: dict, folder: Path) -> None:
    """Fit k-means to the frames of the unsupervised parts, and write the labels of all utterances."""
    scales, seed, limit = (parameters[name] for name in ("scales", "seed", "kmeans_frames"))
    model, names = _clustered_model(source, parameters), list(corpus.manifest.index)
    inputs, parts = model_inputs(model, corpus), corpus.partition(parameters["fold"])
    unlabeled = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]
    frames = layer_frames(model, inputs, names, parameters["layer"], folder / "frames")
    lengths, shape = [frames.lengths[name] for name in names], (len(scales),)
    labels = Ragged.create(folder / "labels", names, lengths, np.int32, kind="labels", shape=shape)
    n_frames = sum(frames.lengths[name] for name in unlabeled)
    n_frames = min(limit or n_frames, n_frames)
    needed, free = 6 * n_frames * frames.values.shape[1], psutil.virtual_memory().available
    hardware.estimate(f"k-means of {n_frames:,} frames", needed, free, "Lower kmeans_frames.")
    sample = frames.sample(unlabeled, limit, seed)
    is_multitask = parameters["clustered_model"] == "multitask"
    augmented = is_multitask and gender_augmented(Path(source).parent)
    metrics = {"kmeans_frames": len(sample), "gender_augmented": augmented}
    for stream, (k, centroids) in enumerate(zip(scales, fit_kmeans(sample, scales, seed))):
        np.save(folder / f"centroids-{k}.npy", centroids, allow_pickle=False)
        labels.values[:, stream] = assign(frames.values, centroids)
        metrics[f"used_clusters_{k}"] = len(np.unique(labels.rows(unlabeled)[:, stream]))
    if parameters["permuted"]:  # over each utterance's frames, all scales together
        rng = np.random.default_rng(seed)
        for name in labels.lengths:
            labels[name][:] = rng.permutation(labels[name])
    labels.flush()
    frames.remove()
    write_json(folder / "metrics.json", metrics)


def _clustered_model(source: str, parameters: dict) -> SpeechModel:
    """The model of `source`, with random weights if `clustered_model` is "random"."""
    model = SpeechModel.load(source)
    if parameters["clustered_model"] == "random":
        set_seed(parameters["seed"])
        model = SpeechModel(model.config)
    return model


def streams(stage: Path, encoder: str, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Pseudo-labels, (frames,) int32 by "K = 64" and so on, of a recording that is not in the corpus.

    `waveform` is (n_samples,) float32 or int16 at 16 kHz; `encoder` is used unless `stage` clustered the
    multi-task model.
    """
    parameters = read_json(stage / "params.json")
    source = str(stage.with_name(TRAIN_MULTITASK) / "model")
    if parameters["clustered_model"] != "multitask":
        source = weights.resolve(encoder)
    model, layers = _clustered_model(source, parameters), [parameters["layer"]]
    recording = Ragged(waveform, ["recording"], [len(waveform)], kind="waveform")
    (frames,) = dict(layer_states_by_length(model, recording, ["recording"], layers))["recording"]
    centroids = {k: np.load(stage / f"centroids-{k}.npy") for k in parameters["scales"]}
    return {f"K = {k}": assign(frames, array) for k, array in centroids.items()}


def frame_table(corpus: Corpus, labels: Ragged, utterances: list[str]) -> pd.DataFrame:
    """Pseudo-labels of utterances, a row per frame.

    Columns are utterance, speaker, gender, emotion, and the clusters `stream0`, `stream1`, …. If the manifest
    has the emotional part of each utterance, `carries` is True within it.
    """
    lengths = [labels.lengths[name] for name in utterances]
    rows = corpus.manifest.loc[utterances].loc[lambda table: table.index.repeat(lengths)]
    table = rows[["utterance", "speaker", "gender", "emotion"]].reset_index(drop=True)
    for stream, clusters in enumerate(labels.rows(utterances).T):
        table[f"stream{stream}"] = clusters
    if "emotion_start" in rows:
        seconds = np.concatenate([frame_seconds(np.arange(length)) for length in lengths])
        start, end = rows.emotion_start.to_numpy(), rows.emotion_end.to_numpy()
        table["carries"] = (seconds >= start) & (seconds < end)
    return table


def agreement(table: pd.DataFrame, scales: list[int]) -> pd.DataFrame:
    """Normalized mutual information of a `frame_table`: streams × (streams, emotion, gender, speaker).

    Labels that some frames lack are omitted.
    """
    streams = {f"K = {k}": table[f"stream{stream}"] for stream, k in enumerate(scales)}
    labels = table[["emotion", "gender", "speaker"]].dropna(axis=1)
    nmi = {
        name: [normalized_mutual_info_score(column, clusters) for clusters in streams.values()]
        for name, column in {**streams, **labels}.items()
    }
    return pd.DataFrame(nmi, index=list(streams))
