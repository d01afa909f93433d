"""What chexspark says to people: lines of the logger ``chexspark``. Runs on the driver.

A job shows them as they are, on standard output. So does a notebook or a program, unless it has set
up logging itself. ``logging.getLogger("chexspark").setLevel("ERROR")`` silences them, and the
progress line with them.
"""

import contextlib
import logging
import sys

LOGGER = logging.getLogger("chexspark")


class Screen(logging.Handler):
    """Writes lines to what is standard output at that moment, which a notebook or a test may change."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with contextlib.suppress(OSError):  # of a screen that is gone, which ends no job
            print(self.format(record), file=sys.stdout, flush=True)


def show_output(always: bool = False) -> None:
    """Show what is said from here on; unless `always`, only where nothing else has been set up to."""
    if always or not LOGGER.hasHandlers():
        if not any(isinstance(handler, Screen) for handler in LOGGER.handlers):
            LOGGER.addHandler(Screen())
            # A library that sets up logging for itself, as Horovod's launcher does, would say it again.
            LOGGER.propagate = False
        if LOGGER.level == logging.NOTSET:
            LOGGER.setLevel(logging.INFO)


def is_shown() -> bool:
    """Whether lines are said at all: a progress line is not where they are not."""
    return LOGGER.isEnabledFor(logging.INFO)
