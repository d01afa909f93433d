"""Batches of one split, in the order of a plan. Runs on ranks.

In: the store, its manifest, a plan of rows. Out: numpy batches. Row groups are read ahead with
pyarrow in background threads, in the order in which the plan needs them, and checked against the
manifest's checksums. Each image is copied once, from what pyarrow read to its place in the batch it
belongs to: a ring of batches that are being filled, whose size is the bound on memory. Nothing is
unpickled.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from chexspark.data.plan import FILLER, shown_rows
from chexspark.reduction import reduced
from chexspark.storage import Location
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import Piece, image_names, joined, pieces, row_groups

READERS = 2  # threads
AHEAD_BYTES = 64 << 20  # of the ring, beyond what the plan's shuffle takes


@dataclass(frozen=True)
class Batch:
    """One step's input. Filler has images of other rows (`plan.with_filler`) or black ones, labels 0 and weight 0.

    Images and labels are places in the reader's ring: they hold until the next batch is asked for.
    """

    images: np.ndarray  # uint8 (batch, size, size)
    labels: np.ndarray  # int8 (batch, findings): 1, 0, or −1 for unknown
    weights: np.ndarray  # float32 (batch,): 1, or 0 for filler
    rows: np.ndarray  # int64 (batch,): row numbers in the split, −1 for filler


class Cache:
    """Row groups that stay in memory, the first that were read, up to a number of bytes."""

    def __init__(self, bytes_left: int = 0) -> None:
        self.bytes_left = bytes_left
        self.kept: dict[tuple[str, int], Piece] = {}  # by split and number
        self.lock = threading.Lock()

    def keep(self, key: tuple[str, int], piece: Piece) -> None:
        """Keep a row group, where there is room."""
        with self.lock:
            if piece.images.nbytes <= self.bytes_left and key not in self.kept:
                self.bytes_left -= piece.images.nbytes
                self.kept[key] = piece


class SplitReader:
    """Reads a split by plans. Several readers of one size may share a `cache`."""

    def __init__(
        self, store: Location, manifest: Manifest, split: str, cache: Cache | None = None,
        size: int | None = None,
    ) -> None:  # fmt: skip
        """`size`: that images are reduced to, pixels; by default that of the store."""
        self.store, self.split = store, split
        self.stored_size, self.findings = manifest.image_size, len(manifest.findings)
        self.size = size or manifest.image_size
        self.groups = row_groups(store, manifest, split)
        self.row_groups = [group.rows for group in self.groups]
        self.starts = np.concatenate([[0], np.cumsum(self.row_groups)]).astype(np.int64)
        self.files = [file.path for file in manifest.splits[split].files for _ in file.row_groups]
        self.footers: dict[str, pq.FileMetaData] = {}
        self.cache = cache or Cache()

    def read_row_group(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (rows, size, size) and labels int8 (rows, findings). Raises DamagedStoreError."""
        whole = joined(list(self.pieces(number)))
        return whole.images, whole.labels

    def pieces(self, number: int) -> Iterator[Piece]:
        """Yield a row group's `Piece`s, from memory if kept there, else from storage.

        Raises DamagedStoreError, at the latest after the last piece.
        """
        key = self.split, number
        if key in self.cache.kept:
            yield self.cache.kept[key]
            return
        room = self.row_groups[number] * self.size**2 <= self.cache.bytes_left
        keeping = []
        for piece in self.stored_pieces(number):
            if room:
                keeping.append(piece)
            yield piece
        if room:
            self.cache.keep(key, joined(keeping))

    def stored_pieces(self, number: int) -> Iterator[Piece]:
        """The same, from storage."""
        place = self.store / self.files[number]
        for piece in pieces(
            self.groups[number], self.stored_size, place=place, footers=self.footers
        ):
            yield piece._replace(images=reduced(piece.images, self.size))

    def image_names(self, rows: np.ndarray) -> list[str]:
        """The `image_index` of rows of the split. Raises DamagedStoreError."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            image_names(self.groups[number])[int(row - self.starts[number])]
            for row, number in zip(rows, numbers, strict=True)
        ]

    def batches(self, plan: np.ndarray, ahead_bytes: int = AHEAD_BYTES) -> Iterator[Batch]:
        """Yield a `Batch` for each row of the plan, int64 (steps, batch), with `plan.with_filler` or without.

        Each row group that the plan needs is read once. Raises DamagedStoreError.
        """
        width = plan.shape[1]
        waiting = deque(self.errands(plan))
        spread = max((errand.last - errand.step * width for errand in waiting), default=0) + 1
        rows = min(spread + ahead_bytes // self.size**2, plan.size)
        ring = Ring(-(-rows // width) * width, self.size, self.findings)
        running: deque[tuple[int, Future]] = deque()  # steps that wait, and what they wait for
        with pool(READERS) as readers:
            for step, wanted in enumerate(plan):
                while waiting and waiting[0].last < step * width + len(ring.images):
                    errand = waiting.popleft()
                    running.append((errand.step, readers.submit(self.run, errand, ring)))
                while running and running[0][0] <= step:
                    running.popleft()[1].result()
                start = step * width % len(ring.images)
                here = slice(start, start + width)
                real = wanted >= 0
                ring.images[here][wanted == FILLER] = 0
                ring.labels[here][~real] = 0
                yield Batch(ring.images[here], ring.labels[here], real.astype(np.float32),
                            np.where(real, wanted, FILLER))  # fmt: skip

    def errands(self, plan: np.ndarray) -> list["Errand"]:
        """What to read for a plan (steps, batch), in the order in which it is needed, and where its rows go."""
        flat = shown_rows(plan).ravel()
        places = np.flatnonzero(flat != FILLER)
        rows = flat[places]
        by_row = np.argsort(rows)
        places, rows = places[by_row], rows[by_row]
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        errands = []
        for group in np.unique(groups):
            mine = slice(*np.searchsorted(groups, [group, group + 1]))
            first, last = places[mine].min(), places[mine].max()
            errands.append(
                Errand(int(group), rows[mine] - self.starts[group], places[mine],
                       int(first) // plan.shape[1], int(last))
            )  # fmt: skip
        return sorted(errands, key=lambda errand: errand.step)

    def run(self, errand: "Errand", ring: "Ring") -> None:
        """Read one row group and copy its rows to their places."""
        for piece in self.pieces(errand.group):
            edges = piece.first, piece.first + len(piece.images)
            mine = slice(*np.searchsorted(errand.rows, edges))
            rows, places = errand.rows[mine] - piece.first, errand.places[mine] % len(ring.images)
            whole = np.array_equal(rows, np.arange(len(piece.images)))
            ring.images[places] = piece.images if whole else piece.images[rows]
            ring.labels[places] = piece.labels[rows]


class Errand(NamedTuple):
    """A row group to read: `rows` of it, ascending, go to `places` of the flattened plan."""

    group: int
    rows: np.ndarray
    places: np.ndarray
    step: int  # the first that needs it
    last: int  # place


class Ring:
    """The batches that are being filled: a row of the flattened plan is at its number modulo the length."""

    def __init__(self, rows: int, size: int, findings: int) -> None:
        self.images = np.empty((rows, size, size), np.uint8)
        self.labels = np.zeros((rows, findings), np.int8)


@contextlib.contextmanager
def pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block, without finishing what nobody waits for."""
    executor = ThreadPoolExecutor(threads, "chexspark-reader")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
