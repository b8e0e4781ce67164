"""From recordings to a prepared corpus: what is decoded, listed, left out, refused."""

import math
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import emodb_folder, needs_emodb, tried

from gmp_utils import GmpError
from gmp_utils.data import audio, corpora, waveform_store
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.protocol import make_protocol
from gmp_utils.figures import series
from gmp_utils.stages import prepare_data


def test_decoding_averages_channels_and_resamples(tmp_path):
    seconds = np.arange(22050) / 22050
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, 0 * tone], axis=1), 22050)
    samples = audio.decode(str(tmp_path / "stereo.wav"))
    assert samples.shape == (16000,)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=2e-3)


def recordings(folder, **waves):
    """16 kHz recordings, and their manifest."""
    folder.mkdir(exist_ok=True)
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, 16000, subtype="PCM_16")
    paths = [str(folder / f"{name}.wav") for name in waves]
    return pd.DataFrame({"utterance": list(waves), "path": paths})


def noise(n_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, n_samples)


def test_store_holds_the_recordings(tmp_path):
    waves = {"a": noise(1000), "b": noise(700, 1)}
    store, report = waveform_store.write_store(recordings(tmp_path, **waves), tmp_path / "store")
    for name, wave in waves.items():
        np.testing.assert_allclose(store[name] / 32767, wave, atol=1e-4)
    assert report.seconds.tolist() == [1000 / 16000, 700 / 16000]
    assert report.unreadable.isna().all()
    assert report.digest.nunique() == 2


def test_mixed_rates_and_channels_become_one(tmp_path):
    """One second each, at three rates, the last in stereo."""
    for rate, channels in ((8000, 1), (16000, 1), (44100, 2)):
        soundfile.write(tmp_path / f"{rate}.wav", np.full((rate, channels), 0.1), rate)
    names = ["8000", "16000", "44100"]
    paths = [str(tmp_path / f"{name}.wav") for name in names]
    manifest = pd.DataFrame({"utterance": names, "path": paths})
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert set(store.lengths.values()) == {16000}
    assert report.sample_rate.tolist() == [8000, 16000, 44100]
    assert report.channels.tolist() == [1, 1, 2]


@pytest.mark.parametrize(("rate", "n_samples"), [(44100, 441102), (48048, 49048), (22050, 220551)])
def test_any_length_at_any_rate_fits_the_store(tmp_path, rate, n_samples):
    """torchaudio's own length is computed in 32 bits, and one sample off for some of these."""
    soundfile.write(tmp_path / "a.wav", np.full(n_samples, 0.1), rate)
    manifest = pd.DataFrame({"utterance": ["a"], "path": [str(tmp_path / "a.wav")]})
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert report.unreadable.isna().all()
    assert store.lengths["a"] == math.ceil(n_samples * 16000 / rate)
    assert len(audio.decode(manifest.path[0])) == store.lengths["a"]


def test_clipping_is_seen_in_one_channel_and_not_made_by_resampling(tmp_path):
    clean, clipped = noise(8000), noise(8000)
    clipped[:80] = 1.0
    soundfile.write(tmp_path / "stereo.wav", np.stack([clean, clipped], axis=1), 8000)
    soundfile.write(tmp_path / "clean.wav", 0.97 * np.sign(clean), 8000)
    paths = [str(tmp_path / f"{name}.wav") for name in ("stereo", "clean")]
    manifest = pd.DataFrame({"utterance": ["stereo", "clean"], "path": paths})
    report = waveform_store.write_store(manifest, tmp_path / "store")[1]
    assert report.clipped.tolist() == [80 / 8000, 0.0]
    assert report.peak.tolist() == pytest.approx([1.0, 0.97], abs=1e-3)


def test_rows_may_be_parts_of_one_recording(tmp_path):
    wave = noise(32000)
    whole = recordings(tmp_path, long=wave)
    parts = pd.DataFrame(
        {"utterance": ["a", "b"], "path": whole.path[0], "start": [0.0, 1.5], "end": [0.5, np.nan]}
    )
    store, report = waveform_store.write_store(parts, tmp_path / "store")
    np.testing.assert_allclose(store["a"] / 32767, wave[:8000], atol=1e-4)
    np.testing.assert_allclose(store["b"] / 32767, wave[24000:], atol=1e-4)
    beyond = parts.assign(end=[0.5, 2.5])
    report = waveform_store.write_store(beyond, tmp_path / "other")[1]
    assert report.unreadable.isna().tolist() == [True, False]
    assert "no part from 1.5 to 2.5 s in 2.000 s" in report.unreadable[1]


