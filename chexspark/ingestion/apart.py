"""A function in a process of its own, which it may end. Runs in Spark tasks.

In: a function of a module, and what it takes. Out: what it returns. GDCM ends its process on some damaged
streams (C++ exceptions that nobody catches): a task, and with it the job, must not go with it.
"""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class EndedError(Exception):
    """The process of the function has ended."""


class Apart:
    """A process that calls one function again and again; begun with the first call, and after an end.

    `function` is named by its module, and may raise what can be pickled.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.process: Any = None
        self.line: Connection | None = None

    def __call__(self, *words: object) -> Any:
        """What the function returns. Raises what it raises, and EndedError where it ends the process."""
        if self.line is None:
            self.begin()
        assert self.line is not None
        try:
            self.line.send(words)
            found, error = self.line.recv()
        except (EOFError, OSError) as gone:
            self.end()
            raise EndedError from gone
        if error is not None:
            raise error
        return found

    def begin(self) -> None:
        """Start the process. It ends with this one: its end of the line is closed then."""
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would have the locks of other threads
        self.line, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.function, other), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        """End the process, if there is one."""
        if self.line is not None:
            self.line.close()
            self.process.kill()
            self.process.join()
        self.line = None


def serve(function: Callable[..., Any], line: Connection) -> None:
    """Answer calls until the caller is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            words = line.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(*words), None
            except Exception as error:
                answer = None, error
            del words
            line.send(answer)
            del answer
