"""Plotly figures of personalisation: what a speaker's vector and a calibration are worth, and to whom."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import pearsonr

from gmp_utils.figures.style import SEQUENCE, colors


def scores(results: pd.DataFrame, by: str, title: str) -> go.Figure:
    """A-CCC with its interval by speaker, a panel per attribute.

    Parameters
    ----------
    results : DataFrame
        As `gmp_utils.evaluation.ratings.results_table` returns it.
    by : str
        The column along the axis, "system" or "calibration"; the other one is the color.
    title : str
        The finding.
    """
    other = "calibration" if by == "system" else "system"
    table = results.assign(
        up=results.a_high - results["A-CCC"], down=results["A-CCC"] - results.a_low
    )
    figure = px.scatter(
        table, x=by, y="A-CCC", color=other, facet_col="attribute", error_y="up", error_y_minus="down",
        color_discrete_sequence=SEQUENCE,
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    figure.update_traces(marker_size=9).update_layout(scattermode="group", title=title)
    if table[other].nunique() == 1:
        figure.update_layout(showlegend=False)
    figure.update_layout(height=480, margin_b=140)
    return figure.update_xaxes(title="", tickangle=-40)


def by_gap(table: pd.DataFrame) -> go.Figure:
    """How people who were learnt from, and others, are rated, by how many were learnt from.

    Parameters
    ----------
    table : DataFrame
        As `gmp_utils.evaluation.ratings.gap` returns it.
    """
    attributes = list(table.attribute.unique())
    figure = make_subplots(1, len(attributes), subplot_titles=attributes, shared_yaxes=True)
    for column, attribute in enumerate(attributes, start=1):
        own = table[table.attribute == attribute]
        for number, (name, words) in enumerate(
            {"known": "people it knows", "unknown": "new people"}.items()
        ):
            figure.add_scatter(
                x=own.speakers,
                y=own[name],
                name=words,
                mode="lines+markers",
                line_color=SEQUENCE[number],
                showlegend=column == 1,
                row=1,
                col=column,
            )
    means = table.groupby("speakers").gap.mean()
    first, last = means.index[0], means.index[-1]
    title = (
        f"The gap is {means[first]:.2f} of CCC with {first} speakers, {means[last]:.2f} with {last}"
    )
    figure.update_xaxes(title="training speakers").update_yaxes(title="A-CCC", col=1)
    return figure.update_layout(title=title)


def by_shift(table: pd.DataFrame) -> go.Figure:
    """How well test speakers are rated, against how far they are from the training speakers.

    Parameters
    ----------
    table : DataFrame
        As `gmp_utils.evaluation.ratings.shifts` returns it.
    """
    kinds = {"feature": "how they sound", "label": "how they are rated"}
    figure = make_subplots(1, 2, subplot_titles=list(kinds.values()), shared_yaxes=True)
    palette = colors(table.attribute.unique())
    found = []
    for column, kind in enumerate(kinds, start=1):
        for attribute, own in table.groupby("attribute", sort=False):
            figure.add_scatter(
                x=own[kind],
                y=own.ccc,
                name=attribute,
                mode="markers",
                marker={"color": palette[attribute], "size": 8},
                showlegend=column == 1,
                row=1,
                col=column,
            )
        pairs = table.groupby("attribute", sort=False)[[kind, "ccc"]]
        related = pairs.apply(lambda own, kind=kind: correlation(own[kind], own.ccc))
        found.append(f"{kind} {', '.join(f'{value:.2f}' for value in related)}")
    named = ", ".join(table.attribute.unique())
    figure.update_xaxes(title="KL divergence from all training speakers, nats", type="log")
    figure.update_yaxes(title="CCC of a test speaker", col=1)
    return figure.update_layout(title=f"Correlation with the shift ({named}): {'; '.join(found)}")


def correlation(x: pd.Series, y: pd.Series) -> float:
    """Pearson's, NaN for fewer than three points or where one of the two does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(pearsonr(x, y).statistic)


def by_cost(results: pd.DataFrame, costs: pd.DataFrame) -> go.Figure:
    """A-CCC, averaged over attributes, against what training took.

    Parameters
    ----------
    results : DataFrame
        As `gmp_utils.evaluation.ratings.results_table` returns it.
    costs : DataFrame
        As `gmp_utils.evaluation.ratings.rating_costs` returns it.
    """
    means = results[results.calibration == "none"].groupby("system", sort=False)["A-CCC"].mean()
    table = costs.join(means)
    figure = make_subplots(1, 2, shared_yaxes=True)
    for column, name in enumerate(("parameters", "seconds"), start=1):
        for number, (system, row) in enumerate(table.iterrows()):
            figure.add_scatter(
                x=[row[name]],
                y=[row["A-CCC"]],
                name=system,
                mode="markers",
                marker={"size": 11, "color": SEQUENCE[number % len(SEQUENCE)],
                        "symbol": number // len(SEQUENCE)},
                showlegend=column == 1,
                row=1,
                col=column,
            )  # fmt: skip
    best, cheapest = table["A-CCC"].idxmax(), table.seconds.idxmin()
    figure.update_xaxes(title="trained parameters", type="log", col=1)
    figure.update_xaxes(title="seconds of training", type="log", col=2)
    figure.update_yaxes(title="A-CCC, mean of attributes", col=1)
    return figure.update_layout(
        title=f"{best} is best with {table['A-CCC'][best]:.2f} in {table.seconds[best]:.0f} s; "
        f"{cheapest} reaches {table['A-CCC'][cheapest]:.2f} in {table.seconds[cheapest]:.0f} s"
    )


def by_neighbours(table: pd.DataFrame) -> go.Figure:
    """A-CCC of each variant of PLDC against the number of neighbours.

    Parameters
    ----------
    table : DataFrame
        neighbours, calibration, attribute, A-CCC.
    """
    figure = px.line(
        table, x="neighbours", y="A-CCC", color="calibration", facet_col="attribute", markers=True,
        color_discrete_sequence=SEQUENCE,
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    best = table.groupby(["calibration", "neighbours"])["A-CCC"].mean().idxmax()
    return figure.update_layout(
        title=f"Over all attributes, {best[0]} with k = {best[1]} is best here"
    )
