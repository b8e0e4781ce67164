"""Every stage on a corpus of noise: what it leaves, that it repeats, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FINETUNED, MULTITASK, QUICK, SMALL, run_series, seal_again, write_noise_corpus
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, set_seed

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation import collect, tables
from gmp_utils.models import classifiers
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import experiments
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.stages import (
    finetune,
    generate_gmps,
    probe_layers,
    results,
    retrain,
    train_multitask,
)
from gmp_utils.training import features, trainer
from gmp_utils.training.kmeans import assign, fit_kmeans
from gmp_utils.training.trainer import TrainingConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_encoder):
    run = write_noise_corpus(tmp_path_factory.mktemp("finished") / "run")
    return run_series(run, tiny_encoder)


def test_every_stage_leaves_what_it_promises(finished):
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
        assert history.selected.sum() == 1
        assert np.isfinite(history.loss).all()
        assert HubertModel.from_pretrained(stage / "model").config.num_hidden_layers == 4
    leftovers = [path for path in finished.rglob("*") if path.suffix in {".bin", ".pt", ".pth"}]
    assert leftovers == []
    assert list(finished.rglob(".*.partial")) == []


def test_costs_are_those_of_all_stages_of_a_system(finished):
    def seconds(*stages):
        told = [read_json(finished / stage / "provenance.json") for stage in stages]
        return sum(one["wall_seconds"] for one in told)

    table = collect.training_costs(str(finished.parent)).set_index(["variant", "system"])
    own = "06_finetune/gmps/"
    before = seconds("02_train_multitask", "04_generate_gmps", "05_retrain")
    plain = seconds("06_finetune/no-gmps/ams")
    assert table.training_seconds["no GMPs", "AMS"] == pytest.approx(plain)
    assert table.training_seconds["GMPs", "CE"] == pytest.approx(before + seconds(f"{own}ce"))
    chain = before + seconds(f"{own}ce", f"{own}ce-then-ams")
    assert table.training_seconds["GMPs", "CE then AMS"] == pytest.approx(chain)
    assert table.relative_seconds["GMPs", "CE then AMS"] == pytest.approx(chain / plain)
    assert (table.peak_memory_mb > 100).all()
    corpus = open_corpus(str(finished.parent))
    heard = QUICK.epochs * corpus.manifest.duration[corpus.partition(1)["train"]].sum()
    assert table.times_real_time["no GMPs", "AMS"] == pytest.approx(heard / plain)
    assert results.inference_speed(str(finished.parent)) > 0


def test_training_moves_layers_and_nothing_else_does(finished, tiny_encoder):
    models = {"untouched": tiny_encoder, "retrained": finished / "05_retrain" / "model"}
    table = probe_layers.cka_to_pretrained(str(finished.parent), 1, str(tiny_encoder), models)
    found = table.pivot(index="layer", columns="model", values="cka")
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.untouched, 1, atol=1e-6)
    assert (found.retrained < 0.9999).all()
    assert (found.retrained > 0.1).all()


def test_the_selected_epoch_is_the_best_on_validation(finished):
    history = pd.read_csv(finished / "02_train_multitask" / "history.csv")
    assert history.emotion_uar[history.selected].item() == history.emotion_uar.max()
    retrained = pd.read_csv(finished / "05_retrain" / "history.csv")
    assert retrained.masked_loss[retrained.selected].item() == retrained.masked_loss.min()


def test_multitask_loss_is_weighted(tiny_encoder):
    set_seed(0)
    model = classifiers.MultitaskModel.load(str(tiny_encoder), **MULTITASK).train()
    labels = torch.tensor([2]), torch.tensor([1])
    outputs = model(torch.randn(1, 8000), torch.tensor([8000]), *labels)
    expected = 0.9 * outputs["emotion_loss"] + 0.1 * outputs["gender_loss"]
    torch.testing.assert_close(outputs["loss"], expected)


def test_the_cnn_and_only_the_cnn_stays(finished, tiny_encoder):
    before = load_file(tiny_encoder / "model.safetensors")
    after = load_file(finished / "05_retrain" / "model" / "model.safetensors")
    compared = {"cnn": 0, "layers": 0}
    for name, weights in before.items():
        if name.startswith("feature_extractor"):
            assert torch.equal(after[f"hubert.{name}"], weights), name
            compared["cnn"] += 1
        elif "encoder.layers" in name and name.endswith("dense.weight"):
            assert not torch.equal(after[f"hubert.{name}"], weights), name
            compared["layers"] += 1
    assert compared == {"cnn": 9, "layers": 8}


def test_same_seed_same_numbers_bit_for_bit(finished, tmp_path, tiny_encoder):
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


def test_an_interrupted_training_resumes_bit_for_bit(tmp_path, tiny_encoder, monkeypatch):
    """Stopped after the first of three epochs, and finished later: the same weights, bit for bit."""
    schedule = TrainingConfig(1e-3, epochs=3, batch_seconds=10, batch_size=8)
    plain, stopped = (write_noise_corpus(tmp_path / name) for name in ("plain", "stopped"))
    whole = train_multitask.train_multitask(
        str(plain), 1, str(tiny_encoder), schedule, network=SMALL
    )

    def stop(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PrintEvaluations, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train_multitask.train_multitask(
                str(stopped), 1, str(tiny_encoder), schedule, network=SMALL
            )
    assert not (stopped / "fold1" / "02_train_multitask").exists()
    steps = []

    def record(self, args, state, control, **kwargs):
        steps.append(state.global_step)

    monkeypatch.setattr(trainer.PrintEvaluations, "on_train_begin", record)
    resumed = train_multitask.train_multitask(
        str(stopped), 1, str(tiny_encoder), schedule, network=SMALL
    )
    assert steps[0] > 0
    for name in ("history.csv", "model/model.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def test_loggers_are_named_by_the_environment(tmp_path, tiny_encoder, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = str(write_noise_corpus(tmp_path / "run"))
    monkeypatch.setenv("REPORT_TO", "tensorboard")
    stage = train_multitask.train_multitask(run, 1, str(tiny_encoder), QUICK, network=SMALL)
    events = EventAccumulator(str(stage / "tensorboard")).Reload()
    history = pd.read_csv(stage / "history.csv")
    kept = [event.value for event in events.Scalars("eval/emotion_uar")]
    np.testing.assert_allclose(kept, history.emotion_uar, rtol=1e-6)  # events are float32
    assert len(events.Scalars("train/loss")) == history.step.iloc[-1]


def test_results_of_different_settings_are_not_pooled(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.parent, run)
    assert len(collect.collect(str(run))) == 4 * 24
    path = run / "fold1" / "06_finetune" / "gmps" / "ams" / "params.json"
    write_json(path, read_json(path) | {"head_layer": -3})
    seal_again(path.parent)
    with pytest.raises(
        GmpError, match="differ in head_layer of 06_finetune and cannot be compared"
    ):
        collect.collect(str(run))


def test_updates_need_not_be_a_multiple_of_ten(finished, tmp_path, tiny_encoder):
    """Every row of the history has its losses, also the last; means over the steps in between."""
    run = write_noise_corpus(tmp_path / "run")
    shutil.copytree(finished, run / "fold1")
    schedule = TrainingConfig(1e-3, max_steps=23, batch_seconds=10)
    stage = retrain.retrain(str(run), 1, str(tiny_encoder), schedule, stream_hidden_size=8)
    history = pd.read_csv(stage / "history.csv")
    assert history.step.tolist() == [*range(2, 23, 2), 23]
    assert history[["loss", "masked_loss", "grad_norm"]].notna().all(axis=None)


def test_a_loss_that_is_no_number_ends_it(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run")
    with pytest.raises(GmpError, match=r"the loss is .* at step .*lower the learning rate"):
        schedule = TrainingConfig(1e30, epochs=5)
        train_multitask.train_multitask(str(run), 1, str(tiny_encoder), schedule, network=SMALL)
    assert not (run / "fold1" / "02_train_multitask").exists()


@pytest.mark.slow
def test_a_full_size_encoder_goes_through_every_stage(tmp_path):
    """The path of hub weights: the published configuration, random weights, a few steps."""
    torch.manual_seed(0)
    config = HubertConfig(layerdrop=0.1)
    assert (config.hidden_size, config.num_hidden_layers) == (768, 12)
    HubertModel(config).save_pretrained(tmp_path / "base")
    run = write_noise_corpus(tmp_path / "run")
    once = TrainingConfig(1e-4, epochs=1, batch_seconds=20)
    fold = run_series(run, tmp_path / "base", once, max_steps=2, scales=(4,))
    probe_layers.probe_layers(
        str(run), 1, model="retrained", encoder=str(tmp_path / "base"), scales=[4], map_points=30
    )
    probes = pd.read_parquet(fold / "03_probe_layers" / "retrained" / "probes.parquet")
    assert probes.layer.max() == 12


def test_test_speakers_change_nothing_that_is_learnt(finished, tmp_path, tiny_encoder):
    """Other voices in the test fold: the same models and clusters, other predictions.

    Weights within 1e-5, centroids within 1e-4: a process that has done much else may compute the last
    bit differently, which may round a 16-bit frame the other way (training on anything else moves
    weights by 1e-3, centroids by 1e-2).
    """
    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    waveforms = np.load(run / "recordings" / "waveforms.npy", mmap_mode="r+")
    store = Ragged(
        waveforms,
        corpus.waveforms.utterances,
        list(corpus.waveforms.lengths.values()),
        kind="waveform",
    )
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
    table = "06_finetune/gmps/ams/predictions.parquet"
    old, new = (pd.read_parquet(fold / table).set_index("utterance") for fold in (finished, other))
    changed = ((old[corpus.emotions] - new[corpus.emotions]).abs() > 1e-3).any(axis=1)
    assert set(changed[changed].index) <= set(test)
    assert changed[test].mean() > 0.9


@pytest.mark.parametrize("transductive", [False, True])
def test_clusters_come_from_training_frames_only(tmp_path, tiny_encoder, transductive):
    run = write_noise_corpus(tmp_path / "run", transductive=transductive)
    train_multitask.train_multitask(str(run), 1, str(tiny_encoder), QUICK, network=SMALL)
    stage = generate_gmps.generate_gmps(str(run), 1, scales=[5])
    corpus = open_corpus(str(run))
    parts = corpus.partition(1)
    heard = parts["train"] + (parts["validation"] + parts["test"]) * transductive
    from gmp_utils.models.encoder import SpeechModel
    from gmp_utils.training import features

    model = SpeechModel.load(str(run / "fold1" / "02_train_multitask" / "model"))
    inputs = features.model_inputs(model, corpus)
    frames = features.layer_frames(
        model, inputs, list(corpus.manifest.index), -3, tmp_path / "frames"
    )
    (expected,) = fit_kmeans(frames.rows(heard), [5])
    np.testing.assert_array_equal(np.load(stage / "centroids-5.npy"), expected)


@pytest.mark.parametrize(
    ("rules", "held_out", "tested"),
    [
        pytest.param(
            {"fold_by": "leave-one-speaker-out"},
            {"validation": 12, "test": 12},
            1,
            marks=pytest.mark.slow,
        ),
        ({"validation": "share"}, {"validation": 5, "test": 24}, 2),
        ({"validation": "none", "selection": "last"}, {"test": 24}, 2),
        pytest.param(
            {"selection": "oracle"}, {"validation": 24, "test": 24}, 2, marks=pytest.mark.slow
        ),
        pytest.param(
            {"fold_by": "cross-corpus", "n_folds": 4},
            {"validation": 12, "test": 24},
            2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_protocol_goes_through(tmp_path, tiny_encoder, rules, held_out, tested):
    """72 utterances of 6 speakers: the rules decide which are classified."""
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
    assert set(collect.collect(str(run)).speaker.unique()) == set(
        open_corpus(str(run)).protocol.folds[0]
    )


@pytest.fixture
def experiment(tmp_path, finished):
    """Of the finished run: itself as a variant, and a copy with other clusters as another."""
    shutil.copytree(finished.parent, tmp_path / "other")
    clusters = tmp_path / "other" / "fold1" / "04_generate_gmps" / "params.json"
    write_json(clusters, read_json(clusters) | {"layer": -1})
    folders = {"first": finished.parent, "second": tmp_path / "other"}
    told = {
        "question": "?", "against": None, "paper": {}, "impossible": {"third": "no such layer"},
        "variants": {"first": {}, "second": {"layer": -1}, "third": {"layer": -9}},
        "folds": [1, 2],
        "runs": [
            {"variant": name, "seed": 0, "run_dir": str(folder), "starts": ["gmps"],
             "losses": ["ams"]}
            for name, folder in folders.items()
        ],
    }  # fmt: skip
    (tmp_path / "experiment").mkdir()
    write_json(tmp_path / "experiment" / experiments.FILE, told)
    return tmp_path / "experiment"


def test_an_experiments_variants_stand_side_by_side_and_what_is_missing_is_said(experiment):
    told = read_json(experiment / experiments.FILE)
    run = Path(told["runs"][1]["run_dir"]) / "fold1" / "06_finetune"
    assert (run / "no-gmps" / "ams").is_dir()  # another start, and no variant's
    shutil.copytree(
        run / "gmps" / "ams", run / "gmps" / ".ams.partial"
    )  # killed before its renaming
    predictions = collect.collect(str(experiment))
    assert len(predictions) == 2 * 24
    assert predictions.groupby("variant").system.unique().map(list).to_dict() == {
        "first": ["AMS"], "second": ["AMS"],
    }  # fmt: skip
    assert collect.missing_runs(str(experiment)) == [
        "first, AMS, fold 2, seed 0", "second, AMS, fold 2, seed 0", "third: no such layer",
    ]  # fmt: skip
    table = tables.results_table(predictions, told, tables.scores(predictions))
    stage = results.write_results(str(experiment), predictions, table)
    summary = (stage / "summary.md").read_text()
    assert "NOT RUN (3): first, AMS, fold 2, seed 0; " in summary
    assert "Variants change: first: nothing; second: layer -1; third: layer -9." in summary
    table = pd.read_csv(stage / "table.csv").set_index("variant")
    assert table.UAR["third"] == "not run"
    assert table.UAR["first"] == table.UAR["second"] != "not run"
    for ending in ("md", "tex", "html"):
        assert "not run" in (stage / f"table.{ending}").read_text()


def test_variants_that_were_tested_on_other_utterances_are_not_compared(experiment):
    told = read_json(experiment / experiments.FILE)
    stage = Path(told["runs"][1]["run_dir"]) / "fold1" / "06_finetune" / "gmps" / "ams"
    predictions = pd.read_parquet(stage / "predictions.parquet")
    predictions[1:].to_parquet(stage / "predictions.parquet")
    seal_again(stage)
    assert predictions.part[0] == "validation"
    collect.collect(str(experiment))
    predictions[:-1].to_parquet(stage / "predictions.parquet")
    seal_again(stage)
    with pytest.raises(
        GmpError, match="differ in test utterances of fold 1 and cannot be compared"
    ):
        collect.collect(str(experiment))


def test_kmeans_learns_from_as_many_frames_as_it_is_given(tmp_path, tiny_encoder):
    run = str(write_noise_corpus(tmp_path / "run"))
    options = {"clustered_model": "encoder", "encoder": str(tiny_encoder)}
    stage = generate_gmps.generate_gmps(
        run, 1, layer=-2, scales=[4], kmeans_frames=300, seed=5, **options
    )
    assert not list(stage.glob("frames*"))
    corpus, model = open_corpus(run), SpeechModel.load(str(tiny_encoder))
    heard, inputs = corpus.partition(1)["train"], features.model_inputs(model, corpus)
    frames = features.layer_frames(model, inputs, heard, -2, tmp_path / "frames")
    assert len(frames.values) > 400
    (expected,) = fit_kmeans(frames.sample(heard, 300, 5), [4], 5)
    np.testing.assert_array_equal(np.load(stage / "centroids-4.npy"), expected)
    with pytest.raises(GmpError, match="kmeans_frames: found -1"):
        generate_gmps.generate_gmps(run, 1, kmeans_frames=-1)


def test_controls_cluster_the_untouched_encoder_and_lose_the_time(tmp_path, tiny_encoder):
    run = str(write_noise_corpus(tmp_path / "run"))
    options = {"clustered_model": "encoder", "encoder": str(tiny_encoder)}
    stage = generate_gmps.generate_gmps(run, 1, layer=-2, scales=[4, 8], **options)
    assert not (tmp_path / "run" / "fold1" / "02_train_multitask").exists()
    labels, _ = features.open_labels(stage)
    corpus, model = open_corpus(run), SpeechModel.load(str(tiny_encoder))
    names = list(corpus.manifest.index)
    frames = features.layer_frames(
        model, features.model_inputs(model, corpus), names, -2, tmp_path / "frames"
    )
    nearest = assign(frames.values, np.load(stage / "centroids-8.npy"))
    np.testing.assert_array_equal(labels.values[:, 1], nearest)
    before = {name: labels[name].tolist() for name in names}
    stage = generate_gmps.generate_gmps(run, 1, layer=-2, scales=[4, 8], permuted=True, **options)
    after, _ = features.open_labels(stage)
    assert len(names) == 72
    for name in names:
        assert sorted(after[name].tolist()) == sorted(before[name])  # rows, so scales stay together
    assert sum(after[name].tolist() != before[name] for name in names) > 60
    with pytest.raises(GmpError, match="clustered_model 'finetuned'"):
        generate_gmps.generate_gmps(run, 1, clustered_model="finetuned")


def test_frames_that_carry_the_emotion_are_known():
    manifest = pd.DataFrame(
        {
            "utterance": ["a"], "speaker": ["s"], "gender": ["male"], "emotion": ["sad"],
            "emotion_start": [0.05], "emotion_end": [0.09],
        },
        index=["a"],
    )  # fmt: skip
    corpus = type("Corpus", (), {"manifest": manifest})()
    labels = Ragged(np.arange(10).reshape(5, 2), ["a"], [5], kind="labels")
    table = generate_gmps.frame_table(corpus, labels, ["a"])
    # Middles of the frames' windows: 12.5, 32.5, 52.5, 72.5 and 92.5 ms.
    assert table.carries.tolist() == [False, False, True, True, False]
    assert table.stream1.tolist() == [1, 3, 5, 7, 9]


def test_missing_predecessors_are_named(tmp_path, tiny_encoder):
    run = str(tmp_path / "nothing")
    with pytest.raises(GmpError, match=r"01_prepare_data\.ipynb"):
        train_multitask.train_multitask(run, 1, str(tiny_encoder), QUICK)
    write_noise_corpus(tmp_path / "nothing")
    with pytest.raises(GmpError, match=r"02_train_multitask\.ipynb"):
        generate_gmps.generate_gmps(run, 1)
    with pytest.raises(GmpError, match=r"04_generate_gmps\.ipynb"):
        retrain.retrain(run, 1, str(tiny_encoder), QUICK)
    with pytest.raises(GmpError, match=r"05_retrain\.ipynb"):
        finetune.finetune(run, 1, str(tiny_encoder), "ce", QUICK)
    with pytest.raises(GmpError, match=r"06_finetune\.ipynb"):
        collect.collect(run)


def test_wrong_choices_are_named(noise_corpus, tiny_encoder):
    run, encoder = str(noise_corpus), str(tiny_encoder)
    with pytest.raises(GmpError, match="fold 9: this protocol has folds 1 to 3"):
        train_multitask.train_multitask(run, 9, encoder, QUICK)
    with pytest.raises(GmpError, match="loss 'arcface'"):
        finetune.finetune(run, 1, encoder, "arcface", QUICK)
    with pytest.raises(GmpError, match="retrain_from 'scratch'"):
        retrain.retrain(run, 1, encoder, QUICK, retrain_from="scratch")
    with pytest.raises(GmpError, match="loss_on 'none'"):
        retrain.retrain(run, 1, encoder, QUICK, loss_on="none")
    with pytest.raises(GmpError, match="activation 'gelu'"):
        retrain.retrain(run, 1, encoder, QUICK, activation="gelu")
    with pytest.raises(GmpError, match=r"alpha: found 1\.5, expected 0 to 1"):
        train_multitask.train_multitask(run, 1, encoder, QUICK, alpha=1.5)
    with pytest.raises(GmpError, match="scales: found none"):
        generate_gmps.generate_gmps(run, 1, scales=[])
    with pytest.raises(GmpError, match='run loss "ce" first'):
        finetune.finetune(run, 1, encoder, "ce-then-ams", QUICK, use_gmps=False)
    for wrong in ({"epochs": 0}, {"epochs": 2, "max_steps": 2}, {"max_steps": -1}):
        with pytest.raises(GmpError, match="expected one of them above 0"):
            TrainingConfig(1e-3, **wrong)
    with pytest.raises(GmpError, match="batch_seconds: found 0"):
        TrainingConfig(1e-3, epochs=1, batch_seconds=0)
    with pytest.raises(GmpError, match="model: found 'best'"):
        probe_layers.probe_layers(run, 1, model="best", encoder=encoder, scales=[4])


def test_masks_never_occur_in_evaluation(tiny_encoder):
    """Nothing at random is left in evaluation: no masks, no dropout."""
    settings = FINETUNED | {"hidden_dropout": 0.5}
    model = classifiers.EmotionClassifier.load(str(tiny_encoder), **settings).eval()
    inputs = torch.randn(1, 16000), torch.tensor([16000]), torch.tensor([0])
    first = model(*inputs)["logits"]
    assert torch.equal(first, model(*inputs)["logits"])
    assert not torch.equal(first, model.train()(*inputs)["logits"])
