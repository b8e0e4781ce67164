"""A live look at layers: maps side by side, and the sound behind every point.

Maps are those of notebook 03; pseudo-labels of 04 and classifiers of 06 are shown where they are.
"""

import colorsys
import html
import json
from functools import cached_property
from itertools import count
from pathlib import Path

import ipywidgets as widgets
import jscatter
import numpy as np
import pandas as pd
from IPython.display import display

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE, wav
from gmp_utils.data.corpus import open_corpus
from gmp_utils.figures.style import colors
from gmp_utils.figures.timeline import draw_timeline, scores_over_time
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.encoder import frame_at
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import (
    FINETUNE,
    GENERATE_GMPS,
    MODELS,
    PROBE_LAYERS,
    display_path,
    missing_artifact,
    run_folder,
)
from gmp_utils.runs.stage import check_and_identify
from gmp_utils.stages import probe_layers
from gmp_utils.training import features

TRAINING = "trained on"  # no prediction: the classifier knows the answer
MOST = 8
KNOWN = ("emotion", "predicted", "gender", "speaker", "part")
PLAYED = 0.5  # seconds on each side of a frame
MANY = 12  # categories: more have no legend
HINT = "Click a point to hear it; press a map's lasso and draw around many."


def map_model(run_dir: str, fold: int, model: str) -> Path:
    """Map the layers of one more model, with the settings of the one that was mapped last.

    Parameters
    ----------
    run_dir : str
    fold : int
    model : str
        One of `gmp_utils.runs.paths.MODELS`.

    Returns
    -------
    stage : Path
        See `probe_layers`; one that is there with these settings is left as it is.

    Raises
    ------
    GmpError
        If no model is mapped yet, or the stage of this one is not there.
    """
    folder = run_folder(run_dir) / f"fold{fold}" / PROBE_LAYERS
    mapped = sorted(folder.glob("*/params.json"), key=lambda path: path.stat().st_mtime)
    if not mapped:
        raise missing_artifact(folder, PROBE_LAYERS)
    return probe_layers.probe_layers(run_dir, **read_json(mapped[-1]) | {"model": model})


