"""The classifiers of a run or an experiment: predictions, provenance and training costs."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.runs import experiments, paths
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import check_and_identify, lineage

SYSTEM = ["variant", "system"]
CLASSIFIER = [*SYSTEM, "fold", "seed"]
# Variants of a single run by the initial model of fine-tuning.
DEFAULT_VARIANTS = {"retrained": "GMPs", "encoder": "no GMPs", "multitask": "multi-task model"}


def classifiers(run_dir: str) -> pd.DataFrame:
    """The finished classifiers of a run, or those that an experiment declares.

    Columns are variant, system (a value of `experiments.SYSTEM_NAMES`), fold, seed, and the stage of 06.
    """
    declaration, rows = experiments.read_declaration(run_dir), []
    is_single_run = not declaration["variants"]
    for run in declaration["runs"]:
        pattern = f"fold*/{paths.FINETUNE}/*/[!.]*/provenance.json"
        for path in sorted(paths.run_folder(run["run_dir"]).glob(pattern)):
            parameters = read_json(path.with_name("params.json"))
            fold, loss, start = (parameters[name] for name in ("fold", "loss", "finetune_from"))
            if is_single_run or (
                fold in declaration["folds"]
                and start in run["finetune_from"]
                and loss in run["systems"]
            ):
                variant = (
                    _variant(path.parent, start, run["variant"])
                    if is_single_run
                    else run["variant"]
                )
                seed = parameters.get("training", parameters)["seed"]
                rows.append((variant, experiments.SYSTEM_NAMES[loss], fold, seed, path.parent))
    if not rows:
        raise paths.missing_artifact(paths.run_folder(run_dir), paths.FINETUNE)
    return pd.DataFrame(rows, columns=[*CLASSIFIER, "stage"])


def _variant(stage: Path, start: str, recipe: str | None) -> str:
    """A single run's variant: its recipe, or what fine-tuning started from."""
    if recipe:
        own = experiments.recipe(recipe).get("finetune_from", "retrained")
        return recipe if start == own else f"{recipe}, from {start}"
    retrained = stage.parents[2] / paths.RETRAIN
    if start == "retrained" and (retrained / "provenance.json").is_file():
        made = {path.name: path for path in lineage(retrained)}
        labels = made.get(paths.GENERATE_GMPS)
        targets = read_json(labels / "params.json") if labels else {}
        if targets.get("clustered_model") != "multitask" or targets["permuted"]:
            return "retrained, not on GMPs"
    return DEFAULT_VARIANTS[start]


def corpus_of(stage: Path) -> Corpus:
    """The prepared corpus of a classifier's run."""
    return open_corpus(paths.run_and_fold(stage)[0])


def first_corpus(run_dir: str) -> Corpus:
    """The prepared corpus of a run, or of an experiment's first variant."""
    return corpus_of(classifiers(run_dir).stage[0])


def missing_runs(run_dir: str) -> list[str]:
    """Classifiers that an experiment declares but has not trained on all folds and seeds, as text.

    A single run has none.
    """
    declaration = experiments.read_declaration(run_dir)
    finished = set(classifiers(run_dir)[CLASSIFIER].itertuples(index=False, name=None))
    done = {}  # whether each declared training of a classifier is finished
    for run, fold in product(declaration["runs"], declaration["folds"]):
        for system in map(experiments.SYSTEM_NAMES.get, run["systems"]):
            training = (run["variant"], system, fold, run["seed"])
            done.setdefault(f"{run['variant']}, {system}", []).append(training in finished)
    missing = [
        f"{name} ({values.count(False)} of {len(values)} training runs)"
        for name, values in done.items()
        if not all(values)
    ]
    return missing + [f"{name}: {reason}" for name, reason in declaration["impossible"].items()]


def settings_of(stage: Path) -> dict:
    """Parameters that must be the same in all folds, systems and seeds of a classifier's variant."""
    settings = {}
    for path in lineage(stage):
        for name, value in read_json(path / "params.json").items():
            if isinstance(value, dict):
                value = {key: number for key, number in value.items() if key != "seed"}
            if name not in ("fold", "finetune_from", "loss", "seed"):
                settings[f"{name} of {paths.notebook_of(path)}"] = value
    return settings


