"""The rooms of the package: which may import which, and how many floors they have."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["runs", "data", "models", "training", "evaluation", "stages", "figures"]
FORBIDDEN = {  # besides every later room
    "models": [
        f"runs.{name}" for name in ("paths", "code", "stage", "upstream", "notebook", "experiments")
    ],
    "evaluation": ["training"],
}
FLOORS = 9


def read_imports() -> dict[str, set[str]]:
    """Modules of the package, each with the modules of the package that it imports."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "gmp_utils").rglob("*.py"))
    }
    found = {}
    for module, path in paths.items():
        nodes = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmp_utils")
        ]
        imported = {
            full if (full := f"{node.module}.{alias.name}") in paths else node.module
            for node in nodes
            for alias in node.names
        }
        found[module] = {name.removeprefix("gmp_utils.") for name in imported} - {"gmp_utils"}
    return {module.removeprefix("gmp_utils."): names for module, names in found.items()}


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
            assert not broken, f"{module} imports {imported}: {room}/ must not know {forbidden}"


def test_there_are_at_most_nine_floors():
    floors: dict[str, int] = {}

    def floor(module: str, above: tuple[str, ...] = ()) -> int:
        assert module not in above, f"imports go in a circle: {' -> '.join((*above, module))}"
        if module not in floors:
            below = [floor(name, (*above, module)) for name in IMPORTS[module]]
            floors[module] = 1 + max(below, default=0)
        return floors[module]

    highest = max(IMPORTS, key=floor)
    assert floors[highest] <= FLOORS, f"{highest} stands on floor {floors[highest]}"


def test_every_room_says_what_it_is_for():
    for room in ROOMS:
        page = ast.get_docstring(ast.parse((ROOT / "gmp_utils" / room / "__init__.py").read_text()))
        assert page, f"{room}/__init__.py has no sentence at its head"
