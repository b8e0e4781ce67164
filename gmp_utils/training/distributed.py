"""Several processes that train together, a GPU each where there are GPUs: begun, and asked together."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from gmp_utils import GmpError


def launch(function: Callable, arguments: tuple, processes: int, folder: Path) -> None:
    """Call a function in processes that torch.distributed connects, and print what they print.

    Parameters
    ----------
    function : callable
        By its name in a module, as pickle finds it.
    arguments : tuple
    processes : int
    folder : Path
        Where the processes find function and arguments, pickled.

    Raises
    ------
    GmpError
        The one that the function raises; or if a process ends in another way.
    """
    told, refused = folder / "told.pickle", folder / "refused.txt"
    told.write_bytes(pickle.dumps((function, arguments)))
    refused.unlink(missing_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    settings = {  # those of the user go before them
        "OMP_NUM_THREADS": str(max(torch.get_num_threads() // processes, 1)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    with subprocess.Popen(
        [*launch, f"--nproc-per-node={processes}", "-m", __name__, str(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=settings | os.environ,
        start_new_session=True,  # an interrupted notebook tells us, and we tell them, once
    ) as launcher:
        try:
            for line in launcher.stdout:
                print(line, end="")
        except BaseException:
            launcher.terminate()  # killed, it would leave its processes behind
            launcher.communicate()
            raise
    if refused.is_file():
        raise GmpError(refused.read_text(encoding="utf-8"))
    if launcher.returncode:
        raise GmpError(
            f"one of {processes} processes failed, see what they printed above; processes=1 trains "
            "without them."
        )


if __name__ == "__main__":
    task = Path(sys.argv[1])
    function, arguments = pickle.loads(task.read_bytes())
    try:
        function(*arguments)
    except GmpError as error:
        told = task.with_name(f"refused-{os.getpid()}.txt")
        told.write_text(str(error), encoding="utf-8")
        os.replace(told, task.with_name("refused.txt"))
        sys.exit(1)  # the others wait for this one, and are ended by the launcher
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
