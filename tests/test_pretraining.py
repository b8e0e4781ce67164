"""Stage 00, and the embedded encoder."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HubertModel

from gmp_utils import GmpError
from gmp_utils.data import acoustic_features, audio, corpora, waveform_store
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.metrics import uar
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import weights
from gmp_utils.runs.files import file_digest
from gmp_utils.stages import pretrain_encoder
from gmp_utils.stages.pretrain_encoder import Architecture, pretrain_round, read_recordings, split
from gmp_utils.training import features
from gmp_utils.training.batching import crops
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig

LAYER, ON_RECORD = 3, {"emotion": 0.592, "gender": 1.0, "speaker": 0.925}
SMALL = {"architecture": Architecture(64, 2, (8,) * 7), "layer": 1, "crop_seconds": 2.0}
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
    settings = {"synthetic_utterances": utterances, "crop_seconds": seconds}
    return read_recordings(str(run), str(recordings), **settings)


def test_long_recordings_are_divided_and_short_ones_joined(tmp_path):
    """Long ones are kept whole. Two of 1.5 s make a crop of 2 s if they share a folder."""
    rng, files = np.random.default_rng(0), tmp_path / "recordings"
    seconds = {
        "a/long": 41.0,
        "a/one": 1.5,
        "a/rest": 1.0,
        "a/two": 1.5,
        "b/alone": 1.5,
        "b/whole": 2.5,
    }
    for name, duration in seconds.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(files / f"{name}.flac", rng.normal(0, 0.1, int(duration * 16000)), 16000)
    stage = read(tmp_path / "run", files)
    segments, whole = Ragged.open(stage / "segments"), Ragged.open(stage / "recordings")
    starts = 0, 218667, 437334  # 656,000 samples in three parts
    divided = [f"a/long.flac@{start}" for start in starts]
    assert segments.utterances == [*divided, "a/rest.flac@0", "b/whole.flac@0"]
    np.testing.assert_array_equal(segments.rows(divided), whole["a/long.flac"])
    joined = whole.rows(["a/one.flac", "a/rest.flac"])  # only "two" is left
    np.testing.assert_array_equal(segments["a/rest.flac@0"], joined)
    with pytest.raises(GmpError, match=r"no folder has 60\.005 s .* lower crop_seconds"):
        read(tmp_path / "run", files, seconds=60.0)


def test_crops_change_with_the_epoch_and_carry_their_labels():
    """Sample i is i, and frame t has label t, so a crop's first label is the frame of its first sample."""
    waveforms = Ragged(np.arange(100080, dtype=np.float32), {"a": 40080, "b": 60000})
    frames = 125, 187
    labels = np.concatenate([np.arange(n) for n in frames])[:, None]
    labels = Ragged(labels, dict(zip("ab", frames)))
    settings = {"frame_labels": labels, "masking": pretrain_encoder.MASKING}
    drawn = crops(waveforms, ["a", "b"], 1.0, **settings)
    assert drawn.utterances == ["a", "a", "b", "b", "b"] and set(drawn.seconds) == {1.0}
    firsts = []
    for index in range(400 * len(drawn)):
        item = drawn[index]
        first = item["frame_labels"][0, 0]
        samples = waveforms[drawn.utterances[index % 5]][first * 320 :][: 49 * 320 + 400]
        np.testing.assert_array_equal(item["inputs"], audio.normalize(samples))
        np.testing.assert_array_equal(item["frame_labels"][:, 0], first + np.arange(50))
        assert item["mask"].shape == (50,)
        firsts.append(first)
    assert {*firsts[0::5], *firsts[1::5]} == set(range(76))  # all of "a"
    assert firsts[0] == drawn[0]["frame_labels"][0, 0]
    cnn = Ragged(labels.values.astype(np.float32), labels.lengths)
    item = crops(cnn, ["b"], 2.0, **settings)[0]
    np.testing.assert_array_equal(item["inputs"], item["frame_labels"])


