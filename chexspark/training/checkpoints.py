"""The checkpoints of a run that trains: written by rank 0, taken up by all. Runs on ranks.

In: a network, where the run stands, what it has come to. Out: ``RUN/checkpoints``, and from the last
whole one the same again.
"""

import contextlib
import logging
from typing import Self

from chexspark.data.plan import RankFacts
from chexspark.run.best import promote, settle
from chexspark.run.checkpoint import PlateauState, State, Writer, latest, moment_of
from chexspark.run.folder import RunFolder
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.training.network import Network
from chexspark.training.record import Record
from chexspark.training.ring import Ring
from chexspark.training.schedule import Plateau

log = logging.getLogger(__name__)


class Checkpoints:
    """A context manager, on all ranks; inside it checkpoints are written."""

    def __init__(
        self,
        run: RunFolder,
        network: Network,
        settings: ResolvedTraining,
        facts: RankFacts,
        ring: Ring,
    ) -> None:
        self.run, self.network, self.settings = run, network, settings
        self.facts, self.ring = facts, ring
        self.stack = contextlib.ExitStack()
        self.writer: Writer | None = None

    def __enter__(self) -> Self:
        if self.facts.rank == 0:
            writer = Writer(self.run.checkpoints, log.error, lambda: promote(self.run))
            self.writer = self.stack.enter_context(writer)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def write(self, at: Moment, record: Record, finished: bool = False) -> None:
        """Write where the run stands; all ranks may call it. What is written may change afterwards."""
        if self.writer is None:
            return
        state = state_of(at, record, self.settings, self.facts.world_size, finished)
        arrays = [variable.numpy() for variable in self.network.variables()]
        number = at.epoch * state["steps"] + at.step
        self.writer.write(number, arrays, state)
        if finished:
            self.writer.wait()
            promote(self.run)  # whatever has become of its checkpoint

    def wait(self) -> None:
        """Return when nothing is being written, and no model on its way to ``RUN/best``."""
        if self.writer:
            self.writer.wait()

    def resume(self) -> tuple[Moment, Record] | None:
        """Take up the last whole checkpoint; returns where the run stands, or None for a new run.

        Puts away what processes that were killed have left.
        """
        found = None
        if self.facts.rank == 0:
            found = latest(self.run.checkpoints)
            for place in (self.run.place, self.run.history, self.run.best):
                place.clear_unfinished()
            settle(self.run, found.state["history"] if found else [])
        state: State | None = self.ring.from_first(found.state if found else None)
        if state is None:
            return None
        variables = self.network.variables()
        if found:
            arrays = found.arrays()[: len(variables)]  # earlier versions have an array more
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
        self.ring.copy_first(variables)
        return moment_of(state), record_of(state)


def state_of(
    at: Moment, record: Record, settings: ResolvedTraining, world_size: int, finished: bool
) -> State:
    """What a checkpoint says beside its arrays; `at` knows the steps of an epoch."""
    plateau = record.plateau
    return State(
        epoch=at.epoch, step=at.step, steps=at.steps, losses=at.losses, finished=finished,
        plateau=PlateauState(
            learning_rate=plateau.learning_rate, factor=plateau.factor, patience=plateau.patience,
            lowest=plateau.lowest, stalled=plateau.stalled,
        ),
        best=record.best, history=record.history, seed=settings.config.seed,
        global_batch=settings.global_batch, world_size=world_size,
        learning_rate=settings.config.learning_rate,
    )  # fmt: skip


def record_of(state: State) -> Record:
    """What the run had come to."""
    first, second = state["best"]
    return Record(Plateau(**state["plateau"]), state["history"], (first, second))
