import hashlib

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import emodb_folder, needs_emodb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils import GmpError, audio, corpora
from gmp_utils.corpora import synthetic
from gmp_utils.protocol import check_leakage, make_protocol, shared_sentences
from gmp_utils.ragged import Ragged

FOUR = ["angry", "happy", "neutral", "sad"]


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
    predicted = cross_val_predict(
        classifier, features, manifest.emotion, groups=manifest.speaker, cv=LeaveOneGroupOut()
    )
    return recall_score(manifest.emotion, predicted, average="macro")


def test_synthetic_is_hard_but_solvable(spoken):
    manifest = corpora.load("synthetic", spoken)
    overall = uar_across_speakers(prosody(manifest, only_carrying=False), manifest)
    assert 0.40 <= overall <= 0.65
    local = pd.DataFrame(prosody(manifest, only_carrying=True))
    by_speaker = local.groupby(manifest.speaker).transform(lambda x: (x - x.mean()) / x.std())
    assert uar_across_speakers(by_speaker.to_numpy(), manifest) >= 0.90


@needs_emodb
def test_emodb_is_complete():
    manifest = corpora.load("emodb", emodb_folder())
    assert len(manifest) == 535
    counts = manifest.emotion.value_counts().to_dict()
    assert counts == {
        "angry": 127, "bored": 81, "neutral": 79, "happy": 71, "fearful": 69, "sad": 62,
        "disgusted": 46,
    }  # fmt: skip
    speakers = manifest.speaker.value_counts().sort_index().tolist()
    assert speakers == [49, 58, 43, 38, 55, 35, 61, 69, 56, 71]
    assert manifest.groupby("speaker").gender.first().value_counts().to_dict() == {
        "female": 5, "male": 5,
    }  # fmt: skip
    assert len(corpora.load("emodb", emodb_folder().parent, FOUR)) == 339


def test_emodb_names(tmp_path):
    for name in ("03a01Wa.wav", "16b10Tb.wav", "10a02N.wav", "readme.txt", "99a01Wa.wav"):
        (tmp_path / name).touch()
    manifest = corpora.load("emodb", tmp_path).set_index("utterance")
    assert sorted(manifest.index) == ["03a01Wa", "10a02N", "16b10Tb"]
    assert manifest.loc["03a01Wa", ["speaker", "gender", "emotion"]].tolist() == [
        "03", "male", "angry",
    ]  # fmt: skip
    assert manifest.loc["16b10Tb", ["gender", "emotion", "text"]].tolist() == [
        "female", "sad", "b10",
    ]  # fmt: skip


def test_wrong_folders_and_names(tmp_path):
    with pytest.raises(GmpError, match="no such folder"):
        corpora.load("emodb", tmp_path / "absent")
    (tmp_path / "song.mp3").touch()
    with pytest.raises(GmpError, match=r"found song\.mp3"):
        corpora.load("emodb", tmp_path)
    with pytest.raises(GmpError, match="expected one of synthetic"):
        corpora.load("iemo", tmp_path)
    (tmp_path / "03a01Wa.wav").touch()
    with pytest.raises(GmpError, match="surprised"):
        corpora.load("emodb", tmp_path, ["surprised"])


def manifest_of(**columns):
    base = {
        "utterance": ["a", "b"],
        "path": ["a.wav", "b.wav"],
        "speaker": ["1", "2"],
        "gender": ["female", "male"],
        "emotion": ["sad", "sad"],
    }
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"utterance": ["a", "a"]}, "column utterance"),
        ({"gender": ["female", "f"]}, "row 1 of the manifest, column gender: found f, "),
        ({"valence": [2.0, 70.0]}, "found 70"),
        ({"emotion": ["sad", None]}, "column emotion"),
    ],
)
def test_schema_names_row_and_value(columns, message):
    with pytest.raises(GmpError, match=message):
        corpora.check(manifest_of(**columns))
    assert len(corpora.check(manifest_of())) == 2


def speakers_manifest(n_women, n_men, sessions=False):
    genders = ["female"] * n_women + ["male"] * n_men
    rows = [
        {"speaker": f"{index:02d}", "gender": gender, "emotion": emotion}
        for index, gender in enumerate(genders)
        for emotion in FOUR
    ]
    manifest = pd.DataFrame(rows)
    if sessions:
        manifest["session"] = (manifest.speaker.astype(int) % n_women).astype(str)
    return manifest


