"""The Slurm profile, on a cluster of one node without accounting that the test starts."""

import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import CLEAN, ROOT, cli, finished

from gmp_utils.runs import experiments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all(map(shutil.which, ("munged", "slurmctld", "slurmd")))
        or not importlib.util.find_spec("snakemake_executor_plugin_slurm"),
        reason="needs root, Debian's packages slurm-wlm and munge, and the extra slurm",
    ),
]

# More processors, memory and GPUs than there may be, so that what the profile asks for fits anywhere.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MinJobAge=3600
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=512000 Gres=gpu:2
PartitionName=test Default=YES Nodes=ALL
"""


def asked(environment, *command):
    """The words of each line that a command of Slurm prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return [line.split() for line in done.stdout.splitlines()]


def jobs(environment, rule):
    """Number and state of a rule's jobs, also finished ones. The plugin names the rule in the comment."""
    words = "squeue", "--states=all", "--sort=i", "--noheader", "--format=%i %T %k"
    return [(job, state) for job, state, comment in asked(environment, *words) if rule in comment]


def wait_for(condition, seconds):
    """Wait until a function returns something true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.5)
    return answer


def free_ports(number):
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports


@pytest.fixture(scope="module")
def slurm():
    """The environment of a user who may submit jobs."""
    host = socket.gethostname().split(".")[0]
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munged refuses a socket that not everybody can reach
        for made in ("state", "spool", "bin"):
            (folder / made).mkdir()
        (folder / "munge.key").touch(0o600)
        (folder / "munge.key").write_bytes(os.urandom(64))
        text = CONFIGURATION.format(host=host, ports=free_ports(2), folder=folder)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        try:
            for gpu in ("gpu0", "gpu1"):
                os.mknod(folder / gpu, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null is
        except PermissionError:
            pytest.skip("device files, here for pretended GPUs, may not be made")
        # Inside a job the plugin clears SLURM_* for srun, which then looks in /etc/slurm only.
        srun = folder / "bin" / "srun"
        command = f'SLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"'
        srun.write_text(f"#!/bin/sh\n{command}\n")
        srun.chmod(0o755)
        path = f"{folder}/bin:{os.environ['PATH']}"
        environment = CLEAN | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}
        munged = ["munged", "--foreground", f"--socket={folder}/munge.socket"]
        munged += [f"--{file}-file={folder}/munge.{file}" for file in ("key", "pid", "seed")]
        daemons = []
        try:
            for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
                with open(folder / f"{command[0]}.log", "w") as log:
                    output = {"stdout": log, "stderr": log}
                    daemons.append(subprocess.Popen(command, env=environment, **output))
            idle = ["sinfo", "--noheader", "--states=idle"]
            wait_for(lambda: asked(environment, *idle), 60)
            yield environment
            asked(environment, "scancel", "--me")
            wait_for(lambda: not asked(environment, "squeue", "--noheader"), 60)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


def test_the_smoke_experiment_survives_a_canceled_job(slurm, smoke, undisturbed, tmp_path):
    """Its first variant has three notebooks. Each job waits until the plugin queries its state."""
    declaration = yaml.safe_load((experiments.CONFIG / "smoke.yaml").read_text())
    declaration["variants"] = {"no GMPs": declaration["variants"]["no GMPs"]}
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(declaration))
    settings = smoke(tmp_path / "run") | {"experiment": str(tmp_path / "smoke.yaml")}
    soon = ["--slurm-init-seconds-before-status-checks", "1"]  # too often for a shared cluster
    profile = {"profile": "workflow/profiles/slurm"}
    process = cli("experiment", settings | profile, "--", *soon, environment=slurm)
    try:
        running = lambda: "RUNNING" in dict(jobs(slurm, "finetune")).values()  # noqa: E731
        wait_for(lambda: process.poll() or running(), 600)
        asked(slurm, "scancel", *dict(jobs(slurm, "finetune")))
        finished(process)
    finally:
        process.terminate()
    assert [state for _, state in jobs(slurm, "finetune")] == ["CANCELLED", "COMPLETED"]
    ours, theirs = (
        pd.read_csv(run / "07_results" / "table.csv").set_index("variant").loc["no GMPs"]
        for run in (tmp_path / "run", undisturbed)
    )
    theirs = theirs.drop("gender UAR, validation")  # of the other variant
    assert ours.to_dict() == theirs.to_dict()
    assert ours.speakers == 2


def test_trainings_run_in_parallel_each_with_a_gpu(slurm, tmp_path):
    """One at a time applies to one machine: each of these two waits until the other one has started."""
    (tmp_path / "Snakefile").write_text(
        """
rule all:
    input: "a", "b"
    localrule: True

rule train:
    output: "{name,a|b}"
    threads: workflow.cores
    resources: gpu=1
    shell:
        "echo $CUDA_VISIBLE_DEVICES > {output};"
        "timeout 20 sh -c 'until [ -e a ] && [ -e b ]; do sleep 0.1; done'"
"""
    )
    place = ["--snakefile", str(tmp_path / "Snakefile"), "--directory", str(tmp_path)]
    profile = ["--profile", "workflow/profiles/slurm"]
    profile += ["--workflow-profile", "workflow/profiles/default"]
    soon = ["--slurm-init-seconds-before-status-checks", "1"]
    command = [sys.executable, "-m", "snakemake", *place, *profile, *soon]
    subprocess.run(command, cwd=ROOT, env=slurm, check=True, timeout=120)
    assert {(tmp_path / name).read_text() for name in "ab"} == {"0\n", "1\n"}
