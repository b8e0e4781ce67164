"""Recipes of related methods, the stages that they need, and baselines."""

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, finished, workflow, write_noise_corpus
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

from gmp_utils import GmpError
from gmp_utils.data.audio import normalize, to_float
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import collect, tables
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import experiments
from gmp_utils.runs.experiments import Settings, lay_out
from gmp_utils.runs.files import read_json
from gmp_utils.stages import baselines, finetune, generate_gmps, retrain, train_multitask
from gmp_utils.training import features
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig

RECIPES = sorted(path.stem for path in experiments.RECIPES.glob("*.yaml"))
needs_opensmile = pytest.mark.skipif(
    find_spec("opensmile") is None, reason="openSMILE is not installed (its license is not for all)"
)


def test_recipes_are_the_related_methods():
    assert RECIPES == ["egemaps", "frozen", "gmp-tl", "lora", "p-tapt", "papt", "tapt", "v-ft"]
    with pytest.raises(GmpError, match="recipe 'tap': expected one of egemaps, frozen, gmp-tl, "):
        experiments.recipe("tap")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_parameters_that_notebooks_have(name, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "find_spec", lambda name: True)
    planned = lay_out(Settings(recipe=name, run_dir=str(tmp_path / "run")))
    experiments.write(planned)
    (run,) = planned.runs
    assert run.finetune_from == [experiments.recipe(name).get("finetune_from", "retrained")]
    assert run.personal == (name == "papt")


def test_a_recipe_overrides_presets_and_a_variants_own_parameters_override_it(tmp_path):
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(
        "question: Which\nfolds: [1]\nseeds: [0]\n"
        "variants: {a: {recipe: v-ft, class_weights: false}, b: {recipe: frozen}}\n"
    )
    (tmp_path / "preset.yaml").write_text("head: linear\nfinetune_epochs: 9\n")
    preset = [str(tmp_path / "preset.yaml")]
    planned = lay_out(Settings(experiment=str(declaration), preset=preset))
    first = planned.runs[0]
    assert (first.parameters["head"], first.parameters["class_weights"]) == ("mean", False)
    assert first.parameters["finetune_epochs"] == 9
    systems = [member["systems"] for member in planned.experiment["runs"]]
    assert systems == [["ce", "probe"], ["ce", "probe"]]
    assert planned.experiment["variants"]["b"] == {"recipe": "frozen"}


def planned_notebooks(settings) -> set[str]:
    printed = finished(workflow(settings, "--", "--dry-run", "--quiet", "rules"))
    rows = [line.split() for line in printed.splitlines()]
    return {row[0] for row in rows if len(row) == 2 and row[1].isdigit()} - {"all", "total"}


@pytest.mark.parametrize(
    ("name", "encoder", "expected"),
    [
        ("v-ft", "embedded", set()),
        ("lora", "embedded", set()),
        ("tapt", "embedded", {"generate_gmps", "retrain"}),
        ("tapt", "wav2vec2", {"retrain"}),
        ("p-tapt", "embedded", {"train_multitask", "generate_gmps", "retrain"}),
    ],
)
def test_a_recipe_chooses_the_stages(name, encoder, expected, tmp_path, tiny_wav2vec2):
    encoder = str(tiny_wav2vec2) if encoder == "wav2vec2" else encoder
    settings = {"recipe": name, "encoder": encoder, "run_dir": str(tmp_path / "run")}
    stages = planned_notebooks(settings)
    assert stages == {"prepare_data", "probe_layers", "finetune", "results"} | expected


def test_papt_ends_with_notebook_08(tmp_path):
    settings = {"recipe": "papt", "corpus": "synthetic_speakers", "run_dir": str(tmp_path / "run")}
    stages = planned_notebooks(settings)
    assert stages == {"prepare_data", "generate_gmps", "personalize"}
    (run,) = lay_out(Settings(**settings, folds=[2, 3])).runs
    assert run.parameters["folds"] == [2, 3]
    (tmp_path / "folds.yaml").write_text("folds: [4, 5]\n")
    (run,) = lay_out(Settings(**settings, preset=[str(tmp_path / "folds.yaml")])).runs
    assert run.folds == run.parameters["folds"] == [4, 5]
    planned = lay_out(Settings(experiment="personalize"))
    assert [run.personal for run in planned.runs] == [True] * 2 * 3  # variants, seeds
    assert {run.parameters["corpus"] for run in planned.runs} == {"synthetic_speakers"}
    (run,) = lay_out(Settings(**settings, preset=["presets/papt.yaml"])).runs
    assert (run.parameters["layer"], run.parameters["scales"]) == (-16, [500])
    assert run.parameters["clustered_model"] == "encoder"
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(
        "question: Which\nfolds: [1]\nseeds: [0]\nvariants: {a: {recipe: papt}, b: {recipe: v-ft}}\n"
    )
    with pytest.raises(GmpError, match="recipe 'papt' predicts ratings, the others emotions"):
        lay_out(Settings(experiment=str(mixed)))


