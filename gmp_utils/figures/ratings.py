"""Plotly figures of notebook 08: effects of speaker embeddings and calibration, and on which speakers."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from scipy import stats

from gmp_utils.evaluation.comparison import MIN_SEEDS
from gmp_utils.figures.style import SEQUENCE, panels


def by_system(results: pd.DataFrame) -> go.Figure:
    """A-CCC of uncalibrated systems, from `gmp_utils.evaluation.ratings.results_table`."""
    plain = results[results.calibration == "none"]
    up, down = plain.a_high - plain["A-CCC"], plain["A-CCC"] - plain.a_low
    figure = panels(px.scatter, plain, x="system", y="A-CCC", error_y=up, error_y_minus=down)
    figure.update_traces(marker_size=9).update_xaxes(title="", tickangle=-40, automargin=True)
    scored = plain.dropna(subset="A-CCC")
    best = scored.loc[scored.groupby("attribute", sort=False)["A-CCC"].idxmax()]
    numbers = zip(best.attribute, best["A-CCC"], best.system)
    highest = ", ".join(f"{attribute} {ccc:.2f} ({system})" for attribute, ccc, system in numbers)
    return figure.update_layout(title=f"Highest A-CCC: {highest}", height=480)


def differences(table: pd.DataFrame) -> go.Figure:
    """Paired differences with intervals, from `gmp_utils.evaluation.ratings.compare_systems`."""
    figure = panels(
        px.scatter, table, x="difference", y="compared", error_x=table.high - table.difference
    )
    figure.add_vline(0, line_color="#888888").update_traces(marker_size=9)
    figure.update_xaxes(title="points of A-CCC")
    figure.update_yaxes(title="", autorange="reversed", automargin=True)
    over = "speakers and seeds" if table.seeds.min() >= MIN_SEEDS else "speakers, not over seeds"
    height, n_apart = 180 + 40 * table.compared.nunique(), (table.low * table.high > 0).sum()
    title = f"{n_apart} of {len(table)} differences have 95% intervals without 0 (over {over})"
    return figure.update_layout(title=title, height=height)


def by_gap(table: pd.DataFrame) -> go.Figure:
    """A-CCC of seen and unseen speakers, from `gmp_utils.evaluation.ratings.personalization_gap`."""
    axes = {"x": "training speakers", "y": "A-CCC", "color": "test on", "error_y": "half_width"}
    figure = panels(px.line, table, **axes, markers=True)
    means = table.pivot_table("A-CCC", "training speakers", "test on")
    gaps = (means["seen speakers"] - means["unseen speakers"]).items()
    title = ", ".join(f"{gap:+.2f} with {n} speakers" for n, gap in gaps)
    return figure.update_layout(title=f"Seen minus unseen, mean of attributes: {title}")


def by_shift(table: pd.DataFrame) -> go.Figure:
    """CCC of test speakers against their distances, from `gmp_utils.evaluation.ratings.shifts`.

    The title of a panel has Pearson's correlation with its 95% interval.
    """
    long = table.melt(["attribute", "ccc"], ["feature", "label"], "kind", "shift")
    titles, clear = {}, []
    for (kind, attribute), rows in long.groupby(["kind", "attribute"], sort=False):
        titles[kind, attribute] = f"{attribute}, {kind}"
        if len(rows) > 3:  # fewer speakers have no interval
            related = stats.pearsonr(rows["shift"], rows.ccc)
            low, high = related.confidence_interval()
            titles[kind, attribute] += f": {related.statistic:.2f} [{low:.2f}, {high:.2f}]"
            clear.append(low * high > 0)
    long["panel"] = list(map(titles.get, zip(long.kind, long.attribute)))
    spaces = {"facet_col_spacing": 0.07, "facet_row_spacing": 0.2}
    wrap = table.attribute.nunique()
    figure = panels(px.scatter, long, "panel", x="shift", y="ccc", facet_col_wrap=wrap, **spaces)
    figure.update_traces(marker_size=8).update_xaxes(matches=None, title="", showticklabels=True)
    figure.update_xaxes(title="KL divergence (nats)").update_yaxes(title="CCC", col=1)
    title = f"{sum(clear)} of {len(clear)} correlations of CCC with shift have intervals without 0"
    return figure.update_layout(title=title, height=600)


def by_cost(results: pd.DataFrame, costs: pd.DataFrame) -> go.Figure:
    """Mean A-CCC over attributes against costs, from `gmp_utils.evaluation.ratings.rating_costs`."""
    means = results[results.calibration == "none"].groupby("system", sort=False)["A-CCC"].mean()
    table = costs.join(means)
    long = table.reset_index().melt(["system", "A-CCC"], ["parameters", "seconds"], "cost")
    figure = panels(
        px.scatter, long, "cost", x="value", y="A-CCC", color="system", symbol="system", log_x=True,
        symbol_sequence=[n // len(SEQUENCE) for n in range(len(table))], facet_col_spacing=0.1,
    )  # fmt: skip
    figure.update_traces(marker_size=11).update_xaxes(matches=None)
    figure.update_xaxes(title="trained parameters", dtick=1, col=1)
    figure.update_xaxes(title="training (s)", type="linear", col=2)
    figure.update_yaxes(title="A-CCC, mean of attributes", col=1).update_layout(legend_title="")
    low, high = table.seconds.idxmin(), table.seconds.idxmax()
    times = f"{table.seconds[low]:.0f} s ({low}) to {table.seconds[high]:.0f} s ({high})"
    return figure.update_layout(title=f"Training takes {times}")


def by_neighbors(table: pd.DataFrame) -> go.Figure:
    """A-CCC by variant of PLDC and neighbors, from `gmp_utils.evaluation.ratings.by_neighbors`."""
    axes = {"x": "neighbors", "y": "A-CCC", "color": "calibration"}
    figure = panels(px.line, table, **axes, markers=True, log_x=True)
    figure.update_xaxes(title="neighboring speakers", tickvals=table.neighbors.unique())
    means = table[table.calibration == "PLDC both"].groupby("neighbors")["A-CCC"].mean()
    low, high = means.idxmin(), means.idxmax()
    ends = f"{means[low]:.2f} ({low} neighbors) to {means[high]:.2f} ({high} neighbors)"
    return figure.update_layout(title=f"PLDC both, mean of attributes: A-CCC from {ends}")
