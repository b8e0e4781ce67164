"""Where artifacts live, what made them, and how they come to be whole.

A run's folder holds one folder per stage. A stage is written under a temporary name and renamed when
it is whole: a folder with a provenance.json is a stage that finished.
"""

import ast
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gmp_utils.errors import GmpError
from gmp_utils.integrity import alone, damage, file_digest, file_digests, storage, text_digest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SHARED = ".shared"  # beside runs that share stages: where each was made first
MODELS = {  # what may be looked at, and the stage that makes it
    "encoder": "01_prepare_data",
    "multitask": "fold{fold}/02_train_multitask",
    "retrained": "fold{fold}/05_retrain",
    "finetuned": "fold{fold}/06_finetune/gmps/ams",
}
STARTS = {
    True: "gmps",
    False: "no-gmps",
}  # of fine-tuning: from the retrained model, or the encoder
PACKAGES = ("torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn", "numpy")


def read_json(path: Path) -> dict:
    """Read a JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file, whole or not at all; numpy's numbers become Python's."""

    def plain(value):
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} does not go into JSON")

    text = json.dumps(values, indent=1, default=plain, ensure_ascii=False)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text + "\n", encoding="utf-8")
    os.replace(new, path)


def run_folder(run_dir: str) -> Path:
    """Folder of a run; relative ones are below the checkout."""
    return ROOT / Path(run_dir).expanduser()


def figures_folder(run_dir: str) -> Path:
    """Where a run's figures go: figures/<run>, or with the run where that is not below runs/."""
    run = run_folder(run_dir)
    below = run.is_relative_to(ROOT / "runs")
    return ROOT / "figures" / run.relative_to(ROOT / "runs") if below else run / "figures"


def stage_of(model: str) -> str:
    """The stage that a model is of, below a run's folder, with ``{fold}`` in it.

    Raises
    ------
    GmpError
        For another name than those of `MODELS`.
    """
    if model not in MODELS:
        raise GmpError(f"model: found {model!r}, expected one of {', '.join(MODELS)}.")
    return MODELS[model]


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
        for imported in _imports(path.read_text(encoding="utf-8")):
            visit(imported)

    visit(module)
    return sorted(found)


