"""Stage 00: pre-train a small HuBERT from scratch, in rounds.

The targets of the first round are clusters of MFCCs, those of later rounds clusters of a hidden layer of the
previous round's model. Every round may have clusters of prosody too.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from transformers import HubertConfig, set_seed

from gmp_utils import GmpError, check_choice
from gmp_utils.data import acoustic_features, waveform_store
from gmp_utils.data.audio import SAMPLE_RATE, find_recordings
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.masked_prediction import LOSS_ON, MaskedPredictionModel, stream_metrics
from gmp_utils.runs import weights
from gmp_utils.runs.paths import PRETRAIN_ENCODER, ROOT, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Masking, crop_rows, crops
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig, train

SYNTHETIC_SEED = 10_000  # differs from the seeds of the synthetic corpus
VALIDATION_SHARE = 0.04  # of the recordings
LONGEST_SEGMENT = 20.0  # seconds, at most, that the encoder processes at once to make targets
MASKING = Masking(0.8, 10)  # HuBERT's
CLUSTERED_FRAMES = 1_000_000  # that k-means is fitted to, if there are more
LAST_STEP = {"selection_metric": "validation_loss", "selection": "last"}  # whose model is kept


@dataclass(frozen=True)
class Architecture:
    """A small HuBERT without dropout. Attention heads have 64 dimensions."""

    hidden_size: int
    n_layers: int
    conv_dim: tuple[int, ...]  # channels of the seven convolutions, of 3200 to 50 steps per second

    def __post_init__(self):
        if self.hidden_size < 64 or self.hidden_size % 64:
            raise GmpError(f"hidden_size: found {self.hidden_size}, expected a multiple of 64.")

    def config(self) -> HubertConfig:
        """Configuration for transformers."""
        dropouts = "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"
        return HubertConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.hidden_size // 64,
            intermediate_size=4 * self.hidden_size,
            conv_dim=tuple(self.conv_dim),
            num_conv_pos_embeddings=64,
            num_conv_pos_embedding_groups=16,
            **dict.fromkeys((*dropouts, "layerdrop"), 0.0),
        )


def read_recordings(
    run_dir: str, recordings: str, *, synthetic_utterances: int, crop_seconds: float
) -> Path:
    """Decode recordings and synthetic speech into segments that are long enough for a crop.

    `recordings` is a folder that is searched recursively, or "". `synthetic_utterances` are per voice; the
    voices differ from the synthetic corpus's. The stage has the store `segments`, int16, see `_segments`.
    """
    source = ROOT / Path(recordings).expanduser()
    if recordings and not source.is_dir():
        raise GmpError(f"recordings {recordings!r}: no such folder.")
    paths = find_recordings(source.rglob("*")) if recordings else []
    if not paths and (recordings or not synthetic_utterances):
        found = f"recordings {recordings!r}: none there (wav, flac, mp3, m4a, …)"
        raise GmpError(f"{found}; expected some, or synthetic_utterances above 0.")
    parameters = {"recordings": recordings, "synthetic_utterances": synthetic_utterances}
    parameters["crop_seconds"] = crop_seconds

    def build(folder: Path) -> None:
        names = [str(path.relative_to(source)) for path in paths]
        manifest = pd.DataFrame({"utterance": names, "path": list(map(str, paths))})
        if synthetic_utterances:
            size = {"utterances_per_speaker": synthetic_utterances}
            size["voices"] = synthetic.PRETRAINING_VOICES
            synthetic.make(folder / "synthetic", SYNTHETIC_SEED, **size)
            spoken = synthetic.load(folder / "synthetic")
            manifest = pd.concat([manifest, spoken[["utterance", "path"]]])
        waveforms, report = waveform_store.write_store(manifest, folder / "recordings")
        waveform_store.check_readable(report)
        weights.write_training_recordings(folder, {(digest, "") for digest in report.digest})
        segments = _segments(waveforms, crop_rows(crop_seconds, True))
        lengths = {name: len(samples) for name, samples in segments.items()}
        store = Ragged.create(folder / "segments", lengths, np.int16)
        for name, samples in segments.items():
            store[name][:] = samples
        store.flush()

    folder = run_folder(run_dir) / PRETRAIN_ENCODER / "recordings"
    inputs = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    return make_stage(folder, build, parameters=parameters, inputs=inputs)


def _segments(waveforms: Ragged, crop: int) -> dict[str, np.ndarray]:
    """Segments of at least `crop` samples, by ``<recording>@<first sample>``.

    Long recordings are divided evenly. Recordings shorter than a crop are joined with the next ones in their
    folder, and dropped if these do not suffice.
    """
    segments, short = {}, defaultdict(list)
    longest = max(int(LONGEST_SEGMENT * SAMPLE_RATE), 2 * crop)
    for name in waveforms.utterances:
        parts = np.array_split(waveforms[name], -(-waveforms.lengths[name] // longest))
        if len(parts[0]) < crop:
            joined = short[PurePath(name).parent]
            joined.append(waveforms[name])
            if sum(map(len, joined)) < crop:
                continue
            parts = [np.concatenate(joined)]
            joined.clear()
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        segments |= {f"{name}@{start}": part for start, part in zip(starts, parts)}
    if not segments:
        found = f"recordings: no folder has {crop / SAMPLE_RATE:g} s of them, the length of a crop"
        raise GmpError(f"{found}; add more, or lower crop_seconds.")
    return segments


def split(segments: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Split the names of segments by recording into training and validation."""
    recordings = sorted({name.rpartition("@")[0] for name in segments})
    if len(recordings) < 2:
        raise GmpError("recordings: found one, expected two or more; one is for validation.")
    shuffled = np.random.default_rng(seed).permutation(recordings)
    validation = set(shuffled[: max(round(VALIDATION_SHARE * len(recordings)), 1)].tolist())
    parts: tuple[list[str], list[str]] = ([], [])
    for name in segments:
        parts[name.rpartition("@")[0] in validation].append(name)
    return parts


