"""The tables of a run's or an experiment's results."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from gmp_utils.evaluation.collect import (
    LOSS_NAMES,
    SYSTEM,
    classifiers,
    corpus_of,
    first_corpus,
    missing_runs,
)
from gmp_utils.evaluation.comparison import with_interval
from gmp_utils.evaluation.metrics import recalls, temperature, uar, war
from gmp_utils.models.classifiers import LOSSES
from gmp_utils.runs import experiments, weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import ROOT

PAPER = ("UAR, the paper's on IEMOCAP", "WAR, the paper's on IEMOCAP")


def scores(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """UAR and WAR of each system, pooled over folds and seeds, with intervals by speaker.

    Parameters
    ----------
    predictions : DataFrame
        As `collect` returns them.
    seed : int
        Of the bootstrap, which takes seconds for each system.

    Returns
    -------
    scored : DataFrame
        variant, loss; `UAR`, `UAR low`, `UAR high`, and the same of WAR, in percent. Intervals are NaN
        for fewer than `gmp_utils.evaluation.comparison.MIN_SPEAKERS` speakers.
    """
    rows = []
    for system, group in predictions.groupby(SYSTEM, sort=False):
        row = dict(zip(SYSTEM, system))
        for name, metric in (("UAR", uar), ("WAR", war)):
            value, interval = with_interval(group, metric, seed)
            numbers = 100 * np.array([value, *(interval or (np.nan, np.nan))])
            row |= dict(zip((name, f"{name} low", f"{name} high"), numbers))
        rows.append(row)
    return pd.DataFrame(rows)


def points(predictions: pd.DataFrame) -> pd.DataFrame:
    """UAR of each system's folds and seeds, in percent: variant, loss, fold, seed, `UAR`."""
    keys = [*SYSTEM, "fold", "seed"]
    rows = [
        (*key, 100 * uar(own.true, own.predicted))
        for key, own in predictions.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "UAR"])


def _spread(groups) -> str:
    """Mean and deviation of the UAR of several groups of predictions, in percent."""
    values = pd.Series([100 * uar(own.true, own.predicted) for _, own in groups])
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else "only one"


def results_table(predictions: pd.DataFrame, told: dict, scored: pd.DataFrame) -> pd.DataFrame:
    """What was declared and what was run, beside the paper's numbers where there are any.

    Parameters
    ----------
    predictions : DataFrame
        As `collect` returns them.
    told : dict
        See `gmp_utils.runs.experiments.read_declaration`.
    scored : DataFrame
        Of these predictions, see `scores`.

    Returns
    -------
    table : DataFrame
        variant, loss, folds, seeds, speakers; UAR and WAR in percent as text, pooled over folds and
        seeds, with an interval by speaker; mean and deviation of the UAR over folds and over seeds;
        the paper's UAR and WAR.
    """
    rows, numbers = {}, scored.set_index(SYSTEM)
    for system, group in predictions.groupby(SYSTEM, sort=False):
        row = {f"{name}s": group[name].nunique() for name in ("fold", "seed", "speaker")}
        for name in ("UAR", "WAR"):
            value, low, high = numbers.loc[system, [name, f"{name} low", f"{name} high"]]
            row[name] = f"{value:.1f}" if np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"
        row["UAR by fold"] = _spread(group.groupby("fold"))
        row["UAR by seed"] = _spread(group.groupby("seed"))
        rows[system] = row
    papers = {
        (variant, loss): {
            name: f"{number:.1f}" for name, number in zip(PAPER, numbers) if number is not None
        }
        for variant, losses in told["paper"].items()
        for loss, numbers in losses.items()
    }
    declared = [
        (run["variant"], LOSS_NAMES[loss]) for run in told["runs"] for loss in run["losses"]
    ]
    impossible = [(name, "") for name in told["impossible"] if name not in told["paper"]]
    systems = dict.fromkeys([*declared, *papers, *rows, *impossible])
    table = pd.DataFrame([dict(zip(SYSTEM, system)) for system in systems])
    empty = {"folds": 0, "seeds": 0, "speakers": 0}
    empty |= dict.fromkeys(["UAR", "WAR", "UAR by fold", "UAR by seed"], "not run")
    filled = [empty | rows.get(system, {}) | papers.get(system, {}) for system in systems]
    return table.join(pd.DataFrame(filled).fillna(""))


