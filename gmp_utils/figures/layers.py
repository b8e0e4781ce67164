"""Figures of layers and clusters: notebooks 03 and 04."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from gmp_utils import GmpError
from gmp_utils.figures.style import COLORS, SEQUENCE

DRAWN_POINTS = 2000


def layer_curves(probes: pd.DataFrame) -> go.Figure:
    """Scores of the probes over layers, with chance: of utterances, of frames, of ratings."""
    rated = probes.metric == "CCC"
    panels = {
        "utterances, UAR": probes[(probes.of == "utterances") & ~rated],
        "single frames, UAR": probes[(probes.of == "frames") & ~rated],
        "utterances, CCC": probes[(probes.of == "utterances") & rated],
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
                x=group.layer, y=group.chance, name=f"{task}, chance", showlegend=False,
                line={"color": color, "dash": "dot", "width": 1}, row=1, col=column,
            )  # fmt: skip
    emotion = panels["utterances, UAR"].query("task == 'emotion'")
    emotion = emotion.loc[emotion.score.idxmax()]
    title = f"Emotion is read best from layer {emotion.layer:.0f}: UAR {emotion.score:.2f}"
    figure.update_layout(title=title, margin={"t": 80}).update_yaxes(
        range=[min(0, probes.score.min()) - 0.02, 1.02]
    )
    return figure.update_xaxes(title="layer (0 enters the first)")


def cluster_nmi(clusters: pd.DataFrame) -> go.Figure:
    """What clusters tell of emotion, gender and speaker, per layer and scale."""
    figure = px.line(
        clusters.assign(K="K = " + clusters.K.astype(str)),
        x="layer",
        y="nmi",
        color="K",
        facet_col="known",
        markers=True,
        color_discrete_sequence=SEQUENCE,
    )
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    k = clusters.K.min()
    top = clusters[clusters.K == k].groupby("known").nmi.max().sort_values()
    title = f"K = {k} clusters tell most of {top.index[-1]}, least of {top.index[0]}"
    return figure.update_layout(title=title, yaxis_title="normalised mutual information")


def similarity(table: pd.DataFrame) -> go.Figure:
    """CKA between the layers of a model, and between its layers and the untouched encoder's."""
    names = {"model": "of this model", "encoder": "of the untouched encoder"}
    found = [of for of in names if of in set(table.of)]
    titles = [f"layers {names[of]}" for of in found]
    figure = make_subplots(1, len(found), subplot_titles=titles, shared_yaxes=True)
    for column, of in enumerate(found, start=1):
        square = table[table.of == of].pivot(index="layer", columns="to", values="cka")
        figure.add_heatmap(
            x=square.columns, y=square.index, z=square, coloraxis="coloraxis", row=1, col=column
        )
    same = table[table.layer == table.to].set_index(["of", "layer"]).cka
    title = "How alike layers arrange the same frames"
    if "encoder" in found:
        moved = same["encoder"]
        title = (
            f"Training moved layer {moved.idxmin()} most (CKA {moved.min():.2f} with what it was), layer "
            f"{moved.idxmax()} least ({moved.max():.2f})"
        )
    figure.update_yaxes(title="layer of this model", col=1).update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": "Blues", "colorbar": {"title": "CKA"}}
    )
    return figure.update_layout(title=title, margin={"t": 80})


def layer_change(table: pd.DataFrame) -> go.Figure:
    """How alike each layer still is to what it was, after each training."""
    figure = px.line(
        table, x="layer", y="cka", color="model", markers=True, range_y=[-0.02, 1.02],
        color_discrete_map=COLORS,
    )  # fmt: skip
    most = table.sort_values("cka").iloc[0]
    title = (
        f"{most.model} moved layer {most.layer} most: CKA {most.cka:.2f} with the untouched encoder"
    )
    return figure.update_layout(title=title, yaxis_title="CKA with the untouched encoder")


def shared_emotion(table: pd.DataFrame) -> tuple[float, float]:
    """How often the ten nearest points of other speakers share a held-out point's emotion.

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
    for speaker, own in table[table.part.isin(["validation", "test"])].groupby("speaker"):
        others = table[table.speaker != speaker]
        nearest = NearestNeighbors(n_neighbors=min(10, len(others))).fit(others[["x", "y"]])
        found = nearest.kneighbors(own[["x", "y"]], return_distance=False)
        same = others.emotion.to_numpy()[found] == own.emotion.to_numpy()[:, None]
        shared.extend(same.mean(axis=1))
        expected.extend(own.emotion.map(others.emotion.value_counts(normalize=True)).fillna(0))
    return float(np.mean(shared)), float(np.mean(expected))


def maps(table: pd.DataFrame, of: str, layers: list[int]) -> go.Figure:
    """UMAP of utterances or frames, coloured by emotion, a panel per layer.

    Training speakers are small dots: their emotions may have been taught to the model. Of more than
    `DRAWN_POINTS` points some are drawn.

    Parameters
    ----------
    table : DataFrame
        See `gmp_utils.evaluation.geometry.map_layers`, with `of`.
    of : str
        "utterances" or "frames".
    layers : list of int
        Which to draw; -1 is the last.

    Raises
    ------
    GmpError
        For a layer that the table does not have.
    """
    n_states = table.layer.max() + 1
    for layer in layers:
        if not -n_states <= layer < n_states:
            raise GmpError(f"layer {layer}: this model has layers 0 to {n_states - 1}.")
    chosen = table[(table.of == of) & table.layer.isin([layer % n_states for layer in layers])]
    place = chosen.groupby("layer").cumcount()  # the same points come in the same order
    kept = np.random.default_rng(0).permutation(place.max() + 1)[:DRAWN_POINTS]
    chosen = chosen[place.isin(kept)]
    figure = px.scatter(
        chosen.sample(frac=1, random_state=0),
        x="x",
        y="y",
        color="emotion",
        facet_col="layer",
        color_discrete_map=COLORS,
        category_orders={name: sorted(chosen[name].unique()) for name in ("layer", "emotion")},
        symbol="part",
        symbol_map={"train": "circle", "validation": "diamond", "test": "diamond"},
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
    named = ", ".join(f"{layer - n_states}" for layer in sorted(chosen.layer.unique()))
    found = [shared_emotion(one) for _, one in chosen.groupby("layer")]
    shares = ", ".join(f"{shared:.0%}" for shared, _ in found)
    title = (
        f"Held-out {of}, layer {named}: other speakers' neighbours share the emotion in {shares}"
    )
    return figure.update_layout(title=f"{title} ({found[0][1]:.0%} by chance)")


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
        long, x=long.index, y="share", color=by, color_discrete_map=COLORS
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
