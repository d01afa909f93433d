"""Measurements of a process of its own, as soon as they are taken. Runs on the driver and in that process.

In: a module that is run, and what it measures. Out: a dict per measurement, a line of JSON between the two.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from chexspark.errors import RunFailedError


class Results:
    """That process's end. Libraries print too: standard output is the measurements' from now on, and all
    else goes to standard error."""

    def __init__(self) -> None:
        self.lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def tell(self, **found: Any) -> None:
        """Hand a measurement, JSON, to the driver."""
        self.lines.write(json.dumps(found) + "\n")


def measurements(
    module: str, arguments: list[Any], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Run a module and yield what it tells. Raises RunFailedError with its last words."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            raise RunFailedError(f"the benchmark stopped:\n{errors.read()[-2000:]}")
