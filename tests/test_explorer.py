"""The explorer: what it shows of a run, and what a real browser makes of it."""

import datetime
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import ROOT, run_series, seal_again, write_noise_corpus
from matplotlib.colors import to_hex
from sklearn.neighbors import NearestNeighbors

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.figures import explore_recording, style, timeline
from gmp_utils.figures.explore_layers import (
    TRAINING,
    FoldMaps,
    Panel,
    composition,
    explore,
    map_model,
    palette,
)
from gmp_utils.runs.paths import FINETUNE, PROBE_LAYERS
from gmp_utils.stages import probe_layers
from gmp_utils.stages.recognize import recognize

NOW = datetime.datetime.now(datetime.UTC)
MANY = (20_000, 50_000)
needs_browser = pytest.mark.skipif(style.browser() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder):
    """Every stage on noise, and maps of two models."""
    run = write_noise_corpus(tmp_path_factory.mktemp("explored") / "run")
    run_series(run, tiny_encoder)
    probe_layers.probe_layers(str(run), 1, "multitask", str(tiny_encoder), [4], 200)
    map_model(str(run), 1, "finetuned")
    return run


def test_another_model_is_mapped_with_the_settings_of_the_last(run, tiny_encoder, capsys):
    stages = [run / "fold1" / PROBE_LAYERS / model for model in ("multitask", "finetuned")]
    first, second = (json.loads((stage / "params.json").read_text()) for stage in stages)
    assert second == first | {"model": "finetuned"}
    capsys.readouterr()
    assert map_model(str(run), 1, "finetuned") == stages[1]
    assert "is there, made with the same parameters" in capsys.readouterr().out


def test_maps_of_different_points_are_refused(run, tmp_path, tiny_encoder):
    other = shutil.copytree(run, tmp_path / "run")
    probe_layers.probe_layers(str(other), 1, "multitask", str(tiny_encoder), [4], 100)
    with pytest.raises(GmpError, match="the maps of multitask and finetuned hold different points"):
        FoldMaps(str(other), 1, "frames")
    map_model(str(other), 1, "finetuned")
    assert 50 < len(FoldMaps(str(other), 1, "frames").points) <= 100
    stage = other / "fold1" / PROBE_LAYERS / "finetuned"
    maps = pd.read_parquet(stage / "maps.parquet")
    maps[maps.layer == 3].to_parquet(stage / "maps.parquet", index=False)
    seal_again(stage)
    with pytest.raises(GmpError, match="finetuned maps 1 of 5 layers"):
        FoldMaps(str(other), 1, "frames")


def test_more_points_on_the_map_leave_probes_and_clusters_alone(run, tmp_path, tiny_encoder):
    other = shutil.copytree(run, tmp_path / "run")
    probe_layers.probe_layers(str(other), 1, "multitask", str(tiny_encoder), [4], 700)
    for name in ("probes", "clusters", "similarity"):
        tables = [
            pd.read_parquet(folder / "fold1" / PROBE_LAYERS / "multitask" / f"{name}.parquet")
            for folder in (run, other)
        ]
        pd.testing.assert_frame_equal(*tables)
    maps = pd.read_parquet(other / "fold1" / PROBE_LAYERS / "multitask" / "maps.parquet")
    assert (maps.query("of == 'frames' and layer == 0")).shape[0] > 400


def test_points_are_what_the_stages_say(run):
    explored = FoldMaps(str(run), 1, "frames")
    points = explored.points
    assert 100 < len(points) <= 200
    assert list(explored.places) == ["multitask", "finetuned"]
    assert explored.places["finetuned"].shape == (5, len(points), 2)
    maps = pd.read_parquet(run / "fold1" / PROBE_LAYERS / "finetuned" / "maps.parquet")
    row = maps[(maps.of == "frames") & (maps.layer == 3)].iloc[17]
    same = (points.utterance == row.utterance) & (points.seconds == row.seconds)
    assert explored.places["finetuned"][3][same].tolist() == [[row.x, row.y]]
    frame = round((row.seconds - 0.0125) / 0.02)
    assert points["K = 8"][same].tolist() == [explored.labels[row.utterance][frame, 1]]
    waveform = explored.corpus.waveforms[row.utterance]
    heard = waveform[320 * frame : 320 * frame + 400] / 32768
    assert points.energy[same].item() == pytest.approx(10 * np.log10(np.mean(heard**2)), abs=1e-6)
    predictions = pd.read_parquet(explored.classifier / "predictions.parquet")
    assert explored.classifier == run / "fold1" / FINETUNE / "gmps" / "ams"
    known = dict(zip(predictions.utterance, predictions.predicted))
    asked = points[points.part != "train"]
    assert len(asked)
    assert asked.predicted.tolist() == [known[name] for name in asked.utterance]
    assert set(points.predicted[points.part == "train"]) == {TRAINING}


