"""The family's recipes: data that choose stages; and the baselines that stand beside them."""

import shutil
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, snakemake, write_noise_corpus

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import collect, tables
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import experiments
from gmp_utils.runs.files import read_json
from gmp_utils.stages import baselines, finetune, generate_gmps, retrain, train_multitask
from gmp_utils.training import features
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig

RECIPES = sorted(path.stem for path in experiments.RECIPES.glob("*.yaml"))
needs_opensmile = pytest.mark.skipif(
    find_spec("opensmile") is None, reason="openSMILE is not installed (its licence is not for all)"
)


def test_recipes_are_the_family():
    assert RECIPES == ["egemaps", "frozen", "gmp-tl", "p-tapt", "papt", "tapt", "v-ft"]
    with pytest.raises(GmpError, match="recipe 'tap': expected one of egemaps, frozen, gmp-tl, "):
        experiments.recipe("tap")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_parameters_that_notebooks_have(name, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "find_spec", lambda name: True)
    planned = experiments.plan({"RECIPE": name, "RUN": str(tmp_path / "run")})
    experiments.write(planned)
    (run,) = planned.runs
    use_gmps = experiments.recipe(name).get("use_gmps", True)
    assert run.starts == ["gmps" if use_gmps else "no-gmps"]
    assert run.personal == (name == "papt")


def test_a_recipe_goes_over_presets_and_under_what_a_variant_says_itself(tmp_path):
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(
        "question: Which\nfolds: [1]\nseeds: [0]\n"
        "variants: {a: {recipe: v-ft, class_weights: false}, b: {recipe: frozen}}\n"
    )
    (tmp_path / "preset.yaml").write_text("head: linear\nfinetune_epochs: 9\n")
    planned = experiments.plan(
        {"EXPERIMENT": str(declaration), "PRESET": str(tmp_path / "preset.yaml")}
    )
    first = planned.runs[0]
    assert (first.parameters["head"], first.parameters["class_weights"]) == ("relu", False)
    assert first.parameters["finetune_epochs"] == 9
    losses = [member["losses"] for member in planned.experiment["runs"]]
    assert losses == [["ce"], ["ce"]]
    assert planned.experiment["variants"]["b"] == {"recipe": "frozen"}


def notebooks_of(process) -> set[str]:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said[-4000:]
    rows = [line.split() for line in said.splitlines()]
    return {row[0] for row in rows if len(row) == 2 and row[1].isdigit()} - {"all", "total"}


@pytest.mark.parametrize(
    ("name", "encoder", "expected"),
    [
        ("v-ft", "embedded", set()),
        ("tapt", "embedded", {"generate_gmps", "retrain"}),
        ("tapt", "wav2vec2", {"retrain"}),
        ("p-tapt", "embedded", {"train_multitask", "generate_gmps", "retrain"}),
    ],
)
def test_a_recipe_chooses_the_stages(name, encoder, expected, tmp_path, tiny_wav2vec2):
    encoder = str(tiny_wav2vec2) if encoder == "wav2vec2" else encoder
    settings = {"RECIPE": name, "ENCODER": encoder, "RUN": str(tmp_path / "run")}
    found = notebooks_of(snakemake(settings, "--cores", "1", "--dry-run", "--quiet", "rules"))
    assert found == {"prepare_data", "probe_layers", "finetune", "results"} | expected


def test_papt_ends_with_notebook_08(tmp_path):
    settings = {"RECIPE": "papt", "CORPUS": "synthetic_speakers", "RUN": str(tmp_path / "run")}
    found = notebooks_of(snakemake(settings, "--cores", "1", "--dry-run", "--quiet", "rules"))
    assert found == {"prepare_data", "generate_gmps", "personalize"}
    (run,) = experiments.plan(settings | {"FOLDS": "2 3"}).runs
    assert run.parameters["folds"] == [2, 3]
    planned = experiments.plan({"EXPERIMENT": "personalize"})
    assert [run.personal for run in planned.runs] == [True, True]
    assert {run.parameters["corpus"] for run in planned.runs} == {"synthetic_speakers"}
    published = settings | {"PRESET": "presets/papt.yaml", "FOLDS": ""}
    (run,) = experiments.plan(published).runs
    assert (run.parameters["layer"], run.parameters["scales"]) == (-16, [500])
    assert run.parameters["clustered_model"] == "encoder"
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(
        "question: Which\nfolds: [1]\nseeds: [0]\nvariants: {a: {recipe: papt}, b: {recipe: v-ft}}\n"
    )
    with pytest.raises(GmpError, match="recipe 'papt' rates and the others classify"):
        experiments.plan({"EXPERIMENT": str(mixed)})


def test_majority_by_hand(tmp_path):
    run = write_noise_corpus(tmp_path / "run")
    stage = baselines.classify(str(run), 1, "majority")
    found = pd.read_parquet(stage / "predictions.parquet")
    assert set(found.part) == {"validation", "test"}
    assert set(found.predicted) == {"angry"}  # all are as frequent: the first
    assert (found.angry == 6).all()  # of two training speakers' 24 utterances
    assert read_json(stage / "metrics.json")["parameters"] == 0
    with pytest.raises(GmpError, match="baseline 'svm': expected one of egemaps, majority"):
        baselines.classify(str(run), 1, "svm")


