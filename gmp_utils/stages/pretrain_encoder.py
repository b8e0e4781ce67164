"""Stage 00: a small HuBERT from nothing, as HuBERT itself was made: round after round; and a wav2vec 2.0.

The first round's targets are clusters of MFCCs, every later round's are clusters of a hidden layer of
the round before. A HuBERT that goes on with the contrastive objective becomes a wav2vec 2.0.
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
from gmp_utils.data.audio import mfcc_frames
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.corpora.names import check_folder, check_name
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

FORMATS = {".wav", ".flac", ".ogg", ".mp3"}
SYNTHETIC_SEED = 10_000  # far from the seeds of the synthetic corpus
HELD_OUT = 0.04  # share of the recordings that losses are reported on
MASKS = Masking(0.65, 10)  # wav2vec 2.0's
CLUSTERED_FRAMES = 1_000_000  # drawn for k-means where there are more


@dataclass(frozen=True)
class Architecture:
    """A small HuBERT: the published one's classes with fewer of everything, and no dropout.

    Attributes
    ----------
    hidden_size, n_layers : int
        Of the Transformer; heads have 64 dimensions, feed-forward layers 4 × hidden_size.
    conv_dim : tuple of int
        Channels of the seven convolutions, from 3200 to 50 steps per second.
    """

    hidden_size: int
    n_layers: int
    conv_dim: tuple[int, ...]

    def config(self) -> HubertConfig:
        """As transformers has it."""
        return HubertConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=max(self.hidden_size // 64, 1),
            intermediate_size=4 * self.hidden_size,
            conv_dim=tuple(self.conv_dim),
            num_conv_pos_embeddings=64,
            num_conv_pos_embedding_groups=16,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
        )


def read_recordings(
    run_dir: str, recordings: str, synthetic_utterances: int, piece_seconds: float
) -> Path:
    """Decode recordings and synthetic speech, and cut them into pieces.

    Parameters
    ----------
    run_dir : str
    recordings : str
        A folder, searched with all below it (relative to the checkout); labels are not needed. "" for
        none.
    synthetic_utterances : int
        Synthetic utterances per voice; 0 for none. None of the voices is the synthetic corpus's.
    piece_seconds : float
        Longest piece; a rest under half of it is left out.

    Returns
    -------
    stage : Path
        With the store `pieces`: int16 at 16 kHz, named `<recording>@<first sample>`.

    Raises
    ------
    GmpError
        If there is nothing to hear, a folder cannot be listed, or a recording cannot be read.
    """
    source = ROOT / Path(recordings).expanduser()
    if recordings and not source.is_dir():
        raise GmpError(f"recordings {recordings!r}: no such folder.")
    if recordings:
        check_folder(source)
    found = source.rglob("*") if recordings else ()
    paths = sorted(path for path in found if path.suffix.lower() in FORMATS)
    for path in paths:
        check_name(path)
    if not paths and (recordings or not synthetic_utterances):
        raise GmpError(
            f"recordings {recordings!r}: no {', '.join(sorted(FORMATS))} below it; expected "
            "recordings of speech, or synthetic_utterances above 0."
        )

    def build(folder: Path) -> None:
        manifest = pd.DataFrame(
            {
                "utterance": [str(path.relative_to(source)) for path in paths],
                "path": list(map(str, paths)),
            }
        )
        if synthetic_utterances:
            voices = synthetic.PRETRAINING_VOICES
            synthetic.make(folder / "synthetic", SYNTHETIC_SEED, synthetic_utterances, voices)
            spoken = synthetic.load(folder / "synthetic")[["utterance", "path"]]
            manifest = pd.concat([manifest, spoken], ignore_index=True)
        waveforms, report = waveform_store.write_store(manifest, folder / "recordings")
        waveform_store.check_readable(report)
        (folder / weights.PRETRAINING_RECORDINGS).write_text(
            "\n".join(sorted(report.digest)), encoding="utf-8"
        )
        longest = int(piece_seconds * audio.SAMPLE_RATE)
        cut = {
            f"{name}@{start}": waveforms[name][start : start + longest]
            for name in waveforms.utterances
            for start in range(0, waveforms.lengths[name], longest)
            if waveforms.lengths[name] - start >= longest / 2
        }
        lengths = [len(samples) for samples in cut.values()]
        pieces = Ragged.create(folder / "pieces", cut, lengths, np.int16)
        pieces.values[:] = np.concatenate(list(cut.values()))
        pieces.values.flush()

    return make_stage(
        run_folder(run_dir) / PRETRAIN_ENCODER / "recordings",
        build,
        parameters={
            "recordings": recordings,
            "synthetic_utterances": synthetic_utterances,
            "piece_seconds": piece_seconds,
        },
        inputs=[f"{path} {path.stat().st_size}" for path in paths],
        module=__name__,
    )


def _write_targets(
    frames: Ragged, training: list[str], scales: Sequence[int], seed: int, stem: Path
) -> Ragged:
    """Clusters of frames, (frames, scales) int32; only training pieces shape them."""
    heard = frames.sample(training, CLUSTERED_FRAMES, seed)
    names, lengths = frames.utterances, list(frames.lengths.values())
    targets = Ragged.create(stem, names, lengths, np.int32, (len(scales),))
    for stream, centroids in enumerate(fit_kmeans(heard, scales, seed)):
        targets.values[:, stream] = assign(frames.values, centroids)
    targets.flush()
    return targets


def split(pieces: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out pieces; no recording has both.

    Parameters
    ----------
    pieces : sequence of str
        Named as `read_recordings` names them.
    seed : int
    """
    recordings = sorted({name.rpartition("@")[0] for name in pieces})
    shuffled = np.random.default_rng(seed).permutation(recordings)
    held_out = set(shuffled[: max(round(HELD_OUT * len(recordings)), 1)].tolist())
    parts: tuple[list[str], list[str]] = ([], [])
    for name in pieces:
        parts[name.rpartition("@")[0] in held_out].append(name)
    return parts


