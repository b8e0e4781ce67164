"""Digests of the code that can change a stage's numbers.

A digest includes a module and all that it imports, directly or not, from its own subpackage and from data/,
models/, training/ and evaluation/. It excludes the readers of corpora, because their manifests are inputs of
a stage, and the tables of evaluation/, unless the stage writes tables. Comments, docstrings, printed text and
messages of `GmpError` are ignored.
"""

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

from gmp_utils.runs.files import read_json, text_digest
from gmp_utils.runs.paths import NOTEBOOKS, ROOT

COUNTED = ("data", "models", "training", "evaluation")
SPEECH = ("espeak", "synthetic", "synthetic_speakers")  # modules of data.corpora that synthesize
READERS = {"data.corpora"} | {
    f"data.corpora.{path.stem}"
    for path in ROOT.glob("gmp_utils/data/corpora/*.py")
    if path.stem not in SPEECH
}
TABLES = tuple(f"evaluation.{name}" for name in ("collect", "comparison", "ratings", "tables"))


class _RemoveWords(ast.NodeTransformer):
    """Remove docstrings, printed text and error messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in ("GmpError", "print"):
            return ast.Call(node.func, [], [])
        return self.generic_visit(node)


def _imports(tree: ast.AST) -> list[str]:
    """Modules of gmp_utils, and names in them, that are imported anywhere in the code."""
    return [
        name.removeprefix("gmp_utils.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmp_utils")
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]


@cache
def _read(path: Path) -> tuple[str, list[str]]:
    """Code of a module without its texts, and its imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return ast.unparse(_RemoveWords().visit(tree)), _imports(tree)


def counted_modules(modules: Collection[str], excluded: Collection[str] = ()) -> dict[str, str]:
    """Code of modules and of what they import, by name without `gmp_utils`."""
    counted = {*COUNTED, *(name.split(".")[0] for name in modules)}
    code, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath("gmp_utils", *name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        counts = name.split(".")[0] in counted and name not in excluded
        if counts and name not in code and path.is_file():
            code[name], imported = _read(path)
            waiting += imported
    return code


def code_digest(module: str) -> str:
    """SHA-256 of the code that can change what a module computes for a stage."""
    name = module.removeprefix("gmp_utils.")
    tables = "interventions", "probe_layers", "publish", "results", "robustness"
    stages = [f"stages.{table}" for table in tables]
    makes_tables = name in stages or name.startswith("evaluation.")
    code = counted_modules([name], [*READERS, *(() if makes_tables else TABLES)])
    return text_digest(repr(sorted(code.items())))


def notebook_digest(notebook: str) -> str:
    """SHA-256 of a notebook's code, without comments, and of the code that can change its numbers."""
    from IPython.core.inputtransformer2 import TransformerManager  # stages do not need it

    cells = read_json(NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    transform = TransformerManager().transform_cell  # of lines such as !nvidia-smi
    tree = ast.parse("\n".join(map(transform, sources)))
    imported = [name for name in _imports(tree) if name.startswith((*COUNTED, "stages"))]
    return text_digest(repr([ast.unparse(tree), *sorted(counted_modules(imported).items())]))
