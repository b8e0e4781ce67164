"""The benchmarks still run, at sizes that say nothing."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import QUICK, ROOT, SMALL

from gmp_utils.stages import finetune

pytestmark = pytest.mark.slow


def benchmark(name, *arguments):
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_stages_beside_their_references(tmp_path):
    sizes = ("--utterances", 3, "--frames", 2000, "--scales", 8, "--repeats", 1)
    benchmark("stages", *sizes, "--only", "extract", "cluster", "--out", tmp_path)
    rows = json.loads((tmp_path / "stages.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["extract"] * 2 + ["cluster"]
    assert not any(row["stopped"] for row in rows)


def test_one_fold_at_any_size(tmp_path, tiny_encoder):
    out = tmp_path / "fold.json"
    benchmark("one_fold", "--hours", 0.1, "--encoder", tiny_encoder, "--scales", 4, 8, "--out", out)
    found = json.loads(out.read_text())
    assert len(found["stages, seconds"]) == 6
    assert len(found["steps"]) == 4
    assert all(0 < row["share of peak"] < 1 for row in found["steps"])
    assert len(next(found[name] for name in found if name.startswith("a fold"))) == 7


def test_what_may_be_larger_than_the_memory(tmp_path, smoke):
    folder = smoke(tmp_path)["corpus_dir"].removesuffix("table.csv")
    sizes = ("--hours", 0.02, "--frames", 3000, "--sample", 1000, "--clusters", 16)
    printed = benchmark("bounded", "--recordings", folder, *sizes)
    assert printed.count("above the memory in use before") == 2


def test_recognition_beside_the_encoder(tmp_path, smoke, tiny_encoder, noise_corpus):
    once = replace(QUICK, epochs=1)
    stage = finetune.finetune(
        str(noise_corpus), 1, str(tiny_encoder), "ce", once, False, network=SMALL
    )
    folder = smoke(tmp_path)["corpus_dir"].removesuffix("table.csv")
    given = ("--recordings", folder, "--files", 2, "--pairs", 1, "--model", stage)
    printed = benchmark("recognition", *given)
    assert "HuBERT base, random weights" in printed and "one recording, with start-up: " in printed
