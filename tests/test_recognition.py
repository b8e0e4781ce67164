"""Emotions over time in recordings, and published models in transformers and ONNX."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch
from conftest import ONCE, QUICK, ROOT, SMALL, classifier, python, save_encoder, write_noise_corpus
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from gmp_utils import GmpError
from gmp_utils.__main__ import main
from gmp_utils.data import audio
from gmp_utils.data.corpora import espeak
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.metrics import temperature
from gmp_utils.figures import timeline
from gmp_utils.figures.style import COLORS
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.recognizer import load_recognizer
from gmp_utils.runs import hardware
from gmp_utils.stages import publish, recognize

EMOTIONS = ["angry", "happy", "neutral", "sad"]
INPUTS = {"input_values": np.float32, "attention_mask": np.int64}
SECOND = 16000
hardware_bfloat16 = hardware.bfloat16  # before conftest's float32


@pytest.fixture(scope="module")
def classified(tmp_path_factory, tiny_encoder):
    """A run of noise with a classifier of each loss, and its ratings."""
    run = write_noise_corpus(tmp_path_factory.mktemp("classified") / "run", ratings=["arousal"])
    for loss in ("ce", "ams"):
        classifier(run, tiny_encoder, loss)
    return run


@pytest.fixture(scope="module")
def published(classified):
    """The folder of the run's published AM-Softmax classifier."""
    return publish.publish(classified / "fold1" / "06_finetune" / "encoder" / "ams") / "model"


@pytest.fixture(scope="module")
def recognizer(published):
    return load_recognizer(published)


@pytest.fixture(scope="module")
def speech():
    """Ten seconds of a synthetic voice without pauses."""
    text = "they came back in because of you so we waited and she called my name as you told me "
    samples, _ = espeak.speak(text * 3, "en-us+m3", 170, 50, 50)
    return audio.from_array(samples, espeak.SAMPLE_RATE)[: 10 * SECOND]


def probabilities(recognizer, waveform):
    """Probabilities of a single waveform, by the parts of the network."""
    network, samples = recognizer.network, torch.from_numpy(audio.normalize(waveform))[None]
    with torch.inference_mode():
        logits = network.logits(network.embed(samples, torch.tensor([len(waveform)])))
    return softmax(logits.numpy()[0] / recognizer.config.temperature)


def test_windows_and_their_shares_of_speech_by_hand():
    for n_samples, starts, edges in (
        (100, [0], [0, 100]),
        (40, [0], [0, 40]),
        (200, [0, 50, 100], [0, 75, 125, 200]),
        (230, [0, 43, 87, 130], [0, 71, 115, 158, 230]),  # four windows, 130 / 3 apart
    ):
        windows, parts = recognize.window_grid(7, 7 + n_samples, 100, 50)
        assert (windows[:, 0] - 7).tolist() == starts
        assert np.diff(windows).ravel().tolist() == [min(n_samples, 100)] * len(starts)
        assert [*(parts[:, 0] - 7), parts[-1, 1] - 7] == edges
        assert parts[1:, 0].tolist() == parts[:-1, 1].tolist()
    segments, parts = np.array([[10, 30], [35, 60]]), np.array([[0, 20], [20, 40], [40, 100]])
    shares = recognize.speech_shares(segments, parts)
    assert shares == pytest.approx([10 / 20, 15 / 20, 20 / 60])
    assert recognize.speech_shares(np.zeros((0, 2), int), parts[:1]).tolist() == [0]