def pretrain_round(
    run_dir: str,
    number: int,
    *,
    architecture: Architecture,
    scales: list[int],
    layer: int,
    training: TrainingConfig,
    crop_seconds: float,
    prosody_clusters: int = 0,
    loss_on: str = "all",
) -> Path:
    """One round of masked prediction, with a stream of clusters for each of the `scales` and one for prosody.

    Round 1 clusters MFCCs and starts from random weights. Later rounds cluster hidden state `layer` of the
    previous round's model and start from its weights. HuBERT's later rounds start at random, which takes
    longer. The prosody stream has `prosody_clusters` clusters, and is left out if they are 0. `loss_on` is
    "masked" frames, as in HuBERT, or "all": in a short training, unmasked frames help to train the CNN. The
    stage's encoder/ is a HubertModel with the digests of its recordings.
    """
    check_choice("loss_on", loss_on, LOSS_ON)
    run = run_folder(run_dir) / PRETRAIN_ENCODER
    recordings, previous = run / "recordings", run / f"round{number - 1}"
    parameters = {"number": number, "architecture": vars(architecture), "scales": scales}
    parameters |= {"layer": layer, "loss_on": loss_on, "training": vars(training)}
    parameters |= {"crop_seconds": crop_seconds, "prosody_clusters": prosody_clusters}
    sizes = [*scales, prosody_clusters] if prosody_clusters else scales
    settings = {"scales": sizes, "loss_on": loss_on, "train_cnn": True}
    settings |= {"stream_hidden_size": 256, "activation": "relu"}

    def build(folder: Path) -> None:
        set_seed(training.seed)
        segments = Ragged.open(recordings / "segments")
        names = segments.utterances
        train_names, validation_names = split(names, training.seed)
        acoustic = partial(_acoustic_frames, segments, train_names)
        if number == 1:
            kinds = [(acoustic(acoustic_features.mfcc_frames), scales)]
        else:
            initial = SpeechModel.load(str(previous / "encoder"), train_cnn=True)
            frames = features.layer_frames(initial, segments, names, layer, folder / "frames")
            kinds = [(frames, scales)]
        if prosody_clusters:
            kinds += [(acoustic(acoustic_features.prosody_frames), [prosody_clusters])]
        targets = _write_targets(kinds, train_names, training.seed, folder / "targets")
        if number == 1:
            model_config = architecture.config()
            model_config.update(settings)
            model = MaskedPredictionModel(model_config)
        else:
            frames.remove()
            model = MaskedPredictionModel.load(str(previous / "encoder"), **settings)
        masking = {"frame_labels": targets, "masking": MASKING, "seed": training.seed}
        parts = train_names, validation_names
        sets = [crops(segments, part, crop_seconds, **masking) for part in parts]
        streams = stream_names(scales, prosody_clusters)
        evaluation = {"compute_metrics": partial(stream_metrics, streams)} | LAST_STEP
        train(model, *sets, folder, training, **evaluation)
        model.config.train_cnn = False  # in other training runs
        model.base_model.save_pretrained(folder / "encoder")
        for subfolder in ("encoder", "model"):
            shutil.copy(recordings / weights.TRAINING_RECORDINGS, folder / subfolder)

    stages = [recordings] if number == 1 else [recordings, previous]
    folder = run / f"round{number}"
    return make_stage(folder, build, parameters=parameters, stages=stages)


def stream_names(scales: Sequence[int], prosody_clusters: int) -> list[str]:
    """Names of a round's streams, in order: its scales, and "prosody"."""
    return [*map(str, scales), *["prosody"] * bool(prosody_clusters)]


def _acoustic_frames(
    segments: Ragged, train_names: Sequence[str], function: Callable[[np.ndarray], np.ndarray]
) -> Ragged:
    """Acoustic features of all segments, standardized by those of the training segments."""
    names = segments.utterances
    features_of = [function(segments[name]) for name in names]
    frames = Ragged(np.concatenate(features_of), dict(zip(names, map(len, features_of))))
    training = frames.rows(train_names)
    frames.values -= training.mean(axis=0)
    frames.values /= training.std(axis=0) + 1e-6  # log F0 is constant if no frame is voiced
    return frames


def _write_targets(
    kinds: Sequence[tuple[Ragged, Sequence[int]]], train_names: list[str], seed: int, stem: Path
) -> Ragged:
    """Write the clusters of one or more kinds of frames at their scales, (frames, streams) int32.

    Centroids are fitted to the training segments.
    """
    frames, n_streams = kinds[0][0], sum(len(scales) for _, scales in kinds)
    targets = Ragged.create(stem, frames.lengths, np.int32, shape=(n_streams,))
    stream = 0
    for frames, scales in kinds:
        sample = frames.sample(train_names, CLUSTERED_FRAMES, seed)
        for centroids in fit_kmeans(sample, scales, seed):
            targets.values[:, stream] = assign(frames.values, centroids)
            stream += 1
    targets.flush()
    return targets
