"""Put the outputs of the demo's run into the committed notebooks: text and PNG, small, no paths.

python workflow/commit_outputs.py
"""

import nbformat

from gmp_utils import runs

EXECUTED = runs.ROOT / "runs" / "demo" / "notebooks"
README_FIGURE = "03-probes-multitask-fold1"


def committed(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The executed notebook without what papermill added, interactive copies of figures, and sound."""
    cells = []
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
                and "<audio" not in output.get("data", {}).get("text/html", "")
            ]
            for output in outputs:
                output.get("data", {}).pop("application/vnd.plotly.v1+json", None)
                if "image/png" in output.get("data", {}):
                    output.data = {"image/png": output.data["image/png"]}
            cell.outputs = [output for output in outputs if output.get("data", True)]
        cells.append(cell)
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    executed.cells = cells
    executed.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return executed


def main() -> None:
    """Copy the demo's executed notebooks over their sources, and one of its figures for the README."""
    for source in sorted(runs.NOTEBOOKS.glob("[0-9]*.ipynb")):
        found = sorted(EXECUTED.glob(f"{source.stem}*.ipynb"))
        executed = nbformat.read(found[0], as_version=4)
        nbformat.write(committed(executed), source)
        print(f"{source.name}: {source.stat().st_size / 1000:.0f} kB")
    picture = runs.figures_folder("runs/demo") / f"{README_FIGURE}.png"
    (runs.ROOT / "figures" / "readme-probes.png").write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main()
