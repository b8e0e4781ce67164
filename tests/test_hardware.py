"""Memory, cores and GPUs of a process, on several kinds of machine."""

import subprocess
import sys
import types

import joblib
import psutil
import pytest
import torch
from conftest import CLEAN, python, succeeded

from gmp_utils.__main__ import main
from gmp_utils.runs import hardware, on_gpu

STUCK = """
from sys import argv
from plotly import graph_objects
from gmp_utils.figures import style
style.PATIENCE = 4
style.show(graph_objects.Figure(), argv[1], "empty")
style.show(graph_objects.Figure(), argv[1], "second")
"""


def test_a_browser_that_does_not_answer_is_given_up(tmp_path):
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\nsleep 1000\n")
    browser.chmod(0o755)
    environment = CLEAN | {"BROWSER_PATH": str(browser)}
    printed = succeeded(python("-c", STUCK, tmp_path / "run", env=environment, timeout=120))
    assert printed.count("Chromium has not answered for 4 s") == 1
    assert "no Chromium is used" in printed and "second.html only" in printed
    files = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert files >= {"empty.html", "second.html"} and "empty.png" not in files


NAMES = {"v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
         "v2": ("memory.max", "memory.current", "inactive_file")}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "own", "groups", "left"),
    [
        # a job of 8,000 bytes, whose step has no limit; 1,000 of the 5,000 in use are cache
        ("v2", "0::/job/step", {"job": ("8000", 5000, 1000), "job/step": ("max", 1, 0)}, 4000),
        # the same with Slurm and cgroups v1, where a large number stands for no limit
        (
            "v1",
            "4:memory:/job\n0::/",
            {"": (str(2**63 - 4096), 9, 0), "job": ("8000", 5000, 0)},
            3000,
        ),
        # in a container, where the host's path is not mounted
        ("v1", "4:cpu,memory:/docker/f00", {"": ("8000", 7000, 0)}, 1000),
        ("v2", "0::/", {"": ("8000", 9000, 0)}, 0),
    ],
)
def test_memory_is_that_of_the_container_or_job(tmp_path, monkeypatch, version, own, groups, left):
    for group, (limit, used, cached) in groups.items():
        folder = tmp_path / ("memory" if version == "v1" else "") / group
        folder.mkdir(parents=True, exist_ok=True)
        limit_name, used_name, cached_name = NAMES[version]
        (folder / limit_name).write_text(f"{limit}\n")
        (folder / used_name).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"cache 1\n{cached_name} {cached}\n")
    cgroup = tmp_path / "cgroup"
    cgroup.write_text(own + "\n")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "OWN_CGROUP", cgroup)
    assert hardware.free_memory() == left
    monkeypatch.setattr(hardware, "OWN_CGROUP", tmp_path / "absent")  # as on macOS
    assert hardware.free_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_cores_are_those_of_the_container_or_job(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)  # affinity and quota are joblib's
    assert hardware.cores() == 8
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert hardware.cores() == 2


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((6, 0), ["sm_75", "sm_80", "sm_90a", "compute_90"], "cpu"),
        ((7, 5), ["sm_75", "sm_80"], "cuda"),
        ((12, 0), ["sm_75", "sm_100", "compute_100"], "cuda"),
        ((9, 4), ["gfx90a", "gfx942"], "cuda"),  # of AMD
    ],
)
def test_a_gpu_without_kernels_is_not_used(monkeypatch, recwarn, capability, built, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    assert hardware.device.__wrapped__() == expected
    warned = [str(warning.message) for warning in recwarn]
    text = "the GPU's compute capability is 6.0, this torch needs 7.5. The CPU is used"
    assert [message.startswith(text) for message in warned] == [True] * (expected == "cpu")


LISTED = {
    "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n": ["0", "1"],
    "GPU 0: A100 (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\n"
    "  MIG 1g.5gb Device 1: (UUID: MIG-2)\n": ["0"],
    "No devices were found\n": [],
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 5\n": [],
}


def test_gpus_are_counted(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for text, expected in LISTED.items():
        listed = types.SimpleNamespace(stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *_, listed=listed, **__: listed)
        assert on_gpu.gpus() == expected
    for text, expected in {"3, 5": ["3", "5"], "-1": [], "NoDevFiles": [], "0,-1,1": ["0"],
                           "": [], "MIG-1,GPU-2": ["MIG-1", "GPU-2"]}.items():  # fmt: skip
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert on_gpu.gpus() == expected


def test_peak_memory_has_the_unit_of_the_platform(monkeypatch):
    on_linux = hardware.peak_memory()
    assert psutil.Process().memory_info().rss / 2 < on_linux < psutil.virtual_memory().total
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hardware.peak_memory() == pytest.approx(on_linux / 1024, rel=0.1)


@pytest.mark.slow  # imports torch and transformers
def test_recognition_needs_nothing_of_unix():
    """Windows has neither module, and transformers does without them."""
    code = (
        "import sys; from transformers import HubertModel, Trainer\n"
        "sys.modules |= {'fcntl': None, 'resource': None}\n"
        "import gmp_utils.stages.recognize, gmp_utils.models.recognizer"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_runs_on_windows_are_rejected(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "runs need Linux or macOS; on Windows, work in WSL.\n"
