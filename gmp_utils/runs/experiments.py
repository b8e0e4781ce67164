"""Experiments: the runs that fill one table, declared in a few lines of YAML.

A variant changes some parameters. Each variant and seed is a run in its own folder, on every fold.
`python -m gmp_utils run` makes a single run. Runs share equal stages, see `gmp_utils.runs.stage`.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import yaml

from gmp_utils import GmpError
from gmp_utils.runs import notebook, paths, weights
from gmp_utils.runs.files import exclusive_lock, read_json, write_json
from gmp_utils.runs.paths import INITIALIZATIONS, ROOT, display_path, run_folder
from gmp_utils.runs.stage import CACHE

OPENSMILE = (
    "eGeMAPS needs openSMILE, whose licence allows research and private use only: run "
    "`.venv/bin/python -m pip install opensmile`, or leave egemaps out of baselines."
)
CONFIG = ROOT / "workflow" / "config"
RECIPES = ROOT / "presets" / "recipes"
FILE = "experiment.json"
PERSONAL = "papt"  # the recipe that ends with notebook 08


@dataclass(frozen=True)
class Declaration:
    """An experiment as a file in workflow/config declares it.

    `parameters` apply to all variants. `against` names the variant that the others are compared with;
    None compares all pairs. `paper` has published UAR and WAR in percent, by variant and system.
    """

    question: str
    variants: dict[str, dict]
    folds: list[int]
    seeds: list[int]
    parameters: dict = field(default_factory=dict)
    against: str | None = None
    paper: dict = field(default_factory=dict)

    def __post_init__(self):
        for name, values in (("folds", self.folds), ("seeds", self.seeds)):
            if not (isinstance(values, list) and values and {*map(type, values)} == {int}):
                raise ValueError(f"{name}: found {values!r}, expected a list of numbers")
        for name, changes in self.variants.items():
            if not (isinstance(name, str) and isinstance(changes, dict)):
                expected = "a name (yes, no and numbers in quotes) and its parameters, or {}"
                raise ValueError(f"variant {name!r}: found {changes!r}, expected {expected}")
        if self.against not in {None, *self.variants}:
            raise ValueError(f"against {self.against!r} is none of the variants")
        if not 0 < len(self.variants) == len(set(map(slug, self.variants))):
            raise ValueError(f"variants: found {[*self.variants]}, expected different folder names")


def declared(name: str) -> Declaration:
    """Read an experiment's declaration, by its name in workflow/config or the path of a YAML file."""
    path = Path(name) if name.endswith(".yaml") else _find("experiment", name, CONFIG)
    values = read_yaml(path)
    try:
        return Declaration(**values)
    except (TypeError, ValueError, AttributeError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(Declaration))
        raise GmpError(f"{path.name}: {error}; a declaration has {names}.") from error


def recipe(name: str) -> dict:
    """Parameters that a system changes, from presets/recipes."""
    return read_yaml(_find("recipe", name, RECIPES))


def _find(kind: str, name: str, folder: Path) -> Path:
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in names:
        raise GmpError(f"{kind} {name!r}: expected one of {', '.join(names)}.")
    return folder / f"{name}.yaml"


def apply_recipe(parameters: dict) -> dict:
    """Replace the parameter `recipe` by the recipe's parameters, which the other ones override."""
    rest = {name: value for name, value in parameters.items() if name != "recipe"}
    return recipe(parameters["recipe"]) | rest if "recipe" in parameters else rest


def is_sweep(variants: dict[str, dict]) -> bool:
    """Whether variants differ in the value of one number, as layers do."""
    changes = [change for variant in variants.values() for change in variant.items()]
    are_numbers = all(type(value) in (int, float) for _, value in changes)
    return len(dict(changes)) == 1 and len(changes) == len(variants) > 2 and are_numbers


def slug(name: str) -> str:
    """A name in lower case, without characters that are awkward in folder names."""
    return re.sub(r"[^\w.+-]+", "-", name.lower()).strip("-")


