"""The epochs of a run. Runs on ranks.

In: config, store, rank facts, where events go. Out: ``RUN/history``, ``RUN/best``, TensorBoard
files; events for the driver's progress line. All ranks come to the same figures; rank 0 writes.
"""

import contextlib
import dataclasses
import logging
import math

import horovod.tensorflow as hvd
import numpy as np

from chexspark.config import TrainConfig
from chexspark.data.augmentation import augment, random_numbers
from chexspark.data.pipeline import tensors
from chexspark.data.plan import FILLER, RankFacts, fixed_plan, training_plan
from chexspark.data.reader import Cache, SplitReader
from chexspark.findings import column_name
from chexspark.models.weights import train_trunk
from chexspark.run.best import promote, save_best, settle
from chexspark.run.checkpoint import Writer, latest, moment_of
from chexspark.run.folder import run_folder
from chexspark.run.history import AUROC, write_history
from chexspark.storage import locate
from chexspark.store.manifest import Manifest
from chexspark.training.clock import Clock
from chexspark.training.events import EventSender
from chexspark.training.faults import StoppedByUserError, check_finite
from chexspark.training.schedule import Plateau, make_schedule
from chexspark.training.setup import global_batch, make_model, make_steps
from chexspark.training.statistics import all_statistics, average_statistics, take_statistics
from chexspark.training.tensorboard import TensorBoard
from chexspark.training.validation import averaged_weights, validate

TENSORBOARD_STEPS = 10  # between two points of TensorBoard's curves
log = logging.getLogger(__name__)


