"""Errors that end a job with one line instead of a traceback. Runs anywhere.

The texts are written once, for both ways to call: a setting stands in them as ``--rows-per-group``, and
with a value as ``--rows-per-group=64``. The command line shows ``--rows-per-group 64``, a call from
Python ``rows_per_group=64``.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable

SETTING = re.compile(r"(?<![\w-])--(no-)?([a-z]+(?:-[a-z]+)*)(=?)")
LONGEST_NAME = 120  # letters of one that a message lists
at_command_line = False  # whether this process is a command; set by `command_line.main`


def spoken(text: str) -> str:
    """A text about settings as who called knows them: flags, or keyword arguments."""
    if at_command_line:
        return SETTING.sub(lambda found: found[0][:-1] + " " if found[3] else found[0], text)

    def keyword(found: re.Match[str]) -> str:
        name = found[2].replace("-", "_")
        if name not in setting_types():
            return found[0]
        if found[3]:
            return f"{name}="
        return f"{name}={not found[1]}" if setting_types()[name] is bool else name

    return SETTING.sub(keyword, text)


@functools.cache
def setting_types() -> dict[str, type]:
    """The type of each setting of any command, by name."""
    from chexspark import config  # which needs this module
    from chexspark.settings import value_type

    classes = [each for each in vars(config).values() if dataclasses.is_dataclass(each)]
    fields = [field for each in classes for field in dataclasses.fields(each)]
    return {field.name: value_type(field) for field in fields}


class ChexsparkError(Exception):
    """An error whose `str()` is what who called is to read; `text` is what was written."""

    @property
    def text(self) -> str:
        """The message as it was written."""
        return super().__str__()

    def __str__(self) -> str:
        return spoken(self.text)


class UserError(ChexsparkError):
    """A mistake in what the user gave: one line with the thing, the value, the rule, the remedy.

    The command line ends with exit code 2.
    """


class RunFailedError(ChexsparkError):
    """A run ended early and not by a mistake of the user; the message says where and of what.

    The command line ends with exit code 1.
    """


class StoppedError(ChexsparkError):
    """The user, or who runs the cluster, ended the run; the message says where it may be resumed.

    The command line ends with exit code 130.
    """


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message: the first of many, and how many there are; of a long one, its beginning."""
    names = [f"{n[:LONGEST_NAME]}…" if len(n) > LONGEST_NAME else n for n in names]
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + f", … ({len(names):,} in all)"


def closest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` when `word` looks like one of `valid`, else an empty string."""
    match = difflib.get_close_matches(word, list(valid), n=1)
    return f"; did you mean {match[0]}?" if match else ""