def read_yaml(path: Path) -> dict:
    """Names and values of a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GmpError(f"{path}: not a YAML file that can be read ({error}).") from error
    if not isinstance(values, dict | None):
        raise GmpError(f"{path}: found {values!r:.80}, expected lines of `name: value`.")
    return values or {}


@dataclass(frozen=True)
class Settings:
    """Options of the command line; empty ones come from presets, declaration and notebooks."""

    experiment: str | None = None
    corpus: str = ""
    corpus_dir: str = ""
    test_corpus: str = ""
    test_corpus_dir: str = ""
    encoder: str = ""
    folds: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    gmps: list[str] = field(default_factory=list)
    preset: list[str] = field(default_factory=list)
    recipe: str = ""
    run_dir: str = ""

    def __post_init__(self):
        if self.recipe and self.experiment is not None:
            raise GmpError(f"recipe {self.recipe!r} with an experiment: its variants have recipes.")

    def overrides(self) -> dict[str, str]:
        """Parameters that override all others, with absolute folders."""
        names = ("corpus", "corpus_dir", "test_corpus", "test_corpus_dir", "encoder")
        values = {name: getattr(self, name) for name in names if getattr(self, name)}
        return _with_absolute_folders(values)

    def preset_files(self) -> list[str]:
        """The preset files; a value that is no file is a list separated by spaces."""
        values = [[value] if os.path.isfile(value) else value.split() for value in self.preset]
        return sum(values, [])


def _with_absolute_folders(parameters: dict) -> dict:
    folders = {
        name: os.path.abspath(os.path.expanduser(parameters[name]))
        for name in ("corpus_dir", "test_corpus_dir")
        if parameters.get(name)
    }
    return parameters | folders


@dataclass(frozen=True)
class Run:
    """A run of the series; a `personal` one ends with notebook 08 instead of 06 and 07."""

    folder: str
    parameters: dict
    folds: list[int]
    initializations: list[str]  # of fine-tuning: gmps, no-gmps
    variant: str = ""
    seed: int = 0
    personal: bool = False

    def outputs(self) -> list[tuple[int, str]]:
        """Folds, with the last file of notebook 06 (one per initialization) or 08."""
        stages = [f"{paths.FOLD}{paths.FINETUNE}/{name}" for name in self.initializations]
        stages = [f"{paths.PERSONALIZE}/results"] if self.personal else stages
        return [
            (fold, f"{self.folder}/{stage.format(fold=fold)}/headline.json")
            for fold in self.folds
            for stage in stages
        ]


@dataclass(frozen=True)
class Plan:
    """A run, or the runs of an experiment, whose results go into `folder`.

    `defaults` are the notebooks' parameters, `experiment` the declaration for notebook 07.
    """

    folder: str
    runs: list[Run]
    defaults: dict[str, dict]
    experiment: dict | None = None

    @classmethod
    def load(cls, values: dict) -> "Plan":
        """Create a plan from the values that `command` saved."""
        runs = [Run(**run) for run in values["runs"]]
        return cls(values["folder"], runs, values["defaults"], values["experiment"])

    def command(self, path: Path, *options: str) -> list[str]:
        """Save the plan; returns the command that runs it, to be called in the checkout."""
        write_json(path, dataclasses.asdict(self))
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
        return [*snakemake, "--configfile", str(path), *options]


def lay_out(settings: Settings) -> Plan:
    """Lay out what the settings ask for, and check all parameters.

    Precedence, highest first: corpora and encoder of the settings, the variant, its recipe or that of the
    settings, presets, the experiment, the notebooks' defaults.
    """
    if settings.experiment is not None:
        return lay_out_experiment(settings, declared(settings.experiment))
    return lay_out_run(settings)


def lay_out_run(settings: Settings) -> Plan:
    """Lay out a single run."""
    parameters = _parameters(settings, {})
    parts = _name_parts(settings, parameters)
    name = "demo" if parts == ["synthetic", "embedded"] else "-".join(parts)
    folder = _folder(settings, f"runs/{slug(name)}")
    words = settings.gmps or ["yes" if parameters.get("use_gmps", True) else "no"]
    folds, personal = settings.folds or [1], settings.recipe == PERSONAL
    if _lacks_opensmile(parameters):
        raise GmpError(OPENSMILE)
    parameters |= {"run_dir": folder} | ({"folds": folds} if personal else {})
    initializations = [INITIALIZATIONS[word == "yes"] for word in words]
    run = Run(folder, parameters, folds, initializations, settings.recipe, personal=personal)
    return Plan(folder, [run], notebook.series_parameters())


def lay_out_experiment(settings: Settings, declaration: Declaration) -> Plan:
    """Lay out a run for each variant and seed, or record why a variant cannot be run."""
    parameters = _parameters(settings, declaration.parameters)
    name = "-".join([Path(settings.experiment).stem, *_name_parts(settings, parameters)])
    folder = _folder(settings, f"runs/experiments/{slug(name)}")
    folds = settings.folds or declaration.folds
    personal, runs, impossible = _is_personal(declaration), [], {}
    for variant, changes in declaration.variants.items():
        changed = parameters | apply_recipe(changes) | settings.overrides()
        notebook.check_parameters("01_prepare_data", changed)
        if reason := _why_impossible(changed):
            impossible[variant] = reason
            continue
        initializations = [INITIALIZATIONS[changed.get("use_gmps", True)]]
        for seed in settings.seeds or declaration.seeds:
            run_dir = f"{folder}/{slug(variant)}/seed{seed}"
            values = changed | {"run_dir": run_dir, "seed": seed}
            values |= {"folds": folds} if personal else {}
            runs.append(Run(run_dir, values, folds, initializations, variant, seed, personal))
    defaults = notebook.series_parameters()
    members = [_member(run, defaults["06_finetune"]) for run in runs]
    experiment = {"runs": members, "folds": folds, "impossible": impossible}
    for name in ("question", "variants", "against", "paper"):
        experiment[name] = vars(declaration)[name]
    return Plan(folder, runs, defaults, experiment)


def _parameters(settings: Settings, declared_parameters: dict) -> dict:
    """Checked parameters of all variants, in the order of `lay_out`."""
    parameters = apply_recipe(declared_parameters)
    for preset in settings.preset_files():
        parameters |= read_yaml(Path(preset))
    if settings.recipe:
        parameters |= recipe(settings.recipe)
    parameters |= settings.overrides()
    notebook.check_parameters("01_prepare_data", parameters)
    return _with_absolute_folders(parameters)


def _name_parts(settings: Settings, parameters: dict) -> list[str]:
    """Parts of the name of a run's folder: corpora, encoder, presets and recipe."""
    corpora = [parameters.get("corpus", "synthetic"), parameters.get("test_corpus")]
    encoder = os.path.basename(parameters.get("encoder", "embedded").rstrip("/"))
    presets = [Path(preset).stem for preset in settings.preset_files()]
    parts = ["-on-".join(filter(None, corpora)), encoder, *presets, settings.recipe]
    return list(filter(None, parts))


