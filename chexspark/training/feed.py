"""One rank's batches of the training split, epoch by epoch. Runs on ranks.

In: the split's reader, the run's settings, who this rank is. Out: `StepInputs` from any step of an
epoch on.
"""

from collections.abc import Generator

import numpy as np

from chexspark.data.augmentation import random_numbers
from chexspark.data.pipeline import StepInputs, tensors
from chexspark.data.plan import FILLER, RankFacts, training_plan, with_filler
from chexspark.data.reader import SplitReader
from chexspark.run.resolved import ResolvedTraining

STREAM = 2  # keeps the draw of a sample apart from those of order and augmentation


class Feed:
    """What a rank trains on."""

    def __init__(self, reader: SplitReader, settings: ResolvedTraining, facts: RankFacts) -> None:
        self.reader, self.settings, self.facts = reader, settings, facts
        self.images = sum(reader.row_groups)

    def plan(self, epoch: int) -> np.ndarray:
        """The rank's rows of an epoch, int64 (steps, rows of a step); less than 0 where there is filler."""
        plan = training_plan(
            self.reader.row_groups, self.settings.global_batch, self.facts,
            self.settings.config.seed, epoch,
        )  # fmt: skip
        more = self.settings.rows_per_rank(self.facts.world_size) - plan.shape[1]
        return with_filler(np.pad(plan, ((0, 0), (0, more)), constant_values=FILLER))

    def batches(self, epoch: int, first: int = 0) -> Generator[StepInputs, None, None]:
        """The batches of an epoch from the step `first` on. Raises DamagedStoreError."""
        draws = random_numbers(self.settings.config.seed, epoch, self.images)
        return self.between(self.plan(epoch), first, None, draws)

    def sample(self, epoch: int, most: int) -> Generator[StepInputs, None, None]:
        """Up to `most` batches of an epoch, one after the other, unchanged. Raises DamagedStoreError.

        Which ones depends on seed and epoch. They are neighbours: so only their row groups are read.
        """
        plan = self.plan(epoch)
        random = np.random.Generator(np.random.PCG64([self.settings.config.seed, epoch, STREAM]))
        first = int(random.integers(max(0, len(plan) - most) + 1))
        return self.between(plan, first, first + most, None)

    def between(
        self, plan: np.ndarray, first: int, end: int | None, draws: np.ndarray | None
    ) -> Generator[StepInputs, None, None]:
        """The batches of the steps `first` to `end` of a plan, int64 (steps, rows)."""
        return tensors(self.reader.batches(plan[first:end]), draws)
