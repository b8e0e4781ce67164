"""Stage 00: pre-train a small HuBERT from scratch, in rounds, and optionally a wav2vec 2.0 from it.

The targets of the first round are clusters of MFCCs, those of later rounds clusters of a hidden layer of the
previous round's model. Further pre-training with the contrastive objective makes it a wav2vec 2.0.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import HubertConfig, Wav2Vec2Config, Wav2Vec2Model, set_seed

from gmp_utils import GmpError
from gmp_utils.data import audio, waveform_store
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.contrastive import ContrastiveModel, contrastive_metrics
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.masked_prediction import MaskedPredictionModel, stream_metrics
from gmp_utils.runs import weights
from gmp_utils.runs.paths import PRETRAIN_ENCODER, ROOT, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Masking, Utterances
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig, train

FORMATS = (".flac", ".mp3", ".ogg", ".wav")
SYNTHETIC_SEED = 10_000  # differs from the seeds of the synthetic corpus
VALIDATION_SHARE = 0.04  # of the recordings
CLUSTERS_MASKING = Masking(0.8, 10)  # HuBERT's
CONTRASTIVE_MASKING = Masking(0.65, 10)  # wav2vec 2.0's
CLUSTERED_FRAMES = 1_000_000  # sampled for k-means if there are more
LAST_STEP = {"selection_metric": "masked_loss", "selection": "last"}  # its model is kept


@dataclass(frozen=True)
class Architecture:
    """A small HuBERT without dropout. Attention heads have 64 dimensions."""

    hidden_size: int
    n_layers: int
    conv_dim: tuple[int, ...]  # channels of the seven convolutions, of 3200 to 50 steps per second

    def config(self) -> HubertConfig:
        """Configuration for transformers."""
        dropouts = "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"
        return HubertConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=max(self.hidden_size // 64, 1),
            intermediate_size=4 * self.hidden_size,
            conv_dim=tuple(self.conv_dim),
            num_conv_pos_embeddings=64,
            num_conv_pos_embedding_groups=16,
            **dict.fromkeys((*dropouts, "layerdrop"), 0.0),
        )


def read_recordings(
    run_dir: str, recordings: str, *, synthetic_utterances: int, segment_seconds: float
) -> Path:
    """Decode recordings and synthetic speech, and cut them into segments of up to `segment_seconds`.

    `recordings` is a folder that is searched recursively, or "". `synthetic_utterances` are per voice; the
    voices differ from the synthetic corpus's. The rest of a recording is dropped if it is shorter than half a
    segment. The stage has the store `segments`, int16, named ``<recording>@<first sample>``.
    """
    source = ROOT / Path(recordings).expanduser()
    if recordings and not source.is_dir():
        raise GmpError(f"recordings {recordings!r}: no such folder.")
    files = source.rglob("*") if recordings else ()
    paths = sorted(path for path in files if path.suffix.lower() in FORMATS)
    if not paths and (recordings or not synthetic_utterances):
        raise GmpError(
            f"recordings {recordings!r}: no {', '.join(FORMATS)} files there; expected "
            "recordings of speech, or synthetic_utterances above 0."
        )

    parameters = {
        "recordings": recordings,
        "synthetic_utterances": synthetic_utterances,
        "segment_seconds": segment_seconds,
    }

    def build(folder: Path) -> None:
        names = [str(path.relative_to(source)) for path in paths]
        manifest = pd.DataFrame({"utterance": names, "path": list(map(str, paths))})
        if synthetic_utterances:
            speech, voices = folder / "synthetic", synthetic.PRETRAINING_VOICES
            size = {"utterances_per_speaker": synthetic_utterances, "voices": voices}
            synthetic.make(speech, SYNTHETIC_SEED, **size)
            manifest = pd.concat([manifest, synthetic.load(speech)[["utterance", "path"]]])
        waveforms, report = waveform_store.write_store(manifest, folder / "recordings")
        waveform_store.check_readable(report)
        digests = "\n".join(sorted(report.digest))
        (folder / weights.PRETRAINING_RECORDINGS).write_text(digests, encoding="utf-8")
        _cut(waveforms, int(segment_seconds * audio.SAMPLE_RATE), folder / "segments")

    folder = run_folder(run_dir) / PRETRAIN_ENCODER / "recordings"
    inputs = [f"{path} {path.stat().st_size}" for path in paths]
    return make_stage(folder, build, parameters=parameters, inputs=inputs, module=__name__)


def _cut(waveforms: Ragged, longest: int, stem: Path) -> None:
    """Write a store of segments of at most `longest` samples."""
    segments = {
        f"{name}@{start}": waveforms[name][start : start + longest]
        for name in waveforms.utterances
        for start in range(0, waveforms.lengths[name], longest)
        if waveforms.lengths[name] - start >= longest / 2
    }
    lengths = [len(samples) for samples in segments.values()]
    store = Ragged.create(stem, segments, lengths, np.int16, kind="waveform")
    store.values[:] = np.concatenate(list(segments.values()))
    store.values.flush()


def split(segments: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Split the names of segments by recording into training and validation."""
    recordings = sorted({name.rpartition("@")[0] for name in segments})
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
    loss_on: str = "all",
) -> Path:
    """One round of masked prediction, of a stream of clusters for each of the `scales`.

    Round 1 clusters MFCCs and starts from random weights. Later rounds cluster hidden state `layer` of the
    previous round's model and start from its weights, while HuBERT's start at random, which takes longer.
    `loss_on` is "masked" frames, as in HuBERT, or "all": in a short training unmasked frames help to train
    the CNN. The stage's encoder/ is a HubertModel with the digests of its recordings.
    """
    run = run_folder(run_dir) / PRETRAIN_ENCODER
    recordings, previous = run / "recordings", run / f"round{number - 1}"
    parameters = {"number": number, "architecture": vars(architecture), "scales": scales}
    parameters |= {"layer": layer, "loss_on": loss_on, "training": vars(training)}
    settings = {"scales": scales, "loss_on": loss_on, "train_cnn": True}
    settings |= {"stream_hidden_size": 256, "combine": "sum", "activation": "relu"}

    def build(folder: Path) -> None:
        set_seed(training.seed)
        segments = Ragged.open(recordings / "segments")
        names = segments.utterances
        train_names, validation_names = split(names, training.seed)
        if number == 1:
            mfcc = [audio.mfcc_frames(segments[name]) for name in names]
            frames = Ragged(np.concatenate(mfcc), names, list(map(len, mfcc)), kind="hidden")
        else:
            initial = SpeechModel.load(str(previous / "encoder"), train_cnn=True)
            frames = features.layer_frames(initial, segments, names, layer, folder / "frames")
        targets = _write_targets(frames, train_names, scales, training.seed, folder / "targets")
        if number == 1:
            model_config = architecture.config()
            model_config.update(settings)
            model = MaskedPredictionModel(model_config)
        else:
            frames.remove()
            model = MaskedPredictionModel.load(str(previous / "encoder"), **settings)
        parts = train_names, sorted(validation_names, key=segments.lengths.get)
        masking = {"frame_labels": targets, "masking": CLUSTERS_MASKING, "seed": training.seed}
        sets = [Utterances(segments, part, **masking) for part in parts]
        evaluation = {"compute_metrics": partial(stream_metrics, scales)} | LAST_STEP
        train(model, *sets, folder, training, **evaluation)
        model.base_model.save_pretrained(folder / "encoder")
        for subfolder in ("encoder", "model"):
            shutil.copy(recordings / weights.PRETRAINING_RECORDINGS, folder / subfolder)

    stages = [recordings] if number == 1 else [recordings, previous]
    folder = run / f"round{number}"
    return make_stage(folder, build, parameters=parameters, stages=stages, module=__name__)


