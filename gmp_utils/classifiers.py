"""The classifiers of a run or an experiment: which there are, what they rest on, what they predicted."""

import os
from itertools import product
from pathlib import Path

import pandas as pd

from gmp_utils import experiments, runs
from gmp_utils.errors import GmpError
from gmp_utils.evaluation import LOSS_NAMES
from gmp_utils.preparation import STAGE as PREPARED
from gmp_utils.preparation import Corpus, open_corpus

SYSTEM = ["variant", "loss"]
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
            if not told["variants"] or (fold in told["folds"] and loss in run["losses"]):
                variant = run["variant"] or PLAIN[parameters["use_gmps"]]
                seed = parameters.get("schedule", parameters)["seed"]
                rows.append((variant, LOSS_NAMES[loss], fold, seed, finished.parent))
    if not rows:
        raise runs.missing(runs.run_folder(run_dir), "06_finetune")
    return pd.DataFrame(rows, columns=[*SYSTEM, "fold", "seed", "stage"])


def corpus_of(stage: Path) -> Corpus:
    """The prepared corpus of a classifier's run."""
    return open_corpus(str(stage.parents[3]))


def missing(run_dir: str) -> list[str]:
    """What an experiment declares and does not have, a line each; nothing for a plain run."""
    told = experiments.told(run_dir)
    there = set(classifiers(run_dir)[[*SYSTEM, "fold", "seed"]].itertuples(index=False, name=None))
    absent = [
        f"{run['variant']}, {loss}, fold {fold}, seed {run['seed']}"
        for run, fold in product(told["runs"], told["folds"])
        for loss in map(LOSS_NAMES.get, run["losses"])
        if (run["variant"], loss, fold, run["seed"]) not in there
    ]
    return absent + [f"{variant}: {why}" for variant, why in told["impossible"].items()]


def lineage(stage: Path) -> list[Path]:
    """A stage and, before it, all stages that it was made from, prepared data aside."""
    upstream = runs.read_json(stage / "provenance.json")["stages"]
    sources = [Path(os.path.normpath(stage / source)) for source in upstream]
    found = [one for source in sources if source.name != PREPARED for one in lineage(source)]
    return [*dict.fromkeys(found), stage]


def settings_of(stage: Path) -> dict:
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
        _refuse_differing(name, settings_of(one.stage), group)
        table = pd.read_parquet(one.stage / "predictions.parquet")
        tested = table[table.part == "test"]
        utterances = {f"test utterances of fold {one.fold}": set(tested.utterance)}
        _refuse_differing(name, utterances, tested_on)
        own = {key: getattr(one, key) for key in (*SYSTEM, "fold", "seed")}
        tables.append(tested.assign(**own))
    return pd.concat(tables, ignore_index=True)


def first_corpus(run_dir: str) -> Corpus:
    """The prepared corpus of a run, or of an experiment's first variant."""
    return corpus_of(classifiers(run_dir).stage[0])
