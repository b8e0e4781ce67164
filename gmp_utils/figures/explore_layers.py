"""An explorer of layers: the maps of notebook 03, with the sound and timeline of each point."""

import colorsys
import html
from functools import cached_property
from itertools import count
from pathlib import Path

import ipywidgets as widgets
import jscatter
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE, frame_at, wav
from gmp_utils.data.corpus import open_corpus
from gmp_utils.figures.help import help_text
from gmp_utils.figures.layers import patches
from gmp_utils.figures.style import colors
from gmp_utils.figures.timeline import GOLDEN, draw_timeline, scores_over_time, widget_output
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.runs import paths
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import FINETUNE, GENERATE_GMPS, MODELS, PROBE_LAYERS, display_path
from gmp_utils.runs.stage import check_and_identify
from gmp_utils.stages import interventions, probe_layers
from gmp_utils.training import features

TRAINING = "trained on"  # in place of a prediction for training utterances
ATTRIBUTES = ("emotion", "predicted", "gender", "speaker", "part")
MAX_VALUES = 8  # of each attribute in the table of a selection
PLAYED = 0.5  # seconds on each side of a frame
MAX_LEGEND = 12  # categories
HINT = "Click a point to hear it. To select many, press a map's lasso and draw around them."
HELP = {
    "run, frames, utterances, color": "the maps that are shown, what a point is, and its color",
    "model, layer": "those of each map. Tab moves to a control, and the arrow keys change it",
    "a click, the lasso": "play a point's utterance, or select many points. A double click selects none",
    "compare with": "put parts of another utterance of the same text into the point's utterance",
    "Save as CSV": "write the selected points to a file",
}


def map_model(run_dir: str, fold: int, model: str) -> Path:
    """Map the layers of a model of `MODELS` with the settings of the model that was mapped last."""
    folder = paths.fold_folder(run_dir, fold) / PROBE_LAYERS
    mapped = sorted(folder.glob("[!.]*/params.json"), key=lambda path: path.stat().st_mtime)
    if not mapped:
        raise paths.missing_artifact(folder, PROBE_LAYERS)
    return probe_layers.probe_layers(run_dir, **read_json(mapped[-1]) | {"model": model})


