"""SIGKILL at every kind of moment of a series: what was finished stays, and the end is the same.

Only where FAULTS=full (make test-faults); tests/test_experiments.py has a short version.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from conftest import FULL, finished, kill_when, snakemake, tried

from gmp_utils.runs.files import file_digest

# What is killed alone leaves others that go on for a while, and may finish the stage: it comes last.
ALONE = {
    "decoded, not yet said so": "papermill",
    "multi-task training": "papermill",
    "clustering": "papermill",
    "retraining": "papermill",
    "classifying": "snakemake",
}


@pytest.fixture
def series(smoke, tmp_path):
    """Settings of a run with the embedded encoder, whose checkpoints take long enough to be met.

    Two of them, as for two GPUs, leave each other a core: threads of both on the same cores wait for
    each other most of the time.
    """
    given = smoke(tmp_path / "x") | {"EXPERIMENT": "", "ENCODER": "embedded", "GPUS": "2"}
    (tmp_path / "preset.yaml").write_text(
        "n_folds: 3\nscales: [8, 64]\nmultitask_epochs: 4\nretrain_updates: 40\nfinetune_epochs: 4\n"
        "losses: [ce, ams]\n"
    )
    return lambda run: given | {"RUN": str(run), "PRESET": str(tmp_path / "preset.yaml")}


CHECKPOINT = r".*/checkpoint-\d+/"
MOMENTS = {  # what the kernel is opening, and how long after that at most
    "decoding": (r"\.recordings\.partial/waveforms\.npy", 0),
    "decoded, not yet said so": (r"/waveforms-portions/.*\.new", 0),
    "writing the CNN's output": (r"/cnn/.*/frames\.npy", 0.2),
    "multi-task training, inside a checkpoint": (rf"02_train.*{CHECKPOINT}trainer_state", 0),
    "multi-task training": (rf"02_train.*{CHECKPOINT}trainer_state", 0.5),
    "writing features": (r"04_generate_gmps\.partial/frames\.npy", 0.1),
    "clustering": (r"04_generate_gmps\.partial/centroids-64\.npy", 0),
    "retraining, inside a checkpoint": (rf"05_retrain.*{CHECKPOINT}trainer_state", 0),
    "retraining": (rf"05_retrain.*{CHECKPOINT}trainer_state", 0.5),
    "fine-tuning, inside a checkpoint": (rf"/\.ams\.partial{CHECKPOINT}trainer_state", 0),
    "fine-tuning": (rf"/\.ams\.partial{CHECKPOINT}trainer_state", 0.5),
    "classifying": (r"/\.ams\.partial/\.separation\.json", 0),
    "the results": (r"/07_results/", 0),
}


def stamps(run):
    return {path: path.read_bytes() for path in run.rglob("provenance.json")}


@pytest.mark.skipif(not FULL, reason="takes minutes; make test-faults, or FAULTS=full")
def test_thirty_kills_of_a_series_lose_nothing_that_was_finished(series, tmp_path):
    plain, rng, kills = tmp_path / "plain", random.Random(0), []
    victims = [{name: [one] for name in MOMENTS} for one in ("all", "kernel")]
    for name, victim in ALONE.items():
        victims[1][name].append(victim)

    def killed(number: int) -> Path:
        """A series of its own; the two go on beside each other, for the sake of time."""
        folder, done = tmp_path / str(number), {}
        run = folder / "killed"
        folder.mkdir()
        for name, (moment, longest) in MOMENTS.items():
            for victim in victims[number][name]:
                kill_when(series(run), moment, victim, folder, longest * rng.random())
                kills.append(name)
                now = {
                    path: text for path, text in stamps(run).items() if ".partial" not in str(path)
                }
                assert done.items() <= now.items(), f"{victim} killed while {name}"
                done = now
        finished(snakemake(series(run)))
        assert done.items() <= stamps(run).items()
        assert not list(run.rglob("*.partial"))
        return run

    with ThreadPoolExecutor(2) as beside:
        both = beside.map(killed, range(2))
        finished(snakemake(series(plain)))
    files = sorted(path.relative_to(plain) for path in plain.rglob("*.safetensors"))
    files += sorted(path.relative_to(plain) for path in plain.rglob("labels.npy"))
    files += sorted(path.relative_to(plain) for path in plain.rglob("history.csv"))
    assert len(files) == 4 + 1 + 4
    last = "fold1/06_finetune/gmps/ams/predictions.parquet"
    for run in both:
        for name in ("07_results/table.csv", "07_results/summary.md"):
            assert (run / name).read_text() == (plain / name).read_text()
        for name in files:
            assert file_digest(run / name) == file_digest(plain / name), name
        predictions = [pd.read_parquet(where / last) for where in (run, plain)]
        pd.testing.assert_frame_equal(*predictions, check_exact=True)
    assert len(kills) >= 30
    for name in MOMENTS:
        said = "nothing finished was repeated, the end is the same, bit for bit"
        tried(f"SIGKILL: {name}", kills.count(name), said)
