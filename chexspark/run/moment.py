"""Where a run stands. Runs on driver and ranks."""

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Moment:
    """Before a step of an epoch, both counted from 0; after the last of `steps` it validates."""

    epoch: int = 0
    step: int = 0
    steps: int = field(default=0, compare=False)  # of an epoch; 0 where that is not known
    losses: float = field(default=0.0, compare=False)  # sum over the epoch's steps before this one

    def __str__(self) -> str:
        if self.step == self.steps > 0:
            return f"epoch {self.epoch + 1}, validation"
        return f"epoch {self.epoch + 1}, step {self.step + 1}"

    @property
    def mean_loss(self) -> float:
        """Of the epoch's steps so far, of which there is one or more."""
        return self.losses / self.step

    def after_step(self, loss: float) -> "Moment":
        """The moment after a step of that loss."""
        return dataclasses.replace(self, step=self.step + 1, losses=self.losses + loss)

    def next_epoch(self) -> "Moment":
        """The moment before the first step of the epoch that follows."""
        return Moment(self.epoch + 1, steps=self.steps)