def test_majority_by_hand(tmp_path):
    run = write_noise_corpus(tmp_path / "run")
    stage = baselines.classify(str(run), 1, baseline="majority")
    predictions = pd.read_parquet(stage / "predictions.parquet")
    assert set(predictions.part) == {"validation", "test"}
    assert set(predictions.predicted) == {"angry"}  # all are equally frequent: the first one
    assert (predictions.angry == 6).all()  # of two training speakers' 24 utterances
    assert read_json(stage / "metrics.json")["parameters"] == 0
    with pytest.raises(GmpError, match="baseline 'svm': expected one of probe, probe-z, self-t"):
        baselines.classify(str(run), 1, baseline="svm")


def test_the_probe_takes_the_layer_that_is_best_on_validation(tmp_path, tiny_encoder):
    """Layer 2 of three encodes the emotion, and the others are noise."""
    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run")))
    fold, names = baselines.Fold(corpus, 1), list(corpus.manifest.index)
    x = np.random.default_rng(0).normal(size=(len(names), 3, 8)).astype(np.float32)
    x[:, 2, :4] += 5 * np.eye(4)[corpus.labels(names, "emotion")]
    scores, metrics = baselines.fit_probe(fold, x)
    assert metrics == {"layer": 2, "parameters": 4 * 9}
    assert (scores["test"].argmax(axis=1) == fold.labels["test"]).mean() > 0.9

    stage = baselines.layer_statistics(corpus, str(tiny_encoder))
    statistics = np.load(stage / "statistics.npy")
    model = AutoModel.from_pretrained(tiny_encoder).eval()
    with torch.inference_mode():
        waveform = torch.from_numpy(normalize(corpus.waveforms[names[3]]))[None]
        states = model(waveform, output_hidden_states=True).hidden_states
    for layer, (state,) in enumerate(states):
        expected = torch.cat([state.mean(dim=0), state.std(dim=0, correction=0)])
        np.testing.assert_allclose(statistics[3, layer], expected, atol=2e-3)  # of 16 bit


def test_self_training_by_hand(tmp_path):
    """Of 24 utterances, 8 have labels. The others get predicted ones, the most certain two at a time."""
    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run", labeled_share=0.25)))
    fold, names = baselines.Fold(corpus, 1), corpus.manifest.index
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(names), 1, 8)) + np.eye(8)[corpus.labels(names, "emotion")][:, None]
    train, unlabeled, test = (
        x[names.get_indexer(fold.parts[part]), 0] for part in ("train", "unlabeled", "test")
    )
    assert (len(train), len(unlabeled)) == (8, 16)
    scaler = StandardScaler().fit(train)
    known, labels, rest = scaler.transform(train), fold.labels["train"], scaler.transform(unlabeled)
    probe = LogisticRegression(C=0.03, max_iter=5000)
    for _ in range(8):
        scores = probe.fit(known, labels).predict_proba(rest)
        order = np.argsort(-scores.max(axis=1))[:2]
        known = np.concatenate([known, rest[order]])
        labels = np.concatenate([labels, scores[order].argmax(axis=1)])
        rest = np.delete(rest, order, axis=0)
    expected = probe.fit(known, labels).predict_log_proba(scaler.transform(test))
    del fold.labels["unlabeled"]
    scores, _ = baselines.fit_probe(fold, x, self_training=True)
    np.testing.assert_allclose(scores["test"], expected, atol=1e-3)  # of the solver
    plain, _ = baselines.fit_probe(fold, x)
    assert abs(plain["test"] - expected).max() > 0.1
    with pytest.raises(GmpError, match="'self-training': all utterances have labels"):
        baselines.classify(str(write_noise_corpus(tmp_path / "all")), 1, baseline="self-training")


