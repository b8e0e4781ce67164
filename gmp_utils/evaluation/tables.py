"""Tables of the results of a run or an experiment."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from gmp_utils import GmpError
from gmp_utils.evaluation import collect, comparison
from gmp_utils.evaluation.collect import CLASSIFIER, SYSTEM, classifiers, corpus_of
from gmp_utils.evaluation.metrics import confidence_bins, macro_f1, reliability, temperature, uar
from gmp_utils.evaluation.readout import number_text
from gmp_utils.models.losses import LOSSES
from gmp_utils.runs import experiments, weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import ROOT

BY = (("UAR", uar, "fold"), ("WAR", accuracy_score, "fold"), ("UAR", uar, "seed"))
PAPER = ("UAR, the paper's on IEMOCAP", "WAR, the paper's on IEMOCAP")
COST_HEADERS = {
    "training_seconds": "training (s)",
    "peak_memory_mb": "peak memory (MB)",
    "peak_gpu_memory_mb": "peak GPU memory (MB)",
    "times_real_time": "fine-tuning (× real time)",
    "relative_seconds": "training (× plain fine-tuning)",
}


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """UAR and WAR of each system in percent, pooled over folds and seeds, with intervals by speaker.

    Columns are variant, system, `UAR`, `UAR low`, `UAR high`, and the same for WAR.
    """
    rows = []
    for system, group in predictions.groupby(SYSTEM, sort=False):
        row = dict(zip(SYSTEM, system))
        intervals = comparison.with_intervals(group)
        for name in ("UAR", "WAR"):
            columns = name, f"{name} low", f"{name} high"
            row |= dict(zip(columns, 100 * np.array(intervals[name])))
        rows.append(row)
    return pd.DataFrame(rows)


def scores_by_fold(predictions: pd.DataFrame) -> pd.DataFrame:
    """UAR, WAR and macro-F1 in percent, a row per variant, system, fold and seed."""
    groups = predictions.groupby(CLASSIFIER, sort=False)
    metrics = {"UAR": uar, "WAR": accuracy_score, "macro-F1": macro_f1}
    scored = {name: comparison.group_scores(groups, metric) for name, metric in metrics.items()}
    return pd.DataFrame(scored).reset_index()


def comparable_pairs(
    systems: Sequence[tuple[str, str]], against: str | None = None
) -> list[tuple[str, str]]:
    """Pairs of (variant, system) that differ in one of the two; variants only with `against`, if it is given.

    Variants without a system in common, such as related methods, are compared by the first system of each.
    """
    by_variant = {name: [pair[1] for pair in systems if pair[0] == name] for name, _ in systems}
    pairs = []
    for first, second in combinations(sorted(systems, key=lambda pair: pair[0] != against), 2):
        same_variant = first[0] == second[0]
        disjoint = set(by_variant[first[0]]).isdisjoint(by_variant[second[0]])
        both_first = all(system == by_variant[variant][0] for variant, system in (first, second))
        comparable = same_variant != (first[1] == second[1]) or (disjoint and both_first)
        if comparable and (same_variant or against in (None, first[0])):
            pairs.append((", ".join(first), ", ".join(second)))
    return pairs


def uar_comparisons(
    predictions: pd.DataFrame, declaration: dict, labels: str = "all labels"
) -> pd.DataFrame:
    """`comparisons` of the UAR of all `comparable_pairs`, pooled over folds as in `scores`.

    Systems with the same correct predictions, such as a probe that two variants share, are not compared.

    The declaration's `primary` outcomes with these `labels` come first, and are True in a column of that
    name. Variants with a `labeled_share` are named "<share>, <line>", and are compared within their share,
    with the line of `against`.
    """
    systems = list(predictions[SYSTEM].drop_duplicates().itertuples(index=False, name=None))
    against, variants = declaration["against"], declaration["variants"]
    names, pairs, shares = set(map(", ".join, systems)), [], {}
    outcomes = declaration.get("primary", {}).get(labels, [])
    primary = [pair for pair in (tuple(x.split(" → ")) for x in outcomes) if names.issuperset(pair)]
    for system in systems:
        share = system[0].split(", ")[0] if "labeled_share" in variants.get(system[0], {}) else ""
        shares.setdefault(share, []).append(system)
    for share, members in shares.items():
        line = (against or "").partition(", ")[2]
        pairs += comparable_pairs(members, f"{share}, {line}" if share and against else against)
    named = predictions.assign(system=predictions.variant + ", " + predictions.system)
    sums = comparison.class_sums(named, ["system", "speaker", "seed"])
    tested = {frozenset(pair) for pair in primary}
    pairs = [pair for pair in pairs if frozenset(pair) not in tested]
    pairs = primary + [pair for pair in pairs if not sums.loc[pair[0]].equals(sums.loc[pair[1]])]
    folds = predictions.groupby("speaker").fold.first()
    table = comparison.comparisons(
        sums, pairs, folds, n_primary=len(primary), n_outcomes=len(outcomes)
    )
    if primary:
        table.insert(1, "primary", table.index < len(primary))
    return table


def readout_comparisons(readouts: pd.DataFrame, declaration: dict) -> pd.DataFrame:
    """`uar_comparisons` of the mean UAR over draws, layers and 1 to 16 labels per emotion.

    Each draw, layer and number of labels has the same test utterances, so the mean of their UAR is the UAR of
    all predictions.
    """
    return uar_comparisons(readouts[np.isfinite(readouts.labels)], declaration, "few labels")


def differences_by(column: str, readouts: pd.DataFrame, declaration: dict) -> pd.DataFrame:
    """Primary outcomes with few labels as in `readout_comparisons`, for each value of a column.

    The column is "labels", "true" (the emotion, so that UAR is its recall) or "gender". Its values are tested
    separately. The table is empty without primary outcomes.
    """
    outcomes = declaration.get("primary", {}).get("few labels", [])
    compared = {name for outcome in outcomes for name in outcome.split(" → ")}
    named, tables = readouts.variant + ", " + readouts.system, []
    shown = named.isin(compared) & ((column == "labels") | np.isfinite(readouts.labels))
    for value, rows in readouts[shown].groupby(column):
        table = uar_comparisons(rows, declaration, "few labels")
        if "primary" in table:  # not if an outcome's systems are not finished
            text = number_text(value) if column == "labels" else value
            table.insert(0, "emotion" if column == "true" else column, text)
            tables.append(table[table.primary])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _mean_and_spread(values: pd.Series) -> str:
    """Mean of values, and their standard deviation if there are several."""
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def results_table(
    predictions: pd.DataFrame, declaration: dict, scored: pd.DataFrame
) -> pd.DataFrame:
    """Declared and finished classifiers as text, next to the paper's numbers where there are any.

    Columns are variant, system, numbers of folds, seeds and speakers, UAR and WAR with the intervals of
    `scores`, macro-F1, all three in percent and pooled over folds and seeds, means and standard deviations of
    UAR and WAR over folds (the paper's quantities), of UAR over seeds, and of the multi-task models' gender
    UAR, and the paper's numbers.
    """
    rows, percent = {}, scored.set_index(SYSTEM)
    for system, group in predictions.groupby(SYSTEM, sort=False):
        row = {f"{name}s": group[name].nunique() for name in ("fold", "seed", "speaker")}
        for name in ("UAR", "WAR"):
            value, low, high = percent.loc[system, [name, f"{name} low", f"{name} high"]]
            row[name] = f"{value:.1f}" if np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"
        row["macro-F1"] = f"{100 * macro_f1(group.true, group.predicted):.1f}"
        for name, metric, by in BY:
            values = comparison.group_scores(group.groupby(by), metric)
            row[f"{name} by {by}"] = _mean_and_spread(values) if len(values) > 1 else "only one"
        gender = 100 * group.drop_duplicates(["fold", "seed"]).gender_uar.dropna()
        if len(gender):
            row["gender UAR, validation"] = _mean_and_spread(gender)
        rows[system] = row
    runs, paper = declaration["runs"], declaration["paper"]
    papers = {
        (variant, system): {name: f"{x:.1f}" for name, x in zip(PAPER, numbers) if x is not None}
        for variant, by_system in paper.items()
        for system, numbers in by_system.items()
    }
    declared = [
        (run["variant"], experiments.SYSTEM_NAMES[name]) for run in runs for name in run["systems"]
    ]
    impossible = [(name, "") for name in declaration["impossible"] if name not in paper]
    systems = dict.fromkeys([*declared, *papers, *rows, *impossible])
    not_run = {"folds": 0, "seeds": 0, "speakers": 0}
    names = ["UAR", "WAR", "macro-F1", *(f"{name} by {by}" for name, _, by in BY)]
    not_run |= dict.fromkeys(names, "not run")
    filled = [not_run | rows.get(system, {}) | papers.get(system, {}) for system in systems]
    return pd.DataFrame(list(systems), columns=SYSTEM).join(pd.DataFrame(filled).fillna(""))


def by_fold(predictions: pd.DataFrame) -> pd.DataFrame:
    """The `scores_by_fold` of each system and fold, mean ± standard deviation over seeds and over folds."""
    scored = scores_by_fold(predictions).melt(CLASSIFIER, var_name="metric")
    scored["system"] = scored.variant + ", " + scored.system
    keys = ["system", "metric"]
    groups = scored.groupby([*keys, "fold"], sort=False).value
    table = groups.agg(_mean_and_spread).unstack("fold", fill_value="not run").add_prefix("fold ")
    average = groups.mean().groupby(keys, sort=False).agg(_mean_and_spread)
    table = table.assign(**{"over folds": average}).rename_axis(None, axis=1)
    return table.loc[list(scored[keys].drop_duplicates().itertuples(index=False, name=None))]


def published() -> pd.DataFrame:
    """Published results on four emotions of IEMOCAP, by their authors' protocols."""
    table = pd.read_csv(ROOT / "workflow" / "published.csv").set_index("system")
    return table.astype(object).fillna("")


def recall_table(predictions: pd.DataFrame, emotions: list[str]) -> pd.DataFrame:
    """Recall of each `group` and emotion, and UAR, in percent, with their intervals `low` to `high`."""
    rows = [
        (group, name, *(100 * np.array(intervals[name])))
        for group, table in predictions.groupby("group")
        for intervals in [comparison.with_intervals(table)]
        for name in [*emotions, "UAR"]
        if name in intervals
    ]
    return pd.DataFrame(rows, columns=["group", "emotion", "recall", "low", "high"])


def group_gaps(predictions: pd.DataFrame) -> pd.DataFrame:
    """The `uar_difference`, in points, between each two values of `group`, by variant and system."""
    rows = [
        (*system, f"{second} − {first}", *(100 * np.array(comparison.uar_difference(table, other))))
        for system, rows in predictions.groupby(SYSTEM, sort=False)
        for (first, other), (second, table) in combinations(rows.groupby("group"), 2)
    ]
    return pd.DataFrame(rows, columns=[*SYSTEM, "groups", "difference", "low", "high"])


def _describe_protocols(finished: pd.DataFrame) -> str:
    """The protocol, or all protocols with their variants."""
    first = finished.drop_duplicates("variant")
    texts = first.stage.map(lambda stage: corpus_of(stage).protocol.describe())
    variants = first.groupby(texts, sort=False).variant.agg(", ".join)
    if len(variants) == 1:
        return f"Protocol: {variants.index[0]}"
    return " ".join(f"Protocol of {names}: {text}" for text, names in variants.items())


def _describe_encoders(finished: pd.DataFrame, manifest: pd.DataFrame) -> str:
    """The encoders, and how many recordings of the corpus they were pre-trained on."""
    stages = {path for stage in finished.stage for path in collect.lineage(stage)}
    encoders = [read_json(stage / "params.json").get("encoder") for stage in sorted(stages)]
    text = ""
    for encoder in dict.fromkeys(filter(None, encoders)):
        folder = None
        with suppress(GmpError):  # a folder that was moved
            folder = weights.cached(encoder)
        digests = {digest for digest, _ in weights.training_recordings(folder)} if folder else set()
        n_known = manifest.digest.isin(digests).sum()
        recordings = f"{n_known} of these recordings" if digests else "recordings not listed here"
        text += f"Encoder {encoder}, pre-trained on {recordings}. "
    return text


def _describe_gender(finished: pd.DataFrame) -> str:
    """Variants whose pseudo-labels are not gender-augmented, and in how many training runs."""
    augmented = finished.assign(augmented=finished.stage.map(collect.gender_augmented))
    trainings = augmented.dropna(subset="augmented").drop_duplicates(["variant", "fold", "seed"])
    groups = (~trainings.augmented.astype(bool)).groupby(trainings.variant, sort=False)
    counts = groups.agg(["sum", "size"]).query("sum > 0")
    texts = [f"{variant} ({n} of {size} training runs)" for variant, n, size in counts.itertuples()]
    return f" Not called gender-augmented (see notebook 04): {', '.join(texts)}." if texts else ""


def describe(run_dir: str) -> str:
    """Corpus, encoder, protocol, folds and variants of a run or an experiment, and what was not run."""
    corpus, finished = collect.first_corpus(run_dir), classifiers(run_dir)
    folds, seeds = (", ".join(map(str, sorted(set(finished[name])))) for name in ("fold", "seed"))
    text = (
        f"Corpus {corpus.name}, {len(corpus.manifest)} utterances, emotions "
        f"{', '.join(corpus.emotions)}. {_describe_encoders(finished, corpus.manifest)}"
        f"{_describe_protocols(finished)} "
        f"Folds run: {folds} of {len(corpus.protocol.folds)}; seeds: {seeds}."
        f"{_describe_gender(finished)}"
    )
    changes = [
        f"{variant}: {', '.join(f'{name} {value}' for name, value in changed.items()) or 'nothing'}"
        for variant, changed in experiments.read_declaration(run_dir)["variants"].items()
    ]
    if changes:
        text += f" Variants change: {'; '.join(changes)}."
    missing = collect.missing_runs(run_dir)
    return f"{text}\nNOT RUN: {'; '.join(missing)}." if missing else text


def confidences(run_dir: str) -> pd.DataFrame:
    """Confidence of each network in its test predictions, and whether they are correct.

    Columns include `uncalibrated` and `calibrated`, by the `temperature` of the fold's validation speakers,
    and their number `validation_speakers`. The table is empty without networks or validation speakers.
    """
    tables, networks = [], {experiments.SYSTEM_NAMES[loss] for loss in LOSSES}
    for row in classifiers(run_dir).itertuples(index=False):
        table = pd.read_parquet(row.stage / "predictions.parquet")
        validation, test = (table[table.part == part] for part in ("validation", "test"))
        if row.system not in networks or validation.empty:
            continue
        emotions = corpus_of(row.stage).emotions
        labels = validation.true.map(emotions.index).to_numpy()
        scale = temperature(validation[emotions].to_numpy(float), labels, validation.speaker)
        logits = test[emotions].to_numpy(dtype=float)
        table = test[["utterance", "speaker"]].assign(correct=test.true == test.predicted)
        table["validation_speakers"] = validation.speaker.nunique()
        table["uncalibrated"] = softmax(logits, axis=1).max(axis=1)
        table["calibrated"] = softmax(logits / scale, axis=1).max(axis=1)
        tables.append(table.assign(**{key: getattr(row, key) for key in CLASSIFIER}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def calibration(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """`reliability` of a column of `confidences`, with accuracy's interval `low` to `high` over speakers."""
    bins = confidence_bins(table[column]).rename("bin")
    sums = table.assign(n=1).groupby([bins, "speaker"])[["correct", "n"]].sum()
    pairs = (rows.to_numpy()[..., None] for _, rows in sums.groupby("bin"))
    ends = pd.DataFrame(map(comparison.jackknife_interval, pairs), columns=["low", "high"])
    return reliability(table[column], table.correct).join(ends)
