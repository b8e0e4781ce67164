"""Numbers at the edge: no numbers, nothing but one, too few of them; and too many for the memory."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import PREDICTOR, QUICK, SMALL, run_series, tried, write_noise_corpus
from transformers import HubertConfig

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import collect, tables
from gmp_utils.models import classifiers, masked_prediction
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import run_folder
from gmp_utils.stages import prepare_data, probe_layers, train_multitask
from gmp_utils.training import features, kmeans, trainer
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_is_named_with_its_batch(where, tmp_path, tiny_encoder, monkeypatch):
    """The longest training utterance makes it; it is met in the first epoch, and after one if asked."""
    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    poison = corpus.partition(1)["train"][-1]
    frames = SpeechModel.load(str(tiny_encoder)).frame_lengths(corpus.waveforms.lengths[poison])
    forward, met = classifiers.MultitaskModel.forward, []

    def poisoned(self, inputs, lengths, **labels):
        outputs = forward(self, inputs, lengths, **labels)
        if self.training and frames in lengths:
            met.append(len(lengths))
            # 0 · √x is 0 for x = 0, and its derivative 0 · ∞ is none
            bad = float("nan") if where == "loss" else (self.emotion.bias[0] * 0).sqrt() * 0
            if where == "loss" or len(met) > 1:
                outputs["loss"] = outputs["loss"] + bad
        return outputs

    monkeypatch.setattr(classifiers.MultitaskModel, "forward", poisoned)
    kept = "there is no checkpoint yet" if where == "loss" else r"checkpoint-\d+ is good"
    told = rf"the {where} is nan at step \d+, of the utterances .*\b{poison}\b.*; {kept}"
    with pytest.raises(GmpError, match=told) as caught:
        schedule = TrainingConfig(1e-3, epochs=3, batch_seconds=10, batch_size=8)
        train_multitask.train_multitask(str(run), 1, str(tiny_encoder), schedule, network=SMALL)
    named = str(caught.value).split("utterances ")[1].split(";")[0].split(", ")
    assert len(named) == met[-1] < 9
    assert not (run / "fold1" / "02_train_multitask").exists()
    tried(f"{where} that is no number", 1, "stopped, batch and checkpoint named")


def test_states_too_large_for_16_bits_are_refused(tmp_path, tiny_encoder, noise_corpus):
    model = SpeechModel.load(str(tiny_encoder))
    with torch.no_grad():
        model.base_model.encoder.layers[-1].final_layer_norm.weight.fill_(1e6)
    corpus = open_corpus(str(noise_corpus))
    names = list(corpus.manifest.index[:3])
    with pytest.raises(GmpError, match="too large for 16 bits"):
        features.layer_frames(model, corpus.waveforms, names, -1, tmp_path / "frames")


@pytest.mark.parametrize("frames", ["constant", "two values"])
def test_clusters_of_constant_frames_are_numbers(frames):
    """Frames of which there are fewer kinds than clusters: each still goes to a centroid of its own kind."""
    x = np.zeros((64, 4), np.float32)
    if frames == "two values":
        x[32:] = 1
    for found in (
        kmeans.fit_kmeans(x, [8])[0],
        kmeans.lloyd(torch.from_numpy(x), [8], 0, 25, "cpu")[0].numpy(),
    ):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[kmeans.assign(x, found)], x, atol=0.01)


def corpus_of(folder, encoder, rows, seconds, **rules):
    """Noise of these speakers, genders and emotions, prepared; seconds of each."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rows, columns=["speaker", "gender", "emotion"])
    table["path"] = [f"{number}.wav" for number in range(len(table))]
    for name in table.path:
        soundfile.write(folder / name, rng.normal(0, 0.1, int(seconds * 16000)), 16000)
    table.to_csv(folder / "table.csv", index=False)
    manifest = prepare_data.read_manifest(
        str(folder / "run"), "table", str(folder / "table.csv"), "", "", [], {}, 0
    )
    rules = {"fold_by": "auto", "n_folds": 5, "validation": "speakers"} | rules
    run = str(folder / "run")
    prepare_data.prepare(
        run, manifest, [], 0.02, 60, selection="validation", transductive=False, **rules
    )
    return run


