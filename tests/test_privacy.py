"""No host is contacted, no speaker is named, and only EmoDB and synthetic voices are committed."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from conftest import CLEAN, ROOT, classifier, cli, finished, needs_browser, python, python_path
from IPython.display import Audio
from PIL import Image

from gmp_utils import GmpError
from gmp_utils.evaluation import comparison
from gmp_utils.figures import style
from gmp_utils.figures.style import player
from gmp_utils.runs import experiments

sys.path.insert(0, str(ROOT / "workflow"))
import commit_outputs

COMMITTED = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
assert len(COMMITTED) == 10

HOOK = """
import sys

ADDRESS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}

def note(*words):
    with open(%r, "a") as file:
        print(*words, file=file)

def hook(event, arguments):
    if event in ADDRESS:
        note(event, repr(arguments[ADDRESS[event]]))

note("started", repr(sys.orig_argv))
sys.addaudithook(hook)
"""
LOCAL = r"\w+\.\w+ (b?'(/|\\x00)|\(?'(127\.0\.0\.1|::1|localhost)'|None)"


@pytest.fixture
def audited(tmp_path):
    """An environment whose Python processes log addresses that they connect to or look up, and the log."""
    site, log = tmp_path / "site", tmp_path / "log"
    site.mkdir()
    log.touch()
    (site / "sitecustomize.py").write_text(HOOK % str(log))

    def lines(started=False):
        logged = log.read_text().splitlines()
        return [line for line in logged if line.startswith("started") == started]

    return python_path(site), lines


def test_the_hook_logs_addresses(audited):
    environment, log = audited
    code = (
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('elsewhere.invalid', 443)\n"
        "with contextlib.suppress(OSError): socket.socket().connect(('127.0.0.1', 9))\n"
        "with contextlib.suppress(OSError): socket.socket(socket.AF_UNIX).connect('/nowhere')\n"
    )
    python("-c", code, env=CLEAN | environment, check=True)
    assert [bool(re.match(LOCAL, line)) for line in log()] == [False, True, True]


def network_namespace():
    """A command that runs another one without a network, if that is permitted."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"]).returncode:
            return command
    return []


@pytest.mark.slow
def test_a_run_contacts_no_host_and_needs_none(smoke, audited, tmp_path):
    """Up to notebook 05, in a separate network namespace if that is permitted."""
    environment, log = audited
    run = tmp_path / "run"
    headline = run / "gmps/seed0/fold1/05_retrain/headline.json"
    settings = smoke(run) | {"preset": [smoke(run)["preset"]]}
    plan = experiments.lay_out(experiments.Settings(**settings))
    with experiments.prepare(plan):
        command = plan.command(tmp_path / "plan.json", "--cores", "2", str(headline))
        done = subprocess.run(
            [*network_namespace(), *command],
            cwd=ROOT, env=CLEAN | environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert headline.is_file()
    assert sum("ipykernel_launcher" in line for line in log(started=True)) >= 1
    assert [line for line in log() if not re.match(LOCAL, line)] == []


def test_requests_to_the_hub_are_minimal_unless_the_user_sets_otherwise():
    code = "import os, gmp_utils; print(*(os.environ[name] for name in %r))"
    names = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION")
    unset = {name: value for name, value in CLEAN.items() if name not in names}
    for variables, expected in (({}, "1 1"), (dict.fromkeys(names, "0"), "0 0")):
        done = python("-c", code % (names,), env=unset | variables)
        assert done.stdout.strip() == expected


@pytest.mark.slow
@needs_browser
def test_pictures_are_drawn_without_a_request(tmp_path):
    """Checked by Chromium's log: by default, it contacts its vendor, and Kaleido a host of MathJax."""
    browser, log = tmp_path / "chromium", tmp_path / "net.json"
    browser.write_text(f'#!/bin/sh\nexec "{style.browser()}" --log-net-log="{log}" "$@"\n')
    browser.chmod(0o755)
    code = (
        "import sys, time\n"
        "from plotly import graph_objects\n"
        "from gmp_utils.figures.style import show\n"
        "show(graph_objects.Figure(), sys.argv[1], 'empty')\n"
        "time.sleep(2)\n"
    )
    environment = CLEAN | {"BROWSER_PATH": str(browser)}
    python("-c", code, tmp_path / "run", env=environment, check=True)
    assert (tmp_path / "run" / "figures" / "empty.png").is_file()
    first, *lines = log.read_text().split(",\n")
    types = json.loads(first + "}")["constants"]["logEventTypes"]
    events = [json.loads(line) for line in lines[1:] if line.startswith("{") and line.endswith("}")]
    by_type = {name: [event for event in events if event["type"] == types[name]] for name in types}
    addresses = [event.get("params", {}).get("address") for event in by_type["TCP_CONNECT_ATTEMPT"]]
    assert set(filter(None, addresses)) == {"127.0.0.1:9"}  # its proxy, which is not there
    assert by_type["UDP_BYTES_SENT"] == by_type["HOST_RESOLVER_MANAGER_JOB"] == []


def test_results_and_report_hold_no_speaker_names_and_no_sound(noise_corpus, audited, tiny_encoder):
    """Speakers are named "1f", "1m", "2f", …, and utterances "1f0", …."""
    environment, log = audited
    classifier(noise_corpus, tiny_encoder, "ams")
    finished(cli("report", {"run_dir": str(noise_corpus)}, environment=environment))
    assert [line for line in log() if not re.match(LOCAL, line)] == []
    patterns = ("07_results/table.*", "07_results/*.md", "07_results/c*.csv", "figures/07-*.html")
    others = ("report.html", "notebooks/07_report.ipynb")
    published = [path for pattern in (*patterns, *others) for path in noise_corpus.glob(pattern)]
    assert len(published) >= 5 + 2 + 4 + 2
    for path in published:
        text = re.sub(r"(?s)<style.*?</style>", "", path.read_text())
        assert not re.findall(r"(?<![\w.-])[123][fm]\d{0,2}(?![\w-])", text), path
        assert "<audio" not in text and "data:audio" not in text, path
    assert "speaker 1" in (noise_corpus / "figures" / "07-speakers.html").read_text()
    predictions = pd.read_parquet(noise_corpus / "07_results" / "predictions.parquet")
    assert set(predictions.speaker) == {"1f", "1m"}  # for those who have the run


def test_speakers_are_named_on_request(tmp_path):
    predictions = pd.DataFrame({"speaker": ["Zoë", "Ann", "Zoë"]})
    assert comparison.speaker_labels(predictions) == {"Ann": "speaker 1", "Zoë": "speaker 2"}
    assert comparison.speaker_labels(predictions, names=True) == {"Ann": "Ann", "Zoë": "Zoë"}
    (tmp_path / "preset.yaml").write_text("show_speakers: true\n")
    for experiment in (None, "smoke"):
        run, preset = tmp_path / f"run{experiment}", [str(tmp_path / "preset.yaml")]
        settings = experiments.Settings(experiment, run_dir=str(run), preset=preset)
        experiments.write(experiments.lay_out(settings))
        written = yaml.safe_load((run / "parameters" / "07_results.yaml").read_text())
        assert written["show_speakers"] is True


def executed(name, **changes):
    """A notebook executed by papermill, with changes."""
    metadata = {"parameters": {"run_dir": "runs/demo"}, "exception": None, "end_time": "2026-01-02"}
    return nbformat.from_dict({"metadata": {"papermill": metadata | changes}, "cells": []})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"corpus": "savee"}}, "corpus was 'savee'"),
        ({"parameters": {"corpus_dir": "wav"}}, "corpus_dir was 'wav'"),
        ({"parameters": {"run_dir": "runs/emodb"}}, "run_dir was 'runs/emodb'"),
        ({"exception": True}, "it did not finish"),
        ({"end_time": "2026-01-01"}, "it is older than that of 01_prepare_data"),
    ],
)
def test_only_outputs_of_the_demo_are_committed(changes, words):
    books, prepared = books_of_the_demo()
    commit_outputs.reject_others(books, prepared)
    books["07_results"] = executed("07_results", **changes)
    with pytest.raises(GmpError, match=f"07_results: .*{words}"):
        commit_outputs.reject_others(books, prepared)
    books, prepared = books_of_the_demo()
    prepared["runs/personal"].metadata.papermill.parameters["corpus"] = "emodb"
    with pytest.raises(GmpError, match=r"01_prepare_data: .*corpus was 'emodb'"):
        commit_outputs.reject_others(books, prepared)