def test_a_run_without_maps_says_what_to_run(run, tmp_path):
    shutil.copytree(run / "01_prepare_data", tmp_path / "01_prepare_data")
    shutil.copytree(run / "recordings", tmp_path / "recordings")
    with pytest.raises(GmpError, match=r"run notebooks/03_probe_layers\.ipynb"):
        FoldMaps(str(tmp_path), 1, "frames")
    with pytest.raises(GmpError, match=r"run notebooks/03_probe_layers\.ipynb"):
        map_model(str(tmp_path), 1, "encoder")


def test_compositions_are_counted_by_hand():
    points = pd.DataFrame({"emotion": list("aaaabbbb"), "gender": list("fmfmfmff")})
    table = composition(points, np.array([0, 1, 4])).set_index(["of", "is"])
    assert table.points.to_dict() == {
        ("emotion", "a"): 2, ("emotion", "b"): 1, ("gender", "f"): 2, ("gender", "m"): 1,
    }  # fmt: skip
    assert table.share["emotion", "a"] == pytest.approx(2 / 3)
    assert table["share of all"]["gender", "f"] == pytest.approx(5 / 8)
    assert table.ratio["emotion", "a"] == pytest.approx(4 / 3)


def test_every_category_has_a_colour():
    assert palette(["angry", TRAINING]) == [style.COLORS["angry"], style.COLORS["unknown"]]
    ravdess = ["angry", "calm", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
    assert len(set(palette(ravdess))) == 8
    assert len(set(palette([*ravdess, "amused"]))) == 9
    assert len(set(palette(list(range(64))))) == 64
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in palette(list(range(4096))))


@pytest.mark.parametrize("unknown", ["all", "some"])
def test_what_is_not_known_is_coloured_and_counted(run, tmp_path, unknown):
    """A corpus without genders, or with a few."""
    other = shutil.copytree(run, tmp_path / "run")
    for stage in ("multitask", "finetuned"):
        path = other / "fold1" / PROBE_LAYERS / stage / "maps.parquet"
        maps = pd.read_parquet(path)
        maps["gender"] = maps.gender.where((maps.speaker == "2f") & (unknown == "some"), None)
        maps.to_parquet(path, index=False)
        seal_again(path.parent)
    explored = FoldMaps(str(other), 1, "frames")
    panel = Panel(explored, "multitask")
    panel.color("gender")
    drawn = [style.COLORS[name] for name in sorted(set(explored.points.gender))]
    assert [to_hex(color).upper() for color in panel.scatter.widget.color] == drawn
    everything = composition(explored.points, np.arange(len(explored.points)))
    assert everything.ratio.tolist() == pytest.approx([1] * len(everything))


@pytest.fixture(scope="module")
def listener(run):
    return explore_recording.Listener(str(run))


def test_what_is_uploaded_is_recognised_and_drawn(run, listener):
    sound = np.random.default_rng(0).normal(0, 0.1, (8 * 8000, 2)).astype(np.float32)
    content = io.BytesIO()
    soundfile.write(content, sound, 8000, format="FLAC", subtype="PCM_24")
    given = {"name": "a <b>.flac", "content": memoryview(content.getvalue())}
    listener.upload.set_trait("value", ({"type": "", "size": 1, "last_modified": NOW} | given,))
    pd.testing.assert_frame_equal(
        listener.table, recognize(sound, listener.recognizer, 8000), rtol=1e-3
    )
    assert listener.says.value.startswith("a &lt;b&gt;.flac: ")
    figure = listener.drawn.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    assert figure["layout"]["title"]["text"].startswith("a <b>.flac: ")
    assert listener.stretch.value == (0, 8) and len(listener.waveform) == 8 * 16000
    listener.stretch.value = (1, 2.5)
    played, rate = soundfile.read(io.BytesIO(bytes(listener.player.value)))
    assert (len(played), rate) == (24000, 16000)
    broken = {"name": "text.wav", "content": memoryview(b"no sound")}
    listener.upload.set_trait("value", ({"type": "", "size": 1, "last_modified": NOW} | broken,))
    assert listener.says.value.startswith("text.wav: cannot be decoded")
    assert len(listener.waveform) == 8 * 16000


