"""Figures of layers and clusters: notebooks 03, 04 and 06."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from gmp_utils import GmpError
from gmp_utils.figures.style import COLORS, panels

MAX_POINTS = 2000  # drawn on a map


def layer_curves(probes: pd.DataFrame) -> go.Figure:
    """Probe scores over layers, with chance level: UAR of utterances and of frames, CCC of ratings."""
    rows = probes.sort_values(["metric", "unit", "task"], ascending=[False, False, True])
    panel = rows.unit.replace("frames", "single frames") + ", " + rows.metric
    lines = rows.assign(panel=panel).melt(["panel", "task", "layer"], ["score", "chance"])
    figure = panels(
        px.line, lines, "panel", x="layer", y="value", color="task", line_dash="variable",
        color_discrete_map=COLORS, markers=True, facet_col_spacing=0.07,
    )  # fmt: skip
    figure.update_traces(line_width=1, showlegend=False, selector={"line_dash": "dot"})
    figure.for_each_trace(lambda trace: trace.update(name=trace.name.removesuffix(", score")))
    emotion = probes.query("unit == 'utterances' and task == 'emotion'")
    best = emotion.loc[emotion.score.idxmax()]
    title = f"Layer {best.layer:.0f} probes best for emotion: UAR {best.score:.2f}"
    sentence = probes.query("unit == 'utterances' and task == 'sentence'")
    if len(sentence):
        best = sentence.loc[sentence.score.idxmax()]
        title += f"; layer {best.layer:.0f} for the sentence: {best.score:.2f}"
    figure.update_layout(title=title, margin_t=80, legend_title="")
    figure.update_yaxes(title="", range=[min(0, probes.score.min()) - 0.02, 1.02])
    return figure.update_xaxes(title="layer (0: input of the first)")


def cluster_information(clusters: pd.DataFrame) -> go.Figure:
    """Adjusted mutual information of clusters with each attribute, per layer and K."""
    table = clusters.assign(K="K = " + clusters.K.astype(str))
    figure = panels(px.line, table, x="layer", y="ami", color="K", markers=True)
    k = clusters.K.min()
    top = clusters[clusters.K == k].groupby("attribute").ami.max().sort_values()
    extremes = f"the most information with {top.index[-1]}, the least with {top.index[0]}"
    return figure.update_layout(
        title=f"K = {k} clusters share {extremes}",
        yaxis_title="adjusted mutual information",
    )


def similarity(table: pd.DataFrame) -> go.Figure:
    """CKA between the layers of a model, and between its layers and the original encoder's."""
    titles = ["layers of this model", "layers of the original encoder"][: table.reference.nunique()]
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True)
    for column, (_, rows) in enumerate(table.groupby("reference", sort=False), start=1):
        square = rows.pivot(index="layer", columns="reference_layer", values="cka")
        figure.add_heatmap(
            x=square.columns, y=square.index, z=square, coloraxis="coloraxis", row=1, col=column
        )
    title = "Similarity of the layers (linear CKA)"
    same = table.query("reference == 'encoder' and layer == reference_layer")
    if len(same):
        change = same.set_index("layer").cka
        title = (
            f"Layer {change.idxmin()} changed most (CKA {change.min():.2f} with the original encoder), "
            f"layer {change.idxmax()} least ({change.max():.2f})"
        )
    scale = {"cmin": 0, "cmax": 1, "colorscale": "Blues", "colorbar": {"title": "CKA"}}
    figure.update_yaxes(title="layer of this model", col=1)
    return figure.update_layout(title=title, margin_t=80, coloraxis=scale)


def layer_change(table: pd.DataFrame) -> go.Figure:
    """CKA of each layer with the original encoder's, a line per trained model."""
    axes = {"x": "layer", "y": "cka", "range_y": [-0.02, 1.02], "color": "model"}
    figure = px.line(table, **axes, markers=True, color_discrete_map=COLORS)
    most = table.sort_values("cka").iloc[0]
    title = f"Layer {most.layer} of {most.model} changed most: CKA {most.cka:.2f}"
    return figure.update_layout(title=title, yaxis_title="CKA with the original encoder")


