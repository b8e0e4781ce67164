"""Plotly figures of notebooks 00 to 07."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

from gmp_utils.evaluation.comparison import MIN_SPEAKERS
from gmp_utils.evaluation.metrics import expected_calibration_error, reliability
from gmp_utils.figures.style import COLORS, SEQUENCE, colors, panels
from gmp_utils.models.encoder import frame_seconds


def reliability_diagram(table: pd.DataFrame) -> go.Figure:
    """Accuracy against confidence, from `gmp_utils.evaluation.tables.confidences`."""
    figure, errors, palette = go.Figure(), {}, {"uncalibrated": "#999999", "calibrated": "#0072B2"}
    line = {"color": "#cccccc", "dash": "dash"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="perfectly calibrated")
    for name, color in palette.items():
        errors[name] = expected_calibration_error(table[name], table.correct)
        points = reliability(table[name], table.correct)
        sizes = 36 * np.sqrt(points.utterances / len(table))
        figure.add_scatter(
            x=points.confidence, y=points.accuracy, text=points.utterances, mode="markers+lines", name=name,
            marker={"color": color, "size": sizes}, line={"color": color},
            hovertemplate="%{text} utterances: confidence %{x:.2f}, accuracy %{y:.2f}<extra></extra>",
        )  # fmt: skip
    before, after = errors.values()
    title = f"Expected calibration error: {before:.2f} uncalibrated, {after:.2f} calibrated"
    if table.calibrated.equals(table.uncalibrated):
        title = f"Not calibrated, as it did not help on validation; calibration error: {before:.2f}"
    elif after >= before:
        title = f"Calibration helped on validation, not on test speakers. {title}"
    return figure.update_layout(
        title=title,
        xaxis={"title": "confidence", "range": [0, 1.02]},
        yaxis={"title": "accuracy", "range": [-0.05, 1.05]},
    )


def counts(manifest: pd.DataFrame) -> go.Figure:
    """Utterances per speaker and emotion, a panel per gender."""
    rows = manifest.fillna({"gender": "unknown", "emotion": "unknown"})
    table = rows.groupby(["gender", "speaker", "emotion"]).size().reset_index(name="utterances")
    axes = {"x": "speaker", "y": "utterances", "color": "emotion"}
    figure = panels(px.bar, table, "gender", **axes, color_discrete_map=COLORS)
    figure.update_xaxes(matches=None, type="category")
    sizes = rows.emotion.value_counts()
    most, fewest = sizes.iloc[0], sizes.iloc[-1]
    title = f"{len(manifest)} utterances of {manifest.speaker.nunique()} speakers"
    if manifest.emotion.isna().all():
        title += ", none with an emotion"
    elif most > fewest:
        title += f"; most are {sizes.index[0]} ({most}), fewest {sizes.index[-1]} ({fewest})"
    else:
        title += f", {most} of each emotion"
    return figure.update_layout(title=title)


def durations(manifest: pd.DataFrame) -> go.Figure:
    """Histogram of the utterances' durations."""
    rows = manifest.fillna({"emotion": "unknown"}).sort_values("emotion")
    figure = px.histogram(rows, x="duration", color="emotion", nbins=40, color_discrete_map=COLORS)
    low, high = manifest.duration.quantile([0.05, 0.95])
    title = f"90 % of the utterances last {low:.1f} to {high:.1f} s"
    return figure.update_layout(title=title, xaxis_title="duration (s)", yaxis_title="utterances")


def attribute_plane(manifest: pd.DataFrame) -> go.Figure | None:
    """Valence and arousal of the utterances, and their mean per emotion. None without ratings."""
    attributes = manifest.columns.intersection(["valence", "arousal"])
    rated = manifest.dropna(subset=attributes)
    if len(attributes) < 2 or rated.empty:
        return None
    rated = rated.fillna({"emotion": "unknown"}).sort_values("emotion")
    figure = px.scatter(
        rated, x="valence", y="arousal", color="emotion", color_discrete_map=COLORS,
        hover_name="utterance", opacity=0.5,
    )  # fmt: skip
    means = rated.groupby("emotion")[["valence", "arousal"]].mean()
    for emotion, (x, y) in means.iterrows():
        figure.add_annotation(x=x, y=y, text=f"<b>{emotion}</b>", showarrow=False)
    low, high = means.arousal.idxmin(), means.arousal.idxmax()
    title = f"Mean arousal is highest for {high}, lowest for {low}"
    if len(rated) < len(manifest):
        title += f" ({len(manifest) - len(rated)} utterances have no rating)"
    return figure.update_layout(title=title)


