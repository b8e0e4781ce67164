"""Stage 04: a layer's frames to gender-augmented multi-scale pseudo-labels (stage 1b)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from sklearn.metrics import normalized_mutual_info_score

from gmp_utils import GmpError
from gmp_utils.data.audio import normalize
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.encoder import SpeechModel, frame_seconds
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import GENERATE_GMPS, TRAIN_MULTITASK, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.kmeans import assign, fit_kmeans


def permute(labels: Ragged, seed: int) -> None:
    """Give the frames of each utterance one another's labels, in place.

    What an utterance holds stays, when it happens is lost; a frame's labels of all scales stay
    together.

    Parameters
    ----------
    labels : Ragged
        (frames, scales) int32 per utterance.
    seed : int
    """
    rng = np.random.default_rng(seed)
    for name in labels.lengths:
        labels[name][:] = rng.permutation(labels[name])


def generate_gmps(
    run_dir: str,
    fold: int,
    layer: int = -3,
    scales: Sequence[int] = (64, 512, 4096),
    clustered_model: str = "multitask",
    permuted: bool = False,
    encoder: str = "embedded",
    kmeans_frames: int = 0,
    seed: int = 0,
) -> Path:
    """Cluster a layer of the multi-task model at several scales, and label every frame.

    The clusters come from the training speakers' frames (all speakers' under a transductive
    protocol); every utterance's frames are then given the nearest cluster at each scale.

    Parameters
    ----------
    run_dir : str
    fold : int
    layer : int
        Hidden state that is clustered.
    scales : sequence of int
        Numbers of clusters; the paper's by default.
    clustered_model : str
        "multitask" is the model of stage 02; "encoder", for a control, the untouched one.
    permuted : bool
        For a control: labels that tell what an utterance holds, but not when, see `permute`.
    encoder : str
        See `gmp_utils.runs.weights.resolve`; read only where it is clustered.
    kmeans_frames : int
        Of those frames k-means learns from so many, drawn at random; 0 for all. Each takes 6 bytes ×
        hidden size of memory.
    seed : int
        Of k-means, of what it learns from, and of permutations.

    Returns
    -------
    stage : Path
        With centroids-<K>.npy, labels.npy and labels.parquet (a `Ragged` of frames × scales) and
        metrics.json.

    Raises
    ------
    GmpError
        For no scales, another `clustered_model`, a layer that the model does not have, more clusters
        than frames, fewer than 0 frames, or if stage 02 is not there.
    """
    if clustered_model not in ("multitask", "encoder"):
        raise GmpError(f'clustered_model {clustered_model!r}: expected "multitask" or "encoder".')
    if not len(scales):
        raise GmpError("scales: found none, expected numbers of clusters such as [64, 512, 4096].")
    if kmeans_frames < 0:
        raise GmpError(f"kmeans_frames: found {kmeans_frames}, expected 0 for all, or more.")
    scales = list(scales)
    corpus, run = open_corpus(run_dir), run_folder(run_dir)
    made_from, initial = run / f"fold{fold}" / TRAIN_MULTITASK, []
    source = str(made_from / "model")
    if clustered_model == "encoder":
        corpus.check_encoder(encoder, fold)
        source, made_from = weights.resolve(encoder), corpus.stage
        initial = [weights.fingerprint(encoder)]
    parts = corpus.partition(fold)
    heard = [name for part in corpus.protocol.unsupervised_parts for name in parts[part]]

    def build(folder: Path) -> None:
        model = SpeechModel.load(source)
        inputs = features.model_inputs(model, corpus)
        names = list(corpus.manifest.index)
        frames = features.layer_frames(model, inputs, names, layer, folder / "frames")
        lengths = [frames.lengths[name] for name in names]
        shape = (len(scales),)
        labels = Ragged.create(folder / "labels", names, lengths, np.int32, shape)
        n = sum(frames.lengths[name] for name in heard)
        n = min(kmeans_frames or n, n)
        needed, free = 6 * n * frames.values.shape[1], psutil.virtual_memory().available
        hardware.estimate(f"k-means of {n:,} frames", needed, free, "Lower kmeans_frames.")
        learnt_from = frames.sample(heard, kmeans_frames, seed)
        metrics = {"frames that k-means learnt from": len(learnt_from)}
        for stream, (k, centroids) in enumerate(zip(scales, fit_kmeans(learnt_from, scales, seed))):
            np.save(folder / f"centroids-{k}.npy", centroids, allow_pickle=False)
            labels.values[:, stream] = assign(frames.values, centroids)
            metrics[f"used clusters, K = {k}"] = len(np.unique(labels.rows(heard)[:, stream]))
        if permuted:
            permute(labels, seed)
        labels.flush()
        frames.remove()
        write_json(folder / "metrics.json", metrics)

    return make_stage(
        run / f"fold{fold}" / GENERATE_GMPS,
        build,
        parameters={
            "fold": fold,
            "layer": layer,
            "scales": scales,
            "clustered_model": clustered_model,
            "permuted": permuted,
            "kmeans_frames": kmeans_frames,
            "seed": seed,
        },
        stages=[made_from],
        inputs=initial,
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def streams(stage: Path, encoder: str, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Pseudo-labels of a recording that the stage has not seen.

    Parameters
    ----------
    stage : Path
        Of `generate_gmps`.
    encoder : str
        What is clustered where that is the untouched encoder.
    waveform : (n_samples,) float32 or int16
        At 16 kHz; all of it is heard at once.

    Returns
    -------
    streams : dict of str to (frames,) int32
        Nearest clusters, by "K = 64" and so on.
    """
    told, made_from = read_json(stage / "params.json"), stage.parent / TRAIN_MULTITASK
    untouched = told["clustered_model"] == "encoder"
    source = weights.resolve(encoder) if untouched else str(made_from / "model")
    model = SpeechModel.load(source).eval().to(hardware.device())
    samples = torch.from_numpy(normalize(waveform))[None].to(model.device)
    lengths = torch.tensor([samples.shape[1]], device=model.device)
    with torch.inference_mode():
        (frames,), _ = model.hidden_states(samples, lengths, layers=[told["layer"]])
    found = frames[0].half().cpu().numpy()  # as precise as what was clustered
    centroids = {f"K = {k}": np.load(stage / f"centroids-{k}.npy") for k in told["scales"]}
    return {name: assign(found, own) for name, own in centroids.items()}


