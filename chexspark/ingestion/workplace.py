"""The folder in which a store is written, and who works there. Runs on the driver.

In: the store's place. Out: ``STORE/_unfinished/TOKEN``, this run's own, and the store's lock. What a dead
run has left is cleaned away; a live one is not touched, and one that cannot be told from a live one is
not either.
"""

import posixpath
from typing import Self

from chexspark.errors import UserError
from chexspark.lock import Lock, is_lock
from chexspark.storage import Location
from chexspark.store.manifest import FILE_NAME, QUARANTINE, SPLITS, TABLES, UNFINISHED, Manifest


class Workplace:
    """A context manager: inside it, `folder` is this run's own, and no other ingest writes in the store."""

    def __init__(self, store: Location) -> None:
        self.store, self.lock = store, Lock(store, "--out", "ingest")
        self.folder = store / UNFINISHED / self.lock.owner["token"]

    def __enter__(self) -> Self:
        """Take the place. Raises UserError when another run lives there, or nobody can know."""
        self.lock.__enter__()
        try:
            (self.store / UNFINISHED).delete_directory()
            self.folder.make_directory()
        except BaseException:
            self.lock.__exit__()
            raise
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Leave nothing behind; when it failed, only what says which images were refused."""
        try:
            self.clear(failed=kind is not None)
        except (OSError, UserError):  # the next ingest cleans up; what ended this one is told
            return
        finally:
            self.lock.__exit__()

    def clear(self, failed: bool) -> None:
        """See `__exit__`. Of a place that another has by now only `folder` is deleted."""
        if not self.lock.is_held():
            self.folder.delete_directory()
            return
        if failed and not (self.store / FILE_NAME).exists():
            for name in (*SPLITS, *TABLES):
                if name != QUARANTINE:
                    (self.store / name).delete_directory()
        (self.store / UNFINISHED).delete_directory()

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


def holds_other_things(store: Location) -> bool:
    """Whether a folder has files that are none of ours: neither a store nor what was begun as one."""
    if not store.exists() or (store / FILE_NAME).exists() or (store / UNFINISHED).exists():
        return False
    ours = (store / QUARANTINE).path + "/"
    return any(
        not info.path.startswith(ours) and not is_lock(posixpath.basename(info.path))
        for info in store.list_files()
    )
