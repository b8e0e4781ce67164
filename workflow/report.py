"""Execute notebook 07 on what there is, and turn it into one HTML file that needs no network.

python workflow/report.py, with the environment that the Snakefile reads
"""

import os
import subprocess
import sys

from nbconvert import HTMLExporter

from gmp_utils import experiments, runs

# What nbconvert's page would fetch, and notebook 07 does not use.
FETCHED = ("mathjax", "require_js", "jquery", "widget_renderer")

planned = experiments.plan(os.environ)
experiments.begin(planned, looking=True)
folder = runs.run_folder(planned.folder)
executed = folder / "notebooks" / "07_report.ipynb"
executed.parent.mkdir(exist_ok=True)
papermill = [sys.executable, "-m", "papermill", "--engine", "ipc", "--kernel", "python3"]
given = folder / "parameters" / "07_results.yaml"
subprocess.run([*papermill, "-f", given, runs.NOTEBOOKS / "07_results.ipynb", executed], check=True)
offline = {f"{name}_url": "data:," for name in FETCHED}
hidden = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
page, _ = HTMLExporter(**hidden, **offline).from_filename(str(executed))
(folder / "report.html").write_text(page, encoding="utf-8")
print(runs.shown(folder / "report.html"))
