"""Edge cases: NaN and infinity, constant values, tiny corpora, and batches too large for the memory."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import PREDICTOR, multitask, run_series, write_noise_corpus
from transformers import HubertConfig, TrainingArguments

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation import collect, tables
from gmp_utils.models import classifiers, masked_prediction
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import run_folder
from gmp_utils.stages import prepare_data, probe_layers
from gmp_utils.training import features, kmeans, trainer
from gmp_utils.training.batching import Masking, Utterances, collate
from gmp_utils.training.trainer import TrainingConfig


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_and_infinity_are_reported_with_their_batch(where, tmp_path, tiny_encoder, monkeypatch):
    """The longest training utterance causes them, in the first epoch or after it."""
    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    poison = corpus.partition(1)["train"][-1]
    frames = SpeechModel.load(str(tiny_encoder)).frame_lengths(corpus.waveforms.lengths[poison])
    forward, met = classifiers.MultitaskModel.forward, []

    def poisoned(self, inputs, lengths, **labels):
        outputs = forward(self, inputs, lengths, **labels)
        if self.training and frames in lengths:
            met.append(len(lengths))
            # 0 · √x is 0 for x = 0, and its derivative 0 · ∞ is NaN
            bad = float("nan") if where == "loss" else (self.emotion.bias[0] * 0).sqrt() * 0
            if where == "loss" or len(met) > 1:
                outputs["loss"] = outputs["loss"] + bad
        return outputs

    monkeypatch.setattr(classifiers.MultitaskModel, "forward", poisoned)
    kept = "there is no checkpoint yet" if where == "loss" else r"checkpoint-\d+ is good"
    message = rf"the {where} is nan at step \d+, for the utterances .*\b{poison}\b.*; {kept}"
    with pytest.raises(GmpError, match=message) as caught:
        schedule = TrainingConfig(1e-3, epochs=3, batch_seconds=10, batch_size=8)
        multitask(run, tiny_encoder, schedule)
    named = str(caught.value).split("utterances ")[1].split(";")[0].split(", ")
    assert len(named) == met[-1] < 9
    assert not (run / "fold1" / "02_train_multitask").exists()


def test_states_too_large_for_16_bits_are_rejected(tmp_path, tiny_encoder, noise_corpus):
    model = SpeechModel.load(str(tiny_encoder))
    with torch.no_grad():
        model.base_model.encoder.layers[-1].final_layer_norm.weight.fill_(1e6)
    corpus = open_corpus(str(noise_corpus))
    names = list(corpus.manifest.index[:3])
    with pytest.raises(GmpError, match="too large for 16 bits"):
        features.layer_frames(model, corpus.waveforms, names, -1, tmp_path / "frames")


@pytest.mark.parametrize("frames", ["constant", "two values"])
def test_clusters_of_constant_frames_are_finite(frames):
    """There are fewer distinct frames than clusters. Each frame is still assigned to an equal centroid."""
    x = np.zeros((64, 4), np.float32)
    if frames == "two values":
        x[32:] = 1
    on_gpus = kmeans.lloyd(torch.from_numpy(x), [8], 0, 25, "cpu")[0].numpy()
    for centroids in (kmeans.fit_kmeans(x, [8])[0], on_gpus):
        assert np.isfinite(centroids).all()
        np.testing.assert_allclose(centroids[kmeans.assign(x, centroids)], x, atol=0.01)


def corpus_of(folder, rows, seconds, **rules):
    """A prepared corpus of noise with these speakers, genders, emotions and durations."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rows, columns=["speaker", "gender", "emotion"])
    table["path"] = [f"{number}.wav" for number in range(len(table))]
    for name in table.path:
        soundfile.write(folder / name, rng.normal(0, 0.1, int(seconds * 16000)), 16000)
    table.to_csv(folder / "table.csv", index=False)
    run, file = str(folder / "run"), str(folder / "table.csv")
    manifest = prepare_data.read_manifest(run, "table", corpus_dir=file)
    rules = {"fold_by": "auto", "n_folds": 5, "validation": "speakers"} | rules
    prepare_data.prepare(run, manifest, exclude=[], min_seconds=0.02, max_seconds=60, **rules)
    return run


def every_stage(run, encoder, scales=(2,)):
    fold = run_series(run_folder(run), encoder, scales=scales)
    probe_layers.probe_layers(
        run, 1, model="multitask", encoder=str(encoder), scales=list(scales), map_points=20
    )
    predictions = collect.collect(run)
    assert np.isfinite(tables.scores(predictions)[["UAR", "WAR"]]).all(axis=None)
    return fold


PEOPLE = [("a", "female"), ("b", "male"), ("c", "female"), ("d", "male")]
EDGES = {  # speakers, emotions of each, seconds, folds, and part of the error
    "a batch larger than the corpus": (3, ("sad", "angry"), 0.5, 3, None),
    "clips of 60 ms, shorter than a mask": (4, ("sad", "angry") * 3, 0.06, 4, None),
    "one class": (4, ("sad",) * 3, 0.5, 4, "emotion"),
    "one speaker": (1, ("sad", "angry") * 4, 0.5, 5, "speaker"),
    "none to validate": (2, ("sad", "angry") * 3, 0.5, 2, "validation"),
}


