"""Where artifacts live, what made them, and how they come to be whole.

A run's folder holds one folder per stage. A stage is written under a temporary name and renamed when
it is whole: a folder with a provenance.json is a stage that finished.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml

from gmp_utils.errors import GmpError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PACKAGES = ("torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn", "numpy")


def read_json(path: Path) -> dict:
    """Read a JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file; numpy's numbers become Python's."""

    def plain(value):
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} does not go into JSON")

    text = json.dumps(values, indent=1, default=plain, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


# Parameters of the notebooks


def notebook_parameters(notebook: Path) -> dict:
    """Names and defaults of a notebook's parameters cell.

    Parameters
    ----------
    notebook : Path

    Returns
    -------
    defaults : dict
        In the cell's order.
    """
    cells = read_json(notebook)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "".join(tagged[0]["source"]) if tagged else ""
    return _assigned(source)


def _assigned(source: str) -> dict:
    """Names and values that a cell of plain assignments gives."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id: ast.literal_eval(
            node.value
        )
        for node in nodes
    }


def series_parameters() -> dict[str, dict]:
    """`notebook_parameters` of every numbered notebook, by its name."""
    return {path.stem: notebook_parameters(path) for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}


def check_parameters(notebook: str, given: dict) -> dict:
    """Check parameters before any work is done.

    A preset holds the parameters of the whole series, so a name that another notebook knows is
    accepted, and a name that none knows is not.

    Parameters
    ----------
    notebook : str
        Its name, without ending.
    given : dict
        Names and values.

    Returns
    -------
    own : dict
        Those of `given` that this notebook knows.

    Raises
    ------
    GmpError
        For an unknown name or a value of the wrong type.
    """
    series = series_parameters()
    known = {name: value for defaults in series.values() for name, value in defaults.items()}
    known |= series[notebook]
    for name, value in given.items():
        if name not in known:
            valid = ", ".join(series[notebook])
            raise GmpError(f"unknown parameter {name!r}; {notebook} has: {valid}.")
        default = known[name]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
        if fits and isinstance(default, list) and default:
            fits = all(type(item) is type(default[0]) for item in value)
        if not fits:
            kind = type(default).__name__
            raise GmpError(
                f"parameter {name}: found {value!r} ({type(value).__name__}), expected {kind}, "
                f"such as {default!r}."
            )
    return {name: value for name, value in given.items() if name in series[notebook]}


