"""Stages: folders that are made once and completely, with a record of what made them.

A run's folder holds one folder per stage. A stage is written under a temporary name and renamed at its
end: a folder with a provenance.json is a finished stage.
"""

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

from gmp_utils import GmpError
from gmp_utils.runs.code import code_digest
from gmp_utils.runs.files import (
    describe_files,
    exclusive_lock,
    find_mismatch,
    read_json,
    text_digest,
    write_json,
)
from gmp_utils.runs.paths import ROOT, display_path, missing_artifact, notebook_of, run_folder

CACHE = ".shared"  # next to runs that share stages: where each was made first
PACKAGES = ("torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn", "numpy")
FULL = 2**20  # bytes left on a disk that is as good as full


def _provenance(folder: Path) -> dict:
    """Provenance of a finished stage."""
    path = folder / "provenance.json"
    try:
        provenance = read_json(path)
        if provenance.pop("sha256", None) != _digest(provenance):
            raise ValueError("was changed, or written by another version")
    except FileNotFoundError as error:
        raise missing_artifact(folder, notebook_of(folder)) from error
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"{path}: {error}") from error
    return provenance


def _digest(provenance: dict) -> str:
    return text_digest(json.dumps(provenance, sort_keys=True))


def _damaged(folder: Path, what: str) -> GmpError:
    return GmpError(
        f"{what}. Remove {display_path(folder)} and run the same again; all else is kept."
    )


def _check_files(folder: Path, *read: str, thorough: bool = False) -> dict:
    """Provenance of a finished stage whose files are those that were written."""
    provenance = _provenance(folder)
    mismatch = find_mismatch(folder, provenance["files"], read, thorough=thorough)
    if mismatch:
        raise _damaged(folder, mismatch)
    return provenance


def check_and_identify(folder: Path, *read: str) -> str:
    """Identity of a finished stage: the same parameters, inputs and code have the same one.

    Raises a GmpError if the stage is missing, a file has changed of those that are going to be `read`
    (all if none are named), or a stage that it was made from is another one now.
    """
    provenance = _check_files(folder, *read)
    _check_upstream(folder, provenance)
    return provenance["identity"]


def _check_upstream(folder: Path, provenance: dict) -> None:
    """Raise if a stage, or one upstream, was made from another stage than the one that is there now."""
    for upstream, identity in provenance["stages"].items():
        source = Path(os.path.normpath(folder / upstream))
        if (source / "provenance.json").is_file():
            made = _provenance(source)
            _check_upstream(source, made)
            if made["identity"] != identity:
                raise GmpError(
                    f"{display_path(folder)} was made from another {display_path(source)} than the one "
                    f"there now; run notebooks/{notebook_of(folder)}.ipynb again, or remove "
                    f"{display_path(folder)}."
                )


def verify(run_dir: str) -> list[str]:
    """Compare the content of every file of a run's finished stages with its SHA-256; return problems."""
    run, problems = run_folder(run_dir), []
    stages = [path.parent for path in sorted(run.rglob("provenance.json"))]
    stages = [path for path in stages if "/." not in f"/{path.relative_to(run)}"]
    for folder in stages:
        try:
            _check_upstream(folder, _check_files(folder, thorough=True))
        except GmpError as error:
            problems.append(str(error))
    return problems if stages else [f"{display_path(run)}: no finished stage there."]


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
    """Make a stage completely or not at all, unless it is up to date.

    Below a folder that has one named `CACHE`, runs share stages: what another of them made with the same
    parameters, inputs and code is linked.

    Parameters
    ----------
    folder : Path
    build : callable
        Fills the temporary folder that it gets. After an interruption that holds what was written before,
        unless parameters, inputs or code have changed.
    parameters : dict
        Kept as params.json.
    module : str
        Name of the module that computes the stage; see `gmp_utils.runs.code`.
    stages : sequence of Path
        Finished stages that are read.
    inputs : sequence of str
        Digests of what else is read.
    protocol : dict, optional
        Kept in provenance.json.
    """
    made_from = {os.path.relpath(stage, folder): check_and_identify(stage) for stage in stages}
    described = [parameters, list(made_from.values()), list(inputs), code_digest(module)]
    identity = text_digest(json.dumps(described, sort_keys=True, default=str))[:16]
    record = {
        "identity": identity,
        "stages": made_from,
        "inputs": list(inputs),
        "protocol": protocol,
    }
    cache = next((above / CACHE for above in folder.parents if (above / CACHE).is_dir()), None)
    with ExitStack() as locks:
        lock = folder.with_name(f".{folder.name}.lock")
        locks.enter_context(exclusive_lock(lock, display_path(folder)))
        if _is_current(folder, identity):
            print(f"{display_path(folder)} is up to date.")
        elif cache:
            lock = exclusive_lock(cache / f"{identity}.lock", f"the same as {display_path(folder)}")
            locks.enter_context(lock)
            _link_or_make(cache, folder, build, parameters, record)
        else:
            _make(folder, build, parameters, record)
    return folder


def _is_current(folder: Path, identity: str) -> bool:
    """Whether a folder holds the finished stage of that identity, undamaged."""
    if not (folder / "provenance.json").is_file():
        return False
    try:
        return _check_files(folder)["identity"] == identity
    except GmpError as error:
        print(f"{error} Rebuilding it.")
        return False


def _link_or_make(
    cache: Path, folder: Path, build: Callable[[Path], None], parameters: dict, record: dict
) -> None:
    """Link the files of the same stage of another run, or make it and enter it in the cache."""
    entry = cache / f"{record['identity']}.json"
    cached = cache.parent / read_json(entry)["made"] if entry.is_file() else None
    if not cached or not _is_current(cached, record["identity"]):
        _make(folder, build, parameters, record)
        write_json(entry, {"made": str(folder.relative_to(cache.parent))})
        return
    print(f"{display_path(folder)} is shared with {display_path(cached)}.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept = shutil.ignore_patterns("headline.json", ".*")  # a notebook adds its own headline
    try:
        shutil.copytree(cached, partial, copy_function=os.link, ignore=kept)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.copytree(cached, partial, ignore=kept, dirs_exist_ok=True)
    _replace(folder, partial)


def _replace(folder: Path, partial: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _make(folder: Path, build: Callable[[Path], None], parameters: dict, record: dict) -> None:
    """Build under a temporary name, and rename."""
    partial = folder.with_name(f".{folder.name}.partial")
    marker = partial / "identity.json"
    if _is_current(partial, record["identity"]):  # killed just before it was renamed
        return _replace(folder, partial)
    resumed = marker.is_file() and read_json(marker)["identity"] == record["identity"]
    if partial.exists() and not resumed:
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_json(marker, {"identity": record["identity"]})
    write_json(partial / "params.json", parameters)
    began = time.monotonic()
    try:
        build(partial)
    except Exception as error:
        if shutil.disk_usage(partial).free < FULL:  # not every library says so
            error.add_note(
                f"{display_path(partial)}: no space left. Free some and run the same again."
            )
        raise
    marker.unlink()
    provenance = record | _circumstances(partial, began)
    write_json(partial / "provenance.json", provenance | {"sha256": _digest(provenance)})
    _replace(folder, partial)


def _circumstances(folder: Path, began: float) -> dict:
    """Where, when and with what a stage was made, and its files."""
    from gmp_utils.runs import hardware  # imports torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": hardware.device_name(),
        "bfloat16": hardware.bfloat16(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mb": hardware.peak_gpu_memory_mb(),
        "files": describe_files(folder),
    }
