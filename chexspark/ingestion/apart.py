"""A function in a process of its own, which it may end. Runs in Spark tasks.

In: a function of a module, and what it takes. Out: what it returns. GDCM ends its process on some damaged
streams (C++ exceptions that nobody catches): a task, and with it the job, must not go with it.
"""

import contextlib
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CHILD = "import sys; from chexspark.ingestion.apart import serve; serve(*sys.argv[1:])"


class EndedError(Exception):
    """The process of the function has ended."""


class Apart:
    """A process that calls one function again and again; begun with the first call, and after an end.

    `function` is named by its module, and may raise what can be pickled.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.process: subprocess.Popen | None = None
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
        """Start the process. It ends with this one: its end of the line is closed then.

        It is no child of `multiprocessing`, which would run the user's script in it again.
        """
        ours, theirs = socket.socketpair()
        number = theirs.fileno()
        words = [str(number), self.function.__module__, self.function.__qualname__]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], pass_fds=[number], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        theirs.close()
        self.line = Connection(ours.detach())

    def end(self) -> None:
        """End the process, if there is one."""
        if self.line is not None and self.process is not None:
            self.line.close()
            self.process.kill()
            self.process.wait()
        self.line = None


def serve(number: str, module: str, name: str) -> None:
    """Answer calls of a function until the caller is gone. `number`: of the open line's file."""
    function = getattr(importlib.import_module(module), name)
    line = Connection(int(number))
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
