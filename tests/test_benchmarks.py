"""The benchmarks run, at sizes too small for meaningful numbers."""

import json

import pytest
from conftest import classifier, python

pytestmark = pytest.mark.slow


def benchmark(name, *arguments):
    done = python(f"benchmarks/{name}.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_stages_next_to_their_references(tmp_path):
    sizes = ("--utterances", 3, "--frames", 2000, "--scales", 8, "--repeats", 1)
    benchmark("stages", *sizes, "--only", "extract", "cluster", "--out", tmp_path)
    rows = json.loads((tmp_path / "stages.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["extract"] * 2 + ["cluster"]
    assert not any(row["stopped"] for row in rows)


def test_one_fold_at_any_size(tmp_path, tiny_encoder):
    out = tmp_path / "fold.json"
    benchmark("one_fold", "--hours", 0.1, "--encoder", tiny_encoder, "--scales", 4, 8, "--out", out)
    measured = json.loads(out.read_text())
    assert len(measured["stages, seconds"]) == 7
    assert len(measured["steps"]) == 5
    assert all(0 < row["share of peak"] < 1 for row in measured["steps"][:4])
    assert min(measured["stages, times their steps"].values()) > 1
    assert min(measured["position embedding, ms"].values()) > 0
    assert len(next(measured[name] for name in measured if name.startswith("a fold"))) == 7


def test_data_larger_than_memory(tmp_path, smoke):
    folder = smoke(tmp_path)["corpus_dir"].removesuffix("table.csv")
    sizes = ("--hours", 0.02, "--frames", 3000, "--sample", 1000, "--clusters", 16)
    printed = benchmark("bounded", "--recordings", folder, *sizes)
    assert printed.count("above the memory in use before") == 2


def test_recognition_next_to_the_encoder(tmp_path, smoke, tiny_encoder, noise_corpus):
    stage = classifier(noise_corpus, tiny_encoder)
    folder = smoke(tmp_path)["corpus_dir"].removesuffix("table.csv")
    arguments = ("--recordings", folder, "--files", 2, "--pairs", 1, "--model", stage)
    printed = benchmark("recognition", *arguments)
    assert "HuBERT base, random weights" in printed and "one recording, with start-up: " in printed