class FoldMaps:
    """The maps of "frames" or "utterances" of a run's fold, and the attributes of their points.

    `points` has the columns utterance, seconds (of frames), part, emotion, predicted, gender, speaker,
    energy (dB), and for frames "K = …" per scale of pseudo-labels.
    """

    def __init__(self, run_dir: str, fold: int, unit: str):
        self.folder, self.corpus = paths.fold_folder(run_dir, fold), open_corpus(run_dir)
        self.coordinates = {}  # by model, (layers, n_points, 2) float32
        self.scores = {}  # by model, UAR of linear probes, layers × tasks
        points = self._read_maps(unit)
        self.classifier = None  # stage of notebook 06 with the predictions
        predictions = sorted(self.folder.glob(f"{FINETUNE}/*/[!.]*/predictions.parquet"))
        predictions = [path for path in predictions if path.with_name("model").is_dir()]
        if predictions:
            path = max(predictions, key=lambda path: path.parts[-3:-1] == ("retrained", "ams"))
            self.classifier = path.parent
            check_and_identify(self.classifier)
            predicted = pd.read_parquet(path).set_index("utterance").predicted
            trained = points.part.map({"train": TRAINING})
            points["predicted"] = points.utterance.map(predicted).fillna(trained)
        self.labels, self.scales = None, []  # pseudo-labels, (frames, scales)
        if (self.folder / GENERATE_GMPS / "provenance.json").is_file():
            self.labels, self.scales = features.open_labels(self.folder / GENERATE_GMPS)
            if unit == "frames":
                frames = zip(points.utterance, frame_at(points.seconds))
                clusters = np.stack([self.labels[name][frame] for name, frame in frames], axis=1)
                for k, column in zip(self.scales, clusters):
                    points[f"K = {k}"] = pd.Categorical(column, categories=range(k))
        self.points = points.fillna(dict.fromkeys(ATTRIBUTES, "unknown"))

    def _read_maps(self, unit: str) -> pd.DataFrame:
        """Read the coordinates and scores of all models, and return the attributes of their points."""
        folder = self.folder / PROBE_LAYERS
        models = [model for model in MODELS if (folder / model / "provenance.json").is_file()]
        if not models:
            raise paths.missing_artifact(folder, PROBE_LAYERS)
        for model in models:
            check_and_identify(folder / model)
            table = pd.read_parquet(folder / model / "maps.parquet").query("unit == @unit")
            table = table.set_index(["utterance", "seconds"])
            layers = [rows for _, rows in table.groupby("layer")]
            if model == models[0]:
                points = layers[0]
            if not layers[0].index.equals(points.index):
                raise GmpError(
                    f"{display_path(folder)}: the maps of {models[0]} and {model} have different points; "
                    f"run notebooks/{PROBE_LAYERS}.ipynb for both with the same settings."
                )
            self.coordinates[model] = np.stack([rows[["x", "y"]] for rows in layers])
            probes = pd.read_parquet(folder / model / "probes.parquet")
            uars = probes.query("unit == @unit and metric == 'UAR'")
            self.scores[model] = uars.pivot(index="layer", columns="task", values="score")
        return points.drop(columns=["x", "y", "layer", "unit"]).reset_index()

    @cached_property
    def model(self) -> EmotionClassifier:
        """The classifier of the scores in timelines."""
        return EmotionClassifier.load(str(self.classifier / "model"))

    def timeline(self, point: int, played: tuple[float, float] | None) -> go.Figure:
        """Draw the utterance of a point, with the played part (s) marked."""
        row = self.points.loc[point]
        waveform = self.corpus.waveforms[row.utterance]
        manifest = self.corpus.manifest.loc[row.utterance]
        title, scores = f"{row.utterance}: {row.emotion}", None
        columns = self.labels[row.utterance].T if self.labels else []
        streams = {f"K = {k}": column for k, column in zip(self.scales, columns)}
        if self.classifier:
            scores = (*scores_over_time(self.model, waveform), self.model.config.emotions)
            prediction = f"predicted {row.predicted} ({'/'.join(self.classifier.parts[-2:])})"
            title += f", {TRAINING if row.predicted == TRAINING else prediction}"
        parts = [("played", *played)] if played else []
        if "emotion_start" in manifest and pd.notna(manifest.emotion_start):
            parts.append(("emotional part", manifest.emotion_start, manifest.emotion_end))
        return draw_timeline(waveform, title, scores=scores, streams=streams, labels=parts)

    def counterparts(self, utterance: str) -> dict[str, str]:
        """Utterances with an utterance's text and another emotion, of its speaker if possible, by label."""
        manifest = self.corpus.manifest
        if not self.classifier or "text" not in manifest:
            return {}
        row = manifest.loc[utterance]
        others = manifest[(manifest.text == row.text) & (manifest.emotion != row.emotion)]
        own = others[others.speaker == row.speaker]
        others = others if own.empty else own
        return {f"{name}: {emotion}": name for name, emotion in others.emotion.items()}

    def patches(self, source: str, target: str) -> go.Figure:
        """Draw the effects of one utterance's frames in another; see `interventions.patch`."""
        emotions = tuple(self.corpus.manifest.emotion[[source, target]])
        waveforms = map(self.corpus.waveforms.__getitem__, (source, target))
        table = interventions.patch(self.model, *waveforms, emotions)
        return patches(table, source, target, emotions)


def composition(points: pd.DataFrame, selected: np.ndarray) -> pd.DataFrame:
    """Count the attributes of selected points, (n,) int rows of `FoldMaps.points`.

    Returns a row for each attribute's `MAX_VALUES` most frequent values: `attribute`, `value`, `points`,
    their `share` of the selected points, the `share of all` points, and the `ratio` of both.
    """
    tables = {}
    for attribute in points.columns.intersection(ATTRIBUTES, sort=False):
        table = points[attribute].iloc[selected].value_counts().head(MAX_VALUES).to_frame("points")
        table["share"] = table.points / len(selected)
        table["share of all"] = points[attribute].value_counts(normalize=True)
        tables[attribute] = table
    table = pd.concat(tables, names=["attribute", "value"]).reset_index()
    return table.assign(ratio=table["share"] / table["share of all"])


