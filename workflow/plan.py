"""Say what is done of a run or an experiment, what is missing, and about how long that will take.

python workflow/plan.py, with the environment that the Snakefile reads
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from gmp_utils.runs import experiments
from gmp_utils.runs.paths import ROOT, run_folder


def jobs() -> pd.DataFrame:
    """Snakemake's own summary: a row per output, with its `rule`, and whether it is `pending`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    told = subprocess.run(
        [*command, "--cores", "1", "--summary"], cwd=ROOT, capture_output=True, text=True
    )
    if told.returncode:
        sys.exit(told.stderr)
    rows = [line.split("\t") for line in told.stdout.splitlines() if line.count("\t") >= 5]
    table = pd.DataFrame(rows[1:], columns=rows[0])
    return table.assign(pending=table["plan"] != "no update")


def seconds(folder: Path) -> pd.Series:
    """Mean seconds that a stage's finished notebooks took, by the stage."""
    found = []
    for path in folder.rglob("notebooks/[0-9]*.ipynb"):
        try:
            told = nbformat.read(path, as_version=4).metadata.get("papermill", {})
        except nbformat.reader.NotJSONError:  # papermill was killed, or the disk was full
            continue
        if told.get("duration") and not told.get("exception"):
            found.append((path.name[:2], told["duration"]))
    return pd.DataFrame(found, columns=["stage", "seconds"]).groupby("stage").seconds.mean()


if __name__ == "__main__":
    planned = experiments.plan(os.environ)
    table = jobs()
    table["stage"] = table.output_file.str.extract(r"/(\d\d)_[a-z_]+/[^\d]*headline.json$")[0]
    counted = table.groupby(["stage", "rule"]).pending.agg(["size", "sum"]).reset_index("rule")
    took = seconds(run_folder(planned.folder)).reindex(counted.index)
    trainings = [
        (run.variant, run.seed, *classified)
        for run in planned.runs
        for classified in run.classified()
    ]
    pending = set(table.output_file[table.pending])
    missing = [one for one in trainings if one[-1] in pending]
    print(f"{planned.folder}: {len(trainings)} runs, {len(trainings) - len(missing)} done")
    for variant, why in experiments.read_declaration(planned.folder)["impossible"].items():
        print(f"not possible: {variant}, {why}")
    if planned.experiment and missing:
        for (variant, seed), own in pd.DataFrame(missing).groupby([0, 1], sort=False):
            print(f"missing: {variant}, seed {seed}, folds {', '.join(map(str, own[2]))}")
    shown = counted.assign(each=took.round(0), left=(counted["sum"] * took).round(0))
    shown.columns = ["notebook", "notebooks", "to do", "seconds each", "seconds left"]
    print(shown.astype(object).fillna("not known").to_markdown(index=False))
    unknown = shown["seconds left"].isna() & (shown["to do"] > 0)
    left = shown["seconds left"].sum() / 3600
    if any(unknown):
        print(f"Not known yet how long these take: {', '.join(shown.notebook[unknown])}.")
    print(f"About {left:.1f} hours left, one after the other{' and without these' * any(unknown)}.")
