"""Recordings in, emotions over time out; and the model as others load it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch
from conftest import QUICK, ROOT, SMALL, TINY, write_noise_corpus
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    HubertConfig,
    Wav2Vec2Config,
    WavLMConfig,
    pipeline,
)

from gmp_utils import GmpError
from gmp_utils.__main__ import main
from gmp_utils.data import audio
from gmp_utils.evaluation.metrics import temperature
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.runs import hardware
from gmp_utils.stages import finetune, publish, recognize

own_bfloat16 = hardware.bfloat16  # before conftest's float32
CONFIGS = {"hubert": HubertConfig, "wav2vec2": Wav2Vec2Config, "wavlm": WavLMConfig}

INPUTS = {"input_values": np.float32, "attention_mask": np.int64}
ONCE = replace(QUICK, epochs=1)
SECOND = 16000


@pytest.fixture(scope="module")
def classified(tmp_path_factory, tiny_encoder):
    """A run of noise with a classifier of each loss, and its ratings."""
    run = write_noise_corpus(tmp_path_factory.mktemp("classified") / "run", ratings=["arousal"])
    for loss in ("ce", "ams"):
        finetune.finetune(str(run), 1, str(tiny_encoder), loss, ONCE, False, network=SMALL)
    return run


@pytest.fixture(scope="module")
def published(classified):
    """Its AM-Softmax classifier's folder, ready for use."""
    return publish.publish(classified / "fold1" / "06_finetune" / "no-gmps" / "ams") / "model"


@pytest.fixture(scope="module")
def recognizer(published):
    return publish.open_recognizer(str(published))


@pytest.fixture(scope="module")
def sound():
    """Ten seconds of something that changes."""
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.uniform(0.01, 0.2, 40), SECOND // 4)
    return (loud * rng.normal(size=10 * SECOND)).astype(np.float32)


def probabilities(recognizer, waveform):
    """By the network's own parts, of a waveform alone."""
    samples = torch.from_numpy(audio.normalize(waveform))[None]
    with torch.inference_mode():
        states, valid = recognizer.network.hidden_states(
            samples, torch.tensor([len(waveform)]), layers=(0, -1)
        )
        head = recognizer.network.head(states[1], valid)
        logits = recognizer.network.logits(head) / recognizer.config.temperature
        speech = float(recognizer.speech(states[0].mean(dim=1)).sigmoid())
    return speech * softmax(logits.numpy()[0]) + (1 - speech) / logits.shape[1]


def test_windows_by_hand():
    starts, edges = recognize.window_grid(100, 100, 50)
    assert (starts.tolist(), edges.tolist()) == ([0], [0, 100])
    starts, edges = recognize.window_grid(40, 100, 50)
    assert (starts.tolist(), edges.tolist()) == ([0], [0, 40])
    starts, edges = recognize.window_grid(200, 100, 50)
    assert (starts.tolist(), edges.tolist()) == ([0, 50, 100], [0, 75, 125, 200])
    starts, edges = recognize.window_grid(230, 100, 50)  # four windows, 130 / 3 apart
    assert (starts.tolist(), edges.tolist()) == ([0, 43, 87, 130], [0, 71, 115, 158, 230])


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_windows_are_slices_however_the_pieces_come(size):
    whole = np.arange(230, dtype=np.float32)
    starts, _ = recognize.window_grid(230, 100, 50)
    pieces = (whole[at : at + size] for at in range(0, 230, size))
    found = dict(recognize.iter_windows(pieces, starts, 100))
    assert list(found) == [0, 1, 2, 3]
    for number, waveform in found.items():
        assert (waveform == whole[starts[number] : starts[number] + 100]).all()
    (only,) = recognize.iter_windows(iter([whole[:30], whole[30:40]]), np.array([0]), 100)
    assert (only[1] == whole[:40]).all()


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"),
    [(8000, 1, "wav"), (16000, 2, "flac"), (44100, 1, "mp3"), (48000, 2, "ogg"), (22050, 2, "wav")],
)
@pytest.mark.parametrize("block", [20000, audio.BLOCK])
def test_pieces_together_are_the_whole(tmp_path, monkeypatch, rate, channels, suffix, block):
    path, rng = tmp_path / f"recording.{suffix}", np.random.default_rng(rate)
    soundfile.write(path, rng.normal(0, 0.1, (int(rate * 20.3), channels)), rate)
    whole = audio.decode(str(path))
    monkeypatch.setattr(audio, "BLOCK", block)
    pieces = list(audio.stream(str(path)))
    assert len(pieces) > 1 or block == audio.BLOCK or rate == 8000
    # 1e-6: the resampler adds up in another order
    assert np.concatenate(pieces) == pytest.approx(whole, abs=1e-6)
    assert audio.length(str(path)) == len(whole)


