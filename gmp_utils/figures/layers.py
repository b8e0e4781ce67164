"""Figures of layers and clusters: notebooks 03, 04 and 06."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from gmp_utils import GmpError
from gmp_utils.figures.style import COLORS, SEQUENCE, TEMPLATE, add_band, colors, panels

MAX_POINTS = 2000  # drawn on a map
VALUES = ("difference", "low", "high")


def layer_curves(probes: pd.DataFrame) -> go.Figure:
    """Probe scores over layers with 95% intervals: UAR of utterances and of frames, CCC of ratings."""
    groups = dict(list(probes.groupby(["metric", "unit"]))[::-1])
    titles = [unit.replace("frames", "single frames") for _, unit in groups]
    figure = make_subplots(1, len(groups), subplot_titles=titles, horizontal_spacing=0.09)
    for column, ((metric, _), panel) in enumerate(groups.items(), start=1):
        place = {"row": 1, "col": column}
        for task, rows in panel.groupby("task"):
            named = all(trace.name != task for trace in figure.data)
            style = {"y": "score", "legendgroup": task, "showlegend": named}
            add_band(figure, task, COLORS[task], rows.layer, rows, **style, **place)
        for chance, rows in panel.groupby("chance"):
            text = f"chance: {', '.join(rows.task.unique())}"
            dots = {"dash": "dot", "width": 1, "color": "#555555"}
            figure.add_hline(
                chance, line=dots, annotation_text=text, annotation_font_size=10, **place
            )
        figure.update_yaxes(title=metric, range=[min(0, panel.low.min()) - 0.02, 1.02], **place)
    paper = {"dash": "dash", "width": 1, "color": "#555555"}
    figure.add_vline(
        probes.layer.max() - 2, line=paper, annotation_text="layer -3",
        annotation_font_size=10, annotation_position="bottom left",
    )  # fmt: skip
    task = "emotion" if "emotion" in set(probes.task) else probes.task.iloc[0]
    scored = probes.query("unit == 'utterances' and task == @task")
    best = scored.loc[scored.score.idxmax()]
    as_good = (scored.score >= best.low).sum()
    title = f"{task.capitalize()}, utterances: {best.metric} {scored.score.min():.2f} to {best.score:.2f}; "
    title += f"{as_good} of {len(scored)} layers are within the 95% interval of the best"
    figure.update_layout(title=title, margin_t=80)
    return figure.update_xaxes(title="layer (0: input of the first)")


def cluster_information(clusters: pd.DataFrame) -> go.Figure:
    """Adjusted mutual information of clusters with each attribute, per layer and K."""
    table = clusters.assign(K="K = " + clusters.K.astype(str))
    figure = panels(px.line, table, x="layer", y="ami", color="K", markers=True)
    line = {"dash": "dot", "width": 1, "color": "#555555"}
    figure.add_hline(0, line=line, annotation_text="chance", annotation_font_size=10)
    k = clusters.K.min()
    highest = clusters[clusters.K == k].groupby("attribute").ami.max().sort_values()[::-1]
    peaks = ", ".join(f"{name} {ami:.2f}" for name, ami in highest.items())
    figure.update_yaxes(title="adjusted mutual information", col=1)
    return figure.update_layout(title=f"Highest AMI of K = {k} clusters: {peaks}", legend_title="")


def similarity(table: pd.DataFrame) -> go.Figure:
    """CKA between the layers of a model, and between its layers and the original encoder's."""
    titles = ["layers of this model", "layers of the original encoder"][: table.reference.nunique()]
    figure = make_subplots(1, len(titles), shared_yaxes=True)
    text = {"texttemplate": "%{z:.2f}", "textfont_size": 9} if table.layer.max() < 13 else {}
    for column, (_, rows) in enumerate(table.groupby("reference", sort=False), start=1):
        square = rows.pivot(index="layer", columns="reference_layer", values="cka")
        cells = {"x": square.columns, "y": square.index, "z": square, **text}
        figure.add_heatmap(**cells, coloraxis="coloraxis", row=1, col=column)
        figure.update_xaxes(title=titles[column - 1], dtick=1, col=column)
    title = "Similarity of the layers (linear CKA)"
    same = table.query("reference == 'encoder' and layer == reference_layer")
    if len(same):
        change = same.set_index("layer").cka
        title = (
            f"Layer {change.idxmin()} changed most (CKA {change.min():.2f} with the original encoder), "
            f"layer {change.idxmax()} least ({change.max():.2f})"
        )
    scale = {"cmin": np.floor(10 * table.cka.min()) / 10, "cmax": 1, "colorscale": "Teal"}
    figure.update_yaxes(title="layer of this model", dtick=1, col=1)
    return figure.update_layout(title=title, coloraxis=scale | {"colorbar": {"title": "CKA"}})


