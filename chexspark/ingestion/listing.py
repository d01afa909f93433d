"""The files below a folder, whatever they are called. Runs on the driver.

In: a folder of any file system. Out: its files, and what is there and cannot be read, with the reason.
A local folder is walked here, not by pyarrow, which ends at a name that is not UTF-8, does not tell of
a link to nothing, and goes round a link to a folder above it until names are too long.
"""

import datetime
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from pyarrow import fs

from chexspark.storage import Location

NOT_UTF8 = "cannot be read: its name is not UTF-8: rename it"
DANGLING = "cannot be read: a link to a file that is not there"


class Found(NamedTuple):
    """A file, or what should be one. `path` is the file system's, in letters that can be written."""

    path: str
    size: int  # bytes; 0 where nobody knows
    modified: str  # time of the last change
    fault: str = ""  # why it cannot be read, as quarantine says it
    file: str = ""  # which file of the disk it is: the same for all links to one; empty: not known


def files_below(place: Location) -> list[Found]:
    """All files at or below a place, sorted by path. Raises OSError where the place cannot be listed.

    Of a local folder links are followed, each folder once: where a link leads to one that is met
    without a link too, it is met there.
    """
    if not place.is_directory():
        return [found_by(place.filesystem.get_file_info(place.path))]
    if isinstance(place.filesystem, fs.LocalFileSystem):
        return sorted(local_files(place.path))
    return [found_by(info) for info in place.list_files()]


def found_by(info: fs.FileInfo) -> Found:
    """What a file system says of a file."""
    return Found(info.path, info.size or 0, str(info.mtime))


def local_files(folder: str) -> Iterator[Found]:
    """See `files_below`; in no order. What is neither file nor folder, a pipe say, is left out."""
    folders: list[bytes] = [folder.encode()]
    linked: list[bytes] = []
    seen: set[tuple[int, int]] = set()
    os.scandir(folders[0]).close()  # of the folder itself, the error is the user's to know
    while folders or linked:
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(readable(here), 0, "", f"cannot be read: {error.strerror}")
            continue
        for entry in found:
            try:
                status = entry.stat()
            except OSError as error:
                link = entry.is_symlink() and isinstance(error, FileNotFoundError)
                fault = DANGLING if link else f"cannot be read: {error.strerror}"
                yield Found(readable(entry.path), 0, "", fault)
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else folders).append(entry.path)
            elif stat.S_ISREG(status.st_mode):
                fault = "" if is_utf8(entry.path) else NOT_UTF8
                modified = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
                file = f"{status.st_dev}:{status.st_ino}"
                yield Found(readable(entry.path), status.st_size, str(modified), fault, file)


def is_utf8(name: bytes) -> bool:
    """Whether bytes are text in UTF-8, as all but local file systems demand of a name."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def readable(name: bytes) -> str:
    """A name as text: UTF-8, and what is not as ``\\xf6``."""
    return name.decode(errors="backslashreplace")