def pretrain_round(
    run_dir: str,
    number: int,
    architecture: Architecture,
    scales: list[int],
    layer: int,
    schedule: TrainingConfig,
    loss_on: str = "all",
) -> Path:
    """One round: targets, and masked prediction of them.

    The first round starts at random. Later ones go on from the round before, unlike HuBERT's, which
    start at random too: that takes longer than most of our users have.

    Parameters
    ----------
    run_dir : str
    number : int
        From 1.
    architecture : Architecture
    scales : list of int
        Clusters of each stream.
    layer : int
        Hidden state of the round before that is clustered; the first round takes MFCCs.
    schedule : Schedule
    loss_on : str
        "masked" frames, as HuBERT, or "all": a short pre-training learns to hear from those that it
        sees.

    Returns
    -------
    stage : Path
        With targets, history.csv, metrics.json, model/ and encoder/, a plain HubertModel and the digests
        of what it heard.
    """
    run = run_folder(run_dir) / PRETRAIN_ENCODER
    stage = run / "recordings"
    before = run / f"round{number - 1}"

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        pieces = Ragged.open(stage / "pieces")
        training, held_out = split(pieces.utterances, schedule.seed)
        settings = {"scales": scales, "projection_size": 256, "loss_on": loss_on}
        settings |= {"combine": "sum", "activation": "relu", "train_cnn": True}
        if number == 1:
            found = [mfcc_frames(pieces[name]) for name in pieces.utterances]
            frames = Ragged(np.concatenate(found), pieces.utterances, list(map(len, found)))
            config = architecture.config()
            config.update(settings)
            model = MaskedPredictionModel(config)
        else:
            teacher = SpeechModel.load(str(before / "encoder"), train_cnn=True)
            frames = features.layer_frames(
                teacher, pieces, pieces.utterances, layer, folder / "frames"
            )
            model = MaskedPredictionModel.load(str(before / "encoder"), **settings)
        targets = _write_targets(frames, training, scales, schedule.seed, folder / "targets")
        if number > 1:
            frames.remove()
        held_out = sorted(held_out, key=pieces.lengths.get)
        sets = [
            Utterances(pieces, names, None, targets, Masking(0.8, 10), schedule.seed)
            for names in (training, held_out)
        ]
        metrics = partial(stream_metrics, scales)
        train(model, *sets, folder, schedule, metrics, "masked_loss", "last")
        model.base_model.save_pretrained(folder / "encoder")
        for kept in ("encoder", "model"):
            shutil.copy(stage / weights.PRETRAINING_RECORDINGS, folder / kept)

    return make_stage(
        run / f"round{number}",
        build,
        parameters={
            "number": number,
            "architecture": vars(architecture),
            "scales": scales,
            "layer": layer,
            "loss_on": loss_on,
            "schedule": vars(schedule),
        },
        stages=[stage, *([before] if number > 1 else [])],
        module=__name__,
    )


def pretrain_contrastive(run_dir: str, encoder: str, schedule: TrainingConfig) -> Path:
    """A wav2vec 2.0 that begins with a HuBERT's weights, and goes on with the contrastive objective.

    Both are one architecture. The CNN stays as it is, because the objective takes its targets from it.

    Parameters
    ----------
    run_dir : str
    encoder : str
        A HuBERT, see `gmp_utils.runs.weights.resolve`.
    schedule : Schedule

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/, which `Wav2Vec2ForPreTraining` loads, and the digests
        of what it and the HuBERT heard.

    Raises
    ------
    GmpError
        For another encoder than a HuBERT, or if `read_recordings` was not run.
    """
    run = run_folder(run_dir) / PRETRAIN_ENCODER
    stage = run / "recordings"

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        begun = SpeechModel.load(weights.resolve(encoder))
        if begun.config.model_type != "hubert":
            raise GmpError(f"encoder {encoder!r}: a {begun.config.model_type}, expected a HuBERT.")
        same = begun.config.to_diff_dict() | {"architectures": None, "model_type": "wav2vec2"}
        renamed = Wav2Vec2Model(Wav2Vec2Config(**same))
        renamed.load_state_dict(begun.base_model.state_dict())
        renamed.save_pretrained(folder / "begun")
        model = ContrastiveModel.load(str(folder / "begun"))
        shutil.rmtree(folder / "begun")
        pieces = Ragged.open(stage / "pieces")
        names = pieces.utterances
        features.write_cnn_output(model, pieces, names, folder / "cnn")
        frames = Ragged.open(folder / "cnn")
        sets = [
            Utterances(
                frames, sorted(part, key=frames.lengths.get), None, None, MASKS, schedule.seed
            )
            for part in split(names, schedule.seed)
        ]
        train(model, *sets, folder, schedule, contrastive_metrics, "masked_loss", "last")
        frames.remove()
        own = (stage / weights.PRETRAINING_RECORDINGS).read_text(encoding="utf-8").split()
        listed = "\n".join(sorted({*own, *weights.pretraining_digests(encoder)}))
        (folder / "model" / weights.PRETRAINING_RECORDINGS).write_text(listed, encoding="utf-8")

    return make_stage(
        run / "wav2vec2",
        build,
        parameters={"encoder": encoder, "schedule": vars(schedule)},
        stages=[stage],
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
    )
