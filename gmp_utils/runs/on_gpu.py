"""Run a command on a GPU that no other such command uses: python -m gmp_utils.runs.on_gpu COMMAND...

It waits until one of CUDA_VISIBLE_DEVICES, or of all GPUs, is free. Without GPUs, the command runs at once.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from itertools import takewhile


def gpus() -> list[str]:
    """GPUs of CUDA_VISIBLE_DEVICES, or the numbers of all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA ignores everything after an invalid name, such as -1
        names = map(str.strip, visible.split(","))
        return list(takewhile(re.compile(r"\d|GPU-|MIG-").match, names))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return re.findall(r"^GPU (\d+): ", listed.stdout, re.MULTILINE)


def reserve(names: list[str]) -> str:
    """Wait for a GPU whose lock is free, and lock it until this process ends, also after `exec`."""
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', '')}"  # each Slurm job counts from 0
    while True:
        for name in names:
            lock = f"/tmp/gmp-gpu-{owner}-{name}.lock"  # TMPDIR may differ, or be on the network
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            os.set_inheritable(handle, True)
            return name
        time.sleep(1)


if __name__ == "__main__":
    if names := gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = reserve(names)
    os.execvp(sys.argv[1], sys.argv[1:])