@pytest.mark.parametrize("case", EDGES)
def test_corpora_at_the_edge_end_in_a_table_or_an_error(case, tmp_path, tiny_encoder):
    n_speakers, emotions, seconds, n_folds, message = EDGES[case]
    rows = [(*speaker, emotion) for speaker in PEOPLE[:n_speakers] for emotion in emotions]
    with pytest.raises(GmpError, match=message) if message else contextlib.nullcontext():
        every_stage(corpus_of(tmp_path, rows, seconds, n_folds=n_folds), tiny_encoder)


def limited(forward, most):
    """A model's forward on a device with memory for this many utterances."""

    def run(self, inputs, lengths, *others, **labels):
        if len(lengths) > most:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, inputs, lengths, *others, **labels)

    return run


def frames_and_labels(lengths):
    rng, names = np.random.default_rng(0), [f"u{index}" for index in range(len(lengths))]
    frames = rng.normal(size=(sum(lengths), 16)).astype(np.float32)
    labels = Ragged(rng.integers(0, 4, (sum(lengths), 1)), dict(zip(names, lengths)))
    inputs = Ragged(frames, labels.lengths)
    return Utterances(inputs, names, None, labels, Masking(0.5, 5))


def test_large_batches_are_divided_and_their_gradients_accumulated(
    tmp_path, tiny_encoder, monkeypatch, capsys
):
    """Batches of 8 with memory for 3 take four steps of 2. Equal parts give the gradient of the batch."""
    dataset = frames_and_labels([40] * 8)
    config = TrainingConfig(epochs=1, batch_size=8)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    settings = PREDICTOR | {"loss_on": "all"}
    kind = masked_prediction.MaskedPredictionModel
    model = kind.load(str(tiny_encoder), scales=[4], train_encoder=True, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", limited(kind.forward, 3))
        trainer.fit_batches_to_memory(model, dataset, config, arguments)
        assert arguments.gradient_accumulation_steps == 4
        assert "accumulated over 4 smaller batches" in capsys.readouterr().out
        assert Path(arguments.output_dir).name == "accumulated-4"
        assert all(parameter.grad is None for parameter in model.parameters())
        patch.setattr(kind, "forward", limited(kind.forward, 0))
        with pytest.raises(GmpError, match=r"does not suffice for batches of 320.* lower batch_s"):
            trainer.fit_batches_to_memory(model, dataset, config, arguments)
    gradients = []
    dataset = replace(dataset, masking=Masking(1e-9, 5, min_spans=0))  # no masks
    for steps in (1, 4):
        arguments.gradient_accumulation_steps = steps
        batches = list(trainer.batch_sampler(dataset, config, arguments, train=True))
        assert len(batches) == steps
        model.zero_grad()
        torch.manual_seed(0)
        for batch in batches:
            outputs = model.train()(**collate([dataset[index] for index in batch]))
            (outputs["loss"] / steps).backward()
        parameters = model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
    assert len(gradients[0]) > 50
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_accumulated_training_is_recorded(tmp_path, tiny_encoder, monkeypatch):
    """Losses are those of whole batches, except for the weights of their parts."""
    plain, histories = trainer._arguments, []
    for steps in (1, 2):

        def divided(*task, steps=steps):
            arguments = plain(*task)
            arguments.gradient_accumulation_steps = steps
            return arguments

        monkeypatch.setattr(trainer, "_arguments", divided)
        run = str(write_noise_corpus(tmp_path / f"run{steps}"))
        stage = multitask(run, tiny_encoder)
        assert read_json(stage / "metrics.json")["accumulation_steps"] == steps
        histories.append(pd.read_csv(stage / "history.csv"))
    np.testing.assert_allclose(histories[0].loss, histories[1].loss, rtol=0.05)


def test_an_utterance_too_large_for_the_memory_is_named(noise_corpus, tiny_encoder, monkeypatch):
    corpus, model = open_corpus(str(noise_corpus)), SpeechModel.load(str(tiny_encoder))
    longest = max(corpus.manifest.index, key=corpus.waveforms.lengths.get)
    monkeypatch.setattr(SpeechModel, "hidden_states", limited(SpeechModel.hidden_states, 0))
    with pytest.raises(GmpError, match=rf"suffice for {longest}; lower max_seconds"):
        list(features.layer_states_by_length(model, corpus.waveforms, [longest], [-1]))


@pytest.mark.parametrize("train_cnn", [False, True])
def test_the_estimate_of_memory_is_what_training_keeps(train_cnn):
    """Compared with what torch keeps for the backward pass of HuBERT base."""
    torch.manual_seed(0)
    model = SpeechModel(HubertConfig(train_cnn=train_cnn, layerdrop=0.0)).train()
    if not train_cnn:
        model.base_model.feature_extractor._freeze_parameters()
    kept, seconds = {}, 4.0

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and tensor._base is None:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    waveforms, lengths = torch.randn(2, 32000), torch.tensor([32000, 32000])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (states,), _ = model.hidden_states(waveforms, lengths)
        loss = states.sum()
    parameters = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
    estimated = trainer.training_bytes(model, seconds) - parameters
    loss.backward()
    assert 0.9 < estimated / sum(kept.values()) < 1.25


def test_a_warning_if_it_may_not_fit(capsys):
    hardware.estimate("a model", 3_000_000_000, 2_000_000_000, "Take a smaller one.")
    assert "WARNING: this may not fit. Take a smaller one." in capsys.readouterr().out
    hardware.estimate("a model", 5_000_000, 2_000_000_000, "Take a smaller one.")
    assert capsys.readouterr().out == "a model: about 5.0 MB, 2.0 GB are free\n"
