"""The classifiers of a run or an experiment: what they predicted, what they rest on and what they cost."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.runs import experiments
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import (
    PREPARE_DATA,
    display_path,
    missing_artifact,
    notebook_of,
    run_folder,
)
from gmp_utils.runs.stage import check_and_identify

LOSS_NAMES = {
    "ce": "CE",
    "ams": "AMS",
    "ce-then-ams": "CE then AMS",
    "egemaps": "SVM on eGeMAPS",
    "majority": "majority",
    "text": "text alone",
    "late-fusion": "with text, late",
    "embedding-fusion": "with text, embeddings",
}
SYSTEM = ["variant", "loss"]
PLAIN = {True: "GMPs", False: "no GMPs"}  # variants of a plain run


def predictions_table(
    manifest: pd.DataFrame, utterances: list[str], scores: np.ndarray, emotions: list[str]
) -> pd.DataFrame:
    """Scores as the table that every classifier leaves.

    Parameters
    ----------
    manifest : DataFrame
        Indexed by utterance.
    utterances : list of str
    scores : (n_utterances, n_classes) float
        The greatest wins.
    emotions : list of str
        Names of the classes.

    Returns
    -------
    predictions : DataFrame
        utterance, speaker, gender, true, predicted, and a column of scores per emotion.
    """
    rows = manifest.loc[utterances, ["utterance", "speaker", "gender"]].reset_index(drop=True)
    rows["true"] = manifest.loc[utterances, "emotion"].to_numpy()
    rows["predicted"] = np.array(emotions)[scores.argmax(axis=1)]
    return pd.concat([rows, pd.DataFrame(scores, columns=emotions)], axis=1)


def write_predictions(
    folder: Path,
    manifest: pd.DataFrame,
    parts: dict[str, list[str]],
    scores: dict[str, np.ndarray],
    emotions: list[str],
) -> None:
    """Keep the predictions of those parts of a fold that have scores in `folder/predictions.parquet`."""
    tables = [
        predictions_table(manifest, parts[part], own, emotions).assign(part=part)
        for part, own in scores.items()
    ]
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)


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
    told, rows = experiments.read_declaration(run_dir), []
    for run in told["runs"]:
        folder = run_folder(run["run_dir"])
        for finished in sorted(folder.glob("fold*/06_finetune/*/[!.]*/provenance.json")):
            parameters = read_json(finished.with_name("params.json"))
            fold, loss = parameters["fold"], parameters["loss"]
            if finished.parents[1].name not in run["starts"]:
                continue
            if not told["variants"] or (fold in told["folds"] and loss in run["losses"]):
                variant = run["variant"] or PLAIN[parameters["use_gmps"]]
                seed = parameters.get("schedule", parameters)["seed"]
                rows.append((variant, LOSS_NAMES[loss], fold, seed, finished.parent))
    if not rows:
        raise missing_artifact(run_folder(run_dir), "06_finetune")
    return pd.DataFrame(rows, columns=[*SYSTEM, "fold", "seed", "stage"])


def corpus_of(stage: Path) -> Corpus:
    """The prepared corpus of a classifier's run."""
    return open_corpus(str(stage.parents[3]))


def missing_runs(run_dir: str) -> list[str]:
    """What an experiment declares and does not have, a line each; nothing for a plain run."""
    told = experiments.read_declaration(run_dir)
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
    upstream = read_json(stage / "provenance.json")["stages"]
    sources = [Path(os.path.normpath(stage / source)) for source in upstream]
    found = [one for source in sources if source.name != PREPARE_DATA for one in lineage(source)]
    return [*dict.fromkeys(found), stage]


def settings_of(stage: Path) -> dict:
    """What a classifier was made with: what may not differ between folds, losses and seeds."""
    settings = {}
    for made in lineage(stage):
        for name, value in read_json(made / "params.json").items():
            if isinstance(value, dict):
                value = {key: one for key, one in value.items() if key != "seed"}
            if name not in ("fold", "use_gmps", "loss", "seed"):
                settings[f"{name} of {notebook_of(made)}"] = value
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
    variants = experiments.read_declaration(run_dir)["variants"]
    for one in classifiers(run_dir).itertuples(index=False):
        name = display_path(one.stage)
        check_and_identify(one.stage, "params.json", "predictions.parquet")
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


def training_costs(run_dir: str) -> pd.DataFrame:
    """What each system took to train: all stages of its own, mean over folds and seeds.

    Stages that were stopped and went on count the last session only.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        variant, loss, `seconds`, `peak MB` and `peak GPU MB` of memory, `device`, `audio s per s` of
        fine-tuning (seconds of training audio, as often as it was heard, per second), the `parameters`
        that it trained, and `times` the seconds of plain fine-tuning (of the cheapest system that starts
        from the encoder and trains it; NaN without one).
    """
    rows = []
    for one in classifiers(run_dir).itertuples(index=False):
        made = [read_json(stage / "provenance.json") for stage in lineage(one.stage)]
        corpus = corpus_of(one.stage)
        seconds = corpus.manifest.duration[corpus.partition(one.fold)["train"]].sum()
        given = read_json(one.stage / "params.json")
        passes = given["schedule"]["epochs"] if "schedule" in given else np.nan
        rows.append(
            {
                **{key: getattr(one, key) for key in SYSTEM},
                "seconds": sum(stage["wall_seconds"] for stage in made),
                "peak MB": max(stage["peak_memory_mb"] for stage in made),
                "peak GPU MB": max(stage["peak_gpu_memory_mb"] or 0 for stage in made),
                "device": made[0]["device"],
                "parameters": read_json(one.stage / "metrics.json")["parameters"],
                "audio s per s": passes * seconds / made[-1]["wall_seconds"],
                "stages": len(made),
                "trained": given.get("train_encoder", False),
            }
        )
    table = pd.DataFrame(rows).groupby([*SYSTEM, "device"], as_index=False, sort=False).mean()
    plain = table.seconds[(table.pop("stages") == 1) & (table.pop("trained") == 1)].min()
    return table.assign(times=table.seconds / plain)