def test_an_interrupted_store_goes_on_where_it_was(tmp_path, monkeypatch):
    waves = {f"u{number}": noise(800, number) for number in range(5)}
    manifest = recordings(tmp_path, **waves)
    whole, report = waveform_store.write_store(manifest, tmp_path / "whole")
    monkeypatch.setattr(waveform_store, "PORTION", 2)
    read, heard = audio.read, []

    def stopping(path, *rest):
        if len(heard) == 4:
            raise KeyboardInterrupt
        heard.append(path)
        return read(path, *rest)

    monkeypatch.setattr(audio, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        waveform_store.write_store(manifest, tmp_path / "store")
    monkeypatch.setattr(audio, "read", lambda path, *rest: heard.append(path) or read(path, *rest))
    store, resumed = waveform_store.write_store(manifest, tmp_path / "store")
    assert heard == manifest.path.tolist()  # each once: the first two portions were kept
    assert np.array_equal(store.values, whole.values)
    pd.testing.assert_frame_equal(resumed, report)
    assert sorted(path.name for path in tmp_path.glob("store*")) == ["store.npy", "store.parquet"]


@pytest.mark.parametrize("case", ["text", "empty", "none", "short", "nan", "cut"])
def test_unusable_recordings_are_reported(tmp_path, case):
    path = tmp_path / "bad one.wav"
    good = np.full(16000, 0.1, dtype=np.float32)
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
    manifest = pd.concat(
        [
            pd.DataFrame({"utterance": ["x"], "path": [str(path)]}),
            recordings(tmp_path, good=good * 0 + 0.1),
        ]
    )
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert "bad one" in report.unreadable[0]
    assert report.unreadable.isna().tolist() == [False, True]
    assert store.lengths["good"] == 16000
    with pytest.raises(GmpError, match=r"bad one.*repair it or remove it \(1 such\)"):
        waveform_store.check_readable(report)


def test_unusual_recordings_are_decoded(tmp_path):
    """An AIFF named .wav, 96 kHz in 8 channels, 10 minutes, names that need quotes; and what is too odd."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 96000)
    tones = tone[:, None] * np.arange(8) / 7  # half as loud on average
    long, wav = noise(600 * 8000), {"format": "WAV"}
    waves = {
        "an aiff.wav": (long[:8000], 8000, {"format": "AIFF"}),
        'it\'s "96" kHz,\n8 channels.wav': (tones, 96000, wav),
        "zehn Minuten, élève 録音 🎙.wav": (long, 8000, wav | {"subtype": "ULAW"}),
        "10 ms.wav": (long[:80], 8000, wav),
        "no samples.wav": (long[:0], 8000, wav),
        "NaN.wav": (np.append(long[:800], np.nan), 8000, wav | {"subtype": "FLOAT"}),
        "inf.wav": (np.append(long[:800], -np.inf), 8000, wav | {"subtype": "DOUBLE"}),
        "1e30.wav": (np.append(long[:800], 1e30), 8000, wav | {"subtype": "FLOAT"}),
    }
    for name, (samples, rate, how) in waves.items():
        soundfile.write(tmp_path / name, samples, rate, **how)
    (tmp_path / "nothing.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    names = [*waves, "nothing.wav", "folder.wav", "pipe.wav", "gone.wav"]
    paths = [str(tmp_path / name) for name in names]
    manifest = pd.DataFrame({"utterance": names, "path": paths})
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert report.unreadable.isna().tolist() == [True] * 3 + [False] * 9
    assert [store.lengths[name] for name in names[:3]] == [16000, 8000, 600 * 16000]
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    found = store[names[1]] / 32767
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)
    tried("recording of odd rate, length, name, values or kind", len(names), "decoded, or listed")


def test_recordings_that_change_on_the_way_are_listed(tmp_path, monkeypatch):
    """One goes, one grows, between the look at its header and decoding."""
    waves = {name: noise(1000, seed) for seed, name in enumerate(("good", "gone", "grown"))}
    manifest, read = recordings(tmp_path, **waves), audio.read

    def change(path, *rest):
        if "gone" in path:
            os.unlink(path)
        elif "grown" in path:
            soundfile.write(path, noise(2000), 16000)
        return read(path, *rest)

    monkeypatch.setattr(audio, "read", change)
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert pd.isna(report.unreadable[0])
    assert re.search(r"gone\.wav: not there", report.unreadable[1])
    assert re.search(r"grown\.wav: changed while it was read", report.unreadable[2])
    np.testing.assert_allclose(store["good"] / 32767, waves["good"], atol=1e-4)


def faulty_corpus(folder):
    """A table of eight utterances by four speakers: good ones, and one of each fault."""
    clipped = noise(16000)
    clipped[:100] = 1.0
    waves = {
        "good1": noise(16000), "good2": noise(16000, 1), "good3": noise(16000, 2),
        "silent": noise(16000, 3) * 5e-4, "clipped": clipped, "short": noise(1600, 4),
        "long": noise(80000, 5), "bad": noise(16000, 6),
    }  # fmt: skip
    manifest = recordings(folder, **waves)
    (folder / "bad.wav").write_text("no recording any more")
    table = manifest.assign(
        path=manifest.utterance + ".wav",
        speaker=["a", "b", "c", "a", "b", "c", "d", "d"],
        gender=["female", "male", "female", "female", "male", "female", None, None],
        emotion=["sad", "happy"] * 4,
    )
    table.to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def prepared(run, corpus="table", corpus_dir="", exclude=(), test=("", ""), emotions=(), **rules):
    rules = {
        "fold_by": "auto",
        "n_folds": 3,
        "validation": "speakers",
        "selection": "validation",
    } | rules
    read = prepare_data.read_manifest(
        str(run), corpus, str(corpus_dir), test[0], str(test[1]), list(emotions), {}, 0
    )
    return prepare_data.prepare(
        str(run), read, list(exclude), 0.3, 4.0, transductive=False, **rules
    )


def test_faults_are_listed_and_excluded_by_rule_only(tmp_path):
    """The table says each fault once; nothing goes that `exclude` does not name."""
    table = faulty_corpus(tmp_path / "corpus")
    with pytest.raises(
        GmpError, match=r'unreadable: .*bad\.wav.*add "unreadable" to the parameter'
    ):
        prepared(tmp_path / "run", corpus_dir=table)
    with pytest.raises(GmpError, match=r"exclude \['loud'\]: expected some of"):
        prepared(tmp_path / "run", corpus_dir=table, exclude=["loud"])
    corpus = prepared(tmp_path / "run", corpus_dir=table, exclude=["unreadable"])
    assert len(corpus.manifest) == 7
    faults = pd.read_parquet(corpus.stage / "faults.parquet")
    assert faults[["utterance", "fault", "excluded"]].to_numpy().tolist() == [
        ["long", "no gender", False],
        ["bad", "no gender", False],
        ["bad", "unreadable", True],
        ["silent", "silent", False],
        ["clipped", "clipped", False],
        ["short", "short", False],
        ["long", "long", False],
    ]
    assert faults.set_index("fault").found["clipped"] == "0.6% of samples"
    with pytest.raises(GmpError, match=r'long has no gender.*exclude "no gender"'):
        corpus.labels(["good1"], "gender")
    every = ["unreadable", "silent", "clipped", "long"]
    rules = {"validation": "none", "selection": "last"}  # the three speakers left are too few
    corpus = prepared(tmp_path / "run", corpus_dir=table, exclude=every, **rules)
    assert sorted(corpus.manifest.index) == ["good1", "good2", "good3", "short"]
    assert len(corpus.waveforms["good1"]) == 16000


def test_ratings_do_without_emotions(tmp_path):
    """What is rated may have no emotion; what has neither is refused as before."""
    table = faulty_corpus(tmp_path / "corpus")
    rows = pd.read_csv(table).drop(columns="emotion").assign(valence=3.0)
    rows.to_csv(table, index=False)
    corpus = prepared(tmp_path / "run", corpus_dir=table, exclude=["unreadable"])
    assert len(corpus.manifest) == 7 and corpus.emotions == []
    with pytest.raises(GmpError, match=r'has no emotion, which is needed here.*exclude "no label"'):
        corpus.labels(["good1"], "emotion")
    assert series.counts(corpus.manifest).layout.title.text.endswith(", none with an emotion")
    assert series.durations(corpus.manifest).data[0].name == "unknown"
    rows.loc[0, "valence"] = None
    rows.to_csv(table, index=False)
    with pytest.raises(GmpError, match="no label: "):
        prepared(tmp_path / "run", corpus_dir=table, exclude=["unreadable"])


def test_the_store_is_kept_when_only_rules_change(tmp_path):
    table = faulty_corpus(tmp_path / "corpus")
    prepared(tmp_path / "run", corpus_dir=table, exclude=["unreadable"])
    store = tmp_path / "run" / "recordings" / "provenance.json"
    written = store.stat().st_mtime_ns
    prepared(
        tmp_path / "run", corpus_dir=table, exclude=["unreadable", "no gender"], selection="last"
    )
    assert store.stat().st_mtime_ns == written
    soundfile.write(tmp_path / "corpus" / "bad.wav", noise(16000, 6), 16000)
    prepared(tmp_path / "run", corpus_dir=table)
    assert store.stat().st_mtime_ns > written


def test_recordings_that_go_after_they_were_listed(tmp_path):
    """They are listed, and read when they are back; odd names are no matter."""
    waves = {f'{number}, it\'s "é"\n録': noise(16000, number) for number in range(9)}
    table = recordings(tmp_path / "corpus", **waves).assign(
        path=[f"{name}.wav" for name in waves], speaker=list("111222333"),
        gender=["female"] * 3 + ["male"] * 6, emotion=["sad", "happy", "sad"] * 3,
    )  # fmt: skip
    table.to_csv(tmp_path / "corpus" / "mine.csv", index=False)
    given = ("table", str(tmp_path / "corpus" / "mine.csv"), "", "", [], {}, 0)
    read = prepare_data.read_manifest(str(tmp_path / "run"), *given)
    lost = Path(read.path[8])
    lost.rename(tmp_path / "elsewhere")
    rules = (0.3, 4.0, "speaker", 3, "speakers", "validation", False)
    with pytest.raises(GmpError, match=r"(?s)unreadable: .*not there, or not a file\. \(1 such\)"):
        prepare_data.prepare(str(tmp_path / "run"), read, [], *rules)
    corpus = prepare_data.prepare(str(tmp_path / "run"), read, ["unreadable"], *rules)
    assert corpus.manifest.index.tolist() == list(waves)[:8]
    (tmp_path / "elsewhere").rename(lost)
    corpus = prepare_data.prepare(str(tmp_path / "run"), read, ["unreadable"], *rules)
    assert corpus.manifest.index.tolist() == list(waves)


def test_a_corpus_without_labels_is_refused_by_name(tmp_path):
    recordings(tmp_path / "corpus", one=noise(16000))
    (tmp_path / "mine.csv").write_text("path,speaker\ncorpus/one.wav,a\n")
    with pytest.raises(GmpError, match=r'no label: corpus/one.*add "no label" to the parameter'):
        prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv")
    with pytest.raises(GmpError, match="nothing is left of 1 utterances"):
        prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv", exclude=["no label"])


def test_the_same_samples_under_two_speakers_are_refused(tmp_path):
    waves = {name: noise(8000, seed) for name, seed in zip("abcdefgh", (0, 1, 0, 2, 3, 4, 5, 6))}
    table = recordings(tmp_path, **waves).assign(
        path=[f"{name}.wav" for name in waves], speaker=list("11223344"),
        gender=["female", "female", "male", "male"] * 2, emotion=["sad", "happy"] * 4,
    )  # fmt: skip
    table.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(GmpError, match="hold the same samples"):
        prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make(folder, seed=0, utterances_per_speaker=4)
    return folder


@needs_emodb
def test_across_corpora(spoken):
    """Trained on the synthetic corpus, tested on EmoDB, and on what both have."""
    manifest = corpora.cross_corpus(("synthetic", spoken), ("emodb", emodb_folder()))
    assert manifest.groupby("split").size().to_dict() == {"test": 339, "train": 40}
    assert sorted(manifest.emotion.unique()) == ["angry", "happy", "neutral", "sad"]
    assert manifest.speaker.nunique() == 20
    protocol = make_protocol(manifest)
    parts = protocol.parts(manifest, 1)
    assert set(manifest.corpus[parts == "test"]) == {"emodb"}
    assert set(manifest.corpus[parts != "test"]) == {"synthetic"}
    # ten speakers in five groups: validation is a woman and a man
    assert manifest.speaker[parts == "validation"].nunique() == 2
    assert manifest.gender[parts == "validation"].nunique() == 2
    calm = {"neutral": "calm", "N": "calm"}
    renamed = corpora.cross_corpus(
        ("synthetic", spoken), ("emodb", emodb_folder()), ["calm", "sad"], calm
    )
    assert renamed.emotion.value_counts().to_dict() == {"calm": 79 + 10, "sad": 62 + 10}


def test_a_corpus_across_itself_or_without_common_emotions_is_refused(spoken, tmp_path):
    synthetic_corpus = ("synthetic", spoken)
    with pytest.raises(GmpError, match="synthetic is asked for twice"):
        corpora.cross_corpus(synthetic_corpus, synthetic_corpus)
    (tmp_path / "0001_000001.wav").touch()
    with pytest.raises(GmpError, match=r"share the emotions \['neutral'\], expected two or more"):
        corpora.cross_corpus(synthetic_corpus, ("esd", tmp_path))


def test_an_encoder_that_heard_the_test_speakers_is_refused(tmp_path):
    """What notebook 00 heard lies beside its weights; strict protocols look."""
    waves = {f"u{number}": noise(8000, number) for number in range(6)}
    table = recordings(tmp_path, **waves).assign(
        path=[f"{name}.wav" for name in waves], speaker=list("112233"),
        gender=["female"] * 2 + ["male"] * 4, emotion=["sad", "happy"] * 3,
    )  # fmt: skip
    table["gender"] = "male"
    table.to_csv(tmp_path / "mine.csv", index=False)
    corpus = prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv")
    tested = corpus.manifest.loc[corpus.partition(1)["test"][0]]
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    corpus.check_encoder(str(encoder), 1)
    (encoder / "pretraining_recordings.txt").write_text(f"{'0' * 16}\n{tested.digest}\n")
    with pytest.raises(
        GmpError, match=f"1 recordings that fold 1 holds out, such as {tested.utterance}"
    ):
        corpus.check_encoder(str(encoder), 1)
    trained = next(fold for fold in (2, 3) if tested.name in corpus.partition(fold)["train"])
    corpus.check_encoder(str(encoder), trained)
    loose = replace(corpus, protocol=replace(corpus.protocol, transductive=True))
    loose.check_encoder(str(encoder), 1)


def test_ten_thousand_rows_are_checked_in_a_second(tmp_path):
    """Five times what it takes here; the recordings' files are looked for too."""
    n_rows = 10_000
    names = [f"{number:05d}.wav" for number in range(n_rows)]
    for name in names:
        (tmp_path / name).touch()
    table = pd.DataFrame(
        {
            "path": names,
            "speaker": [f"s{number % 50}" for number in range(n_rows)],
            "gender": ["female", "male"] * (n_rows // 2),
            "emotion": ["sad", "happy", "angry", "neutral"] * (n_rows // 4),
            "valence": np.linspace(1, 5, n_rows),
        }
    )
    table.to_csv(tmp_path / "mine.csv", index=False)
    corpora.load("table", tmp_path / "mine.csv")  # imports pandera
    began = time.perf_counter()
    assert len(corpora.load("table", tmp_path / "mine.csv")) == n_rows
    assert time.perf_counter() - began < 1.0


@needs_emodb
def test_emodb_is_prepared_in_seconds(tmp_path):
    """Five times what 535 recordings take here, decoded and folded; sentences are shared by all."""
    prepared(
        tmp_path / "imports", corpus_dir=faulty_corpus(tmp_path / "corpus"), exclude=["unreadable"]
    )
    began = time.perf_counter()
    corpus = prepared(tmp_path / "run", "emodb", emodb_folder(), fold_by="leave-one-speaker-out")
    assert time.perf_counter() - began < 5.0
    assert (len(corpus.manifest), len(corpus.protocol.folds)) == (535, 10)
    faults = pd.read_parquet(corpus.stage / "faults.parquet")
    assert set(faults.fault) <= {"long"}  # prepared() calls 4 s long
    leakage = pd.read_parquet(corpus.stage / "leakage.parquet")
    assert leakage.sentences.tolist() == [1.0] * 10