def frame_table(corpus: Corpus, labels: Ragged, utterances: list[str]) -> pd.DataFrame:
    """A row per frame of some utterances.

    Parameters
    ----------
    corpus : Corpus
    labels : Ragged
        (frames, scales) of pseudo-labels.
    utterances : list of str

    Returns
    -------
    table : DataFrame
        utterance, speaker, gender, emotion; `stream0`, `stream1`, … the clusters; and, where the
        manifest says which part of an utterance carries the emotion, `carries` (bool).
    """
    lengths = [labels.lengths[name] for name in utterances]
    table = corpus.manifest.loc[utterances, ["utterance", "speaker", "gender", "emotion"]]
    table = table.loc[table.index.repeat(lengths)].reset_index(drop=True)
    for stream, clusters in enumerate(labels.rows(utterances).T):
        table[f"stream{stream}"] = clusters
    if "emotion_start" in corpus.manifest:
        seconds = np.concatenate([frame_seconds(np.arange(length)) for length in lengths])
        start, end = (
            corpus.manifest.loc[utterances, name].repeat(lengths).to_numpy()
            for name in ("emotion_start", "emotion_end")
        )
        table["carries"] = (seconds >= start) & (seconds < end)
    return table


def agreement(table: pd.DataFrame, scales: list[int]) -> pd.DataFrame:
    """Normalised mutual information of each stream with each other and with what is known.

    Parameters
    ----------
    table : DataFrame
        As `frame_table` returns it.
    scales : list of int

    Returns
    -------
    nmi : DataFrame
        Streams × (streams, emotion, gender, speaker), 0 to 1; of the last three those that are known
        of every frame.
    """
    streams = {f"K = {k}": table[f"stream{stream}"] for stream, k in enumerate(scales)}
    known = table[["emotion", "gender", "speaker"]].dropna(axis=1)
    return pd.DataFrame(
        {
            other: {
                name: normalized_mutual_info_score(against, clusters)
                for name, clusters in streams.items()
            }
            for other, against in {**streams, **known}.items()
        }
    )
