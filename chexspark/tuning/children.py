"""The search's side of a trial's process. Runs on the driver.

In: the settings of a trial, Spark's settings, a function that is told of each epoch. Out: how the trial ended.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from chexspark.tuning.records import EpochFigures
from chexspark.tuning.trial import GO_ON, PRUNE

STOP_SECONDS = 30  # for a trial to stop with a checkpoint, before it is killed
# Of this process's Java, not of a trial's.
GATEWAY = ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")
SUBMIT = "PYSPARK_SUBMIT_ARGS"
# What Spark has noted of this application, and is not of another's.
OF_THIS = ("spark.app.", "spark.driver.port", "spark.executor.id", "spark.org.", "spark.yarn.app.", "spark.ui.proxyBase",
           "spark.driver.appUIAddress", "spark.sql.warehouse.dir", "spark.submit.deployMode")  # fmt: skip
OnEpoch = Callable[[EpochFigures], bool]  # → whether the trial is to end


@dataclass
class Ended:
    """How a trial's process ended."""

    code: int  # its exit code; below 0: the signal that killed it
    words: str  # the last that it said
    history: list[EpochFigures] | None = None  # all epochs, where it came to an end of its own
    output: str = ""  # all that it said


def spark_settings(spark: SparkSession | None) -> dict[str, str]:
    """The settings of Spark that this process was given, for applications of trials."""
    context = spark.sparkContext if spark else SparkContext._active_spark_context
    if context is not None:
        given = dict(context.getConf().getAll())
    elif GATEWAY[0] in os.environ:  # by spark-submit, and no application has been started
        SparkContext._ensure_initialized()
        given = dict(SparkConf().getAll())
    else:
        return {}
    return {name: value for name, value in given.items() if not name.startswith(OF_THIS)}


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of trials' processes: Spark's settings in a file that nobody else can read."""
    found = {name: value for name, value in os.environ.items() if name not in GATEWAY}
    if not settings:
        yield found
        return
    with tempfile.NamedTemporaryFile("w", prefix="chexspark-", suffix=".conf") as file:
        for name, value in settings.items():
            file.write(f"{name} {escaped(value)}\n")
        file.flush()
        yield found | {SUBMIT: " ".join(("--properties-file", file.name, "pyspark-shell"))}


def escaped(value: str) -> str:
    """A value as Java's properties files have it."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


@dataclass
class Children:
    """The processes of trials, in this environment; from any thread."""

    environment: dict[str, str]
    running: dict[int, subprocess.Popen] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: bool = False

    def run(self, settings: dict[str, Any], on_epoch: OnEpoch) -> Ended:
        """Run a trial to its end."""
        read, write = os.pipe()
        history = None
        with tempfile.TemporaryFile() as output:
            with self.lock:
                if self.stopping:
                    os.close(read)
                    os.close(write)
                    return Ended(130, "stopped")
                child = subprocess.Popen(
                    [sys.executable, "-m", "chexspark.tuning.trial", str(write)], env=self.environment,
                    stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, pass_fds=(write,),
                    start_new_session=True, text=True,
                )  # fmt: skip
                self.running[child.pid] = child
            os.close(write)
            try:
                with os.fdopen(read) as lines, contextlib.suppress(BrokenPipeError):
                    self.say(child, settings)
                    history = self.listen(child, lines, on_epoch)
                code = child.wait()
            finally:
                with self.lock:
                    del self.running[child.pid]
                end(child)
            output.seek(0)
            said = output.read().decode(errors="replace")
        return Ended(code, last_words(said), history, said)

    def listen(
        self, child: subprocess.Popen, lines: Any, on_epoch: OnEpoch
    ) -> list[EpochFigures] | None:
        """Answer a trial after each epoch, until it says no more; returns the epochs that it ends with."""
        history = None
        for line in lines:
            if not line.endswith("\n"):
                break  # it died within a line
            said = json.loads(line)
            if isinstance(said, list):
                history = said
            else:
                with contextlib.suppress(BrokenPipeError):
                    self.say(child, PRUNE if on_epoch(said) else GO_ON)
        return history

    def say(self, child: subprocess.Popen, what: Any) -> None:
        """Write a line to a trial. Raises BrokenPipeError where it is gone."""
        assert child.stdin
        child.stdin.write(json.dumps(what) + "\n")
        child.stdin.flush()

    def stop(self) -> None:
        """Ask all trials to stop with a checkpoint, and begin no more."""
        with self.lock:
            self.stopping = True
            for child in self.running.values():
                child.terminate()

    def kill(self) -> None:
        """End those that have not stopped."""
        with self.lock:
            for child in self.running.values():
                child.kill()


def end(child: subprocess.Popen) -> None:
    """See that a process is gone."""
    if child.poll() is None:
        child.kill()
        child.wait()
    with contextlib.suppress(BrokenPipeError):
        assert child.stdin
        child.stdin.close()


def last_words(said: str) -> str:
    """The last line of a command, which says why it ended, without who says so."""
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("chexspark: ")]
    return (own or lines or ["nothing was said"])[-1].removeprefix("chexspark: ")[:500]
