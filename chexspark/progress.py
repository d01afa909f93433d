"""A line that tells how far long work is. Runs on the driver.

In: texts. Out: on a terminal and in a notebook one line, rewritten; elsewhere a line every ten seconds; nothing
where the logger ``chexspark`` is silenced.
"""

import sys
import time
from typing import Any, TextIO

from chexspark.output import is_shown

QUIET_SECONDS = 10.0
NOTEBOOK_SECONDS = 0.5  # between two texts in a notebook's line


class ProgressLine:
    """A context manager: `show` replaces the line, `say` leaves a lasting one above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.notebook = None if stream else notebook_line()
        # A notebook paints standard error as if something were wrong.
        self.stream = stream or (sys.stdout if self.notebook else sys.stderr)
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
        if self.notebook:
            if time.monotonic() - self.last >= NOTEBOOK_SECONDS:
                self.notebook.show(text)
                self.last = time.monotonic()
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
        if self.notebook:
            self.notebook.show("")
        if self.live and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0


class NotebookLine:
    """A place among a notebook's outputs whose text is replaced, so that hours of work leave one line."""

    def __init__(self, display: Any) -> None:
        self.display, self.handle = display, None
        self.text = ""

    def show(self, text: str) -> None:
        """Put a text there; the place is made with the first one."""
        if text == self.text:
            return
        self.text = text
        shown = {"text/plain": text}
        if self.handle:
            self.handle.update(shown, raw=True)
        else:
            self.handle = self.display(shown, raw=True, display_id=True)


def notebook_line() -> NotebookLine | None:
    """A line in the notebook that this process is the kernel of; None elsewhere."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return NotebookLine(ipython.display.display)


def duration(seconds: float) -> str:
    """``1:02:03``, ``2:03`` or ``0:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
