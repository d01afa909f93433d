"""The settings of a run, resolved: what was asked for, and what that came to. Runs anywhere.

In: the config, and with how many ranks the run began. Out: the global batch, which a run keeps to its
end, and the number of its steps.
"""

from dataclasses import dataclass

from chexspark.config import TrainConfig
from chexspark.store.manifest import Manifest
from chexspark.user_code import Code


@dataclass(frozen=True)
class ResolvedTraining:
    """`config`: as the user asked; its `num_proc` is not what runs. `began_with`: ranks at the start.

    How many ranks run now is no part of it: a run goes on with fewer, or more, at the same global batch.
    """

    config: TrainConfig
    began_with: int
    code: Code | None = None  # of a network of the user's own

    def image_size(self, manifest: Manifest) -> int:
        """Height and width of the images that the network takes, pixels: those of the store, or reduced ones."""
        return self.config.size or manifest.image_size

    @property
    def global_batch(self) -> int:
        """Images per step over all ranks."""
        return self.config.batch_size * self.began_with

    def steps_per_epoch(self, images: int) -> int:
        """Steps that read each of `images`, those to train on, once."""
        return -(-images // self.global_batch)

    def rows_per_rank(self, ranks: int) -> int:
        """Rows of a step of one of `ranks`, that `accumulate` divides: some are filler where needed."""
        rows = -(-self.global_batch // ranks)
        return -(-rows // self.config.accumulate) * self.config.accumulate
