"""Execute notebook 07 on what there is, and turn it into one HTML file that needs no network.

python workflow/report.py, with the environment that the Snakefile reads
"""

import os
import subprocess
import sys

from gmp_utils import experiments, runs

# What nbconvert's page would fetch, and notebook 07 does not use.
FETCHED = ("mathjax", "require_js", "jquery", "widget_renderer")

planned = experiments.plan(os.environ)
experiments.write(planned)
folder = runs.run_folder(planned.folder)
executed = folder / "notebooks" / "07_report.ipynb"
executed.parent.mkdir(exist_ok=True)
papermill = [sys.executable, "-m", "papermill", "--engine", "ipc", "--kernel", "python3"]
given = folder / "parameters" / "07_results.yaml"
subprocess.run([*papermill, "-f", given, runs.NOTEBOOKS / "07_results.ipynb", executed], check=True)
convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--no-input"]
offline = [f"--HTMLExporter.{name}_url=data:," for name in FETCHED]
subprocess.run([*convert, *offline, "--output", folder / "report.html", executed], check=True)
print(runs.shown(folder / "report.html"))