def gender_uar(stage: Path) -> float:
    """Validation UAR of gender, 0 to 1, of the multi-task model in a stage's lineage; NaN without one."""
    models = [path for path in lineage(stage) if path.name == paths.TRAIN_MULTITASK]
    metrics = read_json(models[0] / "metrics.json") if models else {}
    return metrics.get("gender_uar", np.nan)


def gender_augmented(stage: Path) -> bool | None:
    """Whether pseudo-labels of a multi-task model in a stage's lineage are gender-augmented; None without."""
    made = {path.name: path for path in lineage(stage)}
    if paths.TRAIN_MULTITASK in made and paths.GENERATE_GMPS in made:
        return read_json(made[paths.GENERATE_GMPS] / "metrics.json")["gender_augmented"]
    return None


def collect(run_dir: str) -> pd.DataFrame:
    """Test predictions of every classifier of a run or an experiment.

    Classifiers of a variant may differ only in fold, system and seed, and those of a fold must be tested on
    the same utterances, except in variants with `disjoint_sentences`. Columns are those of
    `write_predictions`, variant, system, fold, seed and `gender_uar`.
    """
    tables, seen = [], {}  # value and classifier of each setting
    variants = experiments.read_declaration(run_dir)["variants"]
    for row in classifiers(run_dir).itertuples(index=False):
        name = paths.display_path(row.stage)
        check_and_identify(row.stage, "params.json", "predictions.parquet")
        table = pd.read_parquet(row.stage / "predictions.parquet").query("part == 'test'")
        variant = row.variant if variants else ""
        settings = {(variant, key): value for key, value in settings_of(row.stage).items()}
        differs = variants.get(row.variant, {}).get("disjoint_sentences")  # fewer test utterances
        settings[variant if differs else "", f"test utterances of fold {row.fold}"] = set(
            table.utterance
        )
        differing = [key for key in settings if key in seen and settings[key] != seen[key][0]]
        if differing:
            found = f"{name} and {seen[differing[0]][1]} differ in "
            found += ", ".join(key for _, key in differing)
            raise GmpError(f"{found}, and cannot be compared; run one again, or remove it.")
        seen |= {key: (value, name) for key, value in settings.items()}
        classifier = {key: getattr(row, key) for key in CLASSIFIER}
        tables.append(table.assign(**classifier, gender_uar=gender_uar(row.stage)))
    return pd.concat(tables, ignore_index=True)


def _cost(row) -> dict:
    """Cost of one of the `classifiers`, over its `lineage`."""
    stages = [read_json(stage / "provenance.json") for stage in lineage(row.stage)]
    parameters, corpus = read_json(row.stage / "params.json"), corpus_of(row.stage)
    seconds = corpus.manifest.duration[corpus.partition(row.fold)["train"]].sum()
    epochs = parameters["training"]["epochs"] if "training" in parameters else np.nan
    partial = parameters.get("frozen_layers") or parameters.get("lora_rank")
    trains_all = parameters.get("train_encoder", False) and not partial
    return {key: getattr(row, key) for key in SYSTEM} | {
        "device": stages[0]["device"],
        "training_seconds": sum(stage["wall_seconds"] for stage in stages),
        "peak_memory_mb": max(stage["peak_memory_mb"] for stage in stages),
        "peak_gpu_memory_mb": max(stage["peak_gpu_memory_mb"] or 0 for stage in stages),
        "parameters": read_json(row.stage / "metrics.json")["parameters"],
        "times_real_time": epochs * seconds / stages[-1]["wall_seconds"],
        "is_plain": len(stages) == 1 and trains_all,
    }


def training_costs(run_dir: str) -> pd.DataFrame:
    """Training cost of each system, mean over folds and seeds.

    `training_seconds` is the sum over all stages; an interrupted stage counts with its last session. Peak
    memory is that of one process up to the end of the stage, and that of the stage on a GPU.
    `times_real_time` is the seconds of audio that fine-tuning processed per second. `relative_seconds` is
    relative to the cheapest system that fine-tunes the whole encoder without other stages, NaN if there is
    none.
    """
    rows = pd.DataFrame(map(_cost, classifiers(run_dir).itertuples(index=False)))
    table = rows.groupby([*SYSTEM, "device"], as_index=False, sort=False).mean()
    plain = table.training_seconds[table.pop("is_plain") == 1].min()
    return table.assign(relative_seconds=table.training_seconds / plain)
