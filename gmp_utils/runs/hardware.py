"""The device that models run on, its precision and its memory."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psutil
import torch

_float32_only = ContextVar("float32_only", default=False)


def device() -> str:
    """Return "cuda" if available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """Name of the GPU if there is one, else of the processor."""
    if device() == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or "CPU"


def bfloat16() -> bool:
    """Whether encoders run in bfloat16: where the hardware multiplies its matrices.

    GPUs since Ampere and processors with AMX do. Other processors take longer with bfloat16 than with
    float32 (benchmarks/NOTES.md).
    """
    if _float32_only.get():
        return False
    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


@contextmanager
def float32() -> Iterator[None]:
    """Run encoders in float32 meanwhile, whatever the hardware, as exported models do."""
    before = _float32_only.set(True)
    try:
        yield
    finally:
        _float32_only.reset(before)


def fits(n_bytes: int) -> bool:
    """Whether `n_bytes` are at most half of what is free on a GPU; False without one."""
    return device() == "cuda" and n_bytes < free_bytes() / 2


def free_bytes() -> int:
    """Free memory of the GPU, or of the machine without one."""
    if device() == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def peak_gpu_memory_mb() -> int | None:
    """Most memory that this process has held on the GPU; None without one."""
    return torch.cuda.max_memory_allocated() // 2**20 if device() == "cuda" else None


def estimate(what: str, needed: int, free: int, remedy: str) -> None:
    """Print how many bytes are needed and free, and a warning with a remedy if that is too few."""
    needs, has = (f"{n / 1e9:.1f} GB" if n > 1e8 else f"{n / 1e6:.1f} MB" for n in (needed, free))
    print(f"{what}: about {needs}, {has} are free")
    if needed > free:
        print(f"WARNING: this may not fit. {remedy}")