def notebook_sources(notebook: str) -> list[Path]:
    """Files of this package that a notebook needs."""
    cells = read_json(NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return sorted({path for module in _imports(code) for path in sources(module)})


def _imports(code: str) -> list[str]:
    """Modules of this package, and names in them, that Python code imports."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in nodes if (node.module or "").startswith("gmp_utils")]
    return [
        name
        for node in own
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]


def missing(folder: Path, notebook: str) -> GmpError:
    """The error for an artifact that is not there yet."""
    return GmpError(
        f"{shown(folder)}: nothing of {notebook} there yet; run notebooks/{notebook}.ipynb with the "
        "same run_dir and fold."
    )


def notebook_of(folder: Path) -> str:
    """The notebook that a stage's folder is of; what is beside the stages begins with 01."""
    found = [part for part in folder.parts if (NOTEBOOKS / f"{part}.ipynb").is_file()]
    return found[-1] if found else "01_prepare_data"


def _provenance(folder: Path) -> dict:
    """What a finished stage says of itself.

    Raises
    ------
    GmpError
        If the stage is not there, or that cannot be read.
    """
    path = folder / "provenance.json"
    try:
        found = read_json(path)
        digest = found.pop("digest", None)  # older versions had none
        if digest and digest != _digest(found):
            raise ValueError("is not what it was when it was made")
    except FileNotFoundError as error:
        raise missing(folder, notebook_of(folder)) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{path}: {error}") from error
    return found


def _digest(provenance: dict) -> str:
    return text_digest(json.dumps(provenance, sort_keys=True))


def _damaged(folder: Path, what: str) -> GmpError:
    return GmpError(f"{what}. Remove {shown(folder)} and run the same again; all else is kept.")


def _whole(folder: Path, *read: str) -> dict:
    """What a finished stage says of itself, once its files were compared with it."""
    provenance = _provenance(folder)
    found = damage(folder, provenance["files"], read)
    if found:
        raise _damaged(folder, found)
    return provenance


def identity(folder: Path, *read: str) -> str:
    """Identity of a finished stage: the same parameters, inputs and code give the same one.

    Parameters
    ----------
    folder : Path
    *read : str
        Its files that are going to be read, by their names below it; all if none are named. Their
        content is compared with what was written.

    Raises
    ------
    GmpError
        If the stage is not there, a file has changed since, or a stage that it was made from is
        another one by now; says what to do.
    """
    provenance = _whole(folder, *read)
    _check_upstream(folder, provenance)
    return provenance["identity"]


def _check_upstream(folder: Path, provenance: dict) -> None:
    """Refuse a stage that was made from another than the one there now, or whose sources were."""
    for upstream, then in provenance.get("stages", {}).items():
        source = Path(os.path.normpath(folder / upstream))
        if (source / "provenance.json").is_file():
            made = _provenance(source)
            _check_upstream(source, made)
            if made["identity"] != then:
                raise GmpError(
                    f"{shown(folder)} was made from another {shown(source)} than the one there now; run "
                    f"notebooks/{notebook_of(folder)}.ipynb again, or remove {shown(folder)}."
                )


def make_stage(
    folder: Path,
    build: Callable[[Path], None],
    *,
    parameters: dict,
    module: str,
    stages: Sequence[Path] = (),
    inputs: Sequence[str] = (),
    protocol: dict | None = None,
) -> Path:
    """Make a stage whole or not at all, once, whoever else may be at it.

    Below a folder that has one named `SHARED`, runs share: a stage that another of them made with the
    same parameters, inputs and code is taken from there.

    Parameters
    ----------
    folder : Path
        Where it will be.
    build : callable
        Gets the temporary folder and fills it. After an interruption it finds there what it left,
        if nothing that matters has changed.
    parameters : dict
        Kept as params.json.
    module : str
        Name of the module that builds it; its source, and what it imports of this package, count.
    stages : sequence of Path
        Finished stages that it reads.
    inputs : sequence of str
        Identities of what else it reads.
    protocol : dict, optional
        Kept in provenance.json.

    Returns
    -------
    folder : Path
    """
    code = [file_digest(path) for path in sources(module)]
    made_from = {os.path.relpath(stage, folder): identity(stage) for stage in stages}
    described = [parameters, list(made_from.values()), list(inputs), code]
    own = text_digest(json.dumps(described, sort_keys=True, default=str))[:16]
    given = {"identity": own, "stages": made_from, "inputs": list(inputs), "protocol": protocol}
    shared = next((above / SHARED for above in folder.parents if (above / SHARED).is_dir()), None)
    with storage(folder), ExitStack() as locks:
        locks.enter_context(alone(folder.with_name(f".{folder.name}.lock"), shown(folder)))
        if _is(folder, own):
            print(f"{shown(folder)} is there, made with the same parameters, inputs and code.")
            return folder
        if not shared:
            _make(folder, build, parameters, given)
            return folder
        locks.enter_context(alone(shared / f"{own}.lock", f"the same as {shown(folder)}"))
        pointer = shared / f"{own}.json"
        twin = shared.parent / read_json(pointer)["made"] if pointer.is_file() else None
        if twin and _is(twin, own):
            print(f"{shown(folder)} is shared with {shown(twin)}, made with the same parameters.")
            _link(twin, folder)
        else:
            _make(folder, build, parameters, given)
            write_json(pointer, {"made": str(folder.relative_to(shared.parent))})
    return folder


def _is(folder: Path, own: str) -> bool:
    """Whether a folder holds the finished stage of that identity, undamaged."""
    if not (folder / "provenance.json").is_file():
        return False
    try:
        return _whole(folder)["identity"] == own
    except GmpError as error:
        print(f"{error} It is made anew now.")
        return False


def _link(twin: Path, folder: Path) -> None:
    """The same files in another folder, without what the notebook adds to its own."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept = shutil.ignore_patterns("headline.json", ".*")
    try:
        shutil.copytree(twin, partial, copy_function=os.link, ignore=kept)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.copytree(twin, partial, ignore=kept, dirs_exist_ok=True)
    _replace(folder, partial)


def _replace(folder: Path, partial: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _make(folder: Path, build: Callable[[Path], None], parameters: dict, given: dict) -> None:
    """Build under another name, and rename."""
    partial = folder.with_name(f".{folder.name}.partial")
    begun = partial / "identity.json"
    if _is(partial, given["identity"]):  # killed before it was renamed
        return _replace(folder, partial)
    resumed = begun.is_file() and read_json(begun)["identity"] == given["identity"]
    if partial.exists() and not resumed:
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_json(begun, {"identity": given["identity"]})
    write_json(partial / "params.json", parameters)
    began = time.monotonic()
    build(partial)
    begun.unlink()
    provenance = given | _circumstances(partial, began)
    write_json(partial / "provenance.json", provenance | {"digest": _digest(provenance)})
    _replace(folder, partial)


def _circumstances(folder: Path, began: float) -> dict:
    """Where, when and with what a stage was made, and what it consists of."""
    import torch

    from gmp_utils import hardware

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cuda = torch.cuda.is_available()
    return {
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "bfloat16": hardware.bfloat16(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() // 2**20 if cuda else None,
        "files": file_digests(folder),
    }


def shown(path: Path) -> str:
    """A path as messages show it: from the checkout, where it is below it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
