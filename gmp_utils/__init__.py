"""GMP-TL, speech emotion recognition with gender-augmented multi-scale pseudo-labels, stage by stage."""

from gmp_utils.errors import GmpError

__all__ = ["GmpError"]
