"""Checkpoints: all that a run needs to resume as if nothing had happened. Runs on driver and ranks.

In: arrays and a state of plain values. Out: ``RUN/checkpoints/step-N/`` with ``arrays.npz`` (plain
arrays, never code) and ``state.json``, which is written last and knows the checksums of the arrays and of itself.
A folder is written aside, synced and renamed whole; one that is torn all the same is passed over.
"""

import copy
import io
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypedDict

import numpy as np
import xxhash
from pyarrow.fs import LocalFileSystem

from chexspark.errors import UserError
from chexspark.run.folder import LAYOUT_VERSION
from chexspark.run.history import Row
from chexspark.run.moment import Moment
from chexspark.storage import Location
from chexspark.text_files import is_whole, with_checksum

KEPT = 2  # the last ones
ARRAYS, STATE, UNFINISHED = "arrays.npz", "state.json", "unfinished-"
PATTERN = "step-*"  # of the folders' names


class PlateauState(TypedDict):
    """Fields of `training.schedule.Plateau`."""

    learning_rate: float
    factor: float
    patience: int
    lowest: float
    stalled: int


class State(TypedDict):
    """Where a run stands, before a step of an epoch, and all that it remembers beside arrays."""

    epoch: int  # counted from 0, as `step` is
    step: int
    steps: int  # of an epoch
    losses: float  # sum over the steps of this epoch so far
    finished: bool
    plateau: PlateauState
    best: tuple[
        float, float
    ]  # mean AUROC and negative loss of the best epoch, by `best_by` the first
    history: list[Row]  # rows of ``RUN/history``
    seed: int
    global_batch: int  # images per step over all ranks
    world_size: int
    learning_rate: float


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its state, and where its arrays are."""

    place: Location
    state: State

    def arrays(self) -> list[np.ndarray]:
        """Read the arrays, of the shapes and in the order in which they were given to `save`."""
        with np.load(io.BytesIO((self.place / ARRAYS).read_bytes()), allow_pickle=False) as file:
            return [file[f"{number:05}"] for number in range(len(file.files))]


def moment_of(state: State) -> Moment:
    """Where the run stood."""
    return Moment(state["epoch"], state["step"], state["steps"], state["losses"])


def latest(folder: Location, thorough: bool = True) -> Checkpoint | None:
    """The last whole checkpoint below `folder`, or none. Torn ones are passed over.

    `thorough`: read the arrays through, and not only the state.
    """
    for _, name in sorted(numbered(folder), reverse=True):
        place = folder / name
        try:
            state = json.loads((place / STATE).read_text())
            if not is_whole(state):
                continue
            if (
                thorough
                and xxhash.xxh3_64_hexdigest((place / ARRAYS).read_bytes()) != state["arrays"]
            ):
                continue
            return Checkpoint(place, state)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None


def numbered(folder: Location) -> list[tuple[int, str]]:
    """Step and name of each checkpoint folder."""
    found = [(re.fullmatch(r"step-(\d+)", name), name) for name in folder.list_folders()]
    return [(int(match[1]), name) for match, name in found if match]


class Writer:
    """Writes checkpoints in the background, one at a time; keeps the last two.

    A write that fails, on a full disk say, is told to `on_problem`, and leaves the checkpoints
    before it as they are. After one that does not, `then` is called, in the background too. A context
    manager, which waits at its end until what was begun is written.
    """

    def __init__(
        self,
        folder: Location,
        on_problem: Callable[[str], None],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.on_problem, self.then = folder, on_problem, then
        self.thread: threading.Thread | None = None
        folder.make_directory()
        for name in folder.list_folders():
            if name.startswith(UNFINISHED):  # of a rank that was killed while it wrote
                (folder / name).delete_directory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()

    def write(self, step: int, arrays: list[np.ndarray], state: State) -> None:
        """Begin to write ``step-<step>``, after the one before it is done.

        The state may change afterwards, the arrays may not.
        """
        self.wait()
        state = copy.deepcopy(state)
        self.thread = threading.Thread(target=self._work, args=(step, arrays, state))
        self.thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self.thread:
            self.thread.join()
            self.thread = None

    def _work(self, step: int, arrays: list[np.ndarray], state: State) -> None:
        try:
            save(self.folder, step, arrays, state)
            self.then()
        except (OSError, UserError) as error:
            self.on_problem(f"checkpoint of step {step} was not written: {error}")


def save(folder: Location, step: int, arrays: list[np.ndarray], state: State) -> None:
    """Write a checkpoint aside, sync it, rename it whole, remove all but the last two (`KEPT`)."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{number:05}": array for number, array in enumerate(arrays)})
    content = buffer.getvalue()
    place = folder / f"step-{step}"
    # An object store cannot rename folders: there the state, written last, makes it whole.
    aside = place if folder.is_object_store else folder / f"{UNFINISHED}{step}"
    aside.delete_directory()
    checksum = xxhash.xxh3_64_hexdigest(content)
    whole = with_checksum({"layout_version": LAYOUT_VERSION, **state, "arrays": checksum})
    try:
        aside.make_directory()
        write_synced(aside / ARRAYS, content)
        write_synced(aside / STATE, (json.dumps(whole, indent=1) + "\n").encode())
        if aside is not place:
            sync_folder(aside)
            place.delete_directory()
            aside.move_to(place)
            sync_folder(folder)
    except (OSError, UserError):
        aside.delete_directory()
        raise
    for number, name in sorted(numbered(folder))[:-KEPT]:
        if number != step:
            (folder / name).delete_directory()


def sync_folder(place: Location) -> None:
    """Let new names in a folder outlast a crash of the machine, where the file system can."""
    if isinstance(place.filesystem, LocalFileSystem):
        folder = os.open(place.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_synced(place: Location, content: bytes) -> None:
    """Write a file so that it is there after a crash of the machine, where the file system can."""
    if isinstance(place.filesystem, LocalFileSystem):
        with open(place.path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    else:
        with place.filesystem.open_output_stream(place.path) as stream:
            stream.write(content)
