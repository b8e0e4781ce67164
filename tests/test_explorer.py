"""The explorers: what they show of a run, and whether they work in a browser."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import plotly.express as px
import pytest
import soundfile
import torch
from conftest import ROOT, needs_browser, python, run_series, seal_again, write_noise_corpus
from ipywidgets.widgets.widget import _instances
from matplotlib.colors import to_hex
from sklearn.neighbors import NearestNeighbors

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.data.corpora import espeak
from gmp_utils.figures import explore_layers, explore_recording, style, timeline
from gmp_utils.figures.explore_layers import TRAINING, FoldMaps, composition, explore
from gmp_utils.runs.paths import FINETUNE, PROBE_LAYERS
from gmp_utils.stages import probe_layers
from gmp_utils.stages.recognize import recognize

PICTURE = ROOT / "docs" / "images" / "explore_recording.png"


def map_layers(run, encoder, map_points):
    probe_layers.probe_layers(
        str(run), 1, model="multitask", encoder=str(encoder), scales=[4], map_points=map_points
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder):
    """A run of every stage on noise, with maps of two models."""
    run = write_noise_corpus(tmp_path_factory.mktemp("explored") / "run")
    run_series(run, tiny_encoder)
    map_layers(run, tiny_encoder, 200)
    explore_layers.map_model(str(run), 1, "finetuned")
    return run


def test_the_number_of_points_changes_only_the_maps(run, tmp_path, tiny_encoder):
    """Maps of different points are not shown next to each other."""
    other = shutil.copytree(run, tmp_path / "run")
    map_layers(other, tiny_encoder, 100)
    for name in ("probes", "clusters", "similarity"):
        folders = (folder / "fold1" / PROBE_LAYERS / "multitask" for folder in (run, other))
        pd.testing.assert_frame_equal(*(pd.read_parquet(f / f"{name}.parquet") for f in folders))
    with pytest.raises(GmpError, match="have different points"):
        FoldMaps(str(other), 1, "frames")
    stage = explore_layers.map_model(str(other), 1, "finetuned")
    first, second = (
        json.loads((stage.with_name(model) / "params.json").read_text())
        for model in ("multitask", "finetuned")
    )
    assert second == first | {"model": "finetuned"}
    assert 50 < len(FoldMaps(str(other), 1, "frames").points) <= 100


def test_points_have_the_attributes_that_the_stages_wrote(run):
    maps = FoldMaps(str(run), 1, "frames")
    points = maps.points
    assert 100 < len(points) <= 200
    assert list(maps.coordinates) == ["multitask", "finetuned"]
    assert maps.coordinates["finetuned"].shape == (5, len(points), 2)
    table = pd.read_parquet(run / "fold1" / PROBE_LAYERS / "finetuned" / "maps.parquet")
    row = table.query("unit == 'frames' and layer == 3").iloc[17]
    same = (points.utterance == row.utterance) & (points.seconds == row.seconds)
    assert maps.coordinates["finetuned"][3][same].tolist() == [[row.x, row.y]]
    frame = round((row.seconds - 0.0125) / 0.02)
    assert points["K = 8"][same].tolist() == [maps.labels[row.utterance][frame, 1]]
    samples = audio.to_float(maps.corpus.waveforms[row.utterance][320 * frame : 320 * frame + 400])
    energy = 10 * np.log10(np.mean(samples**2))
    assert points.energy[same].item() == pytest.approx(energy, abs=1e-3)
    predictions = pd.read_parquet(maps.classifier / "predictions.parquet")
    assert maps.classifier == run / "fold1" / FINETUNE / "retrained" / "ams"
    predicted = dict(zip(predictions.utterance, predictions.predicted))
    unseen = points[points.part != "train"]
    assert unseen.predicted.tolist() == [predicted[name] for name in unseen.utterance] != []
    assert set(points.predicted[points.part == "train"]) == {TRAINING}


def test_compositions_are_counted_by_hand():
    points = pd.DataFrame({"emotion": list("aaaabbbb"), "gender": list("fmfmfmff")})
    table = composition(points, np.array([0, 1, 4])).set_index(["attribute", "value"])
    assert table.points.to_dict() == {
        ("emotion", "a"): 2, ("emotion", "b"): 1, ("gender", "f"): 2, ("gender", "m"): 1,
    }  # fmt: skip
    assert table.share["emotion", "a"] == pytest.approx(2 / 3)
    assert table["share of all"]["gender", "f"] == pytest.approx(5 / 8)
    assert table.ratio["emotion", "a"] == pytest.approx(4 / 3)


def test_colors_of_emotions_and_genders_are_used_for_nothing_else():
    others = {color for name, color in style.COLORS.items() if name not in style.LABELS}
    assert len(set(style.LABELS.values())) == len(style.LABELS)
    assert not (others | set(style.SEQUENCE)) & set(style.LABELS.values())
    assert style.colors(["CE", "GMPs"])["GMPs"] in style.SEQUENCE[1:]
    table = pd.DataFrame({"attribute": ["K = 4, 8"], "x": [0], "y": [1]})
    (title,) = style.panels(px.scatter, table, x="x", y="y").layout.annotations
    assert title.text == "K = 4, 8"


def test_every_category_has_a_color():
    assert explore_layers.palette(["angry", TRAINING]) == [
        style.COLORS["angry"],
        style.COLORS["unknown"],
    ]
    ravdess = ["angry", "calm", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
    assert len(set(explore_layers.palette([*ravdess, "amused"]))) == 9
    assert len(set(explore_layers.palette(list(range(64))))) == 64


@pytest.mark.parametrize("unknown", ["all", "some"])
def test_unknown_attributes_are_colored_and_counted(run, tmp_path, unknown):
    """A corpus without genders, or with a few."""
    other = shutil.copytree(run, tmp_path / "run")
    for stage in ("multitask", "finetuned"):
        path = other / "fold1" / PROBE_LAYERS / stage / "maps.parquet"
        maps = pd.read_parquet(path)
        maps["gender"] = maps.gender.where((maps.speaker == "2f") & (unknown == "some"), None)
        maps.to_parquet(path, index=False)
        seal_again(path.parent)
    maps = FoldMaps(str(other), 1, "frames")
    panel = explore_layers.Panel(maps, "multitask")
    panel.color("gender")
    expected = [style.COLORS[name] for name in sorted(set(maps.points.gender))]
    assert [to_hex(color).upper() for color in panel.scatter.widget.color] == expected
    everything = composition(maps.points, np.arange(len(maps.points)))
    assert everything.ratio.tolist() == pytest.approx([1] * len(everything))


@pytest.fixture(scope="module")
def explorer(run):
    return explore_recording.RecordingExplorer(str(run))


def upload(explorer, name, content, sample_rate=0):
    """As recording_input.js sends it, in two pieces of odd lengths."""
    for first, piece in ((True, content[:333]), (False, content[333:])):
        message = {"name": name, "first": first, "last": not first, "sample_rate": sample_rate}
        explorer.input._handle_custom_msg(message, [memoryview(piece)])


def test_an_upload_is_recognized_and_drawn(explorer):
    text = "they came back in because of you so we waited and she called my name as you told me"
    speech = espeak.speak(text, "en-us+m3", 150, 50, 50)[0][: 5 * espeak.SAMPLE_RATE]
    file = io.BytesIO()
    soundfile.write(file, speech, espeak.SAMPLE_RATE, format="FLAC", subtype="PCM_24")
    upload(explorer, "a <b>.flac", file.getvalue())
    expected = recognize(speech, explorer.recognizer, espeak.SAMPLE_RATE)
    pd.testing.assert_frame_equal(explorer.table, expected, rtol=1e-3)
    seconds = len(speech) / espeak.SAMPLE_RATE
    status = explorer.status.value
    assert "a &lt;b&gt;.flac: " in status and "windows with speech (1)" in status
    figure = explorer.figure.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    assert figure["layout"]["title"]["text"].startswith("a <b>.flac: most confident about ")
    assert explorer.selection.value == pytest.approx((0, seconds), abs=0.1)
    explorer.selection.value = (1, 2.5)
    samples, rate = soundfile.read(io.BytesIO(bytes(explorer.audio.value)))
    assert (len(samples), rate) == (24000, 16000)
    n_samples = len(explorer.waveform)
    upload(explorer, "text.wav", b"no sound")
    assert explorer.status.value.startswith("text.wav: cannot be decoded")
    assert len(explorer.waveform) == n_samples


def test_a_recording_by_microphone_is_recognized(explorer):
    noise = np.random.default_rng(1).normal(0, 0.1, 48000)
    pieces = audio.to_int16(noise)
    upload(explorer, "recorded", pieces.astype("<i2").tobytes(), 48000)
    np.testing.assert_allclose(explorer.waveform, audio.from_array(pieces, 48000))
    assert len(explorer.waveform) == 16000 and len(explorer.table) == 1
    assert explorer.figure.outputs
    assert explorer.status.value == "recorded: no speech detected."
    explorer.recognize((48000, noise * np.nan), "damaged")
    assert "NaN" in explorer.status.value


def test_a_single_window_has_the_scores_of_the_utterance(run):
    maps = FoldMaps(str(run), 1, "utterances")
    waveform = maps.corpus.waveforms[maps.points.utterance[0]]
    n_frames = int(maps.model.frame_lengths(len(waveform)))
    assert n_frames < timeline.WINDOW
    seconds, scores = timeline.scores_over_time(maps.model, waveform)
    assert seconds.tolist() == pytest.approx([0.02 * (n_frames - 1) / 2 + 0.0125])
    samples = torch.from_numpy(audio.normalize(waveform))[None]
    batch = samples, torch.tensor([len(waveform)]), torch.tensor([0])
    with torch.inference_mode():
        whole = maps.model.eval()(*batch)["logits"].softmax(dim=1)
    np.testing.assert_allclose(scores, whole, atol=1e-5)
    longer = np.tile(waveform, 6)
    n_frames = int(maps.model.frame_lengths(len(longer)))
    seconds, scores = timeline.scores_over_time(maps.model, longer)
    assert len(seconds) == len(scores) == (n_frames - timeline.WINDOW) // timeline.HOP + 1
    assert np.diff(seconds) == pytest.approx(timeline.HOP / 50)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_the_help_explains_all_controls(run, explorer):
    for view, names in ((explore(str(run)), ("run", "column", "save")), (explorer, ["selection"])):
        text = view.widget.children[0].value
        for name in names:
            assert getattr(view, name).description in text
    assert "a recording, record" in text


def choose(explorer, rows):
    explorer.panels[0].scatter.widget.selection = np.array(rows, dtype=np.uint32)


def test_a_selection_on_one_map_is_one_on_the_other(run):
    explorer = explore(str(run))
    left, right = explorer.panels
    assert (left.model.value, right.model.value) == ("multitask", "finetuned")
    choose(explorer, [3, 5, 8])
    assert list(right.scatter.widget.selection) == [3, 5, 8]
    right.layer.value = 2
    selected = explorer.selected
    assert selected.utterance.tolist() == explorer.maps.points.utterance[[3, 5, 8]].tolist()
    coordinates = explorer.maps.coordinates["finetuned"][2][[3, 5, 8]]
    np.testing.assert_array_equal(selected["x (finetuned, layer 2)"], coordinates[:, 0])
    folder = run / "fold1" / "selections"
    for name in ("frames-001.csv", "frames-002.csv"):
        explorer.save.click()
        assert pd.read_csv(folder / name).utterance.tolist() == selected.utterance.tolist()


def test_a_view_shows_only_the_selection(run, tmp_path):
    """Another unit, no points, another run, a run that cannot be shown."""
    runs = [str(shutil.copytree(run, tmp_path / name)) for name in ("a", "b")]
    explorer = explore(runs[0])
    assert [label for label, _ in explorer.run.options] == [f"{name}, fold 1" for name in runs]
    choose(explorer, [4])
    assert len(explorer.players.children) == 2
    assert explorer.figure.outputs and "Selected points: 1<" in explorer.table.value
    n_widgets = len(_instances)
    for _ in range(2):
        for clear in (
            lambda: choose(explorer, []),
            lambda: setattr(explorer.unit, "value", "utterances"),
        ):
            clear()
            assert explorer.save.disabled and explorer.table.value.startswith("Click a point")
            assert not explorer.players.children and not explorer.figure.outputs
            choose(explorer, [4])
        explorer.unit.value = "frames"
        choose(explorer, [4])
    assert len(_instances) <= n_widgets + 20  # replaced widgets are closed
    explorer.run.value = runs[1], 1
    assert str(explorer.maps.folder) == f"{runs[1]}/fold1"
    shutil.rmtree(f"{runs[0]}/fold1/{PROBE_LAYERS}")
    explorer.run.value = runs[0], 1
    assert "03_probe_layers" in explorer.table.value
    assert explorer.run.value == (runs[1], 1)
    assert str(explorer.maps.folder) == f"{runs[1]}/fold1"


def test_utterances_with_one_text_are_compared(run):
    explorer = explore(str(run))
    maps = explorer.maps
    first, second = np.flatnonzero(maps.points.utterance == "2f1")[:2].tolist()
    choose(explorer, [first])
    assert explorer.compared not in explorer.players.children  # the corpus has no texts
    choose(explorer, [])
    manifest = maps.corpus.manifest
    same = manifest.speaker.isin(["2f", "2m"]) & manifest.emotion.isin(["happy", "neutral"])
    manifest["text"] = manifest.utterance.where(~same, "the same")

    def shown():
        figure = explorer.figure.outputs[0]["data"]["application/vnd.plotly.v1+json"]
        return [title.value for title in explorer.titles], figure["layout"]["title"]["text"]

    timeline = ["the utterance", "the second around the frame"]
    for point in (first, second, first):
        choose(explorer, [point])
        assert explorer.players.children[-1] is explorer.compared
        assert list(explorer.compared.options.values()) == ["", "2f2", "2f6", "2f10"]
        assert explorer.compared.value == ""
        assert shown() == (timeline, maps.timeline(point, None).layout.title.text)
        explorer.compared.value = "2f6"
        titles, text = shown()
        assert titles == ["2f1", "2f6"] and text.startswith("Frames of 2f6 in 2f1: ")
        assert "log-odds of neutral against happy" in text
        samples, _ = soundfile.read(io.BytesIO(bytes(explorer.sounds[1].value)), dtype="int16")
        np.testing.assert_array_equal(samples, maps.corpus.waveforms["2f6"])
    explorer.compared.value = ""
    assert shown()[0] == timeline
    choose(explorer, [])
    assert not explorer.players.children and not explorer.figure.outputs
    manifest["text"] = manifest.utterance.where(manifest.speaker.isin(["2m", "3f"]), "other")
    manifest.loc["2f1", "text"] = "2m2"
    assert maps.counterparts("2f1") == {"2m2: neutral": "2m2"}  # of another speaker


@pytest.fixture(scope="module")
def lab(run, tmp_path_factory):
    """JupyterLab on loopback, with both explorers for the run on noise, or for SHOWN_RUN."""
    folder = tmp_path_factory.mktemp("lab")
    folder.joinpath("notebooks").mkdir()
    shutil.copytree(PICTURE.parent, folder / "docs" / "images")  # shown in the notebooks
    settings = {"explore_layers": {"models": ["multitask", "finetuned"]}, "explore_recording": {}}
    for notebook, parameters in settings.items():
        parameters = json.dumps(parameters | {"run_dir": os.environ.get("SHOWN_RUN", str(run))})
        source, prepared = (
            ROOT / f"notebooks/{notebook}.ipynb",
            folder / f"notebooks/{notebook}.ipynb",
        )
        command = "-m", "papermill", "--prepare-only", source, prepared, "-y", parameters
        python(*command, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
         f"--port={port}", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}",
         "--KernelManager.transport=ipc", "--LabApp.expose_app_in_browser=True",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None"],
        env=os.environ | {"JUPYTER_CONFIG_DIR": str(folder)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t")
                break
            except urllib.error.URLError:
                time.sleep(0.3)
        else:
            raise TimeoutError("JupyterLab did not start within a minute")
        yield f"http://127.0.0.1:{port}/doc/tree/notebooks/{{}}?token=t"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def page(lab):
    """A page of Chromium without errors and without requests to other hosts than the server."""
    from playwright.sync_api import sync_playwright

    complaints, outside = [], []

    def pass_on(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        options = [f"--use-fake-{name}-for-media-stream" for name in ("ui", "device")]
        launch = playwright.chromium.launch
        browser = launch(executable_path=style.browser(), args=["--no-sandbox", *options])
        page = browser.new_page(viewport={"width": 1300, "height": 1700})
        page.set_default_timeout(180_000)
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.route("**/*", pass_on)
        yield page
        browser.close()
    assert complaints == []
    assert outside == []


def run_notebook(page, address, waits_for="canvas"):
    page.goto(address)
    ready = "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady"
    for _ in range(240):
        if page.evaluate(ready):
            break
        page.wait_for_timeout(250)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(waits_for)
    page.wait_for_timeout(2000)  # the first drawing


def place(page, maps, panel, point):
    """Position on the screen of a point of the last layer. Each panel has two canvases."""
    box = page.locator("canvas").nth(2 * panel).bounding_box()
    coordinates = list(maps.coordinates.values())[panel][-1]
    x, y = coordinates[point] / abs(coordinates).max() / 1.02 * box["height"] / 2
    return box["x"] + box["width"] / 2 + float(x), box["y"] + box["height"] / 2 - float(y)


def lonely(maps, panel, part):
    """The point of a part that is farthest from all others, so that a click cannot hit another one."""
    coordinates = list(maps.coordinates.values())[panel][-1]
    nearest = NearestNeighbors(n_neighbors=2).fit(coordinates).kneighbors(coordinates)[0][:, 1]
    return int(np.argmax(np.where(maps.points.part == part, nearest, -1)))


@pytest.mark.slow
@needs_browser
def test_points_are_shown_and_played(run, lab, page):
    run_notebook(page, lab.format("explore_layers.ipynb"))
    maps = FoldMaps(str(run), 1, "frames")
    titles = []
    for panel, part in ((0, "validation"), (1, "train")):
        point = lonely(maps, panel, part)
        spot = place(page, maps, panel, point)
        page.mouse.move(*spot)
        page.wait_for_timeout(500)
        page.mouse.click(*spot)
        page.wait_for_selector(f".gtitle:has-text('{maps.points.utterance[point]}:')")
        titles.append(page.locator(".gtitle").text_content())
        page.wait_for_timeout(500)
        sounds = page.locator("audio")
        assert sounds.count() == 2
        state = "a => [a.readyState, a.error, a.duration]"
        sounds_loaded = [sounds.nth(n).evaluate(state) for n in (0, 1)]
        seconds = maps.corpus.waveforms.lengths[maps.points.utterance[point]] / 16000
        assert all(state >= 2 and error is None for state, error, _ in sounds_loaded)
        assert sounds_loaded[0][2] == pytest.approx(seconds, abs=0.01)
        assert sounds_loaded[1][2] <= sounds_loaded[0][2] + 0.01
    assert "predicted" in titles[0]
    assert "(retrained/ams)" in titles[0]
    assert TRAINING in titles[1]

    before = page.locator("canvas").nth(0).screenshot()
    page.locator(".noUi-handle").nth(0).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=layer 3 (-2); linear probes")
    page.locator("summary:has-text('?')").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("li:has-text('the lasso')", state="hidden")
    page.wait_for_timeout(1000)
    assert page.locator("canvas").nth(0).screenshot() != before

    page.locator("button[title='Activate lasso selection']").nth(1).click()
    box = page.locator("canvas").nth(2).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 190, middle[1] - 190)
    page.wait_for_timeout(300)
    page.mouse.down()
    for x, y in ((190, -190), (190, 190), (-190, 190), (-190, -180)):
        page.mouse.move(middle[0] + x, middle[1] + y, steps=12)
    page.mouse.up()
    chosen = page.locator("text=/^Selected points: \\d\\d+$/").inner_text()
    page.locator("button:has-text('Save as CSV')").click()
    status = page.locator("text=/points: .*csv/").inner_text()
    saved = pd.read_csv(status.split(": ")[1])
    assert len(saved) == int(chosen.split()[-1])
    assert len(saved) > len(maps.points) / 2
    dark = "'apputils:change-theme', {theme: 'JupyterLab Dark'}"
    page.evaluate(f"window.jupyterapp.commands.execute({dark})")
    page.wait_for_timeout(2000)


@pytest.mark.slow
@needs_browser
def test_uploads_and_recordings_are_shown(lab, page, tmp_path):
    """Chromium's simulated microphone beeps. With SHOWN_RUN=runs/demo, the picture in docs/ is taken."""
    run_notebook(page, lab.format("explore_recording.ipynb"), "text=Upload a recording (wav")
    path = tmp_path / "uploaded.wav"
    shown = os.environ.get("SHOWN_RUN")
    if shown:
        shutil.copy(ROOT / shown / "09_recognize" / "example.wav", path)
    else:
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 5 * 16000), 16000)
    with page.expect_file_chooser() as chosen:
        page.locator("button:has-text('a recording')").click()
    chosen.value.set_files(path)
    page.wait_for_selector("text=/uploaded.wav: (no speech detected|.*windows with speech)/")
    page.wait_for_selector(".gtitle:has-text('uploaded.wav: ')")
    if shown:
        page.evaluate("document.querySelectorAll('.Toastify').forEach(x => x.remove())")
        page.wait_for_timeout(2000)
        page.locator(".jp-OutputArea-output .widget-vbox").first.screenshot(path=PICTURE)
    page.locator("button:has-text('● record')").click()
    page.wait_for_selector("text=/^ ?[2-9]\\.\\d s$/")
    page.locator("button:has-text('■ stop')").click()
    page.wait_for_selector("text=/recorded: (no speech detected|.*windows with speech)/")
    page.wait_for_selector(".gtitle:has-text('recorded: ')")
    player = page.locator("audio").last
    error, seconds = player.evaluate("a => [a.error, a.duration]")
    assert error is None and 2 < seconds < 30


