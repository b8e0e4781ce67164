"""A papermill engine without network ports, which records why a cell failed."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import v4
from papermill.engines import NBClientEngine, NotebookExecutionManager
from traitlets import default
from traitlets.config import Config

REASONS = {
    DeadKernelError: "the kernel died while this cell ran. Most often the machine had no memory left (see "
    "dmesg); then use smaller batches.",
    CellTimeoutError: "the cell ran longer than --execution-timeout allows.",
    KeyboardInterrupt: "stopped from outside: by Ctrl-C, a closed terminal or a scheduler. Run it again; "
    "trainings resume from their last checkpoint.",
}
MAX_TEMPDIR = 70  # of the 104 characters of a socket's path, or 108 on Linux


class OwnKernelManager(AsyncKernelManager):
    """Starts this environment's ipykernel, even if JUPYTER_PATH has another kernel of its name."""

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class IpcEngine(NBClientEngine):
    """`papermill --engine ipc`: kernels are reached through sockets in files, not TCP ports.

    A TCP port that is taken before the kernel binds it leaves a kernel that never answers (papermill,
    issue 511). When a kernel dies, times out or is stopped, papermill marks its cell and all later ones
    as completed. Here the cell is marked as failed with the reason, and later ones as pending.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        """Run a notebook in a kernel of this environment, with sockets in a temporary folder."""
        short = None if len(tempfile.gettempdir()) < MAX_TEMPDIR else "/tmp"
        temporary = tempfile.TemporaryDirectory(prefix="gmp-", dir=short)
        with temporary as folder, _signals_as_interrupts():
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            options |= {"config": config, "coalesce_streams": True}
            options |= {"kernel_manager_class": OwnKernelManager}
            try:
                super().execute_managed_notebook(nb_man, kernel_name, **options)
            except (Exception, KeyboardInterrupt) as error:  # papermill fails if a cell has it
                if not _record_error(nb_man, error):
                    raise


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP act as Ctrl-C, so that the kernel ends and the notebook is written.

    Later signals are ignored: they would leave the kernel running.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup

    def stop(*_):
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _record_error(nb_man: NotebookExecutionManager, error: BaseException) -> bool:
    """Add an error to the cell that ran, or to the first one; False without any cell."""
    cells = [cell for cell in nb_man.nb.cells if cell.cell_type == "code"]
    started = [cell for cell in cells if cell.metadata.papermill["start_time"]]
    for cell in started[-1:] or cells[:1]:
        name, reason = type(error).__name__, REASONS.get(type(error), str(error))
        errors = [output for output in cell.outputs if output.output_type == "error"]
        traceback = [line for output in errors for line in output.traceback]
        cell.outputs = [output for output in cell.outputs if output not in errors]
        content = {"ename": name, "evalue": reason, "traceback": [*traceback, f"{name}: {reason}"]}
        cell.outputs.append(v4.new_output("error", **content))
        nb_man.cell_exception(cell)
    return bool(cells)