def test_recordings_are_divided_at_pauses(recognizer, speech):
    """At pauses of half a second, with a margin of 0.2 s. Detected ends are off by up to 0.3 s."""
    half, margin = SECOND // 2, SECOND // 5
    segments = np.array([[100, 200], [199 + half, 300 + half], [300 + 2 * half, 10 * half]])
    expected = [[0, 300 + half + margin], [300 + 2 * half - margin, 10 * half]]
    assert recognize.split_at_pauses(segments, 10 * half).tolist() == expected
    silence = np.zeros(SECOND, np.float32)
    waveform = np.concatenate([speech[: 2 * SECOND], silence, speech[2 * SECOND : 7 * SECOND]])
    settings = {"window": 3.0, "hop": 3.0, "by_utterance": True}
    table = recognize.recognize(waveform, recognizer, SECOND, **settings)
    assert table.start.to_numpy() == pytest.approx([0, 2.8, 5.4], abs=0.3)
    assert table.end.to_numpy() == pytest.approx([2.2, 5.4, 8], abs=0.3)
    assert table.speech.gt(0.8).all() and table.emotion.notna().all()
    start, end = (int(table[name][0] * SECOND) for name in ("start", "end"))
    scores, utterance = table.loc[0, EMOTIONS].to_numpy(float), waveform[start:end]
    utterance = np.trim_zeros(utterance, "b")
    assert scores == pytest.approx(probabilities(recognizer, utterance), abs=1e-5)
    (row,) = recognize.recognize(silence, recognizer, SECOND, **settings).to_dict("records")
    assert (row["start"], row["end"], row["speech"], row["emotion"]) == (0, 1, 0, None)


def test_speech_is_detected_and_noise_is_not(speech):
    """Detection is deterministic, whatever was processed before, and does not change torch's threads."""
    rng, seconds = np.random.default_rng(0), np.arange(6 * SECOND) / SECOND
    threads = torch.get_num_threads()
    sounds = {
        "silence": np.zeros(6 * SECOND),
        "white": rng.normal(0, 0.1, 6 * SECOND),
        "brown": rng.normal(0, 0.005, 6 * SECOND).cumsum().clip(-1, 1),
        "hum": 0.3 * sum(np.sin(2 * np.pi * 50 * n * seconds) / n for n in range(1, 7)),
    }
    padded = np.concatenate([np.zeros(SECOND), speech, np.zeros(SECOND)]).astype(np.float32)
    first = recognize.detect_speech(padded)
    for sound in sounds.values():
        assert len(recognize.detect_speech(sound.astype(np.float32))) == 0
    assert recognize.detect_speech(padded).tolist() == first.tolist()
    assert first[0, 0] / SECOND == pytest.approx(1, abs=0.3)
    assert first[-1, 1] / SECOND == pytest.approx(11, abs=0.3)
    assert np.diff(first).sum() > 0.8 * len(speech)
    assert torch.get_num_threads() == threads


def test_windows_do_not_depend_on_their_batch(recognizer, tmp_path, speech, monkeypatch):
    lengths = [10, 2, 7]
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, seconds in zip(paths, lengths):
        soundfile.write(path, speech[: seconds * SECOND], SECOND, subtype="FLOAT")
    monkeypatch.setattr(recognize, "BATCHES_PER_SORT", 0.2)
    table = recognize.recognize(paths, recognizer, window=4.0, hop=2.0)
    assert table.file.tolist() == [str(paths[0])] * 4 + [str(paths[1])] + [str(paths[2])] * 3
    assert table.start.tolist() == [0, 3, 5, 7, 0, 0, 2.75, 4.25]
    assert table.end.tolist() == [3, 5, 7, 10, 2, 2.75, 4.25, 7]
    starts = [0, 2, 4, 6, 0, 0, 1.5, 3]
    for start, (_, row) in zip(starts, table.iterrows()):
        seconds = 2 if row.file == str(paths[1]) else 4
        window = speech[int(start * SECOND) : int((start + seconds) * SECOND)]
        scores = row[EMOTIONS].to_numpy(float)
        assert scores == pytest.approx(probabilities(recognizer, window), abs=1e-5)
        assert (row.emotion, row.confidence) == (EMOTIONS[scores.argmax()], scores.max())
        assert 0 <= row.female <= 1 and 0.8 < row.speech <= 1 and 1 < row.arousal < 5
    assert table.error.isna().all()


def test_without_speech_there_is_no_emotion(recognizer, speech):
    waveform = np.concatenate([speech[: 6 * SECOND], np.zeros(6 * SECOND, np.float32)])
    table = recognize.recognize(waveform, recognizer, SECOND, window=3.0, hop=3.0)
    assert table.speech.tolist() == pytest.approx([1, 1, 0, 0], abs=0.15)
    assert table.emotion.notna().tolist() == [True, True, False, False]
    assert table.emotion[3] is None
    assert table.loc[2:, ["confidence", *EMOTIONS, "female", "arousal"]].isna().all(axis=None)
    silence = recognize.recognize(np.zeros(7 * SECOND), recognizer, SECOND)
    assert silence.columns.tolist() == table.columns.tolist()
    assert silence.confidence.isna().all() and silence.speech.tolist() == [0, 0]


