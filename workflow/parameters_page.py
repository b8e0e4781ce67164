"""Write docs/parameters.md from the parameters cells of all notebooks.

python workflow/parameters_page.py
"""

import re

from gmp_utils.runs.files import read_json
from gmp_utils.runs.notebook import series_parameters
from gmp_utils.runs.paths import NOTEBOOKS, ROOT

PAGE = ROOT / "docs" / "parameters.md"
INTRODUCTION = """# Parameters

The parameters of each notebook, with the defaults of the demo. Set them in the notebook's parameters
cell, by papermill's `-p NAME VALUE`, or for the whole series in a [preset](experiments.md#one-run).
`.venv/bin/python workflow/parameters_page.py` writes this page, and `make docs` calls it.
"""
LINE = re.compile(r"(?P<name>\w+): (?P<type>\w+) = (?P<default>.+?)  # (?P<help>.+)")


def page() -> str:
    """Markdown with one table per notebook."""
    lines = [INTRODUCTION]
    for name, parameters in series_parameters().items():
        lines += [f"## {name}", "", f"[Notebook](../notebooks/{name}.ipynb)", ""]
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        cells = read_json(NOTEBOOKS / f"{name}.ipynb")["cells"]
        (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        rows = [LINE.fullmatch(line.rstrip("\n")) for line in cell["source"]]
        assert [row and row["name"] for row in rows] == list(parameters), name
        lines += [
            "| `{name}` | {type} | `{default}` | {help} |".format(**row.groupdict()) for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
