import json
import os
import shutil
import subprocess
import sys
from functools import partial

import nbformat
import pytest
import yaml

from gmp_utils import GmpError
from gmp_utils.runs import code, notebook
from gmp_utils.runs.files import read_json, text_digest, write_json
from gmp_utils.runs.paths import NOTEBOOKS, ROOT, fold_folder, run_and_fold, stage_folder, stage_of
from gmp_utils.runs.stage import CACHE, check_and_identify, make_stage, upstream, verify


def make(folder, build=lambda folder: None, **changes):
    settings = {"parameters": {"a": 1}, "inputs": ["x"], "module": "gmp_utils.models.losses"}
    return make_stage(folder, build, **settings | changes)


def test_a_stage_is_made_once(tmp_path, capsys):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "result.txt").write_text("done")

    stage = make(tmp_path / "s", build)
    assert make(tmp_path / "s", build) == stage
    assert len(calls) == 1
    assert "is up to date" in capsys.readouterr().out
    provenance = read_json(stage / "provenance.json")
    assert provenance["inputs"] == ["x"]
    assert set(provenance["files"]) == {"params.json", "result.txt"}
    state = (stage / "result.txt").stat()
    recorded = {"sha256": text_digest("done"), "size": 4, "mtime_ns": state.st_mtime_ns}
    assert provenance["files"]["result.txt"] == recorded
    assert read_json(stage / "params.json") == {"a": 1}


@pytest.mark.parametrize(
    "changes", [{"parameters": {"a": 2}}, {"inputs": ["y"]}, {"module": "gmp_utils.models.heads"}]
)
def test_a_stage_is_made_again_if_its_inputs_change(tmp_path, changes):
    calls = []
    make(tmp_path / "s", calls.append)
    make(tmp_path / "s", calls.append, **changes)
    assert len(calls) == 2


@pytest.mark.parametrize("changes", [{}, {"parameters": {"a": 2}}])
def test_an_interrupted_stage_resumes_unless_something_changed(tmp_path, changes):
    def broken(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", broken)
    assert not (tmp_path / "s").exists()
    with pytest.raises(GmpError, match=r"not found; run notebooks/01_prepare_data"):
        check_and_identify(tmp_path / "01_prepare_data")
    kept = []
    make(tmp_path / "s", lambda folder: kept.append((folder / "half.txt").exists()), **changes)
    assert kept == [not changes]


def test_the_protocol_of_stages_is_that_of_what_they_read(tmp_path):
    sources = []
    for name, protocol in (("a", {"fold_by": "speaker"}), ("b", {"fold_by": "session"})):
        sources.append(make(tmp_path / name, protocol=protocol))
    for stages, expected in ((sources[:1], {"fold_by": "speaker"}), (sources, None)):
        made = make(tmp_path / "made", stages=stages)
        assert read_json(made / "provenance.json")["protocol"] == expected


def test_a_stage_made_from_a_replaced_one_is_rejected(tmp_path):
    """When 01 is made again, 02, made from the old 01, and 06, made from that 02, are out of date."""
    first, second = tmp_path / "01_prepare_data", tmp_path / "fold1" / "02_train_multitask"
    third = tmp_path / "fold1" / "06_finetune" / "retrained" / "ce"
    make(first)
    make(second, stages=[first])
    make(third, stages=[second])
    before = check_and_identify(third)
    assert verify(str(tmp_path)) == []
    make(first, parameters={"a": 2})
    for folder in (second, third):
        with pytest.raises(GmpError, match=r"02_train_multitask was made from another"):
            check_and_identify(folder)
    assert len(verify(str(tmp_path))) == 2
    make(second, stages=[first])
    with pytest.raises(GmpError, match=r"ce was made from another .*06_finetune\.ipynb again"):
        check_and_identify(third)
    make(third, stages=[second])
    assert check_and_identify(third) != before


def test_runs_below_a_cache_share_stages(tmp_path, capsys):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "inside").mkdir()
        (folder / "inside" / "result.txt").write_text("done")

    first, second = tmp_path / "a" / "s", tmp_path / "b" / "s"
    make(tmp_path / "apart" / "s", build)
    make(tmp_path / "too" / "s", build)
    assert len(calls) == 2
    (tmp_path / CACHE).mkdir()
    make(first, build)
    (first / "headline.json").write_text("{}")
    make(second, build)
    assert len(calls) == 3
    assert "b/s is shared with" in capsys.readouterr().out
    assert (second / "inside" / "result.txt").samefile(first / "inside" / "result.txt")
    assert not (second / "headline.json").exists()
    assert check_and_identify(first) == check_and_identify(second)
    assert verify(str(tmp_path)) == []
    make(tmp_path / "c" / "s", build, parameters={"a": 2})
    assert len(calls) == 4
    make(first, build, parameters={"a": 3})  # the cache's entry now points to another stage
    make(tmp_path / "d" / "s", build)
    assert len(calls) == 6
    assert (second / "inside" / "result.txt").read_text() == "done"


