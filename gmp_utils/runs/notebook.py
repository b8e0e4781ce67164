"""Parameters, set-up and headline numbers of notebooks."""

import ast
import dataclasses
import importlib.metadata
import math
import os
import platform
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import yaml

from gmp_utils import GmpError
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import NOTEBOOKS, display_path, run_folder
from gmp_utils.runs.stage import PACKAGES

# Parameters that may differ from those of a run's workflow, and notebooks that no workflow executes.
FREE = {"run_dir", "fold", "finetune_from", "model", "processes"}
NOT_IN_RUNS = {"00_pretrain_encoder", "09_recognize"}
_is_planned: dict[str, bool] = {}  # by notebook: whether its parameters are the workflow's


def notebook_parameters(notebook: Path) -> dict:
    """Names and defaults in a notebook's parameters cell.

    `papermill.inspect_notebook` does the same, but takes three seconds to import in every kernel.
    """
    return dict(_read_parameters(notebook, notebook.stat().st_mtime_ns))


@cache
def _read_parameters(notebook: Path, _modified: int) -> dict:
    cells = read_json(notebook)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return _assignments("".join(tagged[0]["source"]) if tagged else "")


def _assignments(source: str) -> dict:
    """Names and values of plain assignments, annotated or not."""
    nodes = [node for node in ast.parse(source).body if hasattr(node, "value")]
    targets = [getattr(node, "target", None) or node.targets[0] for node in nodes]
    values = [ast.literal_eval(node.value) for node in nodes]
    return {target.id: value for target, value in zip(targets, values)}


def series_parameters() -> dict[str, dict]:
    """`notebook_parameters` of every notebook, by its name."""
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) + sorted(NOTEBOOKS.glob("explore_*.ipynb"))
    return {path.stem: notebook_parameters(path) for path in paths}


def check_parameters(notebook: str, parameters: dict) -> dict:
    """Check parameters; returns those that a notebook has.

    Presets have parameters of the whole series, so only names that no notebook has are rejected.
    """
    series = series_parameters()
    defaults = {name: value for values in series.values() for name, value in values.items()}
    defaults |= series[notebook]
    for name, value in parameters.items():
        if name not in defaults:
            close = get_close_matches(name, defaults)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            valid = ", ".join(series[notebook])
            raise GmpError(f"unknown parameter {name!r}; {meant}{notebook} has: {valid}.")
        if not _is_like(value, defaults[name]):
            found, expected = type(value).__name__, type(defaults[name]).__name__
            expected += f", such as {defaults[name]!r}"
            raise GmpError(f"parameter {name}: found {value!r} ({found}), expected {expected}.")
    return {name: value for name, value in parameters.items() if name in series[notebook]}


def _is_like(value, default) -> bool:
    """Whether a value has the type of a default; integers count as floats."""
    if isinstance(default, list) and default and isinstance(value, list):
        kind = type(default[0])  # labels may be digits
        kinds = {str: (str, int), float: (int, float)}.get(kind, (kind,))
        return all(type(item) in kinds for item in value)
    return type(value) in ((int, float) if isinstance(default, float) else (type(default),))


def write_parameters(run_dir: str, parameters: dict) -> None:
    """Check a run's parameters, and write those of each notebook as YAML for papermill.

    Unchanged files keep their times, which the workflow compares.
    """
    folder = run_folder(run_dir) / "parameters"
    checked = {name: check_parameters(name, parameters) for name in series_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in checked.items():
        path, text = folder / f"{name}.yaml", yaml.safe_dump(values, allow_unicode=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def start(notebook: str, namespace: dict) -> dict:
    """Check a notebook's parameters, set the seed and print versions; returns all parameters.

    `namespace` is the notebook's ``globals()``. Its `In` has the cell that papermill injected.
    """
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    assigned = _assignments(injected[-1] if injected else "")
    defaults = notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    parameters = {name: namespace[name] for name in [*defaults, *assigned]}
    parameters = check_parameters(notebook, parameters)
    file = run_folder(parameters["run_dir"]) / "parameters" / f"{notebook}.yaml"
    if file.is_file() and notebook not in NOT_IN_RUNS:
        planned = defaults | (yaml.safe_load(file.read_text("utf-8")) or {})
        compared = defaults.keys() - FREE
        _is_planned[notebook] = all(planned[name] == parameters[name] for name in compared)

    import torch
    import transformers

    from gmp_utils.runs import hardware

    hardware.prepare_libraries()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    device = torch.cuda.get_device_name() if hardware.device() == "cuda" else "CPU"
    print(f"Python {platform.python_version()}, {versions}")
    if "seed" in parameters:
        transformers.set_seed(parameters["seed"])
        device += f", seed {parameters['seed']}"
    print(f"{device}, run {parameters['run_dir']}")
    return parameters


def configure(kind: type, parameters: dict, prefix: str = "", **values):
    """A dataclass with the parameters that have its fields' names, or these names with a prefix."""
    names = [field.name for field in dataclasses.fields(kind)]
    plain = {name: parameters[name] for name in names if name in parameters}
    own = {name: parameters[prefix + name] for name in names if prefix + name in parameters}
    return kind(**plain | own | values)


def headline(folder: Path, notebook: str, numbers: dict[str, float]) -> None:
    """Print a notebook's headline numbers, and write headline.json, its output in the workflow.

    Numbers that are NaN are left out. The file keeps its date if neither the numbers nor the stage have
    changed, so that the workflow does not execute later notebooks again. If the notebook has other parameters
    than the workflow's, the file gets an old date, and the workflow executes the notebook again.
    """
    numbers = {name: value for name, value in numbers.items() if not math.isnan(value)}
    path, values = folder / "headline.json", {"notebook": notebook, "numbers": numbers}
    stages = [*folder.glob("provenance.json"), *folder.glob("*/provenance.json")]
    made = max((stage.stat().st_mtime_ns for stage in stages), default=math.inf)
    if not path.is_file() or path.stat().st_mtime_ns < made or read_json(path) != values:
        write_json(path, values)
    if not _is_planned.get(notebook, True):
        os.utime(path, (1, 1))
        print("Other parameters than those of this run: make run will execute the notebook again.")
    for name, value in numbers.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    print("results:", display_path(folder))


def check_demo(
    notebook: str, parameters: dict, numbers: dict, expected: dict, tolerance: float
) -> None:
    """Compare the demo's headline numbers with the expected ones; print `ok`, or the differences.

    nbval compares the output with the notebook's stored `ok`. `parameters` are those that `start`
    returned; unless all are the notebook's defaults, nothing is compared. `tolerance` is absolute. It is
    needed because rounding differs between processors, and differences grow during training.
    """
    defaults = notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    changed = [name for name in defaults if parameters[name] != defaults[name]]
    if changed:
        print(f"not compared: {', '.join(changed)} not as in the demo")
        return
    differing = [
        f"{name}: {numbers[name]:.3f}, expected {value} ± {tolerance}"
        for name, value in expected.items()
        if not abs(numbers[name] - value) <= tolerance
    ]
    print("\n".join(differing) or "ok")
