"""Experiments: the runs that fill one table, declared in a few lines of YAML.

A variant changes some parameters; every variant is run with every seed, in a folder of its own, and
every fold. `make run` is the case of one run. What runs share is made once, see `gmp_utils.runs`.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from gmp_utils import notebook, runs, weights
from gmp_utils.errors import GmpError
from gmp_utils.integrity import alone, storage

CONFIG = runs.ROOT / "workflow" / "config"
FILE = "experiment.json"
RECIPES = runs.ROOT / "presets" / "recipes"
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
        For a name that no file has, or entries that no declaration has or that are of another kind.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIG / f"{name}.yaml"
    if not os.path.isfile(path):
        known = ", ".join(sorted(file.stem for file in CONFIG.glob("*.yaml")))
        raise GmpError(
            f"experiment {name!r}: expected one of {known}, or a file that ends in .yaml."
        )
    optional = {"parameters": {}, "against": None, "paper": {}}
    found = optional | _yaml(path)
    required = ("question", "variants", "folds", "seeds")
    expected = {*required, *optional}
    if set(found) != expected:
        odd = ", ".join(sorted(set(found) ^ expected))
        raise GmpError(
            f"{path.name}: {odd}; expected {', '.join(required)}, and maybe {', '.join(optional)}."
        )
    kinds = {"question": str, "variants": dict, "folds": list, "seeds": list, "parameters": dict}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind) or not (found[name] or name == "parameters"):
            raise GmpError(
                f"{path.name}: {name}: found {found[name]!r}, expected a filled {kind.__name__}."
            )
    numbers = [*found["folds"], *found["seeds"]]
    if not all(type(one) is int and one >= 0 for one in numbers):
        raise GmpError(
            f"{path.name}: folds and seeds: found {numbers!r}, expected numbers from 0 on."
        )
    for name, changes in found["variants"].items():
        if not (isinstance(name, str) and slug(name) and isinstance(changes, dict)):
            raise GmpError(
                f"{path.name}: variant {name!r}: found {changes!r}, expected a name (yes, no and numbers "
                "in quotes) and the parameters that it changes, or {}."
            )
    if found["against"] is not None and found["against"] not in found["variants"]:
        raise GmpError(f"{path.name}: against {found['against']!r} is none of the variants.")
    if len(set(map(slug, found["variants"]))) < len(found["variants"]):
        raise GmpError(
            f"{path.name}: two variants would have the same folder; name them otherwise."
        )
    return found


def recipe(name: str) -> dict:
    """The parameters of a system of the family: what it changes of the series.

    Parameters
    ----------
    name : str
        Of a file in presets/recipes.

    Raises
    ------
    GmpError
        For another name.
    """
    path = RECIPES / f"{name}.yaml"
    if not os.path.isfile(path):
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise GmpError(f"recipe {name!r}: expected one of {known}.")
    return _yaml(path)


def _cooked(parameters: dict) -> dict:
    """Parameters with those of the recipe that they name, over which they go."""
    rest = {name: value for name, value in parameters.items() if name != "recipe"}
    return recipe(parameters["recipe"]) | rest if "recipe" in parameters else rest


def one_number(variants: dict[str, dict]) -> bool:
    """Whether variants are steps of a single number, as layers are."""
    changed = {name for own in variants.values() for name in own}
    values = [value for own in variants.values() for value in own.values()]
    numbers = all(type(value) in (int, float) for value in values)
    return len(changed) == 1 and len(values) == len(variants) > 2 and numbers


def slug(name: str) -> str:
    """A name as a folder or a file may have it, in small letters."""
    return _file_name(name.lower())


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def _yaml(path: Path) -> dict:
    """Names and values of a file of ours or the user's."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GmpError(f"{path}: found no YAML that can be read ({error}).") from error
    if not isinstance(found, dict | None):
        raise GmpError(f"{path}: found {found!r:.80}, expected lines of `name: value`.")
    return found or {}


