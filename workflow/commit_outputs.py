"""Copy the outputs of the demo's runs into the committed notebooks, as text and PNG only.

Only corpora whose recordings may be published are accepted: the embedded EmoDB and synthetic voices.

python workflow/commit_outputs.py
"""

import base64
import io

import nbformat
from PIL import Image

from gmp_utils import GmpError
from gmp_utils.runs import experiments, notebook
from gmp_utils.runs.paths import NOTEBOOKS, run_folder

RUNS = {  # folder: parameters of notebook 01
    "runs/demo": {"corpus": "emodb"},
    "runs/personal": experiments.recipe("papt") | {"corpus": "synthetic_speakers"},
}


def reduced(png: str) -> str:
    """Reduce a PNG in base64 to 256 colors, which takes a quarter of the size."""
    file, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png)))
    image.convert("RGB").quantize(256).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def committed(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The executed notebook without papermill's metadata, interactive copies of figures and large sounds."""
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
                and "data:audio/wav" not in output.get("data", {}).get("text/html", "")
            ]
            for output in outputs:
                output.get("data", {}).pop("application/vnd.plotly.v1+json", None)
                if "image/png" in output.get("data", {}):
                    output.data = {"image/png": reduced(output.data["image/png"])}
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


def reject_others(
    executed: dict[str, nbformat.NotebookNode], prepared: dict[str, nbformat.NotebookNode]
) -> None:
    """Reject executed notebooks that are not the demo's, as they may contain recordings of other people.

    Parameters
    ----------
    executed : dict of str to NotebookNode
        By the name of their source.
    prepared : dict of str to NotebookNode
        Notebook 01 of each run in `RUNS`.
    """
    checked = [(name, None, book) for name, book in executed.items()]
    checked += [("01_prepare_data", run, book) for run, book in prepared.items()]
    for name, run, book in checked:
        metadata = book.metadata.papermill
        defaults = notebook.notebook_parameters(NOTEBOOKS / f"{name}.ipynb")
        if run:
            defaults |= RUNS[run] | {"run_dir": run}
            metadata.parameters.setdefault("corpus", "emodb")
        others = [key for key, value in metadata.parameters.items() if value != defaults.get(key)]
        before = prepared[defaults["run_dir"]].metadata.papermill
        if metadata.exception or not metadata.end_time:
            reason = "it did not finish"
        elif others:
            reason = ", ".join(f"{key} was {metadata.parameters[key]!r}" for key in others)
        elif name > "01_prepare_data" and metadata.end_time < before.end_time:
            reason = "it is older than that of 01_prepare_data"
        else:
            continue
        raise GmpError(
            f"{name}: found outputs that are not the demo's ({reason}), expected those of the embedded "
            "EmoDB and of synthetic voices, because no others may be committed. Remove "
            f"{defaults['run_dir']} and run make notebooks."
        )


def main() -> None:
    """Copy the demo's executed notebooks over their sources."""
    sources = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))

    def read(run: str, name: str) -> nbformat.NotebookNode:
        paths = sorted(run_folder(run).glob(f"notebooks/{name}*.ipynb"))
        return nbformat.read(paths[0], as_version=4)

    places = {path.stem: notebook.notebook_parameters(path)["run_dir"] for path in sources}
    executed = {name: read(run, name) for name, run in places.items()}
    reject_others(executed, {run: read(run, "01_prepare_data") for run in RUNS})
    for source in sources:
        nbformat.write(committed(executed[source.stem]), source)
        print(f"{source.name}: {source.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
