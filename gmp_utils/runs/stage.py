"""Stages: folders that are written atomically, with a record of their provenance.

A run's folder has one folder per stage. A stage is written under a temporary name and renamed at the
end, so a folder with a provenance.json is a finished stage.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from gmp_utils import GmpError
from gmp_utils.runs import files, paths, weights
from gmp_utils.runs.code import code_digest
from gmp_utils.runs.files import exclusive_lock, read_json, text_digest, write_json
from gmp_utils.runs.paths import FOLD, ROOT, display_path, missing_artifact, notebook_of, run_folder

CACHE = ".shared"  # next to runs that share stages; it records where each was made
PACKAGES = ("torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn", "numpy")
FULL_DISK = 2**20  # a disk with fewer free bytes counts as full


def upstream(stage: str, parameters: dict) -> list[str]:
    """Stages that a stage reads, as paths in the run's folder, with ``{fold}`` for those of a fold.

    `stage` is the name of a notebook. For one classifier of notebook 06, `parameters` contain its `loss`.
    """
    stages = [paths.PREPARE_DATA]
    match stage:
        case paths.PREPARE_DATA:
            return []
        case paths.PROBE_LAYERS:
            stages.append(paths.stage_of(parameters["model"]))
        case paths.GENERATE_GMPS:
            if parameters["clustered_model"] == "multitask":
                stages.append(FOLD + paths.TRAIN_MULTITASK)
        case paths.RETRAIN:
            objective = parameters["objective"]
            if objective == "own":
                objective = weights.pretraining_objective(parameters["encoder"])
            if objective == "clusters":
                stages.append(FOLD + paths.GENERATE_GMPS)
            if parameters["retrain_from"] == "multitask":
                stages.append(FOLD + paths.TRAIN_MULTITASK)
        case paths.FINETUNE:
            stages += [
                paths.stage_of(model)
                for model in ("multitask", "retrained")
                if f"probe-{model}" in parameters.get("baselines", [])
            ]
            if parameters.get("loss", "").startswith("ce-then-"):
                stages.append(f"{FOLD}{stage}/{parameters['finetune_from']}/ce")
            else:
                stages.append(paths.stage_of(parameters["finetune_from"]))
        case paths.PERSONALIZE:
            if "papt" in parameters["representations"]:
                stages.append(FOLD + paths.GENERATE_GMPS)
    return list(dict.fromkeys(stages))


def _digest(provenance: dict) -> str:
    return text_digest(json.dumps(provenance, sort_keys=True))


def _check(folder: Path, read: Iterable[str] | None = None, *, thorough: bool = False) -> dict:
    """Provenance of a finished stage, after a check of the files to be `read` (default: all)."""
    path = folder / "provenance.json"
    try:
        provenance = read_json(path)
    except FileNotFoundError as error:
        raise missing_artifact(folder, notebook_of(folder)) from error
    except (OSError, ValueError):
        provenance = {}
    if provenance.pop("sha256", None) != _digest(provenance):
        problem = f"{path} is damaged, was changed, or was written by another version"
    else:
        problem = files.find_mismatch(folder, provenance["files"], read, thorough)
    if problem:
        headlines = [path / "headline.json" for path in (folder, folder.parent)]
        removed = next(filter(Path.is_file, headlines), folder)  # then its notebook makes it again
        raise GmpError(f"{problem}. Remove {display_path(removed)} and run the same command again.")
    return provenance


def check_and_identify(folder: Path, *read: str) -> str:
    """Identity of a finished stage, a hash of its parameters, inputs and code.

    Raises a GmpError if the stage is missing, if one of the files to be `read` (default: all) has
    changed, or if a stage that it was made from has been replaced.
    """
    provenance = _check(folder, read or None)
    _check_upstream(folder, provenance)
    return provenance["identity"]


def _check_upstream(folder: Path, provenance: dict) -> None:
    """Raise if a stage, or one upstream, was made from a stage that has been replaced."""
    for path, identity in provenance["stages"].items():
        source = Path(os.path.normpath(folder / path))
        if (source / "provenance.json").is_file():
            current = _check(source, read=())
            _check_upstream(source, current)
            if current["identity"] != identity:
                found = f"{display_path(folder)} was made from another version of {display_path(source)}"
                remedy = f"run notebooks/{notebook_of(folder)}.ipynb again, or remove the folder"
                raise GmpError(f"{found}; {remedy}.")


def lineage(stage: Path) -> list[Path]:
    """A stage, preceded by all stages it was made from except the prepared data."""
    if not (stage / "provenance.json").is_file():
        raise missing_artifact(stage, notebook_of(stage))
    upstream = read_json(stage / "provenance.json")["stages"]
    sources = [Path(os.path.normpath(stage / source)) for source in upstream]
    earlier = [lineage(source) for source in sources if source.name != paths.PREPARE_DATA]
    return [*dict.fromkeys(chain(*earlier)), stage]


def check_same_encoder(stages: Iterable[Path], encoder: str) -> None:
    """Raise a GmpError if one of these stages of notebooks 02 to 06 was made from another encoder."""
    expected = [weights.fingerprint(encoder)]
    for stage in dict.fromkeys(chain(*map(lineage, stages))):
        if read_json(stage / "provenance.json")["inputs"] not in ([], expected):
            found = f"{display_path(stage)} was made from another encoder than {encoder!r}"
            remedy = "set the same encoder (with its commit, if it is on the hub)"
            raise GmpError(f"{found}; {remedy}, or run notebooks/{notebook_of(stage)}.ipynb again.")


def verify(run_dir: str) -> list[str]:
    """Compare the files of a run's finished stages with their SHA-256; returns the problems."""
    run, problems = run_folder(run_dir), []
    found = [path.parent for path in sorted(run.rglob("provenance.json"))]
    stages = [path for path in found if "/." not in f"/{path.relative_to(run)}"]
    for folder in stages:
        try:
            _check_upstream(folder, _check(folder, thorough=True))
        except GmpError as error:
            problems.append(str(error))
    return problems if stages else [f"{display_path(run)}: no finished stage there."]


