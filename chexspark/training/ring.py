"""What ranks do together: sums, averages and copies over all of them. Runs on ranks.

In: this rank's values. Out: those of all, the same on every rank. `Alone` is a ring of one, which says
nothing to anybody; `horovod_ring` has the one of the ranks that Horovod has started.
"""

import abc
import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np


class Ring(abc.ABC):
    """The operations of any ring. All ranks call them, in the same order.

    `name`: of what is sent, the same on all ranks; one name is of one thing at a time.
    """

    @abc.abstractmethod
    def sum_tensor(self, tensor: Any, name: str, half: bool = False) -> Any:
        """Sum a tensor over the ranks, also inside a compiled step. `half`: as float16 on the wire."""

    @abc.abstractmethod
    def sum(self, values: Sequence[float], name: str) -> np.ndarray:
        """Sum numbers over the ranks, float64 (values,)."""

    @abc.abstractmethod
    def gather(self, rows: np.ndarray, name: str) -> np.ndarray:
        """The rows (rows, …) of all ranks, those of rank 0 first; their number may differ by rank."""

    @abc.abstractmethod
    def gather_objects(self, value: Any) -> list:
        """What each rank has, in their order; anything that pickles."""

    @abc.abstractmethod
    def from_first(self, value: Any) -> Any:
        """What rank 0 has, on all ranks; anything that pickles."""

    def timeline(self, file: str) -> contextlib.AbstractContextManager[None]:
        """Inside, what the ranks do together is written into a local file, from rank 0; nothing where they are one."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def copy_first(self, variables: list) -> None:
        """Give variables the values that they have on rank 0."""


class Alone(Ring):
    """A ring of one rank."""

    def sum_tensor(self, tensor: Any, name: str, half: bool = False) -> Any:
        """The tensor itself."""
        return tensor

    def sum(self, values: Sequence[float], name: str) -> np.ndarray:
        """The numbers themselves, float64 (values,)."""
        return np.asarray(values, np.float64)

    def gather(self, rows: np.ndarray, name: str) -> np.ndarray:
        """The rows (rows, …) themselves."""
        return rows

    def gather_objects(self, value: Any) -> list:
        """The value as the only one."""
        return [value]

    def from_first(self, value: Any) -> Any:
        """The value itself."""
        return value

    def copy_first(self, variables: list) -> None:
        """They have these values."""