def test_statistics_are_normalized_by_speaker():
    """Speaker b's -2, 0 and 2 have standard deviation (8/3)^(1/2). A speaker's only utterance becomes 0."""
    statistics = np.array([[[-2.0]], [[7.0]], [[0.0]], [[2.0]]])
    z = baselines.z_by_speaker(statistics, pd.Series(list("babb"), ["u1", "u2", "u3", "u4"]))
    assert z.ravel() == pytest.approx([-(1.5**0.5), 0, 0, 1.5**0.5])


def test_the_svm_is_trained_and_selected_without_the_test_speakers(tmp_path):
    """Features encode the emotion. Without those of test speakers, nothing else changes."""
    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run")))
    fold, names = baselines.Fold(corpus, 1), list(corpus.manifest.index)
    x = np.random.default_rng(0).normal(size=(len(names), 8))
    x[:, :4] += 5 * np.eye(4)[corpus.labels(names, "emotion")]
    x = pd.DataFrame(x, names)
    scores, metrics = baselines.fit_svm(fold, x)
    assert (scores["test"].argmax(axis=1) == fold.labels["test"]).mean() > 0.9
    assert metrics["C"] in baselines.SVM_C
    x.loc[fold.parts["test"]] = 0.0
    other_scores, other_metrics = baselines.fit_svm(fold, x)
    assert metrics == other_metrics
    np.testing.assert_array_equal(scores["validation"], other_scores["validation"])
    assert len(set(other_scores["test"].argmax(axis=1))) == 1


@needs_opensmile
def test_functionals_are_those_of_opensmile(tmp_path):
    import opensmile

    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    functionals = pd.read_parquet(baselines.functionals(corpus) / "functionals.parquet")
    assert functionals.shape == (72, 88)
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    name = corpus.manifest.index[5]
    samples = to_float(corpus.waveforms[name])
    np.testing.assert_array_equal(
        functionals.loc[name], smile.process_signal(samples, 16000).iloc[0]
    )
    z = functionals.copy()  # of several utterances of each speaker
    for _, rows in functionals.groupby(corpus.manifest.speaker):
        z.loc[rows.index] = (rows - rows.mean()) / rows.std(ddof=0).clip(lower=1e-6)
    fold = baselines.Fold(corpus, 1)
    expected, _ = baselines.fit_svm(fold, z)
    stage = baselines.classify(str(run), 1, baseline="egemaps-z")
    found = pd.read_parquet(stage / "predictions.parquet").set_index("utterance")
    predicted = [corpus.emotions[label] for label in expected["test"].argmax(axis=1)]
    assert found.predicted[fold.parts["test"]].tolist() == predicted


def test_an_experiment_without_opensmile_leaves_out_egemaps_only(monkeypatch):
    monkeypatch.setattr(experiments, "find_spec", lambda name: None)
    planned = lay_out(Settings(experiment="emodb"))
    assert {run.variant for run in planned.runs} == set(planned.experiment["variants"])
    assert not any("egemaps" in " ".join(run["systems"]) for run in planned.experiment["runs"])
    assert set(planned.experiment["impossible"]) == {
        "no GMPs, SVM on eGeMAPS", "GMPs, SVM on eGeMAPS",
    }  # fmt: skip
    planned = lay_out(Settings(experiment="family"))
    assert planned.experiment["impossible"] == {"eGeMAPS": "openSMILE is not installed"}
    assert "majority" in {run.variant for run in planned.runs}


def test_runs_without_the_retrained_model_do_not_probe_it():
    """Unless they declare their baselines. A recipe does not change those of an experiment."""
    for settings in (Settings(recipe="v-ft"), Settings(finetune_from=["encoder"])):
        assert lay_out(settings).runs[0].parameters["baselines"] == ["probe"]
    assert (
        "baselines"
        not in lay_out(Settings(finetune_from=["retrained", "encoder"])).runs[0].parameters
    )
    found = {
        (name, run.variant): run.parameters["baselines"]
        for name in ("family", "table3")
        for run in lay_out(Settings(experiment=name)).runs
    }
    assert found["family", "V-FT"] == found["family", "LoRA"] == found["table3", "GMPs"] == []
    assert found["table3", "no GMPs"] == ["probe"]


