"""What `train` shows: what is about to run, and how it goes. Runs on the driver.

In: config, manifest, the ranks' events. Out: text, and a live line.
"""

import itertools
import time
from collections.abc import Sequence

import pandas as pd

from chexspark.errors import spoken
from chexspark.models.cost import NetworkCost
from chexspark.progress import ProgressLine, duration
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.store.manifest import Manifest
from chexspark.training.events import (
    Epoch,
    Event,
    Note,
    Placed,
    Problem,
    Starting,
    Step,
    Validating,
    Waiting,
)
from chexspark.training.schedule import Schedule, rate_chart


def plan_text(
    settings: ResolvedTraining, manifest: Manifest, schedule: Schedule, cost: NetworkCost
) -> str:
    """What a run would do and need, and its learning rate as a chart. `cost`: of its network."""
    config, steps = settings.config, settings.steps_per_epoch(manifest.splits["train"].images)
    lines = [
        f"{steps:,} steps per epoch of {settings.global_batch} images, "
        f"{steps * config.epochs:,} steps in all",
        f"{cost['trainable']:,} trainable parameters, {cost['forward_flops'] / 1e9:.1f} GFLOP per "
        f"image forward, about {cost['memory_bytes'] / 2**30:.1f} GiB per rank beside the process",
        f"learning rate ({config.schedule}"
        + (", before the plateau divides it):" if config.schedule == "plateau" else "):"),
        rate_chart(schedule),
    ]
    return "\n".join(lines)


def ranks_text(number: int) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} rank{'s' * (number != 1)}"


def describe(
    settings: ResolvedTraining, manifest: Manifest, num_proc: int, at: Moment | None
) -> str:
    """What is about to run, in two lines. `num_proc`: ranks now; `at`: where the run stands, if it does."""
    config = settings.config
    images = {name: f"{split.images:,}" for name, split in manifest.splits.items()}
    size, stored = settings.image_size(manifest), manifest.image_size
    before = f", reduced from {stored}x{stored}" * (size != stored)
    start = f"from {config.weights or spoken('random weights (no --weights given)')}"
    if at:
        start = f"from its checkpoint at {at}"
    return (
        f"{config.model} at {size}x{size}{before}, {start}; {images['train']} images to train on, "
        f"{images['val']} to validate\n{ranks_text(num_proc)}, {settings.global_batch} images per step, "
        f"{config.epochs} epochs, {config.optimizer} at {config.learning_rate:g}"
        + f", the last layer at {config.head_rate:g} times that"
        * (config.head_rate != 1)
    )


def placement(hosts: Sequence[str]) -> str:
    """Which ranks are where, in one line. `hosts`: of rank 0, 1 and so on."""
    found = []
    for host, numbers in itertools.groupby(range(len(hosts)), hosts.__getitem__):
        first, *others = numbers
        found.append(
            f"ranks {first}-{others[-1]} on {host}" if others else f"rank {first} on {host}"
        )
    return ", ".join(found)


def waiting_text(event: Waiting) -> str:
    """What ranks wait for that have not started."""
    ranks, waited = event.ranks, duration(event.seconds)
    if event.slots < ranks:
        return f"waiting for executors: {event.slots} of {ranks} task slots, {waited}"
    if event.tasks < ranks:
        return f"waiting for Spark: {event.tasks} of {ranks} tasks have started, {waited}"
    return f"starting ranks: {event.started} of {ranks}, {waited}"


class EpochTable:
    """Shows the ranks' events: a live line for steps, a lasting line for each epoch."""

    HEAD = f"{'epoch':>7}{'loss':>9}{'val loss':>10}{'val AUROC':>11}{'rate':>9}{'images/s':>10}{'time':>8}"

    def __init__(self, line: ProgressLine, epochs: int) -> None:
        self.line, self.epochs, self.headed = line, epochs, False
        self.problems: set[str] = set()
        self.at = Moment()  # where rank 0 is
        self.lost: float | None = None  # when ranks were lost, until there is a step again

    def take(self, event: Event) -> None:
        """Show one event of rank 0, or a problem of any."""
        match event:
            case Note():
                self.line.say(spoken(event.text))
            case Problem():
                if event.text not in self.problems:  # ranks mostly say the same
                    self.problems.add(event.text)
                    self.line.say(spoken(f"rank {event.rank} on {event.host}: {event.text}"))
            case Waiting():
                self.line.show(waiting_text(event))
            case Placed():
                # Only now, since Horovod numbers ranks by where Spark happens to run their tasks.
                if len(set(event.hosts)) > 1:
                    self.line.say(placement(event.hosts))
            case Starting():
                self.line.show(f"starting {event.what} on all ranks")
            case Step():
                self.take_step(event)
            case Validating():
                self.line.show(f"epoch {event.epoch + 1}/{self.epochs}: validating")
            case Epoch():
                self.take_epoch(event)

    def take_step(self, event: Step) -> None:
        """Show where the run is; after a loss, that it trains again."""
        if self.lost is not None:
            seconds = time.monotonic() - self.lost
            self.line.say(f"training again, {seconds:.0f} seconds after the loss")
            self.lost = None
        self.at = Moment(event.epoch, event.step, event.steps)
        self.line.show(
            f"epoch {event.epoch + 1}/{event.epochs}, step {event.step}/{event.steps}, "
            f"{event.images_per_second:.1f} images/s, loss {event.loss:.4f}, "
            f"learning rate {event.learning_rate:g}, {duration(event.seconds_left)} left"
        )

    def take_epoch(self, event: Epoch) -> None:
        """Leave a line of the table."""
        self.at = Moment(event.epoch + 1)
        if not self.headed:
            self.line.say(self.HEAD)
            self.headed = True
        self.line.say(
            f"{event.epoch + 1:>7}{event.train_loss:>9.4f}{event.val_loss:>10.4f}"
            f"{auroc_text(event.val_auroc):>11}{event.learning_rate:>9.0e}"
            f"{event.images_per_second:>10.1f}{duration(event.seconds):>8}"
            + ("  best so far" if event.best else "")
        )


def auroc_text(value: float | None) -> str:
    """``0.8421``, or ``none`` where no finding of the split has both classes."""
    return "none" if value is None or pd.isna(value) else f"{value:.4f}"
