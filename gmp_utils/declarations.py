"""What is declared in a few lines of YAML: experiments, and the recipes of the family."""

import os
import re
from pathlib import Path

import yaml

from gmp_utils import runs
from gmp_utils.errors import GmpError

CONFIG = runs.ROOT / "workflow" / "config"
RECIPES = runs.ROOT / "presets" / "recipes"


def declared(name: str) -> dict:
    """Read an experiment's declaration.

    Parameters
    ----------
    name : str
        Of a file in workflow/config, or the path of another.

    Returns
    -------
    declaration : dict
        `question`, `variants` (parameters by name), `folds`, `seeds`, and, where they are given,
        `parameters` of all variants, `against` (the variant that the others are compared with,
        without it every two) and `paper` (by variant and loss: UAR and WAR in percent).

    Raises
    ------
    GmpError
        For a name that no file has, or entries that no declaration has or that are of another kind.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIG / f"{name}.yaml"
    if not os.path.isfile(path):
        known = ", ".join(sorted(file.stem for file in CONFIG.glob("*.yaml")))
        raise GmpError(
            f"experiment {name!r}: expected one of {known}, or a file that ends in .yaml."
        )
    optional = {"parameters": {}, "against": None, "paper": {}}
    found = optional | read_yaml(path)
    required = ("question", "variants", "folds", "seeds")
    expected = {*required, *optional}
    if set(found) != expected:
        odd = ", ".join(sorted(set(found) ^ expected))
        raise GmpError(
            f"{path.name}: {odd}; expected {', '.join(required)}, and maybe {', '.join(optional)}."
        )
    kinds = {"question": str, "variants": dict, "folds": list, "seeds": list, "parameters": dict}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind) or not (found[name] or name == "parameters"):
            raise GmpError(
                f"{path.name}: {name}: found {found[name]!r}, expected a filled {kind.__name__}."
            )
    numbers = [*found["folds"], *found["seeds"]]
    if not all(type(one) is int and one >= 0 for one in numbers):
        raise GmpError(
            f"{path.name}: folds and seeds: found {numbers!r}, expected numbers from 0 on."
        )
    for name, changes in found["variants"].items():
        if not (isinstance(name, str) and slug(name) and isinstance(changes, dict)):
            raise GmpError(
                f"{path.name}: variant {name!r}: found {changes!r}, expected a name (yes, no and numbers "
                "in quotes) and the parameters that it changes, or {}."
            )
    if found["against"] is not None and found["against"] not in found["variants"]:
        raise GmpError(f"{path.name}: against {found['against']!r} is none of the variants.")
    if len(set(map(slug, found["variants"]))) < len(found["variants"]):
        raise GmpError(
            f"{path.name}: two variants would have the same folder; name them otherwise."
        )
    return found


def recipe(name: str) -> dict:
    """The parameters of a system of the family: what it changes of the series.

    Parameters
    ----------
    name : str
        Of a file in presets/recipes.

    Raises
    ------
    GmpError
        For another name.
    """
    known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if name not in known:
        raise GmpError(f"recipe {name!r}: expected one of {', '.join(known)}.")
    return read_yaml(RECIPES / f"{name}.yaml")


def cooked(parameters: dict) -> dict:
    """Parameters with those of the recipe that they name, over which they go."""
    rest = {name: value for name, value in parameters.items() if name != "recipe"}
    return recipe(parameters["recipe"]) | rest if "recipe" in parameters else rest


def one_number(variants: dict[str, dict]) -> bool:
    """Whether variants are steps of a single number, as layers are."""
    changed = {name for own in variants.values() for name in own}
    values = [value for own in variants.values() for value in own.values()]
    numbers = all(type(value) in (int, float) for value in values)
    return len(changed) == 1 and len(values) == len(variants) > 2 and numbers


def slug(name: str) -> str:
    """A name as a folder or a file may have it, in small letters."""
    return file_name(name.lower())


def file_name(text: str) -> str:
    """A text as a folder or a file may be called."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def read_yaml(path: Path) -> dict:
    """Names and values of a file of ours or the user's."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GmpError(f"{path}: found no YAML that can be read ({error}).") from error
    if not isinstance(found, dict | None):
        raise GmpError(f"{path}: found {found!r:.80}, expected lines of `name: value`.")
    return found or {}
