"""Experiments: declaring, planning and running them, also when they are killed and resumed."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, cli, finished, kill_when, needs_browser, python, workflow

from gmp_utils import GmpError
from gmp_utils.__main__ import main
from gmp_utils.figures import style
from gmp_utils.runs import experiments, progress
from gmp_utils.runs.experiments import SYSTEM_NAMES, Settings, declared, lay_out
from gmp_utils.runs.files import file_digest, read_json
from gmp_utils.runs.paths import run_folder

DECLARED = sorted(path.stem for path in experiments.CONFIG.glob("*.yaml"))
assert len(DECLARED) >= 10


@pytest.mark.parametrize("name", DECLARED)
def test_every_declaration_can_be_laid_out_with_parameters_that_notebooks_have(name, tmp_path):
    plan = lay_out(Settings(experiment=name, run_dir=str(tmp_path / "all")))
    experiments.write(plan)
    assert len({run.folder for run in plan.runs}) == len(plan.runs) >= 2
    for run in plan.runs:
        path = run_folder(run.folder) / "parameters/02_train_multitask.yaml"
        values = yaml.safe_load(path.read_text())
        assert (values["run_dir"], values["seed"]) == (run.folder, run.seed)
    declaration = experiments.read_declaration(str(tmp_path / "all"))
    assert len(declaration["runs"]) == len(plan.runs)
    variants = {run.variant for run in plan.runs} | set(declaration["impossible"])
    assert set(declaration["variants"]) == variants
    assert set(declaration["paper"]) <= variants
    systems = {
        f"{member['variant']}, {SYSTEM_NAMES[system]}"
        for member in declaration["runs"]
        for system in member["systems"]
    }
    outcomes = sum(declaration["primary"].values(), [])
    assert {name for outcome in outcomes for name in outcome.split(" → ")} <= systems
    if name not in ("smoke", "personalize"):
        assert any(system.endswith(", probe of the untouched encoder") for system in systems)


def test_settings_override_variants_and_those_override_presets(tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("alpha: 0.5\nmultitask_epochs: 7\nencoder: elsewhere\n")
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(
        "question: Why\nfolds: [1, 2]\nseeds: [0]\nparameters: {alpha: 0.1, finetune_epochs: 3}\n"
        "variants: {A b: {alpha: 1.0, encoder: third}, other: {}}\n"
    )
    common = {"experiment": str(declaration), "encoder": "embedded"}
    plan = lay_out(Settings(**common, preset=[str(preset)], folds=[3], seeds=[4, 5]))
    assert plan.folder == "runs/experiments/mine-emodb-embedded-own"
    folders = ["/a-b/seed4", "/a-b/seed5", "/other/seed4", "/other/seed5"]
    assert [run.folder.removeprefix(plan.folder) for run in plan.runs] == folders
    first, other = plan.runs[0].parameters, plan.runs[2].parameters
    assert (first["alpha"], other["alpha"]) == (1.0, 0.5)
    assert first["encoder"] == other["encoder"] == "embedded"
    assert (first["multitask_epochs"], first["finetune_epochs"], first["seed"]) == (7, 3, 4)
    assert [run.folds for run in plan.runs] == [[3]] * 4
    assert lay_out(Settings(**common)).runs[0].folds == [1, 2]


def test_a_single_run_is_an_experiment_of_one(tmp_path):
    plan = lay_out(Settings(finetune_from=["retrained", "encoder"], run_dir=str(tmp_path / "run")))
    (run,) = plan.runs
    assert (run.folder, run.folds) == (str(tmp_path / "run"), [1])
    assert run.finetune_from == ["retrained", "encoder"]
    assert plan.experiment is None
    assert lay_out(Settings()).folder == lay_out(Settings(corpus="emodb")).folder == "runs/demo"
    assert lay_out(Settings(corpus="emodb", corpus_dir="wav")).folder == "runs/emodb-embedded"
    other = lay_out(Settings(corpus="emodb", test_corpus="esd"))
    assert other.folder == "runs/emodb-on-esd-embedded"
    declaration = experiments.read_declaration(str(tmp_path / "run"))
    assert [run["run_dir"] for run in declaration["runs"]] == [str(tmp_path / "run")]
    assert "GMPs" in declaration["paper"]


def test_layers_that_the_encoder_does_not_have_are_reported_and_not_run(tiny_encoder):
    plan = lay_out(Settings(experiment="table4", folds=[1], seeds=[0], encoder=str(tiny_encoder)))
    reasons = {f"layer -{n}": "the encoder's layers end with -5" for n in (8, 7, 6)}
    assert plan.experiment["impossible"] == reasons
    trained = [f"layer -{n}" for n in range(5, 0, -1)]
    assert [run.variant for run in plan.runs] == ["linear probe", *trained]
    assert experiments.is_sweep(declared("table4").variants)
    assert not experiments.is_sweep(declared("table3").variants)
    assert experiments.is_sweep(declared("gender_balance").variants)
    assert not experiments.is_sweep({"a": {"x": True}, "b": {"x": False}, "c": {"x": True}})


COMPLETE = {"question": "Why", "variants": {"a": {}}, "folds": [1], "seeds": [0]}


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {"seeds": None}, "seeds: found None, expected a list of numbers"),
        ({}, {"seed": 1}, "mine.yaml: .* unexpected keyword argument 'seed'"),
        ({}, {"variants": {"a": {}, "A": {}}}, "expected different folder names"),
        ({}, {"variants": {}}, r"variants: found \[\], expected"),
        ({}, {"against": "b"}, "against 'b' is none"),
        ({}, {"parameters": None}, "parameters: found None, expected names and values"),
        (
            {},
            {"primary": {"labels": []}},
            r"primary: found \['labels'\], expected \"all labels\" or",
        ),
        (
            {},
            {"primary": {"all labels": ["b, CE → a, CE"]}},
            "primary: found 'b, CE → a, CE', expected",
        ),
        ({}, {"primary": {"all labels": ["a, CE → a, svm"]}}, "primary: found 'a, CE → a, svm'"),
        ({}, {"variants": {"a": {"alhpa": 1.0}}}, "unknown parameter 'alhpa'"),
        ({"experiment": "table9"}, {}, "experiment 'table9': expected one of baselines, contr"),
        ({"preset": ["none.yaml"]}, {}, "none.yaml: not a YAML file"),
        ({"preset": ["wrong.yaml"]}, {}, "parameter encoder: found 5"),
        ({"preset": ["text.yaml"]}, {}, "text.yaml: found 'text'"),
    ],
)
def test_errors_are_reported_before_any_work(tmp_path, monkeypatch, settings, changes, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (("wrong", "encoder: 5\n"), ("text", "text")):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(COMPLETE | changes))
    with pytest.raises(GmpError, match=message):
        lay_out(Settings(**{"experiment": "mine.yaml"} | settings))


def test_later_presets_override_earlier_ones_and_names_may_have_spaces(tmp_path):
    first, other = tmp_path / "my 'own' {1}.yaml", tmp_path / "other.yaml"
    first.write_text("alpha: 0.5\nlayer: -2\n")
    other.write_text("alpha: 0.7\n")
    (alone,) = lay_out(Settings(preset=[str(first)])).runs
    assert alone.parameters["alpha"] == 0.5
    assert alone.folder == "runs/emodb-embedded-my-own-1"
    (both,) = lay_out(Settings(preset=[str(first), str(other)])).runs
    assert (both.parameters["alpha"], both.parameters["layer"]) == (0.7, -2)
    (both,) = lay_out(Settings(preset=[f"{other} presets/quick.yaml"])).runs  # as make passes it
    assert (both.parameters["alpha"], both.parameters["multitask_epochs"]) == (0.7, 1)


def test_folders_are_as_notebooks_resolve_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert lay_out(Settings(run_dir="~/a//b/")).folder == "/home/me/a/b"
    (run,) = lay_out(Settings(corpus="emodb", corpus_dir="~/wav")).runs
    assert run.parameters["corpus_dir"] == "/home/me/wav"


def test_every_command_explains_itself():
    for name in ("run", "experiment", "plan", "report", "verify", "recognize"):
        page = finished(cli(name, {}, "--help"))
        assert f"example: python -m gmp_utils {name}" in page
    assert "(default: 6.0)" in page


def test_a_second_process_may_plan_but_not_run(tmp_path):
    """Even if it would write other parameters."""
    settings = {"run_dir": str(tmp_path / "run")}
    with experiments.prepare(lay_out(Settings(**settings))):
        refused = workflow(settings | {"encoder": "elsewhere"})
        assert "is being made by process" in refused.communicate()[0]
        assert refused.returncode == 1
        assert "0 of 1 runs done" in finished(cli("plan", settings))
    assert "elsewhere" not in (tmp_path / "run/parameters/02_train_multitask.yaml").read_text()


def test_verify_names_what_has_changed(noise_corpus):
    folder = str(noise_corpus)
    assert "all files match their hashes" in finished(cli("verify", {}, folder))
    (noise_corpus / "01_prepare_data" / "protocol.json").write_text("{}")
    changed = cli("verify", {}, folder)
    assert "protocol.json" in changed.communicate()[0]
    assert changed.returncode == 1


def test_a_plan_of_a_run_by_its_folder_is_that_of_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    planned = lay_out(Settings(recipe="v-ft", folds=[2, 3], run_dir=str(run)))
    experiments.write(planned)
    planned.command(run / "plan.json")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.suffix != ".lock"}
    assert main(["plan", "--run-dir", str(run)]) == 0
    assert f"{run}: 0 of 2 runs done" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}
    assert experiments.as_plan(read_json(run / "plan.json")) == planned
    shutil.copytree(run, tmp_path / "copy")
    assert main(["plan", "--run-dir", str(tmp_path / "copy")]) == 1
    assert f"{tmp_path}/copy has the plan of {run}; give the settings" in capsys.readouterr().err


def test_a_run_is_not_replaced_by_an_experiment_or_one_on_the_default_corpus(tmp_path, capsys):
    run = tmp_path / "run"
    made = lay_out(Settings(corpus="crema_d", corpus_dir="wav", run_dir=str(run)))
    experiments.write(made)
    made.command(run / "plan.json")
    assert main(["run", "--run-dir", str(run), "--folds", "1", "2"]) == 1
    assert "has a run on crema_d, found emodb; set CORPUS=crema_d again" in capsys.readouterr().err
    assert (
        main(
            ["experiment", "table3", "--run-dir", str(run), "--corpus", "esd", "--corpus-dir", "x"]
        )
        == 1
    )
    assert "has a run, found settings of an experiment" in capsys.readouterr().err
    assert experiments.as_plan(read_json(run / "plan.json")) == made


def test_a_stage_that_is_missing_or_older_is_made_again_even_if_later_ones_are_there(tmp_path):
    plan = lay_out(Settings(folds=[1, 2], run_dir=str(tmp_path / "run")))
    experiments.write(plan)
    table = progress.jobs(plan)
    assert table.pending.all() and len(table) == 2 + 2 * 5  # 01 and 07; 02 to 06 of both folds
    finished = [Path(name) for name in table.sort_values("stage").output_file]
    for number, path in enumerate(finished):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (2e9 + number, 2e9 + number))
    assert not progress.jobs(plan).pending.any()
    multitask = tmp_path / "run" / "fold2" / "02_train_multitask" / "headline.json"
    multitask.rename(tmp_path / "multitask")
    table = progress.jobs(plan)
    pending = table.output_file[table.pending].map(Path)
    assert multitask in set(pending)
    shutil.move(tmp_path / "multitask", multitask)
    os.utime(multitask, (1, 1))
    table = progress.jobs(plan)
    assert multitask in set(table.output_file[table.pending].map(Path))


def test_the_plan_ignores_partial_notebooks(tmp_path):
    """Papermill writes notebooks while it runs, so a killed one may be partial and has no duration."""
    folder = tmp_path / "run" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "01_prepare_data.ipynb").write_text('{"cells": [')
    (folder / "02_train_multitask-fold1.ipynb").touch()
    printed = finished(cli("plan", {"run_dir": str(tmp_path / "run")}))
    assert "Duration not known yet: prepare_data, train_multitask" in printed


@pytest.fixture(scope="module")
def killed(smoke, tmp_path_factory):
    """An experiment that was killed three times, as a whole or only a kernel, and then finished."""
    run = tmp_path_factory.mktemp("killed") / "smoke"
    notes = tmp_path_factory.mktemp("notes")
    for moment, victim in (
        (r"/cnn/.*/frames\.npy", "all"),
        (r"04_generate_gmps\.partial/labels\.npy", "kernel"),
        (r"05_retrain\.partial.*/trainer_state\.json", "all"),
    ):
        kill_when(smoke(run), moment, victim, notes)
    done = {path: path.stat().st_mtime_ns for path in run.rglob("headline.json")}
    settings = smoke(run)
    printed = finished(cli("plan", settings))
    finished(workflow(settings))
    return run, done, printed


@pytest.mark.slow
def test_a_killed_workflow_resumes_with_the_same_results(killed, undisturbed):
    """Finished stages are not repeated, and variants share equal stages."""
    run, done, _ = killed
    names = {path.parent.name for path in done}
    assert {"01_prepare_data", "02_train_multitask", "04_generate_gmps"} <= names
    assert "05_retrain" not in names
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert not list(run.rglob(".*.partial"))
    tables = [(folder / "07_results" / "table.csv").read_text() for folder in (run, undisturbed)]
    assert tables[0] == tables[1]
    assert len(list(csv.reader(tables[0].splitlines()))) == 3
    model = "gmps/seed0/fold1/06_finetune/retrained/ams/model/model.safetensors"
    assert file_digest(run / model) == file_digest(undisturbed / model)
    prepared = [run / variant / "seed0" / "01_prepare_data" for variant in ("gmps", "no-gmps")]
    for name in ("manifest.parquet", "provenance.json"):
        assert prepared[0].joinpath(name).samefile(prepared[1] / name)
    assert not prepared[0].joinpath("headline.json").samefile(prepared[1] / "headline.json")


@pytest.mark.slow
def test_the_plan_prints_what_is_done_and_what_is_missing(killed):
    printed = killed[2]
    assert " of 2 runs done" in printed
    assert "missing: GMPs, seed 0, folds 1" in printed
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.count("|") == 6]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:3]] for cells in lines}
    assert rows["train_multitask"] == ["1", "0"]
    assert rows["retrain"] == rows["results"] == ["1", "1"]
    assert "Duration not known yet: retrain, results." in printed
    assert re.search(r"About \d+\.\d hours left, one after the other and without these", printed)


@pytest.mark.slow
@needs_browser
def test_the_report_contains_its_figures_and_requests_nothing(killed, smoke):
    run = killed[0]
    report = cli("report", smoke(run), environment={"BROWSER_PATH": style.browser()})
    assert "report.html" in finished(report)
    page = (run / "report.html").read_text()
    assert page.count('src="data:image/png') >= 5
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:|#)[^\"]*", page)
    assert fetched == []


def test_commands_never_share_a_gpu(tmp_path):
    """Two GPUs and three commands: the third one waits until a GPU is free."""
    code = (
        "import os, sys, time; gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "open(f'{sys.argv[1]}/{os.getpid()}', 'w').write(gpu); time.sleep(3)\n"
        "open(f'{sys.argv[1]}/{os.getpid()}.end', 'w').close()"
    )
    on_gpu = [sys.executable, "-m", "gmp_utils.runs.on_gpu"]
    command = [*on_gpu, sys.executable, "-c", code, str(tmp_path)]
    job = f"test-{os.getpid()}"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "SLURM_JOB_ID": job}
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
    for lock in Path("/tmp").glob(f"gmp-gpu-*-{job}-?.lock"):
        lock.unlink()
    without = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = python("-m", "gmp_utils.runs.on_gpu", "echo", "at once", env=without)
    assert done.stdout == "at once\n"
