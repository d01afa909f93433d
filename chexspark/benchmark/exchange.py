"""What ways to distribute a step send, and how vectors are cut for it. Pure; runs anywhere.

In: numbers of ranks, bytes, vectors. Out: bytes per rank and step, slices, and sums of them.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Sent(NamedTuple):
    """What a host had sent when a rank on it looked, over all its interfaces, the loopback one too."""

    network: str  # of the host, or of the container that has its own
    sent: int  # bytes since the host's start


def bytes_needed(ranks: int, size: int) -> float:
    """The bytes that a rank sends in a step, on average, for gradients of `size` bytes; of each of the three ways.

    Ring: each rank hands on N − 1 of N slices twice, to sum and to spread (Patarasuk and Yuan 2009). Parameter
    servers beside the ranks: weights come down and gradients go up, and of both one N-th is the rank's own on
    average, wherever a parameter is. Slices in a shuffle: N − 1 slices of gradients go to who sums them, and
    one slice of weights to N − 1 others (Dai et al. 2019). Messages around them are not counted.
    """
    return 2 * (ranks - 1) / ranks * size


def bytes_sent(before: Iterable[Sent], after: Iterable[Sent]) -> int:
    """What hosts have sent between two looks of their ranks: each host counts once, from its first look to its last."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for look in before:
        first[look.network] = min(look.sent, first.get(look.network, look.sent))
    for look in after:
        last[look.network] = max(look.sent, last.get(look.network, look.sent))
    return sum(last[network] - first[network] for network in first)


def cut(values: np.ndarray, parts: int) -> list[np.ndarray]:
    """A vector (values,) in so many slices, one after the other, whose lengths differ by one at most."""
    edges = np.arange(parts + 1) * len(values) // parts
    return [values[first:last] for first, last in itertools.pairwise(edges)]


def joined(slices: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """The vector (values,) of which these are the numbered slices, in any order."""
    return np.concatenate([part for _, part in sorted(slices, key=lambda one: one[0])])


def summed(parts: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """The sum of vectors of numbered ranks, float32 (values,), from the first rank to the last, however they come."""
    ordered = [part for _, part in sorted(parts, key=lambda one: one[0])]
    total = ordered[0].copy()
    for part in ordered[1:]:
        total += part
    return total


def largest_difference(found: np.ndarray, expected: np.ndarray, start: np.ndarray) -> float:
    """The largest difference of weights (values,) from those expected, over the longest way of one from its start."""
    return float(np.abs(found - expected).max() / np.abs(expected - start).max())


def rounding_bound(expected: np.ndarray, start: np.ndarray, updates: int) -> float:
    """How large that may become by the rounding of weights (values,) alone, where a network does not enlarge it.

    Each update rounds a float32 weight by 2⁻²⁴ of it at most, on both sides. In what order gradients are summed
    is less: it rounds a step, which is that much shorter than the weight.
    """
    return float(2 * updates * 2.0**-24 * np.abs(expected).max() / np.abs(expected - start).max())


def shares(wall: float, compute: Sequence[float], exchange: Sequence[float]) -> dict[str, float]:
    """Where the time of ranks went, as shares of it: `wall` seconds for all, and each rank's of both kinds."""
    whole = wall * len(compute)
    known = {"compute": sum(compute) / whole, "exchange": sum(exchange) / whole}
    return known | {"scheduling": 1 - sum(known.values())}
