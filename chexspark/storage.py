"""Paths and URIs through pyarrow file systems. Runs on driver and ranks.

In: a plain path (``/data/store``) or a URI (``hdfs://…``, ``file://…``, those of `object_stores`).
Out: a `Location`, with the few operations that the rooms need, the same on every file system.
"""

import contextlib
import os
import posixpath
import stat
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from chexspark import hdfs, object_stores
from chexspark.errors import UserError
from chexspark.object_stores import check_no_keys, scheme_of, told

DBFS = "/dbfs"  # where Databricks mounts dbfs:/
UNFINISHED = ".unfinished"  # how names of files end that are being written


@dataclass(frozen=True)
class Location:
    """A place on a file system. `path` is what the file system takes; `uri` what a person reads."""

    filesystem: fs.FileSystem
    path: str
    uri: str

    def __truediv__(self, name: str) -> "Location":
        return Location(
            self.filesystem, posixpath.join(self.path, name), posixpath.join(self.uri, name)
        )

    def __repr__(self) -> str:
        return f"Location({self.uri!r})"

    def __str__(self) -> str:
        return self.uri

    @property
    def spark_uri(self) -> str:
        """The form that Spark takes whatever its default file system is: local paths get file://."""
        return self.uri if "://" in self.uri else "file://" + self.path

    @property
    def is_object_store(self) -> bool:
        """Whether folders are but the beginnings of names here: none is renamed, and a file is whole or not there."""
        return self.filesystem.type_name in object_stores.TYPES

    @property
    def is_hdfs(self) -> bool:
        """Whether it is on HDFS: files are renamed in one step, over others or not, and do not grow."""
        return self.filesystem.type_name == f"py::{hdfs.TYPE}"

    def type(self) -> fs.FileType:
        """What is there: a file, a directory, nothing. Raises OSError where that cannot be known."""
        with told(self):
            return self.filesystem.get_file_info(self.path).type

    def is_file(self) -> bool:
        """Whether a file is there. Raises OSError, as `type` does."""
        return self.type() == fs.FileType.File

    def is_directory(self) -> bool:
        """Whether a directory is there. Raises OSError, as `type` does."""
        return self.type() == fs.FileType.Directory

    def exists(self) -> bool:
        """Whether anything is there. Raises OSError, as `type` does."""
        return self.type() != fs.FileType.NotFound

    def make_directory(self, private: bool = False) -> None:
        """Make the directory and those above it. Raises UserError where that cannot be.

        `private`: one that nobody else can enter, also where it is there already.
        """
        if private and self.filesystem.type_name != "local":
            raise UserError(
                f"--private is for local folders, and {self.uri} is none: make it with rights of its own first"
            )
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            if private:
                os.chmod(self.path, stat.S_IRWXU)
        except OSError as error:
            raise UserError(f"{self.uri} cannot be made a folder: {error}") from error

    def delete_directory(self) -> None:
        """Delete the directory with all in it; nothing happens when there is none."""
        if self.is_directory():
            self.filesystem.delete_dir(self.path)

    def move_to(self, target: "Location") -> None:
        """Rename this file in one step, in place of `target` if that is there; an object store copies it."""
        self.filesystem.move(self.path, target.path)

    def list_files(self) -> list[fs.FileInfo]:
        """All files at or below this place, sorted by path."""
        found = self.entries(fs.FileSelector(self.path, recursive=True))
        return sorted((i for i in found if i.type == fs.FileType.File), key=lambda i: i.path)

    def list_folders(self) -> list[str]:
        """The names of the folders right below this place; none where there is no such place."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = self.entries(selector)
        return sorted(i.base_name for i in found if i.type == fs.FileType.Directory)

    def entries(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What is below this place. Raises UserError where a name is not UTF-8."""
        try:
            with told(self):
                found = self.filesystem.get_file_info(selector)
            return [
                info for info in found if info.path
            ]  # Arrow decodes a name when it is asked for
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.uri} has a file whose name is not UTF-8: rename or remove it"
            ) from error

    def read_bytes(self, most: int | None = None) -> bytes:
        """The file's content, or its first `most` bytes. Raises OSError."""
        with told(self), self.filesystem.open_input_file(self.path) as file:
            return file.read(most)

    def write_bytes(self, content: bytes) -> None:
        """Write aside, then rename, so that the file is there whole or not at all.

        An object store does so by itself.
        """
        if self.is_object_store:
            with (
                told(self),
                # By itself it would pack what has a name that ends with .gz.
                self.filesystem.open_output_stream(self.path, compression=None) as stream,
            ):
                stream.write(content)
            return
        aside = self.hidden_name()
        try:
            with self.filesystem.open_output_stream(aside.path) as stream:
                stream.write(content)
            aside.move_to(self)
        except OSError:
            with contextlib.suppress(OSError):  # what has been written of it, if anything
                aside.filesystem.delete_file(aside.path)
            raise

    @property
    def creates_exclusively(self) -> bool:
        """Whether of two that `create` a file at the same moment one is told so: not on object stores."""
        return self.is_hdfs or self.filesystem.type_name == "local"

    def create(self, content: bytes) -> bool:
        """Write the file unless there is one; whether it was written. Raises OSError.

        See `creates_exclusively`. On a local file system another process may see it before its content.
        """
        if self.filesystem.type_name == "local":
            try:
                with open(self.path, "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            return True
        if self.exists():
            return False
        if self.is_object_store:
            self.write_bytes(content)
            return True
        aside = self.hidden_name()
        with self.filesystem.open_output_stream(aside.path) as stream:
            stream.write(content)
        try:
            self.filesystem.handler.move_new(aside.path, self.path)
        except OSError as error:
            aside.filesystem.delete_file(aside.path)
            if not isinstance(error, FileExistsError):
                raise
            return False
        return True

    def clear_unfinished(self) -> None:
        """Delete what processes that were killed left in this folder of what they were writing."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        for entry in self.entries(selector):
            if entry.base_name.startswith(".") and entry.base_name.endswith(UNFINISHED):
                directory = entry.type == fs.FileType.Directory
                delete = self.filesystem.delete_dir if directory else self.filesystem.delete_file
                delete(entry.path)

    def read_text(self) -> str:
        """The file as UTF-8. Raises OSError, and ValueError for what is none."""
        return self.read_bytes().decode("utf-8")

    def write_text(self, text: str) -> None:
        """The same as `write_bytes`, of a text in UTF-8."""
        self.write_bytes(text.encode("utf-8"))

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """Yield a local `Path` with this file's content, for libraries that only open local files."""
        with tempfile.TemporaryDirectory(prefix="chexspark-") as folder:
            target = Path(folder) / posixpath.basename(self.path)
            target.write_bytes(self.read_bytes())
            yield target

    def write_table(self, table: pa.Table) -> None:
        """Write one Parquet file into this directory, in place of all that was there.

        A reader never sees both. One file gives way to one in a single step; where other files
        were, the whole folder gives way: there is none between two renames, or, on an object
        store, which has no folders to rename, from the first deletion until the new file is written.
        """
        self.make_directory()
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        content, name = sink.getvalue().to_pybytes(), "part-00000.parquet"
        there = {file.path for file in self.list_files() if file.base_name[0] not in "._"}
        if self.is_object_store:
            for path in there - {(self / name).path}:
                self.filesystem.delete_file(path)
            there.clear()
        if there <= {(self / name).path}:
            (self / name).write_bytes(content)
            return
        fresh, old = self.hidden_name(), self.hidden_name()
        try:
            fresh.make_directory()
            (fresh / name).write_bytes(content)
            self.filesystem.move(self.path, old.path)
            self.filesystem.move(fresh.path, self.path)
        except OSError:
            self.filesystem.delete_dir_contents(self.path, missing_dir_ok=True)
            self.make_directory()
            (self / name).write_bytes(content)
        for place in (fresh, old):
            place.delete_directory()

    def hidden_name(self) -> "Location":
        """A new place beside this one, whose name begins with a dot: readers of folders pass over it."""
        folder, name = posixpath.split(self.path)
        hidden = f".{name}.{uuid.uuid4().hex}{UNFINISHED}"
        uri = posixpath.join(posixpath.dirname(self.uri), hidden)
        return Location(self.filesystem, posixpath.join(folder, hidden), uri)

    def read_table(self) -> pa.Table:
        """The Parquet file, or all in the folder, without what pandas or others noted beside the columns.

        Pages are checked as far as they have checksums. Raises OSError, and ValueError for what is none.
        """
        table = pq.read_table(
            self.path, filesystem=self.filesystem, page_checksum_verification=True
        )
        return table.replace_schema_metadata(None)


def absolute(uri: str) -> str:
    """The same path or URI, whatever folder a process works in; ranks and tasks work in others.

    Relative paths and ``~`` are of this process; of other schemes than ``file://`` only ``dbfs:`` becomes a path.
    Raises UserError for a URI with keys in it, which are not to get any further, and for ``dbfs:`` where it is not.
    """
    check_no_keys(uri)
    if uri.startswith("file://"):
        uri = urllib.parse.unquote(uri.removeprefix("file://"))
    elif uri.startswith("file:/"):  # as Hadoop writes a path, with all letters as they are
        uri = uri.removeprefix("file:")
    elif uri.startswith("dbfs:/"):
        if not os.path.isdir(DBFS):
            raise UserError(f"{uri}: there is no {DBFS} here, where Databricks mounts it")
        uri = f"{DBFS}/{uri.removeprefix('dbfs:').lstrip('/')}"
    return uri if "://" in uri or not uri else os.path.abspath(os.path.expanduser(uri))


def locate(uri: str) -> Location:
    """Resolve a path or URI. Raises UserError for a scheme that is none of ours, or out of reach."""
    uri = absolute(uri)
    if not uri:
        raise UserError("a path is empty")
    if not is_text(uri):
        raise UserError(f"{as_text(uri)}: the name is not UTF-8: rename it")
    if "://" not in uri:
        return Location(fs.LocalFileSystem(), uri, uri)
    scheme = scheme_of(uri)
    if scheme in object_stores.SCHEMES:
        filesystem, path = object_stores.resolve(uri)
        return Location(filesystem, path, uri.rstrip("/"))
    if scheme not in hdfs.SCHEMES:
        raise UserError(
            f"{object_stores.without_user(uri)}: no file system for it; use a path, or file://, hdfs://, s3://, s3a://, "
            "gs:// or abfss://"
        )
    filesystem, path = hdfs.resolve(uri)
    return Location(filesystem, path, uri.rstrip("/"))


def is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8: Python has stand-ins for bytes that are none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(name: str) -> str:
    """A name that can be written, with what is not UTF-8 as ``\\xf6``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
