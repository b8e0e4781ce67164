"""Run a command on a GPU that no other such command on this machine uses.

python -m gmp_utils.runs.on_gpu COMMAND...

Takes one of CUDA_VISIBLE_DEVICES, or of all; waits until one is free. Without GPUs it runs at once.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or the numbers of the GPUs that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return visible.split(",") if visible else []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]


def reserve(names: list[str]) -> str:
    """Wait for the first GPU whose lock is free; this process, and what it becomes, keeps the lock."""
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', '')}"  # each Slurm job counts from 0
    while True:
        for name in names:
            lock = Path(tempfile.gettempdir()) / f"gmp-gpu-{owner}-{name}.lock"
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
