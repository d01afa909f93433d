"""What stops a rank, said so that one knows where to look. Runs on ranks.

In: the result of a step. Out: nothing, or NotFinite with step, rank and images.
"""

import numpy as np

from chexspark.data.plan import RankFacts

IMAGES_NAMED = 8


class NotFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite. `own`: whether it is this rank's."""

    def __init__(self, message: str, own: bool):
        super().__init__(message)
        self.own = own

    def __str__(self):
        return self.args[0]


class NotJoined(Exception):
    """Horovod did not start: another rank died meanwhile, or is out of reach."""

    own = False


class StoppedByUser(Exception):
    """The user, or who runs the cluster, asked the run to end; a checkpoint is there."""

    own = False


def check_finite(result, inputs, reader, facts: RankFacts, epoch: int, step: int) -> None:
    """Raise NotFinite when the step's loss or gradients are not finite on any rank."""
    if result.finite:
        return
    where = f"epoch {epoch + 1}, step {step + 1}"
    if result.finite_here:
        raise NotFinite(f"{where}: loss or gradients of another rank are not finite", own=False)
    losses = result.row_losses.numpy()
    real = inputs.rows >= 0
    bad = real & ~np.isfinite(losses)
    what = "the loss is" if bad.any() else "the gradients are"
    rows = inputs.rows[bad if bad.any() else real]
    names = ", ".join(reader.image_names(rows[:IMAGES_NAMED]))
    more = f" and {len(rows) - IMAGES_NAMED} more" if len(rows) > IMAGES_NAMED else ""
    raise NotFinite(
        f"{where}: {what} not finite on rank {facts.rank}, images {names}{more}; lower "
        "--learning-rate, or give --clip-norm",
        own=True,
    )