def test_a_short_recording_is_heard_whole(recognizer, tmp_path, sound):
    path = tmp_path / "short.wav"
    soundfile.write(path, sound[: 5 * SECOND], SECOND, subtype="FLOAT")
    table = recognize.recognize(path, recognizer)
    (row,) = table.to_dict("records")
    assert (row["file"], row["start"], row["end"], row["error"]) == (str(path), 0, 5, None)
    scores = np.array([row[name] for name in recognizer.config.label2id])
    assert scores == pytest.approx(probabilities(recognizer, sound[: 5 * SECOND]), abs=1e-5)
    assert scores.sum() == pytest.approx(1)
    assert row["emotion"] == recognizer.config.id2label[scores.argmax()]
    assert row["confidence"] == scores.max()
    assert 0 <= row["female"] <= 1 and 0 <= row["speech"] <= 1 and 1 < row["arousal"] < 5


def test_a_long_recording_is_heard_window_by_window(recognizer, tmp_path, sound, monkeypatch):
    """Each as if it were alone, whatever it was batched, read or decoded with."""
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    lengths = [10, 2, 7]
    for path, seconds in zip(paths, lengths):
        soundfile.write(path, sound[: seconds * SECOND], SECOND, subtype="FLOAT")
    monkeypatch.setattr(audio, "BLOCK", 30000)
    monkeypatch.setattr(recognize, "AT_ONCE", 0.2)
    table = recognize.recognize(paths, recognizer, window=4.0, hop=2.0)
    assert table.file.tolist() == [str(paths[0])] * 4 + [str(paths[1])] + [str(paths[2])] * 3
    assert table.start.tolist() == [0, 3, 5, 7, 0, 0, 2.75, 4.25]
    assert table.end.tolist() == [3, 5, 7, 10, 2, 2.75, 4.25, 7]
    starts = [0, 2, 4, 6, 0, 0, 1.5, 3]
    for start, row in zip(starts, table.to_dict("records")):
        begin = int(start * SECOND)
        seconds = 2 if row["file"] == str(paths[1]) else 4
        expected = probabilities(recognizer, sound[begin : begin + seconds * SECOND])
        assert [row[name] for name in recognizer.config.label2id] == pytest.approx(
            expected, abs=1e-5
        )


def test_what_is_in_memory_is_heard_as_its_file(recognizer, tmp_path, sound):
    stereo = np.stack([sound, 0.5 * sound], axis=1)[: 4 * 8000]
    path = tmp_path / "telephone.wav"
    soundfile.write(path, stereo, 8000, subtype="FLOAT")
    filed = recognize.recognize(path, recognizer).drop(columns="file")
    heard = recognize.recognize(stereo, recognizer, 8000).drop(columns="file")
    pd.testing.assert_frame_equal(filed, heard, rtol=1e-5)
    whole = np.round(stereo * 2**30).astype(np.int32)
    integers = recognize.recognize(whole, recognizer, 8000).drop(columns="file")
    pd.testing.assert_frame_equal(heard, integers, rtol=1e-3)
    assert recognize.from_memory(np.full(500, 160, np.uint8), SECOND) == pytest.approx(0.25)
    for array, rate, message in (
        (
            stereo.T,
            8000,
            r"float32 and shape \(2, 32000\), expected integers or floats, \(samples,\)",
        ),
        (stereo, 44101, "sampled at 44101 Hz"),
        (stereo * np.nan, 8000, "holds a sample of nan"),
        (stereo > 0, 8000, "an array of bool and shape"),
        (stereo[:199], 8000, "0.0249 s of audio, expected at least 0.025 s"),
        (stereo[:0], 8000, "0.0000 s of audio"),
        (stereo, None, "sample_rate: expected with a NumPy array"),
        (str(path), 8000, "sample_rate: expected with a NumPy array"),
    ):
        with pytest.raises(GmpError, match=message):
            recognize.recognize(array, recognizer, rate)
    for window, hop in ((2.0, 3.0), (0.02, 0.01), (np.inf, 3.0), (np.nan, 3.0)):
        with pytest.raises(GmpError, match=f"hop {hop} and window {window}: expected"):
            recognize.recognize(path, recognizer, window=window, hop=hop)


