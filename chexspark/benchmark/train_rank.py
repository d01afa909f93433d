"""The training step of one rank, measured three ways in turn. Runs on ranks.

In: settings of a run. Out: seconds per image of each way, round after round:
``loop`` is the training loop as it trains; ``step`` its compiled step on a batch that stays in
memory; ``silent`` the same step without a message to other ranks, on both at the same time: what the
machine gives to processes that run side by side.
"""

import time

from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.training.events import EventAddress, EventSender, Round
from chexspark.training.rank import join_ring
from chexspark.training.ring import Alone


def measure_rank(
    address: EventAddress, settings: ResolvedTraining, rounds: int
) -> list[dict[str, float]]:
    """Return a dict per round: way → seconds per image of this rank."""
    from chexspark.training import horovod_ring
    from chexspark.training.loop import Training
    from chexspark.training.step import Steps

    facts, *_ = join_ring(settings.config)
    ring, found = horovod_ring.HorovodRing(), []
    with EventSender(address, facts.rank) as events:
        manifest = read_manifest(locate(settings.config.data))
        training = Training(settings, manifest, facts, ring, events)
        steps, count = training.network.steps, training.steps_per_epoch
        silent = Steps(steps.model, steps.optimizer, steps.batch_size, Alone(), steps.augmentation)
        batches = training.feed.batches(0)
        batch = next(batches)
        batches.close()

        def repeat(one: Steps) -> None:
            for _ in range(count):
                one.train(batch)

        ways = {
            "loop": lambda number: training.train_epoch(Moment(number, steps=count)),
            "step": lambda number: repeat(steps),
            "silent": lambda number: repeat(silent),
        }
        for one in (steps, silent):
            one.train(batch)  # compiles
        for number in range(rounds):
            events.send(Round(number))
            row = {}
            for name, run in ways.items():
                ring.sum([0.0], "all_are_here")
                started = time.perf_counter()
                run(number)
                row[name] = (time.perf_counter() - started) / (count * steps.batch_size)
            found.append(row)
    horovod_ring.leave()
    return found
