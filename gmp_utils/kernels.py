"""A papermill engine that needs no network ports, and says of every cell how it ended."""

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
    "the system's log (dmesg) says so; then take less at once, such as smaller batches.",
    CellTimeoutError: "the cell ran longer than --execution-timeout allows.",
    KeyboardInterrupt: "stopped from outside: by Ctrl-C, a closed terminal or a scheduler. Run it again; "
    "trainings go on from their last checkpoint.",
}


class IpcEngine(NBClientEngine):
    """`papermill --engine ipc`: notebooks that start together cannot take each other's ports.

    With TCP a port is chosen before the kernel holds it, and one taken in between leaves a kernel that
    never answers (papermill, issue 511). Nor can anybody else on the machine connect.

    Of cells whose kernel died, that took too long or were stopped, papermill says that they were
    completed, and all later ones too. Here the cell failed and holds the reason, and later ones are
    pending.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        """Run a notebook with sockets in a folder of its own; their paths have to be short."""
        with tempfile.TemporaryDirectory(prefix="gmp-") as folder, _stoppable():
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            try:
                super().execute_managed_notebook(nb_man, kernel_name, config=config, **options)
            except (Exception, KeyboardInterrupt) as error:  # told, papermill ends with an error
                if not _told(nb_man, error):
                    raise


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, so that the kernel ends and the notebook is written.

    Later ones are ignored: they would leave the kernel behind.
    """
    handlers = {
        one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    heard = {one for one, handler in handlers.items() if handler != signal.SIG_IGN}  # as by nohup

    def stop(*_):
        for one in heard:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in heard:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in heard:
            signal.signal(one, handlers[one])


def _told(nb_man: NotebookExecutionManager, error: BaseException) -> bool:
    """Whether a cell could be given the error: the one that ran, or the first if none did yet."""
    cells = [cell for cell in nb_man.nb.cells if cell.cell_type == "code"]
    begun = [cell for cell in cells if cell.metadata.papermill["start_time"]]
    for cell in begun[-1:] or cells[:1]:
        name, reason = type(error).__name__, REASONS.get(type(error), str(error))
        errors = [output for output in cell.outputs if output.output_type == "error"]
        where = [line for output in errors for line in output.traceback]
        cell.outputs = [output for output in cell.outputs if output not in errors]
        told = {"ename": name, "evalue": reason, "traceback": [*where, f"{name}: {reason}"]}
        cell.outputs.append(v4.new_output("error", **told))
        nb_man.cell_exception(cell)
    return bool(cells)
