"""Experiments: the runs that fill one table, declared in a few lines of YAML.

A variant changes some parameters; every variant is run with every seed, in a folder of its own, and
every fold. `make run` is the case of one run. What runs share is made once, see `gmp_utils.runs`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from gmp_utils import notebook, runs, weights
from gmp_utils.errors import GmpError

CONFIG = runs.ROOT / "workflow" / "config"
FILE = "experiment.json"
TAKEN = ("corpus", "corpus_dir", "test_corpus", "test_corpus_dir", "encoder")
STARTS = {True: "gmps", False: "no-gmps"}


@dataclass(frozen=True)
class Run:
    """A run of the series: one folder, one set of parameters.

    Attributes
    ----------
    folder : str
    parameters : dict
        For the whole series.
    folds : list of int
    starts : list of str
        Of fine-tuning: "gmps", "no-gmps".
    variant : str
    seed : int
    """

    folder: str
    parameters: dict
    folds: list[int]
    starts: list[str]
    variant: str = ""
    seed: int = 0

    def classified(self) -> list[tuple[int, str]]:
        """Each fold, with what notebook 06 leaves of it; twice for two starts."""
        return [
            (fold, f"{self.folder}/fold{fold}/06_finetune/{start}/headline.json")
            for fold in self.folds
            for start in self.starts
        ]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes
    ----------
    folder : str
        Gets the results: of the only run, or of the experiment.
    runs : list of Run
    experiment : dict or None
        What notebook 07 reads of the declaration; None for `make run`.
    """

    folder: str
    runs: list[Run]
    experiment: dict | None


