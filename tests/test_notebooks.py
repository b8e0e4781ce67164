"""The demo as a user runs it, every notebook under nbval, and what must fail."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile
from conftest import EMODB, ROOT, cli, finished, make, python, succeeded
from test_pages import TEXTS, blocks

from gmp_utils.data.corpus import open_corpus
from gmp_utils.stages.recognize import recognize

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
assert len(NOTEBOOKS) == 10
PERSONAL = "RECIPE=papt", "CORPUS=synthetic_speakers", "RUN=runs/personal"  # as make notebooks


def nbval(*arguments):
    """Run a notebook's cells under nbval."""
    options = "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", 2400
    return python(
        "-m", "pytest", *options, "-p", "no:cacheprovider", "-q", *arguments, timeout=3600
    )


@pytest.fixture(scope="session")
def demo():
    """`make run`, as in README. It starts from nothing only if there is no earlier run."""
    return succeeded(make("run"))


def test_make_run_ends_with_table_and_paths(demo):
    if not demo:
        pytest.skip("the demo was made before, so there was nothing to do")
    assert "| variant" in demo
    lines = [line.strip() for line in demo.splitlines()]
    figures = [line for line in lines if line.startswith("figures/demo/")]
    executed = [line for line in lines if line.startswith("runs/demo/notebooks/0")]
    others = "00_pretrain_encoder.ipynb", "09_recognize.ipynb"  # `make notebooks` puts them there
    executed = [path for path in executed if not path.endswith(others)]
    assert len(figures) >= 15
    assert len(executed) == 7
    assert all((ROOT / path).is_file() for path in figures + executed)


def test_a_second_make_run_does_no_work_and_says_so(demo):
    results = (ROOT / "runs" / "demo").rglob("*/*.json")  # the plan next to them is written again
    made = {path: path.stat().st_mtime_ns for path in results}
    assert made
    again = make("run")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
    assert made == {path: path.stat().st_mtime_ns for path in made}


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "08_personalize"))
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_nbval(demo, notebook):
    if notebook.stem == "08_personalize":
        assert "PLDC both" in succeeded(make("run", *PERSONAL))
    succeeded(nbval(notebook))


def test_nbval_fails_on_a_moved_number(demo, tmp_path):
    results = ROOT / "notebooks" / "07_results.ipynb"
    book = nbformat.read(results, as_version=4)
    cell = next(cell for cell in reversed(book.cells) if cell.cell_type == "code")
    assert "expected = {" in cell.source
    cell.source = cell.source.replace("expected = {", "expected = {'UAR, GMPs, CE': 9.9} or {")
    moved = tmp_path / results.name
    nbformat.write(book, moved)
    done = nbval("--rootdir", tmp_path, moved)
    assert done.returncode == 1
    assert "expected 9.9" in done.stdout


def papermill(tmp_path, notebook, *arguments):
    executed = tmp_path / "out.ipynb"
    return python("-m", "papermill", f"notebooks/{notebook}.ipynb", executed, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-p", "foldd", "3"),
            "mean fold or folds or n_folds? 02_train_multitask has: run_dir, fold",
        ),
        (("-p", "run_dir", "runs/none"), "run notebooks/01_prepare_data.ipynb"),
    ],
)
def test_papermill_stops_before_any_work(demo, tmp_path, arguments, message):
    done = papermill(tmp_path, "02_train_multitask", *arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "epoch 1" not in done.stdout + done.stderr


def test_notebooks_that_start_together_share_no_ports(tmp_path):
    """The workflow's kernels use sockets in files, and this environment.

    Here TMPDIR is too long for a socket, and the kernel of another environment is named python3.
    """
    spec = {"argv": ["/absent/python"], "display_name": "other", "language": "python"}
    (tmp_path / "jupyter/kernels/python3").mkdir(parents=True)
    (tmp_path / "jupyter/kernels/python3/kernel.json").write_text(json.dumps(spec))
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert "--engine ipc" in (ROOT / "workflow" / "Snakefile").read_text()
    code = (
        "import ipykernel, sys\nipykernel.get_connection_info(unpack=True)['transport'], sys.prefix"
    )
    cell = nbformat.v4.new_code_cell(code)
    asked = tmp_path / "asked.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), asked)
    options = "--engine", "ipc", "--kernel", "python3", "--log-output"
    environment = os.environ | {"TMPDIR": str(long), "JUPYTER_PATH": str(tmp_path / "jupyter")}
    succeeded(python("-m", "papermill", *options, asked, tmp_path / "out.ipynb", env=environment))
    answer = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0]
    assert answer.data["text/plain"] == repr(("ipc", sys.prefix))


