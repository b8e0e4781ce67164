"""Execute notebook 07 on what there is, and turn it into one HTML file that needs no network.

Of personal runs it is each one's notebook 08, as it was executed.

python workflow/report.py, with the environment that the Snakefile reads
"""

import os
import subprocess
import sys
from pathlib import Path

from nbconvert import HTMLExporter

from gmp_utils.runs import experiments
from gmp_utils.runs.paths import NOTEBOOKS, display_path, run_folder

# What nbconvert's page would fetch, and notebook 07 does not use.
FETCHED = ("mathjax", "require_js", "jquery", "widget_renderer")


def write_page(executed: Path, folder: Path) -> None:
    """A notebook as report.html, without its code."""
    offline = {f"{name}_url": "data:," for name in FETCHED}
    hidden = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
    page, _ = HTMLExporter(**hidden, **offline).from_filename(str(executed))
    (folder / "report.html").write_text(page, encoding="utf-8")
    print(display_path(folder / "report.html"))


planned = experiments.plan(os.environ)
experiments.prepare(planned, looking=True)
folders = {run.folder: run_folder(run.folder) for run in planned.runs if run.personal}
for name, folder in folders.items():
    executed = folder / "notebooks" / "08_personalize.ipynb"
    if executed.is_file():
        write_page(executed, folder)
    else:
        print(f"{name}: notebook 08 has not been run yet")
if not folders:
    folder = run_folder(planned.folder)
    executed = folder / "notebooks" / "07_report.ipynb"
    executed.parent.mkdir(exist_ok=True)
    papermill = [sys.executable, "-m", "papermill", "--engine", "ipc", "--kernel", "python3"]
    given = folder / "parameters" / "07_results.yaml"
    source = NOTEBOOKS / "07_results.ipynb"
    subprocess.run([*papermill, "-f", given, source, executed], check=True)
    write_page(executed, folder)