def declared(name: str) -> dict:
    """Read an experiment's declaration.

    Parameters
    ----------
    name : str
        Of a file in workflow/config, or the path of another.

    Returns
    -------
    declaration : dict
        `question`, `variants` (parameters by name), `folds`, `seeds`, and, where they are given,
        `parameters` of all variants, `against` (the variant that the others are compared with,
        without it every two) and `paper` (by variant and loss: UAR and WAR in percent).

    Raises
    ------
    GmpError
        For a name that no file has, or entries that no declaration has.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIG / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIG.glob("*.yaml")))
        raise GmpError(
            f"experiment {name!r}: expected one of {known}, or a file that ends in .yaml."
        )
    optional = {"parameters": {}, "against": None, "paper": {}}
    found = optional | (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    required = ("question", "variants", "folds", "seeds")
    expected = {*required, *optional}
    if set(found) != expected:
        odd = ", ".join(sorted(set(found) ^ expected))
        raise GmpError(
            f"{path.name}: {odd}; expected {', '.join(required)}, and maybe {', '.join(optional)}."
        )
    if found["against"] is not None and found["against"] not in found["variants"]:
        raise GmpError(f"{path.name}: against {found['against']!r} is none of the variants.")
    if len(set(map(slug, found["variants"]))) < len(found["variants"]):
        raise GmpError(
            f"{path.name}: two variants would have the same folder; name them otherwise."
        )
    return found


def one_number(variants: dict[str, dict]) -> bool:
    """Whether variants are steps of a single number, as layers are."""
    changed = {name for own in variants.values() for name in own}
    values = [value for own in variants.values() for value in own.values()]
    numbers = all(type(value) in (int, float) for value in values)
    return len(changed) == 1 and len(values) == len(variants) > 2 and numbers


def slug(name: str) -> str:
    """A name as a folder or a file may have it."""
    return re.sub(r"[^\w.+-]+", "-", name.lower()).strip("-")


def _numbers(environment: Mapping[str, str], name: str, default: list[int]) -> list[int]:
    words = (environment.get(name) or "").split()
    if not all(word.isdigit() for word in words):
        raise GmpError(f"{name}: found {' '.join(words)!r}, expected numbers such as '1 2 3'.")
    return [int(word) for word in words] or default


def plan(environment: Mapping[str, str]) -> Plan:
    """Lay out what the environment asks for.

    Parameters
    ----------
    environment : mapping of str to str
        EXPERIMENT, CORPUS, CORPUS_DIR, TEST_CORPUS, TEST_CORPUS_DIR, ENCODER, FOLDS, SEEDS, GMPS,
        PRESET and RUN, as the Makefile has them. What is named here goes before a variant, that before
        the presets, those before the experiment's own parameters, and those before the notebooks'
        defaults.

    Raises
    ------
    GmpError
        For a value that the Makefile does not have, see also `declared`.
    """
    presets = (environment.get("PRESET") or "").split()
    experiment = environment.get("EXPERIMENT") or ""
    declaration = declared(experiment) if experiment else None
    given = dict(declaration["parameters"]) if declaration else {}
    for preset in presets:
        given |= yaml.safe_load(Path(preset).read_text(encoding="utf-8")) or {}
    asked = {name: environment[name.upper()] for name in TAKEN if environment.get(name.upper())}
    given |= asked
    for name in ("corpus_dir", "test_corpus_dir"):
        if given.get(name):
            given[name] = os.path.abspath(given[name])
    corpora = [given.get("corpus", "synthetic"), given.get("test_corpus")]
    encoder = given.get("encoder", "embedded")
    named = ["-on-".join(filter(None, corpora)), os.path.basename(encoder.rstrip("/"))]
    named += [Path(preset).stem for preset in presets]
    if not declaration:
        name = "demo" if named == ["synthetic", "embedded"] else "-".join(named)
        folder = environment.get("RUN") or f"runs/{name}"
        words = (environment.get("GMPS") or "yes").split()
        if not set(words) <= {"yes", "no"}:
            raise GmpError(f"GMPS: found {' '.join(words)!r}, expected 'yes', 'no' or 'yes no'.")
        starts = [STARTS[word == "yes"] for word in words]
        own = given | {"run_dir": folder}
        return Plan(folder, [Run(folder, own, _numbers(environment, "FOLDS", [1]), starts)], None)
    folder = "-".join([Path(experiment).stem, *named])
    folder = environment.get("RUN") or f"runs/experiments/{folder}"
    folds = _numbers(environment, "FOLDS", declaration["folds"])
    seeds = _numbers(environment, "SEEDS", declaration["seeds"])
    found, impossible = [], {}
    for variant, changes in declaration["variants"].items():
        own = given | changes | asked
        deepest = -1 - weights.n_layers(own.get("encoder", "embedded"))
        if own.get("layer", -1) < deepest:
            impossible[variant] = f"the encoder's layers end with {deepest}"
            continue
        for seed in seeds:
            at = f"{folder}/{slug(variant)}/seed{seed}"
            starts = [STARTS[own.get("use_gmps", True)]]
            found.append(Run(at, own | {"seed": seed, "run_dir": at}, folds, starts, variant, seed))
    members = [
        {"variant": run.variant, "seed": run.seed, "run_dir": run.folder, "starts": run.starts}
        for run in found
    ]
    kept = {name: declaration[name] for name in ("question", "variants", "against", "paper")}
    kept |= {"runs": members, "folds": folds, "impossible": impossible}
    kept["losses"] = given.get("losses", notebook.series_parameters()["06_finetune"]["losses"])
    return Plan(folder, found, kept)


def write(planned: Plan) -> None:
    """Check all parameters, and write them where papermill and notebook 07 read them.

    Raises
    ------
    GmpError
        See `gmp_utils.notebook.check_parameters`.
    """
    for run in planned.runs:
        notebook.write_parameters(run.folder, run.parameters)
    if planned.experiment:
        folder = runs.run_folder(planned.folder)
        notebook.write_parameters(planned.folder, {"run_dir": planned.folder})
        together = runs.run_folder("runs/experiments")
        sharing = together if folder.parent == together else folder
        sharing.joinpath(runs.SHARED).mkdir(exist_ok=True)
        if not (folder / FILE).is_file() or runs.read_json(folder / FILE) != planned.experiment:
            runs.write_json(folder / FILE, planned.experiment)


def told(run_dir: str) -> dict:
    """What `write` kept of an experiment.

    Parameters
    ----------
    run_dir : str
        Of an experiment, or of a plain run, which is told of in the same words.

    Returns
    -------
    told : dict
        `question`, `variants`, `against`, `paper`, `losses` as declared; `runs`, each with its
        `variant`, `seed`, `run_dir` and `starts`; `folds`; `impossible`: variants with the reason. A
        plain run declares no variants, and its folds and losses are those that are there.
    """
    try:
        return runs.read_json(runs.run_folder(run_dir) / FILE)
    except FileNotFoundError:
        plain = {"variants": {}, "folds": [], "losses": [], "impossible": {}}
        only = {"variant": None, "run_dir": run_dir, "starts": list(STARTS.values())}
        return declared("table3") | plain | {"runs": [only]}


def report(run_dir: str) -> str:
    """A run's or an experiment's results as text, and where its figures and executed notebooks are."""
    run = runs.run_folder(run_dir)
    summary = run / "07_results" / "summary.md"
    if not summary.is_file():
        return f"{runs.shown(run)}: no results yet"
    figures = sorted(runs.figures_folder(run_dir).glob("*.html"))
    notebooks = sorted((run / "notebooks").glob("*.ipynb"))
    lines = [
        summary.read_text(encoding="utf-8"),
        "Figures:",
        *map(runs.shown, figures),
        "",
        "Executed notebooks:",
    ]
    return "\n".join([*lines, *map(runs.shown, notebooks)])
