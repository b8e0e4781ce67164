"""Stage 00, and the embedded encoder."""

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import python
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
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import weights
from gmp_utils.runs.files import file_digest
from gmp_utils.stages import pretrain_encoder
from gmp_utils.stages.pretrain_encoder import Architecture, pretrain_round, read_recordings, split
from gmp_utils.training import features
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig

LAYER, ON_RECORD = 3, {"emotion": 0.592, "gender": 1.0, "speaker": 0.925}
SMALL = {"architecture": Architecture(64, 2, (8,) * 7), "layer": 1}
TRAINING = TrainingConfig(1e-3, max_steps=3, batch_seconds=8)


@pytest.fixture
def recordings(tmp_path):
    """Six recordings of noise, 5.3 s each, in two folders."""
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "recordings" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.flac", rng.normal(0, 0.1, 84800), 16000)
    return str(tmp_path / "recordings")


def read(run, recordings, seconds=2.0, utterances=0):
    settings = {"synthetic_utterances": utterances, "segment_seconds": seconds}
    return read_recordings(str(run), str(recordings), **settings)


def test_recordings_are_cut_and_short_rests_dropped(tmp_path, recordings):
    stage = read(tmp_path / "run", recordings)
    segments, whole = Ragged.open(stage / "segments"), Ragged.open(stage / "recordings")
    assert len(whole.utterances) == 6
    lengths = [segments.lengths[f"b/1.flac@{start}"] for start in (0, 32000, 64000)]
    assert lengths == [32000, 32000, 20800]  # 1.3 s are more than half of 2 s
    np.testing.assert_array_equal(segments["b/1.flac@32000"], whole["b/1.flac"][32000:64000])
    for seconds, n_segments in ((3.5, 12), (4.0, 6)):
        stage = read(tmp_path / "run", recordings, seconds)
        assert len(Ragged.open(stage / "segments").utterances) == n_segments


def test_missing_recordings_are_reported(tmp_path):
    with pytest.raises(GmpError, match="no such folder"):
        read(tmp_path / "run", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GmpError, match=r"no \.flac, \.mp3, \.ogg, \.wav files"):
        read(tmp_path / "run", tmp_path / "empty", utterances=5)
    with pytest.raises(GmpError, match="synthetic_utterances above 0"):
        read(tmp_path / "run", "")


def test_pretraining_uses_none_of_the_corpus_voices():
    lists = synthetic.VOICES, synthetic.PRETRAINING_VOICES
    corpus, pretraining = ({v.split("+")[1] for pair in pairs for v in pair} for pairs in lists)
    assert len(corpus) == len(pretraining) == 10
    assert not corpus & pretraining


def test_training_and_validation_share_no_recording():
    segments = [f"{name}@{start}" for name in range(50) for start in (0, 32000)]
    training, validation = split(segments, 0)
    assert sorted(training + validation) == sorted(segments)
    assert len(validation) == 2 * 2  # 4 % of 50 recordings
    names = [{name.split("@")[0] for name in part} for part in (training, validation)]
    assert not names[0] & names[1]
    assert split(segments, 1)[1] != validation


@pytest.mark.parametrize("n_samples", [400, 719, 720, 16000, 31999])
def test_mfcc_frames_are_the_encoders_frames(n_samples, tiny_encoder):
    waveform = np.random.default_rng(0).normal(0, 500, n_samples).astype(np.int16)
    n_frames = SpeechModel.load(str(tiny_encoder)).frame_lengths(n_samples)
    assert audio.mfcc_frames(waveform).shape == (n_frames, 39)
    assert audio.log_mel(waveform).shape == (40, n_frames)


def test_a_tone_is_in_its_band_and_frames():
    """1 kHz from 0.5 s on: the band with the nearest HTK mel center, from frame 25 on."""
    seconds = np.arange(16000) / 16000
    tone = np.where(seconds >= 0.5, np.sin(2 * np.pi * 1000 * seconds), 0) * 10000
    mel = audio.log_mel(tone.astype(np.int16))
    top = 2595 * np.log10(1 + 8000 / 700)
    centers = 700 * (10 ** (np.arange(1, 41) * top / 41 / 2595) - 1)
    assert (mel[:, 26:].argmax(axis=0) == np.abs(centers - 1000).argmin()).all()
    assert mel[:, :24].max() < mel[:, 26:].max() - 5