def shared_emotion(table: pd.DataFrame) -> tuple[float, float]:
    """How often the ten nearest points of other speakers share the emotion of a validation or test point.

    The chance level, returned second, is the share of the emotion among the points of other speakers. The
    table has x, y, part, speaker and emotion of one map.
    """
    shared, expected = [], []
    for speaker, points in table[table.part.isin(["validation", "test"])].groupby("speaker"):
        others = table[table.speaker != speaker]
        nearest = NearestNeighbors(n_neighbors=min(10, len(others))).fit(others[["x", "y"]])
        neighbors = nearest.kneighbors(points[["x", "y"]], return_distance=False)
        same = others.emotion.to_numpy()[neighbors] == points.emotion.to_numpy()[:, None]
        shared.extend(same.mean(axis=1))
        expected.extend(points.emotion.map(others.emotion.value_counts(normalize=True)).fillna(0))
    return float(np.mean(shared)), float(np.mean(expected))


def maps(table: pd.DataFrame, unit: str, layers: list[int]) -> go.Figure:
    """UMAP (maps.parquet of stage 03) of "utterances" or "frames" by emotion, a panel per layer.

    Training speakers are small dots, because the model may have been trained on their emotions. A sample of
    `MAX_POINTS` points is drawn. Layer -1 is the last.
    """
    n_states = table.layer.max() + 1
    for layer in layers:
        if not -n_states <= layer < n_states:
            raise GmpError(f"layer {layer}: this model has layers 0 to {n_states - 1}.")
    drawn = table[(table.unit == unit) & table.layer.isin([layer % n_states for layer in layers])]
    number = drawn.groupby("layer").cumcount()  # the same points come in the same order
    kept = np.random.default_rng(0).permutation(number.max() + 1)[:MAX_POINTS]
    drawn = drawn[number.isin(kept)]
    figure = px.scatter(
        drawn.sample(frac=1, random_state=0),
        x="x", y="y", color="emotion", facet_col="layer", symbol="part",
        color_discrete_map=COLORS,
        category_orders={name: sorted(drawn[name].unique()) for name in ("layer", "emotion")},
        symbol_map={"train": "circle", "validation": "diamond", "test": "diamond"},
        hover_data={"speaker": True, "x": False, "y": False},
        render_mode="svg",
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.replace("=", " ")))
    unseen = {"size": 7, "opacity": 1, "line": {"width": 0.5, "color": "black"}}
    figure.update_traces(marker={"size": 4, "opacity": 0.6})
    figure.update_traces(marker=unseen, selector={"marker_symbol": "diamond"})
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    parts = " and ".join(sorted(set(drawn.part) - {"train"})).capitalize()
    names = ", ".join(f"{layer - n_states}" for layer in sorted(drawn.layer.unique()))
    results = [shared_emotion(points) for _, points in drawn.groupby("layer")]
    shares = ", ".join(f"{shared:.0%}" for shared, _ in results)
    return figure.update_layout(
        title=f"{parts} {unit}, layer {names}: {shares} of other speakers' neighbors share the emotion "
        f"(chance level {results[0][1]:.0%})"
    )


def composition(table: pd.DataFrame, k: int, stream: int, by: str) -> go.Figure:
    """Shares of emotions (or genders) among the frames of each cluster."""
    shares = pd.crosstab(table[f"stream{stream}"], table[by], normalize="index")
    shares = shares.sort_values(list(shares.columns)).reset_index(drop=True)
    long = shares.melt(ignore_index=False, var_name=by, value_name="share")
    figure = px.bar(long, x=long.index, y="share", color=by, color_discrete_map=COLORS)
    expected = table[by].value_counts(normalize=True)
    enriched = shares.gt(1.5 * expected, axis="columns").any(axis="columns").mean()
    return figure.update_traces(marker_line_width=0).update_layout(
        title=f"K = {k}: {enriched:.0%} of the clusters have 1.5 times the overall share of one {by}",
        xaxis_title="cluster, sorted",
        yaxis_title=f"share of frames by {by}",
        bargap=0,
    )
