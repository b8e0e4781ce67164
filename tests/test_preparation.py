"""From recordings to a prepared corpus: decoding, problems, exclusion and errors."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from conftest import EMODB, ROOT

from gmp_utils import GmpError
from gmp_utils.data import audio, corpora, waveform_store
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.protocol import make_protocol
from gmp_utils.figures import series
from gmp_utils.runs import weights
from gmp_utils.runs.notebook import notebook_parameters
from gmp_utils.runs.paths import NOTEBOOKS
from gmp_utils.stages import prepare_data


@pytest.mark.parametrize("rate", [8000, 16000, 24414, 44100, 96000])
def test_decoding_resamples_a_sine_and_averages_channels(tmp_path, rate):
    """Frequency, phase and amplitude of 440 Hz, and no aliasing of 12 kHz."""
    seconds = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    if rate > 30000:
        tone += 0.4 * np.sin(2 * np.pi * 12000 * seconds)  # would fold to 4 kHz
    soundfile.write(tmp_path / "a.wav", np.stack([tone, 0 * tone], axis=1), rate, subtype="FLOAT")
    waveform = audio.decode(str(tmp_path / "a.wav"))
    assert waveform.shape == (32000,) and waveform.dtype == np.float32
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    np.testing.assert_allclose(waveform[400:-400], expected[400:-400], atol=1e-4)
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(32000)))
    assert spectrum.argmax() == 880  # of bins of 0.5 Hz


@pytest.mark.parametrize("block", [audio.BLOCK, 1000])
def test_files_and_arrays_are_converted_equally(tmp_path, monkeypatch, block):
    """In one block or in many. A single call of soxr is the reference, also for the length."""
    monkeypatch.setattr(audio, "BLOCK", block)
    samples = np.stack([noise(44110), noise(44110, 1)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    waveform = audio.decode(str(tmp_path / "a.wav"))
    expected = soxr.resample(samples.mean(axis=1), 44100, 16000)
    np.testing.assert_allclose(waveform, expected, atol=1e-6)
    np.testing.assert_allclose(waveform, audio.from_array(samples, 44100), atol=1e-6)
    assert len(waveform) == round(44110 * 16000 / 44100)


def test_integers_have_full_scale_at_their_limits():
    for values, dtype in (
        ([-32768, 0, 16384], np.int16),
        ([0, 128, 192], np.uint8),
        ([-(2**31), 0, 2**30], np.int32),
        ([-1.0, 0.0, 0.5], np.float64),
    ):
        waveform = audio.from_array(np.array(values * 200, dtype), 16000)
        np.testing.assert_allclose(waveform[:3], [-1, 0, 0.5])


def test_unusable_arrays_are_rejected():
    for samples, message in (
        (np.zeros(399), "expected at least 0.025 s"),
        (np.full(400, np.nan), "NaN or infinite"),
        (np.zeros((2, 400, 1)), r"shape \(2, 400, 1\), expected"),
    ):
        with pytest.raises(GmpError, match=message):
            audio.from_array(samples, 16000)


def recordings(folder, **waves):
    """16 kHz recordings, and their manifest."""
    folder.mkdir(exist_ok=True)
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, 16000, subtype="PCM_16")
    paths = [str(folder / f"{name}.wav") for name in waves]
    return pd.DataFrame({"utterance": list(waves), "path": paths})


def noise(n_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, n_samples)


def test_clipping_is_detected_in_one_channel_and_not_caused_by_resampling(tmp_path):
    clean, clipped = noise(8000), noise(8000)
    clipped[:80] = 1.0
    soundfile.write(tmp_path / "stereo.wav", np.stack([clean, clipped], axis=1), 8000)
    soundfile.write(tmp_path / "clean.wav", 0.97 * np.sign(clean), 8000)
    paths = [str(tmp_path / f"{name}.wav") for name in ("stereo", "clean")]
    manifest = pd.DataFrame({"utterance": ["stereo", "clean"], "path": paths})
    report = waveform_store.write_store(manifest, tmp_path / "store")[1]
    assert report.clipped.tolist() == [80 / 8000, 0.0]
    peak = np.abs((clean + clipped) / 2).max()  # of what is stored
    assert report.peak.tolist() == pytest.approx([peak, 0.97], abs=1e-3)


def test_rows_may_be_parts_of_one_recording(tmp_path):
    wave = noise(32000)
    whole = recordings(tmp_path, long=wave)
    seconds = {"start": [0.0, 1.5], "end": [0.5, np.nan]}
    parts = pd.DataFrame({"utterance": ["a", "b"], "path": whole.path[0]} | seconds)
    store, report = waveform_store.write_store(parts, tmp_path / "store")
    np.testing.assert_allclose(audio.to_float(store["a"]), wave[:8000], atol=1e-4)
    np.testing.assert_allclose(audio.to_float(store["b"]), wave[24000:], atol=1e-4)
    assert report.seconds.tolist() == [0.5, 0.5]
    assert report.unreadable.isna().all() and report.digest.nunique() == 2
    rounded = waveform_store.write_store(parts.assign(end=[0.5, 2.01]), tmp_path / "rounded")[1]
    assert rounded.seconds.tolist() == [0.5, 0.5]
    beyond = parts.assign(end=[0.5, 2.5])
    report = waveform_store.write_store(beyond, tmp_path / "other")[1]
    assert report.unreadable.isna().tolist() == [True, False]
    assert "1.5 to 2.5 s is not in 2.000 s" in report.unreadable[1]


def cut_flac(path):
    soundfile.write(path, noise(16000), 16000, format="FLAC")
    os.truncate(path, 60)


DAMAGES = {
    "text": lambda path: path.write_text("not audio"),
    "empty": Path.touch,
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "short": lambda path: soundfile.write(path, noise(100), 16000),
    "nan": lambda path: soundfile.write(path, [np.nan] * 16000, 16000, subtype="FLOAT"),
    "cut": cut_flac,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_recordings_are_reported(tmp_path, damage):
    path = tmp_path / "bad one.wav"
    DAMAGES[damage](path)
    rows = [
        pd.DataFrame({"utterance": ["x"], "path": [str(path)]}),
        recordings(tmp_path, good=noise(16000)),
    ]
    store, report = waveform_store.write_store(pd.concat(rows), tmp_path / "store")
    assert "bad one" in report.unreadable[0]
    assert report.unreadable.isna().tolist() == [False, True]
    assert store.lengths["good"] == 16000
    with pytest.raises(GmpError, match=r"bad one.*Repair it or remove it \(1 such\)"):
        waveform_store.check_readable(report)


def test_unusual_recordings_are_decoded(tmp_path):
    """An AIFF named .wav, 96 kHz with 8 channels, 10 minutes, names that need quotes, a truncated WAV."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 96000)
    tones = tone[:, None] * np.arange(8) / 7  # half as loud on average
    long, wav = noise(600 * 8000), {"format": "WAV"}
    waves = {
        "an aiff.wav": (long[:8000], 8000, {"format": "AIFF"}),
        'it\'s "96" kHz,\n8 channels.wav': (tones, 96000, wav),
        "zehn Minuten, élève 録音 🎙.wav": (long, 8000, wav | {"subtype": "ULAW"}),
        "cut.wav": (long[:8000], 8000, wav),
    }
    for name, (samples, rate, options) in waves.items():
        soundfile.write(tmp_path / name, samples, rate, **options)
    os.truncate(tmp_path / "cut.wav", 44 + 2 * 4000)
    names = list(waves)
    paths = [str(tmp_path / name) for name in names]
    manifest = pd.DataFrame({"utterance": names, "path": paths})
    store, report = waveform_store.write_store(manifest, tmp_path / "store")
    assert report.unreadable.isna().all()
    assert [store.lengths[name] for name in names] == [16000, 8000, 600 * 16000, 8000]
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    middle = audio.to_float(store[names[1]])[200:-200]
    np.testing.assert_allclose(middle, expected[200:-200], atol=2e-3)