class Panel:
    """One map of a model's layer, with the scores of its linear probes."""

    def __init__(self, maps: FoldMaps, model: str):
        self.maps = maps
        last = len(maps.coordinates[model]) - 1
        models = list(maps.coordinates)
        self.model = widgets.Dropdown(options=models, value=model, description="model")
        self.layer = widgets.IntSlider(last, max=last, description="layer", continuous_update=False)
        self.text = widgets.HTML()
        self.scatter = jscatter.Scatter(
            data=maps.points, **self._coordinates(), height=420, axes=False, color_selected="black",
            lasso_type="freeform", tooltip=True, tooltip_histograms=False, transition_points_duration=200,
            tooltip_properties=maps.points.columns.intersection(ATTRIBUTES).tolist(),
        )  # fmt: skip
        self._show()
        for control in (self.model, self.layer):
            control.observe(self._show, "value")
        controls = widgets.HBox([self.model, self.layer])
        self.widget = widgets.VBox([controls, self.text, self.scatter.show()], layout={"flex": "1"})

    @property
    def coordinates(self) -> np.ndarray:
        """Coordinates of the points on the selected layer, (n_points, 2)."""
        return self.maps.coordinates[self.model.value][self.layer.value]

    def _coordinates(self) -> dict:
        """Arguments of jscatter, with the same scale on both axes."""
        x, y = self.coordinates.T
        limit = 1.02 * abs(self.coordinates).max()
        return {"x": x, "y": y, "x_scale": (-limit, limit), "y_scale": (-limit, limit)}

    def _show(self, _change=None) -> None:
        self.layer.max = len(self.maps.coordinates[self.model.value]) - 1
        self.scatter.xy(**self._coordinates(), animate=True)
        layer = self.layer.value
        scores = self.maps.scores[self.model.value].loc[layer].items()
        text = ", ".join(f"{task} {score:.2f}" for task, score in scores)
        from_last = layer - self.layer.max - 1
        self.text.value = f"layer {layer} ({from_last}); linear probes, UAR: {text}"

    def color(self, column: str) -> None:
        """Color the points by a column."""
        values = self.maps.points[column]
        if pd.api.types.is_float_dtype(values):
            self.scatter.color(by=column, map="viridis", norm=tuple(values.quantile([0.05, 0.95])))
        else:
            categories = values.astype("category").cat.categories
            self.scatter.color(by=column, map=palette(list(categories)))
            self.scatter.legend(len(categories) <= MAX_LEGEND)


def palette(categories: list) -> list:
    """A color per category, hex or RGB: above `MAX_LEGEND`, only adjacent colors differ clearly."""
    if len(categories) <= MAX_LEGEND:
        return list(colors(map(str, categories)).values())
    numbers = range(len(categories))
    return [colorsys.hls_to_rgb(n * GOLDEN % 1, 0.35 + 0.1 * (n % 3), 0.7) for n in numbers]


def _close(widget: widgets.Widget) -> None:
    """Close a widget with its children, in the browser too."""
    parts = [getattr(widget, name) for name in ("layout", "style") if hasattr(widget, name)]
    for part in (*getattr(widget, "children", ()), *parts):
        _close(part)
    widget.close()