def test_windows_are_trimmed_to_their_speech_by_hand():
    numbered = np.arange(1, 50_001)
    for silence, segments, first, last in (
        (0, [[10_000, 20_000], [30_000, 40_000]], 10_001 - 3200, 40_000 + 3200),
        (0, [[3000, 48_000]], 1, 50_000),  # pauses below the margin of 0.2 s
        (0, [[-1000, 2000]], 1, 2000 + 3200),  # that starts before the window
        (0, [[30_000, 60_000]], 30_001 - 3200, 50_000),
        (9000, [[10_000, 41_000]], 9001, 41_000),  # digital silence
        (2000, [[3000, 48_000]], 1, 50_000),
    ):
        waveform = numbered * ((numbered > silence) & (numbered <= 50_000 - silence))
        trimmed = recognize.trim(waveform, np.array(segments))
        assert len(trimmed) == last - first + 1
        np.testing.assert_array_equal(trimmed, waveform[first - 1 : last])


def test_silence_around_an_utterance_is_left_out(recognizer, speech):
    """Zeros have no effect. Of a noise floor of -60 dB, 0.2 s are left, with an error of up to 0.15 s."""
    utterance, silence = speech[: 2 * SECOND], np.zeros(SECOND, np.float32)
    floor = np.random.default_rng(0).normal(0, 1e-3, SECOND).astype(np.float32)
    expected = probabilities(recognizer, utterance)
    for before, after in ((1, 0), (0, 1), (1, 1)):
        padded = np.concatenate([silence] * before + [utterance] + [silence] * after)
        (row,) = recognize.recognize(padded, recognizer, SECOND).to_dict("records")
        assert [row[name] for name in EMOTIONS] == pytest.approx(expected, abs=1e-5)
        assert row["end"] == len(padded) / SECOND
        padded = np.concatenate([floor] * before + [utterance] + [floor] * after)
        rest = len(recognize.trim(padded, recognize.detect_speech(padded))) - len(utterance)
        assert 0 < rest / SECOND < 0.35 * (before + after)


def test_inputs_of_other_libraries_are_accepted(speech, tmp_path):
    """Gradio's tuples, Hugging Face's dicts, tensors, and files in memory are the same recording."""
    samples, file, path = audio.to_int16(speech[:SECOND]), io.BytesIO(), tmp_path / "ä b.wav"
    soundfile.write(file, samples, SECOND, format="WAV")  # and is at its end
    path.write_bytes(file.getvalue())
    expected = audio.from_array(samples, SECOND)
    stereo = np.stack([samples, samples], axis=1)
    tensor = torch.from_numpy(expected[None].copy()).requires_grad_()
    for recording in (
        (SECOND, samples), (SECOND, stereo), (SECOND, stereo.T), {"bytes": file.getvalue()},
        {"bytes": None, "path": str(path)},
        {"array": samples, "sampling_rate": SECOND}, {"raw": samples, "sampling_rate": SECOND},
        file, file.getvalue(), path, path.open("rb"),
    ):  # fmt: skip
        np.testing.assert_allclose(audio.load(recording), expected, atol=1e-6)
    np.testing.assert_allclose(audio.load(tensor, SECOND), expected, atol=1e-6)
    rounded = audio.load(tensor.bfloat16(), SECOND)
    np.testing.assert_allclose(rounded, expected, atol=2**-8)  # it has 8 bits
    mp3 = io.BytesIO()
    soundfile.write(mp3, samples, SECOND, format="MP3")  # which FFmpeg decodes
    assert len(audio.load(mp3)) == pytest.approx(SECOND, abs=2000)
    several = recognize._sources([path, file, (SECOND, samples)], None)
    assert list(several) == [str(path), "1", "2"]
    assert all(np.allclose(load(), expected, atol=1e-6) for load in several.values())