def test_a_probe_of_a_network_that_is_not_trained_is_an_error():
    baselines.check_baselines(["probe-ams", "probe-retrained", "majority"], ["ams"])
    with pytest.raises(GmpError, match=r"'probe-ce': found losses \['ams'\], expected 'ce' too"):
        baselines.check_baselines(["probe-ams", "probe-ce"], ["ams"])
    with pytest.raises(GmpError, match="losses and baselines: found none"):
        baselines.check_baselines([], [])


def test_egemaps_without_opensmile_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "find_spec", lambda name: None)
    with pytest.raises(GmpError, match="eGeMAPS needs openSMILE: run"):
        baselines.check_baselines(["majority", "egemaps"])
    with pytest.raises(GmpError, match="eGeMAPS needs openSMILE: run"):
        lay_out(Settings(recipe="egemaps"))


def test_a_run_is_named_after_its_recipe(tmp_path):
    """Only that of GMP-TL is compared with Table 3."""
    for recipe, variant in (("", None), ("gmp-tl", None), ("v-ft", "v-ft")):
        run = str(tmp_path / (recipe or "plain"))
        experiments.write(lay_out(Settings(recipe=recipe, run_dir=run)))
        declaration = experiments.read_declaration(run)
        assert declaration["runs"][0]["variant"] == variant
        assert ("GMPs" in declaration["paper"]) == (variant is None)
    with pytest.raises(GmpError, match="recipe 'v-ft' with an experiment"):
        lay_out(Settings(recipe="v-ft", experiment="family"))


def test_p_tapt_runs_through_every_stage(tmp_path, tiny_encoder):
    """With its losses, masks, heads and activation, clips shorter than a mask, and unknown genders."""
    run, encoder = str(write_noise_corpus(tmp_path / "run", genders=False)), str(tiny_encoder)
    recipe = experiments.recipe("p-tapt")
    trained = HeadConfig(lstm_size=8, projection_size=8, spec_augment=True, class_weights=True)
    settings = {name: recipe[name] for name in ("alpha", "frame_weight")}
    stage = train_multitask.train_multitask(run, 1, encoder, QUICK, network=trained, **settings)
    history = pd.read_csv(stage / "history.csv")
    assert history.frame_loss.gt(0).all()
    assert not [column for column in history if "gender" in column]
    stage = generate_gmps.generate_gmps(run, 1, layer=recipe["layer"], scales=[4, 8])
    labels, scales = features.open_labels(stage)
    frames = generate_gmps.frame_table(open_corpus(run), labels, labels.utterances)
    assert [*generate_gmps.agreement(frames, scales)] == ["K = 4", "K = 8", "emotion", "speaker"]
    masking = Masking(recipe["mask_probability"], 60)
    updates = TrainingConfig(1e-3, max_steps=4, batch_seconds=10)
    settings = {"activation": recipe["activation"], "stream_hidden_size": 8}
    retrain.retrain(run, 1, encoder, updates, masking=masking, **settings)
    table = retrain.accuracies(run, 1)
    assert table.index.tolist() == ["K = 4", "K = 8"]
    assert table.accuracy.between(0, 1).all()
    head = HeadConfig(head=recipe["head"], spec_augment=True, class_weights=True)
    finetune.finetune(run, 1, encoder, "ce", QUICK, network=head)
    baselines.classify(run, 1, baseline="majority")
    predictions = collect.collect(run)
    assert set(predictions.system) == {"CE", "majority"}
    assert ("no GMPs, majority", "WAR") in tables.by_fold(predictions).index
    frozen = HeadConfig(head="linear", mix_layers=True, train_encoder=False, projection_size=8)
    finetune.finetune(run, 1, encoder, "ce", QUICK, finetune_from="encoder", network=frozen)
    table = collect.training_costs(run).set_index(collect.SYSTEM)
    assert table.parameters["no GMPs", "majority"] == 0
    dim, n_layers = 32, 4
    sizes = (n_layers + 1) + (dim + 1) * 8 + (8 + 1) * 4  # mixture, linear layer, classifier
    assert table.parameters["no GMPs", "CE"] == sizes
    assert table.parameters["GMPs", "CE"] > 10 * sizes
