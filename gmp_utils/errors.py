"""The one error type of the package."""


class GmpError(ValueError):
    """Something the user gave cannot be used.

    The message names what was found, what was expected and what to do.
    """