def curves(
    history: pd.DataFrame, panels: dict[str, dict[str, str]], *, x: str, title: str
) -> go.Figure:
    """Training curves of a history.csv over `x`, "epoch" or "step".

    `panels` are the lines of each panel, by its title: their names, and the columns that they show.
    """
    figure = make_subplots(1, len(panels), subplot_titles=list(panels))
    for column, lines in enumerate(panels.values(), start=1):
        for number, (line, values) in enumerate(lines.items()):
            color = COLORS.get(line.split(",")[0], SEQUENCE[number])
            style = {"color": color, "dash": "dot" if "training" in line else "solid"}
            figure.add_scatter(
                x=history[x], y=history[values], name=line, mode="lines+markers", line=style,
                legendgroup=line, showlegend=not any(trace.name == line for trace in figure.data),
                row=1, col=column,
            )  # fmt: skip
    return figure.update_xaxes(title=x).update_layout(title=title)


def targets(mel: np.ndarray, rounds: dict[str, np.ndarray], title: str) -> go.Figure:
    """A log-mel spectrogram, (bands, frames), above the targets of its frames in each round, (frames,)."""
    rows, heights = 1 + len(rounds), [0.6, *[0.4 / len(rounds)] * len(rounds)]
    figure = make_subplots(rows, 1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.03)
    seconds = frame_seconds(np.arange(mel.shape[1]))
    figure.add_heatmap(x=seconds, z=mel, colorscale="Greys", showscale=False, row=1, col=1)
    for row, (name, clusters) in enumerate(rounds.items(), start=2):
        strip = {"x": seconds, "y": [name], "z": clusters[None], "row": row, "col": 1}
        figure.add_heatmap(**strip, colorscale="Turbo", showscale=False)
    figure.update_yaxes(title="mel band", row=1, col=1)
    return figure.update_xaxes(title="time (s)", row=rows, col=1).update_layout(title=title)


def heatmap(table: pd.DataFrame, title: str, color_title: str) -> go.Figure:
    """A table of numbers as colors, with the numbers in the cells."""
    figure = px.imshow(
        table, zmin=0, text_auto=".2f", aspect="auto", color_continuous_scale="Blues"
    )
    return figure.update_layout(title=title, coloraxis_colorbar_title=color_title)


def separations(by_system: dict[str, dict]) -> go.Figure:
    """Inter- and intra-class distances of separation.json before and after training, a panel per system."""
    tables = {system: pd.DataFrame(values).T for system, values in by_system.items()}
    table = pd.concat(tables, names=["system", "when"]).reset_index()
    table.columns = table.columns.str.replace("_", "-")
    distances = ["inter-class", "intra-class"]
    figure = panels(px.bar, table, "system", x="when", y=distances, barmode="group")
    ratios = [f"{name} {values['after']['ratio']:.1f}" for name, values in by_system.items()]
    return figure.update_layout(
        legend_title="distance",
        title=f"Inter-class over intra-class distance after training: {', '.join(ratios)}",
        yaxis_title="cosine distance",
    )


def confusion(predictions: pd.DataFrame, emotions: list[str], title: str) -> go.Figure:
    """Confusion matrix, rows normalized: recall on the diagonal."""
    table = pd.crosstab(predictions.true, predictions.predicted, normalize="index")
    table = table.reindex(index=emotions, columns=emotions, fill_value=0)
    figure = heatmap(table, title, "share")
    return figure.update_layout(xaxis_title="predicted", yaxis_title="true")