def every_stage(run, encoder, scales=(2,)):
    fold = run_series(run_folder(run), encoder, scales=scales)
    probe_layers.probe_layers(run, 1, "multitask", str(encoder), list(scales), 20)
    predictions = collect.collect(run)
    assert np.isfinite(tables.scores(predictions)[["UAR", "WAR"]]).all(axis=None)
    return fold


PEOPLE = [("a", "female"), ("b", "male"), ("c", "female"), ("d", "male")]
EDGES = {
    "three utterances of three": (
        [("a", "female", "sad"), ("b", "male", "angry"), ("c", "female", "sad")],
        0.5,
        {"n_folds": 3},
    ),
    "a batch larger than the corpus": (
        [(*who, emotion) for who in PEOPLE[:3] for emotion in ("sad", "angry")],
        0.5,
        {"n_folds": 3},
    ),
    "clips of 60 ms, shorter than a mask": (
        [(*who, emotion) for who in PEOPLE for emotion in ("sad", "angry") * 3],
        0.06,
        {"n_folds": 4},
    ),
    "the same word for all: one class": (
        [(*who, "sad") for who in PEOPLE for _ in range(3)],
        0.5,
        {"n_folds": 4},
    ),
    "one speaker": ([("a", "female", emotion) for emotion in ("sad", "angry") * 4], 0.5, {}),
    "one speaker to a fold, none to validate": (
        [(*who, emotion) for who in PEOPLE[:2] for emotion in ("sad", "angry") * 3],
        0.5,
        {"n_folds": 2},
    ),
}
REFUSED = {
    "three utterances of three": "no training speaker has emotion",
    "the same word for all: one class": "emotion",
    "one speaker": "speaker",
    "one speaker to a fold, none to validate": "validation",
}


@pytest.mark.parametrize("case", EDGES)
def test_corpora_at_the_edge_end_in_a_table_or_in_words(case, tmp_path, tiny_encoder):
    rows, seconds, rules = EDGES[case]
    if case in REFUSED:
        with pytest.raises(GmpError, match=REFUSED[case]):
            every_stage(corpus_of(tmp_path, tiny_encoder, rows, seconds, **rules), tiny_encoder)
    else:
        every_stage(corpus_of(tmp_path, tiny_encoder, rows, seconds, **rules), tiny_encoder)
    tried(f"corpus: {case}", 1, "refused in words" if case in REFUSED else "a table")


def limited(forward, most):
    """A model on a device that has room for so many utterances."""

    def run(self, inputs, lengths, *others, **labels):
        if len(lengths) > most:
            raise torch.OutOfMemoryError("as a GPU says it")
        return forward(self, inputs, lengths, *others, **labels)

    return run


def test_batches_too_large_for_the_memory_are_trained_in_pieces(
    tmp_path, tiny_encoder, monkeypatch, capsys
):
    """Batches of 8 with room for 3: four pieces, the same losses, recorded; for both kinds of mean."""
    made = {}
    for name, most in (("whole", 99), ("pieces", 3)):
        run = write_noise_corpus(tmp_path / name)
        with monkeypatch.context() as patch:
            for model in (classifiers.MultitaskModel, masked_prediction.MaskedPredictionModel):
                training = limited(model.forward, most)
                evaluating = model.forward
                patch.setattr(
                    model,
                    "forward",
                    lambda self, *a, _t=training, _e=evaluating, **k: (_t if self.training else _e)(
                        self, *a, **k
                    ),
                )
            fold = run_series(run, tiny_encoder, QUICK)
        made[name] = {
            stage: pd.read_csv(fold / stage / "history.csv").drop(columns="selected")
            for stage in ("02_train_multitask", "05_retrain")
        }
        pieces = read_json(fold / "02_train_multitask" / "metrics.json").get("pieces per batch")
        assert pieces == (None if name == "whole" else 4)
    assert "computed in 4 pieces from now on" in capsys.readouterr().out
    for stage, history in made["whole"].items():
        # Adam turns the last bit of a small gradient into a visible step: 1e-3, not 1e-6
        np.testing.assert_allclose(history, made["pieces"][stage], rtol=1e-3, atol=1e-3)


