"""One writer at a time in a store or a run. Runs on the driver.

In: the folder. Out: a context manager; while one process is inside, another that asks for the same folder
gets a UserError. ``_lock-0001`` is there as long as somebody is inside and says who; ``_lock-0001.beat``
changes every ten seconds. Who is inside is dead when their process is gone, where this process can see it
(the same host and container), and else when the beat has not changed for a minute: no clocks are compared.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Self, TypedDict

from pyarrow import fs

from chexspark.errors import RunFailedError, UserError
from chexspark.progress import ProgressLine
from chexspark.storage import Location

log = logging.getLogger(__name__)

PREFIX, BEAT = "_lock-", ".beat"
NAME = re.compile(re.escape(PREFIX) + r"(\d{4,9})")
BEAT_SECONDS, RETRY_SECONDS, DEAD_SECONDS = 10.0, 1.0, 60.0
LOOK_SECONDS = 0.5


class Owner(TypedDict):
    """What a lock says of the process that is inside."""

    token: str
    host: str
    process: int
    started: int | None  # ticks from the system's start to the process's; None where not known
    system: (
        str | None
    )  # one start of one system, and one container: what has its own process numbers


class Lock:
    """See the module. `flag`: what a message calls the folder, ``--out``; `job`: who is inside, ``ingest``.

    `lost` is set when another took this process for dead, and the lock.
    """

    def __init__(self, folder: Location, flag: str, job: str) -> None:
        self.folder, self.what, self.job = folder, f"{flag}={folder}", job
        self.owner: Owner = {
            "token": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid(),
            "started": started(os.getpid()), "system": system(),
        }  # fmt: skip
        self.name = ""
        self.beats = 0
        self.stop, self.lost = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.keep_beating, daemon=True)

    def __enter__(self) -> Self:
        """Take the lock. Raises UserError when another has it, or nobody can know."""
        if not self.folder.creates_exclusively:
            log.warning(f"note: {self.what}: an object store has no lock: two that begin to write there at the "
                        "same moment are not kept apart")  # fmt: skip
        try:
            self.take()
            self.beat()
        except BaseException as error:
            self.remove(self.name)
            if isinstance(error, OSError):
                raise UserError(f"{self.what} cannot be written: {error}") from error
            raise
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave, unless another has the lock by now, which may have the same name."""
        self.stop.set()
        if self.thread.ident:
            self.thread.join()
        with contextlib.suppress(
            UserError
        ):  # that it cannot be read: the next one finds no process
            if self.is_held():
                self.remove(self.name)

    def take(self) -> None:
        """Make the lock of the next number, when all that are there are dead ones'."""
        there = self.names()
        for name in there:
            self.check_dead(name)
        number = 1 + max((int(name.removeprefix(PREFIX)) for name in there), default=0)
        name = f"{PREFIX}{number:04}"
        same_moment = UserError(
            f"{self.what}: another {self.job} began there at the same moment: try again"
        )
        if not (self.folder / name).create(json.dumps(self.owner).encode()):
            raise same_moment
        self.name = name
        if set(self.names()) - {*there, name}:  # who took another number has not seen this one
            self.remove(name)
            raise same_moment
        for dead in there:
            self.remove(dead)

    def names(self) -> list[str]:
        """The locks that are there."""
        found = self.folder.entries(fs.FileSelector(self.folder.path, allow_not_found=True))
        return sorted(info.base_name for info in found if NAME.fullmatch(info.base_name))

    def check_dead(self, name: str) -> None:
        """Return when nobody has a lock any more. Raises UserError when somebody has, or that cannot be read."""
        before = self.signs(name)
        if before is None:
            return
        owner = owner_of(before[0])
        there = is_there(owner) if owner else None
        if there is False:
            return
        host, process = (owner["host"], owner["process"]) if owner else ("unknown", "unknown")
        who = f"host {host}, process {process}"
        until = time.monotonic() + DEAD_SECONDS
        with ProgressLine() as line:
            while not there:
                line.show(f"{self.what}: looking whether another {self.job} ({who}) lives, for "
                          f"{max(0, until - time.monotonic()):.0f} s")  # fmt: skip
                time.sleep(min(LOOK_SECONDS, DEAD_SECONDS))
                now = self.signs(name)
                if now is None or (now == before and time.monotonic() > until):
                    return
                there = now != before
        raise UserError(
            f"{self.what}: another {self.job} is writing there ({who}): wait for it, or end it"
        )

    def signs(self, name: str) -> tuple[bytes, bytes] | None:
        """What a lock and its beat say; None where it is gone. Raises UserError where that cannot be read."""
        try:
            return read(self.folder / name), read(self.folder / (name + BEAT))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{self.what}: whether another {self.job} is writing there cannot be read ({error}): try again"
            ) from error

    def beat(self) -> None:
        """Say that this process lives. Raises OSError when that cannot be written."""
        self.beats += 1
        (self.folder / (self.name + BEAT)).write_text(f"{self.owner['token']} {self.beats}")

    def keep_beating(self) -> None:
        """Beat until the end, or until another has the lock. A beat that fails is tried again soon."""
        wait = BEAT_SECONDS
        while not self.stop.wait(wait):
            try:
                if not self.is_held():
                    self.lost.set()
                    return
                self.beat()
                wait = BEAT_SECONDS
            except (OSError, UserError):
                wait = RETRY_SECONDS

    def is_held(self) -> bool:
        """Whether the lock is still this process's. Raises UserError when that cannot be read."""
        found = self.signs(self.name)
        owner = owner_of(found[0]) if found else None
        return owner is not None and owner["token"] == self.owner["token"]

    def check_held(self) -> None:
        """Raise RunFailedError when another took this process for dead, and the lock."""
        if not self.is_held():
            raise RunFailedError(
                f"{self.what}: another {self.job} has taken the place, since for more than "
                f"{DEAD_SECONDS:.0f} seconds this one could not write there: wait for the other"
            )

    def remove(self, name: str) -> None:
        """Delete a lock and its beat, if they are there."""
        if not name:
            return
        for place in (self.folder / (name + BEAT), self.folder / name):
            try:
                place.filesystem.delete_file(place.path)
            except OSError:  # gone; or the next one finds it, and no process
                continue


def read(place: Location) -> bytes:
    """A lock, or a beat; empty where there is no beat yet. Raises OSError."""
    try:
        return place.read_bytes()
    except FileNotFoundError:
        if place.path.endswith(BEAT):
            return b""
        raise


def owner_of(content: bytes) -> Owner | None:
    """Who is inside; None for a lock that is being written, or was half written."""
    try:
        found = json.loads(content)
        return {
            "token": found["token"], "host": found["host"], "process": found["process"],
            "started": found["started"], "system": found["system"],
        }  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None


def is_there(owner: Owner) -> bool | None:
    """Whether a process is there; None where this one cannot see it, or is it itself."""
    here = owner["system"] is not None and owner["system"] == system()
    if not here or not isinstance(owner["process"], int) or owner["process"] == os.getpid():
        return None
    return owner["started"] is not None and started(owner["process"]) == owner["started"]


def system() -> str | None:
    """This start of the system, and its space of process numbers: a container has its own. None off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started(process: int) -> int | None:
    """When a process did, in ticks since the system did, which no clock's change moves; None where it is not there."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
        return int(after_name.split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_lock(name: str) -> bool:
    """Whether a file of a folder is a lock or belongs to one."""
    return name.startswith(PREFIX)
