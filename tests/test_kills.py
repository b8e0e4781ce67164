"""SIGKILL at every kind of moment of a series: what was finished stays, and the end is the same.

Only where FAULTS=full (make test-faults); tests/test_experiments.py has a short version.
"""

import contextlib
import random

import pandas as pd
import pytest
from conftest import FULL, finished, kill_when, snakemake, tried

from gmp_utils import runs

VICTIMS = ("all", "papermill", "kernel")


@pytest.fixture
def series(smoke, tmp_path):
    """Settings of a run with the embedded encoder, whose checkpoints take long enough to be met."""
    given = smoke(tmp_path / "x") | {"EXPERIMENT": "", "ENCODER": "embedded"}
    (tmp_path / "preset.yaml").write_text(
        "n_folds: 3\nscales: [8, 64]\nmultitask_epochs: 4\nretrain_updates: 40\nfinetune_epochs: 3\n"
        "losses: [ce, ams]\n"
    )
    return lambda run: given | {"RUN": str(run), "PRESET": str(tmp_path / "preset.yaml")}


def moments(run):
    """Moments by name: each asks whether something was written in the run's folder since a time."""

    def written(paths, since):
        with contextlib.suppress(FileNotFoundError):
            return [path for path in paths if path.stat().st_mtime > since]
        return []

    def there(pattern):
        return lambda since: bool(written(run.glob(pattern), since))

    def checkpoint(stage, whole):
        def asked(since):
            found = written(run.glob(f"fold1/{stage}/checkpoints/checkpoint-*"), since)
            return any(path.joinpath("hashes.json").is_file() == whole for path in found)

        return asked

    stages = {
        "multi-task training": ".02_train_multitask.partial",
        "retraining": ".05_retrain.partial",
        "fine-tuning": "06_finetune/gmps/.ams.partial",
    }
    inside = {
        f"{name}, {where} checkpoints": checkpoint(folder, where == "between")
        for name, folder in stages.items()
        for where in ("inside", "between")
    }
    return {
        "decoding": there(".recordings.partial"),
        "writing the CNN's output": there("cnn/.*.partial/frames.npy"),
        **{name: asked for name, asked in inside.items() if name.startswith("multi")},
        "writing features": there("fold1/.04_generate_gmps.partial/frames.npy"),
        "clustering": there("fold1/.04_generate_gmps.partial/labels.npy"),
        **{name: asked for name, asked in inside.items() if not name.startswith("multi")},
        "classifying": there("fold1/06_finetune/gmps/.ams.partial/separation.json"),
        "the results": there("notebooks/07_results.ipynb"),
    }


def stamps(run):
    return {path: path.read_bytes() for path in run.rglob("provenance.json")}


@pytest.mark.skipif(not FULL, reason="takes ten minutes; make test-faults, or FAULTS=full")
def test_thirty_kills_of_a_series_lose_nothing_that_was_finished(series, tmp_path):
    plain, run = tmp_path / "plain", tmp_path / "killed"
    finished(snakemake(series(plain)))
    rng, kills, done = random.Random(0), {}, {}
    for name, moment in moments(run).items():
        # Killed alone, Snakemake leaves a notebook that goes on: the next attempt waits for it.
        for victim in (*VICTIMS, *["snakemake"] * (name == "classifying")):
            delay = rng.uniform(0, 0.2) * ("inside" not in name)
            met = kill_when(series(run), moment, victim, delay)
            kills[name] = kills.get(name, 0) + met
            now = {path: text for path, text in stamps(run).items() if ".partial" not in str(path)}
            assert done.items() <= now.items(), f"{victim} killed while {name}"
            done = now
    finished(snakemake(series(run)))
    assert done.items() <= stamps(run).items()
    assert not list(run.rglob("*.partial"))
    for name in ("table.csv", "summary.md"):
        assert (run / "07_results" / name).read_text() == (plain / "07_results" / name).read_text()
    files = sorted(path.relative_to(plain) for path in plain.rglob("*.safetensors"))
    files += sorted(path.relative_to(plain) for path in plain.rglob("labels.npy"))
    files += sorted(path.relative_to(plain) for path in plain.rglob("history.csv"))
    assert len(files) == 4 + 1 + 4
    for name in files:
        assert runs.file_digest(run / name) == runs.file_digest(plain / name), name
    predictions = [
        pd.read_parquet(where / "fold1/06_finetune/gmps/ams/predictions.parquet")
        for where in (run, plain)
    ]
    pd.testing.assert_frame_equal(*predictions, check_exact=True)
    for name, count in kills.items():
        tried(f"SIGKILL while {name}", int(count), "went on; the end is the same, bit for bit")
    assert sum(kills.values()) >= 30, kills
