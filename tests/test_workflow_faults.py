"""Notebooks that die, names that bite, hosts that are asked: the workflow tells, refuses, keeps quiet."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from conftest import CLEAN, FULL, ROOT, finished, script, snakemake, tried

from gmp_utils.runs import experiments

ODD = "a \"b's $(touch x)$(shell touch y)`touch z`; touch w & | # % é ü * [0] ? \\ -"
PAPERMILL = ("papermill", "--engine", "ipc", "--kernel", "python3", "--log-output")
WAIT = "import os, time\nprint('begun', os.getpid(), flush=True)\nfor _ in range(600):\n    time.sleep(0.1)"
DIE = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def book(path, *codes):
    """A notebook of a title, parameters, and cells of code."""
    code, parameters = nbformat.v4.new_code_cell, {"tags": ["parameters"]}
    cells = [nbformat.v4.new_markdown_cell("# Title"), code("run_dir = ''", metadata=parameters)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    made = nbformat.v4.new_notebook(cells=[*cells, *map(code, codes)], metadata=metadata)
    nbformat.write(made, path)
    return path


def statuses(path):
    """How each cell of code ended, as an executed notebook has it, and the errors that it shows."""
    executed = nbformat.read(path, as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert executed.metadata.papermill.exception is True
    stopped = any(error.ename != "SystemExit" for error in shown)
    assert stopped == ("An Exception was encountered" in executed.cells[0].source)
    return [cell.metadata.papermill.status for cell in cells], shown


def left(mark):
    """Processes that still run with a mark in their environment, once they had time to end."""
    deadline = time.monotonic() + 20
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == mark:
                    found.append(process)
            except psutil.Error:
                continue
        found = [one for one in found if one.status() != psutil.STATUS_ZOMBIE]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _listen():
    """Nothing is ignored that whoever runs the tests was told to ignore, as by nohup."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)


def begin(command, mark, log, **options):
    """Start a command in a session and with a mark of its own."""
    return subprocess.Popen(
        command, env=CLEAN | {"MARK": mark}, stdout=log.open("w"), stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=_listen, **options,
    )  # fmt: skip


def stop(process, log, sent, delay=None):
    """Send a signal to all of a session: when a cell has begun, or after a while."""
    if delay is None:
        while "begun" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    time.sleep(delay or 0)
    os.killpg(process.pid, sent)
    return process.wait(60)


