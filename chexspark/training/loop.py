"""The epochs of a run. Runs on ranks.

In: settings, manifest, who this rank is, the ring, where events go. Out: ``RUN/history``, ``RUN/best``,
TensorBoard files; events for the driver's progress line. All ranks come to the same figures; rank 0
writes.
"""

import contextlib
import gc
import logging
from collections.abc import Sequence
from typing import NamedTuple

from chexspark.data.augmentation import augment
from chexspark.data.plan import RankFacts, fixed_plan
from chexspark.data.reader import Cache, SplitReader
from chexspark.run.best import save_best
from chexspark.run.folder import run_folder
from chexspark.run.history import Row, write_history
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.storage import locate
from chexspark.store.manifest import Manifest
from chexspark.training.batch_norm import Statistics
from chexspark.training.checkpoints import Checkpoints
from chexspark.training.clock import Clock, EpochTimes
from chexspark.training.events import Epoch, EventSender
from chexspark.training.faults import StoppedByUserError, check_finite
from chexspark.training.feed import Feed
from chexspark.training.record import Record, none_if_nan, score_of, validation_columns
from chexspark.training.ring import Ring
from chexspark.training.schedule import Plateau, make_schedule
from chexspark.training.setup import make_network
from chexspark.training.telling import Teller
from chexspark.training.tensorboard import TensorBoard
from chexspark.training.trace import Trace
from chexspark.training.validation import Validation, averaged_weights, validate

log = logging.getLogger(__name__)

STATISTICS_STEPS = 32  # whose batches normalisation takes its statistics of


class Training:
    """The parts of a rank that trains, and the order in which they work.

    `record` is what the run has come to; where it stands is a `Moment`, handed on.
    """

    def __init__(
        self, settings: ResolvedTraining, manifest: Manifest, facts: RankFacts, ring: Ring,
        events: EventSender,
    ) -> None:  # fmt: skip
        config, store = settings.config, locate(settings.config.data)
        self.config, self.findings, self.facts, self.ring = config, manifest.findings, facts, ring
        self.preparation = manifest.preparation
        self.image_size = settings.image_size(manifest)
        self.run = run_folder(config.run)
        self.teller = Teller(events, facts.rank, config.epochs)
        self.network, loaded = make_network(settings, manifest, facts, ring)
        self.statistics = Statistics(self.network.steps.model, config.accumulate)
        if loaded:
            self.teller.note(loaded)
        cache = Cache(config.cache_mb << 20)
        self.feed = Feed(
            SplitReader(store, manifest, "train", cache, self.image_size), settings, facts
        )
        self.val_reader = SplitReader(store, manifest, "val", cache, self.image_size)
        self.steps_per_epoch = settings.steps_per_epoch(self.feed.images)
        self.schedule = make_schedule(settings, self.steps_per_epoch)
        self.record = Record(Plateau(1.0, config.plateau_factor, config.plateau_patience))
        self.checkpoints = Checkpoints(self.run, self.network, settings, facts, ring)
        self.trace: Trace | None = None

    def epochs(self) -> None:
        """Train; after each epoch validate, keep the best, write the history and a checkpoint."""
        at = self.resume()
        with contextlib.ExitStack() as stack:
            if self.facts.rank == 0:
                self.teller.board = stack.enter_context(TensorBoard(self.run.tensorboard))
                if self.config.trace:
                    recorded = Trace(self.config.trace, self.run.trace, self.ring)
                    self.trace = stack.enter_context(recorded)
            stack.enter_context(self.checkpoints)
            self.teller.starting("the first step")
            while at.epoch < self.config.epochs and not self.is_over():
                self.network.freeze_trunk(at.epoch < self.config.freeze_epochs)
                self.epoch(at)
                at = at.next_epoch()
                over = at.epoch == self.config.epochs or self.is_over()
                self.checkpoints.write(at, self.record, finished=over)

    def resume(self) -> Moment:
        """Take up the last whole checkpoint, where there is one; returns where the run stands."""
        if not (found := self.checkpoints.resume()):
            return Moment(steps=self.steps_per_epoch)
        at, self.record = found
        self.teller.note(f"resumes at {at}")
        return at

    def is_over(self) -> bool:
        """Whether the run is to end before its last epoch."""
        return self.record.is_over(self.config.early_stop)

    def epoch(self, at: Moment) -> None:
        """Train from a moment of an epoch to its end, and validate."""
        trained = self.train_epoch(at)
        self.teller.validating(at.epoch)
        try:
            self.after_epoch(trained)
        except StoppedByUserError:
            self.checkpoints.write(trained.at, self.record)
            raise

    def after_epoch(self, trained: "TrainedEpoch") -> None:
        """Validate, keep the model if it is the best so far, write the history."""
        with averaged_weights(self.network.steps):
            if self.statistics.follow_batches:
                sample = self.feed.sample(trained.at.epoch, STATISTICS_STEPS)
                self.statistics.recompute(
                    sample, self.ring, self.teller.alive, self.teller.is_stopping
                )
            found = self.validate()
            score = score_of(found.mean, found.loss, self.config.best_by)
            is_best = score > self.record.best
            row = history_row(trained, found, is_best, self.findings)
            if is_best and self.facts.rank == 0:
                self.checkpoints.wait()  # which may still put the model before it into its place
                model = self.network.to_save()
                save_best(model, self.run, row, self.findings, self.preparation, self.image_size)
        if self.config.schedule == "plateau":
            self.record.plateau.after_epoch(found.loss)
        self.record.add(row, score)
        log.info("epoch %d: %s", trained.at.epoch, row)
        if self.facts.rank == 0:
            write_history(self.run, self.record.history, self.findings)
        self.teller.epoch(row, epoch_event(trained, found, is_best))

    def validate(self) -> Validation:
        """Score this rank's share of the validation split, and pool it with the others'."""
        steps = self.network.steps
        plan = fixed_plan(self.val_reader.row_groups, steps.batch_size, self.facts)
        return validate(
            steps, self.val_reader, plan, self.ring, self.teller.alive, self.teller.is_stopping
        )

    def train_epoch(self, at: Moment) -> "TrainedEpoch":
        """The steps of one epoch from a moment on."""
        steps, batches = self.network.steps, self.feed.batches(at.epoch, at.step)
        clock = Clock(self.feed.images / self.steps_per_epoch)
        rate = self.set_rate(Moment(at.epoch, self.steps_per_epoch - 1))
        while at.step < self.steps_per_epoch:
            clock.asks()
            inputs = next(batches)
            clock.gets()
            rate = self.set_rate(at)
            if at == Moment() and self.teller.board:
                seen = augment(inputs.images, inputs.draws, steps.augmentation)
                self.teller.board.images(seen, inputs.labels, self.findings)
            steps.stop.assign(float(self.teller.is_stopping()))
            if self.trace:
                self.trace.before_step()
            result = steps.train(inputs)
            if self.trace:
                self.trace.after_step()
            check_finite(result, inputs, self.feed.reader, self.facts.rank, at)
            clock.stepped(result.allreduce_seconds)
            at = at.after_step(result.loss)
            if not gc.isenabled():  # see `rank.train_as_rank`
                gc.freeze()
                gc.enable()
            self.teller.step(at, result.loss, rate, clock)
            # After the last step a stop is heeded, and the next checkpoint written, when validating.
            if at.step < self.steps_per_epoch:
                if result.stopping or self.is_checkpoint_due(at):
                    self.checkpoints.write(at, self.record)
                if result.stopping:
                    raise StoppedByUserError(f"stopped after epoch {at.epoch + 1}, step {at.step}")
        return TrainedEpoch(at, rate, clock.figures())

    def is_checkpoint_due(self, at: Moment) -> bool:
        """Whether so many steps of the run are done that one is to be written."""
        every = self.config.checkpoint_steps
        return every > 0 and (at.epoch * self.steps_per_epoch + at.step) % every == 0

    def set_rate(self, at: Moment) -> float:
        """Give the optimizer the learning rate of the step that follows a moment; returns it."""
        step = at.epoch * self.steps_per_epoch + at.step
        rate = self.schedule.at(step) * self.record.plateau.learning_rate
        self.network.set_rate(rate)
        return rate