def test_what_is_spoken_is_recognised(listener, monkeypatch):
    drawn, draw = [], timeline.of_recording
    monkeypatch.setattr(
        timeline, "of_recording", lambda *given: drawn.append(given[1]) or draw(*given)
    )
    spoken = np.random.default_rng(1).normal(0, 0.1, 48000).astype("<f4")
    listener.microphone.sample_rate = 48000
    listener.microphone.samples = spoken.tobytes()
    assert len(listener.waveform) == 16000 and len(listener.table) == 1
    assert [len(waveform) for waveform in drawn] == [16000] and listener.drawn.outputs
    listener.hear(spoken[:2400], 48000, "too short to be drawn")
    assert len(listener.table) == len(drawn) == 1
    assert listener.drawn.outputs == listener.shown.children == ()
    listener.hear(spoken * np.nan, 48000, "damaged")
    assert "holds a sample of nan" in listener.says.value


def test_a_second_of_an_utterance_is_scored_as_if_it_were_alone(run):
    """One window that holds everything is what the classifier says of the whole utterance."""
    explored = FoldMaps(str(run), 1, "utterances")
    waveform = explored.corpus.waveforms[explored.points.utterance[0]]
    n_frames = int(explored.model.frame_lengths(len(waveform)))
    assert n_frames < timeline.WINDOW
    seconds, scores = timeline.scores_over_time(explored.model, waveform)
    assert seconds.tolist() == [n_frames / 2 / 50]
    samples = torch.from_numpy(audio.normalize(waveform))[None]
    asked = samples, torch.tensor([len(waveform)]), torch.tensor([0])
    with torch.inference_mode():
        whole = explored.model.eval()(*asked)["logits"].softmax(dim=1)
    np.testing.assert_allclose(scores, whole, atol=1e-5)
    longer = np.tile(waveform, 6)
    n_frames = int(explored.model.frame_lengths(len(longer)))
    seconds, scores = timeline.scores_over_time(explored.model, longer)
    assert len(seconds) == len(scores) == (n_frames - timeline.WINDOW) // timeline.HOP + 1
    assert np.diff(seconds) == pytest.approx(timeline.HOP / 50)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def widgets_alive():
    from ipywidgets.widgets.widget import _instances

    return _instances


class Many:
    """As many points as a corpus has, at random, in place of `Explored`."""

    def __init__(self, n_points, n_layers=13):
        rng = np.random.default_rng(0)
        emotion = rng.choice(["angry", "happy", "neutral", "sad"], n_points)
        self.points = pd.DataFrame({"emotion": emotion, "energy": rng.normal(-30, 5, n_points)})
        places = rng.normal(size=(n_layers, n_points, 2)).astype(np.float32)
        self.places = {"base": places + 4 * pd.factorize(emotion)[0][:, None]}
        self.scores = {"base": pd.DataFrame({"emotion": rng.random(n_layers)})}


def test_a_layer_change_is_quick_with_many_points():
    """Python's share: the browser's is in the test below."""
    panel = Panel(Many(50_000), "base")
    panel.color("emotion")
    took = []
    for layer in range(5):
        began = time.perf_counter()
        panel.layer.value = layer
        took.append(time.perf_counter() - began)
    assert sorted(took)[2] < 1  # 0.01 on two idle cores
    shown, drawn = panel.scatter.widget.points[:, :2], panel.explored.places["base"][4]
    np.testing.assert_allclose(shown * 1.02 * abs(drawn).max(), drawn, atol=1e-4)


def choose(explorer, rows):
    explorer.panels[0].scatter.widget.selection = np.array(rows, dtype=np.uint32)


def test_what_is_chosen_on_one_map_is_chosen_on_the_other(run):
    explorer = explore(str(run))
    left, right = explorer.panels
    assert (left.model.value, right.model.value) == ("multitask", "finetuned")
    choose(explorer, [3, 5, 8])
    assert list(right.scatter.widget.selection) == [3, 5, 8]
    right.layer.value = 2
    selected = explorer.selected
    assert selected.utterance.tolist() == explorer.explored.points.utterance[[3, 5, 8]].tolist()
    places = explorer.explored.places["finetuned"][2][[3, 5, 8]]
    np.testing.assert_array_equal(selected["x (finetuned, layer 2)"], places[:, 0])
    folder = run / "fold1" / "selections"
    for name in ("frames-001.csv", "frames-002.csv"):
        explorer.save.click()
        assert pd.read_csv(folder / name).utterance.tolist() == selected.utterance.tolist()
    (folder / "frames-001.csv").unlink()
    kept = (folder / "frames-002.csv").stat().st_mtime_ns
    explorer.save.click()
    assert (folder / "frames-001.csv").is_file()
    assert (folder / "frames-002.csv").stat().st_mtime_ns == kept