def make_stage(
    folder: Path,
    build: Callable[[Path], None],
    *,
    parameters: dict,
    stages: Sequence[Path] = (),
    inputs: Sequence[str] = (),
    module: str = "",
    protocol: dict | None = None,
) -> Path:
    """Make a stage completely or not at all, unless it is up to date.

    `build` fills a temporary folder. After an interruption, it still contains what was written before, unless
    the parameters, the `stages` that are read, the digests of other `inputs`, or the code of `module` (by
    default that of `build`, which may be a `partial`; see `gmp_utils.runs.code`) have changed. By default,
    the protocol is that of the stages that are read, or None if they differ. Runs next to a folder named
    `CACHE` share stages by hard links.
    """
    made_from = {os.path.relpath(stage, folder): check_and_identify(stage) for stage in stages}
    described = [parameters, list(made_from.values()), list(inputs)]
    described.append(code_digest(module or getattr(build, "func", build).__module__))
    identity = text_digest(json.dumps(described, sort_keys=True, default=str))[:16]
    read = [read_json(stage / "provenance.json")["protocol"] for stage in stages]
    if read and read.count(read[0]) == len(read):
        protocol = protocol or read[0]
    record = dict(identity=identity, stages=made_from, inputs=list(inputs), protocol=protocol)
    cache = next((above / CACHE for above in folder.parents if (above / CACHE).is_dir()), None)
    name = display_path(folder)
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), name):
        if _is_current(folder, identity):
            print(f"{name} is up to date.")
        elif not cache:
            _make(folder, build, parameters, record)
        else:
            with exclusive_lock(cache / f"{identity}.lock", f"the same as {name}"):
                if not _link(cache, folder, identity):
                    _make(folder, build, parameters, record)
                    made = {"made": str(folder.relative_to(cache.parent))}
                    write_json(cache / f"{identity}.json", made)
    return folder


def _is_current(folder: Path, identity: str) -> bool:
    """Whether a folder is an undamaged stage of an identity."""
    if not (folder / "provenance.json").is_file():
        return False
    try:
        return _check(folder)["identity"] == identity
    except GmpError as error:
        print(f"{error} Rebuilding it.")
        return False


def _link(cache: Path, folder: Path, identity: str) -> bool:
    """Link the files of an equal stage of another run, if the cache records an undamaged one."""
    entry = cache / f"{identity}.json"
    cached = cache.parent / read_json(entry)["made"] if entry.is_file() else None
    if not cached or not _is_current(cached, identity):
        return False
    print(f"{display_path(folder)} is shared with {display_path(cached)}.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept = shutil.ignore_patterns("headline.json", ".*")  # a notebook adds its own headline
    try:
        shutil.copytree(cached, partial, copy_function=os.link, ignore=kept)
    except OSError:  # a file system without hard links
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(cached, partial, ignore=kept)
    _replace(folder, partial)
    return True


def _replace(folder: Path, partial: Path) -> None:
    """Rename a finished stage, replacing an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _make(folder: Path, build: Callable[[Path], None], parameters: dict, record: dict) -> None:
    """Build under a temporary name, then rename."""
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
        if shutil.disk_usage(partial).free < FULL_DISK:  # not every library reports it
            error.add_note(f"{display_path(partial)}: no space left; free some and run it again.")
        raise
    marker.unlink()
    provenance = record | _circumstances(partial, began)
    write_json(partial / "provenance.json", provenance | {"sha256": _digest(provenance)})
    _replace(folder, partial)


def _circumstances(folder: Path, began: float) -> dict:
    """Versions, hardware, time and memory of a stage, and its files."""
    import torch

    from gmp_utils.runs import hardware

    gpu, gpu_memory = hardware.device() == "cuda", None
    if gpu:
        gpu_memory = torch.cuda.max_memory_allocated() // 2**20
        torch.cuda.reset_peak_memory_stats()
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or "CPU",
        "bfloat16": hardware.bfloat16(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": hardware.peak_memory() // 2**20,
        "peak_gpu_memory_mb": gpu_memory,
        "files": files.describe_files(folder),
    }