def layer_change(table: pd.DataFrame) -> go.Figure:
    """CKA of each layer with the original encoder's, a line per trained model."""
    axes = {"x": "layer", "y": "cka", "range_y": [-0.02, 1.02], "color": "model"}
    figure = px.line(table, **axes, markers=True, color_discrete_sequence=SEQUENCE)
    most = table.sort_values("cka").iloc[0]
    title = f"Layer {most.layer} of {most.model} changed most: CKA {most.cka:.2f}"
    return figure.update_layout(title=title, yaxis_title="CKA with the original encoder")


def interventions(ablations: pd.DataFrame, directions: pd.DataFrame) -> go.Figure:
    """Differences (points) in recall without a layer, and in shares with a direction added, with intervals.

    The tables are those of `gmp_utils.stages.interventions.intervene`.
    """
    titles = "recall without the layer", "share of other emotions, with the direction added"
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    for column, table in enumerate((ablations, directions), start=1):
        points = 100 * table[list(VALUES)]
        text = [f"{x:+.0f}<br>[{a:+.0f}, {b:+.0f}]" for x, a, b in points.to_numpy()]
        cells = {"x": table.emotion, "y": table.layer, "z": points.difference, "text": text}
        style = {"texttemplate": "%{text}", "textfont_size": 9, "coloraxis": "coloraxis"}
        figure.add_heatmap(**cells, **style, row=1, col=column)
    uar = 100 * ablations.difference[ablations.emotion == "UAR"]
    shares = 100 * directions.groupby("emotion").difference.max()
    title = f"Without a layer, UAR changes by {round(uar.min()):+d} to {round(uar.max()):+d} points.<br>"
    most, fewest = shares.idxmax(), shares.idxmin()
    title += (
        f"Directions raise the share classified as {most} by up to {round(shares[most])} points"
    )
    title += f", and as {fewest} by up to {round(shares[fewest])}"
    figure.update_yaxes(title="layer", dtick=1, col=1)
    scale = {"cmin": -100, "cmax": 100, "colorscale": "BrBG", "colorbar": {"title": "points"}}
    height = 150 + 38 * ablations.layer.max()
    return figure.update_layout(title=title, coloraxis=scale, height=height, margin_t=110)


def patches(table: pd.DataFrame, source: str, target: str, emotions: tuple[str, str]) -> go.Figure:
    """Effects of a source utterance's frames in a target: the table of `interventions.patch`."""
    cells, sizes = table.pivot(index="layer", columns="start", values="change"), table.change.abs()
    row, limit = table.loc[sizes.idxmax()], sizes.max() or 1.0
    title = f"Frames of {source} in {target}: {row.start:.2f} to {row.end:.2f} s of layer {row.layer:.0f}"
    title += (
        f"<br>change the log-odds of {emotions[0]} against {emotions[1]} most, by {row.change:+.1f}"
    )
    title += f"<br>(from {row.target:+.1f}; those of {source} are {row.source:+.1f})"
    edges = [*cells.columns, table.end.max()]
    figure = go.Figure(go.Heatmap(x=edges, y=cells.index, z=cells, coloraxis="coloraxis"))
    figure.update_xaxes(title=f"time in {target} (s)").update_yaxes(title="layer", dtick=1)
    scale = {"cmin": -limit, "cmax": limit, "colorscale": "BrBG"}
    scale["colorbar"] = {"title": "change of<br>log-odds"}
    style = {"template": TEMPLATE, "height": 190 + 25 * len(cells), "margin_t": 110}
    return figure.update_layout(title=title, coloraxis=scale, **style)


