"""Run a command on a GPU that no other such command on this machine uses.

python workflow/on_gpu.py <command>

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


def take(found: list[str]) -> str:
    """The first GPU whose lock is free; it is kept until this process, or what it becomes, ends."""
    while True:
        for gpu in found:
            owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', '')}"  # each job counts from 0
            lock = Path(tempfile.gettempdir()) / f"gmp-gpu-{owner}-{gpu}.lock"
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            os.set_inheritable(handle, True)
            return gpu
        time.sleep(1)


if __name__ == "__main__":
    found = gpus()
    if found:
        os.environ["CUDA_VISIBLE_DEVICES"] = take(found)
    os.execvp(sys.argv[1], sys.argv[1:])