def _presets(given: str) -> list[Path]:
    """The file that PRESET names, or several, between spaces and in a shell's quotes if need be."""
    try:
        paths = [given] if os.path.isfile(given) else shlex.split(given)
    except ValueError as error:
        raise GmpError(f"PRESET: {given!r} has {error}; names with spaces go in quotes.") from error
    absent = [path for path in paths if not os.path.isfile(path)]
    if absent:
        raise GmpError(
            f"PRESET: no file {absent[0]!r}; expected files, and between several a space. Names with "
            """spaces go in quotes: PRESET="'my own.yaml' presets/paper.yaml"."""
        )
    return [Path(path) for path in paths]


def _refuse_odd(environment: Mapping[str, str]) -> None:
    """Refuse what some part of the workflow could not hand on; quotes, spaces and `$` all can."""
    for name in ("RUN", "PRESET", "RECIPE", "EXPERIMENT", *map(str.upper, TAKEN)):
        for one in environment.get(name) or "":
            if unicodedata.category(one) in ("Cc", "Cs"):
                raise GmpError(
                    f"{name}: {environment[name]!r} holds {one!r}, a control character or a byte that is "
                    "no UTF-8; rename the file or the folder."
                )


def _run(folder: str, parameters: dict, *others) -> Run:
    """A run whose paths Snakemake and papermill can have; its parameters were checked."""
    parameters = parameters | {"run_dir": folder}
    for name in ("run_dir", "corpus_dir", "test_corpus_dir", "encoder"):
        if set("{}") & set(parameters.get(name, "")):
            raise GmpError(
                f"{'RUN' if name == 'run_dir' else name}: {parameters[name]!r} holds a brace, which the "
                "workflow would take for a place to fill in; rename the folder."
            )
    return Run(folder, parameters, *others)


def _numbers(environment: Mapping[str, str], name: str, default: list[int]) -> list[int]:
    words = (environment.get(name) or "").split()
    if not all(word.isdecimal() for word in words):
        raise GmpError(f"{name}: found {' '.join(words)!r}, expected numbers such as '1 2 3'.")
    return [int(word) for word in words] or default