def faulty_corpus(folder):
    """A table of eight utterances by four speakers: good ones, and one with each problem."""
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


def prepared(run, corpus="table", corpus_dir="", exclude=(), **rules):
    manifest = prepare_data.read_manifest(str(run), corpus, corpus_dir=str(corpus_dir))
    options = {"exclude": list(exclude), "min_seconds": 0.3, "max_seconds": 4.0, "n_folds": 3}
    return prepare_data.prepare(str(run), manifest, **options | rules)


def write_table(folder, speakers, waves):
    """Write a table of recordings by men, alternately sad and happy."""
    table = recordings(folder, **waves)
    table["path"], table["speaker"] = [f"{name}.wav" for name in waves], list(speakers)
    table["gender"], table["emotion"] = "male", (["sad", "happy"] * len(table))[: len(table)]
    table.to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def test_problems_are_listed_and_excluded_only_by_rule(tmp_path):
    """Each problem is listed once. Only those in `exclude` are excluded."""
    table = faulty_corpus(tmp_path / "corpus")
    with pytest.raises(GmpError, match=r'bad\.wav.*add "unreadable" to exclude'):
        prepared(tmp_path / "run", corpus_dir=table)
    corpus = prepared(tmp_path / "run", corpus_dir=table, exclude=["unreadable"])
    assert len(corpus.manifest) == 7
    problems = pd.read_parquet(corpus.stage / "problems.parquet")
    assert list(zip(problems.utterance, problems.problem)) == [
        ("long", "no gender"), ("bad", "no gender"), ("bad", "unreadable"), ("silent", "silent"),
        ("clipped", "clipped"), ("short", "short"), ("long", "long"),
    ]  # fmt: skip
    assert problems.problem[problems.excluded].tolist() == ["unreadable"]
    assert problems.set_index("problem").detail["clipped"] == "0.6% of samples"
    with pytest.raises(GmpError, match=r'long has no gender.*exclude "no gender"'):
        corpus.labels(["good1"], "gender")
    every = ["unreadable", "silent", "clipped", "long"]
    rules = {"validation": "none", "selection": "last"}  # the three speakers left are too few
    corpus = prepared(tmp_path / "run", corpus_dir=table, exclude=every, **rules)
    assert sorted(corpus.manifest.index) == ["good1", "good2", "good3", "short"]
    assert len(corpus.waveforms["good1"]) == 16000


