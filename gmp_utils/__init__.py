"""GMP-TL, speech emotion recognition with gender-augmented multi-scale pseudo-labels, stage by stage."""

import os

from gmp_utils.errors import GmpError

__all__ = ["GmpError"]

# The hub is asked for weights by name and told nothing else; what the user set goes before.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else it is asked to convert others'
