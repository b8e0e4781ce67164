"""Every stage on a corpus of noise: its files, its reproducibility, and what it rejects."""

import inspect
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    MULTITASK,
    ONCE,
    QUICK,
    SMALL,
    TINY,
    classifier,
    multitask,
    run_series,
    seal_again,
    write_noise_corpus,
)
from safetensors.torch import load_file
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from transformers import EvalPrediction, HubertModel, set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation import collect, tables
from gmp_utils.figures import layers
from gmp_utils.models import classifiers
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.masked_prediction import MaskedPredictionModel
from gmp_utils.runs import experiments, weights
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import GENERATE_GMPS
from gmp_utils.stages import (
    baselines,
    finetune,
    generate_gmps,
    label_quality,
    probe_layers,
    retrain,
    train_multitask,
)
from gmp_utils.stages.results import inference_speed, write_results
from gmp_utils.training import features, trainer
from gmp_utils.training.batching import Masking, Utterances, collate
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_encoder):
    run = write_noise_corpus(tmp_path_factory.mktemp("finished") / "run")
    return run_series(run, tiny_encoder)


def test_every_stage_writes_its_files(finished):
    stages = [path.parent for path in finished.rglob("provenance.json")]
    assert len(stages) == 7
    for stage in stages:
        provenance = read_json(stage / "provenance.json")
        assert provenance["protocol"]["selection"] == "validation"
        assert (stage / "metrics.json").is_file()
    trained = [path.parent for path in finished.rglob("history.csv")]
    assert len(trained) == 6
    for stage in trained:
        history = pd.read_csv(stage / "history.csv")
        assert np.isfinite(history.loss).all()
        _, loading = HubertModel.from_pretrained(stage / "model", output_loading_info=True)
        assert not loading["missing_keys"]
        (best,) = history.loc[history.selected].to_dict("records")
        if stage.name == "02_train_multitask":
            assert best["emotion_uar"] == history.emotion_uar.max()
        if stage.name == "05_retrain":
            assert best["step"] == history.step.max()
    assert list(finished.rglob(".*.partial")) == []


def test_a_model_is_an_encoder_only_where_it_was_not_trained(finished, tmp_path):
    """Fold 1 trains on session 3 and validates on session 2; fold 3 tests on 3, fold 2 on 2."""
    corpus, run = open_corpus(str(finished.parent)), str(finished.parent)
    loose = replace(corpus, protocol=replace(corpus.protocol, transductive=True))
    models = [str(path.parent / "model") for path in finished.rglob("history.csv")]
    assert len(models) == 6
    for model in models:
        corpus.check_encoder(model, 1)
        for fold, held_out in (
            (2, "48 test or validation recordings of fold 2"),
            (3, "24 test recordings of fold 3"),
        ):
            for strict_or_not in (corpus, loose):  # labels are not allowed
                with pytest.raises(GmpError, match=f"trained or selected on {held_out}"):
                    strict_or_not.check_encoder(model, fold)
    multitask_model = str(finished / "02_train_multitask" / "model")
    few = replace(corpus, protocol=replace(corpus.protocol, labeled_share=0.5))
    with pytest.raises(GmpError, match="12 unlabeled recordings of fold 1"):
        few.check_encoder(multitask_model, 1)
    for stage in (train_multitask.train_multitask, retrain.retrain):
        with pytest.raises(GmpError, match="test recordings of fold 3, such as 3f"):
            stage(run, 3, multitask_model, QUICK)
    copy = shutil.copytree(multitask_model, tmp_path / "copy")
    (copy / weights.TRAINING_RECORDINGS).unlink()
    with pytest.raises(GmpError, match=r"training_recordings\.txt is missing"):
        corpus.check_encoder(str(copy), 1)


def test_a_stage_of_another_encoder_is_rejected(finished):
    for stage, settings in ((finetune.finetune, ["ams", QUICK]), (retrain.retrain, [QUICK])):
        with pytest.raises(GmpError, match="was made from another encoder than 'embedded'"):
            stage(str(finished.parent), 1, "embedded", *settings)


def test_only_systems_with_gmps_are_named_after_them(finished, tmp_path):
    """A recipe is named after itself, and after another initial model than its own."""
    run = tmp_path / "run"
    shutil.copytree(finished.parent, run)
    assert set(collect.classifiers(str(run)).variant) == {"GMPs", "no GMPs"}
    labels = run / "fold1" / "04_generate_gmps" / "params.json"
    write_json(labels, read_json(labels) | {"permuted": True})
    assert set(collect.classifiers(str(run)).variant) == {"retrained, not on GMPs", "no GMPs"}
    write_json(run / experiments.FILE, {"recipe": "v-ft"})
    assert set(collect.classifiers(str(run)).variant) == {"v-ft, from retrained", "v-ft"}


