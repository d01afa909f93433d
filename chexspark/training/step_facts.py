"""What a minute on each rank tells of a training: its step, its exchange, its input. Runs on ranks.

In: settings of a run, and where events go. Out: `StepFacts`, plain values, from which the driver forecasts other numbers
of ranks. Nothing is written, and the weights that come of it are thrown away. The heavy imports stand inside the
function: the driver imports this module to send it.
"""

import os
from dataclasses import dataclass

from chexspark.run.resolved import ResolvedTraining
from chexspark.tensorflow_import import import_tensorflow
from chexspark.training.events import EventAddress, EventSender, Starting
from chexspark.training.rank import failure_told, join_ring


@dataclass(frozen=True)
class Exchange:
    """A timed allreduce over all ranks: the median of this rank."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class StepFacts:
    """What was measured on one rank, while all ranks did the same. Times are seconds."""

    host: str
    rows: int  # images per rank and step
    messages: tuple[int, ...]  # bytes that travel together, in the order in which they are ready
    ready: tuple[float, ...]  # from a step's start to each message
    alone: tuple[float, ...]  # steps in which nothing is sent
    half: tuple[float, ...]  # the same with half the images; empty where they cannot be halved
    together: tuple[float, ...]  # steps as in training
    exchange: tuple[Exchange, ...]
    latency: float  # of a byte to the next rank: half of its way there and back; 0 where that cannot be reached
    input: float  # to read a batch from the store
    score: float  # to score a batch of the validation split


def measure_steps(address: EventAddress, settings: ResolvedTraining) -> StepFacts:
    """Measure as one rank among those that Horovod has started."""
    rank = int(os.environ["HOROVOD_RANK"])
    with EventSender(address, rank) as events, failure_told(events):
        events.send(Starting("TensorFlow"))
        import_tensorflow()
        from chexspark.training import horovod_ring
        from chexspark.training.step_probe import StepProbe

        facts, device, _ = join_ring(settings.config)
        ring, here = horovod_ring.HorovodRing(), events.socket
        found = StepProbe(settings, facts, ring, events, here).measure(device == "CPU")
        horovod_ring.leave()
        return found