@pytest.mark.parametrize(
    ("recording", "rate", "message"),
    [
        (None, None, "found NoneType, expected a path"),
        ([None], None, "found NoneType, expected a path"),
        ((np.zeros(SECOND), SECOND), None, "found int, expected a path"),  # soundfile.read's
        ([0.5, 0.5], SECOND, "found float, expected a path"),
        ("", None, "found '', expected a file"),
        ("https://host/a.wav", None, "found 'https://host/a.wav', expected a file"),
        (np.zeros(0), SECOND, r"shape \(0,\), expected floats"),
        (np.full(SECOND, 300), SECOND, "an array of int64"),
        (np.zeros(SECOND), 16, "sample_rate: found 16, expected a number of Hz"),
        (np.zeros(SECOND), None, "sample_rate"),
        ("a.wav", SECOND, "sample_rate"),
        ({"array": np.zeros(SECOND)}, None, "sample_rate: found None"),
        ({"path": "a.wav"}, None, "a.wav: not there"),
        ({"sampling_rate": SECOND}, None, "an array of object"),
        (b"no sound", None, "audio: cannot be decoded"),
        (io.StringIO("no sound"), None, "expected mode 'rb'"),
    ],
)
def test_other_inputs_raise_one_error(recognizer, recording, rate, message):
    with pytest.raises(GmpError, match=message):
        recognize.recognize(recording, recognizer, rate)


def test_impossible_windows_are_rejected(recognizer, speech):
    for window, hop in ((2.0, 3.0), (0.02, 0.01), (np.inf, 3.0)):
        with pytest.raises(GmpError, match=f"hop {hop} and window {window}: expected"):
            recognize.recognize(speech, recognizer, SECOND, window=window, hop=hop)


def test_unreadable_recordings_are_reported_and_the_rest_is_recognized(
    published, tmp_path, speech, capfd
):
    good, out = tmp_path / "in" / "good.flac", tmp_path / "out.csv"
    good.parent.mkdir()
    soundfile.write(good, speech, 48000)
    (good.parent / "text.wav").write_text("no sound")
    soundfile.write(good.parent / "short.wav", speech[:100], SECOND)
    (good.parent / "notes.txt").write_text("not a recording")
    command = ["recognize", "--model", str(published)]
    assert main([*command, str(good.parent), "--out", str(out)]) == 1
    printed, table = capfd.readouterr(), pd.read_csv(out)
    assert [Path(path).name for path in table.file] == ["good.flac", "short.wav", "text.wav"]
    for words in ("0.0063 s of audio", "cannot be decoded"):
        assert table.error.str.contains(words).sum() == 1 and words in printed.err
    assert table.error.isna().tolist() == [True, False, False] and printed.out == ""
    assert main([*command, str(good)]) == 0
    assert capfd.readouterr().out.startswith("file,start,end,emotion,confidence,angry,happy,")
    assert main([*command, str(tmp_path / "nowhere.wav")]) == 1
    assert "not there" in capfd.readouterr().err


