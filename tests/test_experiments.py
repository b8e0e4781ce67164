"""Experiments as declared, laid out and run: killed in the middle they end as if nothing had been."""

import csv
import os
import re
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, finished, kill_when, script, snakemake, tried

from gmp_utils import GmpError
from gmp_utils.figures import style
from gmp_utils.runs import experiments
from gmp_utils.runs.files import file_digest
from gmp_utils.runs.paths import run_folder

BROWSER = style.browser() or ""
needs_browser = pytest.mark.skipif(not BROWSER, reason="pictures need a Chromium")
DECLARED = sorted(path.stem for path in experiments.CONFIG.glob("*.yaml"))
assert len(DECLARED) >= 10


@pytest.mark.parametrize("name", DECLARED)
def test_every_declaration_can_be_laid_out_with_parameters_that_notebooks_have(name, tmp_path):
    planned = experiments.plan({"EXPERIMENT": name, "RUN": str(tmp_path / "all")})
    experiments.write(planned)
    assert len({run.folder for run in planned.runs}) == len(planned.runs) >= 2
    for run in planned.runs:
        given = yaml.safe_load(
            (run_folder(run.folder) / "parameters/02_train_multitask.yaml").read_text()
        )
        assert given["run_dir"] == run.folder
        assert given["seed"] == run.seed
    told = experiments.read_declaration(str(tmp_path / "all"))
    assert len(told["runs"]) == len(planned.runs)
    assert set(told["variants"]) == {run.variant for run in planned.runs} | set(told["impossible"])
    for variant, losses in told["paper"].items():
        assert variant in told["variants"]
        assert losses


def test_the_papers_numbers_are_the_papers():
    table3, table4 = (experiments.declared(name)["paper"] for name in ("table3", "table4"))
    assert table3["GMPs"] == {"CE": [80.2, 78.4], "AMS": [82.0, 80.0]}
    assert table3["no GMPs"] == {"CE": [78.0, 75.8], "AMS": [79.8, 77.6]}
    assert table4["layer -3"]["AMS"] == table3["GMPs"]["AMS"]
    assert [table4[f"layer -{n}"]["AMS"][0] for n in range(1, 9)] == [
        80.4, 80.2, 82.0, 81.9, 80.6, 80.6, 81.2, 80.6,
    ]  # fmt: skip


def laid_out(**environment):
    return experiments.plan({name.upper(): value for name, value in environment.items()})