def test_the_multi_task_model_is_finetuned_with_a_new_head(finished, tmp_path, tiny_encoder):
    """With a learning rate near zero, the encoder is still the multi-task model's."""
    run = tmp_path / "run"
    shutil.copytree(finished.parent, run)
    schedule = TrainingConfig(1e-12, epochs=1, batch_seconds=10)
    stage = finetune.finetune(
        str(run), 1, str(tiny_encoder), "ce", schedule, finetune_from="multitask", network=SMALL
    )
    assert stage == run / "fold1" / "06_finetune" / "multitask" / "ce"
    before, after = (
        load_file(path / "model" / "model.safetensors")
        for path in (run / "fold1" / "02_train_multitask", stage)
    )
    compared = {"hubert": 0, "head": 0}
    for name in before.keys() & after.keys():
        part = name.split(".")[0]
        assert torch.allclose(before[name], after[name], atol=1e-9) == (part == "hubert"), name
        compared[part] += 1
    assert compared["hubert"] > 50
    assert compared["head"] == 2 * 4 + 2 * 2  # two LSTMs, two linear layers
    assert "multi-task model" in set(collect.classifiers(str(run)).variant)


def test_costs_are_those_of_all_stages_of_a_system(finished):
    def seconds(*stages):
        return sum(read_json(finished / s / "provenance.json")["wall_seconds"] for s in stages)

    table = collect.training_costs(str(finished.parent)).set_index(["variant", "system"])
    before = seconds("02_train_multitask", "04_generate_gmps", "05_retrain")
    ce, plain = seconds("06_finetune/retrained/ce"), seconds("06_finetune/encoder/ams")
    chain = before + ce + seconds("06_finetune/retrained/ce-then-ams")
    assert table.training_seconds["no GMPs", "AMS"] == pytest.approx(plain)
    assert table.training_seconds["GMPs", "CE"] == pytest.approx(before + ce)
    assert table.training_seconds["GMPs", "CE then AMS"] == pytest.approx(chain)
    assert table.relative_seconds["GMPs", "CE then AMS"] == pytest.approx(chain / plain)
    assert (table.peak_memory_mb > 100).all()
    corpus = open_corpus(str(finished.parent))
    audio_seconds = QUICK.epochs * corpus.manifest.duration[corpus.partition(1)["train"]].sum()
    assert table.times_real_time["no GMPs", "AMS"] == pytest.approx(audio_seconds / plain)
    assert inference_speed(str(finished.parent)) > 0


def test_training_moves_layers_and_nothing_else_does(finished, tiny_encoder):
    models = {"untouched": tiny_encoder, "retrained": finished / "05_retrain" / "model"}
    table = probe_layers.cka_to_pretrained(str(finished.parent), 1, str(tiny_encoder), models)
    similarity = table.pivot(index="layer", columns="model", values="cka")
    assert similarity.index.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(similarity.untouched, 1, atol=1e-6)
    assert similarity.retrained.between(0.1, 0.9999).all()


def test_multitask_loss_is_weighted(tiny_encoder):
    set_seed(0)
    model = classifiers.MultitaskModel.load(str(tiny_encoder), **MULTITASK).train()
    labels = torch.tensor([2]), torch.tensor([1])
    outputs = model(torch.randn(1, 8000), torch.tensor([8000]), *labels)
    expected = 0.9 * outputs["emotion_loss"] + 0.1 * outputs["gender_loss"]
    torch.testing.assert_close(outputs["loss"], expected)


def test_only_the_cnn_is_unchanged(finished, tiny_encoder):
    before = load_file(tiny_encoder / "model.safetensors")
    after = load_file(finished / "05_retrain" / "model" / "model.safetensors")
    compared = {"cnn": 0, "layers": 0}
    for name, values in before.items():
        if name.startswith("feature_extractor"):
            assert torch.equal(after[f"hubert.{name}"], values), name
            compared["cnn"] += 1
        elif "encoder.layers" in name and name.endswith("dense.weight"):
            assert not torch.equal(after[f"hubert.{name}"], values), name
            compared["layers"] += 1
    assert compared == {"cnn": 9, "layers": 8}


def test_the_same_seed_gives_bit_identical_numbers(finished, tmp_path, tiny_encoder):
    again = run_series(write_noise_corpus(tmp_path / "run"), tiny_encoder)
    compared = 0
    for path in sorted(finished.rglob("*")):
        other = again / path.relative_to(finished)
        if path.name in ("predictions.parquet", "labels.npy", "model.safetensors", "history.csv"):
            compared += 1
            if path.name == "predictions.parquet":
                pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(other))
            else:
                assert path.read_bytes() == other.read_bytes(), path
    assert compared == 6 + 6 + 1 + 4


def test_heads_have_their_own_learning_rate(tmp_path, tiny_encoder, monkeypatch):
    create, made = trainer.DurationTrainer.create_optimizer, []

    def create_optimizer(self, model=None):
        made.append((create(self), self.model))
        return made[0][0]

    monkeypatch.setattr(trainer.DurationTrainer, "create_optimizer", create_optimizer)
    config = TrainingConfig(1e-3, max_steps=2, head_learning_rate=1e-2, batch_seconds=10)
    multitask(write_noise_corpus(tmp_path / "run"), tiny_encoder, config)
    optimizer, model = made[0]
    groups = {group["initial_lr"]: set(group["params"]) for group in optimizer.param_groups}
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    encoder = trained & set(model.base_model.parameters())
    assert groups == {1e-3: encoder, 1e-2: trained - encoder}
    assert encoder < trained


