"""Progress of a run or an experiment, and a report of its results so far."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.runs.experiments import Plan, read_declaration
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import NOTEBOOKS, ROOT, display_path, figures_folder, run_folder

FETCHED = ("mathjax", "require_js", "jquery", "widget_renderer")  # by nbconvert's page, unused here


def jobs(plan: Plan) -> pd.DataFrame:
    """Snakemake's summary: a row per output file, with `rule`, `stage` and `pending`."""
    with tempfile.TemporaryDirectory() as folder:
        command = plan.command(Path(folder) / "plan.json", "--cores", "1", "--summary")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise GmpError(done.stderr)
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") >= 5]
    table = pd.DataFrame(rows[1:], columns=rows[0])
    stage = table.output_file.str.extract(r"/(\d\d)_[a-z_]+/[^\d]*headline.json$")[0]
    return table.assign(stage=stage, pending=table["plan"] != "no update")


def seconds(folders: Iterable[str]) -> pd.Series:
    """Mean duration of the finished notebooks of runs, by stage."""
    rows = []
    for path in chain(*(run_folder(x).glob("notebooks/[0-9]*.ipynb") for x in folders)):
        try:
            metadata = read_json(path)["metadata"].get("papermill", {})
        except ValueError:  # papermill was killed while it wrote
            continue
        if metadata.get("duration") and not metadata.get("exception"):
            rows.append((path.name[:2], metadata["duration"]))
    return pd.DataFrame(rows, columns=["stage", "seconds"]).groupby("stage").seconds.mean()


def print_progress(plan: Plan) -> None:
    """Print what is done, what is missing, and an estimate of the time left."""
    table = jobs(plan)
    counts = table.groupby(["stage", "rule"]).pending.agg(["size", "sum"]).reset_index("rule")
    trained = [run for run in plan.runs if run.parameters.get("losses") != []] or plan.runs
    durations = seconds({plan.folder, *(run.folder for run in trained)}).reindex(counts.index)
    trainings = [(run.variant, run.seed, *output) for run in plan.runs for output in run.outputs()]
    pending = set(table.output_file[table.pending])
    missing = [training for training in trainings if training[-1] in pending]
    print(f"{plan.folder}: {len(trainings) - len(missing)} of {len(trainings)} runs done")
    for variant, reason in read_declaration(plan.folder)["impossible"].items():
        print(f"not possible: {variant} ({reason})")
    if plan.experiment and missing:
        for (variant, seed), rows in pd.DataFrame(missing).groupby([0, 1], sort=False):
            print(f"missing: {variant}, seed {seed}, folds {', '.join(map(str, rows[2]))}")
    shown = counts.assign(each=durations.round(), left=(counts["sum"] * durations).round())
    shown.columns = ["notebook", "notebooks", "to do", "seconds each", "seconds left"]
    print(shown.astype(object).fillna("not known").to_markdown(index=False))
    unknown = shown.notebook[shown["seconds left"].isna() & (shown["to do"] > 0)]
    if len(unknown):
        print(f"Duration not known yet: {', '.join(unknown)}.")
    without = " and without these" if len(unknown) else ""
    hours = shown["seconds left"].sum() / 3600
    print(f"About {hours:.1f} hours left, one after the other{without}.")


def write_report(plan: Plan) -> None:
    """Write the results so far as report.html, one file without code that can be read offline.

    It is an executed notebook: 08 of each personal run, or else 07, which is run first.
    """
    from nbconvert import HTMLExporter

    runs = dict.fromkeys(run_folder(run.folder) for run in plan.runs if run.personal)
    executed = [run / "notebooks" / "08_personalize.ipynb" for run in runs]
    if not runs:
        folder = run_folder(plan.folder)
        executed = [folder / "notebooks" / "07_report.ipynb"]
        executed[0].parent.mkdir(exist_ok=True)
        papermill = [sys.executable, "-m", "papermill", "--engine", "ipc", "--kernel", "python3"]
        papermill += ["-f", folder / "parameters" / "07_results.yaml"]
        papermill += [NOTEBOOKS / "07_results.ipynb", *executed]
        if subprocess.run(papermill, cwd=ROOT, check=False).returncode:
            raise GmpError(f"notebook 07 failed, see above and {display_path(executed[0])}.")
    offline = {f"{name}_url": "data:," for name in FETCHED}
    hidden = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
    for path in executed:
        page = path.parents[1] / "report.html"
        if path.is_file():
            text, _ = HTMLExporter(**hidden, **offline).from_filename(os.fspath(path))
            page.write_text(text, encoding="utf-8")
            print(display_path(page))
        else:
            print(f"{display_path(page.parent)}: notebook 08 has not been run yet")


def summary(run_dir: str) -> str:
    """Results of a run or an experiment as text, with paths of its figures and executed notebooks."""
    run = run_folder(run_dir)
    summaries = [*run.glob("07_results/summary.md")]
    results = "08_personalize/results/summary.md"  # of a run, or of a variant over its seeds
    summaries += [*run.glob(results), *sorted(run.glob(f"*/{results}"))]
    if not summaries:
        return f"{display_path(run)}: no results yet"
    figures = sorted(figures_folder(run_dir).rglob("*.html"))
    lines = [f"{display_path(path)}\n\n{path.read_text(encoding='utf-8')}" for path in summaries]
    lines += ["Figures:", *map(display_path, figures), "", "Executed notebooks:"]
    return "\n".join([*lines, *map(display_path, sorted(run.rglob("notebooks/*.ipynb")))])
