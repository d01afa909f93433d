"""Where the time of an epoch goes. Runs on ranks.

In: the times of each step. Out: rates, shares, and when it is time to tell the driver.
"""

import math
import time
from typing import TypedDict

EVENT_SECONDS = 0.5  # between two events of steps


class EpochTimes(TypedDict):
    """Columns of the epoch's row of the history. The shares are of the epoch's time on this rank."""

    seconds: float
    images_per_second: float  # over all ranks; NaN where no step was taken
    input_share: float
    allreduce_share: float
    compute_share: float


class Clock:
    """Adds up where the time of an epoch goes. `images`: of a step, over all ranks."""

    def __init__(self, images: float) -> None:
        self.images, self.steps = images, 0
        self.started = self.told = self.now = time.monotonic()
        self.first: float | None = None  # when the first step, which may have compiled, was done
        self.input = self.allreduce = 0.0

    def asks(self) -> None:
        """A batch is asked for."""
        self.now = time.monotonic()

    def gets(self) -> None:
        """It is there."""
        self.input += time.monotonic() - self.now

    def stepped(self, allreduce_seconds: float) -> None:
        """A step is done, of which so many seconds went into reducing."""
        self.steps += 1
        self.allreduce += allreduce_seconds
        self.now = time.monotonic()
        self.first = self.first or self.now

    @property
    def rate(self) -> float:
        """Images per second over all ranks, from the second step on."""
        if self.steps < 2 or self.first is None:
            return self.images / max(self.now - self.started, 1e-9)
        return (self.steps - 1) * self.images / (self.now - self.first)

    def is_time_to_tell(self) -> bool:
        """Whether the driver has not been told for a while."""
        return self.now - self.told >= EVENT_SECONDS

    def tells(self) -> None:
        """The driver is told."""
        self.told = self.now

    def figures(self) -> EpochTimes:
        """Where the time went until now."""
        seconds = time.monotonic() - self.started
        input_share, allreduce_share = self.input / seconds, self.allreduce / seconds
        return {
            "seconds": seconds,
            "images_per_second": self.steps * self.images / seconds if self.steps else math.nan,
            "input_share": input_share,
            "allreduce_share": allreduce_share,
            "compute_share": 1 - input_share - allreduce_share,
        }