def test_an_interrupted_training_resumes_bit_for_bit(tmp_path, tiny_encoder, monkeypatch):
    """Stopped after the first of three epochs and finished later, it has the same weights, bit for bit."""
    schedule = TrainingConfig(1e-3, epochs=3, batch_seconds=10, batch_size=8)
    plain, stopped = (write_noise_corpus(tmp_path / name) for name in ("plain", "stopped"))
    whole, steps = multitask(plain, tiny_encoder, schedule), []

    def stop(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    def record(self, args, state, control, **kwargs):
        steps.append(state.global_step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PrintEvaluations, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            multitask(stopped, tiny_encoder, schedule)
    assert not (stopped / "fold1" / "02_train_multitask").exists()
    monkeypatch.setattr(trainer.PrintEvaluations, "on_train_begin", record)
    resumed = multitask(stopped, tiny_encoder, schedule)
    assert steps[0] > 0
    for name in ("history.csv", "model/model.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    (model,) = [classifiers.MultitaskModel.load(str(resumed / "model"))]
    again = trainer.train(
        model, ["a"], [], resumed, schedule, compute_metrics=None, selection_metric=""
    )
    assert again == read_json(resumed / "metrics.json")  # it is finished, so nothing is trained


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_checkpoints_are_those_of_the_best_models_and_one_per_minute(
    seconds, tmp_path, tiny_encoder, monkeypatch
):
    """Training takes less than a minute, so with 60 s only the best models and the first one are saved."""
    run, newest = write_noise_corpus(tmp_path / "run"), []

    def look(self, args, state, control, **kwargs):
        steps = [int(path.name[11:]) for path in Path(args.output_dir).glob("checkpoint-*")]
        newest.append(max(steps))

    monkeypatch.setattr(trainer.PrintEvaluations, "on_save", look)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", seconds)
    schedule = TrainingConfig(1e-3, epochs=6, batch_seconds=10, batch_size=8)
    history = pd.read_csv(multitask(run, tiny_encoder, schedule) / "history.csv")
    before = history.emotion_uar.cummax().shift(fill_value=-1)
    saved = (history.emotion_uar > before) | (seconds == 0)
    assert saved.all() == (seconds == 0)
    assert newest == history.step[saved].tolist()
    run, newest[:] = write_noise_corpus(tmp_path / "last", selection="last"), []  # nothing is best
    history = pd.read_csv(multitask(run, tiny_encoder, schedule) / "history.csv")
    assert newest == history.step[: 1 if seconds else None].tolist()


def test_a_training_that_selects_the_last_epoch_resumes_there(tmp_path, tiny_encoder, monkeypatch):
    """It was stopped between its last step and the writing of the model, and has one checkpoint."""
    run = write_noise_corpus(tmp_path / "run", selection="last")
    schedule, steps = TrainingConfig(1e-2, epochs=4, batch_seconds=10, batch_size=8), []

    def stop(*_):
        raise KeyboardInterrupt

    def record(self, args, state, control, **kwargs):
        steps.append(state.global_step)

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_write_results", stop)
        with pytest.raises(KeyboardInterrupt):
            multitask(run, tiny_encoder, schedule)
    (checkpoint,) = run.rglob("checkpoint-*")
    monkeypatch.setattr(trainer.PrintEvaluations, "on_train_begin", record)
    history = pd.read_csv(multitask(run, tiny_encoder, schedule) / "history.csv")
    assert steps == [int(checkpoint.name[11:])] == [history.step.max()]
    assert history.emotion_uar.idxmax() < 3  # so the best epoch is not the last


def test_loggers_are_named_by_the_environment(tmp_path, tiny_encoder, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("REPORT_TO", "tensorboard")
    stage = multitask(write_noise_corpus(tmp_path / "run"), tiny_encoder)
    events = EventAccumulator(str(stage / "tensorboard")).Reload()
    history = pd.read_csv(stage / "history.csv")
    kept = [event.value for event in events.Scalars("eval/emotion_uar")]
    np.testing.assert_allclose(kept, history.emotion_uar, rtol=1e-6)  # events are float32
    assert len(events.Scalars("train/loss")) == history.step.iloc[-1]


def test_results_of_different_settings_are_not_pooled(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.parent, run)
    assert len(collect.collect(str(run))) == 4 * 24
    path = run / "fold1" / "06_finetune" / "retrained" / "ams" / "params.json"
    write_json(path, read_json(path) | {"head_layer": -3})
    seal_again(path.parent)
    with pytest.raises(GmpError, match="differ in head_layer of 06_finetune"):
        collect.collect(str(run))


def test_gradients_of_am_softmax_are_clipped_to_s_times_the_norm(
    tmp_path, tiny_encoder, monkeypatch
):
    """Norms at the optimizer, with s = 30. A limit of 4 clips neither loss here, and 0.1 clips both."""
    run, applied, logged = write_noise_corpus(tmp_path / "run"), {}, {}

    def record(self, args, state, control, model=None, **kwargs):
        gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(trainer.PrintEvaluations, "on_pre_optimizer_step", record)
    for key in product((4.0, 0.1), ("ce", "ams")):
        norms = applied[key] = []
        schedule = replace(ONCE, max_grad_norm=key[0])
        history = pd.read_csv(classifier(run, tiny_encoder, key[1], schedule) / "history.csv")
        logged[key] = history.grad_norm[0]  # before clipping, mean over the steps
    assert len(applied[4.0, "ce"]) >= 3
    for key in ((4.0, "ce"), (4.0, "ams")):
        assert np.mean(applied[key]) == pytest.approx(logged[key], rel=1e-4)
    for loss, norm in (("ce", 0.1), ("ams", 3.0)):
        assert applied[0.1, loss] == pytest.approx([norm] * len(applied[0.1, loss]), rel=1e-4)
    assert 1 > logged[4.0, "ce"] and 120 > logged[4.0, "ams"] > 10
    assert collect.collect(str(run)).system.nunique() == 2  # of the same settings


def test_ce_then_ce_starts_from_the_ce_model(tmp_path, tiny_encoder):
    """With a learning rate near zero, it has the CE model's scores, because the classifier is loaded, too."""
    run = write_noise_corpus(tmp_path / "run")
    schedules = {"ce": ONCE, "ce-then-ce": replace(ONCE, learning_rate=1e-12)}
    stages = [classifier(run, tiny_encoder, *item) for item in schedules.items()]
    first, second = (pd.read_parquet(stage / "predictions.parquet") for stage in stages)
    emotions = open_corpus(str(run)).emotions
    np.testing.assert_allclose(first[emotions], second[emotions], atol=1e-5)
    assert collect.lineage(stages[1]) == stages
    assert collect.classifiers(str(run)).system.tolist() == ["CE", "CE then CE"]


def test_labels_are_gender_augmented_only_if_gender_was_learned(finished, tmp_path, capsys):
    """The limit is 0.8 on the validation speakers. 04 prints and records it, and so does the summary."""
    run = tmp_path / "run"
    shutil.copytree(finished.parent, run)
    stage = run / "fold1" / "02_train_multitask"
    metrics = read_json(stage / "metrics.json")
    for uar, augmented in ((0.8, True), (0.79, False)):
        write_json(stage / "metrics.json", metrics | {"gender_uar": uar})
        seal_again(stage)
        shutil.rmtree(run / "fold1" / "04_generate_gmps")
        made = generate_gmps.generate_gmps(str(run), 1, scales=(4, 8))
        assert read_json(made / "metrics.json")["gender_augmented"] is augmented
        word = "are called" if augmented else "are not called"
        assert f"Pseudo-labels from this model {word} gender-augmented" in capsys.readouterr().out
        text = tables.describe(str(run))
        assert ("Not called gender-augmented" in text) is not augmented
        assert collect.gender_uar(run / "fold1" / "06_finetune" / "retrained" / "ce") == uar
    assert "Not called gender-augmented (see notebook 04): GMPs (1 of 1 training runs)." in text
    assert np.isnan(collect.gender_uar(run / "fold1" / "06_finetune" / "encoder" / "ams"))
    write_json(stage / "metrics.json", {"gender_uar": 0.8})
    write_json(stage / "params.json", read_json(stage / "params.json") | {"frozen_layers": 2})
    assert "The layer was frozen" in train_multitask.describe_gender(stage, -3)  # 2 of 4
    assert "are called gender-augmented" in train_multitask.describe_gender(stage, -2)
    write_json(stage / "metrics.json", {"gender_uar": np.nan})
    assert "all validation speakers have one gender" in train_multitask.describe_gender(stage)
    write_json(stage / "metrics.json", {"emotion_uar": 0.5})
    assert "Gender was no task" in train_multitask.describe_gender(stage)


def test_gender_is_not_scored_on_speakers_of_one_gender():
    emotions, logits = np.array([0, 1]), np.array([[2.0, 1], [1, 2]])
    for genders, uar in ((np.array([0, 1]), 1), (np.array([0, 0]), np.nan)):
        prediction = EvalPrediction([logits, logits], [emotions, genders])
        metrics = train_multitask._metrics(("emotion", "gender"), prediction)
        assert metrics["gender_uar"] == pytest.approx(uar, nan_ok=True)
        assert metrics["emotion_uar"] == 1


def test_updates_need_not_be_a_multiple_of_ten(finished, tmp_path, tiny_encoder):
    """Every row of the history has losses, also the last one. They are means over the steps in between."""
    run = write_noise_corpus(tmp_path / "run")
    shutil.copytree(finished, run / "fold1")
    schedule = TrainingConfig(1e-3, max_steps=23, batch_seconds=10)
    stage = retrain.retrain(str(run), 1, str(tiny_encoder), schedule, stream_hidden_size=8)
    history = pd.read_csv(stage / "history.csv")
    assert history.step.tolist() == [*range(3, 23, 3), 23]
    assert history[["loss", "validation_loss", "grad_norm"]].notna().all(axis=None)


def test_retraining_keeps_the_last_or_the_best_model(finished, tmp_path, tiny_encoder):
    """If the learning rate is too high, an earlier model is better. The loss is also computed by hand."""
    run = write_noise_corpus(tmp_path / "run")
    shutil.copytree(finished, run / "fold1")
    corpus, (labels, scales) = (
        open_corpus(str(run)),
        features.open_labels(run / "fold1" / GENERATE_GMPS),
    )
    names, masking = corpus.partition(1)["validation"], Masking(0.5, 4)
    schedule = TrainingConfig(0.3, max_steps=10, batch_seconds=10)
    settings = {"stream_hidden_size": 8, "masking": masking, "loss_on": "all"}
    losses = {}
    for selection in ("last", "validation"):
        stage = retrain.retrain(
            str(run), 1, str(tiny_encoder), schedule, retrain_selection=selection, **settings
        )
        history = pd.read_csv(stage / "history.csv")
        model = MaskedPredictionModel.load(str(stage / "model")).eval()
        inputs = features.model_inputs(model, corpus)
        dataset = Utterances(inputs, names, None, labels, masking)
        n_frames = n_masked = total = correct = 0
        for item in (dataset[index] for index in range(len(names))):
            batch = collate([item])
            with torch.no_grad():
                (frames,), _ = model.hidden_states(batch["inputs"], batch["lengths"], batch["mask"])
            logits = [x.double().log_softmax(-1) for x in model.streams(frames[0])]
            n_frames, n_masked = n_frames + len(frames[0]), n_masked + item["mask"].sum()
            for frame, targets in enumerate(item["frame_labels"]):
                total -= sum(x[frame, target].item() for x, target in zip(logits, targets))
                correct += item["mask"][frame] * (logits[0][frame].argmax() == targets[0]).item()
        (kept,) = history[history.selected].to_dict("records")
        assert kept["validation_loss"] == pytest.approx(total / n_frames, rel=1e-4)
        assert kept[f"accuracy_{scales[0]}"] == pytest.approx(correct / n_masked)
        losses[selection] = history.validation_loss[history.selected].item()
        best = {
            "last": history.validation_loss.iloc[-1],
            "validation": history.validation_loss.min(),
        }
        assert losses[selection] == best[selection]
    assert losses["validation"] < losses["last"]


def test_test_speakers_change_nothing_that_is_learned(finished, tmp_path, tiny_encoder):
    """With other voices in the test fold, models and clusters are the same, and predictions differ.

    Weights agree within 1e-5 and centroids within 1e-4: after other computations, a process may compute the
    last bit differently, which may round a 16-bit frame the other way. Training on other data changes
    weights by 1e-3 and centroids by 1e-2.
    """
    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    waveforms = np.load(run / "recordings" / "waveforms.npy", mmap_mode="r+")
    lengths = corpus.waveforms.lengths
    store = Ragged(waveforms, lengths)
    test = corpus.partition(1)["test"]
    assert set(corpus.manifest.speaker[test]) == set(corpus.protocol.folds[0])
    for name in test:
        store[name][:] = np.random.default_rng(1).normal(500, 900, len(store[name]))
    waveforms.flush()
    seal_again(run / "recordings")
    other = run_series(run, tiny_encoder)
    compared = 0
    for path in sorted(finished.rglob("*")):
        again = other / path.relative_to(finished)
        if path.name == "model.safetensors":
            compared += 1
            torch.testing.assert_close(load_file(path), load_file(again), atol=1e-5, rtol=0)
        elif path.name.startswith("centroids"):
            compared += 1
            np.testing.assert_allclose(np.load(path), np.load(again), atol=1e-4)
    assert compared == 6 + 2
    table = "06_finetune/retrained/ams/predictions.parquet"
    old, new = (pd.read_parquet(fold / table).set_index("utterance") for fold in (finished, other))
    changed = ((old[corpus.emotions] - new[corpus.emotions]).abs() > 1e-3).any(axis=1)
    assert set(changed[changed].index) <= set(test)
    assert changed[test].mean() > 0.9


def frames_of_layer(model, corpus, layer, names, folder):
    """Hidden states of utterances, to cluster independently of the stage."""
    return features.layer_frames(model, features.model_inputs(model, corpus), names, layer, folder)


def test_unlabeled_utterances_are_only_retrained_on(tmp_path, tiny_encoder, monkeypatch):
    """Half of the training utterances have labels. Nothing supervised is trained on the others."""
    run = write_noise_corpus(tmp_path / "run", labeled_share=0.5)
    trained_on = {}
    for module in (train_multitask, retrain, finetune):

        def spy(
            model, training_set, *arguments, train=module.train, name=module.__name__, **options
        ):
            trained_on.setdefault(name, set()).update(training_set.utterances)
            return train(model, training_set, *arguments, **options)

        monkeypatch.setattr(module, "train", spy)
    fold, parts = run_series(run, tiny_encoder), open_corpus(str(run)).partition(1)
    labeled, unlabeled = set(parts["train"]), set(parts["unlabeled"])
    assert (len(labeled), len(unlabeled)) == (12, 12)
    assert trained_on == {
        train_multitask.__name__: labeled,
        retrain.__name__: labeled | unlabeled,
        finetune.__name__: labeled,
    }
    recordings = weights.training_recordings(fold / "05_retrain" / "model")
    assert {digest for digest, part in recordings if not part} == unlabeled


@pytest.mark.parametrize("rules", [{}, {"transductive": True}, {"labeled_share": 0.5}])
def test_clusters_come_from_training_frames_only(tmp_path, tiny_encoder, rules):
    run = write_noise_corpus(tmp_path / "run", **rules)
    model = SpeechModel.load(str(multitask(run, tiny_encoder) / "model"))
    stage = generate_gmps.generate_gmps(str(run), 1, scales=[5])
    corpus = open_corpus(str(run))
    parts, names = corpus.partition(1), list(corpus.manifest.index)
    held_out = (parts["validation"] + parts["test"]) * rules.get("transductive", False)
    clustered = parts["train"] + parts["unlabeled"] + held_out
    frames = frames_of_layer(model, corpus, -3, names, tmp_path / "frames")
    (expected,) = fit_kmeans(frames.rows(clustered), [5])
    np.testing.assert_array_equal(np.load(stage / "centroids-5.npy"), expected)


SLOW = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("rules", "held_out", "tested"),
    [
        SLOW({"fold_by": "leave-one-speaker-out"}, {"validation": 12, "test": 12}, 1),
        ({"validation": "share"}, {"validation": 5, "test": 24}, 2),
        ({"validation": "none", "selection": "last"}, {"test": 24}, 2),
        SLOW({"selection": "oracle"}, {"validation": 24, "test": 24}, 2),
        SLOW({"fold_by": "cross-corpus", "n_folds": 4}, {"validation": 12, "test": 24}, 2),
    ],
)
def test_every_protocol_can_be_run(tmp_path, tiny_encoder, rules, held_out, tested):
    """72 utterances of 6 speakers. The rules decide which ones are classified."""
    run = write_noise_corpus(tmp_path / "run", **rules)
    fold = run_series(run, tiny_encoder)
    probes = probe_layers.probe_layers(
        str(run), 1, model="encoder", encoder=str(tiny_encoder), scales=[4], map_points=60
    )
    assert set(pd.read_parquet(probes / "probes.parquet").task) >= {"emotion", "gender"}
    compared = open_corpus(str(run)).protocol.selection_part
    assert set(pd.read_parquet(probes / "maps.parquet").part) == {"train", compared}
    stages = sorted(path.parent for path in fold.glob("06_finetune/*/*/predictions.parquet"))
    assert len(stages) == 4
    for stage in stages:
        predictions = pd.read_parquet(stage / "predictions.parquet")
        assert predictions.part.value_counts().to_dict() == held_out
        assert predictions.speaker[predictions.part == "test"].nunique() == tested
        history = pd.read_csv(stage / "history.csv")
        if rules.get("selection") == "last":
            assert history.selected.tolist() == [False, True]
    speakers = collect.collect(str(run)).speaker
    assert set(speakers) == set(open_corpus(str(run)).protocol.folds[0])
    if rules.get("selection") == "last":
        probe = baselines.classify(str(run), 1, baseline="probe", encoder=str(tiny_encoder))
        assert read_json(probe / "metrics.json")["layer"] == TINY["num_hidden_layers"]


@pytest.fixture
def experiment(tmp_path, finished):
    """An experiment of the finished run as a variant, and of a copy with other clusters as another one."""
    shutil.copytree(finished.parent, tmp_path / "other")
    clusters = tmp_path / "other" / "fold1" / "04_generate_gmps" / "params.json"
    write_json(clusters, read_json(clusters) | {"layer": -1})
    folders = {"first": finished.parent, "second": tmp_path / "other"}
    declaration = {
        "question": "?", "against": None, "primary": {}, "paper": {},
        "impossible": {"third": "no such layer"},
        "variants": {"first": {}, "second": {"layer": -1}, "third": {"layer": -9}},
        "folds": [1, 2],
        "runs": [
            {"variant": name, "seed": 0, "run_dir": str(folder), "finetune_from": ["retrained"],
             "systems": ["ams"]}
            for name, folder in folders.items()
        ],
    }  # fmt: skip
    (tmp_path / "experiment").mkdir()
    write_json(tmp_path / "experiment" / experiments.FILE, declaration)
    return tmp_path / "experiment"


def test_the_table_has_every_variant_and_names_the_missing_runs(experiment):
    declaration = read_json(experiment / experiments.FILE)
    run = Path(declaration["runs"][1]["run_dir"]) / "fold1" / "06_finetune"
    assert (run / "encoder" / "ams").is_dir()  # of another initial model than any variant's
    partial_stage = run / "retrained" / ".ams.partial"  # killed before it was renamed
    shutil.copytree(run / "retrained" / "ams", partial_stage)
    predictions = collect.collect(str(experiment))
    assert len(predictions) == 2 * 24
    assert predictions.groupby("variant").system.unique().map(list).to_dict() == {
        "first": ["AMS"], "second": ["AMS"],
    }  # fmt: skip
    assert collect.missing_runs(str(experiment)) == [
        "first, AMS (1 of 2 training runs)", "second, AMS (1 of 2 training runs)", "third: no such layer",
    ]  # fmt: skip
    table = tables.results_table(predictions, declaration, tables.scores(predictions))
    stage = write_results(str(experiment), predictions, table)
    summary = (stage / "summary.md").read_text()
    assert "NOT RUN: first, AMS (1 of 2 training runs); " in summary
    assert "Variants change: first: nothing; second: layer -1; third: layer -9." in summary
    table = pd.read_csv(stage / "table.csv").set_index("variant")
    assert table.UAR["third"] == "not run"
    assert table.UAR["first"] == table.UAR["second"] != "not run"
    for ending in ("md", "tex"):
        assert "not run" in (stage / f"table.{ending}").read_text()


def test_variants_that_were_tested_on_other_utterances_are_not_compared(experiment):
    runs = read_json(experiment / experiments.FILE)["runs"]
    stage = Path(runs[1]["run_dir"]) / "fold1" / "06_finetune" / "retrained" / "ams"
    predictions = pd.read_parquet(stage / "predictions.parquet")
    predictions[1:].to_parquet(stage / "predictions.parquet")
    seal_again(stage)
    assert predictions.part[0] == "validation"
    collect.collect(str(experiment))
    predictions[:-1].to_parquet(stage / "predictions.parquet")
    seal_again(stage)
    with pytest.raises(GmpError, match="differ in test utterances of fold 1"):
        collect.collect(str(experiment))


def cluster_encoder(run, encoder, **settings):
    """Stage 04 on the second to last layer of the pre-trained encoder."""
    settings = {"layer": -2, "scales": [4], "clustered_model": "encoder"} | settings
    return generate_gmps.generate_gmps(run, 1, encoder=str(encoder), **settings)


def test_kmeans_is_fitted_to_the_given_number_of_frames(tmp_path, tiny_encoder):
    run = str(write_noise_corpus(tmp_path / "run"))
    stage = cluster_encoder(run, tiny_encoder, kmeans_frames=300, seed=5)
    assert not list(stage.glob("frames*"))
    corpus, model = open_corpus(run), SpeechModel.load(str(tiny_encoder))
    names = corpus.partition(1)["train"]
    frames = frames_of_layer(model, corpus, -2, names, tmp_path / "frames")
    assert len(frames.values) > 400
    (expected,) = fit_kmeans(frames.sample(names, 300, 5), [4], 5)
    np.testing.assert_array_equal(np.load(stage / "centroids-4.npy"), expected)


def test_controls_cluster_the_pretrained_encoder_and_permute_time(tmp_path, tiny_encoder):
    run = str(write_noise_corpus(tmp_path / "run"))
    stage = cluster_encoder(run, tiny_encoder, scales=[4, 8])
    assert not (tmp_path / "run" / "fold1" / "02_train_multitask").exists()
    labels, _ = features.open_labels(stage)
    corpus, model = open_corpus(run), SpeechModel.load(str(tiny_encoder))
    names = list(corpus.manifest.index)
    frames = frames_of_layer(model, corpus, -2, names, tmp_path / "frames")
    nearest = assign(frames.values, np.load(stage / "centroids-8.npy"))
    np.testing.assert_array_equal(labels.values[:, 1], nearest)
    before = {name: labels[name].tolist() for name in names}
    stage = cluster_encoder(run, tiny_encoder, scales=[4, 8], permuted=True)
    after, _ = features.open_labels(stage)
    assert len(names) == 72
    for name in names:
        assert sorted(after[name].tolist()) == sorted(before[name])  # rows, so scales stay together
    assert sum(after[name].tolist() != before[name] for name in names) > 60


def test_a_control_clusters_random_weights_with_the_same_architecture(tmp_path, tiny_encoder):
    """A recording gets the clusters that it has in the corpus, so the weights are drawn again identically."""
    run = str(write_noise_corpus(tmp_path / "run"))
    clusters = {}
    for model in ("encoder", "random"):
        stage = cluster_encoder(run, tiny_encoder, scales=[8], clustered_model=model, seed=3)
        labels, _ = features.open_labels(stage)
        clusters[model] = labels.values[:, 0].copy()
        corpus = open_corpus(run)
        name = corpus.manifest.index[7]
        (again,) = generate_gmps.streams(stage, str(tiny_encoder), corpus.waveforms[name]).values()
        assert np.mean(again == labels[name][:, 0]) > 0.9  # frames are 16-bit, between two clusters
    assert adjusted_mutual_info_score(*clusters.values()) < 0.9


def test_frames_are_normalized_by_speaker_or_utterance(tmp_path):
    """Speaker 1's frames 1, 3, 5 and 7 have mean 4 and variance 5; the second dimension is constant."""
    speakers = pd.Series({"a": "1", "b": "2", "c": "1"})
    values = {"none": [1, 3, 8, 9, 5, 7], "utterance": [-1, 1, -0.5, 0.5, -1, 1]}
    z = 5**-0.5
    values["speaker"] = [-3 * z, -z, -1, 1, z, 3 * z]
    for how, expected in values.items():
        frames = Ragged.create(tmp_path / how, dict.fromkeys("abc", 2), np.float16, shape=(2,))
        frames.values[:] = np.stack([values["none"], [3] * 6], axis=1)
        generate_gmps.normalize(frames, speakers, how)
        np.testing.assert_allclose(frames.values[:, 0], expected, atol=1e-3)  # of 16 bits
        assert (frames.values[:, 1] == (3 if how == "none" else 0)).all()


def test_a_recording_by_itself_is_normalized_by_its_own_frames(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run")
    stage = cluster_encoder(str(run), tiny_encoder, normalize_frames="utterance")
    labels, _ = features.open_labels(stage)
    waveforms = open_corpus(str(run)).waveforms
    name = labels.utterances[0]
    (found,) = generate_gmps.streams(stage, str(tiny_encoder), waveforms[name]).values()
    assert (found == labels[name][:, 0]).mean() > 0.9  # batches differ in the last bits


def test_emotional_frames_are_marked():
    columns = ["utterance", "speaker", "gender", "emotion", "emotion_start", "emotion_end"]
    manifest = pd.DataFrame([("a", "s", "male", "sad", 0.05, 0.09)], ["a"], columns)
    corpus = type("Corpus", (), {"manifest": manifest})()
    labels = Ragged(np.arange(10).reshape(5, 2), {"a": 5})
    table = generate_gmps.frame_table(corpus, labels, ["a"])
    # Middles of the frames' windows: 12.5, 32.5, 52.5, 72.5 and 92.5 ms.
    assert table.is_emotional.tolist() == [False, False, True, True, False]
    assert table.stream1.tolist() == [1, 3, 5, 7, 9]


def test_quality_of_pseudo_labels(tmp_path, tiny_encoder):
    """k-means is fitted independently. Permuted labels are as stable, with runs of the expected length."""
    run = str(write_noise_corpus(tmp_path / "run"))
    stable = []
    for permuted in (False, True):
        stage = cluster_encoder(run, tiny_encoder, scales=[4, 6], permuted=permuted, seed=2)
        corpus = open_corpus(run)
        table = label_quality.label_quality(stage, corpus)
        assert table.index.tolist() == ["K = 4", "K = 6"]
        assert table[["bag UAR, emotion", "bag UAR, gender"]].stack().between(0, 1).all()
        if permuted:
            chance = pytest.approx(table["permuted, frames"].tolist(), rel=0.1)
            assert table["run, frames"].tolist() == chance
        stable.append(table.stability.tolist())
    parts, model = corpus.partition(1), SpeechModel.load(str(tiny_encoder))
    names = list(corpus.manifest.index)
    frames = frames_of_layer(model, corpus, -2, names, tmp_path / "frames")
    runs = [fit_kmeans(frames.rows(parts["train"]), [6], seed)[0] for seed in (2, 3, 4)]
    a, b, c = (assign(frames.rows(parts["validation"]), centroids) for centroids in runs)
    expected = np.mean([adjusted_rand_score(*pair) for pair in ((a, b), (a, c), (b, c))])
    assert stable[0] == stable[1]
    assert stable[0][1] == pytest.approx(expected)


def test_enrichment_by_hand():
    """Half of all frames are sad, all in cluster 2 (twice the share), and none in cluster 0 (1/8)."""
    emotions = ["sad", "sad", "angry", "angry"]
    table = pd.DataFrame({"emotion": emotions, "gender": "male", "stream0": [2, 2, 0, 0]})
    (trace,) = (figure := layers.enrichment(table, 0)).data
    assert (list(trace.y), list(trace.x)) == (["angry", "sad"], ["0", "2"])
    assert trace.z.tolist() == [[1, -3], [-3, 1]]
    assert figure.layout.title.text.endswith("an emotion in 2 of 2 clusters")


def test_missing_predecessors_are_named(tmp_path, tiny_encoder):
    run, where = str(tmp_path / "run"), (str(tmp_path / "run"), 1, str(tiny_encoder))
    with pytest.raises(GmpError, match=r"01_prepare_data\.ipynb"):
        train_multitask.train_multitask(*where, QUICK)
    write_noise_corpus(tmp_path / "run")
    for function, notebook in (
        (lambda: generate_gmps.generate_gmps(run, 1), "02_train_multitask"),
        (lambda: retrain.retrain(*where, QUICK), "04_generate_gmps"),
        (lambda: finetune.finetune(*where, "ce", QUICK), "05_retrain"),
        (lambda: collect.collect(run), "06_finetune"),
    ):
        with pytest.raises(GmpError, match=rf"{notebook}\.ipynb"):
            function()


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (train_multitask.train_multitask, {"fold": 9}, "this protocol has folds 1 to 3"),
        (train_multitask.train_multitask, {"alpha": 1.5}, "expected 0 to 1"),
        (finetune.finetune, {"loss": "arcface"}, "loss 'arcface'"),
        (finetune.finetune, {"loss": "ce-then-ams"}, 'run loss "ce" first'),
        (finetune.finetune, {"loss": "ce", "finetune_from": "gmps"}, "finetune_from 'gmps'"),
        (retrain.retrain, {"retrain_from": "scratch"}, "retrain_from 'scratch'"),
        (retrain.retrain, {"loss_on": "none"}, "loss_on 'none'"),
        (retrain.retrain, {"retrain_selection": "best"}, "retrain_selection 'best'"),
        (retrain.retrain, {"activation": "gelu"}, "activation 'gelu'"),
        (generate_gmps.generate_gmps, {"scales": []}, "scales: found none"),
        (generate_gmps.generate_gmps, {"kmeans_frames": -1}, "kmeans_frames: found -1"),
        (generate_gmps.generate_gmps, {"clustered_model": "best"}, "clustered_model 'best'"),
        (generate_gmps.generate_gmps, {"normalize_frames": "z"}, "normalize_frames 'z'"),
        (probe_layers.probe_layers, {"model": "best", "scales": [4]}, "model 'best'"),
    ],
)
def test_wrong_choices_are_named(noise_corpus, tiny_encoder, stage, settings, message):
    settings = {"run_dir": str(noise_corpus), "fold": 1, "encoder": str(tiny_encoder)} | settings
    if "training" in inspect.signature(stage).parameters:
        settings["training"] = QUICK
    with pytest.raises(GmpError, match=message):
        stage(**settings)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": 2, "max_steps": 2}, {"epochs": 1, "batch_seconds": 0}]
)
def test_wrong_schedules_are_rejected(wrong):
    with pytest.raises(GmpError, match="expected"):
        TrainingConfig(1e-3, **wrong)
