"""GMP-TL: speech emotion recognition with gender-augmented multi-scale pseudo-labels, stage by stage."""

import importlib
import os

__all__ = ["GmpError", "recognize"]

# Send the hub nothing but the name of a model, unless the user has set these variables.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


class GmpError(ValueError):
    """An unusable input. The message states what was found, what was expected and what to do."""


def check_choice(name: str, value, choices) -> None:
    """Raise a GmpError unless a value is one of the choices."""
    if value not in choices:
        raise GmpError(f"{name} {value!r}: expected one of {', '.join(choices)}.")


def __getattr__(name: str):
    """Import `recognize` on first use: it needs torch, which the workflow does not."""
    if name == "recognize":
        return importlib.import_module("gmp_utils.stages.recognize").recognize
    raise AttributeError(f"module 'gmp_utils' has no attribute {name!r}")
