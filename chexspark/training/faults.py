"""What stops a rank, said so that one knows where to look. Runs on ranks.

In: the result of a step, or an exception. Out: nothing, or NotFiniteError with step, rank and images; what
the driver is to know of the exception.
"""

from __future__ import (
    annotations,  # the types of a step need TensorFlow, and the driver imports this
)

import socket
import sys
from typing import TYPE_CHECKING

import numpy as np

from chexspark.data.pipeline import StepInputs
from chexspark.data.reader import SplitReader
from chexspark.errors import ChexsparkError, UserError
from chexspark.run.moment import Moment
from chexspark.training.events import Failed

if TYPE_CHECKING:
    from chexspark.training.step import StepResult

IMAGES_NAMED = 8
MAY_PASS = (OSError, MemoryError)  # what a host or a store may do once, and not again


class NotFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite. `own`: whether it is this rank's."""

    def __init__(self, message: str, own: bool) -> None:
        super().__init__(message)
        self.own = own


class NotJoinedError(Exception):
    """Horovod did not start: another rank died meanwhile, or is out of reach."""

    own = False


class StoppedByUserError(Exception):
    """The user, or who runs the cluster, asked the run to end; a checkpoint is there."""

    own = False


def failure_of(error: Exception, rank: int, where: str) -> Failed:
    """What the driver is to know of an exception that ended this rank; `where`: words of where more is said."""
    # What the driver could do before, and this rank cannot now, is no mistake of the user.
    may_pass = isinstance(error, MAY_PASS) or isinstance(error.__cause__, OSError)
    user_error = isinstance(error, UserError) and not may_pass
    # As it was written: the driver knows whether who called speaks of flags or of keywords.
    said = error.text if isinstance(error, ChexsparkError) else str(error)
    message = said if user_error or hasattr(error, "own") else repr(error)
    return Failed(
        rank=rank,
        host=socket.gethostname(),
        message=message + where,
        user_error=user_error,
        own=getattr(error, "own", not is_of_a_collective(error)),
        may_pass=may_pass,
        stopped=isinstance(error, StoppedByUserError),
    )


def is_of_a_collective(error: Exception) -> bool:
    """Whether an exception is what a collective raises that breaks off, because another rank has ended.

    Horovod's operations raise TensorFlow's UnknownError then, its Python functions HorovodInternalError.
    A process that has not loaded the two cannot have met it: they are not loaded for this.
    """
    horovod, tensorflow = (sys.modules.get(n) for n in ("horovod.common.exceptions", "tensorflow"))
    kinds = [horovod.HorovodInternalError] if horovod else []
    kinds += [tensorflow.errors.UnknownError] if tensorflow else []
    return isinstance(error, tuple(kinds))


def check_finite(
    result: StepResult, inputs: StepInputs, reader: SplitReader, rank: int, at: Moment
) -> None:
    """Raise NotFiniteError when the loss or gradients of the step at a moment are not finite on any rank."""
    if result.finite:
        return
    if result.finite_here:
        raise NotFiniteError(f"{at}: loss or gradients of another rank are not finite", own=False)
    losses = result.row_losses.numpy()
    real = inputs.rows >= 0
    bad = real & ~np.isfinite(losses)
    what = "the loss is" if bad.any() else "the gradients are"
    rows = inputs.rows[bad if bad.any() else real]
    names = ", ".join(reader.image_names(rows[:IMAGES_NAMED]))
    more = f" and {len(rows) - IMAGES_NAMED} more" if len(rows) > IMAGES_NAMED else ""
    raise NotFiniteError(
        f"{at}: {what} not finite on rank {rank}, images {names}{more}; lower "
        "--learning-rate, or give --clip-norm",
        own=True,
    )
