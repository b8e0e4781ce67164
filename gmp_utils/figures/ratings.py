"""Plotly figures of personalization: the effect of speaker embeddings and calibration, and on whom."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from gmp_utils.figures.style import SEQUENCE, colors, panels


def _scores(results: pd.DataFrame, by: str) -> go.Figure:
    """A-CCC with its interval by speaker along a column, a panel per attribute."""
    up, down = results.a_high - results["A-CCC"], results["A-CCC"] - results.a_low
    figure = panels(px.scatter, results, x=by, y="A-CCC", error_y=up, error_y_minus=down)
    figure.update_traces(marker_size=9).update_layout(height=480, margin_b=140)
    return figure.update_xaxes(title="", tickangle=-40)


def by_system(results: pd.DataFrame) -> go.Figure:
    """A-CCC of uncalibrated systems, from `gmp_utils.evaluation.ratings.results_table`."""
    plain = results[results.calibration == "none"]
    means = plain.groupby("system", sort=False)["A-CCC"].mean()
    title = f"Mean over attributes: {means.idxmax()} {means.max():.2f}, {means.index[0]} {means.iloc[0]:.2f}"
    return _scores(plain, "system").update_layout(title=title)


def by_calibration(results: pd.DataFrame) -> go.Figure:
    """A-CCC of one system by calibration, from the same table as `by_system`."""
    scores = results.pivot(index="calibration", columns="attribute", values="A-CCC")
    gains = scores.loc["PLDC both"] - scores.loc["none"]
    changes = ", ".join(f"{name} {gains[name]:+.2f}" for name in results.attribute.unique())
    title = f"Change of A-CCC by PLDC, mean and scale: {changes}"
    return _scores(results, "calibration").update_layout(title=title)


def by_gap(table: pd.DataFrame) -> go.Figure:
    """A-CCC of seen and unseen speakers, from `gmp_utils.evaluation.ratings.personalization_gap`."""
    lines = table.rename(columns={"seen": "seen speakers", "unseen": "unseen speakers"})
    names = ["seen speakers", "unseen speakers"]
    figure = panels(px.line, lines, x="speakers", y=names, markers=True)
    means = table.groupby("speakers").gap.mean()
    gaps = ", ".join(f"{gap:.2f} of CCC with {n} speakers" for n, gap in means.items())
    figure.update_xaxes(title="training speakers").update_yaxes(title="A-CCC", col=1)
    return figure.update_layout(title=f"Seen minus unseen: {gaps}", legend_title="")


def by_shift(table: pd.DataFrame) -> go.Figure:
    """CCC of test speakers against their distances, from `gmp_utils.evaluation.ratings.shifts`."""
    palette = colors(table.attribute.unique())
    long = table.melt(["attribute", "ccc"], ["feature", "label"], "kind", "shift")
    figure = panels(
        px.scatter, long.assign(kind=long.kind + " shift"), "kind", x="shift", y="ccc", log_x=True,
        color="attribute", color_discrete_map=palette, facet_col_spacing=0.1,
    )  # fmt: skip
    figure.update_traces(marker_size=8).update_layout(legend_title="")
    figure.update_xaxes(title="KL divergence from all training speakers, nats", matches=None)
    figure.update_yaxes(title="CCC of a test speaker", col=1)
    correlations = []
    for kind, rows in long.groupby("kind"):
        by_attribute = rows.groupby("attribute", sort=False)[["shift", "ccc"]]
        related = by_attribute.corr(min_periods=3).ccc.xs("shift", level=1)
        correlations.append(f"{kind} {', '.join(map('{:.2f}'.format, related))}")
    title = f"Correlation of CCC and shift ({', '.join(palette)}): {' / '.join(correlations)}"
    return figure.update_layout(title=title)


def by_cost(results: pd.DataFrame, costs: pd.DataFrame) -> go.Figure:
    """Mean A-CCC over attributes against costs, from `gmp_utils.evaluation.ratings.rating_costs`."""
    means = results[results.calibration == "none"].groupby("system", sort=False)["A-CCC"].mean()
    table = costs.join(means)
    long = table.reset_index().melt(["system", "A-CCC"], ["parameters", "seconds"], "cost")
    figure = panels(
        px.scatter, long, "cost", x="value", y="A-CCC", color="system", symbol="system", log_x=True,
        symbol_sequence=[n // len(SEQUENCE) for n in range(len(table))], facet_col_spacing=0.1,
    )  # fmt: skip
    best, cheapest = table["A-CCC"].idxmax(), table.seconds.idxmin()
    figure.update_traces(marker_size=11).update_xaxes(matches=None, dtick=1)
    figure.update_xaxes(title="trained parameters", col=1)
    figure.update_xaxes(title="seconds of training", col=2)
    figure.update_yaxes(title="A-CCC, mean of attributes", col=1).update_layout(legend_title="")
    return figure.update_layout(
        title="Highest A-CCC of these trainings: "
        f"{best} {table['A-CCC'][best]:.2f} in {table.seconds[best]:.0f} s; "
        f"{cheapest} has {table['A-CCC'][cheapest]:.2f} in {table.seconds[cheapest]:.0f} s"
    )


def by_neighbors(table: pd.DataFrame) -> go.Figure:
    """A-CCC by variant of PLDC and neighbors, from `gmp_utils.evaluation.ratings.by_neighbors`."""
    figure = panels(px.line, table, x="neighbors", y="A-CCC", color="calibration", markers=True)
    means = table.groupby(["calibration", "neighbors"])["A-CCC"].mean()
    title = "Mean over attributes on the test speakers: highest for {} with k = {}"
    return figure.update_layout(title=title.format(*means.idxmax()))