def test_a_view_never_shows_what_is_not_chosen(run, tmp_path):
    """Another kind of points, no points, another run, a run that cannot be shown."""
    runs = {name: shutil.copytree(run, tmp_path / name) for name in ("a", "b")}
    (runs["a"] / "fold1-old" / PROBE_LAYERS).mkdir(parents=True)
    explorer = explore(str(runs["a"]))
    assert [label for label, _ in explorer.run.options] == [
        f"{runs['a']}, fold 1", f"{runs['b']}, fold 1",
    ]  # fmt: skip
    choose(explorer, [4])
    assert len(explorer.players.children) == 2
    assert explorer.drawn.outputs
    assert "1 points" in explorer.table.value
    before = len(widgets_alive())
    for _ in range(3):
        for change in (
            lambda: choose(explorer, []),
            lambda: setattr(explorer.of, "value", "utterances"),
        ):
            change()
            assert explorer.save.disabled
            assert explorer.table.value.startswith("Click a point")
            assert not explorer.players.children
            assert not explorer.drawn.outputs
            choose(explorer, [4])
        explorer.of.value = "frames"
        choose(explorer, [4])
    assert len(widgets_alive()) <= before + 20
    explorer.run.value = explorer.run.options[1][1]
    assert explorer.explored.fold == runs["b"] / "fold1"
    (runs["a"] / "fold1" / "02_train_multitask" / "provenance.json").write_text(
        '{"identity": "new"}'
    )
    explorer.run.value = explorer.run.options[0][1]
    assert "was made from another" in explorer.table.value
    assert explorer.run.value == (str(runs["b"]), 1)
    assert explorer.explored.fold == runs["b"] / "fold1"


@pytest.fixture(scope="module")
def lab(run, tmp_path_factory):
    """JupyterLab on loopback, with explore_layers for the run on noise, and many points at random."""
    folder = tmp_path_factory.mktemp("lab")
    told = {"explore_layers": {"models": ["multitask", "finetuned"]}, "explore_recording": {}}
    for notebook, own in told.items():
        settings = {"run_dir": str(run)} | own
        arguments = [f"{name}: {json.dumps(value)}" for name, value in settings.items()]
        subprocess.run(
            [sys.executable, "-m", "papermill", "--prepare-only", ROOT / f"notebooks/{notebook}.ipynb",
             folder / f"{notebook}.ipynb", "-y", "\n".join(arguments)], check=True, cwd=ROOT,
        )  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_explorer import Many, Panel\n"
        "import ipywidgets, jscatter\n"
        "panels = [Panel(Many(n_points), 'base') for _ in range(2)]\n"
        "linked = jscatter.compose([panel.scatter for panel in panels], sync_selection=True)\n"
        "for panel in panels: panel.color('emotion')\n"
        "ipywidgets.HBox([panel.widget for panel in panels])"
    )
    for n_points in MANY:
        cells = [nbformat.v4.new_code_cell(f"n_points = {n_points}\n{code}")]
        many = nbformat.v4.new_notebook(cells=cells)
        many.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(many, folder / f"{n_points}.ipynb")
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
        yield f"http://127.0.0.1:{port}/doc/tree/{{}}?token=t"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def page(lab):
    """A page of Chromium that may reach the server only, and complains of nothing."""
    from playwright.sync_api import sync_playwright

    complaints, outside = [], []

    def pass_on(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=style.browser(),
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
            ],
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1700})
        page.set_default_timeout(60_000)
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
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


def keep(page, name):
    folder = ROOT / "runs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def place(page, explored, panel, point):
    """Where a point of the last layer is on the screen; panels are drawn on two canvases each."""
    box = page.locator("canvas").nth(2 * panel).bounding_box()
    places = list(explored.places.values())[panel][-1]
    x, y = places[point] / abs(places).max() / 1.02 * box["height"] / 2
    return box["x"] + box["width"] / 2 + float(x), box["y"] + box["height"] / 2 - float(y)