def write_parameters(run_dir: str, given: dict) -> None:
    """Check a set of parameters, and write each notebook's own as YAML for papermill.

    Parameters
    ----------
    run_dir : str
        Gets `parameters/<notebook>.yaml`; files that would not change are left alone.
    given : dict
        Names and values for the whole series.

    Raises
    ------
    GmpError
        See `check_parameters`.
    """
    folder = run_folder(run_dir) / "parameters"
    own = {notebook: check_parameters(notebook, given) for notebook in series_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    for notebook, values in own.items():
        path, text = folder / f"{notebook}.yaml", yaml.safe_dump(values, allow_unicode=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def start(notebook: str, namespace: dict) -> dict:
    """Begin a notebook: check its parameters, quieten libraries, set the seed, say what runs.

    Parameters
    ----------
    notebook : str
        Its name, without ending.
    namespace : dict
        The notebook's ``globals()``: holds the parameters, and what papermill injected.

    Returns
    -------
    parameters : dict
        Every parameter of the notebook with its value.

    Raises
    ------
    GmpError
        See `check_parameters`.
    """
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    names = _assigned(injected[-1] if injected else "")
    defaults = notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    parameters = {name: namespace[name] for name in [*defaults, *names]}
    parameters = check_parameters(notebook, parameters)

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(parameters["seed"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"Python {platform.python_version()}, {versions}")
    print(f"{device}, seed {parameters['seed']}, run {parameters['run_dir']}")
    return parameters


# Stages


def run_folder(run_dir: str) -> Path:
    """Folder of a run; relative ones are below the checkout."""
    return ROOT / Path(run_dir).expanduser()


def sources(module: str) -> list[Path]:
    """Files of this package that a module needs, itself included: what can change its results."""
    package = Path(__file__).parent
    found: list[Path] = []

    def visit(name: str) -> None:
        path = package.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path in found or not path.is_file():
            return
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmp_utils"):
                visit(node.module)
                for alias in node.names:
                    visit(f"{node.module}.{alias.name}")

    visit(module)
    return sorted(found)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def missing(folder: Path, notebook: str) -> GmpError:
    """The error for an artifact that is not there yet."""
    return GmpError(
        f"{shown(folder)}: nothing of {notebook} there yet; run notebooks/{notebook}.ipynb with the "
        "same run_dir and fold."
    )


def identity(folder: Path) -> str:
    """Identity of a finished stage: the same parameters, inputs and code give the same one.

    Raises
    ------
    GmpError
        If the stage is not there; says which notebook makes it.
    """
    try:
        return read_json(folder / "provenance.json")["identity"]
    except FileNotFoundError as error:
        numbered = [part for part in folder.parts if part[:2].isdigit()]
        raise missing(folder, numbered[-1]) from error


def make_stage(
    folder: Path,
    build: Callable[[Path], None],
    *,
    parameters: dict,
    inputs: Sequence[str],
    module: str,
    protocol: dict | None = None,
) -> Path:
    """Make a stage whole or not at all, once.

    Parameters
    ----------
    folder : Path
        Where it will be.
    build : callable
        Gets the temporary folder and fills it. After an interruption it finds there what it left,
        if nothing that matters has changed.
    parameters : dict
        Kept as params.json.
    inputs : sequence of str
        Identities of what it reads.
    module : str
        Name of the module that builds it; its source, and what it imports of this package, count.
    protocol : dict, optional
        Kept in provenance.json.

    Returns
    -------
    folder : Path
    """
    code = [file_digest(path) for path in sources(module)]
    own = text_digest(json.dumps([parameters, list(inputs), code], sort_keys=True, default=str))[:16]
    if (folder / "provenance.json").is_file() and identity(folder) == own:
        print(f"{shown(folder)} is there, made with the same parameters, inputs and code.")
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    begun = partial / "identity.json"
    if partial.exists() and not (begun.is_file() and read_json(begun)["identity"] == own):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(begun, {"identity": own})
    write_json(partial / "params.json", parameters)
    began = time.monotonic()
    build(partial)
    begun.unlink()
    write_json(partial / "provenance.json", _provenance(partial, own, inputs, protocol, began))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def _provenance(
    folder: Path, own: str, inputs: Sequence[str], protocol: dict | None, began: float
) -> dict:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cuda = torch.cuda.is_available()
    return {
        "identity": own,
        "inputs": list(inputs),
        "protocol": protocol,
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() // 2**20 if cuda else None,
        "files": {
            str(path.relative_to(folder)): file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def shown(path: Path) -> str:
    """A path as messages show it: from the checkout, where it is below it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


# The end of a notebook


def headline(folder: Path, notebook: str, numbers: dict) -> None:
    """Print a notebook's headline numbers and where its results are, and keep them there.

    The workflow waits for this file: a notebook that ended early has not written it.

    Parameters
    ----------
    folder : Path
        Of the stage.
    notebook : str
    numbers : dict of str to float
    """
    write_json(folder / "headline.json", {"notebook": notebook, "numbers": numbers})
    for name, value in numbers.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    print("results:", shown(folder))


def check_demo(
    notebook: str, parameters: dict, numbers: dict, expected: dict, tolerance: float
) -> None:
    """Compare the demo's headline numbers with those on record; print `ok`, or what is off.

    nbval compares the print with the notebook's stored `ok`, so that a moved number fails the tests;
    a run goes on.

    Parameters
    ----------
    notebook : str
    parameters : dict
        As `start` returned them. With others than the notebook's defaults there is nothing to
        compare with, and that is printed.
    numbers, expected : dict of str to float
    tolerance : float
        Allowed absolute difference. Training differs in the last digits from processor to
        processor, and these differences grow.
    """
    defaults = notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    changed = [name for name in defaults if parameters[name] != defaults[name]]
    if changed:
        print(f"not compared: {', '.join(changed)} not as in the demo")
        return
    off = {
        name: numbers[name]
        for name, value in expected.items()
        if not abs(numbers[name] - value) <= tolerance
    }
    for name, value in off.items():
        print(f"{name}: {value:.3f}, on record {expected[name]} ± {tolerance}")
    if not off:
        print("ok")
