"""Stage 07: the tables of a run's or an experiment's results, what they rest on and what they cost."""

import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import experiments, finetuning, runs, weights
from gmp_utils.comparison import comparisons, with_interval
from gmp_utils.errors import GmpError
from gmp_utils.evaluation import LOSS_NAMES, recalls, uar, war
from gmp_utils.preparation import STAGE as PREPARED
from gmp_utils.preparation import Corpus, open_corpus

STAGE = "07_results"
SYSTEM = ["variant", "loss"]
PAPER = ("UAR, the paper's on IEMOCAP", "WAR, the paper's on IEMOCAP")
PLAIN = {True: "GMPs", False: "no GMPs"}  # variants of a plain run


def classifiers(run_dir: str) -> pd.DataFrame:
    """The finished classifiers of a run, or those of an experiment's runs that it declares.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    found : DataFrame
        `variant`, `loss` (a value of `LOSS_NAMES`), `fold`, `seed`, and the `stage` of notebook 06.

    Raises
    ------
    GmpError
        If there is none.
    """
    told, rows = experiments.told(run_dir), []
    for run in told["runs"]:
        folder = runs.run_folder(run["run_dir"])
        for finished in sorted(folder.glob("fold*/06_finetune/*/[!.]*/provenance.json")):
            parameters = runs.read_json(finished.with_name("params.json"))
            fold, loss = parameters["fold"], parameters["loss"]
            if finished.parents[1].name not in run["starts"]:
                continue
            if not told["variants"] or (fold in told["folds"] and loss in told["losses"]):
                variant = run["variant"] or PLAIN[parameters["use_gmps"]]
                seed = parameters["schedule"]["seed"]
                rows.append((variant, LOSS_NAMES[loss], fold, seed, finished.parent))
    if not rows:
        raise runs.missing(runs.run_folder(run_dir), "06_finetune")
    return pd.DataFrame(rows, columns=[*SYSTEM, "fold", "seed", "stage"])


def _corpus(stage: Path) -> Corpus:
    """The prepared corpus of a classifier's run."""
    return open_corpus(str(stage.parents[3]))


def missing(run_dir: str) -> list[str]:
    """What an experiment declares and does not have, a line each; nothing for a plain run."""
    told = experiments.told(run_dir)
    there = set(classifiers(run_dir)[[*SYSTEM, "fold", "seed"]].itertuples(index=False, name=None))
    losses = [LOSS_NAMES[loss] for loss in told["losses"]]
    absent = [
        f"{run['variant']}, {loss}, fold {fold}, seed {run['seed']}"
        for run, fold, loss in product(told["runs"], told["folds"], losses)
        if (run["variant"], loss, fold, run["seed"]) not in there
    ]
    return absent + [f"{variant}: {why}" for variant, why in told["impossible"].items()]


def lineage(stage: Path) -> list[Path]:
    """A stage and, before it, all stages that it was made from, prepared data aside."""
    upstream = runs.read_json(stage / "provenance.json")["stages"]
    sources = [Path(os.path.normpath(stage / source)) for source in upstream]
    found = [one for source in sources if source.name != PREPARED for one in lineage(source)]
    return [*dict.fromkeys(found), stage]


def _settings(stage: Path) -> dict:
    """What a classifier was made with: what may not differ between folds, losses and seeds."""
    settings = {}
    for made in lineage(stage):
        for name, value in runs.read_json(made / "params.json").items():
            if isinstance(value, dict):
                value = {key: one for key, one in value.items() if key != "seed"}
            if name not in ("fold", "use_gmps", "loss", "seed"):
                settings[f"{name} of {runs.notebook_of(made)}"] = value
    return settings


def _refuse_differing(name: str, settings: dict, seen: dict) -> None:
    """Compare with what was `seen` (values and whose they were), and add to it."""
    differing = [key for key in settings if key in seen and settings[key] != seen[key][0]]
    if differing:
        raise GmpError(
            f"{name} and {seen[differing[0]][1]} differ in {', '.join(differing)} and cannot be compared; "
            "run one of them again, or remove it."
        )
    seen.update({key: (value, name) for key, value in settings.items()})