class FoldMaps:
    """What a fold of a run offers to look at.

    Parameters
    ----------
    run_dir : str
    fold : int
    of : str
        "frames" or "utterances".

    Attributes
    ----------
    points : DataFrame
        utterance, seconds (of frames), part, emotion, predicted, gender, speaker, energy (dB), and
        for frames a column "K = …" per scale of pseudo-labels.
    places : dict of str to (layers, n_points, 2) float32
        Maps of each model that notebook 03 has drawn, the same points in the same order.
    scores : dict of str to DataFrame
        UAR of linear probes of each model, layers × tasks.
    """

    def __init__(self, run_dir: str, fold: int, of: str):
        self.fold = run_folder(run_dir) / f"fold{fold}"
        self.corpus = open_corpus(run_dir)
        maps, self.scores = self._read_maps(of)
        first, *others = maps
        for other in others:
            if not maps[other][0].index.equals(maps[first][0].index):
                raise GmpError(
                    f"{display_path(self.fold)}: the maps of {first} and {other} hold different points; "
                    f"run notebooks/{PROBE_LAYERS}.ipynb for both with the same settings."
                )
        self.places = {
            model: np.stack([rows[["x", "y"]] for rows in layers]) for model, layers in maps.items()
        }
        points = maps[first][0].drop(columns=["x", "y", "layer", "of"]).reset_index()
        found = sorted(self.fold.glob(f"{FINETUNE}/*/*/predictions.parquet"))
        preferred = self.fold / FINETUNE / "gmps" / "ams" / "predictions.parquet"
        self.classifier = (preferred if preferred in found else found[0]).parent if found else None
        if self.classifier:
            check_and_identify(self.classifier)
            predictions = pd.read_parquet(self.classifier / "predictions.parquet")
            predicted = points.utterance.map(predictions.set_index("utterance").predicted)
            points["predicted"] = predicted.fillna(TRAINING)
        self.labels = None
        if (self.fold / GENERATE_GMPS).is_dir():
            self.labels, self.scales = features.open_labels(self.fold / GENERATE_GMPS)
            if of == "frames":
                at = zip(points.utterance, frame_at(points.seconds))
                rows = [self.labels[name][frame] for name, frame in at]
                for k, clusters in zip(self.scales, np.stack(rows, axis=1)):
                    points[f"K = {k}"] = pd.Categorical(clusters, categories=range(k))
        named = points.columns.intersection(KNOWN)
        self.points = points.assign(**points[named].fillna("unknown"))

    def _read_maps(self, of: str) -> tuple[dict[str, list[pd.DataFrame]], dict[str, pd.DataFrame]]:
        """Of each model that is mapped: its points per layer, and its probes' scores."""
        maps, scores = {}, {}
        key = ["utterance", "seconds"] if of == "frames" else ["utterance"]
        for model in MODELS:
            stage = self.fold / PROBE_LAYERS / model
            if stage.is_dir():
                check_and_identify(stage)
                table = pd.read_parquet(stage / "maps.parquet").query("of == @of")
                maps[model] = [rows.set_index(key) for _, rows in table.groupby("layer")]
                probes = pd.read_parquet(stage / "probes.parquet")
                probes = probes[(probes.of == of) & (probes.metric == "UAR")]
                scores[model] = probes.pivot(index="layer", columns="task", values="score")
                if len(maps[model]) != len(scores[model]):
                    raise GmpError(
                        f"{display_path(stage)} maps {len(maps[model])} of {len(scores[model])} layers; "
                        f"run notebooks/{PROBE_LAYERS}.ipynb again."
                    )
        if not maps:
            raise missing_artifact(self.fold / PROBE_LAYERS, PROBE_LAYERS)
        return maps, scores

    @cached_property
    def model(self) -> EmotionClassifier:
        """The classifier whose scores are drawn."""
        return EmotionClassifier.load(str(self.classifier / "model"))

    def timeline(self, point: int, around: tuple[float, float] | None):
        """Draw the utterance of a point; see `gmp_utils.figures.timeline.draw_timeline`."""
        row = self.points.loc[point]
        waveform = self.corpus.waveforms[row.utterance]
        about = self.corpus.manifest.loc[row.utterance]
        streams = scores = carries = None
        if self.labels:
            columns = self.labels[row.utterance].T
            streams = {f"K = {k}": column for k, column in zip(self.scales, columns)}
        title = f"{row.utterance}: {row.emotion}"
        if self.classifier:
            seconds, values = scores_over_time(self.model, waveform)
            scores = seconds, values, self.model.config.emotions
            name, taught = "/".join(self.classifier.parts[-2:]), row.predicted == TRAINING
            title += f", {TRAINING}" if taught else f", heard as {row.predicted} ({name})"
        if "emotion_start" in about and pd.notna(about.emotion_start):
            carries = about.emotion_start, about.emotion_end
        return draw_timeline(waveform, title, streams, scores, around, carries)


def composition(points: pd.DataFrame, chosen: np.ndarray) -> pd.DataFrame:
    """What some points consist of, beside all.

    Parameters
    ----------
    points : DataFrame
        See `FoldMaps`.
    chosen : (n,) int
        Rows.

    Returns
    -------
    table : DataFrame
        A row per emotion, predicted emotion, gender, speaker and part that occurs among the chosen
        (the `MOST` frequent of each): how many points, their share, the share among all points, and
        the ratio of the two.
    """
    tables = []
    for column in (name for name in KNOWN if name in points):
        found = points[column].iloc[chosen].value_counts().head(MOST)
        table = pd.DataFrame(
            {"of": column, "is": found.index.astype(str), "points": found.to_numpy()}
        )
        table["share"] = table.points / len(chosen)
        table["share of all"] = points[column].value_counts(normalize=True)[found.index].to_numpy()
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(ratio=table["share"] / table["share of all"])


