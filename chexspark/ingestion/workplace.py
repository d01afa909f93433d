"""The folder in which a store is written, and who works there. Runs on the driver.

In: the store's place. Out: ``STORE/_unfinished/TOKEN``, this run's own, with ``owner.json`` beside
it that says who the run is and that it lives. What a dead run has left is cleaned away; a live
one is not touched, and one that cannot be told from a live one is not either.
"""

import json
import os
import socket
import threading
import time
import uuid
from typing import TypedDict

import psutil
from pyarrow import fs

from chexspark.errors import RunFailedError, UserError
from chexspark.storage import Location
from chexspark.store.manifest import FILE_NAME, QUARANTINE, SPLITS, TABLES, UNFINISHED, Manifest

OWNER = "owner.json"
BEAT_SECONDS, RETRY_SECONDS, DEAD_SECONDS = 10.0, 1.0, 60.0
LOOK_AGAIN_SECONDS = 1.0  # HDFS replaces a file in two steps, between which there is none


class Owner(TypedDict):
    """What ``owner.json`` says of the run that works there."""

    token: str
    host: str
    process: int
    started: float  # when the process did, seconds since 1970
    beat: float  # when it last said that it lives


class Workplace:
    """A context manager: inside it, `folder` is this run's own."""

    def __init__(self, store: Location) -> None:
        self.store, self.token = store, uuid.uuid4().hex
        self.folder = store / UNFINISHED / self.token
        self.stop = threading.Event()

    def __enter__(self) -> "Workplace":
        """Take the place. Raises UserError when another run lives there, or nobody can know."""
        owner = find_owner(self.store)
        if owner and is_alive(owner):
            raise UserError(
                f"--out={self.store}: another ingest is writing there "
                f"(host {owner['host']}, process {owner['process']}): wait for it, or end it"
            )
        (self.store / UNFINISHED).delete_directory()
        self.folder.make_directory()
        self.beat()
        if not self.is_held():
            raise UserError(f"--out={self.store}: another ingest began there at the same moment")
        threading.Thread(target=self.keep_beating, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Leave nothing behind; when it failed, only what says which images were refused."""
        self.stop.set()
        try:
            if not self.is_held():
                self.folder.delete_directory()
                return
        except (OSError, UserError):  # the next ingest cleans up; what ended this one is told
            return
        if kind is not None and not (self.store / FILE_NAME).exists():
            for name in (*SPLITS, *TABLES):
                if name != QUARANTINE:
                    (self.store / name).delete_directory()
        (self.store / UNFINISHED).delete_directory()

    def beat(self) -> None:
        """Say who is here, and that it lives. Raises OSError or UserError when that cannot be written."""
        me = psutil.Process()
        owner: Owner = {
            "token": self.token, "host": socket.gethostname(), "process": me.pid,
            "started": me.create_time(), "beat": time.time(),
        }  # fmt: skip
        (self.store / UNFINISHED / OWNER).write_text(json.dumps(owner))

    def keep_beating(self) -> None:
        """Beat until the end, or until another has the place. A beat that fails is tried again soon."""
        wait = BEAT_SECONDS
        while not self.stop.wait(wait):
            try:
                if not self.is_held():
                    return
                self.beat()
                wait = BEAT_SECONDS
            except (OSError, UserError):
                wait = RETRY_SECONDS

    def is_held(self) -> bool:
        """Whether the place is still this run's. Raises UserError when that cannot be read."""
        owner = find_owner(self.store)
        return owner is not None and owner["token"] == self.token

    def check_held(self) -> None:
        """Raise RunFailedError when another ingest took this run for dead, and the place."""
        if not self.is_held():
            raise RunFailedError(
                f"--out={self.store}: another ingest has taken the place, since for more than "
                f"{DEAD_SECONDS:.0f} seconds this one could not write there: wait for the other"
            )

    def clean(self, manifest: Manifest | None) -> None:
        """Delete what a dead run has left in the store: all files that no manifest names."""
        if manifest is None:
            for name in (*SPLITS, *TABLES):
                (self.store / name).delete_directory()
            return
        for split in SPLITS:
            named = {(self.store / file.path).path for file in manifest.splits[split].files}
            for info in (self.store / split).list_files():
                if info.path.endswith(".parquet") and info.path not in named:
                    self.store.filesystem.delete_file(info.path)


def find_owner(store: Location) -> Owner | None:
    """Who works there, or None. Raises UserError when that cannot be read."""
    owner = read_owner(store)
    if owner is None and (store / UNFINISHED).exists():
        time.sleep(LOOK_AGAIN_SECONDS)
        owner = read_owner(store)
    return owner


def read_owner(store: Location) -> Owner | None:
    """What ``owner.json`` says, or None where there is none. Raises UserError when it cannot be read.

    Of a damaged one, which a dying run left half written, only the time is known.
    """
    place = store / UNFINISHED / OWNER
    try:
        info = place.filesystem.get_file_info(place.path)
        if info.type != fs.FileType.File:
            return None
        found = json.loads(place.read_text())
        return {
            "token": found["token"], "host": found["host"], "process": found["process"],
            "started": found["started"], "beat": found["beat"],
        }  # fmt: skip
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"--out={store}: whether another ingest is writing there cannot be read ({error}): try again"
        ) from error
    except (ValueError, KeyError, TypeError):
        return {
            "token": "unknown", "host": "unknown", "process": 0, "started": 0.0,
            "beat": (info.mtime_ns or 0) / 1e9,
        }  # fmt: skip


def is_alive(owner: Owner) -> bool:
    """Of another process on this host, whether it is there; else, whether it has beaten lately."""
    beats = time.time() - owner["beat"] < DEAD_SECONDS
    if owner["host"] != socket.gethostname():
        return beats
    try:
        there = psutil.Process(owner["process"]).create_time() == owner["started"]
    except psutil.NoSuchProcess:
        return False
    return there and (beats or owner["process"] != os.getpid())


def holds_other_things(store: Location) -> bool:
    """Whether a folder has files that are none of ours: neither a store nor what was begun as one."""
    if not store.exists() or (store / FILE_NAME).exists() or (store / UNFINISHED).exists():
        return False
    ours = (store / QUARANTINE).path + "/"
    return any(not info.path.startswith(ours) for info in store.list_files())
