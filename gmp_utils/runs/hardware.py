"""The device that models run on, its precision and its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psutil
import torch

_float32_only = ContextVar("float32_only", default=False)


def device() -> str:
    """Return "cuda" if available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bfloat16() -> bool:
    """Whether encoders run in bfloat16: on GPUs since Ampere and on processors with AMX.

    Other processors are slower in bfloat16 than in float32 (benchmarks/NOTES.md).
    """
    if _float32_only.get():
        return False
    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


@contextmanager
def float32() -> Iterator[None]:
    """Run encoders in float32 on any hardware, as exported models do."""
    before = _float32_only.set(True)
    try:
        yield
    finally:
        _float32_only.reset(before)


def fits(n_bytes: int) -> bool:
    """Whether `n_bytes` take less than half of a GPU's free memory; False without one."""
    return device() == "cuda" and n_bytes < free_bytes() / 2


def free_bytes() -> int:
    """Free memory of the GPU, or of the machine without one."""
    gpu = device() == "cuda"
    return torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available


def estimate(what: str, needed: int, free: int, remedy: str) -> None:
    """Print how many bytes are needed and free, and a warning with a remedy if too few are free."""
    needs, has = (f"{n / 1e9:.1f} GB" if n > 1e8 else f"{n / 1e6:.1f} MB" for n in (needed, free))
    print(f"{what}: about {needs}, {has} are free")
    if needed > free:
        print(f"WARNING: this may not fit. {remedy}")
