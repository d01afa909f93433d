"""The training step of one rank, measured three ways in turn. Runs on ranks.

In: a config of a run. Out: seconds per image of each way, round after round:
``loop`` is the training loop as it trains; ``step`` its compiled step on a batch that stays in
memory; ``silent`` the same step without a message to other ranks, on both at the same time: what the
machine gives to processes that run side by side.
"""

import time

from chexspark.config import TrainConfig
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.training.events import EventAddress, EventSender
from chexspark.training.rank import join_ring


def measure_rank(address: EventAddress, config: TrainConfig, rounds: int) -> list[dict]:
    """Return a dict per round: way → seconds per image of this rank."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from chexspark.data.augmentation import random_numbers
    from chexspark.data.pipeline import tensors
    from chexspark.training.loop import Training
    from chexspark.training.step import Steps

    class SilentSteps(Steps):
        """Steps of a rank that keeps its sums to itself."""

        def _sum(self, tensors, name, compressed=False):
            return tensors

    facts, *_ = join_ring(config.threads)
    with EventSender(address, facts.rank) as events:
        training = Training(config, read_manifest(locate(config.data)), facts, events)
        steps = training.steps
        silent = SilentSteps(
            training.model,
            steps.optimizer,
            steps.batch_size,
            training.train_reader.size,
            steps.augmentation,
        )
        plan = training.plan(0)
        batches = tensors(
            training.train_reader.batches(plan), random_numbers(0, 0, training.images)
        )
        batch = next(batches)
        batches.close()

        def repeat(one):
            for _ in range(len(plan)):
                one.train(batch)

        ways = {
            "loop": lambda number: training.train_epoch(number, 0, 0.0),
            "step": lambda number: repeat(steps),
            "silent": lambda number: repeat(silent),
        }
        for one in (steps, silent):
            one.train(batch)  # compiles
        found = []
        for number in range(rounds):
            events.send("round", round=number)
            row = {}
            for name, run in ways.items():
                hvd.allreduce(tf.zeros(1), name="all_are_here")
                started = time.perf_counter()
                run(number)
                row[name] = (time.perf_counter() - started) / (len(plan) * steps.batch_size)
            found.append(row)
    hvd.shutdown()
    return found
