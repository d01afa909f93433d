"""A line that tells how far long work is. Runs on the driver.

In: texts. Out: on a terminal one line, rewritten; elsewhere a line every ten seconds; nothing where
the logger ``chexspark`` is silenced.
"""

import sys
import time
from typing import TextIO

from chexspark.output import is_shown

QUIET_SECONDS = 10.0


class ProgressLine:
    """A context manager: `show` replaces the line, `say` leaves a lasting one above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shown, self.live = is_shown(), self.stream.isatty()
        self.width = 0
        self.last = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    def show(self, text: str) -> None:
        """Put a text in the line's place; where there is no terminal, now and then."""
        if not self.shown:
            return
        if self.live:
            self.stream.write(f"\r{text:<{self.width}}")
            self.width = len(text)
        elif time.monotonic() - self.last >= QUIET_SECONDS:
            self.stream.write(text + "\n")
            self.last = time.monotonic()
        self.stream.flush()

    def say(self, text: str) -> None:
        """Leave a lasting line."""
        if not self.shown:
            return
        self._clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self.live and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0


def duration(seconds: float) -> str:
    """``1:02:03``, ``2:03`` or ``0:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
