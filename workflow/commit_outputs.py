"""Put the outputs of the demo's run into the committed notebooks: text and PNG, small, no paths.

Of the synthetic corpus only, whose voices are nobody's.

python workflow/commit_outputs.py
"""

import nbformat

from gmp_utils import GmpError, notebook, runs

DEMO = runs.ROOT / "runs" / "demo"
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


def refuse_others(executed: dict[str, nbformat.NotebookNode]) -> None:
    """Refuse executed notebooks that are not the demo's, for they may show somebody's recordings.

    Parameters
    ----------
    executed : dict of str to NotebookNode
        By the names of their sources.

    Raises
    ------
    GmpError
        For one that did not end well, had other parameters than its defaults, or is older than the
        prepared corpus.
    """
    prepared = executed["01_prepare_data"].metadata.papermill
    for name, own in executed.items():
        told = own.metadata.papermill
        defaults = notebook.notebook_parameters(runs.NOTEBOOKS / f"{name}.ipynb")
        others = [key for key, value in told.parameters.items() if value != defaults.get(key)]
        if told.exception or not told.end_time:
            found = "it did not run to its end"
        elif others:
            found = ", ".join(f"{key} was {told.parameters[key]!r}" for key in others)
        elif name > "01_prepare_data" and told.end_time < prepared.end_time:
            found = "it is older than 01_prepare_data's"
        else:
            continue
        raise GmpError(
            f"{name}: no outputs of the demo, {found}. Only what shows the synthetic corpus is committed, "
            "for voices are people's; remove runs/demo and run make notebooks."
        )


def main() -> None:
    """Copy the demo's executed notebooks over their sources, and one of its figures for the README."""
    sources = sorted(runs.NOTEBOOKS.glob("[0-9]*.ipynb"))
    found = {source: sorted(DEMO.glob(f"notebooks/{source.stem}*.ipynb"))[0] for source in sources}
    executed = {source.stem: nbformat.read(path, as_version=4) for source, path in found.items()}
    refuse_others(executed)
    for source in sources:
        nbformat.write(committed(executed[source.stem]), source)
        print(f"{source.name}: {source.stat().st_size / 1000:.0f} kB")
    picture = runs.figures_folder("runs/demo") / f"{README_FIGURE}.png"
    (runs.ROOT / "figures" / "readme-probes.png").write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main()
