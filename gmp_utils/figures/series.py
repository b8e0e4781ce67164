"""Plotly figures of notebooks 00 to 07."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gmp_utils.evaluation.metrics import calibration_error, reliability
from gmp_utils.figures.style import COLORS, SEQUENCE, colors

CALIBRATION_COLORS = {"as trained": "#999999", "calibrated": "#0072B2"}


def reliability_diagram(table: pd.DataFrame) -> go.Figure:
    """Confidence against accuracy, as trained and calibrated; a point's area says how many utterances.

    Parameters
    ----------
    table : DataFrame
        Of `confidences`.
    """
    drawn = go.Figure()
    drawn.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#cccccc", "dash": "dash"},
        name="as sure as right",
    )  # fmt: skip
    errors = {}
    for name, color in CALIBRATION_COLORS.items():
        errors[name] = calibration_error(table[name], table.correct)
        points = reliability(table[name], table.correct)
        sizes = 36 * np.sqrt(points.utterances / len(table))
        drawn.add_scatter(
            x=points.confidence, y=points.accuracy, text=points.utterances, mode="markers+lines", name=name,
            marker={"color": color, "size": sizes}, line={"color": color},
            hovertemplate="%{text} utterances: confidence %{x:.2f}, right %{y:.2f}<extra></extra>",
        )  # fmt: skip
    title = "Confidence is off by {calibrated:.2f} on average, {as trained:.2f} before calibration"
    return drawn.update_layout(
        title=title.format(**errors),
        xaxis={"title": "confidence", "range": [0, 1.02]},
        yaxis={"title": "share that is right", "range": [-0.05, 1.05]},
    )


def counts(manifest: pd.DataFrame) -> go.Figure:
    """Utterances per speaker and emotion, women and men apart."""
    rows = manifest.fillna({"gender": "unknown", "emotion": "unknown"})
    keys = ["gender", "speaker", "emotion"]
    table = rows.groupby(keys).size().rename("utterances").reset_index()
    figure = px.bar(
        table, x="speaker", y="utterances", color="emotion", facet_col="gender",
        color_discrete_map=COLORS,
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    figure.update_xaxes(matches=None)
    sizes = rows.emotion.value_counts()
    title = f"{len(manifest)} utterances of {manifest.speaker.nunique()} speakers"
    if manifest.emotion.isna().all():
        title += ", none with an emotion"
    elif sizes.iloc[0] > sizes.iloc[-1]:
        title += f"; most are {sizes.index[0]} ({sizes.iloc[0]}), fewest {sizes.index[-1]} ({sizes.iloc[-1]})"
    else:
        title += f", {sizes.iloc[0]} of each emotion"
    return figure.update_layout(title=title).update_xaxes(type="category")


def durations(manifest: pd.DataFrame) -> go.Figure:
    """How long utterances are."""
    figure = px.histogram(
        manifest.fillna({"emotion": "unknown"}).sort_values("emotion"),
        x="duration",
        color="emotion",
        nbins=40,
        color_discrete_map=COLORS,
    )
    low, high = manifest.duration.quantile([0.05, 0.95])
    figure.update_layout(
        title=f"Nine in ten utterances last {low:.1f} to {high:.1f} s",
        xaxis_title="duration (s)",
        yaxis_title="utterances",
    )
    return figure


def attribute_plane(manifest: pd.DataFrame) -> go.Figure | None:
    """Where each emotion lies between unpleasant and pleasant, calm and excited; None without ratings."""
    if not {"valence", "arousal"} <= set(manifest):
        return None
    rated = manifest.dropna(subset=["valence", "arousal"]).fillna({"emotion": "unknown"})
    rated = rated.sort_values("emotion")
    if rated.empty:
        return None
    figure = px.scatter(
        rated, x="valence", y="arousal", color="emotion", color_discrete_map=COLORS,
        hover_name="utterance", opacity=0.5,
    )  # fmt: skip
    means = rated.groupby("emotion")[["valence", "arousal"]].mean()
    for emotion, mean in means.iterrows():
        figure.add_annotation(
            x=mean.valence, y=mean.arousal, text=f"<b>{emotion}</b>", showarrow=False
        )
    low, high = means.arousal.idxmin(), means.arousal.idxmax()
    title = f"{high} is rated the most excited, {low} the calmest"
    if len(rated) < len(manifest):
        title += f" ({len(manifest) - len(rated)} utterances have no rating)"
    return figure.update_layout(title=title)


def curves(history: pd.DataFrame, panels: dict[str, dict[str, str]], title: str) -> go.Figure:
    """Training curves, panel beside panel.

    Parameters
    ----------
    history : DataFrame
        As `gmp_utils.training.trainer.train` writes it.
    panels : dict
        By panel's title: names of lines, and the column each shows.
    title : str
        The finding.
    """
    x = "step" if "accuracy" in " ".join(history.columns) else "epoch"
    figure = make_subplots(1, len(panels), subplot_titles=list(panels))
    for column, lines in enumerate(panels.values(), start=1):
        for number, (line, values) in enumerate(lines.items()):
            color = COLORS.get(line.split(",")[0], SEQUENCE[number])
            dash = "dot" if "training" in line else "solid"
            figure.add_scatter(
                x=history[x],
                y=history[values],
                name=line,
                mode="lines+markers",
                line={"color": color, "dash": dash},
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


def heatmap(table: pd.DataFrame, title: str, color_title: str) -> go.Figure:
    """A table of numbers as colors, with the numbers in it."""
    figure = px.imshow(
        table, text_auto=".2f", color_continuous_scale="Blues", zmin=0, aspect="auto"
    )
    return figure.update_layout(title=title, coloraxis_colorbar_title=color_title)


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
        barmode="group", color_discrete_sequence=SEQUENCE,
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
                x=row.index, y=row, name=gender, marker_color=COLORS.get(gender),
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    return figure.update_layout(title=title, yaxis_title="recall", yaxis_range=[0, 1])


def systems(points: pd.DataFrame, means: pd.DataFrame, joined: bool) -> go.Figure:
    """UAR of variants: their means with intervals, and every fold and seed as a point.

    Parameters
    ----------
    points : DataFrame
        `variant`, `loss`, `UAR` in percent, a row per fold and seed.
    means : DataFrame
        See `gmp_utils.evaluation.tables.scores`.
    joined : bool
        Whether variants are steps of one number, such as layers: a line and a band for bars.
    """
    figure, palette = go.Figure(), colors(means.loss.unique())
    places = {variant: place for place, variant in enumerate(means.variant.unique())}
    for number, (loss, own) in enumerate(means.groupby("loss", sort=False)):
        shift, style = 0.12 * number, {"color": palette[loss]}
        single = points[points.loss == loss]
        figure.add_scatter(
            x=single.variant.map(places) + shift + 0.04, y=single.UAR, mode="markers",
            name=f"{loss}, a fold and seed", marker={**style, "opacity": 0.35, "size": 6},
        )  # fmt: skip
        place, bars = own.variant.map(places) + shift, None
        if joined:
            figure.add_scatter(
                x=[*place, *place[::-1]], y=[*own["UAR high"], *own["UAR low"][::-1]], fill="toself",
                mode="none", fillcolor=palette[loss], opacity=0.15, showlegend=False,
            )  # fmt: skip
        else:
            bars = {"array": own["UAR high"] - own.UAR, "arrayminus": own.UAR - own["UAR low"]}
        figure.add_scatter(
            x=place, y=own.UAR, name=loss, mode="lines+markers" if joined else "markers",
            marker={**style, "size": 11, "symbol": "diamond"}, line=style, error_y=bars,
        )  # fmt: skip
    figure.update_xaxes(tickvals=list(places.values()), ticktext=list(places), zeroline=False)
    apart = means.UAR.max() - means.UAR.min()
    deviation = points.groupby(["variant", "loss"]).UAR.std().max()
    title = f"Means of systems are up to {apart:.1f} points apart"
    if deviation > 0:
        title += f", folds and seeds of one deviate by up to {deviation:.1f}"
    return figure.update_layout(title=title, yaxis_title="UAR (%)")


def speakers(scores: dict[str, pd.Series]) -> go.Figure:
    """UAR of each test speaker, a line per speaker, systems side by side.

    Parameters
    ----------
    scores : dict of str to Series
        By system: points of UAR by speaker.
    """
    table = pd.DataFrame(scores)
    figure = go.Figure()
    for speaker, row in table.iterrows():
        figure.add_scatter(
            x=row.index, y=row, name=str(speaker), mode="lines+markers", showlegend=False,
            line={"color": COLORS["unknown"]}, marker={"color": COLORS["neutral"]},
        )  # fmt: skip
    means, gap = table.mean(), (table.max() - table.min()).max()
    apart = means.max() - means.min()
    figure.add_scatter(
        x=means.index, y=means, name="mean", mode="markers",
        marker={"symbol": "line-ew", "size": 40, "line": {"width": 3, "color": COLORS["CE"]}},
    )  # fmt: skip
    title = f"Speakers of one system are up to {gap:.0f} points apart, means of systems {apart:.0f}"
    return figure.update_layout(title=title, yaxis_title="UAR of a speaker, points")
