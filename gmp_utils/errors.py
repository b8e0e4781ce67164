"""The one error type of the package."""


class GmpError(ValueError):
    """Something the user gave cannot be used.

    The message names what was found, what was expected and what to do.
    """


OPENSMILE = (
    "eGeMAPS needs openSMILE, whose licence allows research and private use only: run "
    "`.venv/bin/python -m pip install opensmile`, or leave egemaps out of baselines."
)