@pytest.mark.parametrize("sessions", [False, True])
def test_folds_are_disjoint_balanced_and_complete(sessions):
    manifest = speakers_manifest(5, 5, sessions)
    protocol = make_protocol(manifest)
    assert protocol.fold_by == ("session" if sessions else "speaker")
    tested = []
    for fold in range(1, 6):
        parts = protocol.parts(manifest, fold)
        speakers = {name: set(manifest.speaker[parts == name]) for name in parts.unique()}
        assert sorted(map(len, speakers.values())) == [2, 2, 6]
        assert len(set.union(*speakers.values())) == 10
        assert manifest.gender[parts == "test"].nunique() == 2
        assert manifest.gender[parts == "validation"].nunique() == 2
        tested += sorted(speakers["test"])
    assert sorted(tested) == sorted(manifest.speaker.unique())


def test_strict_is_the_default_and_exceptions_are_loud():
    manifest = speakers_manifest(5, 5)
    strict = make_protocol(manifest)
    assert strict.unsupervised_parts == ("train",)
    assert strict.compared_on == "validation"
    assert strict.describe() == strict.describe().replace("ORACLE", "").replace("TRANSDUCTIVE", "")
    loose = make_protocol(manifest, selection="oracle", transductive=True)
    assert loose.compared_on == "test"
    assert "ORACLE" in loose.describe()
    assert "TRANSDUCTIVE" in loose.describe()


def test_impossible_folds_are_refused():
    manifest = speakers_manifest(5, 5)
    protocol = make_protocol(manifest)
    for fold in (0, 6):
        with pytest.raises(GmpError, match="folds 1 to 5"):
            protocol.parts(manifest, fold)
    with pytest.raises(GmpError, match="names no sessions"):
        make_protocol(manifest, fold_by="session")
    with pytest.raises(GmpError, match="has 10 speakers"):
        make_protocol(manifest, n_folds=11)
    with pytest.raises(GmpError, match="at least 3"):
        make_protocol(manifest, n_folds=2)
    with pytest.raises(GmpError, match="selection 'first'"):
        make_protocol(manifest, selection="first")
    rare = manifest[(manifest.emotion != "sad") | (manifest.speaker == "00")]
    with pytest.raises(GmpError, match=r"no training speaker has emotion \['sad'\]"):
        protocol.parts(rare, 1)


def test_decoding_averages_channels_and_resamples(tmp_path):
    seconds = np.arange(22050) / 22050
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, 0 * tone], axis=1), 22050)
    samples = audio.decode(str(tmp_path / "stereo.wav"))
    assert samples.shape == (16000,)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=2e-3)


def test_store_holds_the_recordings(tmp_path):
    rng = np.random.default_rng(0)
    waves = {name: rng.uniform(-0.9, 0.9, n) for name, n in (("a", 1000), ("b", 700))}
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="PCM_16")
    manifest = pd.DataFrame(
        {"utterance": list(waves), "path": [str(tmp_path / f"{name}.wav") for name in waves]}
    )
    store = audio.write_store(manifest, tmp_path / "store")
    for name, wave in waves.items():
        np.testing.assert_allclose(store[name] / 32767, wave, atol=1e-4)


@pytest.mark.parametrize("case", ["text", "empty", "none", "short", "nan", "cut"])
def test_unusable_recordings_are_named(tmp_path, case):
    path = tmp_path / "bad one.wav"
    good = np.zeros(16000, dtype=np.float32)
    if case == "text":
        path.write_text("not audio")
    elif case == "empty":
        path.touch()
    elif case == "short":
        soundfile.write(path, good[:100], 16000)
    elif case == "nan":
        good[5] = np.nan
        soundfile.write(path, good, 16000, subtype="FLOAT")
    elif case == "cut":
        soundfile.write(path, good, 16000, format="FLAC")
        path.write_bytes(path.read_bytes()[:60])
    manifest = pd.DataFrame({"utterance": ["x"], "path": [str(path)]})
    with pytest.raises(GmpError, match="bad one"):
        audio.write_store(manifest, tmp_path / "store")


def test_the_same_recording_under_two_speakers_is_refused():
    samples = np.random.default_rng(0).integers(-99, 99, 900).astype(np.int16)
    samples[600:] = samples[:300]
    waveforms = Ragged(samples, ["a", "b", "c"], [300, 300, 300])
    manifest = pd.DataFrame({"utterance": ["a", "b", "c"], "speaker": ["1", "2", "1"]})
    check_leakage(manifest, waveforms)
    manifest["speaker"] = ["1", "2", "3"]
    with pytest.raises(
        GmpError, match=r"a \(speaker 1\) and c \(speaker 3\) hold the same samples"
    ):
        check_leakage(manifest, waveforms)


def test_shared_sentences_are_counted():
    parts = pd.Series(["train", "train", "validation", "test", "test", "test", "test"])
    manifest = pd.DataFrame({"text": ["One.", "two", "three", "one. ", "TWO", "three", None]})
    assert shared_sentences(manifest, parts) == 2 / 4
    assert shared_sentences(manifest.drop(columns="text"), parts) is None
