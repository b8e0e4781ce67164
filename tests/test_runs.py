import json
import subprocess
import sys

import nbformat
import pytest

from gmp_utils import GmpError
from gmp_utils.runs import notebook
from gmp_utils.runs.files import read_json, text_digest
from gmp_utils.runs.paths import NOTEBOOKS, ROOT
from gmp_utils.runs.stage import CACHE, check_and_identify, make_stage, notebook_sources, sources


def make(folder, build, **changes):
    settings = {"parameters": {"a": 1}, "inputs": ["x"], "module": "gmp_utils.runs.paths"} | changes
    return make_stage(folder, build, **settings)


def test_a_stage_is_made_once(tmp_path, capsys):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "result.txt").write_text("done")

    stage = make(tmp_path / "s", build)
    assert make(tmp_path / "s", build) == stage
    assert len(calls) == 1
    assert "same parameters" in capsys.readouterr().out
    provenance = read_json(stage / "provenance.json")
    assert provenance["inputs"] == ["x"]
    assert set(provenance["files"]) == {"params.json", "result.txt"}
    assert provenance["files"]["result.txt"] == text_digest("done")
    assert read_json(stage / "params.json") == {"a": 1}


@pytest.mark.parametrize(
    "changes",
    [{"parameters": {"a": 2}}, {"inputs": ["y"]}, {"module": "gmp_utils.models.losses"}],
)
def test_what_matters_makes_it_anew(tmp_path, changes):
    calls = []
    make(tmp_path / "s", calls.append)
    make(tmp_path / "s", calls.append, **changes)
    assert len(calls) == 2