def test_targets_of_two_rounds(tmp_path, recordings):
    """Clusters of MFCCs, then of the first model's layer; centroids come from training segments."""
    run = str(tmp_path / "run")
    read(run, recordings)
    first = pretrain_round(run, 1, scales=[5], training=TRAINING, **SMALL)
    second = pretrain_round(run, 2, scales=[4, 6], training=TRAINING, **SMALL)
    segments = Ragged.open(first.parent / "recordings" / "segments")
    training, validation = split(segments.utterances, 0)
    assert len(training) > len(validation) > 0

    mfcc = {name: audio.mfcc_frames(segments[name]) for name in segments.utterances}
    (centroids,) = fit_kmeans(np.concatenate([mfcc[name] for name in training]), [5])
    targets = Ragged.open(first / "targets")
    assert targets.values.shape == (sum(map(len, mfcc.values())), 1)
    for name in validation:
        np.testing.assert_array_equal(targets[name][:, 0], assign(mfcc[name], centroids))

    model = SpeechModel.load(str(first / "encoder"), train_cnn=True)
    frames = features.layer_frames(model, segments, segments.utterances, 1, tmp_path / "frames")
    targets = Ragged.open(second / "targets")
    for stream, centroids in enumerate(fit_kmeans(frames.rows(training), [4, 6])):
        np.testing.assert_array_equal(targets.values[:, stream], assign(frames.values, centroids))

    assert pd.read_csv(second / "history.csv").masked_loss.notna().all()
    before, after = (HubertModel.from_pretrained(stage / "encoder") for stage in (first, second))
    conv = "feature_extractor.conv_layers.3.conv.weight"
    assert not torch.equal(before.get_parameter(conv), after.get_parameter(conv))
    store = Ragged.open(first.parent / "recordings" / "recordings")
    digests = {hashlib.sha256(store[name].tobytes()).hexdigest()[:16] for name in store.utterances}
    assert weights.pretraining_digests(str(second / "encoder")) == digests
    assert len(digests) == len(store.utterances) > 1
    for other, number in ((str(tmp_path / "other"), 1), (run, 4)):  # without the stage before it
        with pytest.raises(GmpError, match=r"00_pretrain_encoder\.ipynb"):
            pretrain_round(other, number, scales=[5], training=TRAINING, **SMALL)


def test_a_hubert_becomes_a_wav2vec2(tmp_path, recordings, tiny_encoder):
    """Transformers' own class loads all of it; the CNN is the HuBERT's, the Transformer is trained."""
    run, digest = str(tmp_path / "run"), "0123456789abcdef"
    listed = (read(run, recordings) / weights.PRETRAINING_RECORDINGS).read_text()
    hubert = shutil.copytree(tiny_encoder, tmp_path / "hubert")
    (hubert / weights.PRETRAINING_RECORDINGS).write_text(digest, encoding="utf-8")
    model = pretrain_encoder.pretrain_contrastive(run, str(hubert), TRAINING) / "model"
    loaded, report = Wav2Vec2ForPreTraining.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = HubertModel.from_pretrained(tiny_encoder).state_dict()
    after = loaded.wav2vec2.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith("feature_extractor.")}
    assert weights.pretraining_digests(str(model)) == {digest, *listed.split()}
    assert weights.pretraining_objective(str(model)) == "contrastive"
    with pytest.raises(GmpError, match="a wav2vec2, expected a HuBERT"):
        pretrain_encoder.pretrain_contrastive(run, str(model), TRAINING)


def test_the_embedded_encoder_is_the_one_on_record():
    """The card has the weights' checksum: a change of the weights has to be described there."""
    folder = weights.EMBEDDED
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "pretraining_recordings.txt", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").stat().st_size < 16e6
    assert file_digest(folder / "model.safetensors") in (folder / "README.md").read_text()
    assert weights.pretraining_objective("embedded") == "clusters"
    assert weights.pretraining_digests("embedded")


def test_the_embedded_encoder_needs_transformers_only(tmp_path):
    """In a process of its own, outside the checkout."""
    code = (
        "import sys, torch; from transformers import HubertModel;"
        f"m, r = HubertModel.from_pretrained({str(weights.EMBEDDED)!r}, dtype=torch.float32,"
        " output_loading_info=True);"
        "assert not r['missing_keys'] and not r['unexpected_keys'], r;"
        "assert m(torch.randn(1, 16000))[0].isfinite().all();"
        "assert 'gmp_utils' not in sys.modules"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_embedded_encoder_still_encodes_emotion_gender_and_speaker(tmp_path):
    """Linear probes on the synthetic corpus, against the card's: a changed bit changes a few of 240."""
    synthetic.make(tmp_path)
    manifest = corpora.load("synthetic", tmp_path)
    waveforms, _ = waveform_store.write_store(manifest, tmp_path / "waveforms")
    model = SpeechModel.load(str(weights.EMBEDDED), train_cnn=True)
    names = waveforms.utterances
    pooled = {
        name: np.concatenate([frames[0].mean(axis=0), frames[0].std(axis=0)], dtype=np.float32)
        for name, frames in features.layer_states_by_length(model, waveforms, names, [LAYER])
    }
    x = np.stack([pooled[name] for name in manifest.utterance])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=3000))
    for task, expected in ON_RECORD.items():
        true = manifest[task]
        folds = LeaveOneGroupOut() if task != "speaker" else StratifiedKFold(2)
        predicted = cross_val_predict(probe, x, true, groups=manifest.speaker, cv=folds)
        assert uar(true, predicted) == pytest.approx(expected, abs=0.04), task