def test_ratings_do_without_emotions(tmp_path):
    """An utterance may have a rating without an emotion, but one of them is needed."""
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
    problems = ["unreadable", "no gender"]
    prepared(tmp_path / "run", corpus_dir=table, exclude=problems, selection="last")
    assert store.stat().st_mtime_ns == written
    soundfile.write(tmp_path / "corpus" / "bad.wav", noise(16000, 6), 16000)
    prepared(tmp_path / "run", corpus_dir=table)
    assert store.stat().st_mtime_ns > written


def test_recordings_deleted_after_they_were_listed_are_unreadable(tmp_path):
    """They are read when they exist again."""
    waves = {f'{number}, it\'s "é"\n録': noise(16000, number) for number in range(9)}
    file, run = write_table(tmp_path / "corpus", "111222333", waves), str(tmp_path / "run")
    manifest = prepare_data.read_manifest(run, "table", corpus_dir=str(file))
    lost = Path(manifest.path[8])
    lost.rename(tmp_path / "elsewhere")
    options = {"min_seconds": 0.3, "max_seconds": 4.0, "n_folds": 3}
    with pytest.raises(GmpError, match=r"(?s)unreadable: .*not there"):
        prepare_data.prepare(run, manifest, exclude=[], **options)
    for names in (list(waves)[:8], list(waves)):
        corpus = prepare_data.prepare(run, manifest, exclude=["unreadable"], **options)
        assert corpus.manifest.index.tolist() == names
        if not lost.exists():
            (tmp_path / "elsewhere").rename(lost)