def lonely(explored, panel, part):
    """The point of a part that is farthest from all others: a click that cannot be taken by them."""
    places = list(explored.places.values())[panel][-1]
    nearest = NearestNeighbors(n_neighbors=2).fit(places).kneighbors(places)[0][:, 1]
    return int(np.argmax(np.where(explored.points.part == part, nearest, -1)))


@needs_browser
def test_look_click_listen(run, lab, page):
    run_notebook(page, lab.format("explore_layers.ipynb"))
    explored = FoldMaps(str(run), 1, "frames")
    titles = []
    for panel, part in ((0, "validation"), (1, "train")):
        point = lonely(explored, panel, part)
        spot = place(page, explored, panel, point)
        page.mouse.move(*spot)
        page.wait_for_timeout(500)
        page.mouse.click(*spot)
        page.wait_for_selector(f".gtitle:has-text('{explored.points.utterance[point]}:')")
        titles.append(page.locator(".gtitle").text_content())
        page.wait_for_timeout(500)
        sounds = page.locator("audio")
        assert sounds.count() == 2
        heard = [sounds.nth(n).evaluate("a => [a.readyState, a.error, a.duration]") for n in (0, 1)]
        seconds = explored.corpus.waveforms.lengths[explored.points.utterance[point]] / 16000
        assert all(state >= 2 and error is None for state, error, _ in heard)
        assert heard[0][2] == pytest.approx(seconds, abs=0.01)
        assert heard[1][2] <= heard[0][2] + 0.01
    assert "heard as" in titles[0]
    assert "(gmps/ams)" in titles[0]
    assert TRAINING in titles[1]
    keep(page, "explorer-light")

    before = page.locator("canvas").nth(0).screenshot()
    page.locator(".noUi-handle").nth(0).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=layer 3 (-2); linear probes")
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
    chosen = page.locator("text=/^\\d\\d+ points$/").inner_text()
    page.locator("button:has-text('Save as CSV')").click()
    said = page.locator("text=/points: .*csv/").inner_text()
    saved = pd.read_csv(said.split(": ")[1])
    assert len(saved) == int(chosen.split()[0])
    assert len(saved) > len(explored.points) / 2
    page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_timeout(2000)
    keep(page, "explorer-dark")


@needs_browser
def test_upload_record_look(lab, page, tmp_path):
    """Chromium's made-up microphone beeps."""
    run_notebook(page, lab.format("explore_recording.ipynb"), "text=Upload a recording")
    path = tmp_path / "uploaded.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 5 * 16000), 16000)
    with page.expect_file_chooser() as chosen:
        page.locator("button:has-text('a recording')").click()
    chosen.value.set_files(path)
    page.wait_for_selector("text=/uploaded.wav: (no speech is heard|.*windows of speech)/")
    page.wait_for_selector(".gtitle:has-text('uploaded.wav: ')")
    keep(page, "recording-uploaded")
    page.locator("button:has-text('● record')").click()
    page.wait_for_selector("text=/^ ?[2-9]\\.\\d s$/")
    page.locator("button:has-text('■ stop')").click()
    page.wait_for_selector("text=/spoken: (no speech is heard|.*windows of speech)/")
    page.wait_for_selector(".gtitle:has-text('spoken: ')")
    player = page.locator("audio").last
    error, seconds = player.evaluate("a => [a.error, a.duration]")
    assert error is None and 2 < seconds < 30
    keep(page, "recording-spoken")


WATCH = """async () => {
    const canvas = document.querySelectorAll('canvas')[0];
    const before = canvas.toDataURL(), began = performance.now();
    document.querySelector('.noUi-handle').dispatchEvent(
        new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}));
    while (canvas.toDataURL() === before && performance.now() - began < 20000)
        await new Promise(requestAnimationFrame);
    return performance.now() - began;
}"""


@needs_browser
@pytest.mark.parametrize("n_points", MANY)
def test_a_layer_change_of_many_points_is_seen_at_once(lab, page, n_points):
    """From the key to the first new picture of two linked maps; the bound leaves room for busy cores."""
    run_notebook(page, lab.format(f"{n_points}.ipynb"))
    took = []
    for _ in range(5):
        took.append(page.evaluate(WATCH))
        page.wait_for_timeout(1500)
    keep(page, f"explorer-{n_points}-points")
    print(f"{n_points} points, ms to a new picture:", [round(one) for one in took])
    assert sorted(took)[2] < 2000
