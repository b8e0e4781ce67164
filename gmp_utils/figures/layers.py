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
    rated, utterances = probes.metric == "CCC", probes.unit == "utterances"
    panels = {
        "utterances, UAR": probes[utterances & ~rated],
        "single frames, UAR": probes[~utterances & ~rated],
        "utterances, CCC": probes[utterances & rated],
    }
    panels = {name: panel for name, panel in panels.items() if len(panel)}
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for column, panel in enumerate(panels.values(), start=1):
        for task, group in panel.groupby("task"):
            color = COLORS[task]
            figure.add_scatter(
                x=group.layer, y=group.score, name=task, legendgroup=task, line={"color": color},
                showlegend=column != 2, row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=group.layer, y=group.chance, name=f"{task}, chance level", showlegend=False,
                line={"color": color, "dash": "dot", "width": 1}, row=1, col=column,
            )  # fmt: skip
    emotion = panels["utterances, UAR"].query("task == 'emotion'")
    best = emotion.loc[emotion.score.idxmax()]
    title = f"Layer {best.layer:.0f} probes best for emotion: UAR {best.score:.2f}"
    figure.update_layout(title=title, margin={"t": 80}).update_yaxes(
        range=[min(0, probes.score.min()) - 0.02, 1.02]
    )
    return figure.update_xaxes(title="layer (0: input of the first)")


def cluster_nmi(clusters: pd.DataFrame) -> go.Figure:
    """Normalized mutual information of clusters with each attribute, per layer and K."""
    table = clusters.assign(K="K = " + clusters.K.astype(str))
    figure = panels(px.line, table, x="layer", y="nmi", color="K", markers=True)
    k = clusters.K.min()
    top = clusters[clusters.K == k].groupby("attribute").nmi.max().sort_values()
    return figure.update_layout(
        title=f"K = {k} clusters share most information with {top.index[-1]}, least with {top.index[0]}",
        yaxis_title="normalized mutual information",
    )


def similarity(table: pd.DataFrame) -> go.Figure:
    """CKA between the layers of a model, and between its layers and the original encoder's."""
    names = {"model": "of this model", "encoder": "of the original encoder"}
    references = [name for name in names if name in set(table.reference)]
    titles = [f"layers {names[name]}" for name in references]
    figure = make_subplots(1, len(references), subplot_titles=titles, shared_yaxes=True)
    for column, name in enumerate(references, start=1):
        rows = table[table.reference == name]
        square = rows.pivot(index="layer", columns="reference_layer", values="cka")
        figure.add_heatmap(
            x=square.columns, y=square.index, z=square, coloraxis="coloraxis", row=1, col=column
        )
    title = "Similarity of the layers (linear CKA)"
    if "encoder" in references:
        same = table[(table.reference == "encoder") & (table.layer == table.reference_layer)]
        change = same.set_index("layer").cka
        title = (
            f"Layer {change.idxmin()} changed most (CKA {change.min():.2f} with the original encoder), "
            f"layer {change.idxmax()} least ({change.max():.2f})"
        )
    figure.update_yaxes(title="layer of this model", col=1).update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": "Blues", "colorbar": {"title": "CKA"}}
    )
    return figure.update_layout(title=title, margin={"t": 80})


def layer_change(table: pd.DataFrame) -> go.Figure:
    """CKA of each layer with the original encoder's, a line per trained model."""
    figure = px.line(
        table, x="layer", y="cka", color="model", markers=True, range_y=[-0.02, 1.02],
        color_discrete_map=COLORS,
    )  # fmt: skip
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
    figure.for_each_trace(
        lambda trace: trace.update(
            marker={"size": 4, "opacity": 0.6}
            if trace.name.endswith("train")
            else {"size": 7, "line": {"width": 0.5, "color": "black"}}
        )
    )
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    parts = " and ".join(sorted(set(drawn.part) - {"train"})).capitalize()
    names = ", ".join(f"{layer - n_states}" for layer in sorted(drawn.layer.unique()))
    results = [shared_emotion(points) for _, points in drawn.groupby("layer")]
    shares = ", ".join(f"{shared:.0%}" for shared, _ in results)
    title = (
        f"{parts} {unit}, layer {names}: {shares} of other speakers' neighbors share the emotion "
        f"(chance level {results[0][1]:.0%})"
    )
    return figure.update_layout(title=title)


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
