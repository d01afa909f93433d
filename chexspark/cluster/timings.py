"""Where the time of a training goes, from the command to the model. Runs on the driver.

In: what the driver has reached, and the ranks' events. Out: seconds by stage, as a table.
"""

import os
import time

import psutil

from chexspark.progress import duration
from chexspark.training.events import Epoch, Event, Starting, Step, Validating

BEGIN, GIVEN, SPARK = "Python and packages", "settings and store", "Spark"
PLACES, LAUNCH, END = "ranks' places", "ranks started", "the last checkpoint"
LATER = "further epochs"


class Timings:
    """Adds up seconds by stage. A stage ends where the next one is reached."""

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.stage = LAUNCH  # of rank 0, that is under way

    def since_start_of_process(self) -> None:
        """Count from the start of this process, or of ``spark-submit``, where it was started to train."""
        process = psutil.Process()
        if "PYSPARK_GATEWAY_PORT" in os.environ:
            process = process.parent() or process
        ran = time.time() - process.create_time()
        self.begun = time.monotonic() - ran
        self.seconds[BEGIN] = ran

    def end(self, stage: str) -> None:
        """A stage is over."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now

    def take(self, event: Event) -> None:
        """One event of rank 0."""
        match event:
            case Starting():
                self.end(self.stage)
                self.stage = event.what
            case Step():
                self.end(self.stage)
                self.stage = steps_of(event.epoch)
            case Validating():
                self.end(self.stage)
                self.stage = f"{steps_of(event.epoch)}: statistics, validation"
            case Epoch():
                self.end(self.stage)
                self.stage = steps_of(event.epoch + 1)

    def __str__(self) -> str:
        """The table."""
        width = max(map(len, self.seconds))
        lines = [f"{stage:<{width}}  {seconds:7.1f} s" for stage, seconds in self.seconds.items()]
        whole = time.monotonic() - self.begun
        return "\n".join([*lines, f"{'in all':<{width}}  {whole:7.1f} s = {duration(whole)}"])


def steps_of(epoch: int) -> str:
    """The stage of the steps of an epoch, counted from 0."""
    return "epoch 1" if epoch == 0 else LATER
