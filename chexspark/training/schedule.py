"""The learning rate from step to step. Pure; runs anywhere.

In: a step, counted from 0; for the plateau, the validation loss of each epoch. Out: the rate.
"""

import itertools
import math
from dataclasses import dataclass

from chexspark.config import SCALINGS, SCHEDULES
from chexspark.errors import UserError
from chexspark.run.resolved import ResolvedTraining


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step: ``base × warm-up × shape``.

    `base`: the rate of one rank. `total_steps`: of the whole run. All but these two may be left
    out. `scaling`: what `world_size` ranks multiply it by: their number (``linear``, Goyal et al.
    2017), its root (``sqrt``, Krizhevsky 2014), or nothing. `warmup_steps`: how long the warm-up rises
    linearly from `base` to the scaled rate (Goyal et al. 2017, section 2.2); where nothing is
    scaled, it rises from ``base / warmup_steps`` to `base`. It is multiplied by the shape's first
    value: 1, but `trough` where the shape is cyclic, so there the warm-up ends at `trough` times the
    scaled rate. Then the shape begins:

    - ``constant``, and ``plateau``, for which the caller multiplies by a `Plateau` that starts at 1;
    - ``cosine``: half a cosine down to 0 at `total_steps` (Loshchilov and Hutter 2017, one cycle);
    - ``cyclic``: from `trough` up to 1 and down, a straight line each way, in `cycle_steps`; both
      inflections of a cycle are half of those of the cycle before, as SURFsara trained CheXNet.
      Smith 2017 puts the trough at a quarter to a third of the peak.

    Raises UserError for lengths that do not fit together.
    """

    kind: str = "constant"
    base: float
    total_steps: int
    scaling: str = "none"
    world_size: int = 1
    warmup_steps: int = 0
    cycle_steps: int | None = None
    trough: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise UserError(
                f"the schedule {self.kind!r} is unknown (valid: {', '.join(SCHEDULES)})"
            )
        if self.scaling not in SCALINGS:
            raise UserError(
                f"the scaling {self.scaling!r} is unknown (valid: {', '.join(SCALINGS)})"
            )
        if self.warmup_steps and self.warmup_steps >= self.total_steps:
            raise UserError(
                f"the warm-up takes {self.warmup_steps} of {self.total_steps} steps and leaves none "
                "to train at the full learning rate: shorten it, or train for more epochs"
            )
        if self.kind == "cyclic" and not (self.cycle_steps and self.cycle_steps >= 2):
            raise UserError("a cyclic schedule needs the length of a cycle, of 2 steps or more")

    @property
    def factor(self) -> float:
        """What the number of ranks multiplies the learning rate by."""
        return {"none": 1.0, "linear": self.world_size, "sqrt": math.sqrt(self.world_size)}[
            self.scaling
        ]

    def at(self, step: int) -> float:
        """The learning rate of a step; beyond the last step, that of the last."""
        step = min(step, self.total_steps - 1)
        return self.base * self._warm_up(step) * self._shape(max(0, step - self.warmup_steps))

    def _warm_up(self, step: int) -> float:
        if step >= self.warmup_steps:
            return self.factor
        start = 1 / self.warmup_steps if self.scaling == "none" else 1.0
        return start + (self.factor - start) * step / self.warmup_steps

    def _shape(self, step: int) -> float:
        """The share of the full rate, `step` steps after the warm-up."""
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * step / (self.total_steps - self.warmup_steps))) / 2
        if self.kind == "cyclic" and self.cycle_steps:
            cycle, within = divmod(step, self.cycle_steps)
            way = 2 * within / self.cycle_steps  # 0 at the start, 1 at the peak, 2 at the end
            end = self.trough if way <= 1 else self.trough / 2
            return (end + (1 - end) * (1 - abs(1 - way))) / 2**cycle
        return 1.0


def rate_chart(schedule: Schedule, width: int = 60, height: int = 8) -> str:
    """The schedule as a chart of text: `height` lines, and one for the steps.

    A column is the highest rate of its steps, so that a short peak is not lost.
    """
    steps, rows = schedule.total_steps, []
    width = min(width, steps)
    edges = [steps * column // width for column in range(width + 1)]
    rates = [
        max(schedule.at(step) for step in range(start, end))
        for start, end in itertools.pairwise(edges)
    ]
    top = max(rates)
    for row in range(height, 0, -1):
        line = "".join("█" if rate > top * (row - 0.5) / height else " " for rate in rates)
        rows.append(f"{top * row / height:>9.2e} ┤{line.rstrip()}")
    last = str(steps)
    rows.append(f"{'step':>9} 0{last:>{max(width, len(last) + 1)}}")
    return "\n".join(rows)


def make_schedule(settings: ResolvedTraining, steps_per_epoch: int) -> Schedule:
    """The run's schedule, in steps."""
    config = settings.config
    return Schedule(
        kind=config.schedule,
        base=config.learning_rate,
        total_steps=config.epochs * steps_per_epoch,
        scaling=config.scale_learning_rate,
        world_size=settings.began_with,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        cycle_steps=max(2, round(config.cycle_epochs * steps_per_epoch)),
    )


@dataclass
class Plateau:
    """Multiply the learning rate by `factor` when validation loss has not fallen for `patience` epochs.

    Source: Rajpurkar et al. 2017, section 2.1: Adam at 1e-3, divided by 10 when the loss stalls.
    """

    learning_rate: float
    factor: float
    patience: int
    lowest: float = math.inf
    stalled: int = 0

    def after_epoch(self, validation_loss: float) -> float:
        """Take an epoch's validation loss, return the learning rate of the next epoch."""
        if validation_loss < self.lowest:
            self.lowest, self.stalled = validation_loss, 0
        else:
            self.stalled += 1
            if self.stalled >= self.patience:
                self.learning_rate, self.stalled = self.learning_rate * self.factor, 0
        return self.learning_rate