class Panel:
    """One map: a model, a layer, and how well linear probes do there.

    Parameters
    ----------
    explored : Explored
    model : str
    """

    def __init__(self, explored: FoldMaps, model: str):
        self.explored = explored
        n_layers = len(explored.places[model]) - 1
        self.model = widgets.Dropdown(options=list(explored.places), value=model)
        self.layer = widgets.IntSlider(
            n_layers, max=n_layers, description="layer", continuous_update=False
        )
        self.says = widgets.HTML()
        self.scatter = jscatter.Scatter(
            data=explored.points,
            **self._place(),
            height=420,
            axes=False,
            color_selected="black",
            lasso_type="freeform",
            tooltip=True,
            tooltip_properties=explored.points.columns.intersection(KNOWN).tolist(),
            tooltip_histograms=False,
            transition_points_duration=200,
        )
        self._say()
        self.model.observe(self._change_model, "value")
        self.layer.observe(self._move, "value")
        head = widgets.HBox([self.model, self.layer])
        self.widget = widgets.VBox([head, self.says, self.scatter.show()], layout={"flex": "1"})

    def _place(self) -> dict:
        """Coordinates of the layer shown, on one scale for both axes: turning changes no shape."""
        places = self.explored.places[self.model.value][self.layer.value]
        widest = 1.02 * abs(places).max()
        x, y = places.T
        return {"x": x, "y": y, "x_scale": (-widest, widest), "y_scale": (-widest, widest)}

    def _change_model(self, _change) -> None:
        self.layer.max = len(self.explored.places[self.model.value]) - 1
        self._move()

    def _move(self, _change=None) -> None:
        self.scatter.xy(**self._place(), animate=True)
        self._say()

    def _say(self) -> None:
        scores = self.explored.scores[self.model.value].loc[self.layer.value]
        told = ", ".join(f"{task} {score:.2f}" for task, score in scores.items())
        layer = self.layer.value
        self.says.value = (
            f"layer {layer} ({layer - self.layer.max - 1}); linear probes, UAR: {told}"
        )

    def color(self, column: str) -> None:
        """Colour the points by what is known of them."""
        values = self.explored.points[column]
        if pd.api.types.is_float_dtype(values):
            low, high = values.quantile([0.05, 0.95])
            self.scatter.color(by=column, map="viridis", norm=(low, high))
        else:
            categories = values.astype("category").cat.categories
            self.scatter.color(by=column, map=palette(list(categories)))
            self.scatter.legend(len(categories) <= MANY)


def palette(categories: list) -> list[str]:
    """A color per category; beyond `MANY` neighbours differ, and no more can be asked."""
    if len(categories) <= MANY:
        return list(colors(map(str, categories)).values())
    hues = np.arange(len(categories)) * 0.618 % 1  # golden ratio
    lights = 0.35 + 0.1 * (np.arange(len(categories)) % 3)
    rgb = [colorsys.hls_to_rgb(hue, light, 0.7) for hue, light in zip(hues, lights)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in rgb]


def _close(widget: widgets.Widget) -> None:
    """Let a widget and what is in it go, in the browser too."""
    own = [getattr(widget, name) for name in ("layout", "style") if hasattr(widget, name)]
    for child in (*getattr(widget, "children", ()), *own):
        _close(child)
    widget.close()