def test_a_corpus_without_labels_is_rejected(tmp_path):
    recordings(tmp_path / "corpus", a=noise(16000))
    (tmp_path / "mine.csv").write_text("path,speaker\ncorpus/a.wav,a\n")
    with pytest.raises(GmpError, match=r'no label: corpus/a.*add "no label" to exclude'):
        prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv")
    with pytest.raises(GmpError, match="excludes all 1 utterances"):
        prepared(tmp_path / "run", corpus_dir=tmp_path / "mine.csv", exclude=["no label"])


@pytest.fixture(scope="module")
def synthetic_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make(folder, seed=0, utterances_per_speaker=4)
    return folder


def test_cross_corpus(synthetic_folder):
    """Training on the synthetic corpus and testing on EmoDB, with their common emotions."""
    manifest = corpora.cross_corpus(("synthetic", synthetic_folder), ("emodb", EMODB))
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
    rules = {"emotions": ["calm", "sad"], "label_map": {"neutral": "calm", "N": "calm"}}
    both = ("synthetic", synthetic_folder), ("emodb", EMODB)
    renamed = corpora.cross_corpus(*both, **rules)
    assert renamed.emotion.value_counts().to_dict() == {"calm": 79 + 10, "sad": 62 + 10}


def test_cross_corpus_needs_two_corpora_with_common_emotions(synthetic_folder, tmp_path):
    synthetic_corpus = ("synthetic", synthetic_folder)
    with pytest.raises(GmpError, match="corpus and test_corpus are both synthetic"):
        corpora.cross_corpus(synthetic_corpus, synthetic_corpus)
    (tmp_path / "0001_000001.wav").touch()
    with pytest.raises(GmpError, match=r"share the emotions \['neutral'\], expected two or more"):
        corpora.cross_corpus(synthetic_corpus, ("esd", tmp_path))


def test_an_encoder_pre_trained_on_the_test_speakers_is_rejected(tmp_path):
    """Notebook 00 saves the digests of its recordings with the weights, and strict protocols compare them."""
    waves = {f"u{number:02d}": noise(8000, number) for number in range(18)}
    file = write_table(tmp_path, "111111222222333333", waves)
    corpus = prepared(tmp_path / "run", corpus_dir=file)
    tested = corpus.manifest.loc[corpus.partition(1)["test"][0]]
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    corpus.check_encoder(str(encoder), 1)
    (encoder / weights.TRAINING_RECORDINGS).write_text(f"{'0' * 16}\n{tested.digest}\n")
    with pytest.raises(GmpError, match=f"recordings of fold 1, such as {tested.utterance}"):
        corpus.check_encoder(str(encoder), 1)
    trained = next(fold for fold in (2, 3) if tested.name in corpus.partition(fold)["train"])
    corpus.check_encoder(str(encoder), trained)
    loose = replace(corpus, protocol=replace(corpus.protocol, transductive=True))
    loose.check_encoder(str(encoder), 1)
    rules = replace(corpus.protocol, disjoint_sentences=True)
    disjoint = replace(
        corpus, manifest=corpus.manifest.assign(text=[*"001122"] * 3), protocol=rules
    )
    left_out = set(corpus.partition(1)["train"]) - set(disjoint.partition(1)["train"])
    assert len(left_out) == 2  # a sad and a happy one
    digest = corpus.manifest.digest[left_out.pop()]
    (encoder / weights.TRAINING_RECORDINGS).write_text(f"{digest}\n")
    corpus.check_encoder(str(encoder), 1)
    with pytest.raises(GmpError, match="selected on 1 left out recordings of fold 1"):
        disjoint.check_encoder(str(encoder), 1)


@pytest.fixture(scope="module")
def emodb_run(tmp_path_factory):
    """The embedded recordings, all emotions, in ten folds."""
    run = tmp_path_factory.mktemp("emodb") / "run"
    return run, prepared(run, "emodb", fold_by="leave-one-speaker-out")