def by_fold(predictions: pd.DataFrame) -> pd.DataFrame:
    """UAR of each system on each fold, mean and deviation over seeds, in percent.

    Parameters
    ----------
    predictions : DataFrame
        As `gmp_utils.evaluation.collect.collect` returns them.

    Returns
    -------
    table : DataFrame
        A row per system ("variant, loss"); a column per fold, "71.0 ± 1.7" or, of one seed, "71.0"; and
        the mean of the folds' means, "UAR".
    """
    scored = points(predictions).assign(system=lambda table: table.variant + ", " + table.loss)
    grouped = scored.groupby(["system", "fold"], sort=False).UAR.agg(["mean", "std"])
    text = grouped["mean"].map("{:.1f}".format)
    spread = grouped["std"].map(lambda value: "" if np.isnan(value) else f" ± {value:.1f}")
    table = (text + spread).unstack("fold", fill_value="not run").add_prefix("fold ")
    average = grouped["mean"].groupby("system", sort=False).mean().map("{:.1f}".format)
    return table.assign(UAR=average).loc[scored.system.unique()].rename_axis(None, axis=1)


def published() -> pd.DataFrame:
    """Published results on IEMOCAP's four emotions, their authors', by other protocols than ours."""
    table = pd.read_csv(ROOT / "workflow" / "published.csv").set_index("system")
    return table.astype(object).fillna("")


def recall_table(predictions: pd.DataFrame, by: str, emotions: list[str]) -> pd.DataFrame:
    """Recall per emotion, for each value of a column, such as "gender".

    Parameters
    ----------
    predictions : DataFrame
    by : str
    emotions : list of str

    Returns
    -------
    table : DataFrame
        A row per value, a column per emotion and one for their mean, 0 to 1.
    """
    rows = {
        value: recalls(group.true, group.predicted, emotions)
        for value, group in predictions.groupby(by)
    }
    table = pd.DataFrame(rows, index=emotions).T
    return table.assign(UAR=table.mean(axis=1))


def describe(run_dir: str) -> str:
    """What a run's or an experiment's numbers rest on, in a few sentences."""
    corpus, told, found = (
        first_corpus(run_dir),
        experiments.read_declaration(run_dir),
        classifiers(run_dir),
    )
    rules: dict[str, list[str]] = {}
    for variant, own in found.groupby("variant", sort=False):
        protocol = corpus_of(own.stage.iloc[0]).protocol
        rules.setdefault(protocol.describe(), []).append(variant)
    protocols = [
        f"Protocol{' of ' + ', '.join(variants) if len(rules) > 1 else ''}: {sentence}"
        for sentence, variants in rules.items()
    ]
    named = [read_json(stage / "params.json").get("encoder") for stage in found.stage]
    encoders = []
    for encoder in dict.fromkeys(filter(None, named)):
        known = weights.pretraining_digests(encoder)
        heard = "recordings that are not known here"
        if known:
            heard = f"{corpus.manifest.digest.isin(known).sum()} of these recordings"
        encoders.append(f"Encoder {encoder}, pre-trained on {heard}. ")
    folds, seeds = (", ".join(map(str, sorted(found[name].unique()))) for name in ("fold", "seed"))
    text = (
        f"Corpus {corpus.name}, {len(corpus.manifest)} utterances, emotions "
        f"{', '.join(corpus.emotions)}. {''.join(encoders)}{' '.join(protocols)} "
        f"Folds run: {folds} of {len(corpus.protocol.folds)}; seeds: {seeds}."
    )
    changes = {
        variant: ", ".join(f"{name} {value}" for name, value in own.items()) or "nothing"
        for variant, own in told["variants"].items()
    }
    if changes:
        text += " Variants change: " + "; ".join(f"{name}: {own}" for name, own in changes.items())
        text += "."
    absent = missing_runs(run_dir)
    return f"{text}\nNOT RUN ({len(absent)}): {'; '.join(absent)}." if absent else text


def confidences(run_dir: str) -> pd.DataFrame:
    """How sure the networks of a run or an experiment were of their test utterances.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        `variant`, `loss`, `fold`, `seed`, `utterance`, `correct`, confidence `as trained` and `calibrated` on
        the fold's validation speakers. Empty where there are no networks, or no validation speakers.
    """
    tables, networks = [], {LOSS_NAMES[loss] for loss in LOSSES}
    for one in classifiers(run_dir).itertuples(index=False):
        predictions = pd.read_parquet(one.stage / "predictions.parquet")
        held_out, tested = (
            predictions[predictions.part == part] for part in ("validation", "test")
        )
        if one.loss not in networks or held_out.empty:
            continue
        emotions = corpus_of(one.stage).emotions
        labels = held_out.true.map(emotions.index).to_numpy()
        scale = temperature(held_out[emotions].to_numpy(dtype=float), labels)
        logits = tested[emotions].to_numpy(dtype=float)
        own = tested[["utterance"]].assign(correct=tested.true == tested.predicted)
        own["as trained"] = softmax(logits, axis=1).max(axis=1)
        own["calibrated"] = softmax(logits / scale, axis=1).max(axis=1)
        keys = {key: getattr(one, key) for key in ("variant", "loss", "fold", "seed")}
        tables.append(own.assign(**keys))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
