"""SIGKILL at all kinds of moments of a series: finished stages stay, and the results are the same."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from conftest import finished, kill_when, workflow

from gmp_utils.runs.files import file_digest

# Processes that are killed alone come last: the others continue for a while, and may finish the stage.
ALONE = dict.fromkeys(["multi-task training", "clustering", "retraining"], "papermill")
ALONE["classifying"] = "snakemake"


@pytest.fixture
def series(smoke, tmp_path):
    """Settings of a run with the embedded encoder, which writes checkpoints slowly enough to be hit."""
    settings = smoke(tmp_path / "x") | {"encoder": "embedded"}
    del settings["experiment"], settings["seeds"]
    (tmp_path / "preset.yaml").write_text(
        "n_folds: 3\nscales: [8, 64]\nmultitask_epochs: 4\nretrain_steps: 40\nfinetune_epochs: 4\n"
        "losses: [ce, ams]\n"
    )
    return lambda run: settings | {"run_dir": str(run), "preset": str(tmp_path / "preset.yaml")}


CHECKPOINT = r".*/checkpoint-\d+/"
MOMENTS = {  # a file that the kernel opens, and the maximum delay after that
    "decoding": (r"\.recordings\.partial/waveforms\.npy", 0),
    "writing the CNN's output": (r"/cnn/.*/frames\.npy", 0.2),
    "multi-task training, inside a checkpoint": (rf"02_train.*{CHECKPOINT}trainer_state", 0),
    "multi-task training": (rf"02_train.*{CHECKPOINT}trainer_state", 0.5),
    "writing features": (r"04_generate_gmps\.partial/frames\.npy", 0.1),
    "clustering": (r"04_generate_gmps\.partial/centroids-64\.npy", 0),
    "retraining, inside a checkpoint": (rf"05_retrain.*{CHECKPOINT}trainer_state", 0),
    "retraining": (rf"05_retrain.*{CHECKPOINT}trainer_state", 0.5),
    "fine-tuning, inside a checkpoint": (rf"/\.ams\.partial{CHECKPOINT}trainer_state", 0),
    "fine-tuning": (rf"/\.ams\.partial{CHECKPOINT}trainer_state", 0.5),
    "classifying": (r"/\.ams\.partial/model/training_recordings\.txt", 0.2),
    "the results": (r"/07_results/", 0),
}


def stamps(run):
    return {path: path.read_bytes() for path in run.rglob("provenance.json")}


@pytest.mark.slow
def test_kills_of_a_series_lose_no_finished_stage(series, tmp_path):
    plain, rng, kills = tmp_path / "plain", random.Random(0), []
    victims = [{name: [victim] for name in MOMENTS} for victim in ("all", "kernel")]
    for name, victim in ALONE.items():
        victims[1][name].append(victim)

    def killed(number: int) -> Path:
        """Kill a series repeatedly. Two run in parallel, each on one core (gpus=2), to save time."""
        folder, done = tmp_path / str(number), {}
        run = folder / "killed"
        folder.mkdir()
        for name, (moment, longest) in MOMENTS.items():
            for victim in victims[number][name]:
                kill_when(series(run), moment, victim, folder, longest * rng.random(), gpus=2)
                kills.append(name)
                now = {path: t for path, t in stamps(run).items() if ".partial" not in str(path)}
                assert done.items() <= now.items(), f"{victim} killed while {name}"
                done = now
        finished(workflow(series(run), "--gpus", "2"))
        assert done.items() <= stamps(run).items()
        assert not list(run.rglob("*.partial"))
        return run

    with ThreadPoolExecutor(2) as pool:
        both = pool.map(killed, range(2))
        finished(workflow(series(plain), "--gpus", "2"))
    names = ("*.safetensors", "labels.npy", "history.csv")
    files = [path.relative_to(plain) for name in names for path in plain.rglob(name)]
    assert len(files) == 4 + 1 + 4
    last = "fold1/06_finetune/retrained/ams/predictions.parquet"
    for run in both:
        for name in ("07_results/table.csv", "07_results/summary.md"):
            assert (run / name).read_text() == (plain / name).read_text()
        for name in files:
            assert file_digest(run / name) == file_digest(plain / name), name
        predictions = [pd.read_parquet(where / last) for where in (run, plain)]
        pd.testing.assert_frame_equal(*predictions, check_exact=True)
    assert len(kills) == 2 * 12 + 4