@pytest.mark.slow
def test_an_hour_takes_less_than_a_gigabyte(published, tmp_path, speech):
    """48 kHz stereo, 1.4 GB as floats, besides what the libraries take."""
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 48000, 2) as file:
        for _ in range(360):
            file.write(np.repeat(speech[:, None], 3, axis=0).repeat(2, axis=1))
    code = (
        "import gmp_utils.stages.recognize; from gmp_utils.__main__ import main; "
        "status = lambda: print(open('/proc/self/status').read()); status(); "
        f"main(['recognize', {str(path)!r}, '--model', {str(published)!r}, '--out', '/dev/null']); "
        "status()"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    before, peak = (int(line.split()[1]) for line in lines)  # kB
    assert peak - before < 2**20


def test_a_published_model_is_calibrated_and_has_a_card(classified, published):
    metrics = json.loads((published.parent / "metrics.json").read_text())
    predictions = pd.read_parquet(
        classified / "fold1" / "06_finetune" / "encoder" / "ams" / "predictions.parquet"
    ).query("part == 'validation'")
    labels = predictions.true.map(EMOTIONS.index).to_numpy()
    expected = temperature(predictions[EMOTIONS].to_numpy(), labels, predictions.speaker)
    assert metrics["temperature"] == pytest.approx(expected, rel=1e-3)
    assert set(metrics) == {
        "temperature", "emotion_uar", "ece_uncalibrated", "ece", "gender_uar", "arousal_ccc",
    }  # fmt: skip
    assert sorted(path.name for path in published.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
        "training_recordings.txt",
    ]  # fmt: skip
    with pytest.raises(GmpError, match="on 24 test recordings of fold 3"):
        open_corpus(str(classified)).check_encoder(str(published), 3)
    protocol = open_corpus(str(classified)).protocol.describe()
    card = (published / "README.md").read_text()
    config = (published / "config.json").read_text()
    assert str(classified.parent) not in card + config and str(ROOT) not in card + config
    for text in (
        "license: other", "24 training utterances of 2 speakers, fold 1, seed 0",
        "2 test speakers", "too few speakers for an interval", "AI Act", " ".join(protocol.split()),
        "calibrated on 24 validation utterances", f"| temperature | {metrics['temperature']:.3f} |",
    ):  # fmt: skip
        assert text in " ".join(card.split())
    assert "Altered recordings" not in card  # without the robustness stage
    assert "{" not in card.split("---")[2].replace('{"raw"', "")


def test_heads_are_scikit_learns():
    rng = np.random.default_rng(0)
    means = rng.normal(3, 2, (50, 4))
    female = means[:, 0] + rng.normal(size=50) > 3
    layer = torch.nn.Linear(4, 1)
    publish.fit_head(layer, publish.GENDER, means, female)
    model = LogisticRegression(C=0.1, class_weight="balanced").fit(scale(means), female)
    output = layer(torch.from_numpy(means).float()).sigmoid().detach().numpy()[:, 0]
    assert output == pytest.approx(model.predict_proba(scale(means))[:, 1], abs=1e-4)


def test_transformers_load_it(published, recognizer, speech):
    model = AutoModelForAudioClassification.from_pretrained(published).eval()
    extractor = AutoFeatureExtractor.from_pretrained(published)
    waveforms = [speech[:SECOND], speech[: 3 * SECOND]]
    batch = extractor(waveforms, sampling_rate=SECOND, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**batch).logits.softmax(dim=1).numpy()
    expected = [probabilities(recognizer, waveform) for waveform in waveforms]
    assert scores == pytest.approx(np.array(expected), abs=1e-5)
    classify = pipeline("audio-classification", model=str(published), device="cpu")
    scores = {row["label"]: row["score"] for row in classify(waveforms[1])}
    assert [scores[name] for name in EMOTIONS] == pytest.approx(expected[1], abs=1e-5)


def test_hidden_states_and_loss_are_returned_as_by_transformers(recognizer):
    """Layers are those of the encoder's forward, for an utterance without padding."""
    torch.manual_seed(0)
    waveforms, labels = torch.randn(2, SECOND), torch.tensor([3, 1])
    with torch.inference_mode():
        output = recognizer(waveforms, labels=labels, output_hidden_states=True)
        encoder = recognizer.network.base_model
        expected = encoder(waveforms, output_hidden_states=True).hidden_states
        as_tuple = recognizer(waveforms, labels=labels, return_dict=False)
        plain = recognizer(waveforms)
    assert len(output.hidden_states) == len(expected) == 5
    for state, reference in zip(output.hidden_states, expected):
        torch.testing.assert_close(state, reference, atol=1e-5, rtol=1e-5)
    by_hand = -np.log(softmax(output.logits.numpy(), axis=1)[[0, 1], [3, 1]]).mean()
    assert output.loss.item() == pytest.approx(by_hand, abs=1e-5)
    assert list(output) == ["loss", "logits", "hidden_states", "female", "ratings"]
    assert list(plain) == ["logits", "female", "ratings"]
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], plain.logits)


