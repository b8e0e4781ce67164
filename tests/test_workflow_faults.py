"""Notebooks that die, processes that are stopped, and names with quotes and `$()`."""

import contextlib
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
from conftest import CLEAN, ROOT

ODD = "a \"b's $(touch x)$(shell touch y)`touch z`; touch w & | # % é ü * [0] ? \\ -"
PAPERMILL = ("papermill", "--engine", "ipc", "--kernel", "python3", "--log-output")
WAIT = "import time\nprint('waiting here', flush=True)\nfor _ in range(600):\n    time.sleep(0.1)"
DIE = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def book(path, *codes, parameters="run_dir = ''"):
    """Write a notebook with a title, parameters and code cells."""
    code, tags = nbformat.v4.new_code_cell, {"tags": ["parameters"]}
    cells = [nbformat.v4.new_markdown_cell("# Title"), code(parameters, metadata=tags)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    made = nbformat.v4.new_notebook(cells=[*cells, *map(code, codes)], metadata=metadata)
    nbformat.write(made, path)
    return path


def statuses(path):
    """The status of each code cell of an executed notebook, and its errors."""
    executed = nbformat.read(path, as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert executed.metadata.papermill.exception is True
    stopped = any(error.ename != "SystemExit" for error in shown)
    assert stopped == ("An Exception was encountered" in executed.cells[0].source)
    return [cell.metadata.papermill.status for cell in cells], shown


def left(mark):
    """Processes with a mark in their environment that still run after some time to end."""
    deadline = time.monotonic() + 60  # a kernel that is starting ends once it finds no parent
    while True:
        marked = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("MARK") == mark and process.status() != "zombie":
                    marked.append(process)
        if not marked or time.monotonic() > deadline:
            return marked
        time.sleep(0.2)


def _default_signals():
    """Ignore no signal, even if the tests run under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def begin(command, mark, log, **options):
    """Start a command in its own session, with its own mark."""
    return subprocess.Popen(
        command, env=CLEAN | {"MARK": mark}, stdout=log.open("w"), stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=_default_signals, **options,
    )  # fmt: skip


def stop(process, log, sent, delay=None):
    """Send a signal to all processes of a session, when a cell waits or after some time."""
    if delay is None:
        while "waiting here" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    time.sleep(delay or 0)
    os.killpg(process.pid, sent)
    return process.wait(60)


FAULTS = {
    "kernel killed": (DIE, "the kernel died while this cell ran"),
    "time-out": (WAIT, "the cell ran longer than --execution-timeout"),
    "SIGHUP": (WAIT, "stopped from outside"),
}


@pytest.mark.slow
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


@pytest.mark.slow
def test_signals_at_any_moment_leave_neither_processes_nor_success(tmp_path):
    rng, times = random.Random(0), 8
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


@pytest.fixture
def checkout(tmp_path):
    """A checkout with another notebook instead of 01, and a `make` that finds packages."""
    copy = tmp_path / "checkout"
    (copy / ".venv").mkdir(parents=True)
    for name in ("Makefile", "workflow", "presets"):
        (copy / name).symlink_to(ROOT / name)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (copy / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (copy / name).touch()
    cache = shutil.ignore_patterns("__pycache__")
    for name in ("gmp_utils", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=cache)

    def start(code, *arguments):
        path = copy / "notebooks" / "01_prepare_data.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        book(path, code, "print()", parameters=tagged[0].source)
        return begin(["make", *arguments], str(copy), copy / "log", cwd=copy), copy / "log"

    return start


MADE = {
    "the kernel is killed": (DIE, None, "the kernel died while this cell ran"),
    "the notebook calls sys.exit(0)": ("import sys\nsys.exit(0)", None, "headline.json"),
    "Ctrl-C": (WAIT, signal.SIGINT, "stopped from outside: by Ctrl-C"),
    "SIGTERM to all": (WAIT, signal.SIGTERM, "stopped from outside: by Ctrl-C"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MADE)
def test_make_fails_if_a_notebook_does(checkout, tmp_path, fault):
    code, sent, reason = MADE[fault]
    run = tmp_path / "run"
    process, log = checkout(code, "run", f"RUN={run}", "CORES=1", "GPUS=0")
    status = stop(process, log, sent) if sent else process.wait(120)
    assert status in ((-sent, 2) if sent else (2,)), log.read_text()
    assert not left(str(tmp_path / "checkout"))
    printed = log.read_text()
    assert reason in printed
    assert "notebooks/01_prepare_data.ipynb" in printed
    assert "Traceback" not in printed.split("Executed notebooks")[-1]
    assert not (run / "01_prepare_data" / "headline.json").exists()
    statuses_of_cells, _ = statuses(run / "notebooks" / "01_prepare_data.ipynb")
    assert statuses_of_cells[-2:] == ["failed", "pending"]


TYPED = ("RUN", "CORPUS_DIR", "ENCODER", "PRESET", "NAME")
STUB = f"#!{sys.executable}\nimport json, sys\nprint('arguments', json.dumps(sys.argv[1:]))\n"


@pytest.mark.parametrize("target", ["run", "experiment", "plan", "report", "bench"])
def test_neither_make_nor_a_shell_expands_values(tmp_path, target):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).touch()
    stub = tmp_path / ".venv" / "bin" / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    before, typed = set(tmp_path.rglob("*")), {name: ODD + name for name in TYPED}
    line = [f"{name}={value}" for name, value in typed.items()]
    wsl = {"WSL_DISTRO_NAME": "Ubuntu", "NAME": "DESKTOP-1"}  # there, NAME is the computer's
    done = subprocess.run(
        ["make", target], cwd=tmp_path, env=CLEAN | wsl, capture_output=True, text=True, check=False
    )
    assert "DESKTOP-1" not in done.stdout
    for arguments, environment in ((line, {}), ([], typed)):
        done = subprocess.run(
            ["make", target, *arguments, "CORES=2; touch v", "GPUS=`touch u`", "FOLDS=1 2; touch w"],
            cwd=tmp_path, env=CLEAN | environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (passed,) = [text for text in done.stdout.splitlines() if text.startswith("arguments")]
        passed = json.loads(passed.removeprefix("arguments"))
        if target == "bench":
            assert passed[1:] == ["--recordings", typed["CORPUS_DIR"]]
            continue
        assert passed[passed.index("--folds") + 1 :][:4] == ["1", "2;", "touch", "w"]
        for name in TYPED[:-1]:
            option = {"RUN": "--run-dir"}.get(name, f"--{name.lower().replace('_', '-')}")
            assert passed[passed.index(option) + 1] == typed[name]
        assert (typed["NAME"] in passed) == (target != "run")
        assert ("2; touch v" in passed) == (target in ("run", "experiment"))
    assert set(tmp_path.rglob("*")) == before
