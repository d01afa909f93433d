"""What the seeded campaigns share: how many mutants, how bytes are spoiled, and the table of what came of them."""

import os
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from chexspark.errors import UserError

SIZE = "CHEXSPARK_FUZZ"  # mutants of each campaign; unset, a few that the quick tests have time for
LONGEST = 10  # seconds that one mutant may take

SHOWN = 60  # faults
LONGEST_LINE = 2000  # letters of a message


def mutants(few: int) -> int:
    """How many mutants a campaign has: `few`, or what the environment says."""
    return int(os.environ.get(SIZE, few))


def flipped(
    content: bytes, rng: np.random.Generator, first: int = 0, end: int | None = None
) -> bytes:
    """The bytes with one bit between `first` and `end` turned over."""
    spoiled = bytearray(content)
    position = int(rng.integers(first, len(content) if end is None else end))
    spoiled[position] ^= 1 << int(rng.integers(8))
    return bytes(spoiled)


def fault_of_line(text: str) -> str:
    """What is wrong with a message, which must be one line for a person; nothing, if all is right."""
    if "\n" in text.strip():
        return f"several lines: {text[:200]!r}"
    return f"{len(text):,} letters: {text[:200]!r}" if len(text) > LONGEST_LINE else ""


class Tally:
    """Counts what came of mutants, by their kind and by outcome, and keeps the worst of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: dict[str, Counter] = {}
        self.faults: list[str] = []  # mutants of which something came that may not be
        self.slowest = 0.0  # seconds

    def add(self, kind: str, outcome: str, fault: str = "") -> None:
        """Count one mutant. `fault`: what is wrong with its outcome; nothing, if all is right."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if fault:
            self.faults.append(f"{kind}: {outcome}: {fault}")

    def attempt(
        self,
        kind: str,
        read: Callable[[], object],
        judge: Callable[[object], tuple[str, str]],
        refusals: tuple[type[Exception], ...] = (UserError,),
        note: str = "",
        longest: float = LONGEST,
    ) -> None:
        """Read a mutant and count what comes of it.

        `judge`: from what was read to an outcome and what is wrong with it. `note`: which mutant it is;
        `longest`: seconds that it may take.
        """
        started = time.monotonic()
        try:
            outcome, fault = judge(read())
        except refusals as error:
            outcome, fault = "refused", fault_of_line(str(error))
        except BaseException as error:
            outcome, fault = "raised", repr(error)[:300]
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, seconds)
        if seconds > longest:
            fault = f"{seconds:.0f} s; {fault}"
        self.add(kind, outcome, fault and f"{fault} ({note})")

    def finish(self) -> None:
        """Print the table; fail where a mutant was believed, raised something else or took too long."""
        outcomes = sorted({name for counts in self.counts.values() for name in counts})
        total: Counter = sum(self.counts.values(), Counter())
        width = max(map(len, [*self.counts, self.name]))
        print(f"\n{self.name:<{width}}" + "".join(f"{name:>22}" for name in outcomes))
        for kind, counts in [*sorted(self.counts.items()), ("all", total)]:
            print(f"{kind:<{width}}" + "".join(f"{counts[name]:>22,}" for name in outcomes))
        print(f"{total.total():,} mutants, the slowest {self.slowest:.1f} s")
        assert not self.faults, "\n".join([f"{len(self.faults)} faults", *self.faults[:SHOWN]])
