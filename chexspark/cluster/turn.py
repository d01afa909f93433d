"""One launch of ranks at a time in a process. Runs on the driver.

Horovod's launcher keeps its job's number, and what chexspark changes in it, for the whole process:
two at once would break each other.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pyspark.sql import SparkSession

from chexspark.errors import StoppedError
from chexspark.progress import ProgressLine
from chexspark.session import ENDED, has_ended

LOCK = (
    threading.RLock()
)  # a training takes it for its examination and its ranks, and again for each
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def turn(spark: SparkSession) -> Iterator[None]:
    """Wait until no other thread is inside, and say so; then be inside.

    While it waits, Ctrl-C and SIGTERM raise KeyboardInterrupt here, and leave the others' Spark jobs
    alone. Raises StoppedError when Spark's application ends meanwhile.
    """
    if not LOCK.acquire(blocking=False):
        wait_for_turn(spark)
    try:
        yield
    finally:
        LOCK.release()


def wait_for_turn(spark: SparkSession) -> None:
    """Return when the lock is held. Raises StoppedError when Spark's application ends."""
    with ProgressLine() as line, signals_to(signal.default_int_handler):
        line.say("another training runs in this session: waiting for it to end")
        while not LOCK.acquire(timeout=LOOK_SECONDS):
            if has_ended(spark):
                raise StoppedError(ENDED)
            line.show("waiting for another training of this session to end")


@contextlib.contextmanager
def signals_to(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM go to `handler`, where this is the thread that they come to."""
    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {
            number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield
    finally:
        for number, before in kept.items():
            # None: a handler that Python did not set, and cannot set again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
