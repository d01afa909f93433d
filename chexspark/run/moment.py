"""Where a run stands. Runs on driver and ranks."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Moment:
    """Before a step of an epoch, both counted from 0; after the last of `steps` it validates."""

    epoch: int = 0
    step: int = 0
    steps: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.step == self.steps:
            return f"epoch {self.epoch + 1}, validation"
        return f"epoch {self.epoch + 1}, step {self.step + 1}"
