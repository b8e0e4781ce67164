"""Experiments: the runs that fill one table, declared in a few lines of YAML.

A variant changes some parameters. Each variant and seed is a run on every fold, in its own folder. Labels are
drawn by the same seed, unless the variant has a `label_draw`. Runs share equal stages, see
`gmp_utils.runs.stage`. `python -m gmp_utils run` makes a single run.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path

import yaml

from gmp_utils import GmpError, check_choice
from gmp_utils.runs import notebook, paths, weights
from gmp_utils.runs.files import exclusive_lock, read_json, write_json
from gmp_utils.runs.paths import ROOT, display_path, run_folder
from gmp_utils.runs.stage import CACHE

CONFIG = ROOT / "workflow" / "config"
RECIPES = ROOT / "presets" / "recipes"
FILE = "experiment.json"
PERSONAL = "papt"  # the recipe that ends with notebook 08
SYSTEM_NAMES = {
    "ce": "CE",
    "ams": "AMS",
    "ce-then-ams": "CE then AMS",
    "ce-then-ce": "CE then CE",
    "probe": "probe of the untouched encoder",
    "probe-z": "probe of the untouched encoder, z per speaker (transductive)",
    "self-training": "probe of the untouched encoder, self-training",
    "probe-multitask": "probe of the multi-task model",
    "probe-retrained": "probe of the retrained model",
    "probe-ce": "probe of the CE network",
    "probe-ams": "probe of the AMS network",
    "egemaps": "SVM on eGeMAPS",
    "egemaps-z": "SVM on eGeMAPS, z per speaker (transductive)",
    "majority": "majority",
    "text": "text alone",
    "late-fusion": "with text, late",
    "embedding-fusion": "with text, embeddings",
}
EGEMAPS = {"egemaps", "egemaps-z"}  # baselines


@dataclass(frozen=True)
class Declaration:
    """An experiment, as declared by a file in workflow/config.

    `parameters` apply to all variants. `against` names the variant that the others are compared with;
    None compares all pairs. `primary` has the primary outcomes, with "all labels" and with "few labels", as
    in the column `compared` of notebook 07. `paper` has published UAR and WAR in percent, by variant and
    system.
    """

    question: str
    variants: dict[str, dict]
    folds: list[int]
    seeds: list[int]
    parameters: dict = field(default_factory=dict)
    against: str | None = None
    primary: dict[str, list[str]] = field(default_factory=dict)
    paper: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("parameters", "primary", "paper"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}, expected names and values"
                )
        for name, values in (("folds", self.folds), ("seeds", self.seeds)):
            if not (isinstance(values, list) and values and {*map(type, values)} == {int}):
                raise ValueError(f"{name}: found {values!r}, expected a list of numbers")
        for name, changes in self.variants.items():
            if not (isinstance(name, str) and isinstance(changes, dict)):
                expected = "a name (yes, no and numbers in quotes) and its parameters, or {}"
                raise ValueError(f"variant {name!r}: found {changes!r}, expected {expected}")
        if self.against not in {None, *self.variants}:
            raise ValueError(f"against {self.against!r} is none of the variants")
        if not {"all labels", "few labels"}.issuperset(self.primary):
            expected = '"all labels" or "few labels"'
            raise ValueError(f"primary: found {[*self.primary]}, expected {expected}")
        names = {", ".join(pair) for pair in product(self.variants, SYSTEM_NAMES.values())}
        for outcome in chain(*self.primary.values()):
            if len(pair := outcome.split(" → ")) != 2 or not names.issuperset(pair):
                expected = "variant, system → variant, system"
                systems = "; ".join(SYSTEM_NAMES.values())
                raise ValueError(f"primary: found {outcome!r}, expected {expected} ({systems})")
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
    check_choice(kind, name, names)
    return folder / f"{name}.yaml"


def apply_recipe(parameters: dict) -> dict:
    """Replace the parameter `recipe` by the recipe's parameters, which all others override."""
    rest = {name: value for name, value in parameters.items() if name != "recipe"}
    return recipe(parameters["recipe"]) | rest if parameters.get("recipe") else rest