class TrainedEpoch(NamedTuple):
    """How an epoch's steps went."""

    at: Moment  # its end
    learning_rate: float  # of the last step
    times: EpochTimes


def history_row(
    trained: TrainedEpoch, found: Validation, is_best: bool, findings: Sequence[str]
) -> Row:
    """An epoch's row of ``RUN/history``."""
    at, times = trained.at, trained.times
    return {
        "epoch": at.epoch,
        "steps": at.steps,
        "learning_rate": trained.learning_rate,
        "train_loss": at.mean_loss,
        "seconds": times["seconds"],
        "images_per_second": times["images_per_second"],
        "input_share": times["input_share"],
        "allreduce_share": times["allreduce_share"],
        "compute_share": times["compute_share"],
        **validation_columns(found.loss, found.mean, found.aurocs, findings),
        "best": is_best,
    }


def epoch_event(trained: TrainedEpoch, found: Validation, is_best: bool) -> Epoch:
    """What the driver is told of an epoch."""
    return Epoch(
        epoch=trained.at.epoch,
        train_loss=trained.at.mean_loss,
        val_loss=found.loss,
        val_auroc=none_if_nan(found.mean),
        learning_rate=trained.learning_rate,
        images_per_second=trained.times["images_per_second"],
        seconds=trained.times["seconds"],
        best=is_best,
    )


def run_epochs(
    settings: ResolvedTraining,
    manifest: Manifest,
    facts: RankFacts,
    ring: Ring,
    events: EventSender,
) -> None:
    """Train one rank of a run from its first epoch to its last."""
    Training(settings, manifest, facts, ring, events).epochs()
