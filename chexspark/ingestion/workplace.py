"""The folder in which a store is made, and who works there. Runs on the driver.

In: the store's place. Out: ``STORE/_unfinished/TOKEN``, this run's own, with ``owner.json`` beside
it that says who the run is and that it lives. What a dead run has left is cleaned away; a live
one is not touched.
"""

import json
import os
import socket
import threading
import time
import uuid

import psutil

from chexspark.errors import UserError
from chexspark.storage import Location
from chexspark.store.manifest import FILE_NAME, SPLITS, UNFINISHED, Manifest

OWNER = "owner.json"
QUARANTINE = "quarantine"
TABLES = (QUARANTINE, "boxes", "unmatched", "duplicates")
BEAT_SECONDS, DEAD_SECONDS = 10.0, 60.0


class Workplace:
    """A context manager: inside it, `folder` is this run's own."""

    def __init__(self, store: Location):
        self.store, self.token = store, uuid.uuid4().hex
        self.folder = store / UNFINISHED / self.token
        self.stop = threading.Event()

    def __enter__(self):
        """Take the place. Raises UserError when another run lives there."""
        owner = read_owner(self.store)
        if owner and is_alive(owner):
            raise UserError(
                f"--out {self.store}: another ingest is writing there "
                f"(host {owner['host']}, process {owner['process']}): wait for it, or end it"
            )
        (self.store / UNFINISHED).delete_directory()
        self.folder.make_directory()
        self.beat()
        if read_owner(self.store)["token"] != self.token:
            raise UserError(f"--out {self.store}: another ingest began there at the same moment")
        threading.Thread(target=self.keep_beating, daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        """Leave nothing behind; when it failed, only what says which images were refused."""
        self.stop.set()
        if kind is not None and not (self.store / FILE_NAME).exists():
            for name in (*SPLITS, *TABLES):
                if name != QUARANTINE:
                    (self.store / name).delete_directory()
        (self.store / UNFINISHED).delete_directory()

    def beat(self) -> None:
        me = psutil.Process()
        owner = {
            "token": self.token, "host": socket.gethostname(), "process": me.pid,
            "started": me.create_time(), "beat": time.time(),
        }  # fmt: skip
        (self.store / UNFINISHED / OWNER).write_text(json.dumps(owner))

    def keep_beating(self) -> None:
        while not self.stop.wait(BEAT_SECONDS):
            self.beat()

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


def read_owner(store: Location) -> dict | None:
    """Who works there, or None. A file that a dying run left half written is nobody's."""
    place = store / UNFINISHED / OWNER
    try:
        return json.loads(place.read_text()) if place.is_file() else None
    except (ValueError, OSError):
        return None


def is_alive(owner: dict) -> bool:
    """On this host, whether the process is there; on another, whether it has beaten lately."""
    if owner["host"] != socket.gethostname():
        return time.time() - owner["beat"] < DEAD_SECONDS
    try:
        process = psutil.Process(owner["process"])
    except psutil.NoSuchProcess:
        return False
    return process.create_time() == owner["started"] and process.pid != os.getpid()


def holds_other_things(store: Location) -> bool:
    """Whether a folder has files that are none of ours: neither a store nor what was begun as one."""
    if not store.exists() or (store / FILE_NAME).exists() or (store / UNFINISHED).exists():
        return False
    ours = (store / QUARANTINE).path + "/"
    return any(not info.path.startswith(ours) for info in store.list_files())
