"""Where the time of an epoch goes. Runs on ranks.

In: the times of each step. Out: rates, shares, and when it is time to tell the driver.
"""

import math
import time

EVENT_SECONDS = 0.5  # between two events of steps


class Clock:
    """Adds up where the time of an epoch goes. `images`: of a step, over all ranks."""

    def __init__(self, images: float, first: int, losses: float):
        self.images, self.before, self.steps = images, first, 0
        self.started = self.told = self.now = time.monotonic()
        self.first = None  # when the first step, which may have compiled, was done
        self.loss = self.input = self.allreduce = 0.0
        self.losses = losses

    def asks(self) -> None:
        self.now = time.monotonic()

    def gets(self) -> None:
        self.input += time.monotonic() - self.now

    def stepped(self, result) -> None:
        self.steps += 1
        self.loss, self.losses = result.loss, self.losses + result.loss
        self.allreduce += result.allreduce_seconds
        self.now = time.monotonic()
        self.first = self.first or self.now

    @property
    def mean_loss(self) -> float:
        return self.losses / (self.before + self.steps)

    @property
    def rate(self) -> float:
        """Images per second over all ranks, from the second step on."""
        if self.steps < 2:
            return self.images / max(self.now - self.started, 1e-9)
        return (self.steps - 1) * self.images / (self.now - self.first)

    def is_time_to_tell(self) -> bool:
        if self.now - self.told < EVENT_SECONDS:
            return False
        self.told = self.now
        return True

    def figures(self) -> dict:
        """The epoch's row of the history. The shares are of the epoch's time on this rank."""
        seconds = time.monotonic() - self.started
        shares = {"input_share": self.input / seconds, "allreduce_share": self.allreduce / seconds}
        return {
            "train_loss": self.mean_loss,
            "seconds": seconds,
            "images_per_second": self.steps * self.images / seconds if self.steps else math.nan,
            **shares,
            "compute_share": 1 - sum(shares.values()),
        }