def collect(run_dir: str) -> pd.DataFrame:
    """Test predictions of every classifier of a run or an experiment.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    predictions : DataFrame
        As `predictions_table`, with `variant`, `loss`, `fold` and `seed`.

    Raises
    ------
    GmpError
        If there is no classifier yet, if those of a variant differ in more than fold, loss and seed,
        or if classifiers of a fold were tested on different utterances: such numbers are not to be
        pooled or compared.
    """
    tables, seen, tested_on = [], {}, {}
    variants = experiments.told(run_dir)["variants"]
    for one in classifiers(run_dir).itertuples(index=False):
        name = runs.shown(one.stage)
        runs.identity(one.stage, "params.json", "predictions.parquet")
        group = seen.setdefault(one.variant if variants else "", {})
        _refuse_differing(name, _settings(one.stage), group)
        table = pd.read_parquet(one.stage / "predictions.parquet")
        tested = table[table.part == "test"]
        utterances = {f"test utterances of fold {one.fold}": set(tested.utterance)}
        _refuse_differing(name, utterances, tested_on)
        own = {key: getattr(one, key) for key in (*SYSTEM, "fold", "seed")}
        tables.append(tested.assign(**own))
    return pd.concat(tables, ignore_index=True)


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
        for fewer than `gmp_utils.comparison.MIN_SPEAKERS` speakers.
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
        See `gmp_utils.experiments.told`.
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
        (variant, loss): dict(zip(PAPER, (f"{number:.1f}" for number in numbers)))
        for variant, losses in told["paper"].items()
        for loss, numbers in losses.items()
    }
    declared = product(told["variants"], (LOSS_NAMES[loss] for loss in told["losses"]))
    systems = dict.fromkeys([*declared, *papers, *rows])
    table = pd.DataFrame([dict(zip(SYSTEM, system)) for system in systems])
    empty = {"folds": 0, "seeds": 0, "speakers": 0}
    empty |= dict.fromkeys(["UAR", "WAR", "UAR by fold", "UAR by seed"], "not run")
    filled = [empty | rows.get(system, {}) | papers.get(system, {}) for system in systems]
    return table.join(pd.DataFrame(filled).fillna(""))


def costs(run_dir: str) -> pd.DataFrame:
    """What each system took to train: all stages of its own, mean over folds and seeds.

    Stages that were stopped and went on count the last session only.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        variant, loss, `seconds`, `peak MB` and `peak GPU MB` of memory, `device`, `audio s per s` of
        fine-tuning (seconds of training audio, as often as it was heard, per second), and `times` the
        seconds of plain fine-tuning (of the cheapest system that starts from the encoder; NaN without
        one).
    """
    rows = []
    for one in classifiers(run_dir).itertuples(index=False):
        made = [runs.read_json(stage / "provenance.json") for stage in lineage(one.stage)]
        corpus = _corpus(one.stage)
        seconds = corpus.manifest.duration[corpus.split(one.fold)["train"]].sum()
        passes = runs.read_json(one.stage / "params.json")["schedule"]["epochs"]
        rows.append(
            {
                **{key: getattr(one, key) for key in SYSTEM},
                "seconds": sum(stage["wall_seconds"] for stage in made),
                "peak MB": max(stage["peak_memory_mb"] for stage in made),
                "peak GPU MB": max(stage["peak_gpu_memory_mb"] or 0 for stage in made),
                "device": made[0]["device"],
                "audio s per s": passes * seconds / made[-1]["wall_seconds"],
                "stages": len(made),
            }
        )
    table = pd.DataFrame(rows).groupby([*SYSTEM, "device"], as_index=False, sort=False).mean()
    plain = table.seconds[table.pop("stages") == 1].min()
    return table.assign(times=table.seconds / plain)


