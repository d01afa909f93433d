"""What stops a rank, said so that one knows where to look. Runs on ranks.

In: the result of a step, or an exception. Out: nothing, or NotFiniteError with step, rank and images; what
the driver is to know of the exception.
"""

import numpy as np

from chexspark.data.plan import RankFacts
from chexspark.errors import UserError

BROKEN_OFF = ("HorovodInternalError", "UnknownError")  # what a collective that breaks off raises
IMAGES_NAMED = 8
MAY_PASS = (OSError, MemoryError)  # what a host or a store may do once, and not again


class NotFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite. `own`: whether it is this rank's."""

    def __init__(self, message: str, own: bool):
        super().__init__(message)
        self.own = own

    def __str__(self):
        return self.args[0]


class NotJoinedError(Exception):
    """Horovod did not start: another rank died meanwhile, or is out of reach."""

    own = False


class StoppedByUserError(Exception):
    """The user, or who runs the cluster, asked the run to end; a checkpoint is there."""

    own = False


def failure_of(error: Exception) -> dict:
    """What the driver is to know of an exception that ended a rank.

    user_error: a mistake of the user. own: it began here; a collective that breaks off does so because
    another rank has. may_pass: another attempt may go well. stopped: a stop was heeded.
    """
    # What the driver could do before, and this rank cannot now, is no mistake of the user.
    may_pass = isinstance(error, MAY_PASS) or isinstance(error.__cause__, OSError)
    user_error = isinstance(error, UserError) and not may_pass
    return {
        "user_error": user_error,
        "own": getattr(error, "own", type(error).__name__ not in BROKEN_OFF),
        "may_pass": may_pass,
        "stopped": isinstance(error, StoppedByUserError),
        "message": str(error) if user_error or hasattr(error, "own") else repr(error),
    }


def check_finite(result, inputs, reader, facts: RankFacts, epoch: int, step: int) -> None:
    """Raise NotFiniteError when the step's loss or gradients are not finite on any rank."""
    if result.finite:
        return
    where = f"epoch {epoch + 1}, step {step + 1}"
    if result.finite_here:
        raise NotFiniteError(
            f"{where}: loss or gradients of another rank are not finite", own=False
        )
    losses = result.row_losses.numpy()
    real = inputs.rows >= 0
    bad = real & ~np.isfinite(losses)
    what = "the loss is" if bad.any() else "the gradients are"
    rows = inputs.rows[bad if bad.any() else real]
    names = ", ".join(reader.image_names(rows[:IMAGES_NAMED]))
    more = f" and {len(rows) - IMAGES_NAMED} more" if len(rows) > IMAGES_NAMED else ""
    raise NotFiniteError(
        f"{where}: {what} not finite on rank {facts.rank}, images {names}{more}; lower "
        "--learning-rate, or give --clip-norm",
        own=True,
    )
