"""What this machine computes with."""

import torch


def device() -> str:
    """Name it: "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bfloat16() -> bool:
    """Whether encoders run in bfloat16: where the hardware multiplies its matrices.

    GPUs since Ampere and processors with AMX do. Other processors take longer with bfloat16 than with
    float32 (benchmarks/NOTES.md). What is exported computes in float32.
    """
    if torch.jit.is_tracing():
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def fits(n_bytes: int) -> bool:
    """Whether there is a GPU, and so many bytes are at most half of what is free on it."""
    return torch.cuda.is_available() and n_bytes < torch.cuda.mem_get_info()[0] / 2
