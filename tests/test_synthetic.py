import hashlib

import numpy as np
import pytest

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