def test_emodb_is_prepared(emodb_run):
    """Its 535 recordings have no problems, and every speaker says every sentence."""
    corpus = emodb_run[1]
    assert (len(corpus.manifest), len(corpus.protocol.folds)) == (535, 10)
    problems = pd.read_parquet(corpus.stage / "problems.parquet")
    assert set(problems.problem) <= {"long"}  # prepared() calls 4 s long
    leakage = pd.read_parquet(corpus.stage / "leakage.parquet")
    assert leakage.sentences.tolist() == [1.0] * 10
    digests = {digest for digest, _ in weights.training_recordings(weights.EMBEDDED)}
    assert digests and not corpus.manifest.digest.isin(digests).any()


def test_the_embedded_recordings_are_the_same_wherever_the_checkout_is(
    emodb_run, monkeypatch, tmp_path
):
    """A run that was moved with the checkout is up to date. A run of a folder depends on its path."""
    run = emodb_run[0]
    moved = tmp_path / "checkout" / EMODB.relative_to(ROOT)
    shutil.copytree(EMODB, moved)  # keeps the times of the files
    monkeypatch.setattr(prepare_data, "ROOT", tmp_path / "checkout")
    monkeypatch.setitem(corpora.EMBEDDED, "emodb", moved)
    store = run / "recordings" / "provenance.json"
    written = store.stat().st_mtime_ns
    prepared(run, "emodb", fold_by="leave-one-speaker-out")
    assert store.stat().st_mtime_ns == written
    manifest = prepare_data.read_manifest(str(run), "emodb", corpus_dir=str(EMODB))
    assert set(manifest.path.map(os.path.dirname)) == {str(EMODB)}


def test_the_default_is_emodbs_four_emotions_in_five_folds_of_a_woman_and_a_man():
    defaults = notebook_parameters(NOTEBOOKS / "01_prepare_data.ipynb")
    assert (defaults["corpus"], defaults["corpus_dir"]) == ("emodb", "")
    manifest = prepare_data.read_manifest("run", "emodb", emotions=defaults["emotions"])
    assert manifest.emotion.value_counts().to_dict() == {
        "angry": 127, "neutral": 79, "happy": 71, "sad": 62,
    }  # fmt: skip
    protocol = make_protocol(manifest, defaults["fold_by"], n_folds=defaults["n_folds"])
    gender = manifest.groupby("speaker").gender.first()
    folds = [sorted(gender[list(speakers)]) for speakers in protocol.folds]
    assert folds == [["female", "male"]] * 5


@pytest.mark.parametrize(("corpus", "folder"), [("crema_d", ""), ("synthetic", "wav")])
def test_a_missing_or_superfluous_folder_is_rejected(tmp_path, corpus, folder):
    with pytest.raises(GmpError, match=f"corpus '{corpus}', corpus_dir '{folder}': expected "):
        prepare_data.read_manifest(str(tmp_path), corpus, corpus_dir=folder)


