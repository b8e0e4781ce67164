"""A papermill engine without network ports, which records in each cell how it ended."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import v4
from papermill.engines import NBClientEngine, NotebookExecutionManager
from traitlets.config import Config

REASONS = {
    DeadKernelError: "the kernel died while this cell ran. Most often the machine had no memory left, and "
    "the system's log (dmesg) says so; then use less at once, such as smaller batches.",
    CellTimeoutError: "the cell ran longer than --execution-timeout allows.",
    KeyboardInterrupt: "stopped from outside: by Ctrl-C, a closed terminal or a scheduler. Run it again; "
    "trainings resume from their last checkpoint.",
}


class IpcEngine(NBClientEngine):
    """`papermill --engine ipc`: kernels are reached through files, not through TCP ports.

    With TCP a port is chosen before the kernel binds it, and a port taken in between leaves a kernel
    that never answers (papermill, issue 511). Nor can anybody else on the machine connect.

    Papermill marks cells as completed whose kernel died, that timed out or were stopped, and all later
    ones too. Here the cell failed and holds the reason, and later ones are pending.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        """Run a notebook with sockets in a temporary folder; their paths have to be short."""
        with tempfile.TemporaryDirectory(prefix="gmp-") as folder, _signals_as_interrupts():
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            try:
                super().execute_managed_notebook(nb_man, kernel_name, config=config, **options)
            except (Exception, KeyboardInterrupt) as error:  # papermill fails once a cell has it
                if not _record_error(nb_man, error):
                    raise


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP act as Ctrl-C, so that the kernel ends and the notebook is written.

    Later signals are ignored: they would leave the kernel running.
    """
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup ignores SIGHUP
    }

    def stop(*_):
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _record_error(nb_man: NotebookExecutionManager, error: BaseException) -> bool:
    """Add an error to the cell that ran, or to the first if none did yet; False without any cell."""
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
