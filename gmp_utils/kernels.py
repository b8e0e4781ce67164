"""A papermill engine whose kernels are reached through files instead of network ports."""

import tempfile

from papermill.engines import NBClientEngine
from traitlets.config import Config


class IpcEngine(NBClientEngine):
    """`papermill --engine ipc`: notebooks that start together cannot take each other's ports.

    With TCP a port is chosen before the kernel holds it, and one taken in between leaves a kernel that
    never answers (papermill, issue 511). Nor can anybody else on the machine connect.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        """Run a notebook with sockets in a folder of its own; their paths have to be short."""
        with tempfile.TemporaryDirectory(prefix="gmp-") as folder:
            config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            super().execute_managed_notebook(nb_man, kernel_name, config=config, **options)
