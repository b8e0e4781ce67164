import hashlib

import librosa
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils.data import audio, corpora
from gmp_utils.data.corpora import synthetic


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make(folder, seed=0)
    return folder


def test_synthetic_is_shaped_like_iemocap(spoken):
    manifest = corpora.load("synthetic", spoken)
    assert len(manifest) == 240
    speakers = manifest.groupby("speaker").agg({"gender": "first", "session": "first"})
    assert speakers.gender.value_counts().to_dict() == {"female": 5, "male": 5}
    assert speakers.groupby("session").gender.nunique().tolist() == [2] * 5
    assert manifest.groupby(["speaker", "emotion"]).size().unique().tolist() == [6]
    assert manifest.groupby("emotion").valence.mean()["happy"] > 3.5
    assert (manifest.emotion_end > manifest.emotion_start).all()
    assert manifest.text.str.len().min() > 10


def test_synthetic_repeats_from_its_seed(spoken, tmp_path):
    synthetic.make(tmp_path, seed=0)
    synthetic.make(tmp_path / "other", seed=1)

    def digest(folder):
        paths = sorted((folder / "wav").glob("*.wav"))
        assert len(paths) == 240
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()

    assert digest(tmp_path) == digest(spoken)
    assert digest(tmp_path / "other") != digest(spoken)


def test_phonemes_are_where_the_samples_have_them(spoken):
    """Most energy is above 3 kHz in the middle of an [s], but not of a vowel."""
    found = {"s": [], "i:": [], "u:": [], "a": []}
    for row in corpora.load("synthetic", spoken)[::4].itertuples():
        samples, words = audio.decode(row.path), row.phonemes.split()
        starts = np.array(words[::2], float)
        for name, middle in zip(words[1::2], (starts[:-1] + starts[1:]) / 2):
            if (name := name.strip("'")) in found:
                center = round(16000 * middle)
                power = np.abs(np.fft.rfft(samples[center - 240 : center + 240])) ** 2
                found[name].append(power[90:].sum() > power[:90].sum())
    shares = {name: np.mean(sibilant) for name, sibilant in found.items()}
    assert shares.pop("s") > 0.9
    assert max(shares.values()) < 0.1


def prosody(manifest, only_carrying):
    """Mean log pitch (YIN) and mean level (dB) of each utterance's loud frames, 10 ms apart."""
    rows = []
    for row in manifest.itertuples():
        samples = audio.decode(row.path)
        pitch = librosa.yin(samples, fmin=60, fmax=450, sr=16000, frame_length=1024, hop_length=160)
        rms = librosa.feature.rms(y=samples, frame_length=1024, hop_length=160)[0]
        level = 20 * np.log10(rms + 1e-5)
        chosen = level > -45
        if only_carrying:
            seconds = np.arange(len(level)) * 0.01
            chosen &= (seconds >= row.emotion_start) & (seconds < row.emotion_end)
        rows.append([np.log(pitch[chosen]).mean(), level[chosen].mean()])
    return np.array(rows)


def uar_across_speakers(features, manifest):
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    rules = {"groups": manifest.speaker, "cv": LeaveOneGroupOut()}
    predicted = cross_val_predict(classifier, features, manifest.emotion, **rules)
    return recall_score(manifest.emotion, predicted, average="macro")


def test_synthetic_is_hard_but_solvable(spoken):
    manifest = corpora.load("synthetic", spoken)
    overall = uar_across_speakers(prosody(manifest, only_carrying=False), manifest)
    assert 0.40 <= overall <= 0.65
    local = pd.DataFrame(prosody(manifest, only_carrying=True))
    by_speaker = local.groupby(manifest.speaker).transform(lambda x: (x - x.mean()) / x.std())
    assert uar_across_speakers(by_speaker.to_numpy(), manifest) >= 0.90