def test_two_processes_make_a_stage_once(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from gmp_utils.runs.stage import make_stage\n"
        "def build(folder):\n"
        "    (folder / 'built').open('x').close(); time.sleep(4)\n"
        "make_stage(Path(sys.argv[1]), build, parameters={}, module='gmp_utils.models.losses')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (waiting,) = [text for text in outputs if "waiting until it ends" in text]
    assert "is up to date" in waiting


@pytest.fixture
def copied_code(tmp_path, monkeypatch):
    """A copy of the package. The function changes a text in a module, and returns stages with new digests."""
    shutil.copytree(ROOT / "gmp_utils", tmp_path / "gmp_utils")
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def edit(module, old, new):
        code._read.cache_clear()
        before = {name: code.code_digest(f"gmp_utils.stages.{name}") for name in STAGES}
        path = tmp_path / "gmp_utils" / module
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1) if old else path.read_text() + new)
        code._read.cache_clear()
        after = {name: code.code_digest(f"gmp_utils.stages.{name}") for name in STAGES}
        return {name for name in STAGES if before[name] != after[name]}

    yield edit
    code._read.cache_clear()


STAGES = ("prepare_data", "generate_gmps", "finetune", "results")


def test_words_and_colors_do_not_count_as_code(copied_code):
    assert not copied_code("models/heads.py", '"""', '"""Other words. ')
    assert not copied_code("models/heads.py", "\nclass ", "\n# a comment\nclass ")
    assert not copied_code("models/encoder.py", 'f"encoder {source!r}: ', 'f"Encoder {source!r}, ')
    assert not copied_code("stages/generate_gmps.py", "expected numbers of", "needs numbers of")
    assert not copied_code("figures/style.py", "", "COLOR = 'red'\n")
    assert not copied_code("runs/stage.py", "", "LIMIT = 1\n")


def test_numbers_count_as_code(copied_code):
    affected = copied_code("models/heads.py", ": int = 256", ": int = 255")
    assert affected == {"generate_gmps", "finetune", "results"}
    assert copied_code("training/kmeans.py", "", "N = 1\n") == {"generate_gmps"}
    before = code.code_digest("stages.interventions")
    assert copied_code("evaluation/comparison.py", "", "N = 1\n") == {"results"}
    assert code.code_digest("stages.interventions") != before
    assert copied_code("data/protocol.py", "", "N = 1\n") == set(STAGES)


def test_the_code_of_a_partial_counts(tmp_path, monkeypatch):
    """Stages of 08 are built by partials, whose own module is functools."""

    def build(text, folder):
        (folder / "result.txt").write_text(text)

    digested = []
    monkeypatch.setattr("gmp_utils.runs.stage.code_digest", digested.append)
    make_stage(tmp_path / "s", partial(build, "done"), parameters={})
    assert digested == [build.__module__]


def test_imports_within_functions_count(copied_code, tmp_path):
    path = tmp_path / "gmp_utils" / "models" / "losses.py"
    path.write_text("def f():\n    from gmp_utils.data import audio\n    return audio\n")
    assert {"models.losses", "data.audio"} <= set(code.counted_modules(["models.losses"]))


def test_recordings_count_their_writer_and_only_notebook_01_its_readers(copied_code, tmp_path):
    assert "data.audio" in code.counted_modules(["data.waveform_store"])
    before = code.notebook_digest("01_prepare_data"), code.notebook_digest("02_train_multitask")
    assert not copied_code("data/corpora/iemocap.py", "", "N = 1\n")
    assert not copied_code("data/corpora/_labels.py", "", "N = 1\n")
    after = code.notebook_digest("01_prepare_data"), code.notebook_digest("02_train_multitask")
    assert before[0] != after[0] and before[1] == after[1]