def plan(environment: Mapping[str, str]) -> Plan:
    """Lay out what the environment asks for.

    Parameters
    ----------
    environment : mapping of str to str
        EXPERIMENT, CORPUS, CORPUS_DIR, TEST_CORPUS, TEST_CORPUS_DIR, ENCODER, FOLDS, SEEDS, GMPS,
        PRESET, RECIPE and RUN, as the Makefile has them. What is named here goes before a variant, that
        before its recipe, that before the presets, those before the experiment's own parameters, and
        those before the notebooks' defaults.

    Raises
    ------
    GmpError
        For a value that the Makefile does not have, a preset that cannot be read, or a folder's name
        that cannot be used; see also `declared`.
    """
    _refuse_odd(environment)
    presets = _presets(environment.get("PRESET") or "")
    experiment = environment.get("EXPERIMENT") or ""
    declaration = declared(experiment) if experiment else None
    given = _cooked(declaration["parameters"]) if declaration else {}
    for preset in presets:
        given |= _yaml(preset)
    if environment.get("RECIPE"):
        given |= recipe(environment["RECIPE"])
    asked = {name: environment[name.upper()] for name in TAKEN if environment.get(name.upper())}
    given |= asked
    notebook.check_parameters("01_prepare_data", given)
    for name in ("corpus_dir", "test_corpus_dir"):
        if given.get(name):
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    corpora = [given.get("corpus", "synthetic"), given.get("test_corpus")]
    encoder = given.get("encoder", "embedded")
    named = ["-on-".join(filter(None, corpora)), os.path.basename(encoder.rstrip("/"))]
    named += [preset.stem for preset in presets] + [environment.get("RECIPE") or ""]
    named = list(filter(None, named))
    asked_folder = os.path.expanduser(environment.get("RUN") or "")
    if not declaration:
        name = "demo" if named == ["synthetic", "embedded"] else "-".join(named)
        folder = os.path.normpath(asked_folder or f"runs/{_file_name(name)}")
        default = "yes" if given.get("use_gmps", True) else "no"
        words = (environment.get("GMPS") or default).split()
        if not set(words) <= {"yes", "no"}:
            raise GmpError(f"GMPS: found {' '.join(words)!r}, expected 'yes', 'no' or 'yes no'.")
        starts = [STARTS[word == "yes"] for word in words]
        folds = _numbers(environment, "FOLDS", [1])
        return Plan(folder, [_run(folder, given, folds, starts)], None)
    name = "-".join([Path(experiment).stem, *named])
    folder = os.path.normpath(asked_folder or f"runs/experiments/{_file_name(name)}")
    folds = _numbers(environment, "FOLDS", declaration["folds"])
    seeds = _numbers(environment, "SEEDS", declaration["seeds"])
    found, impossible = [], {}
    for variant, changes in declaration["variants"].items():
        own = given | _cooked(changes) | asked
        notebook.check_parameters("01_prepare_data", own)
        deepest = -1 - weights.n_layers(own.get("encoder", "embedded"))
        if own.get("layer", -1) < deepest:
            impossible[variant] = f"the encoder's layers end with {deepest}"
            continue
        for seed in seeds:
            at = f"{folder}/{slug(variant)}/seed{seed}"
            starts = [STARTS[own.get("use_gmps", True)]]
            found.append(_run(at, own | {"seed": seed}, folds, starts, variant, seed))
    defaults = notebook.series_parameters()["06_finetune"]
    members = [
        {
            "variant": run.variant,
            "seed": run.seed,
            "run_dir": run.folder,
            "starts": run.starts,
            "losses": [
                loss
                for name in ("losses", "baselines", "text")
                for loss in run.parameters.get(name, defaults[name])
            ],
        }
        for run in found
    ]
    kept = {name: declaration[name] for name in ("question", "variants", "against", "paper")}
    kept |= {"runs": members, "folds": folds, "impossible": impossible}
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
        named = any(run.parameters.get("show_speakers") for run in planned.runs)
        own = {"run_dir": planned.folder, "show_speakers": named}
        notebook.write_parameters(planned.folder, own)
        together = runs.run_folder("runs/experiments")
        sharing = together if folder.parent == together else folder
        sharing.joinpath(runs.SHARED).mkdir(exist_ok=True)
        if not (folder / FILE).is_file() or runs.read_json(folder / FILE) != planned.experiment:
            runs.write_json(folder / FILE, planned.experiment)


def begin(planned: Plan, looking: bool = False) -> ExitStack:
    """Write parameters, and keep others from the run, or the experiment, until this process ends.

    Parameters
    ----------
    planned : Plan
    looking : bool
        Others are not kept away; nothing is written while another process makes the run.

    Returns
    -------
    held : ExitStack
        Lets go when it is closed.

    Raises
    ------
    GmpError
        If another process makes the run; and as `write`.
    """
    folder, held = runs.run_folder(planned.folder), ExitStack()
    with storage(folder):
        try:
            held.enter_context(alone(folder / ".lock", runs.shown(folder), wait=False))
        except GmpError:
            if looking:
                return held
            raise
        write(planned)
    if looking:
        held.close()
    return held


def told(run_dir: str) -> dict:
    """What `write` kept of an experiment.

    Parameters
    ----------
    run_dir : str
        Of an experiment, or of a plain run, which is told of in the same words.

    Returns
    -------
    told : dict
        `question`, `variants`, `against`, `paper` as declared; `runs`, each with its `variant`, `seed`,
        `run_dir`, `starts` and `losses`; `folds`; `impossible`: variants with the reason. A plain run
        declares no variants, and its folds and losses are those that are there.
    """
    try:
        return runs.read_json(runs.run_folder(run_dir) / FILE)
    except FileNotFoundError:
        plain = {"variants": {}, "folds": [], "impossible": {}}
        only = {"variant": None, "run_dir": run_dir, "starts": list(STARTS.values()), "losses": []}
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
