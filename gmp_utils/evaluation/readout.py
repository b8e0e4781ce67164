"""Readouts: how well a model's frozen layers can be classified from few labels."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gmp_utils.evaluation.collect import classifiers, corpus_of
from gmp_utils.evaluation.comparison import group_scores
from gmp_utils.evaluation.metrics import uar

N_LABELS = (1, 2, 4, 8, 16)  # per emotion
PROBE_C = 0.03  # inverse of the L2 penalty


def read_out(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_draws: int, seed: int
) -> pd.DataFrame:
    """Predict the labels of test utterances by logistic regression on single layers, from few labels.

    Each layer of the upper half is standardized over all training utterances, which needs no labels. Within a
    draw, smaller sets of labels are subsets of larger ones.

    Parameters
    ----------
    train, test : (n_utterances, layers, dim)
    labels : (n_utterances,)

    Returns
    -------
    predicted : DataFrame
        A column per test utterance. Rows are `labels` per class (`N_LABELS`, or inf for all), `draw`
        and `layer`.
    """
    rng, subsets, rows = np.random.default_rng(seed), {(np.inf, 0): np.arange(len(labels))}, {}
    for draw in range(n_draws):
        order = rng.permutation(len(labels))
        rank = pd.Series(order).groupby(labels[order]).cumcount().to_numpy()
        subsets |= {(n, draw): order[rank < n] for n in N_LABELS}
    for layer in range(train.shape[1] // 2, train.shape[1]):
        scaler = StandardScaler().fit(train[:, layer])
        x, x_test = scaler.transform(train[:, layer]), scaler.transform(test[:, layer])
        for subset, chosen in subsets.items():
            probe = LogisticRegression(C=PROBE_C, max_iter=5000).fit(x[chosen], labels[chosen])
            rows[*subset, layer] = probe.predict(x_test)
    index = pd.MultiIndex.from_tuples(rows, names=["labels", "draw", "layer"])
    return pd.DataFrame(np.stack(list(rows.values())), index)


def write_readout(
    folder: Path,
    manifest: pd.DataFrame,
    parts: dict[str, list[str]],
    statistics: np.ndarray,
    **draws: int,
) -> None:
    """Write readout.parquet: labels, draw, layer, utterance, predicted, speaker and true, by `read_out`.

    `statistics`, (n_utterances, layers, dim), are in the manifest's order.
    """
    rows = {part: manifest.index.get_indexer(parts[part]) for part in ("train", "test")}
    train, test = (statistics[rows[part]] for part in ("train", "test"))
    predicted = read_out(train, manifest.emotion.to_numpy()[rows["train"]], test, **draws)
    predicted = predicted.set_axis(parts["test"], axis=1)
    options = {"var_name": "utterance", "value_name": "predicted", "ignore_index": False}
    table = predicted.melt(**options).reset_index()
    about = manifest[["speaker", "emotion"]].rename(columns={"emotion": "true"})
    table.join(about, on="utterance").to_parquet(folder / "readout.parquet", index=False)


def readouts(run_dir: str) -> pd.DataFrame:
    """The readouts of all `classifiers` of a run or an experiment.

    Columns are those of `write_readout`, variant, system, fold, seed, and the speaker's gender.
    """
    found = classifiers(run_dir)
    tables = [
        pd.read_parquet(row.stage / "readout.parquet").assign(**row._asdict())
        for row in found.itertuples(index=False)
        if (row.stage / "readout.parquet").is_file()
    ]
    if not tables:
        return pd.DataFrame()
    gender = corpus_of(found.stage[0]).manifest.gender
    return pd.concat(tables, ignore_index=True).drop(columns="stage").join(gender, on="utterance")


def number_text(n: float) -> str:
    """A number of labels as text; infinity is "all"."""
    return "all" if np.isinf(n) else f"{n:.0f}"


def readout_curves(table: pd.DataFrame) -> pd.DataFrame:
    """UAR (%) of `readouts` by `line` (a system), labels per emotion (`x`) and speaker."""
    line, numbers = table.variant + ", " + table.system, table.labels.map(number_text)
    return _curves(table.assign(line=line, x=numbers), "labels")


def label_efficiency(predictions: pd.DataFrame, variants: dict[str, dict]) -> pd.DataFrame:
    """UAR (%) of systems by `line`, share of labels (`x`) and speaker.

    Variants with a `labeled_share` are named "<x>, <line>". The table is empty without any.
    """
    shares = {name: v["labeled_share"] for name, v in variants.items() if "labeled_share" in v}
    table = predictions[predictions.variant.isin(shares)]
    share = table.variant.map(shares)
    names = table.variant.str.extract("(?:(.+?), )?(.+)")
    x = names[0].fillna(share.map("{:.0%}".format))
    return _curves(table.assign(line=names[1] + ", " + table.system, x=x, share=share), "share")


def _curves(table: pd.DataFrame, order: str) -> pd.DataFrame:
    """UAR by line, `x` in the order of a column, and speaker."""
    groups = table.sort_values(order).groupby(["line", "x", "speaker"], sort=False)
    return group_scores(groups, uar).rename("UAR").reset_index() if len(table) else table