def test_silence_and_noise_are_no_reason_to_be_sure(recognizer, classified):
    """Here noise was called speech, so only silence differs; of the demo's model more is asked."""
    table = recognize.recognize(np.zeros(20 * SECOND), recognizer, SECOND)
    assert len(table) == 6 and (table.confidence < 0.5).all()
    assert table.notna()[["start", "end", "confidence", "speech"]].all(axis=None)


def test_bad_recordings_are_told_of_and_the_rest_is_heard(
    published, tmp_path, sound, capfd, monkeypatch
):
    good, out = tmp_path / "in" / "good.flac", tmp_path / "out.csv"
    good.parent.mkdir()
    soundfile.write(good, sound, 48000)
    (good.parent / "text.wav").write_text("no sound")
    soundfile.write(good.parent / "cut.wav", sound, SECOND)
    cut = (good.parent / "cut.wav").read_bytes()
    (good.parent / "cut.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(good.parent / "odd.wav", sound, 44101)
    soundfile.write(good.parent / "short.wav", sound[:100], SECOND)
    (good.parent / "notes.txt").write_text("no recording, and not tried")
    assert main(["recognize", str(good.parent), "--model", str(published), "--out", str(out)]) == 1
    said = capfd.readouterr()
    table = pd.read_csv(out)
    assert table.file.map(lambda path: path.rsplit("/")[-1]).tolist() == [
        "good.flac", "cut.wav", "odd.wav", "short.wav", "text.wav"
    ]  # fmt: skip
    for word in ("cut short", "44101 Hz", "0.0063 s of audio", "cannot be decoded"):
        assert table.error.str.contains(word).sum() == 1 and word in said.err
    assert table.error.isna().tolist() == [True, False, False, False, False]
    assert said.out == ""
    assert main(["recognize", str(good), "--model", str(published)]) == 0
    assert capfd.readouterr().out.startswith("file,start,end,emotion,confidence,angry,happy,")
    assert main(["recognize", str(good.parent / "text.wav"), "--model", str(published)]) == 1
    assert "cannot be decoded" in capfd.readouterr().err
    assert main(["recognize", str(tmp_path / "nowhere.wav"), "--model", str(published)]) == 1
    assert "not there" in capfd.readouterr().err
    for wrong in (
        ["recognise", str(good)],
        ["recognize", str(good), "--out", "no/such/folder.csv"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
    assert "expected a file in a folder that is there" in capfd.readouterr().err

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recognize, "recognize", stop)
    assert main(["recognize", str(good), "--model", str(published)]) == 130
    assert capfd.readouterr() == ("", "Stopped; nothing was written.\n")


def test_damage_that_shows_late_costs_that_recording_only(recognizer, tmp_path, sound, monkeypatch):
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / name, sound, SECOND)
    stream = audio.stream

    def damaged(path):
        yield from stream(path)
        if path.endswith("b.wav"):
            raise GmpError(f"{path}: cut short.")

    monkeypatch.setattr(recognize, "stream", damaged)
    table = recognize.recognize(tmp_path, recognizer)
    assert table.file.str[-5:].tolist() == ["a.wav"] * 3 + ["c.wav"] * 3 + ["b.wav"]
    assert table.error.notna().tolist() == [False] * 6 + [True]

    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr(recognize, "stream", broken)
    with pytest.raises(ZeroDivisionError):
        recognize.recognize(tmp_path, recognizer)


def test_a_long_recording_takes_little_more_memory_than_a_short_one(published, tmp_path, sound):
    """Ten minutes of 48 kHz in stereo, 230 MB as floats."""
    long, short = tmp_path / "long.wav", tmp_path / "short.wav"
    with soundfile.SoundFile(long, "w", 48000, 2) as file:
        for _ in range(180):
            file.write(np.stack([sound, sound], axis=1))
    soundfile.write(short, np.stack([sound, sound], axis=1), 48000)
    peaks = []
    for path in (short, long):
        code = (
            "from gmp_utils.__main__ import main; "
            f"main(['recognize', {str(path)!r}, '--model', {str(published)!r}, '--out', '/dev/null']); "
            "print(open('/proc/self/status').read())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        # not ru_maxrss, which a process has from the one that started it
        (peak,) = (line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
        peaks.append(int(peak.split()[1]))
    assert peaks[1] < 2**20  # kB, of which four fifths are libraries
    assert peaks[1] - peaks[0] < 150e3


def test_what_is_published_is_calibrated_and_says_what_it_is_worth(classified, published):
    metrics = json.loads((published.parent / "metrics.json").read_text())
    held_out = pd.read_parquet(
        classified / "fold1" / "06_finetune" / "no-gmps" / "ams" / "predictions.parquet"
    ).query("part == 'validation'")
    emotions = ["angry", "happy", "neutral", "sad"]
    labels = held_out.true.map(emotions.index).to_numpy()
    expected = temperature(held_out[emotions].to_numpy(), labels)
    assert metrics["temperature"] == pytest.approx(expected, rel=1e-3)
    assert set(metrics) == {
        "temperature", "emotion_uar", "ece_uncalibrated", "calibration_error",
        "speech_recall", "noisy_speech_recall", "noise_specificity", "gender_uar", "arousal_ccc",
    }  # fmt: skip
    assert sorted(path.name for path in published.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    card = (published / "README.md").read_text()
    config = (published / "config.json").read_text()
    assert str(classified.parent) not in card + config and str(ROOT) not in card + config
    for text in (
        "license: other", "Corpus noise: 24 training utterances of 2 speakers, fold 1, seed 0",
        "2 test speakers", "too few speakers for an interval", "AI Act", "validation speakers are disjoint",
        f"| temperature | {metrics['temperature']:.3f} |",
    ):  # fmt: skip
        assert text in " ".join(card.split())


def test_readouts_are_scikit_learns():
    rng = np.random.default_rng(0)
    means = rng.normal(3, 2, (50, 4))
    positive = means[:, 0] + rng.normal(size=50) > 3
    layer = torch.nn.Linear(4, 1)
    publish.fit_binary(layer, means, positive)
    model = LogisticRegression(C=0.1, class_weight="balanced").fit(scale(means), positive)
    found = layer(torch.from_numpy(means).float()).sigmoid().detach().numpy()[:, 0]
    assert found == pytest.approx(model.predict_proba(scale(means))[:, 1], abs=1e-4)


@pytest.mark.parametrize("kind", publish.NOISES)
def test_noises_are_sound(kind):
    waveform = publish.noise(kind, 8001, np.random.default_rng(0))
    assert waveform.shape == (8001,) and waveform.dtype == np.float32
    assert np.abs(waveform).max() == pytest.approx(0.0 if kind == "silence" else 0.5)


def test_transformers_load_it(published, recognizer, sound):
    model = AutoModelForAudioClassification.from_pretrained(published).eval()
    extractor = AutoFeatureExtractor.from_pretrained(published)
    waveforms = [sound[:SECOND], sound[: 3 * SECOND]]
    batch = extractor(waveforms, sampling_rate=SECOND, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**batch).logits.softmax(dim=1).numpy()
    expected = [probabilities(recognizer, waveform) for waveform in waveforms]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    classify = pipeline("audio-classification", model=str(published), device="cpu")
    scores = {own["label"]: own["score"] for own in classify(waveforms[1])}
    assert [scores[name] for name in model.config.label2id] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize(
    "imports",
    [
        "import gmp_utils; from transformers import pipeline",
        "from transformers import pipeline; import gmp_utils",
        "import gmp_utils.training.trainer; from transformers import pipeline",
    ],
)
def test_an_import_registers_it(published, imports):
    code = f"{imports}; print(type(pipeline('audio-classification', {str(published)!r}).model))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "gmp_utils.models.recognizer.Recognizer" in done.stdout, done.stderr


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "gmp_utils").rglob("[!_]*.py")
)
assert len(MODULES) > 50
IMPORT_EACH = """
import os, sys, traceback
{before}
failed = []
for code in {codes}:
    if not (child := os.fork()):
        try:
            exec(code)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(code)
sys.exit("; ".join(failed) or 0)
"""


@pytest.mark.parametrize(
    ("before", "codes"),
    [
        (  # the engine is papermill's to import
            "import faiss, papermill, plotly.express, torchaudio, umap; from transformers import HubertModel",
            [f"import {name}" for name in MODULES if not name.endswith("papermill_engine")],
        ),
        (
            "import sklearn.metrics, torchaudio",
            [
                "import gmp_utils; from transformers import " + name
                for name in ("BertModel", "HubertModel", "Trainer", "Wav2Vec2Model", "pipeline")
            ],
        ),
    ],
    ids=["ours", "transformers'"],
)
def test_modules_can_be_imported_in_any_order(before, codes):
    """Each first of all, in a process of its own, begun where other libraries are imported already."""
    script = IMPORT_EACH.format(before=before, codes=codes)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_torch_is_imported_when_it_is_needed():
    code = "import sys, gmp_utils.runs.experiments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_run_stands_for_its_best_network(
    classified, published, tmp_path, tiny_encoder, monkeypatch
):
    found = publish.best(str(classified))
    scores = {
        loss: json.loads(
            (classified / f"fold1/06_finetune/no-gmps/{loss}/metrics.json").read_text()
        )
        for loss in ("ams", "ce")
    }
    assert scores[found.name]["emotion_uar"] == max(own["emotion_uar"] for own in scores.values())
    stage = classified / "fold1" / "09_recognize" / "no-gmps" / "ams"
    assert publish.open_recognizer(str(stage)).config.temperature > 0
    monkeypatch.chdir(classified.parent)
    opened = publish.open_recognizer(classified.name)
    assert (classified / "fold1" / "09_recognize" / "no-gmps" / found.name / "model").is_dir()
    assert opened.config.label2id == {"angry": 0, "happy": 1, "neutral": 2, "sad": 3}
    for model, message in (
        ("runs/none", "no such folder; train one"),
        (str(tmp_path / "none"), "no such folder; train one"),
        (str(tiny_encoder), "a hubert model, expected one that notebook 09 published"),
    ):
        with pytest.raises(GmpError, match=message):
            publish.open_recognizer(model)


MIXED = replace(SMALL, head="linear", mix_layers=True, train_encoder=False)


@pytest.mark.parametrize(
    ("kind", "norm", "network", "corpus"),
    [
        ("hubert", "group", MIXED, {}),
        ("hubert", "group", replace(SMALL, head="relu", head_layer=2), {"genders": False}),
        ("hubert", "layer", SMALL, {"validation": "none", "selection": "last"}),
        ("wav2vec2", "layer", SMALL, {"ratings": ["valence", "arousal"]}),
        ("wavlm", "group", MIXED, {"test_genders": False}),
    ],
    ids=["layers mixed", "no genders", "none to validate on", "wav2vec2", "wavlm"],
)
def test_every_network_can_be_used(kind, norm, network, corpus, tmp_path, sound):
    """What is heard through the published folder is what the classifier itself says, calibrated."""
    torch.manual_seed(0)
    config = CONFIGS[kind](**TINY, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    run, encoder = str(write_noise_corpus(tmp_path / "run", **corpus)), str(tmp_path / "encoder")
    finetune.finetune(run, 1, encoder, "ce", ONCE, False, network=network)
    recognizer = publish.open_recognizer(run)
    (row,) = recognize.recognize(sound[: 3 * SECOND], recognizer, SECOND).to_dict("records")
    classifier = EmotionClassifier.load(f"{run}/fold1/06_finetune/no-gmps/ce/model").eval()
    samples = torch.from_numpy(audio.normalize(sound[: 3 * SECOND]))[None]
    with torch.inference_mode():
        feature = classifier.embed(samples, torch.tensor([3 * SECOND]))
        logits = classifier.logits(feature)[0] / recognizer.config.temperature
    expected = row["speech"] * logits.softmax(dim=0) + (1 - row["speech"]) / 4
    assert [row[name] for name in classifier.config.emotions] == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    assert ("female" in row) == corpus.get("genders", True)
    assert recognizer.config.ratings == sorted(corpus.get("ratings", []), reverse=True)
    card = Path(run, "fold1/09_recognize/no-gmps/ce/model/README.md").read_text()
    if corpus.get("validation") == "none":
        assert recognizer.config.temperature == 1 and "calibrated on NOTHING" in " ".join(
            card.split()
        )
    publish.export_onnx(run, str(tmp_path / "model.onnx"))


def test_networks_need_not_be_alike_to_be_used(tmp_path, tiny_encoder):
    """Results of others, which were trained for longer, are not pooled with its own."""
    run = write_noise_corpus(tmp_path / "run")
    for fold, schedule in ((1, ONCE), (2, ONCE), (3, QUICK)):
        finetune.finetune(str(run), fold, str(tiny_encoder), "ce", schedule, False, network=SMALL)
    made = publish.publish(run / "fold1" / "06_finetune" / "no-gmps" / "ce")
    card = " ".join((made / "model" / "README.md").read_text().split())
    assert "pooled over 2 of 3 folds, a network for each; 4 test speakers" in card


def test_onnx_is_torch(published, recognizer, tmp_path, sound):
    """Of other sizes than it was traced with; 1e-4 is what the export itself asks."""
    path = str(tmp_path / "model.onnx")
    publish.export_onnx(str(published), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    extractor = AutoFeatureExtractor.from_pretrained(published)
    for lengths in ([3], [1, 2.5, 4, 0.04]):
        waveforms = [sound[: int(own * SECOND)] for own in lengths]
        batch = extractor(waveforms, sampling_rate=SECOND, padding=True, return_tensors="np")
        inputs = {name: own.astype(INPUTS[name]) for name, own in batch.items()}
        outputs = [own.name for own in session.get_outputs()]
        found = dict(zip(outputs, session.run(None, inputs)))
        assert list(found) == ["logits", "speech", "female", "ratings"]
        expected = [probabilities(recognizer, waveform) for waveform in waveforms]
        assert np.exp(found["logits"]) == pytest.approx(np.array(expected), abs=1e-4)


def test_onnx_is_compared_in_float32(published, tmp_path, monkeypatch):
    """Also where encoders run in bfloat16, which would be off by more than 1e-4."""
    monkeypatch.setattr(hardware, "bfloat16", own_bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert hardware.bfloat16()
    publish.export_onnx(str(published), str(tmp_path / "model.onnx"))


def test_onnx_that_differs_is_refused(published, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "TOLERANCE", -1.0)
    with pytest.raises(GmpError, match="differs from torch by"):
        publish.export_onnx(str(published), str(tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(GmpError, match="its folder does not exist"):
        publish.export_onnx(str(published), str(tmp_path / "none" / "model.onnx"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("speech.weight"), "damaged, its weights speech.weight"),
        (lambda weights: weights["female.bias"].fill_(np.nan), "damaged, its weights female.bias"),
        (lambda weights: weights.clear(), "damaged, its weights"),
        (lambda weights: weights.update({"speech.bias": torch.zeros(2)}), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_damaged_models_are_refused(published, tmp_path, damage, message):
    folder = shutil.copytree(published, tmp_path / "model")
    file = folder / "model.safetensors"
    if damage:
        weights = load_file(file)
        damage(weights)
        save_file(weights, file, {"format": "pt"})
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(GmpError, match=message):
        publish.open_recognizer(str(folder))


def test_where_no_speech_is_heard_all_goes_to_chance(recognizer, monkeypatch, sound):
    """By the readout of speech alone; ratings are kept within those of training."""
    bias = recognizer.speech.bias.clone()
    monkeypatch.setattr(recognizer.speech.bias, "data", bias - 1e4)
    lowest, mean, highest = recognizer.config.rating_ranges[0]
    (row,) = recognize.recognize(sound[:SECOND], recognizer, SECOND).to_dict("records")
    names = ["speech", "confidence", "female", "arousal"]
    assert [row[name] for name in names] == pytest.approx([0, 0.25, 0.5, mean])
    monkeypatch.setattr(recognizer.speech.bias, "data", bias + 1e4)
    for off, expected in ((-100, lowest), (100, highest)):
        monkeypatch.setattr(recognizer.ratings.bias, "data", torch.tensor([float(off)]))
        (row,) = recognize.recognize(sound[:SECOND], recognizer, SECOND).to_dict("records")
        assert row["speech"] == 1 and row["arousal"] == pytest.approx(expected)


def test_names_that_are_not_utf_8(recognizer, tmp_path, sound):
    for name in (b"\xff.wav", b"\xfe.wav"):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        soundfile.write(os.fsencode(path), sound[:SECOND], SECOND, format="WAV")
    (tmp_path / os.fsdecode(b"\xfd.wav")).write_text("no sound")
    table = recognize.recognize(tmp_path, recognizer)
    assert table.file.str.rsplit("/").str[-1].tolist() == [r"\xfe.wav", r"\xff.wav", r"\xfd.wav"]
    assert table.error.notna().tolist() == [False, False, True]
