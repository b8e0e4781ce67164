"""Plotly figures of personalization: the effect of speaker embeddings and calibration, and on whom."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import pearsonr

from gmp_utils.figures.style import SEQUENCE, colors, panels


def _scores(results: pd.DataFrame, by: str) -> go.Figure:
    """A-CCC with its interval by speaker along a column, a panel per attribute."""
    errors = {"up": results.a_high - results["A-CCC"], "down": results["A-CCC"] - results.a_low}
    table, bars = results.assign(**errors), {"error_y": "up", "error_y_minus": "down"}
    figure = panels(px.scatter, table, x=by, y="A-CCC", **bars)
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
    names = {"seen": "seen speakers", "unseen": "unseen speakers"}
    lines = table.rename(columns=names)
    figure = panels(px.line, lines, x="speakers", y=list(names.values()), markers=True)
    means = table.groupby("speakers").gap.mean()
    gaps = ", ".join(f"{gap:.2f} of CCC with {n} speakers" for n, gap in means.items())
    figure.update_xaxes(title="training speakers").update_yaxes(title="A-CCC", col=1)
    return figure.update_layout(title=f"Seen minus unseen: {gaps}", legend_title="")


def by_shift(table: pd.DataFrame) -> go.Figure:
    """CCC of test speakers against their distances, from `gmp_utils.evaluation.ratings.shifts`."""
    kinds = {"feature": "feature shift", "label": "label shift"}
    figure = make_subplots(1, 2, subplot_titles=list(kinds.values()), shared_yaxes=True)
    palette, correlations = colors(table.attribute.unique()), []
    for column, kind in enumerate(kinds, start=1):
        related = []
        for attribute, rows in table.groupby("attribute", sort=False):
            marker = {"color": palette[attribute], "size": 8}
            figure.add_scatter(
                x=rows[kind], y=rows.ccc, name=attribute, mode="markers", marker=marker,
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
            related.append(f"{correlation(rows[kind], rows.ccc):.2f}")
        correlations.append(f"{kind} {', '.join(related)}")
    figure.update_xaxes(title="KL divergence from all training speakers, nats", type="log")
    figure.update_yaxes(title="CCC of a test speaker", col=1)
    names = ", ".join(palette)
    title = f"Correlation of CCC and shift ({names}): {' / '.join(correlations)}"
    return figure.update_layout(title=title)


def correlation(x: pd.Series, y: pd.Series) -> float:
    """Pearson's correlation; NaN for fewer than three points or a constant."""
    is_defined = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(pearsonr(x, y).statistic) if is_defined else np.nan


def by_cost(results: pd.DataFrame, costs: pd.DataFrame) -> go.Figure:
    """Mean A-CCC over attributes against costs, from `gmp_utils.evaluation.ratings.rating_costs`."""
    means = results[results.calibration == "none"].groupby("system", sort=False)["A-CCC"].mean()
    table = costs.join(means)
    figure = make_subplots(1, 2, shared_yaxes=True)
    for column, cost in enumerate(("parameters", "seconds"), start=1):
        for number, (system, row) in enumerate(table.iterrows()):
            symbol, color = divmod(number, len(SEQUENCE))
            marker = {"size": 11, "color": SEQUENCE[color], "symbol": symbol}
            figure.add_scatter(
                x=[row[cost]], y=[row["A-CCC"]], name=system, mode="markers", marker=marker,
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    best, cheapest = table["A-CCC"].idxmax(), table.seconds.idxmin()
    figure.update_xaxes(title="trained parameters", type="log", dtick=1, col=1)
    figure.update_xaxes(title="seconds of training", type="log", dtick=1, col=2)
    figure.update_yaxes(title="A-CCC, mean of attributes", col=1)
    return figure.update_layout(
        title=f"{best} is best with {table['A-CCC'][best]:.2f} in {table.seconds[best]:.0f} s; "
        f"{cheapest} reaches {table['A-CCC'][cheapest]:.2f} in {table.seconds[cheapest]:.0f} s"
    )


def by_neighbors(table: pd.DataFrame) -> go.Figure:
    """A-CCC by variant of PLDC and neighbors, from `gmp_utils.evaluation.ratings.by_neighbors`."""
    lines = {"x": "neighbors", "y": "A-CCC", "color": "calibration", "markers": True}
    figure = panels(px.line, table, **lines)
    means = table.groupby(["calibration", "neighbors"])["A-CCC"].mean()
    name, k = means.idxmax()
    title = f"Mean over attributes on the test speakers: highest for {name} with k = {k}"
    return figure.update_layout(title=title)