@needs_opensmile
def test_the_svm_is_learnt_and_chosen_without_the_test_speakers(tmp_path, monkeypatch):
    """Features that tell the emotion; those of the test speakers are spoilt, and nothing else changes."""
    run = write_noise_corpus(tmp_path / "run")
    corpus = open_corpus(str(run))
    parts = corpus.partition(1)
    rng, names = np.random.default_rng(0), corpus.manifest.index
    table = pd.DataFrame(rng.normal(size=(len(names), 8)), names)
    heard = baselines._svm
    table[[0, 1, 2, 3]] += 5 * np.eye(4)[corpus.labels(list(names), "emotion")]
    found, metrics = {}, {}
    for case in ("whole", "spoilt"):
        if case == "spoilt":
            table.loc[parts["test"]] = 0.0
        monkeypatch.setattr(baselines, "_svm", lambda corpus, parts, _: heard(corpus, parts, table))
        shutil.rmtree(run / "fold1", ignore_errors=True)
        stage = baselines.classify(str(run), 1, "egemaps")
        predictions = pd.read_parquet(stage / "predictions.parquet")
        found[case] = {part: own for part, own in predictions.groupby("part")}
        metrics[case] = read_json(stage / "metrics.json")
    assert (found["whole"]["test"].true == found["whole"]["test"].predicted).mean() > 0.9
    assert metrics["whole"] == metrics["spoilt"]
    assert metrics["whole"]["C"] in baselines.GRID
    pd.testing.assert_frame_equal(found["whole"]["validation"], found["spoilt"]["validation"])
    assert found["spoilt"]["test"].predicted.nunique() == 1


@needs_opensmile
def test_functionals_are_opensmiles(tmp_path):
    import opensmile

    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run")))
    found = pd.read_parquet(baselines.functionals(corpus) / "functionals.parquet")
    assert found.shape == (72, 88)
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    name = corpus.manifest.index[5]
    samples = corpus.waveforms[name] / 32767
    np.testing.assert_array_equal(found.loc[name], smile.process_signal(samples, 16000).iloc[0])


def test_egemaps_without_opensmile_is_an_error_in_words(tmp_path, monkeypatch):
    for module in (baselines, experiments):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(GmpError, match="eGeMAPS needs openSMILE, whose licence"):
        baselines.check_baselines(["majority", "egemaps"])
    with pytest.raises(GmpError, match="eGeMAPS needs openSMILE, whose licence"):
        experiments.plan({"RECIPE": "egemaps"})
    planned = experiments.plan({"EXPERIMENT": "family"})
    assert planned.experiment["impossible"] == {"eGeMAPS": "openSMILE is not installed"}
    assert "majority" in {run.variant for run in planned.runs}


def test_a_run_by_a_recipe_is_called_by_it(tmp_path):
    """GMP-TL's stands beside Table 3, the others do not."""
    found = {}
    for name in ("", "gmp-tl", "v-ft"):
        run = str(tmp_path / (name or "plain"))
        experiments.write(experiments.plan({"RECIPE": name, "RUN": run}))
        found[name] = experiments.read_declaration(run)
    for name in ("", "gmp-tl"):
        assert found[name]["runs"][0]["variant"] is None
        assert "GMPs" in found[name]["paper"]
    assert found["v-ft"]["runs"][0]["variant"] == "v-ft"
    assert found["v-ft"]["paper"] == {}
    with pytest.raises(GmpError, match="RECIPE 'v-ft' with an experiment"):
        experiments.plan({"RECIPE": "v-ft", "EXPERIMENT": "family"})


def test_p_tapt_goes_through_every_stage(tmp_path, tiny_encoder):
    """With its own losses, masks, heads and activation; clips shorter than a mask, and no genders known."""
    run, encoder = str(write_noise_corpus(tmp_path / "run", genders=False)), str(tiny_encoder)
    given = experiments.recipe("p-tapt")
    trained = HeadConfig(lstm_size=8, projection_size=8, spec_augment=True, class_weights=True)
    stage = train_multitask.train_multitask(
        run, 1, encoder, QUICK, given["alpha"], trained, given["frame_weight"]
    )
    history = pd.read_csv(stage / "history.csv")
    assert history.frame_loss.gt(0).all()
    assert not [column for column in history if "gender" in column]
    stage = generate_gmps.generate_gmps(run, 1, given["layer"], [4, 8])
    labels, scales = features.open_labels(stage)
    frames = generate_gmps.frame_table(open_corpus(run), labels, labels.utterances)
    assert [*generate_gmps.agreement(frames, scales)] == ["K = 4", "K = 8", "emotion", "speaker"]
    masking = Masking(given["mask_probability"], 60)
    updates = TrainingConfig(1e-3, max_steps=4, batch_seconds=10)
    stage = retrain.retrain(
        run, 1, encoder, updates, masking=masking, activation=given["activation"], projection_size=8
    )
    table = retrain.accuracies(run, 1)
    assert table.index.tolist() == ["K = 4", "K = 8"]
    assert table.accuracy.between(0, 1).all()
    head = HeadConfig(head=given["head"], spec_augment=True, class_weights=True)
    finetune.finetune(run, 1, encoder, "ce", QUICK, network=head)
    baselines.classify(run, 1, "majority")
    predictions = collect.collect(run)
    assert set(predictions.loss) == {"CE", "majority"}
    assert "no GMPs, majority" in tables.by_fold(predictions).index
    frozen = HeadConfig(head="linear", mix_layers=True, train_encoder=False, projection_size=8)
    finetune.finetune(run, 1, encoder, "ce", QUICK, use_gmps=False, network=frozen)
    table = collect.training_costs(run).set_index(["variant", "loss"])
    assert table.parameters["no GMPs", "majority"] == 0
    dim, n_layers = 32, 4
    sizes = (n_layers + 1) + (dim + 1) * 8 + (8 + 1) * 4  # mixture, linear layer, classifier
    assert table.parameters["no GMPs", "CE"] == sizes
    assert table.parameters["GMPs", "CE"] > 10 * sizes
    with pytest.raises(GmpError, match="differ in head of 06_finetune"):
        collect.collect(run)