def neighbor_agreement(table: pd.DataFrame, attribute: str) -> tuple[float, float]:
    """Share of the ten nearest points that have the attribute of a validation or test point, and by chance.

    They are of other speakers, or of other utterances if the attribute is "speaker". The chance level is the
    share among all such points. The table has x, y, part, utterance and attributes of one map. Points without
    the attribute do not count.
    """
    table = table.dropna(subset=attribute)
    shared, expected, excluded = [], [], "utterance" if attribute == "speaker" else "speaker"
    for name, points in table[table.part.isin(["validation", "test"])].groupby(excluded):
        others = table[table[excluded] != name]
        if others.empty:
            continue
        nearest = NearestNeighbors(n_neighbors=min(10, len(others))).fit(others[["x", "y"]])
        neighbors = nearest.kneighbors(points[["x", "y"]], return_distance=False)
        same = others[attribute].to_numpy()[neighbors] == points[attribute].to_numpy()[:, None]
        shared.extend(same.mean(axis=1))
        frequencies = others[attribute].value_counts(normalize=True)
        expected.extend(points[attribute].map(frequencies).fillna(0))
    return float(np.mean(shared)), float(np.mean(expected))


def _add_map(figure: go.Figure, points: pd.DataFrame, color: str, **trace) -> None:
    """Draw points of a map: training speakers are dots, validation or test speakers diamonds."""
    unseen = points.part != "train"
    figure.add_scatter(
        x=points.x, y=points.y, mode="markers", text=points.utterance, hoverinfo="text",
        marker={"color": color, "size": np.where(unseen, 7, 3), "opacity": 0.8,
                "symbol": np.where(unseen, "diamond", "circle"), "line_width": 0},
        **trace,
    )  # fmt: skip


def _drawn(table: pd.DataFrame, unit: str, layers: list[int]) -> dict[int, pd.DataFrame]:
    """Up to `MAX_POINTS` points on the maps of layers, the same on each, by layer.

    Layer -1 is the last. Layer 0 stands for negative layers that a small encoder does not have.
    """
    n_states = table.layer.max() + 1
    if max(layers) >= n_states:
        raise GmpError(f"layer {max(layers)}: this model has layers 0 to {n_states - 1}.")
    table, drawn = table[table.unit == unit], {}
    for layer in sorted({max(layer, -n_states) % n_states for layer in layers}):
        points = table[table.layer == layer].reset_index(drop=True)
        drawn[layer] = points.sample(min(len(points), MAX_POINTS), random_state=0)
    return drawn


