"""Errors that end a job with one line instead of a traceback. Runs anywhere."""

import difflib


class UserError(Exception):
    """A mistake in what the user gave: one line with the thing, the value, the rule, the remedy.

    The command line ends with exit code 2.
    """


class RunFailedError(Exception):
    """A run ended early and not by a mistake of the user; the message says where and of what.

    The command line ends with exit code 1.
    """


class StoppedError(Exception):
    """The user, or who runs the cluster, ended the run; the message says where it may be resumed.

    The command line ends with exit code 130.
    """


def closest(word: str, valid) -> str:
    """Return ``"; did you mean X?"`` when `word` looks like one of `valid`, else an empty string."""
    match = difflib.get_close_matches(word, list(valid), n=1)
    return f"; did you mean {match[0]}?" if match else ""