def test_the_code_of_a_notebook_counts_but_not_its_words(monkeypatch, tmp_path):
    """So a notebook that was only saved is not executed again. Commands of the shell are allowed."""
    monkeypatch.setattr(code, "NOTEBOOKS", tmp_path)

    def digest(*sources):
        cells = [{"cell_type": "code", "source": [source], "outputs": []} for source in sources]
        write_json(
            tmp_path / "a.ipynb", {"cells": [{"cell_type": "markdown", "source": []}, *cells]}
        )
        return code.notebook_digest("a")

    assert digest("x = 1  # one\n", "!nvidia-smi") == digest("x = 1", "!nvidia-smi")
    assert digest("x = 1") != digest("x = 2")


GMPS, MULTITASK = "fold{fold}/04_generate_gmps", "fold{fold}/02_train_multitask"
OWN = {"objective": "own", "encoder": "embedded", "retrain_from": "multitask"}
CHAIN = {"finetune_from": "encoder", "loss": "ce-then-ams"}


@pytest.mark.parametrize(
    ("stage", "parameters", "expected"),
    [
        ("02_train_multitask", {}, []),
        ("03_probe_layers", {"model": "encoder"}, []),
        ("03_probe_layers", {"model": "retrained"}, ["fold{fold}/05_retrain"]),
        ("04_generate_gmps", {"clustered_model": "multitask"}, [MULTITASK]),
        ("04_generate_gmps", {"clustered_model": "encoder"}, []),
        ("04_generate_gmps", {"clustered_model": "random"}, []),
        ("05_retrain", {"objective": "clusters", "retrain_from": "encoder"}, [GMPS]),
        ("05_retrain", {"objective": "contrastive", "retrain_from": "multitask"}, [MULTITASK]),
        ("05_retrain", OWN, [GMPS, MULTITASK]),
        ("06_finetune", {"finetune_from": "retrained"}, ["fold{fold}/05_retrain"]),
        ("06_finetune", {"finetune_from": "multitask"}, [MULTITASK]),
        ("06_finetune", {"finetune_from": "encoder", "loss": "ams"}, []),
        ("06_finetune", CHAIN, ["fold{fold}/06_finetune/encoder/ce"]),
        ("06_finetune", CHAIN | {"loss": "ce-then-ce"}, ["fold{fold}/06_finetune/encoder/ce"]),
        ("08_personalize", {"representations": ["none", "papt"]}, [GMPS]),
        ("08_personalize", {"representations": ["none"]}, []),
    ],
)
def test_what_a_stage_reads_is_stated_once(stage, parameters, expected):
    assert upstream(stage, parameters) == ["01_prepare_data", *expected]


def test_folders_of_runs_folds_and_stages(tmp_path):
    stage = stage_folder(str(tmp_path), stage_of("finetuned"), 12)
    assert stage == tmp_path / "fold12" / "06_finetune" / "retrained" / "ams"
    assert run_and_fold(stage) == (str(tmp_path), 12)
    assert fold_folder(str(tmp_path), 12) == tmp_path / "fold12"
    with pytest.raises(GmpError, match="one of encoder, multitask"):
        stage_of("best")


SERIES = [
    "00_pretrain_encoder", "01_prepare_data", "02_train_multitask", "03_probe_layers",
    "04_generate_gmps", "05_retrain", "06_finetune", "07_results", "08_personalize",
    "09_recognize", "explore_layers", "explore_recording",
]  # fmt: skip


