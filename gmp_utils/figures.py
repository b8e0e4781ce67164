"""Plotly figures of the series: one look, one colour per emotion and gender, everywhere."""

import os
import shutil
from functools import cache

import kaleido
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from gmp_utils import runs

# Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = {
    "angry": "#D55E00",
    "happy": "#E69F00",
    "neutral": "#999999",
    "sad": "#0072B2",
    "fearful": "#CC79A7",
    "disgusted": "#009E73",
    "bored": "#56B4E9",
    "female": "#CC79A7",
    "male": "#009E73",
    "emotion": "#D55E00",
    "gender": "#009E73",
    "speaker": "#0072B2",
    "CE": "#0072B2",
    "AMS": "#D55E00",
    "CE then AMS": "#009E73",
}
_SEQUENCE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]

TEMPLATE = go.layout.Template(
    layout={
        "colorway": _SEQUENCE,
        "font": {"size": 13},
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper"},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {"gridcolor": "#eeeeee", "zerolinecolor": "#cccccc", "linecolor": "#888888"},
        "yaxis": {"gridcolor": "#eeeeee", "zerolinecolor": "#cccccc", "linecolor": "#888888"},
        "modebar": {"remove": ["sendChartToCloud"]},
    }
)


def browser() -> str | None:
    """The Chromium that draws PNG pictures, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)


@cache
def _start_renderer() -> None:
    """One Chromium for all figures of a notebook: starting it costs ten times what a figure does."""
    kaleido.start_sync_server(silence_warnings=True)


def show(figure: go.Figure, run_dir: str, name: str) -> None:
    """Show a figure in the notebook and keep it under figures/.

    Parameters
    ----------
    figure : Figure
    run_dir : str
        See `gmp_utils.runs.figures_folder`.
    name : str
        Of the files, without ending: `.html`, and `.png` where a Chromium is found.
    """
    from IPython.display import display

    figure.update_layout(template=TEMPLATE)
    folder = runs.figures_folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
    bundle = {"application/vnd.plotly.v1+json": figure.to_plotly_json()}
    if browser():
        _start_renderer()
        size = {"format": "png", "width": 900, "height": figure.layout.height or 420}
        bundle["image/png"] = kaleido.calc_fig_sync(figure.to_dict(), opts=size)
        (folder / f"{name}.png").write_bytes(bundle["image/png"])
    else:
        print(f"no Chromium found: {runs.shown(folder / name)}.html only, no PNG")
    display(bundle, raw=True)


def counts(manifest: pd.DataFrame) -> go.Figure:
    """Utterances per speaker and emotion."""
    table = manifest.groupby(["speaker", "emotion"]).size().rename("utterances").reset_index()
    figure = px.bar(table, x="speaker", y="utterances", color="emotion", color_discrete_map=COLOURS)
    sizes = manifest.emotion.value_counts()
    title = f"{len(manifest)} utterances of {manifest.speaker.nunique()} speakers"
    if sizes.iloc[0] > sizes.iloc[-1]:
        title += f"; most are {sizes.index[0]} ({sizes.iloc[0]}), fewest {sizes.index[-1]} ({sizes.iloc[-1]})"
    else:
        title += f", {sizes.iloc[0]} of each emotion"
    return figure.update_layout(title=title).update_xaxes(type="category")


def durations(manifest: pd.DataFrame) -> go.Figure:
    """How long utterances are."""
    figure = px.histogram(
        manifest.sort_values("emotion"),
        x="duration",
        color="emotion",
        nbins=40,
        color_discrete_map=COLOURS,
    )
    low, high = manifest.duration.quantile([0.05, 0.95])
    figure.update_layout(
        title=f"Nine in ten utterances last {low:.1f} to {high:.1f} s",
        xaxis_title="duration (s)",
        yaxis_title="utterances",
    )
    return figure


def curves(history: pd.DataFrame, panels: dict[str, dict[str, str]], title: str) -> go.Figure:
    """Training curves, panel beside panel.

    Parameters
    ----------
    history : DataFrame
        As `gmp_utils.training.train` writes it.
    panels : dict
        By panel's title: names of lines, and the column each shows.
    title : str
        The finding.
    """
    x = "step" if "accuracy" in " ".join(history.columns) else "epoch"
    figure = make_subplots(1, len(panels), subplot_titles=list(panels))
    for column, lines in enumerate(panels.values(), start=1):
        for number, (line, values) in enumerate(lines.items()):
            colour = COLOURS.get(line.split(",")[0], _SEQUENCE[number])
            dash = "dot" if "training" in line else "solid"
            figure.add_scatter(
                x=history[x],
                y=history[values],
                name=line,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                legendgroup=line,
                showlegend=not any(trace.name == line for trace in figure.data),
                row=1,
                col=column,
            )
    return figure.update_xaxes(title=x).update_layout(title=title)


def targets(mel: np.ndarray, rounds: dict[str, np.ndarray], title: str) -> go.Figure:
    """A log-mel spectrogram, and below it what each round asks of its frames.

    Parameters
    ----------
    mel : (bands, frames) float
    rounds : dict of str to (frames,) int
        Clusters by row's name.
    title : str
    """
    rows = 1 + len(rounds)
    heights = [0.6, *[0.4 / len(rounds)] * len(rounds)]
    figure = make_subplots(rows, 1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.03)
    seconds = np.arange(mel.shape[1]) / 50
    figure.add_heatmap(x=seconds, z=mel, colorscale="Greys", showscale=False, row=1, col=1)
    for row, (name, clusters) in enumerate(rounds.items(), start=2):
        figure.add_heatmap(
            x=seconds, y=[name], z=clusters[None], colorscale="Turbo", showscale=False,
            row=row, col=1,
        )  # fmt: skip
    figure.update_yaxes(title="mel band", row=1, col=1)
    return figure.update_xaxes(title="s", row=rows, col=1).update_layout(title=title)


def layer_curves(probes: pd.DataFrame) -> go.Figure:
    """UAR of the probes over layers, with chance."""
    best = probes[probes.task == "emotion"].sort_values("uar").iloc[-1]
    figure = go.Figure()
    for task, group in probes.groupby("task"):
        colour = COLOURS[task]
        figure.add_scatter(x=group.layer, y=group.uar, name=task, line={"color": colour})
        figure.add_scatter(
            x=group.layer,
            y=group.chance,
            name=f"{task}, chance",
            line={"color": colour, "dash": "dot", "width": 1},
        )
    figure.update_layout(
        title=f"Emotion is read best from layer {best.layer:.0f}: UAR {best.uar:.2f}",
        xaxis_title="layer (0 is the input of the first)",
        yaxis_title="UAR of a linear probe",
        yaxis_range=[0, 1.02],
    )
    return figure


def cluster_information(clusters: pd.DataFrame) -> go.Figure:
    """What clusters tell of emotion, gender and speaker, per layer and scale."""
    figure = px.line(
        clusters.assign(K="K = " + clusters.K.astype(str)),
        x="layer",
        y="nmi",
        color="K",
        facet_col="known",
        markers=True,
        color_discrete_sequence=_SEQUENCE,
    )
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    k = clusters.K.min()
    top = clusters[clusters.K == k].groupby("known").nmi.max().sort_values()
    title = f"K = {k} clusters tell most of {top.index[-1]}, least of {top.index[0]}"
    return figure.update_layout(title=title, yaxis_title="normalised mutual information")


def shared_emotion(table: pd.DataFrame) -> tuple[float, float]:
    """How often the ten nearest points of other speakers share a validation point's emotion.

    Parameters
    ----------
    table : DataFrame
        x, y, part, speaker and emotion of one map.

    Returns
    -------
    shared, by_chance : float
        0 to 1; by chance: the share of the emotion among other speakers' points.
    """
    shared, expected = [], []
    for speaker, own in table[table.part == "validation"].groupby("speaker"):
        others = table[table.speaker != speaker]
        nearest = NearestNeighbors(n_neighbors=min(10, len(others))).fit(others[["x", "y"]])
        found = nearest.kneighbors(own[["x", "y"]], return_distance=False)
        same = others.emotion.to_numpy()[found] == own.emotion.to_numpy()[:, None]
        shared.extend(same.mean(axis=1))
        expected.extend(own.emotion.map(others.emotion.value_counts(normalize=True)).fillna(0))
    return float(np.mean(shared)), float(np.mean(expected))


def maps(table: pd.DataFrame, of: str, n_layers: int) -> go.Figure:
    """UMAP of utterances or frames, coloured by emotion, a panel per layer.

    Training speakers are small dots: their emotions may have been taught to the model.
    """
    chosen = table[table.of == of]
    figure = px.scatter(
        chosen.sample(frac=1, random_state=0),
        x="x",
        y="y",
        color="emotion",
        facet_col="layer",
        color_discrete_map=COLOURS,
        category_orders={"emotion": sorted(chosen.emotion.unique())},
        symbol="part",
        symbol_map={"train": "circle", "validation": "diamond"},
        hover_data={"speaker": True, "x": False, "y": False},
        render_mode="svg",
    )
    figure.for_each_trace(
        lambda trace: trace.update(
            marker={"size": 4, "opacity": 0.6}
            if trace.name.endswith("train")
            else {"size": 7, "line": {"width": 0.5, "color": "black"}}
        )
    )
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    named = ", ".join(f"{layer - n_layers - 1}" for layer in sorted(chosen.layer.unique()))
    found = [shared_emotion(one) for _, one in chosen.groupby("layer")]
    shares = ", ".join(f"{shared:.0%}" for shared, _ in found)
    title = (
        f"Validation {of}, layer {named}: other speakers' neighbours share the emotion in {shares}"
    )
    return figure.update_layout(title=f"{title} ({found[0][1]:.0%} by chance)")


def heatmap(table: pd.DataFrame, title: str, colour_title: str) -> go.Figure:
    """A table of numbers as colours, with the numbers in it."""
    figure = px.imshow(
        table, text_auto=".2f", color_continuous_scale="Blues", zmin=0, aspect="auto"
    )
    return figure.update_layout(title=title, coloraxis_colorbar_title=colour_title)


def composition(table: pd.DataFrame, k: int, stream: int, by: str) -> go.Figure:
    """Which emotion (or gender) the frames of each cluster come from."""
    shares = pd.crosstab(table[f"stream{stream}"], table[by], normalize="index")
    order = shares.sort_values(list(shares.columns)).index
    long = (
        shares.loc[order]
        .reset_index(drop=True)
        .melt(ignore_index=False, var_name=by, value_name="share")
    )
    figure = px.bar(
        long, x=long.index, y="share", color=by, color_discrete_map=COLOURS
    ).update_traces(marker_line_width=0)
    expected = table[by].value_counts(normalize=True)
    far_above = shares.gt(1.5 * expected, axis="columns").any(axis="columns").mean()
    figure.update_layout(
        title=f"K = {k}: in {far_above:.0%} of the clusters one {by} is at 1.5 times its share or more",
        xaxis_title="cluster, sorted",
        yaxis_title=f"share of frames by {by}",
        bargap=0,
    )
    return figure


def separations(spread: dict[str, dict]) -> go.Figure:
    """Distances between and within classes, before and after fine-tuning, per loss."""
    rows = [
        {"loss": loss, "when": when, "distance": kind, "value": values[kind]}
        for loss, found in spread.items()
        for when, values in found.items()
        for kind in ("between", "within")
    ]
    figure = px.bar(
        pd.DataFrame(rows), x="when", y="value", color="distance", facet_col="loss",
        barmode="group", color_discrete_sequence=_SEQUENCE,
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    ratios = {loss: found["after"]["ratio"] for loss, found in spread.items()}
    named = ", ".join(f"{loss} {ratio:.1f}" for loss, ratio in ratios.items())
    return figure.update_layout(
        title=f"Distance between classes over distance within, after training: {named}",
        yaxis_title="cosine distance",
    )


def confusion(predictions: pd.DataFrame, emotions: list[str], title: str) -> go.Figure:
    """Confusion matrix, rows normalised: recall on the diagonal."""
    table = pd.crosstab(predictions.true, predictions.predicted, normalize="index")
    table = table.reindex(index=emotions, columns=emotions, fill_value=0)
    figure = heatmap(table, title, "share")
    return figure.update_layout(xaxis_title="predicted", yaxis_title="true")


def recall_bars(tables: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """Recall per emotion and gender, a panel per system."""
    figure = make_subplots(1, len(tables), subplot_titles=list(tables), shared_yaxes=True)
    for column, table in enumerate(tables.values(), start=1):
        for gender, row in table.iterrows():
            figure.add_bar(
                x=row.index, y=row, name=gender, marker_color=COLOURS.get(gender),
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    return figure.update_layout(title=title, yaxis_title="recall", yaxis_range=[0, 1])