class LayerExplorer:
    """Two linked maps of a run's layers. A click plays and draws an utterance; a lasso counts points."""

    def __init__(self, run_dir: str, fold: int):
        first = display_path(paths.run_folder(run_dir)), fold
        stages = paths.run_folder(run_dir).parent.glob(f"*/fold[0-9]*/{PROBE_LAYERS}")
        folds = {(display_path(Path(run)), fold) for run, fold in map(paths.run_and_fold, stages)}
        options = [(f"{run}, fold {fold}", (run, fold)) for run, fold in sorted(folds | {first})]
        self.run = widgets.Dropdown(description="run", options=options, value=first)
        self.unit = widgets.ToggleButtons(options=["frames", "utterances"])
        self.column = widgets.Dropdown(description="color")
        self.maps_box, self.players = widgets.HBox(), widgets.HBox()
        self.sounds = [widgets.Audio(format="wav", loop=False) for _ in range(2)]
        self.titles = [widgets.Label() for _ in self.sounds]
        self._titled_sounds = [widgets.VBox(pair) for pair in zip(self.titles, self.sounds)]
        self.compared = widgets.Dropdown(
            description="compare with", style={"description_width": "initial"}
        )
        self.figure, self.table = widgets.Output(), widgets.HTML()
        self.save = widgets.Button(description="Save as CSV", icon="download")
        self.saved = widgets.Label()
        controls = widgets.HBox([self.run, self.unit, self.column])
        saving = widgets.HBox([self.save, self.saved])
        rows = [self.maps_box, self.players, self.figure, self.table, saving]
        self.widget = widgets.VBox([help_text(HELP), controls, *rows])
        self._show()
        self.run.observe(self._change, "value")
        self.unit.observe(self._change, "value")
        self.column.observe(self._color, "value")
        self.compared.observe(self._draw, "value")
        self.save.on_click(self._save)

    def _show(self) -> None:
        """Show the maps of the selected run, fold and unit."""
        maps = FoldMaps(*self.run.value, self.unit.value)
        models, previous = list(maps.coordinates), self.maps_box.children
        panels = [Panel(maps, models[0]), Panel(maps, models[-1])]
        scatters = [panel.scatter for panel in panels]
        jscatter.compose(scatters, sync_selection=True, sync_hover=True, row_height=420)
        for scatter in scatters:
            scatter.widget.observe(self._select, "selection")
        self.maps, self.panels = maps, panels
        self._clear()
        scales = [name for name in maps.points if name.startswith("K = ")]
        column = self.column.value
        self.column.options = [c for c in (*ATTRIBUTES, "energy", *scales) if c in maps.points]
        self.column.value = column if column in self.column.options else "emotion"
        self._color()
        self.maps_box.children = [panel.widget for panel in panels]
        for widget in previous:
            _close(widget)

    def _change(self, change) -> None:
        """Show other maps, or the error and the previous maps."""
        try:
            self._show()
        except GmpError as error:
            change.owner.unobserve(self._change, "value")
            change.owner.value = change.old
            change.owner.observe(self._change, "value")
            self.table.value = html.escape(str(error))

    def _clear(self) -> None:
        self.rows, self.save.disabled, self.saved.value = np.zeros(0, dtype=int), True, ""
        self.compared.options = ()
        self.players.children, self.figure.outputs, self.table.value = (), (), HINT

    def _color(self, _change=None) -> None:
        for panel in self.panels:
            panel.color(self.column.value)

    @property
    def selected(self) -> pd.DataFrame:
        """The selected points, with their coordinates on both maps."""
        coordinates = {}
        for panel in self.panels:
            name = f"{panel.model.value}, layer {panel.layer.value}"
            x, y = panel.coordinates[self.rows].T
            coordinates |= {f"x ({name})": x, f"y ({name})": y}
        return self.maps.points.iloc[self.rows].assign(**coordinates)

    def _select(self, change) -> None:
        rows = np.asarray(change["new"], dtype=int)
        if np.array_equal(rows, self.rows):
            return
        self._clear()
        self.rows, self.save.disabled = rows, not len(rows)
        if len(rows) == 1:
            others = self.maps.counterparts(self.maps.points.utterance[rows[0]])
            self.compared.options = {"no other": ""} | others
            self.compared.value = ""  # which draws: it was None
        if len(rows):
            formats = dict.fromkeys(["share", "share of all"], "{:.0%}".format)
            formats["ratio"] = "{:.1f}".format
            table = composition(self.maps.points, rows).to_html(index=False, formatters=formats)
            start = f'<div class="jp-RenderedHTMLCommon"><b>Selected points: {len(rows)}</b>'
            self.table.value = f"{start}{table}</div>"

    def _draw(self, _change) -> None:
        """Play and draw the utterance of the selected point, or compare it with the chosen one."""
        if len(self.rows) != 1:
            return
        row, other = self.maps.points.loc[self.rows[0]], self.compared.value
        waveforms, played = self.maps.corpus.waveforms, None
        pieces = {"the utterance": waveforms[row.utterance]}
        if other:
            pieces = {name: waveforms[name] for name in (row.utterance, other)}
        elif self.unit.value == "frames":
            end = len(waveforms[row.utterance]) / SAMPLE_RATE
            played = max(row.seconds - PLAYED, 0), min(row.seconds + PLAYED, end)
            part = slice(*(int(SAMPLE_RATE * t) for t in played))
            pieces["the second around the frame"] = waveforms[row.utterance][part]
        self._play(pieces)
        if other:
            figure = self.maps.patches(other, row.utterance)
        else:
            figure = self.maps.timeline(self.rows[0], played)
        self.figure.outputs = widget_output(figure)

    def _play(self, pieces: dict[str, np.ndarray]) -> None:
        """Show players of one or two waveforms by title, and play the last one."""
        for title, sound, (name, piece) in zip(self.titles, self.sounds, pieces.items()):
            title.value, sound.autoplay, sound.value = name, name == [*pieces][-1], wav(piece)
        choice = [self.compared] if len(self.compared.options) > 1 else []
        self.players.children = [*self._titled_sounds[: len(pieces)], *choice]

    def _save(self, _button) -> None:
        folder = self.maps.folder / "selections"
        folder.mkdir(exist_ok=True)
        names = (folder / f"{self.unit.value}-{number:03d}.csv" for number in count(1))
        path = next(path for path in names if not path.exists())
        self.selected.to_csv(path, index=False)
        self.saved.value = f"{len(self.rows)} points: {display_path(path)}"


def explore(run_dir: str, fold: int = 1) -> LayerExplorer:
    """Display the explorer of a run, in which other runs of the same folder can be selected."""
    explorer = LayerExplorer(run_dir, fold)
    display(explorer.widget)
    return explorer