def is_sweep(variants: dict[str, dict]) -> bool:
    """Whether variants that train networks differ in the value of one number, such as the layer."""
    trained = [variant for variant in variants.values() if variant.get("losses") != []]
    changes = [change for variant in trained for change in variant.items()]
    are_numbers = all(type(value) in (int, float) for _, value in changes)
    return len(dict(changes)) == 1 and len(changes) == len(trained) > 2 and are_numbers


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
    finetune_from: list[str] = field(default_factory=list)
    preset: list[str] = field(default_factory=list)
    recipe: str = ""
    run_dir: str = ""

    def preset_files(self) -> list[str]:
        """The preset files. A value that is not a file is a list separated by spaces."""
        values = [[value] if os.path.isfile(value) else value.split() for value in self.preset]
        return sum(values, [])


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(frozen=True)
class Run:
    """A run of the series. A `personal` one ends with notebook 08 instead of 06 and 07."""

    folder: str
    parameters: dict
    folds: list[int]
    finetune_from: list[str]  # initial models of fine-tuning
    variant: str = ""
    seed: int = 0
    personal: bool = False

    def outputs(self) -> list[tuple[int, str]]:
        """Folds and the last file of notebook 06 (for each initial model) or 08."""
        stages = [f"{paths.FOLD}{paths.FINETUNE}/{name}" for name in self.finetune_from]
        stages = [f"{paths.PERSONALIZE}/results"] if self.personal else stages
        return [
            (fold, f"{self.folder}/{stage.format(fold=fold)}/headline.json")
            for fold in self.folds
            for stage in stages
        ]


@dataclass(frozen=True)
class Plan:
    """A run, or the runs of an experiment, whose results go into `folder`."""

    folder: str
    runs: list[Run]
    experiment: dict | None = None  # the declaration for notebook 07; None for a single run

    def command(self, path: Path, *options: str) -> list[str]:
        """Save the plan; returns the command that executes it, to be called in the checkout."""
        write_json(path, dataclasses.asdict(self))
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
        return [*snakemake, "--configfile", str(path), *options]


def as_plan(values: dict) -> Plan:
    """The plan that `Plan.command` saved as JSON."""
    return Plan(values["folder"], [Run(**run) for run in values["runs"]], values["experiment"])


def lay_out(settings: Settings) -> Plan:
    """Plan the runs that the settings describe, and check all parameters.

    Precedence, highest first: corpora and encoder of the settings, the variant, its recipe or that of the
    settings, presets, the experiment, the notebooks' defaults.
    """
    if settings.experiment is not None:
        return _lay_out_experiment(settings, declared(settings.experiment))
    parameters = _parameters(settings, {}, {"recipe": settings.recipe})
    check_opensmile(parameters.get("baselines", []))
    folder, folds = _folder(settings, parameters), settings.folds or parameters.get("folds") or [1]
    initial_models = _initial_models(settings, parameters)
    parameters |= {"run_dir": folder, "folds": folds}
    personal = settings.recipe == PERSONAL
    run = Run(folder, parameters, folds, initial_models, settings.recipe, personal=personal)
    return Plan(folder, [run])


def _lay_out_experiment(settings: Settings, declaration: Declaration) -> Plan:
    """Plan a run for each variant and seed, or record why a variant cannot be run."""
    if settings.recipe:
        raise GmpError(f"recipe {settings.recipe!r} with an experiment: set it in its variants.")
    folder = _folder(settings, _parameters(settings, declaration.parameters))
    folds, seeds = settings.folds or declaration.folds, settings.seeds or declaration.seeds
    defaults = notebook.series_parameters()["06_finetune"]
    runs, members, impossible = [], [], {}
    for variant, changes in declaration.variants.items():
        parameters = _parameters(settings, declaration.parameters, changes)
        lists = defaults | parameters
        if EGEMAPS & {*lists["baselines"]} and find_spec("opensmile") is None:
            others = [name for name in lists["baselines"] if name not in EGEMAPS]
            alone = not (others or lists["losses"] or lists["text"])
            parameters["baselines"] = lists["baselines"] = others
            impossible[variant if alone else f"{variant}, SVM on eGeMAPS"] = (
                "openSMILE is not installed"
            )
            if alone:
                continue
        deepest = -1 - weights.n_layers(parameters.get("encoder", "embedded"))
        if parameters.get("layer", -1) < deepest:
            impossible[variant] = f"the encoder's layers end with {deepest}"
            continue
        initial_models = _initial_models(settings, parameters)
        personal = (declaration.parameters | changes).get("recipe") == PERSONAL
        systems = [*lists["losses"], *lists["baselines"], *lists["text"]]
        for seed in seeds:
            run_dir = f"{folder}/{slug(variant)}/seed{seed}"
            values = {"label_draw": seed} | parameters
            values |= {"run_dir": run_dir, "folds": folds, "seed": seed}
            run = Run(run_dir, values, folds, initial_models, variant, seed, personal)
            runs.append(run)
            member = {"variant": variant, "seed": seed, "run_dir": run_dir}
            members.append(member | {"finetune_from": run.finetune_from, "systems": systems})
    if len({run.personal for run in runs}) > 1:
        problem = f"recipe {PERSONAL!r} predicts ratings, the others emotions"
        raise GmpError(f"{problem}; declare them in two experiments.")
    experiment = dataclasses.asdict(declaration) | {"folds": folds, "seeds": seeds}
    return Plan(folder, runs, experiment | {"runs": members, "impossible": impossible})


