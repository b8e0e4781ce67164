"""The subpackages: which may import which, and how deep imports are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["runs", "data", "models", "training", "evaluation", "stages", "figures"]
FORBIDDEN = {  # besides all later subpackages
    "models": ["runs.paths", "runs.code", "runs.stage", "runs.notebook",
               "runs.experiments"],
    "evaluation": ["training"],
}  # fmt: skip
FLOORS = 9


def read_imports() -> dict[str, set[str]]:
    """For each module of the package, the modules of the package that it imports."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "gmp_utils").rglob("*.py"))
    }
    imports = {}
    for module, path in paths.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        names = [(n.module or "", f"{n.module}.{alias.name}") for n in nodes for alias in n.names]
        imported = {
            full if full in paths else name for name, full in names if name[:9] == "gmp_utils"
        }
        imports[module] = {name.removeprefix("gmp_utils.") for name in imported} - {"gmp_utils"}
    return {module.removeprefix("gmp_utils."): names for module, names in imports.items()}


IMPORTS = read_imports()
assert len(IMPORTS) > 40


def test_the_package_has_nine_entries():
    entries = {path.name for path in (ROOT / "gmp_utils").iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", "__main__.py", *ROOMS}


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_run_one_way(module):
    room = module.split(".")[0]
    if room not in ROOMS:
        return
    later = ROOMS[ROOMS.index(room) + 1 :]
    for imported in sorted(IMPORTS[module]):
        for forbidden in [*later, *FORBIDDEN.get(room, [])]:
            broken = imported == forbidden or imported.startswith(f"{forbidden}.")
            assert not broken, f"{module} imports {imported}: {room}/ must not import {forbidden}"


def test_imports_are_at_most_nine_deep():
    floors: dict[str, int] = {}

    def floor(module: str, above: tuple[str, ...] = ()) -> int:
        assert module not in above, f"circular import: {' -> '.join((*above, module))}"
        if module not in floors:
            below = [floor(name, (*above, module)) for name in IMPORTS[module]]
            floors[module] = 1 + max(below, default=0)
        return floors[module]

    highest = max(IMPORTS, key=floor)
    assert floors[highest] <= FLOORS, f"{highest} has an import depth of {floors[highest]}"