FAULTS = {
    "kernel killed": (
        DIE,
        "the kernel died while this cell ran. Most often the machine had no memory",
    ),
    "time-out": (WAIT, "the cell ran longer than --execution-timeout"),
    "SIGHUP": (WAIT, "stopped from outside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_executed_notebook_says_which_cell_failed_and_why(tmp_path, fault):
    code, reason = FAULTS[fault]
    source, executed = book(tmp_path / "in.ipynb", code, "print()"), tmp_path / "out.ipynb"
    limit = ("--execution-timeout", "2") if fault == "time-out" else ()
    command = [sys.executable, "-m", *PAPERMILL, *limit, str(source), str(executed)]
    process = begin(command, str(executed), tmp_path / "log", cwd=ROOT)
    if fault == "SIGHUP":
        stop(process, tmp_path / "log", signal.SIGHUP)
    assert process.wait(60) == 1
    ended, (error,) = statuses(executed)
    assert ended[-3:] == ["completed", "failed", "pending"]
    assert error.evalue.startswith(reason)
    assert reason in (tmp_path / "log").read_text()
    assert not left(str(executed))
    tried(
        f"{fault}, one notebook", 1, "cell failed, later ones pending, reason shown, exit status 1"
    )


def test_signals_at_any_moment_leave_neither_processes_nor_success(tmp_path):
    rng, times = random.Random(0), 20 if FULL else 2
    source = book(tmp_path / "in.ipynb", WAIT, "print()")
    for number in range(times):
        executed, log = tmp_path / f"out{number}.ipynb", tmp_path / f"log{number}"
        command = [sys.executable, "-m", *PAPERMILL, str(source), str(executed)]
        process = begin(command, str(executed), log, cwd=ROOT)
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        assert stop(process, log, sent, rng.uniform(0.5, 4)), sent
        assert not left(str(executed)), (number, sent)
        if executed.exists():
            cells = nbformat.read(executed, as_version=4).cells
            assert cells[-1].metadata.papermill.status == "pending", (number, sent)
    tried(
        "SIGINT or SIGTERM at a random moment of a notebook",
        times,
        "no success, nothing left running",
    )


@pytest.fixture
def checkout(tmp_path):
    """This checkout's workflow with one notebook instead of 01, and a `make` that finds packages."""
    own = tmp_path / "checkout"
    (own / ".venv").mkdir(parents=True)
    for name in ("Makefile", "workflow", "gmp_utils", "presets"):
        (own / name).symlink_to(ROOT / name)
    (own / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (own / name).touch()
    shutil.copytree(ROOT / "notebooks", own / "notebooks")

    def start(code, *arguments):
        book(own / "notebooks" / "01_prepare_data.ipynb", code, "print()")
        return begin(["make", *arguments], str(own), own / "log", cwd=own), own / "log"

    return start


MADE = {
    "the kernel is killed": (DIE, None, "the kernel died while this cell ran. Most often"),
    "the notebook calls sys.exit(0)": ("import sys\nsys.exit(0)", None, "headline.json"),
    "Ctrl-C": (WAIT, signal.SIGINT, "stopped from outside: by Ctrl-C"),
    "SIGTERM to all": (WAIT, signal.SIGTERM, "stopped from outside: by Ctrl-C"),
}


@pytest.mark.parametrize("fault", MADE)
def test_make_fails_where_a_notebook_did(checkout, tmp_path, fault):
    if fault == "SIGTERM to all" and not FULL:
        pytest.skip("alone above, with make where FAULTS=full")
    code, sent, reason = MADE[fault]
    run = tmp_path / "run"
    process, log = checkout(code, "run", f"RUN={run}", "CORES=1", "GPUS=0")
    status = stop(process, log, sent) if sent else process.wait(120)
    assert status in ((-sent, 2) if sent else (2,)), log.read_text()
    assert not left(str(tmp_path / "checkout"))
    said = log.read_text()
    assert reason in said
    assert "notebooks/01_prepare_data.ipynb" in said
    assert not (run / "01_prepare_data" / "headline.json").exists()
    ended, _ = statuses(run / "notebooks" / "01_prepare_data.ipynb")
    assert ended[-2:] == ["failed", "pending"]
    tried(f"make run, {fault}", 1, "make fails, notebook and reason named, nothing left running")


SETTINGS = ("RUN", "CORPUS_DIR", "ENCODER", "PRESET", "NAME")
STUB = """#!{python}
import json, os, sys
print("said", json.dumps([sys.argv[1:], [os.environ.get(name) for name in {names}]]))
"""


@pytest.mark.parametrize("target", ["run", "experiment", "plan", "report", "bench", "help"])
def test_neither_make_nor_a_shell_reads_what_is_typed(tmp_path, target):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).touch()
    for name in ("python", "snakemake"):
        stub = tmp_path / ".venv" / "bin" / name
        stub.write_text(STUB.format(python=sys.executable, names=SETTINGS))
        stub.chmod(0o755)
    before, given = set(tmp_path.rglob("*")), {name: ODD + name for name in SETTINGS}
    line = [f"{name}={value}" for name, value in given.items()]
    for arguments, environment in ((line, {}), ([], given)):
        done = subprocess.run(
            ["make", target, *arguments, "CORES=2; touch v", "GPUS=`touch u`"],
            cwd=tmp_path, env=CLEAN | environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if target == "help":
            assert f"RUN='{ODD}RUN'" in done.stdout
        else:
            (said,) = [one for one in done.stdout.splitlines() if one.startswith("said")]
            arguments, values = json.loads(said.removeprefix("said"))
            assert values == list(given.values())
            assert ("2; touch v" in arguments) == (target in ("run", "experiment"))
            assert (given["CORPUS_DIR"] in arguments) == (target == "bench")
    assert set(tmp_path.rglob("*")) == before


def odd_settings(smoke, run):
    """The smoke experiment's settings with everything at paths that would bite."""
    given = smoke(run)
    run.parent.mkdir()
    declared = experiments.CONFIG / "smoke.yaml"
    moved = {"EXPERIMENT": declared, "PRESET": given["PRESET"], "ENCODER": given["ENCODER"]}
    for name, path in (moved | {"CORPUS_DIR": Path(given["CORPUS_DIR"]).parent}).items():
        copy = shutil.copytree if Path(path).is_dir() else shutil.copy
        copy(path, run.with_name(f"{name} {ODD}{Path(path).suffix}"))
        given[name] = str(run.with_name(f"{name} {ODD}{Path(path).suffix}"))
    return given | {"CORPUS_DIR": given["CORPUS_DIR"] + "/table.csv"}


def test_names_reach_a_notebook_unharmed(checkout, smoke, tmp_path):
    code = (
        "import json, pathlib\n"
        "pathlib.Path(run_dir, 'told').write_text(json.dumps([run_dir, corpus_dir]))\n"
        "raise SystemExit('enough')"
    )
    run = tmp_path / ODD / "run"
    given = odd_settings(smoke, run)
    given["NAME"] = given.pop("EXPERIMENT")
    line = [f"{name}={value}" for name, value in given.items() if name != "BROWSER_PATH"]
    process, log = checkout(code, "experiment", *line, "CORES=1", "GPUS=0")
    assert process.wait(120) == 2
    assert "enough" in log.read_text()
    for variant in ("gmps", "no-gmps"):
        own = run / variant / "seed0"
        assert json.loads((own / "told").read_text()) == [str(own), given["CORPUS_DIR"]]
        written = yaml.safe_load((own / "parameters" / "02_train_multitask.yaml").read_text())
        assert written["encoder"] == given["ENCODER"]
        assert yaml.safe_load((own / "parameters/04_generate_gmps.yaml").read_text())["scales"] == [
            4,
            8,
        ]
    touched = [path for path in (tmp_path / "checkout").iterdir() if len(path.name) == 1]
    assert touched == []
    tried("quotes, spaces, $(…), backticks, ; and & in names of files and folders", 13, "as typed")


@pytest.mark.skipif(not FULL, reason="takes two minutes; make test-faults, or FAULTS=full")
def test_an_experiment_runs_and_is_reported_under_odd_names(smoke, tmp_path):
    run = tmp_path / ODD / "run"
    given = odd_settings(smoke, run)
    finished(snakemake(given))
    assert "2 runs, 2 done" in finished(script("plan", given))
    assert "report.html" in finished(script("report", given))
    assert "GMPs" in (run / "report.html").read_text()
    tried("an experiment with plan and report under such names", 1, "as under others")
