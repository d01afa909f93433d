"""What every way to distribute a step is given, and what it hands back. Runs anywhere.

In: settings of a training. Out: `Shared` and `WayFound`, plain values, which travel between the driver and ranks.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from chexspark.benchmark.exchange import Sent
from chexspark.run.resolved import ResolvedTraining

NAMESPACE = Path("/proc/self/ns/net")  # of Linux: what tells containers of one name apart


@dataclass(frozen=True)
class Shared:
    """The work: a step that compiles, and `steps` that are measured, on batches in memory."""

    training: ResolvedTraining  # plain sgd on one thread, of a run that begins with as many ranks as there are
    steps: int

    @property
    def ranks(self) -> int:
        """Ranks, or tasks of a stage."""
        return self.training.began_with

    def batches(self, images: int) -> int:
        """How many global batches are in memory, of an epoch of so many images: whole ones; steps go round them."""
        return min(self.steps + 1, images // self.training.global_batch)


@dataclass(frozen=True)
class WayFound:
    """A round of one way."""

    seconds: float  # of the measured steps, on all ranks
    bytes_sent: float  # per rank and step
    shares: dict[str, float]  # of the time of ranks, see `exchange.shares`
    losses: list[float]  # of the global batch, of all steps
    end: np.ndarray  # float32 (weights,): those that are trained, after the last step
    start: np.ndarray | None = None  # those of all ways, from the ring
    fresh: int = 0  # processes that had to build the network while it was measured


def look() -> Sent:
    """What this host has sent so far."""
    namespace = NAMESPACE.readlink() if NAMESPACE.is_symlink() else ""
    return Sent(f"{socket.gethostname()} {namespace}", psutil.net_io_counters().bytes_sent)