def books_of_the_demo():
    """Every committed notebook as executed by the demo, and both runs' notebook 01."""
    personal = {"parameters": {"run_dir": "runs/personal"}}
    books = {path.stem: executed(path.stem) for path in COMMITTED}
    books["08_personalize"] = executed("08_personalize", **personal)
    corpus = {"parameters": personal["parameters"] | {"corpus": "synthetic_speakers"}}
    mine = executed("01_prepare_data", **corpus, end_time="2026-01-01")
    return books, {"runs/demo": books["01_prepare_data"], "runs/personal": mine}


def test_figures_are_reduced_and_only_compressed_sounds_are_kept():
    colors = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colors).save(file, "PNG")
    figure = {"image/png": base64.b64encode(file.getvalue()).decode()}
    second = np.sin(np.arange(16000) / 9)
    sounds = [{"text/html": x._repr_html_()} for x in (Audio(second, rate=16000), player(second))]
    outputs = [nbformat.v4.new_output("display_data", data) for data in (figure, *sounds)]
    cell = nbformat.v4.new_code_cell(outputs=outputs)
    book = commit_outputs.committed(nbformat.v4.new_notebook(cells=[cell]))
    kept_figure, kept_sound = (output.data for output in book.cells[0].outputs)
    image = Image.open(io.BytesIO(base64.b64decode(kept_figure["image/png"])))
    assert (image.size, len(image.getcolors())) == ((50, 50), 256)
    assert "data:audio/ogg" in kept_sound["text/html"]
    encoded = kept_sound["text/html"].split("base64,")[1].split('"')[0]
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert (len(decoded), rate) == (16000, 16000)
    assert np.corrcoef(decoded, second)[0, 1] > 0.99  # the codec is lossy


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_outputs_are_the_demos(path):
    text, cells = path.read_text(), nbformat.read(path, as_version=4).cells
    assert not re.search("data:audio(?!/ogg)", text)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert all(len(figure) * 3 / 4 < 60_000 for figure in figures)
    printed = "\n".join(output.text for output in outputs if "text" in output)
    run = "runs/personal" if path.stem == "08_personalize" else "runs/demo"
    assert re.findall(r"(?m)\brun (\S+)$", printed) == [run]