def maps(table: pd.DataFrame, unit: str, layers: list[int]) -> go.Figure:
    """UMAP (maps.parquet of stage 03) of "utterances" or "frames": a row per attribute, a column per layer.

    Points of training speakers are small, because the model may have been trained on their emotions. Each
    panel states its `neighbor_agreement`.
    """
    drawn = _drawn(table, unit, layers)
    rows = [name for name in ("emotion", "gender", "speaker") if table[name].nunique() > 1]
    titles = [f"layer {layer}" for layer in drawn]
    grid = {"column_titles": titles, "row_titles": rows, "vertical_spacing": 0.05}
    figure = make_subplots(len(rows), len(drawn), horizontal_spacing=0.01, **grid)
    found = {}
    for row, name in enumerate(rows, start=1):
        legend = "legend" if row == 1 else f"legend{row}"
        style = {"y": 1 - (row - 1) / len(rows), "x": 1.03, "itemsizing": "constant"}
        figure.update_layout({legend: style})
        for column, (layer, points) in enumerate(drawn.items(), start=1):
            place = {"row": row, "col": column}
            for value, color in colors(sorted(points[name].dropna().unique())).items():
                named = column == 1 and name != "speaker"
                trace = {"name": value, "legendgroup": value, "legend": legend, "showlegend": named}
                _add_map(figure, points[points[name] == value], color, **trace, **place)
            found[name, layer] = share, chance = neighbor_agreement(points, name)
            text = f"{share:.0%} (chance {chance:.0%})"
            figure.update_xaxes(title={"text": text, "standoff": 2}, **place)
    first, last = min(drawn), max(drawn)
    (before, chance), after = found[rows[0], first], found[rows[0], last][0]
    title = (
        f"On the map, new speakers' {unit} share the {rows[0]} with {before:.0%} (layer {first})"
    )
    title += f"<br>and {after:.0%} (layer {last}) of their neighbors (chance {chance:.0%})"
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, title_font_size=11)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    return figure.update_layout(
        title=title, height=150 + 190 * len(rows), margin={"t": 100, "r": 120}
    )


def emotion_maps(table: pd.DataFrame, unit: str, layer: int) -> go.Figure:
    """UMAP of one layer as in `maps`, a panel per emotion, whose points are drawn over all others."""
    (layer, points), *_ = _drawn(table, unit, [layer]).items()
    emotions = colors(sorted(points.emotion.dropna().unique()))
    figure = make_subplots(1, len(emotions), subplot_titles=[*emotions], horizontal_spacing=0.01)
    for column, (emotion, color) in enumerate(emotions.items(), start=1):
        place = {"row": 1, "col": column, "showlegend": False}
        _add_map(figure, points[points.emotion != emotion].assign(part="train"), "#E4E4E4", **place)
        _add_map(figure, points[points.emotion == emotion], color, **place)
    share, chance = neighbor_agreement(points, "emotion")
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    title = f"On the map of layer {layer}, new speakers' {unit} share the emotion"
    title += f"<br>with {share:.0%} of their neighbors (chance {chance:.0%})"
    return figure.update_layout(title=title, height=350, margin_t=100)


def enrichment(table: pd.DataFrame, stream: int) -> go.Figure:
    """Share of each emotion and gender in each cluster, over its share of all frames, from 1/8 to 8 times."""
    clusters, parts, found = table[f"stream{stream}"], [], []
    for name in ("emotion", "gender"):
        overall = table[name].value_counts(normalize=True).sort_index()
        if len(overall) > 1:
            shares = pd.crosstab(table[name], clusters, normalize="columns")
            parts.append(shares.div(overall, axis=0))
            article = {"emotion": "an", "gender": "a"}[name]
            found.append(f"{article} {name} in {(parts[-1].max() > 1.5).sum()}")
    top = pd.DataFrame({"value": parts[0].idxmax(), "ratio": -parts[0].max()})
    ratios = np.log2(pd.concat(parts).clip(1 / 8, 8))[top.sort_values(["value", "ratio"]).index]
    ratios.columns = ratios.columns.astype(str)
    colors = {"zmin": -3, "zmax": 3, "color_continuous_scale": "BrBG"}
    figure = px.imshow(ratios, aspect="auto", **colors)
    ticks = {"tickvals": [-3, -2, -1, 0, 1, 2, 3], "ticktext": ["1/8", "1/4", "1/2", 1, 2, 4, 8]}
    figure.update_layout(coloraxis_colorbar={"title": "times the<br>overall<br>share", **ticks})
    figure.update_xaxes(type="category", title="cluster, in the order of its most enriched label")
    title = f"More than 1.5 times as frequent as overall: {', '.join(found)} of {ratios.shape[1]} clusters"
    return figure.update_yaxes(title="").update_layout(title=title)
