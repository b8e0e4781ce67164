"""GMP-TL, speech emotion recognition with gender-augmented multi-scale pseudo-labels, stage by stage."""

import importlib
import os

import wrapt

__all__ = ["GmpError", "recognize"]

# The hub is asked for weights by name and told nothing else; what the user set goes before.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else it is asked to convert others'


class GmpError(ValueError):
    """Something the user gave cannot be used.

    The message names what was found, what was expected and what to do.
    """


def __getattr__(name: str):
    """`recognize`, when it is asked for: torch takes seconds to import, and the workflow needs none."""
    if name == "recognize":
        return importlib.import_module("gmp_utils.stages.recognize").recognize
    raise AttributeError(f"module 'gmp_utils' has no attribute {name!r}")


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_when_used(module) -> None:
    """Make our models known to transformers' Auto classes once one of these is asked for a model.

    No sooner: on import, transformers' or ours may be half imported.
    """

    def registered(load, _class, arguments, options):
        importlib.import_module("gmp_utils.models.recognizer")
        return load(*arguments, **options)

    wrapt.wrap_function_wrapper(module, "AutoConfig.from_pretrained", registered)
