"""What this machine computes with."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_float32_only = ContextVar("float32_only", default=False)


def device() -> str:
    """Name it: "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bfloat16() -> bool:
    """Whether encoders run in bfloat16: where the hardware multiplies its matrices.

    GPUs since Ampere and processors with AMX do. Other processors take longer with bfloat16 than with
    float32 (benchmarks/NOTES.md).
    """
    if _float32_only.get():
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


@contextmanager
def float32() -> Iterator[None]:
    """Encoders run in float32 meanwhile, whatever the hardware is good at: as what is exported does."""
    before = _float32_only.set(True)
    try:
        yield
    finally:
        _float32_only.reset(before)


def fits(n_bytes: int) -> bool:
    """Whether there is a GPU, and so many bytes are at most half of what is free on it."""
    return torch.cuda.is_available() and n_bytes < torch.cuda.mem_get_info()[0] / 2