def _write_targets(
    frames: Ragged, train_names: list[str], scales: Sequence[int], seed: int, stem: Path
) -> Ragged:
    """Clusters of frames, (frames, scales) int32, with centroids from the training segments."""
    sample = frames.sample(train_names, CLUSTERED_FRAMES, seed)
    names, lengths = frames.utterances, list(frames.lengths.values())
    targets = Ragged.create(stem, names, lengths, np.int32, kind="labels", shape=(len(scales),))
    for stream, centroids in enumerate(fit_kmeans(sample, scales, seed)):
        targets.values[:, stream] = assign(frames.values, centroids)
    targets.flush()
    return targets


def pretrain_contrastive(run_dir: str, encoder: str, training: TrainingConfig) -> Path:
    """Further pre-train a HuBERT (`gmp_utils.runs.weights.resolve`) with the contrastive objective.

    The architectures are the same. The CNN is frozen, because the targets are its output. The stage's model/
    is a `Wav2Vec2ForPreTraining` with the digests of its and the HuBERT's recordings.
    """
    run = run_folder(run_dir) / PRETRAIN_ENCODER
    recordings = run / "recordings"

    def build(folder: Path) -> None:
        set_seed(training.seed)
        model = _as_wav2vec2(encoder, folder / "initial")
        segments = Ragged.open(recordings / "segments")
        names = segments.utterances
        features.write_cnn_output(model, segments, names, folder / "cnn")
        inputs = Ragged.open(folder / "cnn")
        masking = {"masking": CONTRASTIVE_MASKING, "seed": training.seed}
        parts = [sorted(part, key=inputs.lengths.get) for part in split(names, training.seed)]
        sets = [Utterances(inputs, part, **masking) for part in parts]
        train(model, *sets, folder, training, compute_metrics=contrastive_metrics, **LAST_STEP)
        inputs.remove()
        digests = (recordings / weights.PRETRAINING_RECORDINGS).read_text(encoding="utf-8").split()
        digests = "\n".join(sorted({*digests, *weights.pretraining_digests(encoder)}))
        (folder / "model" / weights.PRETRAINING_RECORDINGS).write_text(digests, encoding="utf-8")

    return make_stage(
        run / "wav2vec2",
        build,
        parameters={"encoder": encoder, "training": vars(training)},
        stages=[recordings],
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
    )


def _as_wav2vec2(encoder: str, folder: Path) -> ContrastiveModel:
    """A contrastive model with a HuBERT's weights, by way of a temporary folder."""
    hubert = SpeechModel.load(weights.resolve(encoder))
    if hubert.config.model_type != "hubert":
        raise GmpError(f"encoder {encoder!r}: a {hubert.config.model_type}, expected a HuBERT.")
    settings = hubert.config.to_diff_dict() | {"architectures": None, "model_type": "wav2vec2"}
    model = Wav2Vec2Model(Wav2Vec2Config(**settings))
    model.load_state_dict(hubert.base_model.state_dict())
    model.save_pretrained(folder)
    model = ContrastiveModel.load(str(folder))
    shutil.rmtree(folder)
    return model