def test_what_is_asked_for_goes_before_variants_and_those_before_presets(tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("alpha: 0.5\nmultitask_epochs: 7\nencoder: elsewhere\n")
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(
        "question: Why\nfolds: [1, 2]\nseeds: [0]\nparameters: {alpha: 0.1, finetune_epochs: 3}\n"
        "variants: {A b: {alpha: 1.0, encoder: third}, other: {}}\n"
    )
    planned = laid_out(
        experiment=str(declaration), preset=str(preset), encoder="embedded", folds="3", seeds="4 5"
    )
    assert planned.folder == "runs/experiments/mine-synthetic-embedded-own"
    assert [run.folder.removeprefix(planned.folder) for run in planned.runs] == [
        "/a-b/seed4", "/a-b/seed5", "/other/seed4", "/other/seed5",
    ]  # fmt: skip
    first, other = planned.runs[0].parameters, planned.runs[2].parameters
    assert (first["alpha"], other["alpha"]) == (1.0, 0.5)
    assert first["encoder"] == other["encoder"] == "embedded"
    assert (first["multitask_epochs"], first["finetune_epochs"], first["seed"]) == (7, 3, 4)
    assert [run.folds for run in planned.runs] == [[3]] * 4
    assert laid_out(experiment=str(declaration), encoder="embedded").runs[0].folds == [1, 2]


def test_a_plain_run_is_an_experiment_of_one(tmp_path):
    planned = laid_out(gmps="yes no", run=str(tmp_path / "run"))
    (run,) = planned.runs
    assert (run.folder, run.folds, run.starts) == (str(tmp_path / "run"), [1], ["gmps", "no-gmps"])
    assert planned.experiment is None
    assert laid_out().folder == "runs/demo"
    assert laid_out(corpus="emodb", test_corpus="esd").folder == "runs/emodb-on-esd-embedded"
    told = experiments.read_declaration(str(tmp_path / "run"))
    assert [run["run_dir"] for run in told["runs"]] == [str(tmp_path / "run")]
    assert "GMPs" in told["paper"]


def test_layers_that_the_encoder_does_not_have_are_told_and_not_run():
    planned = laid_out(experiment="table4", folds="1")
    assert planned.experiment["impossible"] == {"layer -8": "the encoder's layers end with -7"}
    assert [run.variant for run in planned.runs] == [f"layer -{n}" for n in range(7, 0, -1)]
    assert experiments.is_sweep(experiments.declared("table4")["variants"])
    assert not experiments.is_sweep(experiments.declared("table3")["variants"])
    assert experiments.is_sweep(experiments.declared("gender_balance")["variants"])
    assert not experiments.is_sweep({"a": {"x": True}, "b": {"x": False}, "c": {"x": True}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question: Why\nvariants: {a: {}}\nfolds: [1]\n", "mine.yaml: seeds; expected question"),
        (
            "question: Why\nvariants: {a: {}}\nfolds: [1]\nseeds: [0]\nseed: 1\n",
            "mine.yaml: seed; exp",
        ),
        ("question: Why\nvariants: {a: {}, A: {}}\nfolds: [1]\nseeds: [0]\n", "the same folder"),
        (
            "question: Why\nvariants: {a: {}}\nagainst: b\nfolds: [1]\nseeds: [0]\n",
            "against 'b' is none",
        ),
        ("- a\n", "found \\['a'\\], expected lines of `name: value`"),
        ("question: [\n", "found no YAML that can be read"),
        (
            "question: Why\nvariants: {}\nfolds: [1]\nseeds: [0]\n",
            "variants: found {}, expected a filled",
        ),
        ("question: Why\nvariants: {no: {}}\nfolds: [1]\nseeds: [0]\n", "variant False: found {}"),
        (
            "question: Why\nvariants: {a: 1}\nfolds: [1]\nseeds: [0]\n",
            "variant 'a': found 1, expected",
        ),
        (
            "question: Why\nvariants: {a: {}}\nfolds: 1\nseeds: [0]\n",
            "folds: found 1, expected a filled list",
        ),
        (
            "question: Why\nvariants: {a: {}}\nfolds: [1]\nseeds: [x]\n",
            r"found \[1, 'x'\], expected numbers",
        ),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(GmpError, match=message):
        experiments.declared(str(tmp_path / "mine.yaml"))


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(
        GmpError, match="experiment 'table9': expected one of controls, cross_corpus"
    ):
        laid_out(experiment="table9")
    with pytest.raises(GmpError, match="FOLDS: found 'one', expected numbers"):
        laid_out(folds="one")
    with pytest.raises(GmpError, match="SEEDS: found '-1', expected numbers"):
        laid_out(experiment="smoke", seeds="-1")
    with pytest.raises(GmpError, match="FOLDS: found '²', expected numbers"):
        laid_out(folds="²")
    with pytest.raises(GmpError, match="GMPS: found 'maybe'"):
        laid_out(gmps="maybe")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "a{b}"}, "RUN: 'a{b}' holds a brace"),
        ({"corpus_dir": "{x"}, "corpus_dir: '/.*{x' holds a brace"),
        ({"encoder": "x}"}, "encoder: 'x}' holds a brace"),
        ({"run": "a\nb"}, r"RUN: 'a\\nb' holds '\\n', a control character"),
        ({"corpus_dir": "a\udce9"}, "CORPUS_DIR: .* a byte that is no UTF-8"),
        ({"preset": "none.yaml"}, "PRESET: no file 'none.yaml'"),
        ({"preset": "it's none.yaml"}, "PRESET: .* has No closing quotation"),
        ({"preset": "{tmp}/wrong.yaml"}, "parameter encoder: found 5"),
        ({"preset": "{tmp}/text.yaml"}, "text.yaml: found 'text', expected lines of `name: value`"),
        ({"preset": "{tmp}/bytes.yaml"}, "bytes.yaml: found no YAML that can be read"),
        ({"preset": "{tmp}/brace.yaml", "experiment": "smoke"}, "encoder: '{x}' holds a brace"),
    ],
)
def test_settings_that_cannot_be_handed_on_are_refused_at_once(tmp_path, settings, message):
    (tmp_path / "wrong.yaml").write_text("encoder: 5\n")
    (tmp_path / "text.yaml").write_text("text")
    (tmp_path / "bytes.yaml").write_bytes(b"encoder: \xe9\n")
    (tmp_path / "brace.yaml").write_text("encoder: '{x}'\n")
    given = {name: value.replace("{tmp}", str(tmp_path)) for name, value in settings.items()}
    with pytest.raises(GmpError, match=message):
        laid_out(**given)


def test_presets_may_have_spaces_and_the_last_goes_first(tmp_path):
    own, other = tmp_path / "my 'own' {1}.yaml", tmp_path / "other.yaml"
    own.write_text("alpha: 0.5\nlayer: -2\n")
    other.write_text("alpha: 0.7\n")
    (alone,) = laid_out(preset=str(own)).runs
    assert alone.parameters["alpha"] == 0.5
    assert alone.folder == "runs/synthetic-embedded-my-own-1"
    (both,) = laid_out(preset=f'"{own}" {other}').runs
    assert (both.parameters["alpha"], both.parameters["layer"]) == (0.7, -2)


def test_folders_are_as_the_notebooks_will_have_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert laid_out(run="~/a//b/").folder == "/home/me/a/b"
    assert (
        laid_out(corpus="emodb", corpus_dir="~/wav").runs[0].parameters["corpus_dir"]
        == "/home/me/wav"
    )


