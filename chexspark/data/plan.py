"""Which rows a rank reads at which step. Pure numpy; runs anywhere.

In: the rows of each row group, the global batch, rank and world size, seed, epoch. Out: for every
step of the rank, the numbers of its rows in the split, less than 0 where a place is only filled up.

Every row is in exactly one batch of an epoch, and all ranks take the same number of steps. The
row groups are dealt anew each epoch and laid end to end; that line is cut into canonical shards,
as MosaicML Streaming's canonical nodes are. A shard's rows are shuffled within a window of a few
row groups, so that a rank holds few of them at a time, and a global batch takes its rows from all
shards. Nothing of this looks at the world size: a step's global batch has the same rows at any.
The world size only says which rank reads which of them: shards that lie next to each other.

A plan is an array: to resume at step k is ``plan[k:]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SHARDS = 16
ROWS_PER_SHARD = 8  # of a global batch: a rank with a batch of 32 reads four shards
WINDOW_GROUPS = 4  # row groups that a shard's rows are shuffled across
FILLER = -1  # a place of no row, whose image is black
FIRST_SHOWN = -2  # −2 − row: a place that shows the image of a row, and weighs nothing


@dataclass(frozen=True)
class RankFacts:
    """Who this rank is among the others."""

    rank: int
    world_size: int


def canonical_shards(global_batch: int) -> int:
    """How many shards an epoch has; a multiple of the world size where it divides the batch by 8s."""
    return max(LEAST_SHARDS, -(-global_batch // ROWS_PER_SHARD))


def epoch_order(
    row_groups: Sequence[int], shards: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """All rows in the order of an epoch, and the shard of each; both int64 (rows,).

    `row_groups`: rows of each row group, in the store's order. Rows are numbered through the
    split from 0. Shard lengths differ by at most one, and the order takes one row of each in turn.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    sizes = np.asarray(row_groups, np.int64)
    starts = np.cumsum(sizes) - sizes
    line = np.concatenate(
        [starts[g] + random.permutation(sizes[g]) for g in random.permutation(len(sizes))]
    )
    window = int(sizes.max()) * WINDOW_GROUPS
    edges = np.arange(shards + 1) * len(line) // shards
    table = np.full((shards, int(np.diff(edges).max())), FILLER, np.int64)
    for number, row in enumerate(table):
        shard = line[edges[number] : edges[number + 1]]
        # Windows begin at different steps in different shards: the store is read evenly.
        cut = window * (number + 1) // shards
        for start, end in ((0, cut), *((s, s + window) for s in range(cut, len(shard), window))):
            random.shuffle(shard[start:end])
        row[: len(shard)] = shard
    order = table.T.ravel()
    owners = np.tile(np.arange(shards), table.shape[1])
    return order[order != FILLER], owners[order != FILLER]


def training_plan(
    row_groups: Sequence[int], global_batch: int, facts: RankFacts, seed: int, epoch: int
) -> np.ndarray:
    """The rank's rows of a shuffled epoch; int64 (steps, ceil(global_batch / world_size)).

    −1 stands where the rank has fewer rows at a step than others, or the last batch is not full.
    """
    order, owners = epoch_order(row_groups, canonical_shards(global_batch), seed, epoch)
    steps = -(-len(order) // global_batch)
    plan = np.full((steps, -(-global_batch // facts.world_size)), FILLER, np.int64)
    for step, mine in enumerate(plan):
        rows = slice(step * global_batch, (step + 1) * global_batch)
        batch = order[rows][np.argsort(owners[rows], kind="stable")]
        first, last = (len(batch) * r // facts.world_size for r in (facts.rank, facts.rank + 1))
        mine[: last - first] = batch[first:last]
    return plan


def with_filler(plan: np.ndarray) -> np.ndarray:
    """A training plan, int64 (steps, batch), whose −1 are −2 − row: filler that shows images of other rows.

    So normalisation over a batch sees different X-rays however few rows of its own a step has. Shown are the rank's
    rows of the steps before, the latest first, each once as far as they go; then those that
    come, and its own. They depend on the plan alone, and so does what a resumed run computes.
    """
    rows = plan[plan != FILLER]
    edges = np.concatenate([[0], np.cumsum((plan != FILLER).sum(axis=1))])
    filled = plan.copy()
    for step in np.flatnonzero((plan == FILLER).any(axis=1)) if len(rows) else ():
        own = slice(*edges[step : step + 2])
        others = np.concatenate([rows[: own.start][::-1], rows[own.stop :], rows[own]])
        gaps = np.flatnonzero(plan[step] == FILLER)
        filled[step, gaps] = FIRST_SHOWN - np.resize(others, len(gaps))
    return filled


def shown_rows(plan: np.ndarray) -> np.ndarray:
    """The rows whose images stand in a plan's places, filler or not, int64 (steps, batch) as it is; −1: none."""
    return np.where(plan <= FIRST_SHOWN, FIRST_SHOWN - plan, plan)


def fixed_plan(row_groups: Sequence[int], batch_size: int, facts: RankFacts) -> np.ndarray:
    """The rank's rows of an epoch in the store's order, for validation; int64 (steps, batch_size)."""
    total = int(np.sum(row_groups))
    edges = np.arange(facts.world_size + 1) * total // facts.world_size
    steps = -(-int(np.diff(edges).max()) // batch_size)
    plan = np.full(steps * batch_size, FILLER, np.int64)
    rows = np.arange(edges[facts.rank], edges[facts.rank + 1])
    plan[: len(rows)] = rows
    return plan.reshape(steps, batch_size)
