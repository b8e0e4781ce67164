"""The look of all figures: colors, a template, and display."""

import io
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import cycle
from queue import Empty, Queue
from threading import Thread

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import soundfile
from IPython.display import Audio, display

from gmp_utils.data.audio import SAMPLE_RATE
from gmp_utils.runs.paths import display_path, figures_folder

# Colors of emotions and genders only: Okabe and Ito's palette and some of Paul Tol's, which color-blind
# readers can distinguish.
LABELS = {
    "angry": "#D55E00",
    "happy": "#E69F00",
    "neutral": "#999999",
    "sad": "#0072B2",
    "fearful": "#CC79A7",
    "disgusted": "#009E73",
    "bored": "#56B4E9",
    "surprised": "#332288",
    "calm": "#44AA99",
    "excited": "#DDCC77",
    "frustrated": "#661100",
    "contemptuous": "#882255",
    "other": "#000000",
    "female": "#AA4499",
    "male": "#117733",
}
# Colors of everything else: violets, teals and dark grays, which differ in lightness too.
SEQUENCE = [
    *("#4B3F72", "#1F9E9E", "#B79FE0", "#2B2B2B", "#8FD6CD", "#8C7A4F", "#68737D"),
    *("#8E5BB5", "#1B5E66", "#D9C8A9"),
]
TASKS = ("emotion", "gender", "speaker", "sentence", "phoneme", "valence", "arousal", "dominance")
LOSSES = ("CE", "AMS", "CE then AMS", "CE then CE")
COLORS = {
    **LABELS,
    "unknown": "#DDDDDD",
    "trained on": "#DDDDDD",
    **dict(zip(TASKS, SEQUENCE)),
    **dict(zip(LOSSES, SEQUENCE)),
}
PATIENCE = 180  # seconds, until Chromium has started and rendered a figure
AXIS = {"gridcolor": "#eeeeee", "zerolinecolor": "#cccccc", "linecolor": "#888888"}
TEMPLATE = go.layout.Template(
    layout={
        "colorway": SEQUENCE,
        "font": {"size": 13},
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper"},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 60},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": AXIS,
        "yaxis": AXIS,
        "modebar": {"remove": ["sendChartToCloud"]},
    }
)


def colors(names: Iterable[str]) -> dict[str, str]:
    """A color for each name: that of `COLORS`, or else the next unused one of `SEQUENCE`."""
    names = list(names)
    fixed = {name: COLORS[name] for name in names if name in COLORS}
    spare = cycle([color for color in SEQUENCE if color not in fixed.values()])
    return {name: fixed.get(name) or next(spare) for name in names}


def panels(chart: Callable, table: pd.DataFrame, by: str = "attribute", **options) -> go.Figure:
    """A plotly.express chart with a panel per value of a column, which is the panel's title."""
    figure = chart(table, facet_col=by, color_discrete_sequence=SEQUENCE, **options)
    return figure.for_each_annotation(
        lambda note: note.update(text=note.text.removeprefix(f"{by}="))
    )


def add_band(
    figure: go.Figure,
    name: str,
    color: str,
    x: Sequence,
    rows: pd.DataFrame,
    *,
    y: str = "UAR",
    row: int | None = None,
    col: int | None = None,
    **style,
) -> None:
    """Draw a column `y` of the rows as a line with a style, in front of a band from `low` to `high`."""
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*rows.high, *rows.low[::-1]], fill="toself", mode="none",
        fillcolor=color, opacity=0.15, showlegend=False, hoverinfo="skip", row=row, col=col,
    )  # fmt: skip
    line = {"name": name, "mode": "lines+markers", "line_color": color}
    figure.add_scatter(x=x, y=rows[y], row=row, col=col, **line, **style)


def browser() -> str | None:
    """The Chromium that renders PNG and SVG: BROWSER_PATH (empty for none), or an installed one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    return os.environ.get("BROWSER_PATH", installed) or None


def show(figure: go.Figure, run_dir: str, name: str) -> None:
    """Show a figure in the notebook, and write it to the run's `figures_folder`.

    The files are `<name>.html`, and `.png` and `.svg` where a Chromium is found.
    """
    figure.update_layout(template=TEMPLATE)
    folder = figures_folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
    bundle = {"application/vnd.plotly.v1+json": figure.to_plotly_json()}
    for kind in ("svg", "png"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
        if image := browser() and _render(figure, kind):
            (folder / f"{name}.{kind}").write_bytes(image)
            bundle["image/png"] = image
    if not browser():
        print(f"no Chromium is used: {display_path(folder / name)}.html only, no PNG or SVG")
    display(bundle, raw=True)


def _render(figure: go.Figure, kind: str) -> bytes | None:
    """A figure as "svg" or "png" by Chromium, None if it does not answer. It is then not used again.

    kaleido itself would wait forever for a Chromium that does not start.
    """
    options = {"width": 900, "height": figure.layout.height or 420, "format": kind}
    images = Queue()

    def render() -> None:
        # One Chromium for all figures of a notebook: a start takes ten times as long as a figure.
        no_proxy = "127.0.0.1:9"  # nothing listens there: Chromium sends no requests to its vendor
        kaleido.start_sync_server(mathjax=False, proxy_server=no_proxy, silence_warnings=True)
        try:
            images.put(kaleido.calc_fig_sync(figure.to_dict(), opts=options))
        except Exception as error:  # raised below
            images.put(error)

    Thread(target=render, daemon=True).start()
    try:
        image = images.get(timeout=PATIENCE)
    except Empty:
        print(f"Chromium has not answered for {PATIENCE} s, so figures are written as HTML only")
        os.environ["BROWSER_PATH"] = ""
        for child in psutil.Process().children(recursive=True):  # kaleido waits for it at the end
            with suppress(psutil.Error):  # it may just have ended
                names = map(os.path.basename, child.cmdline())
                if any("chrom" in name for name in names):  # Chromium or Google Chrome
                    child.kill()
        return None
    if isinstance(image, Exception):
        raise image
    return image


def player(waveform: np.ndarray) -> Audio:
    """A player of a waveform, (samples,), compressed to 4 kB per second because notebooks keep it."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="OGG", subtype="OPUS")
    audio = Audio(file.getvalue())
    audio.mimetype = "audio/ogg"
    return audio