def test_gradients_of_pieces_are_those_of_the_batch(tmp_path, tiny_encoder, monkeypatch):
    from test_distributed import SecondsTrainer, TrainingArguments

    from gmp_utils.data.ragged import Ragged
    from gmp_utils.training.batching import Utterances

    rng = np.random.default_rng(0)
    lengths = [20, 35, 50, 65, 80]
    names = list("abcde")
    inputs = Ragged(rng.normal(size=(sum(lengths), 16)).astype(np.float32), names, lengths)
    labels = Ragged(rng.integers(0, 4, (sum(lengths), 1)), names, lengths)
    dataset = Utterances(inputs, names, None, labels, Masking(0.5, 5))
    gradients = {}
    for pieces in (1, 4):
        model = masked_prediction.MaskedPredictionModel.load(
            str(tiny_encoder), scales=[4], **PREDICTOR
        )
        torch.manual_seed(0)
        for parameter in model.streams.parameters():
            torch.nn.init.normal_(parameter)
        arguments = TrainingArguments(
            str(tmp_path), use_cpu=True, remove_unused_columns=False, report_to="none"
        )
        own = SecondsTrainer(
            model, arguments, train_dataset=dataset, schedule=TrainingConfig(epochs=1)
        )
        own.pieces, own.current_gradient_accumulation_steps = pieces, 1
        (batch,) = own.get_train_dataloader()
        loss = own.training_step(model, batch)
        gradients[pieces] = {
            name: value.grad for name, value in model.named_parameters() if value.grad is not None
        }
        gradients[pieces]["loss"] = loss
    assert len(gradients[1]) > 50
    for name, value in gradients[1].items():
        torch.testing.assert_close(gradients[4][name], value, rtol=1e-4, atol=1e-6)


def test_one_utterance_too_large_for_the_memory_is_said(tmp_path, tiny_encoder, monkeypatch):
    run = write_noise_corpus(tmp_path / "run")
    monkeypatch.setattr(
        classifiers.MultitaskModel, "forward", limited(classifiers.MultitaskModel.forward, 0)
    )
    with pytest.raises(
        GmpError, match=r"does not suffice for batches of 10 s; lower batch_seconds"
    ):
        train_multitask.train_multitask(str(run), 1, str(tiny_encoder), QUICK, network=SMALL)


def test_batches_too_large_for_the_memory_are_computed_in_halves(
    noise_corpus, tiny_encoder, tmp_path
):
    corpus, model = open_corpus(str(noise_corpus)), SpeechModel.load(str(tiny_encoder))
    names = list(corpus.manifest.index)
    whole = features.layer_frames(model, corpus.waveforms, names, -3, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechModel, "hidden_states", limited(SpeechModel.hidden_states, 5))
        halves = features.layer_frames(model, corpus.waveforms, names, -3, tmp_path / "halves")
        patch.setattr(SpeechModel, "hidden_states", limited(SpeechModel.hidden_states, 0))
        with pytest.raises(GmpError, match=r"does not suffice for .* alone"):
            features.layer_frames(model, corpus.waveforms, names, -3, tmp_path / "none")
    # other batches, other padding: rounding differs, and 16 bits keep three digits
    np.testing.assert_allclose(whole.values, halves.values, atol=2e-3)
    tried("GPU memory: simulated exhaustion", 3, "pieces or halves, the same numbers")


@pytest.mark.parametrize("train_cnn", [False, True])
def test_the_estimate_of_memory_is_what_training_keeps(train_cnn):
    """Beside a count of what torch keeps for the backward pass of HuBERT base."""
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


def test_a_warning_where_it_may_not_fit(capsys):
    hardware.estimate("a model", 3_000_000_000, 2_000_000_000, "Take a smaller one.")
    said = capsys.readouterr().out
    assert said == (
        "a model: about 3.0 GB, 2.0 GB are free\nWARNING: this may not fit. Take a smaller one.\n"
    )
    hardware.estimate("a model", 5_000_000, 2_000_000_000, "Take a smaller one.")
    assert capsys.readouterr().out == "a model: about 5.0 MB, 2.0 GB are free\n"
