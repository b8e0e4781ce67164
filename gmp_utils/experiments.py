"""Experiments: the runs that fill one table, declared in a few lines of YAML.

A variant changes some parameters; every variant is run with every seed, in a folder of its own, and
every fold. `make run` is the case of one run. What runs share is made once, see `gmp_utils.runs`.
"""

import os
import shlex
import unicodedata
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gmp_utils import notebook, runs, weights
from gmp_utils.declarations import cooked, declared, file_name, read_yaml, recipe, slug
from gmp_utils.errors import OPENSMILE, GmpError
from gmp_utils.integrity import alone, storage

FILE = "experiment.json"
PERSONAL = "papt"  # the recipe that ends with notebook 08
TAKEN = ("corpus", "corpus_dir", "test_corpus", "test_corpus_dir", "encoder")


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
    personal : bool
        Ratings, with speakers in mind: notebook 08 in the place of 06 and 07.
    """

    folder: str
    parameters: dict
    folds: list[int]
    starts: list[str]
    variant: str = ""
    seed: int = 0
    personal: bool = False

    @property
    def personalized(self) -> str:
        """What notebook 08 leaves."""
        return f"{self.folder}/08_personalize/results/headline.json"

    def classified(self) -> list[tuple[int, str]]:
        """Each fold, with what notebook 06, or 08, leaves of it; twice for two starts."""
        if self.personal:
            return [(fold, self.personalized) for fold in self.folds]
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
        Gets the results: of the only run, or of the experiment. Those of personal runs stay in their own.
    runs : list of Run
    experiment : dict or None
        What notebook 07 reads of the declaration; None for `make run`.
    """

    folder: str
    runs: list[Run]
    experiment: dict | None


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


def _lacks_opensmile(parameters: dict) -> bool:
    return "egemaps" in parameters.get("baselines", []) and find_spec("opensmile") is None


def plan(environment: Mapping[str, str]) -> Plan:
    """Lay out what the environment asks for.

    Parameters
    ----------
    environment : mapping of str to str
        EXPERIMENT, CORPUS, CORPUS_DIR, TEST_CORPUS, TEST_CORPUS_DIR, ENCODER, FOLDS, SEEDS, GMPS,
        PRESET, RECIPE and RUN, as the Makefile has them. Corpora and encoder that are named here go before
        a variant, that before its recipe, or RECIPE, that before the presets, those before the
        experiment's own parameters, and those before the notebooks' defaults.

    Raises
    ------
    GmpError
        For a value that the Makefile does not have, a preset that cannot be read, or a folder's name
        that cannot be used; see also `declared`.
    """
    _refuse_odd(environment)
    if environment.get("RECIPE") and environment.get("EXPERIMENT"):
        raise GmpError(
            f"RECIPE {environment['RECIPE']!r} with an experiment: its variants name recipes of their own."
        )
    presets = _presets(environment.get("PRESET") or "")
    experiment = environment.get("EXPERIMENT") or ""
    declaration = declared(experiment) if experiment else None
    given = cooked(declaration["parameters"]) if declaration else {}
    for preset in presets:
        given |= read_yaml(preset)
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
        folder = os.path.normpath(asked_folder or f"runs/{file_name(name)}")
        default = "yes" if given.get("use_gmps", True) else "no"
        words = (environment.get("GMPS") or default).split()
        if not set(words) <= {"yes", "no"}:
            raise GmpError(f"GMPS: found {' '.join(words)!r}, expected 'yes', 'no' or 'yes no'.")
        starts = [runs.STARTS[word == "yes"] for word in words]
        folds, variant = _numbers(environment, "FOLDS", [1]), environment.get("RECIPE") or ""
        personal = variant == PERSONAL
        if personal:
            given["folds"] = folds
        if _lacks_opensmile(given):
            raise GmpError(OPENSMILE)
        return Plan(folder, [_run(folder, given, folds, starts, variant, 0, personal)], None)
    name = "-".join([Path(experiment).stem, *named])
    folder = os.path.normpath(asked_folder or f"runs/experiments/{file_name(name)}")
    folds = _numbers(environment, "FOLDS", declaration["folds"])
    seeds = _numbers(environment, "SEEDS", declaration["seeds"])
    found, impossible = [], {}
    recipes = {
        changes.get("recipe", declaration["parameters"].get("recipe"))
        for changes in declaration["variants"].values()
    }
    personal = PERSONAL in recipes
    if personal and len(recipes) > 1:
        raise GmpError(
            f"{experiment}: recipe {PERSONAL!r} rates and the others classify: they have no table in common; "
            "declare them apart."
        )
    for variant, changes in declaration["variants"].items():
        own = given | cooked(changes) | asked
        notebook.check_parameters("01_prepare_data", own)
        deepest = -1 - weights.n_layers(own.get("encoder", "embedded"))
        if own.get("layer", -1) < deepest:
            impossible[variant] = f"the encoder's layers end with {deepest}"
            continue
        if _lacks_opensmile(own):
            impossible[variant] = "openSMILE is not installed"
            continue
        for seed in seeds:
            at = f"{folder}/{slug(variant)}/seed{seed}"
            starts = [runs.STARTS[own.get("use_gmps", True)]]
            own |= {"seed": seed} | ({"folds": folds} if personal else {})
            found.append(_run(at, own, folds, starts, variant, seed, personal))
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
    """Check all parameters, and write them, and what a run is, where papermill and notebook 07 read them.

    Raises
    ------
    GmpError
        See `gmp_utils.notebook.check_parameters`.
    """
    for run in planned.runs:
        notebook.write_parameters(run.folder, run.parameters)
    if not planned.experiment:
        file, recipe = runs.run_folder(planned.folder) / FILE, planned.runs[0].variant
        file.unlink(missing_ok=True)
        if recipe:
            runs.write_json(file, {"recipe": recipe})
    else:
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
        found = runs.read_json(runs.run_folder(run_dir) / FILE)
    except FileNotFoundError:
        return _told_of_one(run_dir)
    return _told_of_one(run_dir, found["recipe"]) if "recipe" in found else found


def _told_of_one(run_dir: str, recipe: str = "") -> dict:
    """A plain run in an experiment's words; other recipes than GMP-TL's have no place in its Table 3."""
    only = {"run_dir": run_dir, "starts": list(runs.STARTS.values()), "losses": []}
    told = {"variants": {}, "folds": [], "impossible": {}, "runs": [only | {"variant": None}]}
    if recipe in ("", "gmp-tl"):
        return declared("table3") | told
    told["runs"] = [only | {"variant": recipe}]
    return told | {"question": f"How well does {recipe} do?", "against": None, "paper": {}}


def report(run_dir: str) -> str:
    """A run's or an experiment's results as text, and where its figures and executed notebooks are."""
    run = runs.run_folder(run_dir)
    found = [
        *run.glob("07_results/summary.md"),
        *sorted(run.rglob("08_personalize/results/summary.md")),
    ]
    if not found:
        return f"{runs.shown(run)}: no results yet"
    figures = sorted(runs.figures_folder(run_dir).rglob("*.html"))
    notebooks = sorted(run.rglob("notebooks/*.ipynb"))
    lines = [
        *(f"{runs.shown(path)}\n\n{path.read_text(encoding='utf-8')}" for path in found),
        "Figures:",
        *map(runs.shown, figures),
        "",
        "Executed notebooks:",
    ]
    return "\n".join([*lines, *map(runs.shown, notebooks)])