def encode(path, samples, rate, codec, **options):
    """Encode float samples, (n_samples,), as phones and recorders do."""
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(stream.encode(part))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "options"),
    [
        ("no Xing.mp3", "libmp3lame", 16000, {"write_xing": "0"}),
        ("phone.m4a", "aac", 44100, {}),
        ("video.mp4", "aac", 48000, {}),
        ("stream.aac", "aac", 16000, {}),
        ("browser.webm", "libopus", 48000, {}),
    ],
)
def test_compressed_recordings_are_decoded_to_their_end(tmp_path, name, codec, rate, options):
    """Loud, then quiet: from such a start, libsndfile estimates too few samples of headerless mp3."""
    time = np.arange(20 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time) * np.where(time < 1, 0.5, 0.02)
    tone[: rate // 2] += noise(rate // 2) / 4
    encode(tmp_path / name, tone, rate, codec, **options)
    waveform, _ = audio.read(str(tmp_path / name))
    assert 20 <= len(waveform) / 16000 < 20.2  # codecs add up to 0.1 s
    last = waveform[18 * 16000 : 19 * 16000] * np.hanning(16000)
    assert np.abs(np.fft.rfft(last)).argmax() == 440
    part = audio.read(str(tmp_path / name), 18.0, 19.0)[0]
    np.testing.assert_allclose(part[200:-200], waveform[18 * 16000 :][200:15800], atol=1e-3)
    with pytest.raises(GmpError, match=r"19\.0 to 30\.0 s is not in 20\.\d+ s"):
        audio.read(str(tmp_path / name), 19.0, 30.0)


def test_levels_are_checked_after_averaging_channels(tmp_path):
    wave = noise(16000)
    faults = {
        "opposite": (np.stack([wave, -wave], axis=1), "channels cancel out in their mean"),
        "integers": (wave * 32767, r"a sample of 29490\.1, expected -1 to 1"),
    }
    for name, (samples, message) in faults.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        with pytest.raises(GmpError, match=rf"{name}\.wav.*{message}"):
            audio.decode(str(tmp_path / f"{name}.wav"))
        with pytest.raises(GmpError, match=message):
            audio.from_array(samples, 16000)
    half = np.stack([wave, 0 * wave], axis=1)
    np.testing.assert_allclose(audio.from_array(half, 16000), wave / 2, atol=1e-6)


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("12:30.mp3", noise(16000), 16000, format="MP3")
    assert len(audio.decode("12:30.mp3")) >= 16000


def test_files_that_are_no_recordings_are_described(tmp_path):
    (tmp_path / "damaged.ogg").write_bytes(b"OggS" + bytes(2000))
    with pytest.raises(GmpError, match=r"damaged\.ogg: cannot be decoded"):
        audio.decode(str(tmp_path / "damaged.ogg"))
    (tmp_path / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(GmpError, match=r"lfs\.wav: a git-lfs pointer; run `git lfs pull`"):
        audio.decode(str(tmp_path / "lfs.wav"))
    with av.open(str(tmp_path / "silent film.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height = 64, 64
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        file.mux([*stream.encode(picture), *stream.encode(None)])
    with pytest.raises(GmpError, match="has no audio"):
        audio.decode(str(tmp_path / "silent film.mp4"))


def test_telephone_recordings_are_decoded(tmp_path):
    """GSM 6.10, which can only be read from its start."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(tmp_path / "call.wav", tone, 8000, subtype="GSM610")
    waveform = audio.decode(str(tmp_path / "call.wav"))
    assert 15900 < len(waveform) < 16800  # blocks of 320 samples at 8 kHz
    assert np.abs(np.fft.rfft(waveform[:15900], 16000)).argmax() == 440


def test_tiles_of_folds_count_the_test_speakers():
    parts = pd.DataFrame(
        {"fold 1": ["test", "train", "train"], "fold 2": ["test", "test", "train + validation"]}
    )
    figure = series.folds(parts.set_axis(["a", "b", "c"]))
    assert figure.layout.title.text.startswith("1 of 3 speakers are test speakers in exactly one")
    tiles = figure.data[0]
    assert list(tiles.text[2]) == ["train", "train + validation"]
    assert [list(row) for row in tiles.z] == [[2, 2], [0, 2], [0, 3]]


def test_a_changed_recording_changes_the_digest_of_its_corpus(tmp_path):
    """Of a table's folder, only its recordings count: results may be written next to them."""
    table, recording = tmp_path / "table.csv", tmp_path / "ann" / "1.wav"
    recording.parent.mkdir()
    table.write_text("path,speaker\nann/1.wav,ann\n")
    digests = []
    for name, content in (("ann/1.wav", "a"), ("ann/1.wav", "bc"), ("results.csv", "")):
        (tmp_path / name).write_text(content)
        audio.corpus_digest.cache_clear()
        digests.append([audio.corpus_digest(str(path)) for path in (table, tmp_path)])
    of_table, of_folder = zip(*digests)
    assert of_table[0] != of_table[1] == of_table[2]
    assert len(set(of_folder)) == 3
    for other in (
        "file_name,speaker\nann/1.wav,ann\n",
        "speaker\nann\n",
    ):  # the second is an error later
        table.write_text(other)
        audio.corpus_digest.cache_clear()
        digests.append(audio.corpus_digest(str(table)))
    assert digests[-2] == of_table[2] != digests[-1]