def _folder(settings: Settings, default: str) -> str:
    return os.path.normpath(os.path.expanduser(settings.run_dir) or default)


def _is_personal(declaration: Declaration) -> bool:
    """Whether an experiment predicts ratings instead of emotions."""
    default = declaration.parameters.get("recipe")
    recipes = {changes.get("recipe", default) for changes in declaration.variants.values()}
    if PERSONAL in recipes and len(recipes) > 1:
        problem = f"recipe {PERSONAL!r} rates and the others classify"
        raise GmpError(f"{problem}; declare them in two experiments.")
    return PERSONAL in recipes


def _lacks_opensmile(parameters: dict) -> bool:
    return "egemaps" in parameters.get("baselines", []) and find_spec("opensmile") is None


def _why_impossible(parameters: dict) -> str | None:
    deepest = -1 - weights.n_layers(parameters.get("encoder", "embedded"))
    if parameters.get("layer", -1) < deepest:
        return f"the encoder's layers end with {deepest}"
    return "openSMILE is not installed" if _lacks_opensmile(parameters) else None


def _member(run: Run, defaults: dict) -> dict:
    """A run and all its systems, for notebook 07."""
    names = ("losses", "baselines", "text")
    systems = sum((run.parameters.get(name, defaults[name]) for name in names), [])
    member = {"variant": run.variant, "seed": run.seed, "run_dir": run.folder}
    return member | {"starts": run.initializations, "losses": systems}


@contextmanager
def prepare(plan: Plan, read_only: bool = False) -> Iterator[None]:
    """Write a plan's parameters, and lock its folder meanwhile.

    If another process has locked it, this is an error, or nothing is written with `read_only`.
    """
    folder = run_folder(plan.folder)
    with ExitStack() as lock:
        try:
            lock.enter_context(exclusive_lock(folder / ".lock", display_path(folder), wait=False))
        except GmpError:
            if not read_only:
                raise
        else:
            write(plan)
        yield


def write(plan: Plan) -> None:
    """Write all parameters for papermill, and the declaration for notebook 07."""
    folder = run_folder(plan.folder)
    for run in plan.runs:
        notebook.write_parameters(run.folder, run.parameters)
    if not plan.experiment:
        (folder / FILE).unlink(missing_ok=True)
        if plan.runs[0].variant:
            write_json(folder / FILE, {"recipe": plan.runs[0].variant})
        return
    show_speakers = any(run.parameters.get("show_speakers") for run in plan.runs)
    parameters = {"run_dir": plan.folder, "show_speakers": show_speakers}
    notebook.write_parameters(plan.folder, parameters)
    experiments = run_folder("runs/experiments")
    sharing = experiments if folder.parent == experiments else folder
    sharing.joinpath(CACHE).mkdir(exist_ok=True)
    if not (folder / FILE).is_file() or read_json(folder / FILE) != plan.experiment:
        write_json(folder / FILE, plan.experiment)


def read_declaration(run_dir: str) -> dict:
    """Read the experiment that `write` wrote, or describe a single run in the same form.

    The keys are `question`, `variants`, `against` and `paper` as declared, `folds`, `impossible` (reasons
    by variant) and `runs`, each with `variant`, `seed`, `run_dir`, `starts` and `losses`. A single run has
    no variants, and its folds and losses are read from its folder.
    """
    try:
        values = read_json(run_folder(run_dir) / FILE)
    except FileNotFoundError:
        values = {"recipe": ""}
    if "recipe" not in values:
        return values
    system = values["recipe"]
    like_table3 = system in ("", "gmp-tl")  # others have no place in the paper's Table 3
    declaration = {"question": f"How well does {system} do?", "against": None, "paper": {}}
    declaration = dataclasses.asdict(declared("table3")) if like_table3 else declaration
    run = {"variant": None if like_table3 else system, "run_dir": run_dir, "losses": []}
    runs = [run | {"starts": list(INITIALIZATIONS.values())}]
    return declaration | {"variants": {}, "folds": [], "impossible": {}, "runs": runs}