@pytest.mark.slow
@needs_browser
def test_long_recordings_arrive(lab, page, tmp_path):
    """20 MiB and two minutes, at the limits that Jupyter's server has by default."""
    run_notebook(page, lab.format("explore_recording.ipynb"), "text=Upload a recording (wav")
    path = tmp_path / "long.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, (5_300_000, 2))
    soundfile.write(path, noise, 44100)
    assert path.stat().st_size > 20 * 2**20
    with page.expect_file_chooser() as chosen:
        page.locator("button:has-text('a recording')").click()
    chosen.value.set_files(path)
    page.wait_for_selector("text=/^ ?\\d+%$/")
    page.wait_for_selector("text=/long.wav: (no speech detected|.*windows with speech)/")
    last = page.locator(".noUi-handle").last
    assert float(last.get_attribute("aria-valuemax")) == pytest.approx(120.2, abs=0.1)
    page.locator("button:has-text('● record')").click()
    page.wait_for_selector("text=/^ ?12[0-9]\\.\\d s$/")
    page.locator("button:has-text('■ stop')").click()
    page.wait_for_selector("text=/recorded: (no speech detected|.*windows with speech)/")
    page.wait_for_selector(".gtitle:has-text('recorded: ')")
    assert 120.2 < float(last.get_attribute("aria-valuemax")) < 135
