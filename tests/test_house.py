"""The subpackages: which may import which, and how deep imports are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ["runs", "data", "models", "training", "evaluation", "stages", "figures"]
FORBIDDEN = {  # besides all later subpackages
    "models": ["runs.paths", "runs.code", "runs.stage", "runs.notebook",
               "runs.experiments"],
    "evaluation": ["training"],
}  # fmt: skip
MAX_DEPTH = 9


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
    assert entries == {"__init__.py", "__main__.py", *SUBPACKAGES}


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_run_one_way(module):
    subpackage = module.split(".")[0]
    if subpackage not in SUBPACKAGES:
        return
    later = SUBPACKAGES[SUBPACKAGES.index(subpackage) + 1 :]
    for imported in sorted(IMPORTS[module]):
        for forbidden in [*later, *FORBIDDEN.get(subpackage, [])]:
            broken = imported == forbidden or imported.startswith(f"{forbidden}.")
            assert not broken, (
                f"{module} imports {imported}: {subpackage}/ must not import {forbidden}"
            )


def test_imports_are_at_most_nine_deep():
    depths: dict[str, int] = {}

    def depth(module: str, above: tuple[str, ...] = ()) -> int:
        assert module not in above, f"circular import: {' -> '.join((*above, module))}"
        if module not in depths:
            below = [depth(name, (*above, module)) for name in IMPORTS[module]]
            depths[module] = 1 + max(below, default=0)
        return depths[module]

    highest = max(IMPORTS, key=depth)
    assert depths[highest] <= MAX_DEPTH, f"{highest} has an import depth of {depths[highest]}"


def test_no_function_has_more_than_sixty_lines():
    for path in (ROOT / "gmp_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = (ast.get_docstring(node, clean=False) or "").splitlines()
                lines = node.end_lineno - node.lineno + 1 - len(docstring)
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"