class Training:
    """All that a rank holds while it trains."""

    def __init__(
        self, config: TrainConfig, manifest: Manifest, facts: RankFacts, events: EventSender
    ):
        self.config, self.facts, self.events = config, facts, events
        self.run, self.findings = run_folder(config.run), manifest.findings
        self.saved, loaded = make_model(config, manifest.image_size, manifest.findings)
        if loaded:
            events.send("note", text=loaded)
        self.steps = make_steps(config, manifest, facts, self.saved)
        self.model = self.steps.model
        cache = Cache(config.cache_mb << 20)
        self.train_reader, self.val_reader = (
            SplitReader(locate(config.data), manifest, split, cache) for split in ("train", "val")
        )
        self.images = sum(self.train_reader.row_groups)
        self.steps_per_epoch = -(-self.images // global_batch(config))
        self.schedule = make_schedule(config, self.steps_per_epoch)
        self.plateau = Plateau(1.0, config.plateau_factor, config.plateau_patience)
        self.history, self.best, self.tensorboard = [], (-math.inf, -math.inf), None
        self.frozen, self.writer, self.rate = False, None, None

    def epochs(self) -> None:
        """Train; after each epoch validate, keep the best, write the history and a checkpoint."""
        epoch, step, losses = self.resume()
        with contextlib.ExitStack() as stack:
            if self.facts.rank == 0:
                self.tensorboard = stack.enter_context(TensorBoard(self.run.tensorboard))
                self.writer = Writer(self.run.checkpoints, log.error, lambda: promote(self.run))
                stack.callback(self.writer.wait)
            while epoch < self.config.epochs and not self.is_over():
                self.set_trunk(epoch)
                self.epoch(epoch, step, losses)
                epoch, step, losses = epoch + 1, 0, 0.0
                over = epoch == self.config.epochs or self.is_over()
                self.checkpoint(epoch, 0, 0.0, finished=over)

    def variables(self) -> list:
        """All that training changes, in a fixed order."""
        return [*self.model.variables, *self.steps.optimizer.variables(), *self.steps.state]

    def checkpoint(self, epoch: int, step: int, losses: float, finished: bool = False) -> None:
        """Write where the run stands before a step of an epoch; `losses`: sum of the epoch so far."""
        statistics = all_statistics(self.steps)
        if self.facts.rank:
            return
        state = {
            "epoch": epoch, "step": step, "steps": self.steps_per_epoch, "losses": losses,
            "finished": finished,
            "plateau": dataclasses.asdict(self.plateau), "best": self.best,
            "history": self.history, "seed": self.config.seed,
            "global_batch": global_batch(self.config), "world_size": self.facts.world_size,
            "learning_rate": self.config.learning_rate,
        }  # fmt: skip
        arrays = [variable.numpy() for variable in self.variables()]
        self.writer.write(epoch * self.steps_per_epoch + step, [*arrays, statistics], state)
        if finished:
            self.writer.wait()
            promote(self.run)  # whatever has become of its checkpoint

    def resume(self) -> tuple[int, int, float]:
        """Take up the last whole checkpoint. Returns epoch, step and the epoch's losses so far."""
        found = None
        if self.facts.rank == 0:
            found = latest(self.run.checkpoints)
            for place in (self.run.place, self.run.history, self.run.best):
                place.clear_unfinished()
            settle(self.run, found.state["history"] if found else [])
        state = hvd.broadcast_object(found.state if found else None)
        if state is None:
            return 0, 0, 0.0
        statistics = None
        if found:
            *arrays, statistics = found.arrays()
            for variable, array in zip(self.variables(), arrays, strict=True):
                variable.assign(array)
        hvd.broadcast_variables(self.variables(), root_rank=0)
        take_statistics(self.steps, hvd.broadcast_object(statistics), self.facts.rank)
        self.plateau = Plateau(**state["plateau"])
        self.best, self.history = tuple(state["best"]), state["history"]
        self.events.send("note", text=f"resumes at {moment_of(state)}")
        return state["epoch"], state["step"], state["losses"]

    def set_trunk(self, epoch: int) -> None:
        """Freeze or free the trunk where that changes with this epoch."""
        frozen = epoch < self.config.freeze_epochs
        if frozen != self.frozen:
            self.frozen = frozen
            train_trunk(self.model, not frozen)
            self.steps.compile()

    def epoch(self, epoch: int, step: int, losses: float) -> None:
        """Train from `step` of an epoch to its end, and validate."""
        clock, rate = self.train_epoch(epoch, step, losses)
        self.events.send("validating", epoch=epoch)
        if step < self.steps_per_epoch:  # or it has been done before
            average_statistics(self.steps)
        try:
            self.after_epoch(epoch, {"learning_rate": rate, **clock.figures()})
        except StoppedByUserError:
            self.checkpoint(epoch, self.steps_per_epoch, clock.losses)
            raise

    def after_epoch(self, epoch: int, figures: dict) -> None:
        """Validate, keep the model if it is the best so far, write the history."""
        with averaged_weights(self.steps):
            plan = fixed_plan(self.val_reader.row_groups, self.steps.batch_size, self.facts)
            found = validate(self.steps, self.val_reader, plan, self.goes_on)
            score = (-math.inf if math.isnan(found.mean) else found.mean, -found.loss)
            is_best = score > self.best
            names = [AUROC + column_name(name) for name in self.findings]
            aurocs = [none_if_nan(float(value)) for value in found.aurocs]
            row = {"epoch": epoch, "steps": self.steps_per_epoch, **figures, "val_loss": found.loss,
                   "val_auroc": none_if_nan(found.mean), **dict(zip(names, aurocs, strict=True)),
                   "best": is_best}  # fmt: skip
            if is_best and self.facts.rank == 0:
                self.saved.set_weights(self.model.get_weights())
                save_best(self.saved, self.run, row, self.findings)
        if is_best:
            self.best = score
            for earlier in self.history:
                earlier["best"] = False
        if self.config.schedule == "plateau":
            self.plateau.after_epoch(found.loss)
        self.history.append(row)
        log.info("epoch %d: %s", epoch, row)
        if self.facts.rank == 0:
            write_history(self.run, self.history, self.findings)
            self.tensorboard.epoch(row)
        self.events.send("epoch", **row)

    def goes_on(self) -> bool:
        """Tell the driver that this rank works; whether it is to."""
        self.events.send("alive")
        return not self.events.stopping.is_set()

    def is_over(self) -> bool:
        """Whether the last `early_stop` epochs brought nothing better."""
        patience = self.config.early_stop
        since = next((n for n, row in enumerate(reversed(self.history)) if row["best"]), 0)
        return bool(patience) and since >= patience

    def plan(self, epoch: int) -> np.ndarray:
        """The rank's rows of an epoch, int64 (steps, rows of a step)."""
        batch, groups = global_batch(self.config), self.train_reader.row_groups
        plan = training_plan(groups, batch, self.facts, self.config.seed, epoch)
        more = (
            self.steps.batch_size - plan.shape[1]
        )  # so that it can be worked through in equal parts
        return np.pad(plan, ((0, 0), (0, more)), constant_values=FILLER)

    def train_epoch(self, epoch: int, first: int, losses: float) -> tuple[Clock, float]:
        """The steps of one epoch from `first`. Returns how they went, and the last learning rate."""
        plan, draws = self.plan(epoch), random_numbers(self.config.seed, epoch, self.images)
        clock = Clock(self.images / len(plan), first, losses)
        begin = first
        while begin and (plan[begin : begin + 1] == FILLER).all():
            begin -= 1  # a step without rows of its own repeats an image of an earlier one
        batches = tensors(self.train_reader.batches(plan[begin:]), draws)
        for _ in range(first - begin):
            next(batches)
        rate = self.set_rate((epoch + 1) * self.steps_per_epoch - 1)
        for step in range(first, len(plan)):
            clock.asks()
            inputs = next(batches)
            clock.gets()
            rate = self.set_rate(epoch * self.steps_per_epoch + step)
            if self.tensorboard and epoch == step == 0:
                seen = augment(inputs.images, inputs.draws, self.steps.augmentation)
                self.tensorboard.images(seen, inputs.labels, self.findings)
            self.steps.stop.assign(float(self.events.stopping.is_set()))
            result = self.steps.train(inputs)
            check_finite(result, inputs, self.train_reader, self.facts, epoch, step)
            clock.stepped(result)
            self.tell(epoch, step, len(plan), rate, clock)
            done, every = step + 1, self.config.checkpoint_steps
            is_due = every and (epoch * len(plan) + done) % every == 0
            if done == len(plan):
                break  # a stop is heeded, and the next checkpoint written, when validating
            if result.stopping or is_due:
                self.checkpoint(epoch, done, clock.losses)
            if result.stopping:
                raise StoppedByUserError(f"stopped after epoch {epoch + 1}, step {done}")
        return clock, rate

    def set_rate(self, step: int) -> float:
        rate = self.schedule.at(step) * self.plateau.learning_rate
        if rate != self.rate:
            self.rate = rate
            self.steps.optimizer.learning_rate.assign(rate)
        return rate

    def tell(self, epoch: int, step: int, steps: int, rate: float, clock: Clock) -> None:
        """Send the step to the driver, from ranks but the first now and then, and to TensorBoard."""
        if self.tensorboard and step % TENSORBOARD_STEPS == 0:
            self.tensorboard.step(
                epoch * steps + step, loss=clock.loss, learning_rate=rate,
                images_per_second=clock.rate,
            )  # fmt: skip
        # The driver knows of each step in which rank 0 has been: where a run falls may tell why.
        if self.facts.rank == 0 or clock.is_time_to_tell():
            left = (self.config.epochs - epoch) * steps - step - 1
            self.events.send(
                "step", epoch=epoch, epochs=self.config.epochs, step=step + 1, steps=steps,
                loss=clock.mean_loss, learning_rate=rate, images_per_second=clock.rate,
                seconds_left=left * clock.images / clock.rate,
            )  # fmt: skip


def run_epochs(
    config: TrainConfig, manifest: Manifest, facts: RankFacts, events: EventSender
) -> None:
    """Train one rank of a run from its first epoch to its last."""
    Training(config, manifest, facts, events).epochs()


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