def test_the_plan_overlooks_notebooks_that_a_kill_left_in_pieces(tmp_path):
    """Papermill writes while it runs; what is half written says nothing of how long it took."""
    folder = tmp_path / "run" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "01_prepare_data.ipynb").write_text('{"cells": [')
    (folder / "02_train_multitask-fold1.ipynb").touch()
    planned = finished(script("plan", {"RUN": str(tmp_path / "run")}))
    assert "Not known yet how long these take: prepare_data, train_multitask" in planned


@pytest.fixture(scope="module")
def killed(smoke, tmp_path_factory):
    """The workflow, a kernel, the workflow and all that it started, killed one after the other."""
    run = tmp_path_factory.mktemp("killed") / "smoke"
    notes = tmp_path_factory.mktemp("notes")
    for moment, victim in (
        (r"/cnn/.*/frames\.npy", "all"),
        (r"04_generate_gmps\.partial/labels\.npy", "kernel"),
        (r"05_retrain\.partial.*/trainer_state\.json", "all"),
    ):
        kill_when(smoke(run), moment, victim, notes)
    tried("SIGKILL of a series", 3, "went on; the end is the same")
    done = {path: path.stat().st_mtime_ns for path in run.rglob("headline.json")}
    planned = finished(script("plan", smoke(run)))
    finished(snakemake(smoke(run)))
    return run, done, planned


def test_a_killed_workflow_goes_on_and_repeats_nothing_that_was_finished(killed):
    run, done, _ = killed
    finished_before = {path.parent.name for path in done}
    assert {"01_prepare_data", "02_train_multitask", "04_generate_gmps"} <= finished_before
    assert not any("05_retrain" in str(path) for path in done)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert (run / "07_results" / "headline.json").is_file()
    assert not list(run.rglob(".*.partial"))


def test_the_plan_says_what_is_done_and_what_is_missing(killed):
    _, _, planned = killed
    assert "2 runs, " in planned
    assert "missing: GMPs, seed 0, folds 1" in planned
    rows = {
        cells[0]: cells[1:3]
        for cells in (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in planned.splitlines()
        )
        if len(cells) == 5
    }
    assert rows["train_multitask"] == ["1", "0"]
    assert rows["retrain"] == ["1", "1"]
    assert rows["results"] == ["1", "1"]
    assert "Not known yet how long these take: retrain, results." in planned
    assert re.search(r"About \d+\.\d hours left, one after the other and without these", planned)


def test_what_was_killed_ends_as_what_was_not(killed, undisturbed):
    tables = [(run / "07_results" / "table.csv").read_text() for run in (killed[0], undisturbed)]
    assert tables[0] == tables[1]
    assert len(list(csv.reader(tables[0].splitlines()))) == 3
    stage = "gmps/seed0/fold1/06_finetune/gmps/ams"
    models = [run / stage / "model" / "model.safetensors" for run in (killed[0], undisturbed)]
    assert file_digest(models[0]) == file_digest(models[1])


def test_variants_share_what_they_agree_on(killed):
    run = killed[0]
    prepared = [run / variant / "seed0" / "01_prepare_data" for variant in ("gmps", "no-gmps")]
    for name in ("manifest.parquet", "provenance.json"):
        assert prepared[0].joinpath(name).samefile(prepared[1] / name)
    assert not prepared[0].joinpath("headline.json").samefile(prepared[1] / "headline.json")


@needs_browser
def test_the_report_holds_its_figures_and_fetches_nothing(killed, smoke):
    run = killed[0]
    assert "report.html" in finished(script("report", smoke(run) | {"BROWSER_PATH": BROWSER}))
    page = (run / "report.html").read_text()
    assert page.count('src="data:image/png') >= 5
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:|#)[^\"]*", page)
    assert fetched == []


def test_each_command_gets_a_gpu_of_its_own(tmp_path):
    """Two GPUs, three commands: the third waits for one that is free again."""
    code = (
        "import os, sys, time; gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "open(f'{sys.argv[1]}/{os.getpid()}', 'w').write(gpu); time.sleep(3)\n"
        "open(f'{sys.argv[1]}/{os.getpid()}.end', 'w').close()"
    )
    command = [sys.executable, "workflow/on_gpu.py", sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "TMPDIR": str(tmp_path)}
    started = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(3)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.end"))) < 1:
        assert time.monotonic() < deadline
        taken = [path for path in tmp_path.iterdir() if path.name.isdigit()]
        assert len(taken) <= 2
        time.sleep(0.05)
    assert [process.wait(60) for process in started] == [0, 0, 0]
    used = [path.read_text() for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(used) == 3
    assert set(used) == {"3", "5"}
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run(
        [sys.executable, "workflow/on_gpu.py", "echo", "at once"], cwd=ROOT, env=alone,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.stdout == "at once\n"


def test_a_misspelt_variant_stops_before_any_work(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "question: Why\nfolds: [1]\nseeds: [0]\nvariants: {a: {alhpa: 1.0}}\n"
    )
    with pytest.raises(GmpError, match="unknown parameter 'alhpa'"):
        laid_out(experiment=str(tmp_path / "mine.yaml"), run=str(tmp_path / "run"))
