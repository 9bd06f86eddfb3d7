"""The two ways in which classicrl refuses to go on.

Both carry one line that says what was wrong and how to mend it. At the command line they end the
process without a traceback, with the exit code of the class.
"""


class UserError(Exception):
    """Bad input: nothing was started and nothing was lost. Exit code 2."""

    exit_code = 2


class RunFailure(Exception):
    """A failure in the middle of a run: its last good checkpoint stands. Exit code 1."""

    exit_code = 1