@pytest.mark.slow
def test_papermill_takes_another_fold_and_a_preset(demo, tmp_path):
    """In another run folder, so that the demo does not change. -p comes after -f and overrides it."""
    run = tmp_path / "run"
    for made in ("recordings", "01_prepare_data"):
        shutil.copytree(ROOT / "runs" / "demo" / made, run / made)
    done = papermill(tmp_path, "02_train_multitask", "-f", "presets/quick.yaml",
                     "-p", "fold", "2", "-p", "run_dir", run, "-p", "alpha", "1")  # fmt: skip
    succeeded(done)
    parameters = json.loads((run / "fold2" / "02_train_multitask" / "params.json").read_text())
    assert (parameters["fold"], parameters["alpha"]) == (2, 1)
    assert parameters["training"]["epochs"] == 1


def test_the_workflow_probes_the_model_that_a_preset_names(tmp_path):
    (tmp_path / "preset.yaml").write_text("model: retrained\n")
    settings = {"preset": str(tmp_path / "preset.yaml"), "run_dir": str(tmp_path / "run")}
    plan = finished(cli("run", settings, "--", "--summary"))
    assert "fold1/03_probe_layers/retrained/headline.json" in plan


@pytest.mark.slow
def test_one_fold_of_a_folder(tmp_path):
    """EmoDB as a user's own recordings, in one or two epochs, without pictures."""
    run = tmp_path / "a run's $(folder)"
    done = make("run", "CORPUS=emodb", f"CORPUS_DIR={EMODB}", "PRESET=presets/quick.yaml",
                f"RUN={run}", timeout=3600, BROWSER_PATH="")  # fmt: skip
    succeeded(done)
    predictions = pd.read_parquet(run / "07_results" / "predictions.parquet")
    assert len(predictions) == 2 * predictions.utterance.nunique()
    assert predictions.speaker.nunique() == 2
    assert set(predictions.true) == {"angry", "happy", "neutral", "sad"}