def test_trainer_continues_to_train_it(published, tmp_path):
    """One step of SGD on two accumulated batches equals the gradient of the mean loss over both."""
    torch.manual_seed(0)
    waveforms, labels = torch.randn(4, SECOND), torch.tensor([0, 1, 2, 3])
    trained, reference = (
        AutoModelForAudioClassification.from_pretrained(published) for _ in range(2)
    )
    data = [{"input_values": x, "labels": y} for x, y in zip(waveforms, labels)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0,
        use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(trained, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    reference.train()(waveforms, labels=labels).loss.backward()
    for name in ("classifier.weight", "hubert.encoder.layers.0.final_layer_norm.weight"):
        weight = reference.network.get_parameter(name)
        expected = weight - 0.1 * weight.grad
        assert not torch.allclose(weight, expected, atol=1e-5)
        torch.testing.assert_close(
            trained.network.get_parameter(name), expected, atol=1e-6, rtol=1e-5
        )
    assert trainer.predict(data).predictions.shape == (4, 4)  # logits only


def test_a_run_stands_for_its_best_network(
    classified, published, tmp_path, tiny_encoder, monkeypatch, capsys
):
    best = publish.best_network(str(classified))
    metrics = [(best.with_name(loss) / "metrics.json").read_text() for loss in ("ams", "ce")]
    scores = [json.loads(text)["emotion_uar"] for text in metrics]
    assert scores[("ams", "ce").index(best.name)] == max(scores)
    for folder in (published.parent, published):
        assert publish.find_or_publish(str(folder)) == str(published)
    assert publish.find_or_publish("owner/model") == "owner/model"
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(classified.parent)
    model = classified / "fold1" / "09_recognize" / "encoder" / best.name / "model"
    for name in (classified.name, str(best)):
        assert publish.find_or_publish(name) == str(model)
        announced = re.findall(
            "Publishing .* once: it classifies the 72 utt", capsys.readouterr().out
        )
        assert len(announced) == (best.name == "ce" and name == classified.name)
    assert load_recognizer(model).config.label2id == {name: n for n, name in enumerate(EMOTIONS)}
    with pytest.raises(GmpError, match="no such folder; train one"):
        publish.find_or_publish("runs/none")
    with pytest.raises(GmpError, match="a hubert model, expected gmp-tl"):
        load_recognizer(tiny_encoder)


MIXED = replace(SMALL, head="linear", mix_layers=True, train_encoder=False)
HALF_PRECISION = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # a few roundings of 2^-11 and 2^-8
STATISTICS = replace(SMALL, head="mean", head_layer=2, pooling="mean+std")
ATTENTIVE = replace(SMALL, pooling="attentive", dropout=0.5)


@pytest.mark.parametrize(
    ("kind", "norm", "network", "corpus"),
    [
        ("hubert", "group", MIXED, {}),
        ("hubert", "group", STATISTICS, {"genders": False}),
        ("hubert", "layer", ATTENTIVE, {"validation": "none", "selection": "last"}),
        ("wav2vec2", "layer", SMALL, {"ratings": ["valence", "arousal"]}),
        ("wavlm", "group", MIXED, {"test_genders": False}),
    ],
    ids=["layers mixed", "no genders", "no validation", "wav2vec2", "wavlm"],
)
def test_every_network_can_be_published(kind, norm, network, corpus, tmp_path, speech):
    """The published model's scores are the classifier's, calibrated."""
    run = str(write_noise_corpus(tmp_path / "run", **corpus))
    classifier(run, save_encoder(tmp_path / "encoder", kind, norm), network=network)
    recognizer = load_recognizer(publish.find_or_publish(run))
    (row,) = recognize.recognize(speech[: 3 * SECOND], recognizer, SECOND).to_dict("records")
    network = EmotionClassifier.load(f"{run}/fold1/06_finetune/encoder/ce/model").eval()
    samples = torch.from_numpy(audio.normalize(speech[: 3 * SECOND]))[None]
    with torch.inference_mode():
        feature = network.embed(samples, torch.tensor([3 * SECOND]))
        logits = network.logits(feature)[0] / recognizer.config.temperature
    expected = logits.softmax(dim=0).tolist()
    assert [row[name] for name in EMOTIONS] == pytest.approx(expected, abs=1e-5)
    assert ("female" in row) == corpus.get("genders", True)
    assert recognizer.config.ratings == sorted(corpus.get("ratings", []), reverse=True)
    folder = Path(run, "fold1/09_recognize/encoder/ce/model")
    for dtype, tolerance in HALF_PRECISION.items():
        half = pipeline("audio-classification", str(folder), dtype=dtype, device="cpu", top_k=None)
        assert half.model.dtype == dtype
        scores = {answer["label"]: answer["score"] for answer in half(speech[: 3 * SECOND])}
        assert [scores[name] for name in EMOTIONS] == pytest.approx(expected, abs=tolerance)
    card = (folder / "README.md").read_text()
    if corpus.get("validation") == "none":
        assert recognizer.config.temperature == 1
        assert "not calibrated (a temperature did not help" in " ".join(card.split())
    publish.export_onnx(run, str(tmp_path / "model.onnx"))


def test_networks_with_other_settings_are_not_pooled(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run")
    for fold, schedule in ((1, ONCE), (2, ONCE), (3, QUICK)):
        classifier(run, tiny_encoder, schedule=schedule, fold=fold)
    stage = publish.publish(run / "fold1" / "06_finetune" / "encoder" / "ce")
    card = " ".join((stage / "model" / "README.md").read_text().split())
    assert "pooled over 2 of 3 folds with one network each, 4 test speakers" in card


def test_onnx_is_torch(published, recognizer, tmp_path, speech, monkeypatch):
    """For other sizes than those that were traced, compared in float32 even if encoders run in bfloat16."""
    path = str(tmp_path / "model.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "bfloat16", hardware_bfloat16)
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
        assert hardware.bfloat16()
        publish.export_onnx(str(published), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "female", "ratings"]
    extractor = AutoFeatureExtractor.from_pretrained(published)
    for lengths in ([3], [1, 2.5, 4, 0.04]):
        waveforms = [speech[: int(seconds * SECOND)] for seconds in lengths]
        batch = extractor(waveforms, sampling_rate=SECOND, padding=True, return_tensors="np")
        inputs = {name: values.astype(INPUTS[name]) for name, values in batch.items()}
        scores = softmax(session.run(["logits"], inputs)[0], axis=1)
        expected = [probabilities(recognizer, waveform) for waveform in waveforms]
        assert scores == pytest.approx(np.array(expected), abs=1e-4)
    monkeypatch.setattr(publish, "TOLERANCE", -1.0)
    Path(path).unlink()
    with pytest.raises(GmpError, match="outputs differ from torch by"):
        publish.export_onnx(str(published), path)
    assert not list(tmp_path.iterdir())


def test_damaged_models_are_rejected(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["gender_head.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(GmpError, match="its weights lack gender_head"):
        load_recognizer(folder)
    os.truncate(file, 1000)
    with pytest.raises(GmpError, match="notebook 09"):
        load_recognizer(folder)


def test_ratings_stay_within_those_of_training(recognizer, monkeypatch, speech):
    lowest, highest = recognizer.config.rating_ranges[0]
    for bias, expected in ((-100.0, lowest), (100.0, highest)):
        monkeypatch.setattr(recognizer.rating_head.bias, "data", torch.tensor([bias]))
        (row,) = recognize.recognize(speech[:SECOND], recognizer, SECOND).to_dict("records")
        assert row["arousal"] == pytest.approx(expected)


def test_the_example_has_an_utterance_of_each_emotion_and_noise(classified, tmp_path):
    stage = classified / "fold1" / "06_finetune" / "encoder" / "ams"
    parts = recognize.example(stage, tmp_path / "example.wav")
    assert [label for label, *_ in parts] == [*EMOTIONS, "noise"]
    samples, rate = soundfile.read(tmp_path / "example.wav")
    assert len(samples) / rate == pytest.approx(parts[-1][2])
    assert parts[-1][2] - parts[-1][1] == 5
    assert parts[1][1] == pytest.approx(parts[0][2] + 1)


def test_true_labels_are_shaded_behind_waveform_and_scores():
    scores = np.array([0.5]), np.array([[0.1, 0.9]]), ["angry", "sad"]
    waveform, labels = np.zeros(SECOND, np.int16), [("sad", 0.2, 0.6)]
    for options, axes in (({"scores": scores}, ["y", "y2"]), ({}, ["y"])):
        shapes = timeline.draw_timeline(waveform, "", labels=labels, **options).layout.shapes
        parts = [shape for shape in shapes if shape.type == "rect"]
        assert [shape.yref.split()[0] for shape in parts] == axes
        found = {(shape.x0, shape.x1, shape.fillcolor) for shape in parts}
        assert found == {(0.2, 0.6, COLORS["sad"])}