def test_missing_recordings_are_reported(tmp_path):
    with pytest.raises(GmpError, match="no such folder"):
        read(tmp_path / "run", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GmpError, match=r"none there \(wav, flac"):
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
    assert len(validation) == 2 * 2  # 4% of 50 recordings
    names = [{name.split("@")[0] for name in part} for part in (training, validation)]
    assert not names[0] & names[1]
    assert split(segments, 1)[1] != validation


@pytest.mark.parametrize("n_samples", [400, 719, 720, 16000, 31999])
def test_acoustic_frames_are_the_encoders_frames(n_samples, tiny_encoder):
    waveform = np.random.default_rng(0).normal(0, 500, n_samples).astype(np.int16)
    n_frames = SpeechModel.load(str(tiny_encoder)).frame_lengths(n_samples)
    assert acoustic_features.mfcc_frames(waveform).shape == (n_frames, 39)
    assert acoustic_features.prosody_frames(waveform).shape == (n_frames, 6)
    assert acoustic_features.log_mel(waveform).shape == (40, n_frames)


@pytest.mark.parametrize("f0", [62, 81.3, 118, 173.7, 229, 298.8, 341.1, 395])
def test_f0_of_tones_is_within_two_percent(f0):
    """For a sine, and for a complex tone whose harmonics fall by 6 dB per octave."""
    phase = 2 * np.pi * f0 * np.arange(16000) / 16000
    harmonics = sum(np.sin(k * phase) / k for k in range(1, int(8000 / f0)))
    for tone in (np.sin(phase), harmonics):
        octaves, periodicity, *_ = acoustic_features.prosody_frames(tone).T
        np.testing.assert_allclose(150 * 2**octaves, f0, rtol=0.02)
        assert periodicity.min() > 0.7


def test_slopes_and_levels_of_prosody():
    """A glide by an octave and 20 dB per second: 1 octave and log 100 of energy in 50 frames."""
    seconds = np.arange(16000) / 16000
    phase = 2 * np.pi * 120 * (2**seconds - 1) / np.log(2)
    prosody = acoustic_features.prosody_frames(np.sin(phase) * 10**seconds)[8:-8]
    f0, _, energy, f0_slope, _, energy_slope = prosody.T
    middles = (np.arange(49)[8:-8] * 320 + 200) / 16000
    np.testing.assert_allclose(150 * 2**f0, 120 * 2**middles, rtol=0.02)
    assert f0_slope.mean() == pytest.approx(1 / 50, rel=0.05)
    assert energy_slope.mean() == pytest.approx(np.log(100) / 50, rel=0.05)
    assert np.diff(energy).min() > 0


def test_silence_and_noise_are_unvoiced():
    noise = np.random.default_rng(0).normal(0, 0.1, 160000)
    for waveform in (np.zeros(16000), noise):
        f0, periodicity, *_ = acoustic_features.prosody_frames(waveform).T
        assert not f0.any() and periodicity.max() < 0.3


def test_a_tone_is_in_its_band_and_frames():
    """1 kHz after 0.5 s: the band with the nearest HTK mel center, after frame 25."""
    seconds = np.arange(16000) / 16000
    tone = np.where(seconds >= 0.5, np.sin(2 * np.pi * 1000 * seconds), 0) * 10000
    mel = acoustic_features.log_mel(tone.astype(np.int16))
    top = 2595 * np.log10(1 + 8000 / 700)
    centers = 700 * (10 ** (np.arange(1, 41) * top / 41 / 2595) - 1)
    assert (mel[:, 26:].argmax(axis=0) == np.abs(centers - 1000).argmin()).all()
    assert mel[:, :24].max() < mel[:, 26:].max() - 5


def test_what_cannot_be_trained_is_rejected():
    with pytest.raises(GmpError, match="found one, expected two or more"):
        split(["long.wav@0", "long.wav@1"], 0)
    with pytest.raises(GmpError, match="hidden_size: found 96, expected a multiple of 64"):
        Architecture(96, 2, (8,) * 7)