class Explorer:
    """Two linked maps of a run's layers; a click plays and draws an utterance, a lasso counts.

    Parameters
    ----------
    run_dir : str
    fold : int

    Attributes
    ----------
    widget : VBox
        What `explore` shows.
    selected : DataFrame
        The points chosen, with their places on both maps.
    """

    def __init__(self, run_dir: str, fold: int):
        own = display_path(run_folder(run_dir)), fold
        folders = run_folder(run_dir).parent.glob(f"*/fold*/{PROBE_LAYERS}")
        found = {
            (display_path(path.parents[1]), int(path.parent.name[4:]))
            for path in folders
            if path.parent.name[4:].isdigit()
        }
        options = [
            (f"{run}, fold {number}", (run, number)) for run, number in sorted(found | {own})
        ]
        self.run = widgets.Dropdown(description="run", options=options, value=own)
        self.of = widgets.ToggleButtons(options=["frames", "utterances"])
        self.column = widgets.Dropdown(description="color")
        self.maps, self.players = widgets.HBox(), widgets.HBox()
        self.sounds = [widgets.Audio(format="wav", loop=False) for _ in range(2)]
        self._labelled = [
            widgets.VBox([widgets.Label(name), sound])
            for name, sound in zip(("the utterance", "the second around the frame"), self.sounds)
        ]
        self.drawn, self.table = widgets.Output(), widgets.HTML()
        self.save = widgets.Button(description="Save as CSV", icon="download")
        self.saved = widgets.Label()
        settings = widgets.HBox([self.run, self.of, self.column])
        saving = widgets.HBox([self.save, self.saved])
        self.widget = widgets.VBox(
            [settings, self.maps, self.players, self.drawn, self.table, saving]
        )
        self._show()
        self.run.observe(self._change, "value")
        self.of.observe(self._change, "value")
        self.column.observe(self._colour, "value")
        self.save.on_click(self._save)

    def _show(self) -> None:
        """Draw the maps of the run, fold and kind of points asked for."""
        explored = FoldMaps(*self.run.value, self.of.value)
        models, old = list(explored.places), self.maps.children
        panels = [Panel(explored, models[0]), Panel(explored, models[-1])]
        jscatter.compose(
            [panel.scatter for panel in panels],
            sync_selection=True,
            sync_hover=True,
            row_height=420,
        )
        for panel in panels:
            panel.scatter.widget.observe(self._select, "selection")
        self.explored, self.panels = explored, panels
        self._clear()
        known = (*KNOWN, "energy", *(name for name in explored.points if name.startswith("K = ")))
        before = self.column.value
        self.column.options = [name for name in known if name in explored.points]
        self.column.value = before if before in self.column.options else "emotion"
        self._colour()
        self.maps.children = [panel.widget for panel in panels]
        for widget in old:
            _close(widget)

    def _change(self, change) -> None:
        """Show what is asked for; where that cannot be, say why, and stay."""
        try:
            self._show()
        except GmpError as error:
            change.owner.unobserve(self._change, "value")
            change.owner.value = change.old
            change.owner.observe(self._change, "value")
            self.table.value = html.escape(str(error))

    def _clear(self) -> None:
        self.chosen, self.save.disabled, self.saved.value = np.zeros(0, dtype=int), True, ""
        self.players.children, self.drawn.outputs, self.table.value = (), (), HINT

    def _colour(self, _change=None) -> None:
        for panel in self.panels:
            panel.color(self.column.value)

    @property
    def selected(self) -> pd.DataFrame:
        """The points chosen, with their places on both maps."""
        table = self.explored.points.iloc[self.chosen]
        places = {}
        for panel in self.panels:
            x, y = self.explored.places[panel.model.value][panel.layer.value][self.chosen].T
            name = f"{panel.model.value}, layer {panel.layer.value}"
            places |= {f"x ({name})": x, f"y ({name})": y}
        return table.assign(**places)

    def _select(self, change) -> None:
        chosen = np.asarray(change["new"], dtype=int)
        if np.array_equal(chosen, self.chosen):
            return
        self._clear()
        self.chosen, self.save.disabled = chosen, not len(chosen)
        if len(chosen) == 1:
            self._play(int(chosen[0]))
        if len(chosen):
            table = composition(self.explored.points, chosen)
            formats = dict.fromkeys(["share", "share of all"], "{:.0%}".format)
            table = table.to_html(index=False, formatters=formats | {"ratio": "{:.1f}".format})
            self.table.value = (
                f'<div class="jp-RenderedHTMLCommon"><b>{len(chosen)} points</b>{table}</div>'
            )

    def _play(self, point: int) -> None:
        """Let an utterance be heard, and draw it."""
        row = self.explored.points.loc[point]
        waveform, around = self.explored.corpus.waveforms[row.utterance], None
        pieces = [waveform]
        if self.of.value == "frames":
            end = len(waveform) / SAMPLE_RATE
            around = max(row.seconds - PLAYED, 0), min(row.seconds + PLAYED, end)
            pieces.append(waveform[slice(*(int(SAMPLE_RATE * t) for t in around))])
        for sound, piece in zip(self.sounds, pieces):
            sound.autoplay = piece is pieces[-1]
            sound.value = wav(piece)
        self.players.children = self._labelled[: len(pieces)]
        figure = json.loads(self.explored.timeline(point, around).to_json())
        data = {"application/vnd.plotly.v1+json": figure}
        self.drawn.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

    def _save(self, _button) -> None:
        folder = self.explored.fold / "selections"
        folder.mkdir(exist_ok=True)
        names = (folder / f"{self.of.value}-{number:03d}.csv" for number in count(1))
        path = next(path for path in names if not path.exists())
        self.selected.to_csv(path, index=False)
        self.saved.value = f"{len(self.chosen)} points: {display_path(path)}"


def explore(run_dir: str, fold: int = 1) -> Explorer:
    """Look at, and listen to, the layers that notebook 03 has mapped.

    Parameters
    ----------
    run_dir : str
        Other runs beside it can be chosen in the view.
    fold : int

    Returns
    -------
    explorer : Explorer
        Shown; its `selected` holds the points that are chosen.

    Raises
    ------
    GmpError
        If notebook 03 has not mapped a model of this fold.
    """
    explorer = Explorer(run_dir, fold)
    display(explorer.widget)
    return explorer