def inference_speed(stage: Path, fold: int) -> float:
    """Seconds of audio that a classifier hears per second, from waveforms to scores, on this machine.

    Parameters
    ----------
    stage : Path
        Of notebook 06; its test utterances are classified, a first few unmeasured.
    fold : int
    """
    corpus = _corpus(stage)
    runs.identity(stage)
    model = finetuning.EmotionClassifier.load(str(stage / "model"))
    tested = corpus.split(fold)["test"]
    finetuning.apply(model, corpus, corpus.waveforms, tested[:2])
    began = time.monotonic()
    finetuning.apply(model, corpus, corpus.waveforms, tested)
    return float(corpus.manifest.duration[tested].sum() / (time.monotonic() - began))


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


def first_corpus(run_dir: str) -> Corpus:
    """The prepared corpus of a run, or of an experiment's first variant."""
    return _corpus(classifiers(run_dir).stage[0])


def describe(run_dir: str) -> str:
    """What a run's or an experiment's numbers rest on, in a few sentences."""
    corpus, told, found = first_corpus(run_dir), experiments.told(run_dir), classifiers(run_dir)
    rules: dict[str, list[str]] = {}
    for variant, own in found.groupby("variant", sort=False):
        protocol = _corpus(own.stage.iloc[0]).protocol
        rules.setdefault(protocol.describe(), []).append(variant)
    protocols = [
        f"Protocol{' of ' + ', '.join(variants) if len(rules) > 1 else ''}: {sentence}"
        for sentence, variants in rules.items()
    ]
    parameters = runs.read_json(found.stage[0] / "params.json")
    known = weights.heard(parameters["encoder"])
    heard = "pre-trained on recordings that are not known here"
    if known:
        heard = f"pre-trained on {corpus.manifest.digest.isin(known).sum()} of these recordings"
    folds, seeds = (", ".join(map(str, sorted(found[name].unique()))) for name in ("fold", "seed"))
    text = (
        f"Corpus {corpus.name}, {len(corpus.manifest)} utterances, emotions "
        f"{', '.join(corpus.emotions)}. Encoder {parameters['encoder']}, {heard}. "
        f"{' '.join(protocols)} Folds run: {folds} of {len(corpus.protocol.folds)}; seeds: {seeds}."
    )
    changes = {
        variant: ", ".join(f"{name} {value}" for name, value in own.items()) or "nothing"
        for variant, own in told["variants"].items()
    }
    if changes:
        text += " Variants change: " + "; ".join(f"{name}: {own}" for name, own in changes.items())
        text += "."
    absent = missing(run_dir)
    return f"{text}\nNOT RUN ({len(absent)}): {'; '.join(absent)}." if absent else text


def write_results(
    run_dir: str, predictions: pd.DataFrame, table: pd.DataFrame, seed: int = 0
) -> Path:
    """Keep the results as a stage.

    Parameters
    ----------
    run_dir : str
    predictions : DataFrame
        As `collect` returns them.
    table : DataFrame
        Of them, see `results_table`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    stage : Path
        With predictions.parquet, table as csv, md, tex and html, comparisons.csv (of UAR), costs.csv
        and summary.md.
    """
    told = experiments.told(run_dir)

    def build(folder: Path) -> None:
        compared = comparisons(predictions, uar, told["against"])
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        table.to_csv(folder / "table.csv", index=False)
        markdown = table.to_markdown(index=False, disable_numparse=True)
        (folder / "table.md").write_text(markdown, encoding="utf-8")
        table.to_latex(folder / "table.tex", index=False, escape=True)
        table.to_html(folder / "table.html", index=False)
        compared.to_csv(folder / "comparisons.csv", index=False)
        costs(run_dir).to_csv(folder / "costs.csv", index=False)
        findings = [f"- {row.compared}: {row.finding}" for row in compared.itertuples()]
        text = [describe(run_dir), "", markdown, ""]
        (folder / "summary.md").write_text("\n".join([*text, *findings, ""]), encoding="utf-8")

    return runs.make_stage(
        runs.run_folder(run_dir) / STAGE,
        build,
        parameters={"seed": seed, "told": told},
        stages=list(classifiers(run_dir).stage),
        module=__name__,
        protocol=first_corpus(run_dir).protocol.to_dict(),
    )
