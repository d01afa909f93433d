"""A step whose gradients are summed around a ring, measured on one rank. Runs on ranks.

In: `Shared`. Out: `WayFound`, from rank 0. It is the step of a training (`training.step`): gradients travel in groups
while the backward pass goes on, and so the exchange that is told is what is left of it after the last gradient.
"""

import os
import time

from chexspark.benchmark.exchange import bytes_sent, shares
from chexspark.benchmark.shared_work import Shared, WayFound, look
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.tensorflow_import import import_tensorflow
from chexspark.training.events import EventAddress, EventSender
from chexspark.training.rank import failure_told, join_ring


def measure_ring(address: EventAddress, shared: Shared) -> WayFound | None:
    """Measure as one rank among those that Horovod has started."""
    rank = int(os.environ["HOROVOD_RANK"])
    with EventSender(address, rank) as events, failure_told(events):
        import_tensorflow()
        found = train_in_ring(shared)
    return found


def train_in_ring(shared: Shared) -> WayFound | None:
    """Join the ring, and take the steps; what was found is known to rank 0."""
    from chexspark.training import horovod_ring

    facts, *_ = join_ring(shared.training.config)

    from chexspark.benchmark.distributed_step import batches_of, build, flat, use_one_thread
    from chexspark.training.setup import make_steps

    use_one_thread()
    ring = horovod_ring.HorovodRing()
    manifest = read_manifest(locate(shared.training.config.data))
    steps = make_steps(shared.training, manifest, facts, ring, build(shared))
    start, batches = flat(steps.variables), batches_of(shared, facts.rank)
    losses = [steps.train(batches[0]).loss]
    ring.sum([0.0], "all_are_here")
    before, compute, exchange = look(), 0.0, 0.0
    began = time.perf_counter()
    for number in range(1, shared.steps + 1):
        at = time.perf_counter()
        result = steps.train(batches[number % len(batches)])
        compute += time.perf_counter() - at - result.allreduce_seconds
        exchange += result.allreduce_seconds
        losses.append(result.loss)
    ring.sum([0.0], "all_are_here")
    seconds = time.perf_counter() - began
    told = ring.gather_objects((before, look(), compute, exchange))
    horovod_ring.leave()
    if facts.rank:
        return None
    first, last, computing, exchanging = zip(*told, strict=True)
    return WayFound(
        seconds, bytes_sent(first, last) / shared.ranks / shared.steps,
        shares(seconds, computing, exchanging), losses, flat(steps.variables), start,
    )  # fmt: skip