@pytest.fixture
def readers_corpus(demo):
    """Forty of the demo's recordings as a user's own, where the pages put them, and the pages' commands."""
    first, page = blocks("README.md"), TEXTS["corpora.md"].split("## Use your own data")[1]
    steps = re.findall(r"^```(\w*)\n(.*?)^```", page.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    made = [ROOT / name for name in ("my", "runs/mine", "figures/mine")]
    assert not any(path.exists() for path in made)
    corpus = open_corpus("runs/demo")
    rows = corpus.manifest.groupby(["speaker", "emotion"]).head(1)
    try:
        for row in rows.itertuples():
            (ROOT / "my" / row.speaker).mkdir(parents=True, exist_ok=True)
            path = ROOT / "my" / row.speaker / f"{row.utterance}.wav"
            soundfile.write(path, corpus.waveforms[row.utterance], 16000)
        table = rows.assign(path=rows.speaker + "/" + rows.utterance + ".wav")
        csv, first_csv = (next(text for kind, text in b if kind == "csv") for b in (steps, first))
        columns = csv.split("\n")[0].split(",")
        assert first_csv.startswith(",".join(columns) + "\n")
        table[columns].to_csv(ROOT / "my" / "recordings.csv", index=False)
        preset = next(text for kind, text in steps if kind == "yaml")
        (ROOT / "my" / "preset.yaml").write_text(preset)
        soundfile.write(ROOT / "my" / "new.wav", np.zeros((20 * 8000, 2)), 8000)
        own = [text.strip() for _, text in first if "my/recordings.csv" in text]
        yield [*own, *(text.strip() for kind, text in steps if kind == "")]
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
def test_own_data_as_the_pages_say(readers_corpus):
    """A quick run as written, then a new recording. Other runs are only planned, to save time."""
    first, quick, full, new = readers_corpus
    assert "runs/mine: 0 of 1 runs done" in succeeded(make("plan", *shlex.split(first)[2:]))
    printed = succeeded(make(*shlex.split(quick)[1:]))
    assert "Corpus table, 40 utterances, emotions angry, happy, neutral, sad" in printed
    plan = succeeded(make("plan", *shlex.split(full)[2:]))
    assert "runs/mine: 0 of 5 runs done" in plan
    succeeded(python(*shlex.split(new)[1:]))
    table = pd.read_csv(ROOT / "my" / "new.csv")
    assert table.end.iloc[-1] == 20 and table.emotion.isna().all()  # silence


def test_the_page_recognizes(demo, tmp_path):
    """The page's command and its snippet, with the demo's model."""
    (line,) = [text.strip() for kind, text in blocks("recognize.md") if kind == ""]
    (snippet,) = [text for kind, text in blocks("recognize.md") if kind == "python"]
    corpus = open_corpus("runs/demo")
    spoken = corpus.waveforms[corpus.manifest.index[0]]
    (tmp_path / "more" / "recordings").mkdir(parents=True)
    soundfile.write(tmp_path / "interview.mp3", spoken, 16000)
    soundfile.write(tmp_path / "more" / "recordings" / "one.flac", np.tile(spoken, 4), 16000)
    os.symlink(ROOT / "runs", tmp_path / "runs")
    succeeded(python(*shlex.split(line)[1:], cwd=tmp_path))
    table = pd.read_csv(tmp_path / "emotions.csv")
    assert table.file.str.rsplit("/").str[-1].unique().tolist() == ["interview.mp3", "one.flac"]
    assert (table.speech > 0.5).all() and table.error.isna().all()
    code = f"import numpy as np\nwaveform = np.zeros(16000, 'f4')\n{snippet}"
    code = code.replace("\nclassify(", "\nscores = classify(") + "\nprint(scores)"
    assert "'score': 0." in succeeded(python("-c", code, cwd=tmp_path))
    uploads = subprocess.run([ROOT / ".venv/bin/hf", "upload", "--help"], capture_output=True)
    assert uploads.returncode == 0


@pytest.mark.slow
def test_a_second_of_silence_changes_few_predictions(demo):
    """Before or after test utterances, it changes below 5% of the predictions (10% without trimming)."""
    corpus, silence = open_corpus("runs/demo"), np.zeros(16000, np.int16)
    waveforms = [corpus.waveforms[name] for name in corpus.partition(1)["test"]]

    def predicted(before, after):
        padded = [(16000, np.concatenate([before, x, after])) for x in waveforms]
        table = recognize(padded, "runs/demo")
        return table.groupby("file", sort=False)[corpus.emotions].mean().idxmax(axis=1)

    expected = predicted(silence[:0], silence[:0])
    assert len(expected) == len(waveforms) == 81
    for pauses in ((silence, silence[:0]), (silence[:0], silence)):
        assert (predicted(*pauses) != expected).mean() < 0.05


def test_make_lab_serves_the_notebooks(tmp_path):
    """Only to this machine, whatever the user's settings, and only with the token."""
    settings = {
        "ServerApp": {"allow_root": True, "open_browser": False, "port": 8951, "ip": "0.0.0.0"},
        "IdentityProvider": {"token": "t"},
    }
    (tmp_path / "jupyter_server_config.json").write_text(json.dumps(settings))
    lab = subprocess.Popen(
        ["make", "lab"], cwd=ROOT, env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = "http://127.0.0.1:8951/api/contents"
    try:
        for _ in range(120):
            try:
                listing = json.load(urllib.request.urlopen(f"{url}?token=t"))
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        names = [entry["name"] for entry in listing["content"]]
        assert {path.name for path in NOTEBOOKS} <= set(names)
        for refused in (url, f"{url}?token=wrong", url.replace("contents", "kernels")):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(refused)
        kernel = urllib.request.Request(url.replace("contents", "kernels"), b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(kernel)
        sockets = []
        for server in psutil.Process(lab.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                sockets += server.net_connections()
        listening = {s.laddr.ip for s in sockets if s.laddr.port == 8951 and not s.raddr}
        assert listening == {"127.0.0.1"}
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(30)
