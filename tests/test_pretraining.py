"""Stage 00, and the encoder that it made for the package."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HubertModel, Wav2Vec2ForPreTraining

from gmp_utils import GmpError
from gmp_utils.data import audio, corpora, waveform_store
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.metrics import uar
from gmp_utils.models import encoder
from gmp_utils.runs import weights
from gmp_utils.runs.files import file_digest
from gmp_utils.stages import pretrain_encoder
from gmp_utils.training import features
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig

LAYER, ON_RECORD = 1, {"emotion": 0.5, "gender": 0.892, "speaker": 0.912}
TINY = pretrain_encoder.Architecture(64, 2, (8,) * 7)


@pytest.fixture
def recordings(tmp_path):
    """Six recordings of noise, 5.3 s each, in two folders."""
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "recordings" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.flac", rng.normal(0, 0.1, 84800), 16000)
    return str(tmp_path / "recordings")


def test_recordings_are_cut_and_short_rests_left_out(tmp_path, recordings):
    stage = pretrain_encoder.read_recordings(str(tmp_path / "run"), recordings, 0, 2.0)
    pieces = Ragged.open(stage / "pieces")
    whole = Ragged.open(stage / "recordings")
    assert len(whole.utterances) == 6
    # 84800 samples: two whole pieces, and 20800, which is more than half a piece.
    assert [pieces.lengths[f"b/1.flac@{start}"] for start in (0, 32000, 64000)] == [
        32000,
        32000,
        20800,
    ]
    np.testing.assert_array_equal(pieces["b/1.flac@32000"], whole["b/1.flac"][32000:64000])
    stage = pretrain_encoder.read_recordings(str(tmp_path / "run"), recordings, 0, 3.5)
    assert len(Ragged.open(stage / "pieces").utterances) == 12
    stage = pretrain_encoder.read_recordings(str(tmp_path / "run"), recordings, 0, 4.0)
    assert len(Ragged.open(stage / "pieces").utterances) == 6  # 1.3 s are less than half


def test_nothing_to_hear_is_said(tmp_path):
    run = str(tmp_path / "run")
    with pytest.raises(GmpError, match="no such folder"):
        pretrain_encoder.read_recordings(run, str(tmp_path / "none"), 0, 2.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GmpError, match=r"no \.flac, \.mp3, \.ogg, \.wav below it"):
        pretrain_encoder.read_recordings(run, str(tmp_path / "empty"), 5, 2.0)
    with pytest.raises(GmpError, match="synthetic_utterances above 0"):
        pretrain_encoder.read_recordings(run, "", 0, 2.0)


def test_pretraining_hears_none_of_the_corpus_voices():
    corpus = {voice.split("+")[1] for pair in synthetic.VOICES for voice in pair}
    heard = {voice.split("+")[1] for pair in synthetic.PRETRAINING_VOICES for voice in pair}
    assert len(corpus) == len(heard) == 10
    assert not corpus & heard


def test_no_recording_is_on_both_sides():
    pieces = [f"{name}@{start}" for name in range(50) for start in (0, 32000)]
    training, held_out = pretrain_encoder.split(pieces, 0)
    assert sorted(training + held_out) == sorted(pieces)
    assert len(held_out) == 2 * 2  # 4 % of 50 recordings
    names = [{name.split("@")[0] for name in part} for part in (training, held_out)]
    assert not names[0] & names[1]
    assert pretrain_encoder.split(pieces, 1)[1] != held_out


@pytest.mark.parametrize("n_samples", [400, 719, 720, 16000, 31999])
def test_mfcc_frames_are_the_encoders_frames(n_samples, tiny_encoder):
    waveform = np.random.default_rng(0).normal(0, 500, n_samples).astype(np.int16)
    n_frames = encoder.SpeechModel.load(str(tiny_encoder)).frame_lengths(n_samples)
    assert audio.mfcc_frames(waveform).shape == (n_frames, 39)
    assert audio.log_mel(waveform).shape == (40, n_frames)


def test_a_tone_is_found_in_its_band_and_frames():
    """1 kHz from 0.5 s on: the band whose HTK mel centre is nearest, and from frame 25 on."""
    seconds = np.arange(16000) / 16000
    tone = np.where(seconds >= 0.5, np.sin(2 * np.pi * 1000 * seconds), 0) * 10000
    mel = audio.log_mel(tone.astype(np.int16))
    top = 2595 * np.log10(1 + 8000 / 700)
    centres = 700 * (10 ** (np.arange(1, 41) * top / 41 / 2595) - 1)
    assert (mel[:, 26:].argmax(axis=0) == np.abs(centres - 1000).argmin()).all()
    assert mel[:, :24].max() < mel[:, 26:].max() - 5


def test_two_rounds_and_what_the_second_is_asked(tmp_path, recordings):
    run, schedule = str(tmp_path / "run"), TrainingConfig(1e-3, 0, 3, batch_seconds=8)
    pretrain_encoder.read_recordings(run, recordings, 0, 2.0)
    first = pretrain_encoder.pretrain_round(run, 1, TINY, [5], 1, schedule)
    second = pretrain_encoder.pretrain_round(run, 2, TINY, [4, 6], 1, schedule)
    pieces = Ragged.open(first.parent / "recordings" / "pieces")
    training, held_out = pretrain_encoder.split(pieces.utterances, 0)
    assert len(training) > len(held_out) > 0

    mfcc = {name: audio.mfcc_frames(pieces[name]) for name in pieces.utterances}
    (centroids,) = fit_kmeans(np.concatenate([mfcc[name] for name in training]), [5])
    labels = Ragged.open(first / "targets")
    assert labels.values.shape == (sum(map(len, mfcc.values())), 1)
    for name in held_out:
        expected = assign(mfcc[name], centroids)
        np.testing.assert_array_equal(labels[name][:, 0], expected)

    teacher = encoder.SpeechModel.load(str(first / "encoder"), train_cnn=True)
    frames = features.layer_frames(teacher, pieces, pieces.utterances, 1, tmp_path / "frames")
    labels = Ragged.open(second / "targets")
    for stream, centroids in enumerate(fit_kmeans(frames.rows(training), [4, 6])):
        expected = assign(frames.values, centroids)
        np.testing.assert_array_equal(labels.values[:, stream], expected)

    assert pd.read_csv(second / "history.csv").masked_loss.notna().all()
    before, after = (HubertModel.from_pretrained(stage / "encoder") for stage in (first, second))
    conv = "feature_extractor.conv_layers.3.conv.weight"
    assert not torch.equal(before.get_parameter(conv), after.get_parameter(conv))
    store = Ragged.open(first.parent / "recordings" / "recordings")
    digests = {hashlib.sha256(store[name].tobytes()).hexdigest()[:16] for name in store.utterances}
    assert weights.pretraining_digests(str(second / "encoder")) == digests
    assert len(digests) == len(store.utterances) > 1
    with pytest.raises(GmpError, match=r"00_pretrain_encoder\.ipynb"):
        pretrain_encoder.pretrain_round(str(tmp_path / "other"), 1, TINY, [5], 1, schedule)
    with pytest.raises(GmpError, match=r"00_pretrain_encoder\.ipynb"):
        pretrain_encoder.pretrain_round(run, 4, TINY, [5], 1, schedule)


def test_a_hubert_goes_on_as_a_wav2vec2(tmp_path, recordings, tiny_encoder):
    """Transformers' own class loads all of it; the CNN is the HuBERT's, the Transformer has learnt."""
    run, schedule = str(tmp_path / "run"), TrainingConfig(1e-3, 0, 3, batch_seconds=8)
    heard = (
        pretrain_encoder.read_recordings(run, recordings, 0, 2.0) / weights.PRETRAINING_RECORDINGS
    )
    hubert = shutil.copytree(tiny_encoder, tmp_path / "hubert")
    (hubert / weights.PRETRAINING_RECORDINGS).write_text("0123456789abcdef", encoding="utf-8")
    model = pretrain_encoder.pretrain_contrastive(run, str(hubert), schedule) / "model"
    found, report = Wav2Vec2ForPreTraining.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before, after = (
        HubertModel.from_pretrained(tiny_encoder).state_dict(),
        found.wav2vec2.state_dict(),
    )
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith("feature_extractor.")}
    assert weights.pretraining_digests(str(model)) == {
        "0123456789abcdef",
        *heard.read_text().split(),
    }
    assert weights.own_objective(str(model)) == "contrastive"
    with pytest.raises(GmpError, match="a wav2vec2, expected a HuBERT"):
        pretrain_encoder.pretrain_contrastive(run, str(model), schedule)


@pytest.mark.parametrize("name", list(weights.EMBEDDED))
def test_the_shipped_encoders_are_those_on_record(name):
    """The card names the weights' checksum: whoever changes them writes about it there."""
    folder = weights.EMBEDDED[name]
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "pretraining_recordings.txt", "model.safetensors", "README.md"}
    stored = folder / "model.safetensors"
    assert stored.stat().st_size < 16e6
    assert file_digest(stored) in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "kind"), [("embedded", "HubertModel"), ("embedded-wav2vec2", "Wav2Vec2ForPreTraining")]
)
def test_the_shipped_encoders_need_transformers_alone(name, kind, tmp_path):
    """In a process of its own, away from the checkout."""
    code = (
        f"import sys, torch; from transformers import {kind};"
        f"m, r = {kind}.from_pretrained({str(weights.EMBEDDED[name])!r}, dtype=torch.float32,"
        " output_loading_info=True);"
        "assert not r['missing_keys'] and not r['unexpected_keys'], r;"
        "assert m(torch.randn(1, 16000))[0].isfinite().all();"
        "assert 'gmp_utils' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_wav2vec2_is_the_hubert_gone_on():
    """The same CNN, bit for bit, another Transformer; and an exercise of its own."""
    both = [encoder.SpeechModel.load(str(folder)) for folder in weights.EMBEDDED.values()]
    before, after = (model.base_model.state_dict() for model in both)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not [name for name in moved if name.startswith("feature_extractor.")]
    assert list(map(weights.own_objective, weights.EMBEDDED)) == ["clusters", "contrastive"]
    assert (
        weights.pretraining_digests("embedded")
        == weights.pretraining_digests("embedded-wav2vec2")
        != set()
    )


def test_the_shipped_encoder_still_hears_emotion_gender_and_speakers(tmp_path):
    """Its probes on the synthetic corpus, against the card's. A changed bit moves a few of 240."""
    synthetic.make(tmp_path)
    manifest = corpora.load("synthetic", tmp_path)
    waveforms, _ = waveform_store.write_store(manifest, tmp_path / "waveforms")
    model = encoder.SpeechModel.load(str(weights.EMBEDDED["embedded"]), train_cnn=True)
    states = features.layer_states(model, waveforms, waveforms.utterances, [LAYER])
    pooled = {
        name: np.concatenate([frames[0].mean(axis=0), frames[0].std(axis=0)], dtype=np.float32)
        for name, frames in states
    }
    x = np.stack([pooled[name] for name in manifest.utterance])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=3000))
    for task, expected in ON_RECORD.items():
        true = manifest[task]
        folds = LeaveOneGroupOut() if task != "speaker" else StratifiedKFold(2)
        found = cross_val_predict(probe, x, true, groups=manifest.speaker, cv=folds)
        assert uar(true, found) == pytest.approx(expected, abs=0.04), task
