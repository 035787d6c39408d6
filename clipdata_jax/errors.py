"""The one exception for what is wrong with the user's input rather than with our code."""


class InputError(Exception):
    """Bad usage or bad input: one sentence that names what, where, what was expected and what to do.

    The command prints it without a traceback and exits with status 2.
    """
