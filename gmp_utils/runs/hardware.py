"""The device that models run on, its precision, and the memory and cores of this process."""

import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import joblib
import psutil

OWN_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MEMORY = {  # of each version of cgroups: folder, limit, use, and the cache in it that can be freed
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@cache
def device() -> str:
    """Return "cuda" if there is a GPU for which torch has kernels, else "cpu"."""
    import torch  # the workflow counts cores here without torch

    if not torch.cuda.is_available():
        return "cpu"
    major, minor = torch.cuda.get_device_capability()
    built = [int(name[3:].rstrip("af")) for name in torch.cuda.get_arch_list() if name[:3] == "sm_"]
    if built and 10 * major + minor < min(built):
        found = f"the GPU's compute capability is {major}.{minor}"
        remedy = "The CPU is used; install an older torch for the GPU."
        warnings.warn(f"{found}, this torch needs {min(built) / 10}. {remedy}", stacklevel=2)
        return "cpu"
    return "cuda"


def bfloat16() -> bool:
    """Whether encoders run in bfloat16: on GPUs since Ampere and on processors with AMX.

    Other processors are slower in bfloat16 than in float32 (benchmarks/NOTES.md).
    """
    import torch

    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def fits(n_bytes: int) -> bool:
    """Whether `n_bytes` take less than half of the GPU's free memory; False without a GPU."""
    import torch

    return device() == "cuda" and n_bytes < torch.cuda.mem_get_info()[0] / 2


def free_memory() -> int:
    """Free main memory in bytes, within the limits of a container or job."""
    return min([psutil.virtual_memory().available, *_left_to_cgroups()])


def _left_to_cgroups() -> Iterator[int]:
    """Free bytes within the limits of this process's cgroup and of each that contains it."""
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else []:
        _, controllers, path = line.split(":", 2)
        for controller in MEMORY.keys() & controllers.split(","):
            mount, *names, cache_name = MEMORY[controller]
            group = Path(mount) / path.lstrip("/")
            for folder in (CGROUPS / part for part in (group, *group.parents)):
                try:
                    limit, used = (int((folder / name).read_text()) for name in names)
                    values = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                except (OSError, ValueError):  # not mounted here, or the limit is "max"
                    continue
                yield max(limit - used + int(values.get(cache_name, 0)), 0)


def peak_memory() -> int:
    """Peak main memory of this process in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    """Processor cores that this process may use, within the limits of a container or job."""
    return min(joblib.cpu_count(), int(os.environ.get("SLURM_CPUS_ON_NODE", sys.maxsize)))


def prepare_libraries() -> None:
    """Limit torch's threads to `cores`, and transformers to errors.

    By default, torch counts the cores of the machine.
    """
    import torch
    import transformers

    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def estimate(what: str, needed: int, free: int, remedy: str) -> None:
    """Print how many bytes are needed and free, and a warning with a remedy if too few are free."""
    needs, has = (f"{n / 1e9:.1f} GB" if n > 1e8 else f"{n / 1e6:.1f} MB" for n in (needed, free))
    print(f"{what}: about {needs}, {has} are free")
    if needed > free:
        print(f"WARNING: this may not fit. {remedy}")