def recall_bars(tables: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """Recall per emotion and gender, a panel per system."""
    recalls = pd.concat(tables, names=["system", "gender"]).reset_index()
    long = recalls.melt(["system", "gender"], var_name="emotion", value_name="recall")
    axes = {"x": "emotion", "y": "recall", "color": "gender", "range_y": [0, 1]}
    figure = panels(px.bar, long, "system", **axes, barmode="group", color_discrete_map=COLORS)
    return figure.update_xaxes(title="").update_layout(title=title, legend_title="")


def systems(points: pd.DataFrame, means: pd.DataFrame, joined: bool) -> go.Figure:
    """UAR of variants: means with intervals, and a point for every fold and seed.

    `points` and `means` are `points` and `scores` of `gmp_utils.evaluation.tables`. With `joined`, variants
    are values of a number, such as a layer: a line with a band replaces the bars.
    """
    figure, palette = go.Figure(), colors(means.system.unique())
    places = {variant: place for place, variant in enumerate(means.variant.unique())}
    for number, (system, rows) in enumerate(means.groupby("system", sort=False)):
        shift, style = 0.12 * (number - (len(palette) - 1) / 2), {"color": palette[system]}
        single = points[points.system == system]
        figure.add_scatter(
            x=single.variant.map(places) + shift + 0.04, y=single.UAR, mode="markers",
            name=f"{system}, a fold and seed", marker={**style, "opacity": 0.35, "size": 6},
        )  # fmt: skip
        place = rows.variant.map(places) + shift
        bars = {"array": rows["UAR high"] - rows.UAR, "arrayminus": rows.UAR - rows["UAR low"]}
        if joined:
            figure.add_scatter(
                x=[*place, *place[::-1]], y=[*rows["UAR high"], *rows["UAR low"][::-1]], fill="toself",
                mode="none", fillcolor=palette[system], opacity=0.15, showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=place, y=rows.UAR, name=system, mode="lines+markers" if joined else "markers",
            marker={**style, "size": 11, "symbol": "diamond"}, line=style,
            error_y=None if joined else bars,
        )  # fmt: skip
    figure.update_xaxes(tickvals=[*places.values()], ticktext=[*places], zeroline=False)
    figure.update_xaxes(range=[-0.5, len(places) - 0.5])
    title = f"Means of systems differ by up to {means.UAR.max() - means.UAR.min():.1f} points"
    deviation = points.groupby(["variant", "system"]).UAR.std().max()
    if deviation > 0:
        title += f"; standard deviation over folds and seeds: up to {deviation:.1f}"
    return figure.update_layout(title=title, yaxis_title="UAR (%)")


def label_curves(scores: pd.DataFrame, x_title: str) -> go.Figure:
    """UAR over the number or share of labels, with 95 % intervals over speakers (Student's t).

    `scores` has line, x, speaker and UAR, see `gmp_utils.evaluation.readout`.
    """
    figure, palette, order = go.Figure(), colors(scores.line.unique()), list(scores.x.unique())
    groups = scores.groupby(["line", "x"]).UAR
    half = (stats.t.ppf(0.975, groups.size() - 1) * groups.sem()).where(
        groups.size() >= MIN_SPEAKERS
    )
    means = pd.DataFrame(
        {"low": groups.mean() - half, "UAR": groups.mean(), "high": groups.mean() + half}
    )
    for line, color in palette.items():
        rows = means.loc[line].reindex(order)
        figure.add_scatter(
            x=[*order, *order[::-1]], y=[*rows.high, *rows.low[::-1]], fill="toself", mode="none",
            fillcolor=color, opacity=0.15, showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=order, y=rows.UAR, name=line, line={"color": color}, mode="lines+markers"
        )
    best = means.loc[(slice(None), order[0]), "UAR"].idxmax()[0]
    figure.update_xaxes(type="category", categoryarray=order, title=x_title)
    title = f"With the fewest labels, {best} has the highest UAR here"
    return figure.update_layout(title=title, yaxis_title="UAR (%)")


def speakers(scores: dict[str, pd.Series]) -> go.Figure:
    """UAR (%) of each test speaker, a line per speaker, from scores by speaker of each system."""
    table = pd.DataFrame(scores)
    figure = px.line(table.T, markers=True, color_discrete_sequence=[COLORS["unknown"]])
    figure.update_traces(marker_color=COLORS["neutral"], showlegend=False)
    means, gap = table.mean(), (table.max() - table.min()).max()
    title = f"Speakers of one system differ by up to {gap:.0f} points"
    figure.add_scatter(
        x=means.index, y=means, name="mean", mode="markers",
        marker={"symbol": "line-ew", "size": 40, "line": {"width": 3, "color": COLORS["CE"]}},
    )  # fmt: skip
    title += f", means over speakers by {means.max() - means.min():.0f}"
    axes = {"xaxis_title": "", "yaxis_title": "UAR of a speaker (%)"}
    return figure.update_layout(title=title, legend_title="", **axes)