def test_targets_of_two_rounds(tmp_path, recordings):
    """Clusters of MFCCs, then of the first model's layer, and of prosody, fitted to training segments."""
    run = str(tmp_path / "run")
    read(run, recordings)
    settings = {"training": TRAINING, "prosody_clusters": 3, **SMALL}
    with pytest.raises(GmpError, match="loss_on 'mask': expected one of masked, all"):
        pretrain_round(run, 1, scales=[5], **settings, loss_on="mask")
    first = pretrain_round(run, 1, scales=[5], **settings)
    second = pretrain_round(run, 2, scales=[4, 6], **settings)
    segments = Ragged.open(first.parent / "recordings" / "segments")
    training, validation = split(segments.utterances, 0)
    assert len(training) > len(validation) > 0

    def expected(function, k):
        """Clusters of standardized frames of the validation segments."""
        seen = np.concatenate([function(segments[name]) for name in training])
        mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-6
        (centroids,) = fit_kmeans((seen - mean) / std, [k])
        held_out = np.concatenate([function(segments[name]) for name in validation])
        return assign((held_out - mean) / std, centroids)

    targets = [Ragged.open(stage / "targets") for stage in (first, second)]
    n_frames = sum(targets[0].lengths.values())
    assert [part.values.shape for part in targets] == [(n_frames, 2), (n_frames, 3)]
    prosody = expected(acoustic_features.prosody_frames, 3)
    for part in targets:
        np.testing.assert_array_equal(part.rows(validation)[:, -1], prosody)
    mfcc = expected(acoustic_features.mfcc_frames, 5)
    np.testing.assert_array_equal(targets[0].rows(validation)[:, 0], mfcc)

    assert not SpeechModel.load(str(first / "encoder")).train_cnn
    model = SpeechModel.load(str(first / "encoder"), train_cnn=True)
    frames = features.layer_frames(model, segments, segments.utterances, 1, tmp_path / "frames")
    for stream, centroids in enumerate(fit_kmeans(frames.rows(training), [4, 6])):
        assigned = assign(frames.values, centroids)
        np.testing.assert_array_equal(targets[1].values[:, stream], assigned)

    history = pd.read_csv(second / "history.csv")
    assert {"accuracy_4", "accuracy_6", "accuracy_prosody"} < set(history)
    assert history.validation_loss.notna().all()
    before, after = (HubertModel.from_pretrained(stage / "encoder") for stage in (first, second))
    conv = "feature_extractor.conv_layers.3.conv.weight"
    assert not torch.equal(before.get_parameter(conv), after.get_parameter(conv))
    store = Ragged.open(first.parent / "recordings" / "recordings")
    digests = {hashlib.sha256(store[name].tobytes()).hexdigest()[:16] for name in store.utterances}
    assert weights.training_recordings(second / "encoder") == {(one, "") for one in digests}
    assert len(digests) == len(store.utterances) > 1
    for other, number in ((str(tmp_path / "other"), 1), (run, 4)):  # without the stage before it
        with pytest.raises(GmpError, match=r"00_pretrain_encoder\.ipynb"):
            pretrain_round(other, number, scales=[5], training=TRAINING, **SMALL)


def test_the_embedded_encoder_is_that_of_its_card():
    """The card has the weights' checksum, so that it is updated when the weights change."""
    folder = weights.EMBEDDED
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "training_recordings.txt", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").stat().st_size < 16e6
    assert file_digest(folder / "model.safetensors") in (folder / "README.md").read_text()
    assert weights.training_recordings(weights.EMBEDDED)
    _, loading = HubertModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_the_embedded_encoder_still_encodes_emotion_gender_and_speaker(tmp_path):
    """Linear probes on the synthetic corpus agree with the card. A changed bit changes a few of 240."""
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
