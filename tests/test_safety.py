"""Artifacts are written completely, checked when they are read, and never run code."""

import errno
import fcntl
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, TINY, multitask, run_series, truncate, write_noise_corpus
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import files
from gmp_utils.runs.files import _digests, exclusive_lock
from gmp_utils.runs.paths import notebook_of
from gmp_utils.runs.stage import check_and_identify, make_stage, verify
from gmp_utils.stages import finetune
from gmp_utils.training import trainer
from gmp_utils.training.trainer import TrainingConfig

THREE = TrainingConfig(1e-3, epochs=3, batch_seconds=10, batch_size=8)


class Payload:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """A tiny encoder that draws random numbers at every step of a training."""
    folder = tmp_path_factory.mktemp("dropping")
    torch.manual_seed(0)
    HubertModel(HubertConfig(**TINY | {"hidden_dropout": 0.2})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(dropping, tmp_path_factory):
    """A training without interruptions."""
    run = write_noise_corpus(tmp_path_factory.mktemp("whole") / "run")
    return multitask(run, dropping, THREE)


def flip(path):
    """Flip a bit in the middle of a file, and keep its size and times."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def plant(path):
    torch.save({"state": Payload(path.parents[3] / "ran")}, path)


CHECKPOINTS = {
    "not finished": ("trainer_state.json", lambda path: path.unlink()),
    "model cut short": ("model.safetensors", truncate),
    "a flipped bit in the optimizer": ("optimizer.pt", flip),
    "random states gone": ("rng_state.pth", lambda path: path.unlink()),
    "a planted pickle": ("optimizer.pt", plant),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_only_complete_checkpoints_without_code_are_read(
    fault, whole, dropping, tmp_path, monkeypatch, capsys
):
    """A training is stopped after two of three epochs. Damage to the second checkpoint costs that epoch."""
    run = write_noise_corpus(tmp_path / "run")

    def stop(self, args, state, control, **kwargs):
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.PrintEvaluations, "on_save", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            multitask(run, dropping, THREE)
    checkpoints = (run / "fold1" / ".02_train_multitask.partial").rglob("checkpoint-*")
    second = max(checkpoints, key=lambda path: int(path.name[11:]))
    name, damage = CHECKPOINTS[fault]
    damage(second / name)
    if damage is plant:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            multitask(run, dropping, THREE)
    else:
        stage = multitask(run, dropping, THREE)
        assert f"{second.name} is incomplete" in capsys.readouterr().out
        for file in ("history.csv", "model/model.safetensors"):
            assert (whole / file).read_bytes() == (stage / file).read_bytes(), file
    assert not list(tmp_path.rglob("ran"))


def test_a_pickled_model_is_loaded_without_running_code(tiny_encoder, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(tiny_encoder / "config.json", folder)
    tensors = load_file(tiny_encoder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    model, same = (SpeechModel.load(str(path)) for path in (folder, tiny_encoder))
    for (name, ours), (_, theirs) in zip(model.named_parameters(), same.named_parameters()):
        if name != "hubert.masked_spec_embed":  # not among the weights: drawn at random
            assert torch.equal(ours, theirs), name
    payload, planted = Payload(tmp_path / "ran"), folder / "pytorch_model.bin"
    for write in (
        lambda: torch.save(tensors | {"more": payload}, planted),
        lambda: planted.write_bytes(pickle.dumps(payload)),
    ):
        write()
        with pytest.raises(GmpError, match="no model could be read there"):
            SpeechModel.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_not_read(tmp_path):
    stem = tmp_path / "frames"
    Ragged.create(stem, {"a": 1}, np.int16).flush()
    np.save(stem.with_suffix(".npy"), np.array([Payload(tmp_path / "ran")], dtype=object))
    with pytest.raises(GmpError, match="cannot be read"):
        Ragged.open(stem)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def series(tmp_path_factory, tiny_encoder):
    run = write_noise_corpus(tmp_path_factory.mktemp("series") / "run")
    return run_series(run, tiny_encoder).parent


@pytest.mark.parametrize("fault", [Path.unlink, truncate, flip])
def test_damage_is_detected_when_an_artifact_is_read(fault, series, tmp_path):
    """In every file of every stage, even if its size and mtime are unchanged."""
    shutil.copytree(series, tmp_path / "run")
    stages = sorted(path.parent for path in (tmp_path / "run").rglob("provenance.json"))
    files = [(s, f) for s in stages for f in s.rglob("*") if f.is_file() and f.stat().st_size > 1]
    assert len(stages) == 10 and len(files) > 50
    for stage, path in files:
        content, times = path.read_bytes(), path.stat()
        fault(path)
        _digests.clear()  # as in another process
        expected = f"not found; run notebooks/{notebook_of(stage)}|Remove .*{stage.name} and run"
        with pytest.raises(GmpError, match=expected):
            check_and_identify(stage)
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        _digests.clear()
        check_and_identify(stage)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A stage with a file that is too large to be hashed at every read."""
    monkeypatch.setattr(files, "HASHED_BYTES", 1000)

    def build(folder):
        (folder / "large.npy").write_bytes(bytes(range(256)) * 8)

    settings = {"parameters": {}, "module": "gmp_utils.models.losses"}
    return make_stage(tmp_path / "run" / "s", build, **settings) / "large.npy"


def test_a_truncated_or_replaced_large_file_is_detected_when_it_is_read(large):
    times, content = large.stat(), large.read_bytes()
    large.write_bytes(content[:-1])
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(GmpError, match=r"large\.npy: found 2047 bytes, expected 2048"):
        check_and_identify(large.parent)
    large.write_bytes(content[::-1])
    with pytest.raises(GmpError, match=r"large\.npy: its SHA-256 differs"):
        check_and_identify(large.parent)
    large.write_bytes(content)  # the same content at another time
    check_and_identify(large.parent)


def test_a_flipped_bit_in_a_large_file_is_detected_by_verify(large):
    run = large.parents[1]
    assert verify(str(run)) == []
    flip(large)
    check_and_identify(large.parent)  # which does not hash large files
    _digests.clear()
    (problem,) = verify(str(run))
    assert re.search(r"large\.npy: its SHA-256 differs .* Remove .*/s and run", problem)
    assert "no finished stage" in verify(str(run / "none"))[0]


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2, os.link])
def test_a_copied_run_is_as_good_as_the_first(copy, large, tmp_path):
    """Copies by cp, which changes times, by cp -a, and by hard links."""
    shutil.copytree(large.parents[1], tmp_path / "copy", copy_function=copy)
    check_and_identify(tmp_path / "copy" / "s")
    assert verify(str(tmp_path / "copy")) == []


