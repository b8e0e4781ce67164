"""What a notebook begins and ends with: its parameters checked, its headline numbers kept."""

import ast
import importlib.metadata
import platform
from pathlib import Path

import yaml

from gmp_utils.errors import GmpError
from gmp_utils.runs import NOTEBOOKS, PACKAGES, read_json, run_folder, shown, write_json


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
    nodes = [
        node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    return {
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id: ast.literal_eval(
            node.value
        )
        for node in nodes
    }


def series_parameters() -> dict[str, dict]:
    """`notebook_parameters` of every notebook of the project, by its name."""
    found = sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) + sorted(NOTEBOOKS.glob("explore_*.ipynb"))
    return {path.stem: notebook_parameters(path) for path in found}


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
    said = [f"run {parameters['run_dir']}"]
    if "seed" in parameters:
        transformers.set_seed(parameters["seed"])
        said.insert(0, f"seed {parameters['seed']}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"Python {platform.python_version()}, {versions}")
    print(", ".join([device, *said]))
    return parameters


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
