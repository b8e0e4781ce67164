"""GMP-TL, speech emotion recognition with gender-augmented multi-scale pseudo-labels, stage by stage."""

import importlib
import os

import wrapt

from gmp_utils.errors import GmpError

__all__ = ["GmpError", "recognize"]

# The hub is asked for weights by name and told nothing else; what the user set goes before.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else it is asked to convert others'


def __getattr__(name: str):
    """`recognize`, when it is asked for: torch takes seconds to import, and the workflow needs none."""
    if name == "recognize":
        return importlib.import_module("gmp_utils.recognition").recognize
    raise AttributeError(f"module 'gmp_utils' has no attribute {name!r}")


# Our models are registered with transformers' Auto classes as soon as these, and what ours need, are there.
@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _import_encoders(_module) -> None:
    importlib.import_module("gmp_utils.encoders")


@wrapt.when_imported("gmp_utils.encoders")
def _register(_module) -> None:
    importlib.import_module("gmp_utils.recognizer")