@pytest.mark.slow
def test_only_damaged_stages_are_rebuilt(series, tmp_path, tiny_encoder, capsys):
    run = tmp_path / "run"
    shutil.copytree(series, run)
    before = {path: path.read_bytes() for path in run.rglob("provenance.json")}
    model = "06_finetune/retrained/ams/model/model.safetensors"
    flip(run / "fold1" / model)
    fold = run_series(run, tiny_encoder)
    output = capsys.readouterr().out
    assert re.search(r"model\.safetensors: its SHA-256 differs .* Rebuilding it\.", output)
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {fold / "06_finetune/retrained/ams/provenance.json"}
    assert (fold / model).read_bytes() == (series / "fold1" / model).read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes, and a function that changes its size or its options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only, and not in every container")
    remount = ["mount", "-o"]
    yield folder, lambda to: subprocess.run([*remount, f"remount,{to}", folder], check=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_finished_stage(small_disk, series, tiny_encoder):
    """Every stage on a disk that grows by a quarter megabyte whenever it is full."""
    folder, remount = small_disk
    shutil.copytree(series / "recordings", folder / "run" / "recordings")
    shutil.copytree(series / "01_prepare_data", folder / "run" / "01_prepare_data")
    times, done = 0, {}
    for quarters in range(8, 400):
        remount(f"size={quarters * 256}k")
        try:
            fold = run_series(folder / "run", tiny_encoder)
            break
        except Exception as error:
            text = " ".join([str(error), *getattr(error, "__notes__", [])]).lower()
            assert "no space left" in text, error
            times += 1
        stages = [path for path in folder.rglob("provenance.json") if ".partial" not in str(path)]
        finished = {path: path.read_bytes() for path in stages}
        assert done.items() <= finished.items()
        done = finished
    assert times >= 5
    model = "02_train_multitask/model/model.safetensors"
    assert (fold / model).read_bytes() == (series / "fold1" / model).read_bytes()


def test_a_read_only_run_can_be_read(small_disk, series, tiny_encoder):
    folder, remount = small_disk
    shutil.copytree(series / "recordings", folder / "run" / "recordings")
    shutil.copytree(series / "01_prepare_data", folder / "run" / "01_prepare_data")
    remount("ro")
    with pytest.raises(OSError, match="Read-only file system"):
        multitask(folder / "run", tiny_encoder)
    assert len(open_corpus(str(folder / "run")).manifest) == 72


@pytest.mark.parametrize("number", [0, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_lock_can_raise_and_ends_with_its_process(tmp_path, monkeypatch, number):
    """On file systems with flock (0), and on those without, which return one of these errors."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(fcntl, "flock", flock)
    lock = tmp_path / ".lock"
    code = (
        "import fcntl, sys, time; from pathlib import Path\n"
        "from gmp_utils.runs.files import exclusive_lock\n"
        f"def flock(*_): raise OSError({number}, '')\n"
        f"fcntl.flock = flock if {number} else fcntl.flock\n"
        f"with exclusive_lock(Path({str(lock)!r}), 'runs/x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        named = rf"runs/x is being made by process {holder.pid} on \S+, since 20"
        with pytest.raises(GmpError, match=named), exclusive_lock(lock, "runs/x", wait=False):
            pass
        holder.kill()
    began = time.monotonic()
    for _ in range(2):  # the first of these frees it again
        with exclusive_lock(lock, "runs/x", wait=False):
            assert time.monotonic() - began < 1


def test_published_artifacts_contain_no_pickle(series):
    """By content: a pickle, or a zip of pickles as written by torch, starts with these bytes."""
    published = [path for path in series.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in published if not path.name.startswith(".")}
    assert kinds == {".json", ".csv", ".txt", ".safetensors", ".npy", ".parquet"}
    for path in published:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path
        if path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)
    assert len(published) > 50


def test_a_changed_model_is_not_used(series, tmp_path, tiny_encoder):
    """A fine-tuning does not start from a retrained model that has changed."""
    run = tmp_path / "run"
    shutil.copytree(series, run)
    flip(run / "fold1" / "05_retrain" / "model" / "model.safetensors")
    predictions = run / "fold1/06_finetune/retrained/ams/predictions.parquet"
    before = predictions.read_bytes()
    with pytest.raises(GmpError, match=r"05_retrain/model/model\.safetensors: its SHA-256"):
        network = HeadConfig(head_layer=-2)
        finetune.finetune(str(run), 1, str(tiny_encoder), "ams", QUICK, network=network)
    assert predictions.read_bytes() == before
