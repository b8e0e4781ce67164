"""Plotly figures of notebooks 00 to 07."""

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.decomposition import PCA

from gmp_utils.data.audio import frame_seconds
from gmp_utils.evaluation.collect import SYSTEM
from gmp_utils.evaluation.comparison import speaker_means, with_intervals
from gmp_utils.evaluation.metrics import class_separation, expected_calibration_error
from gmp_utils.evaluation.tables import calibration
from gmp_utils.figures.style import COLORS, add_band, colors, panels


def _grid(titles: list[str], x_title: str, y_title: str) -> tuple[go.Figure, list[dict]]:
    """Panels in rows of three, and the row and column of each."""
    n_rows, places = -(-len(titles) // 3), [divmod(place, 3) for place in range(len(titles))]
    figure = make_subplots(
        n_rows, min(len(titles), 3), subplot_titles=titles, x_title=x_title, y_title=y_title,
        shared_xaxes="all", shared_yaxes="all", vertical_spacing=0.3 / n_rows,
    )  # fmt: skip
    figure.update_layout(height=130 + 290 * n_rows, margin={"t": 100, "b": 70})
    return figure, [{"row": row + 1, "col": column + 1} for row, column in places]


def _calibration_title(name: str, rows: pd.DataFrame) -> str:
    """A network and its expected calibration error (ECE) before and after calibration."""
    names = ("uncalibrated", "calibrated")
    before, after = (expected_calibration_error(rows[name], rows.correct) for name in names)
    if not rows.calibrated.equals(rows.uncalibrated):
        return f"{name}<br>ECE {before:.2f} → {after:.2f}"
    alone = rows.validation_speakers.max() < 2
    reason = "one validation speaker" if alone else "no gain on validation"
    return f"{name}<br>ECE {before:.2f}, not calibrated ({reason})"


def reliability_diagrams(table: pd.DataFrame) -> go.Figure:
    """Accuracy against confidence of each network, from `gmp_utils.evaluation.tables.confidences`."""
    networks = {", ".join(name): rows for name, rows in table.groupby(SYSTEM, sort=False)}
    titles = [_calibration_title(*network) for network in networks.items()]
    figure, places = _grid(titles, "confidence", "accuracy")
    for rows, place in zip(networks.values(), places):
        shared, ideal = {"showlegend": place == places[0], **place}, {"dash": "dash", "width": 1}
        ideal = {"mode": "lines", "line": ideal | {"color": "#999999"}}
        figure.add_scatter(x=[0, 1], y=[0, 1], name="perfect calibration", **ideal, **shared)
        for name, color in (("uncalibrated", "#999999"), ("calibrated", "#444444")):
            points = calibration(rows, name)
            high, low = points.high - points.accuracy, points.accuracy - points.low
            figure.add_scatter(
                x=points.confidence, y=points.accuracy, mode="markers+lines", name=name,
                marker={"color": color, "size": 36 * np.sqrt(points.utterances / len(rows))},
                line={"color": color}, error_y={"array": high, "arrayminus": low},
                text=points.utterances, **shared,
                hovertemplate="%{text} utterances: confidence %{x:.2f}, accuracy %{y:.2f}",
            )  # fmt: skip
    n = sum(rows.uncalibrated.mean() > rows.correct.mean() for rows in networks.values())
    title = f"Before calibration, confidence exceeds accuracy in {n} of {len(networks)} networks"
    return figure.update_layout(title=title, xaxis_range=[0, 1.08], yaxis_range=[-0.05, 1.1])


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
    title = f"90% of the utterances last {low:.1f} to {high:.1f} s"
    return figure.update_layout(title=title, xaxis_title="duration (s)", yaxis_title="utterances")


def folds(parts: pd.DataFrame) -> go.Figure:
    """The part, such as "train" or "test", of each speaker (row) in each fold (column), as tiles."""
    shades = {"train": "#E4E6E9", "validation": "#B79FE0", "test": "#8FD6CD"}
    names = [*shades, *sorted(set(parts.to_numpy().ravel()) - set(shades))]
    palette = [shades.get(name, "#FFFFFF") for name in names]
    scale = [[number / (len(names) - 1), color] for number, color in enumerate(palette)]
    codes = parts.map(names.index)
    figure = go.Figure(
        go.Heatmap(
            x=parts.columns, y=parts.index, z=codes, zmin=0, zmax=len(names) - 1, colorscale=scale,
            text=parts, texttemplate="%{text}", showscale=False, xgap=2, ygap=2,
        )
    )  # fmt: skip
    tested = parts.map(lambda part: "test" in part.split(" + "))  # with others, of other sentences
    once = (tested.sum(axis=1) == 1).sum()
    title = f"{once} of {len(parts)} speakers are test speakers in exactly one fold"
    figure.update_yaxes(type="category", autorange="reversed", title="speaker", showgrid=False)
    return figure.update_layout(title=title, height=120 + 26 * len(parts), xaxis_showgrid=False)


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
    scale = [rated.rating_min.min(), rated.rating_max.max()]
    return figure.update_layout(title=title, xaxis_range=scale, yaxis_range=scale)


def curves(
    history: pd.DataFrame, panels: dict[str, dict[str, str]], *, x: str, title: str
) -> go.Figure:
    """Training curves of a history.csv over `x`, "epoch" or "step", with the selected epoch as a star.

    `panels` has the lines of each panel by its title: their names, and the columns that they show. The
    column "selected", or "<line> selected", marks the epoch whose model is kept.
    """
    figure = make_subplots(1, len(panels), horizontal_spacing=0.3 / len(panels))
    palette = colors(
        dict.fromkeys(line.split(",")[0] for lines in panels.values() for line in lines)
    )
    drawn = set()
    for column, (panel, lines) in enumerate(panels.items(), start=1):
        figure.update_yaxes(title=panel, col=column)
        for line, values in lines.items():
            color = palette[line.split(",")[0]]
            style = {"color": color, "dash": "dot" if "training" in line else "solid"}
            mode = "lines+markers"
            if "chance" in line:
                style, mode = {"color": color, "dash": "dash", "width": 1}, "lines"
            name = f"{line} selected" if f"{line} selected" in history else "selected"
            selected = history.get(name, np.zeros(len(history)))
            marker = {"symbol": np.where(selected, "star", "circle"), "size": 6 + 6 * selected}
            figure.add_scatter(
                x=history[x], y=history[values], name=line, mode=mode, line=style, marker=marker,
                legendgroup=line, showlegend=line not in drawn, row=1, col=column,
            )  # fmt: skip
            drawn.add(line)
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


def feature_planes(networks: dict[str, Path]) -> go.Figure:
    """Validation features before and after fine-tuning: a PCA of the unit vectors of each model.

    Inter- and intra-class distances are cosine distances in all dimensions. The axes differ between panels.
    """
    vectors, tables, ratios = {}, [], {}
    for name, stage in networks.items():
        table = pd.read_parquet(stage / "features.parquet")
        vectors.setdefault("before", table.loc["before"])
        vectors[f"after, {name}"] = table.loc["after"]
    for name, table in vectors.items():
        emotions, values = table.index.to_numpy(), table.to_numpy()
        distances, pca = class_separation(values, emotions), PCA(2)
        ratios[name] = f"{name.removeprefix('after, ')} {distances['ratio']:.1f}"
        x, y = pca.fit_transform(values / np.linalg.norm(values, axis=1, keepdims=True)).T
        panel = (
            f"{name} ({pca.explained_variance_ratio_.sum():.0%} of the variance)<br>"
            f"inter-class {distances['inter_class']:.2f}, intra-class {distances['intra_class']:.2f}"
        )
        tables.append(pd.DataFrame({"panel": panel, "x": x, "y": y, "emotion": emotions}))
    axes = {"x": "x", "y": "y", "color": "emotion", "color_discrete_map": COLORS}
    spacing = {"facet_col_wrap": 3, "facet_col_spacing": 0.07, "facet_row_spacing": 0.2}
    figure = panels(px.scatter, pd.concat(tables), "panel", **axes, **spacing)
    figure.update_xaxes(matches=None, showticklabels=True, title="component 1")
    figure.update_yaxes(matches=None, showticklabels=True).update_yaxes(title="component 2", col=1)
    title = f"Inter-class over intra-class distance: {', '.join(ratios.values())}"
    height = 120 + 300 * -(-len(vectors) // 3)
    return figure.update_layout(title=title, margin_t=100, height=height)


def confusions(by_system: dict[str, pd.DataFrame], emotions: list[str]) -> go.Figure:
    """Confusion matrices in percent of the true emotion, a panel per system, with intervals of recalls."""
    (figure, places), errors = _grid(list(by_system), "predicted", "true"), {}
    for (name, rows), place in zip(by_system.items(), places):
        table = pd.crosstab(rows.true, rows.predicted)
        table = table.reindex(index=emotions, columns=emotions, fill_value=0)
        shares = 100 * table.div(table.sum(axis=1), axis=0)
        text = shares.map("{:.0f}".format).where(shares.notna(), "")
        wrong = shares.where(~np.eye(len(emotions), dtype=bool)).stack()
        errors[f"{' as '.join(wrong.idxmax())} ({wrong.max():.0f}%, {name})"] = wrong.max()
        for emotion, (_, low, high) in with_intervals(rows).items():
            if emotion in emotions and not np.isnan(low):
                text.loc[emotion, emotion] += f"<br>[{100 * low:.0f}, {100 * high:.0f}]"
        figure.add_heatmap(
            x=emotions, y=emotions, z=shares, text=text, texttemplate="%{text}",
            coloraxis="coloraxis", **place,
        )  # fmt: skip
    colors = {"cmin": 0, "cmax": 100, "colorscale": "Blues", "colorbar": {"title": "%"}}
    title = f"Most frequent confusion: {max(errors, key=errors.get)}"
    return figure.update_layout(title=title, coloraxis=colors, yaxis_autorange="reversed")


def recalls_by_group(tables: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """Recall per emotion and group with intervals over speakers, a panel per system.

    The tables are those of `gmp_utils.evaluation.tables.recall_table`.
    """
    table = pd.concat(tables, names=["system", None]).reset_index("system")
    table["above"], table["below"] = table.high - table.recall, table.recall - table.low
    order, n_rows = (
        sorted(table.emotion.unique(), key=lambda name: (name == "UAR", name)),
        -(-len(tables) // 3),
    )
    figure = panels(
        px.scatter, table, "system", x="emotion", y="recall", color="group", range_y=[-5, 105],
        error_y="above", error_y_minus="below", facet_col_wrap=3, color_discrete_map=COLORS,
        category_orders={"emotion": order}, facet_row_spacing=0.3 / n_rows,
    )  # fmt: skip
    figure.for_each_trace(lambda trace: trace.update(offsetgroup=trace.name, marker_size=9))
    figure.update_layout(scattermode="group", scattergap=0.6, legend_title="")
    figure.update_xaxes(title="").update_yaxes(title="recall (%)", col=1)
    return figure.update_layout(title=title, height=130 + 290 * n_rows)


def systems(points: pd.DataFrame, means: pd.DataFrame, joined: bool) -> go.Figure:
    """UAR of variants: means with intervals, and a point for each fold and seed.

    `points` and `means` are `scores_by_fold` and `scores` of `gmp_utils.evaluation.tables`. With `joined`,
    variants are values of a number, such as a layer: a line with a band replaces the bars.
    """
    figure, palette = go.Figure(), colors(means.system.unique())
    places = {variant: place for place, variant in enumerate(means.variant.unique())}
    means = means.rename(columns={"UAR low": "low", "UAR high": "high"})
    gap = min(0.12, 0.8 / len(palette))  # of variants, which are 1 apart
    for number, (system, rows) in enumerate(means.groupby("system", sort=False)):
        shift, style = gap * (number - (len(palette) - 1) / 2), {"color": palette[system]}
        single = points[points.system == system]
        figure.add_scatter(
            x=single.variant.map(places) + shift + gap / 3, y=single.UAR, mode="markers",
            name=f"{system}, a fold and seed", marker={**style, "opacity": 0.35, "size": 6},
        )  # fmt: skip
        place, diamond = [*rows.variant.map(places) + shift], {"size": 11, "symbol": "diamond"}
        if joined and len(rows) > 1:
            add_band(figure, system, palette[system], place, rows, marker=diamond)
            continue
        bars = {"array": rows.high - rows.UAR, "arrayminus": rows.UAR - rows.low}
        figure.add_scatter(
            x=place, y=rows.UAR, name=system, mode="markers", marker=style | diamond, error_y=bars
        )
    figure.update_xaxes(tickvals=[*places.values()], ticktext=[*places], zeroline=False)
    figure.update_xaxes(range=[-0.5, len(places) - 0.5])
    title = f"UARs of systems differ by up to {means.UAR.max() - means.UAR.min():.1f} points"
    deviation = points.groupby(["variant", "system"]).UAR.std().max()
    if deviation > 0:
        title += f"; standard deviation over folds and seeds: up to {deviation:.1f}"
    return figure.update_layout(title=title, yaxis_title="UAR (%)")


def label_curves(scores: pd.DataFrame, x_title: str) -> go.Figure:
    """UAR over the number or share of labels, with 95% intervals over speakers (Student's t).

    `scores` has line, x, speaker and UAR, see `gmp_utils.evaluation.readout`.
    """
    figure, palette, order = go.Figure(), colors(scores.line.unique()), list(scores.x.unique())
    means = speaker_means(scores.groupby(["line", "x"]).UAR)
    for line, color in palette.items():
        add_band(figure, line, color, order, means.loc[line].reindex(order))
    numbers = [x for x in order if x != "all"]
    average = means.UAR.unstack("x")[numbers].mean(axis=1)
    lines = dict.fromkeys([average.idxmin(), average.idxmax()])
    extremes = " to ".join(f"{average[line]:.1f} ({line})" for line in lines)
    ends = " to ".join(dict.fromkeys([numbers[0], numbers[-1]]))
    title = f"Mean UAR for {ends} {x_title}:<br>{extremes}"
    figure.update_xaxes(type="category", categoryarray=order, title=x_title)
    return figure.update_layout(title=title, yaxis_title="UAR (%)")


def speakers(scores: dict[str, pd.Series]) -> go.Figure:
    """UAR (%) of each test speaker, a line per speaker, and the systems' means with their intervals.

    `scores` has a UAR per speaker for each system.
    """
    table = pd.DataFrame(scores)
    figure = px.line(table.T, markers=True, color_discrete_sequence=[COLORS["unknown"]])
    figure.update_traces(marker_color=COLORS["neutral"], showlegend=False)
    gap = (table.max() - table.min()).max()
    long = table.melt(var_name="system", value_name="UAR").dropna()
    means = speaker_means(long.groupby("system", sort=False).UAR)
    figure.add_scatter(
        x=means.index, y=means.UAR, name="mean", mode="markers",
        error_y={"array": means.half_width, "color": COLORS["CE"]},
        marker={"symbol": "line-ew", "size": 40, "line": {"width": 3, "color": COLORS["CE"]}},
    )  # fmt: skip
    title = f"Speakers of a system differ by up to {gap:.0f} points"
    title += f", the systems' means by {means.UAR.max() - means.UAR.min():.0f}"
    axes = {"xaxis_title": "", "yaxis_title": "UAR of a speaker (%)"}
    return figure.update_layout(title=title, legend_title="", **axes)