def test_an_interrupted_stage_is_not_there_and_goes_on(tmp_path):
    def broken(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", broken)
    assert not (tmp_path / "s").exists()
    with pytest.raises(GmpError, match="01_prepare_data"):
        check_and_identify(tmp_path / "01_prepare_data")
    found = []
    make(tmp_path / "s", lambda folder: found.append((folder / "half.txt").exists()))
    assert found == [True]


def test_leftovers_of_another_attempt_are_not_reused(tmp_path):
    def broken(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(tmp_path / "s", broken)
    found = []
    make(
        tmp_path / "s",
        lambda folder: found.append((folder / "half.txt").exists()),
        parameters={"a": 2},
    )
    assert found == [False]


def test_a_stage_made_from_another_than_the_one_there_is_refused(tmp_path):
    """01 is made anew; 02, made from the old 01, and 03, made from that 02, count no more."""
    first, second = tmp_path / "01_prepare_data", tmp_path / "fold1" / "02_train_multitask"
    third = tmp_path / "fold1" / "06_finetune" / "gmps" / "ce"
    make(first, lambda folder: None)
    make(second, lambda folder: None, stages=[first])
    make(third, lambda folder: None, stages=[second])
    before = check_and_identify(third)
    make(first, lambda folder: None, parameters={"a": 2})
    for folder in (second, third):
        with pytest.raises(
            GmpError, match=r"02_train_multitask was made from another .*01_prepare"
        ):
            check_and_identify(folder)
    make(second, lambda folder: None, stages=[first])
    with pytest.raises(
        GmpError, match=r"ce was made from another .*02_train.*06_finetune\.ipynb again"
    ):
        check_and_identify(third)
    make(third, lambda folder: None, stages=[second])
    assert check_and_identify(third) != before


def test_runs_beside_each_other_share_stages_where_they_are_meant_to(tmp_path, capsys):
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
    make(tmp_path / "c" / "s", build, parameters={"a": 2})
    assert len(calls) == 4
    make(first, build, parameters={"a": 3})  # what the note points to is another stage by now
    make(tmp_path / "d" / "s", build)
    assert len(calls) == 6
    assert (second / "inside" / "result.txt").read_text() == "done"


def test_two_processes_make_a_stage_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from gmp_utils.runs.stage import make_stage\n"
        "def build(folder):\n"
        "    (folder / 'built').open('x').close(); time.sleep(1)\n"
        "make_stage(Path(sys.argv[1]), build, parameters={}, module='gmp_utils.runs.paths')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("is there" in text for text in said) == 1


def test_sources_follow_imports_and_nothing_else():
    names = {path.name for path in sources("gmp_utils.stages.generate_gmps")}
    assert {"generate_gmps.py", "encoder.py", "kmeans.py", "stage.py"} <= names
    assert not {"style.py", "finetune.py", "probe_layers.py"} & names


def test_a_notebook_needs_what_it_imports():
    names = {path.name for path in notebook_sources("06_finetune")}
    assert {"finetune.py", "layers.py", "probe_layers.py", "notebook.py"} <= names
    assert "pretrain_encoder.py" not in names
    assert "emodb.py" not in names


SERIES = [
    "00_pretrain_encoder",
    "01_prepare_data",
    "02_train_multitask",
    "03_probe_layers",
    "04_generate_gmps",
    "05_retrain",
    "06_finetune",
    "07_results",
    "08_personalize",
    "09_recognize",
    "explore_layers",
    "explore_recording",
]


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
    ("given", "message"),
    [
        ({"foldd": 3}, "unknown parameter 'foldd'; 02_train_multitask has: run_dir, fold"),
        ({"fold": "3"}, r"parameter fold: found '3' \(str\), expected int"),
        ({"fold": True}, "found True"),
        ({"fold": 1.0}, "expected int"),
        ({"learning_rate": "1e-4"}, "expected float"),
        ({"scales": [16, "64"]}, "expected list"),
        ({"train_cnn": 1}, "expected bool"),
    ],
)
def test_parameters_are_checked(given, message):
    with pytest.raises(GmpError, match=message):
        notebook.check_parameters("02_train_multitask", given)


def test_a_preset_may_hold_the_whole_series():
    given = {"fold": 2, "learning_rate": 1, "layer": -3}
    assert notebook.check_parameters("02_train_multitask", given) == {"fold": 2, "learning_rate": 1}


def test_presets_fit_the_notebooks():
    import yaml

    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert "paper.yaml" in [path.name for path in presets]
    for path in presets:
        given = yaml.safe_load(path.read_text())
        for name in SERIES:
            notebook.check_parameters(name, given)


def test_paper_preset_is_the_papers():
    import yaml

    paper = yaml.safe_load((ROOT / "presets" / "paper.yaml").read_text())
    expected = {
        "alpha": 0.9, "layer": -3, "scales": [64, 512, 4096], "learning_rate": 1e-4,
        "batch_size": 64, "am_scale": 30.0, "am_margin": 0.2, "lstm_size": 256,
        "emotions": ["angry", "happy", "neutral", "sad"], "train_cnn": False,
    }  # fmt: skip
    assert expected.items() <= paper.items()


def test_parameters_are_written_per_notebook_and_left_alone(tmp_path):
    notebook.write_parameters(str(tmp_path), {"fold": 2, "corpus_dir": "a 'b' $(c)"})
    path = tmp_path / "parameters" / "01_prepare_data.yaml"
    before = path.stat().st_mtime_ns
    import yaml

    assert yaml.safe_load(path.read_text()) == {"corpus_dir": "a 'b' $(c)"}
    notebook.write_parameters(str(tmp_path), {"fold": 2, "corpus_dir": "a 'b' $(c)"})
    assert path.stat().st_mtime_ns == before
    with pytest.raises(GmpError, match="corpus_dirr"):
        notebook.write_parameters(str(tmp_path), {"corpus_dirr": "x"})


def test_demo_check_sees_a_perturbed_number(capsys):
    defaults = notebook.notebook_parameters(NOTEBOOKS / "07_results.ipynb")
    notebook.check_demo("07_results", defaults, {"UAR": 0.52}, {"UAR": 0.5}, tolerance=0.05)
    assert capsys.readouterr().out == "ok\n"
    for moved in (0.56, float("nan")):
        notebook.check_demo("07_results", defaults, {"UAR": moved}, {"UAR": 0.5}, tolerance=0.05)
        assert "on record 0.5 ± 0.05" in capsys.readouterr().out
    notebook.check_demo("07_results", defaults | {"seed": 7}, {"UAR": 0.9}, {"UAR": 0.5}, 0.05)
    assert "not compared: seed" in capsys.readouterr().out


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
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if live:
        assert not any(cell.outputs for cell in code)
    else:
        assert all(cell.execution_count for cell in code), "run `make notebooks`"
        assert code[-1].outputs[0].text == "ok\n"
    assert "application/vnd.plotly" not in json.dumps(book)