def test_the_series_is_complete_and_declares_builtin_types():
    series = notebook.series_parameters()
    assert sorted(series) == SERIES
    kinds: dict[str, type] = {}
    for name, defaults in series.items():
        assert "run_dir" in defaults, name
        for parameter, value in defaults.items():
            assert type(value) in (int, float, str, bool, list, dict), parameter
            assert kinds.setdefault(parameter, type(value)) is type(value), parameter


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"foldd": 3},
            r"unknown parameter 'foldd'; did you mean fold or folds or n_folds\? 02_train_mu",
        ),
        ({"foldd": 3}, "02_train_multitask has: run_dir, fold"),
        ({"fold": "3"}, r"parameter fold: found '3' \(str\), expected int"),
        ({"fold": True}, "found True"),
        ({"multitask_learning_rate": "1e-4"}, "expected float"),
        ({"scales": [16, "64"]}, "expected list"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(GmpError, match=message):
        notebook.check_parameters("02_train_multitask", parameters)
    whole_series = {"fold": 2, "multitask_learning_rate": 1, "layer": -3}
    checked = notebook.check_parameters("02_train_multitask", whole_series)
    assert checked == {"fold": 2, "multitask_learning_rate": 1}


def test_presets_fit_the_notebooks_and_the_papers_is_the_papers():
    for path in sorted((ROOT / "presets").glob("*.yaml")):
        for name in SERIES:
            notebook.check_parameters(name, yaml.safe_load(path.read_text()))
    paper = yaml.safe_load((ROOT / "presets" / "paper.yaml").read_text())
    expected = {
        "alpha": 0.9, "layer": -3, "scales": [64, 512, 4096], "retrain_learning_rate": 1e-4,
        "finetune_batch_size": 64, "am_scale": 30.0, "am_margin": 0.2, "lstm_size": 256,
        "emotions": ["angry", "happy", "neutral", "sad"], "train_cnn": False,
    }  # fmt: skip
    assert expected.items() <= paper.items()


def test_parameters_are_written_per_notebook_and_only_if_changed(tmp_path):
    notebook.write_parameters(str(tmp_path), {"fold": 2, "corpus_dir": "a 'b' $(c)"})
    path = tmp_path / "parameters" / "01_prepare_data.yaml"
    before = path.stat().st_mtime_ns
    assert yaml.safe_load(path.read_text()) == {"corpus_dir": "a 'b' $(c)"}
    notebook.write_parameters(str(tmp_path), {"fold": 2, "corpus_dir": "a 'b' $(c)"})
    assert path.stat().st_mtime_ns == before
    with pytest.raises(GmpError, match="corpus_dirr"):
        notebook.write_parameters(str(tmp_path), {"corpus_dirr": "x"})


def test_a_notebook_with_other_parameters_than_the_workflows_is_executed_again(tmp_path, capsys):
    """Its headline is older than all inputs. The workflow sets the fold itself."""
    run = {"run_dir": str(tmp_path)}
    notebook.write_parameters(str(tmp_path), {**run, "alpha": 0.5})
    defaults = notebook.notebook_parameters(NOTEBOOKS / "02_train_multitask.ipynb") | run
    for changed, is_old in (({"alpha": 0.5, "fold": 3}, False), ({}, True)):
        notebook.start("02_train_multitask", defaults | changed)
        notebook.headline(tmp_path, "02_train_multitask", {"UAR": 0.5})
        assert (tmp_path.joinpath("headline.json").stat().st_mtime == 1) is is_old
        assert ("execute the notebook again" in capsys.readouterr().out) is is_old
    notebook._is_planned.clear()


def test_a_headline_keeps_its_date_unless_its_numbers_or_its_stage_change(tmp_path):
    path = make(tmp_path / "s") / "headline.json"
    dates = []
    for number, remade in ((1, False), (1, False), (2, False), (2, True)):
        if remade:
            make(tmp_path / "s", parameters={"a": 2})
            path.write_text('{"notebook": "n", "numbers": {"UAR": 2}}')
            os.utime(path, ns=(dates[-1], dates[-1]))
        notebook.headline(tmp_path / "s", "n", {"UAR": number})
        dates.append(path.stat().st_mtime_ns)
    assert dates[0] == dates[1] < dates[2] < dates[3]


def test_demo_check_detects_a_perturbed_number(capsys):
    defaults = notebook.notebook_parameters(NOTEBOOKS / "07_results.ipynb")
    notebook.check_demo("07_results", defaults, {"UAR": 0.52}, {"UAR": 0.5}, tolerance=0.05)
    assert capsys.readouterr().out == "ok\n"
    for moved in (0.56, float("nan")):
        notebook.check_demo("07_results", defaults, {"UAR": moved}, {"UAR": 0.5}, tolerance=0.05)
        assert "expected 0.5 ± 0.05" in capsys.readouterr().out
    notebook.check_demo(
        "07_results", defaults | {"show_speakers": True}, {"UAR": 0.9}, {"UAR": 0.5}, 0.05
    )
    assert "not compared: show_speakers" in capsys.readouterr().out


@pytest.mark.parametrize("name", SERIES)
def test_notebooks_are_small_and_tidy(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < 500_000
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    live = name.startswith("explore_")  # widgets cannot be kept
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert sorted(tags) == ["nbval-check-output"] * (not live) + ["parameters"]
    parameters = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    lines = parameters.source.splitlines()
    assert all("  # " in line and line.count("=") == 1 for line in lines)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    if live:
        assert not any(cell.outputs for cell in cells)
    else:
        assert all(cell.execution_count for cell in cells), "run `make notebooks`"
        assert cells[-1].outputs[0].text == "ok\n"
    assert "application/vnd.plotly" not in json.dumps(book)