def _parameters(settings: Settings, of_all: dict, of_variant: dict | None = None) -> dict:
    """Checked parameters by the precedence of `lay_out`, with absolute folders of corpora."""
    parameters = apply_recipe(of_all)
    for preset in settings.preset_files():
        parameters |= read_yaml(Path(preset))
    parameters |= apply_recipe(of_variant or {})
    names = ("corpus", "corpus_dir", "test_corpus", "test_corpus_dir", "encoder")
    parameters |= {name: getattr(settings, name) for name in names if getattr(settings, name)}
    notebook.check_parameters("01_prepare_data", parameters)
    for name in ("corpus_dir", "test_corpus_dir"):
        if parameters.get(name):
            parameters[name] = os.path.abspath(os.path.expanduser(parameters[name]))
    if "retrained" not in _initial_models(settings, parameters):
        parameters.setdefault("baselines", ["probe"])  # the notebook's others need more stages
    return parameters


def _initial_models(settings: Settings, parameters: dict) -> list[str]:
    return settings.finetune_from or [parameters.get("finetune_from", "retrained")]


def _folder(settings: Settings, parameters: dict) -> str:
    """Folder of the results: by default named after experiment, corpora, encoder, presets and recipe."""
    experiment = Path(settings.experiment or "").stem
    corpora = [parameters.get("corpus", "emodb"), parameters.get("test_corpus")]
    if corpora[0] == "table":
        table = Path(parameters.get("corpus_dir", ""))
        corpora[0] += f"-{table.parent.name}-{table.stem}"
    encoder = Path(parameters.get("encoder", "embedded"))
    if encoder.name in ("encoder", "model"):  # of a run
        first = encoder.parts.index("runs") + 1 if "runs" in encoder.parts else -3
        encoder = Path("-".join(encoder.parts[first:]))
    encoder = encoder.name
    presets = [Path(preset).stem for preset in settings.preset_files()]
    parts = [experiment, "-on-".join(filter(None, corpora)), encoder, *presets, settings.recipe]
    name = slug("-".join(filter(None, parts)))
    name = f"experiments/{name}" if experiment else name
    is_demo = name == "emodb-embedded" and not parameters.get("corpus_dir")
    default = "runs/demo" if is_demo else f"runs/{name}"
    return os.path.normpath(os.path.expanduser(settings.run_dir) or default)


def check_opensmile(baselines: list[str]) -> None:
    """Raise a GmpError if eGeMAPS are among the baselines and openSMILE is not installed."""
    if EGEMAPS & {*baselines} and find_spec("opensmile") is None:
        install = "`.venv/bin/python -m pip install opensmile` (for research and private use only)"
        raise GmpError(f"eGeMAPS needs openSMILE: run {install}, or leave this baseline out.")


@contextmanager
def prepare(plan: Plan) -> Iterator[None]:
    """Lock a plan's folder and write its parameters; raises a GmpError if another process has locked it."""
    folder = run_folder(plan.folder)
    with exclusive_lock(folder / ".lock", display_path(folder), wait=False):
        write(plan)
        yield


def write(plan: Plan) -> None:
    """Write all parameters for papermill, and the declaration for notebook 07."""
    for run in plan.runs:
        notebook.write_parameters(run.folder, run.parameters)
    folder = run_folder(plan.folder)
    if plan.experiment:
        parameters = {
            name: any(run.parameters.get(name) for run in plan.runs)
            for name in ("show_speakers", "robustness")
        }
        parameters["run_dir"] = plan.folder
        notebook.write_parameters(plan.folder, parameters)
        experiments = run_folder("runs/experiments")
        sharing = experiments if folder.parent == experiments else folder
        sharing.joinpath(CACHE).mkdir(exist_ok=True)
    file, declaration = folder / FILE, plan.experiment or {"recipe": plan.runs[0].variant}
    if not file.is_file() or read_json(file) != declaration:
        write_json(file, declaration)


def read_declaration(run_dir: str) -> dict:
    """Read the experiment that `write` wrote, or describe a single run in the same form.

    Besides those of `Declaration`, the keys are `impossible` (reasons by variant, or by variant and system)
    and `runs`, each with `variant`, `seed`, `run_dir`, `finetune_from` and `systems` (losses, baselines and
    text). A single run has no variants, and its folds, initial models and systems are read from its folder.
    """
    file = run_folder(run_dir) / FILE
    values = read_json(file) if file.is_file() else {"recipe": ""}
    if "recipe" not in values:
        return values
    system = values["recipe"]
    like_table3 = system in ("", "gmp-tl")  # others have no place in the paper's Table 3
    declaration = {"question": f"How well does {system} do?", "against": None}
    declaration |= {"primary": {}, "paper": {}}
    declaration = dataclasses.asdict(declared("table3")) if like_table3 else declaration
    run = {"variant": None if like_table3 else system, "run_dir": run_dir, "systems": []}
    return declaration | {"variants": {}, "folds": [], "impossible": {}, "runs": [run]}
