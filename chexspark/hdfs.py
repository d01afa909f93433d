"""HDFS as a file system of pyarrow's, through hdfs-native. Runs on driver, in tasks and on ranks.

In: ``hdfs://`` and ``viewfs://``, also ``hdfs:///path`` of the default file system. Out: a file system and the path on it.
No Hadoop need be installed where this runs: the settings are those of the Spark session, handed to tasks and ranks, on
top of what lies in ``HADOOP_CONF_DIR``. A secured HDFS is opened on the driver with a keytab or a Kerberos ticket, in tasks
and ranks with the tokens that Spark has there, which the driver hands on, and again to ranks when there are new ones.
"""

import base64
import contextlib
import datetime
import functools
import json
import os
import posixpath
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import hdfs_native
import pyarrow as pa
from pyarrow import fs

from chexspark.errors import UserError
from chexspark.object_stores import UnreachableError, in_driver

SCHEMES = ("hdfs", "viewfs")
TYPE = "hdfs"
VARIABLE = "CHEXSPARK_HDFS"  # of a task's environment: settings, JSON
TOKENS = "CHEXSPARK_HADOOP_TOKENS"  # the same: a file of Hadoop's tokens in base64
KEY = "CHEXSPARK_TOKEN_KEY"  # the same: what later tokens are sealed with
SPARK_USER, USER = "SPARK_USER", "HADOOP_USER_NAME"
TOKEN_FILE = "HADOOP_TOKEN_FILE_LOCATION"
DEFAULT = "fs.defaultFS"
NAMES = (DEFAULT, "dfs.nameservices", "hadoop.security.authentication", "dfs.data.transfer.protection",
         "hadoop.security.key.provider.path", "dfs.encryption.key.provider.uri")  # fmt: skip
PREFIXES = (
    "dfs.ha.namenodes.",
    "dfs.namenode.rpc-address.",
    "dfs.client.",
    "fs.viewfs.mounttable.",
)
NO_TICKET = (
    "HDFS asks for Kerberos, and there is no valid ticket: kinit, or give --principal and --keytab"
)
# To a NameNode that has no other to stand in, with longer and longer pauses: some 15 s, and not minutes.
ATTEMPTS, ATTEMPTS_OF_ONE = "dfs.client.failover.max.attempts", "4"
USUAL_CONF = "/etc/hadoop/conf"  # where it lies if HADOOP_CONF_DIR does not say
PRINCIPAL, KEYTAB = "spark.kerberos.principal", "spark.kerberos.keytab"
REPLACE = hdfs_native.WriteOptions(overwrite=True, create_parent=True)

Settings = dict[str, str]


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI of `SCHEMES`, and the path on it, whose letters are taken as they are."""
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    return fs.PyFileSystem(Handler(scheme, authority)), posixpath.normpath("/" + path)


def settings() -> Settings:
    """By name, what is known here of HDFS: in tasks and ranks what they were handed, on the driver the session's."""
    handed = os.environ.get(VARIABLE)
    if handed is not None:
        take_handed(os.environ.get(TOKENS, ""))
        return json.loads(handed)
    if not in_driver():
        return {}
    from chexspark.session import hadoop_settings, spark_settings

    return hadoop_settings((), NAMES, PREFIXES) | spark_settings((PRINCIPAL, KEYTAB))


def hand_on() -> None:
    """Let the tasks that begin from now on know what this driver's session knows, and give them its tokens."""
    from chexspark.session import hadoop_settings, hadoop_tokens, hand_to_tasks

    hand_to_tasks(VARIABLE, json.dumps(hadoop_settings((), NAMES, PREFIXES)))
    tokens = hadoop_tokens()
    hand_to_tasks(TOKENS, base64.b64encode(tokens).decode() if tokens else None)
    hand_to_tasks(KEY, sealing_key() if tokens else None)


# --- tokens ---------------------------------------------------------------------------------


@functools.cache
def sealing_key() -> str:
    """Of this driver, for as long as it runs; tasks have it in their environment."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def seal(tokens: bytes) -> bytes:
    """Tokens as only the tasks and ranks of this driver can read them: one line."""
    from cryptography.fernet import Fernet

    return Fernet(sealing_key()).encrypt(tokens)


def take_sealed(sealed: bytes) -> None:
    """On a rank: take the tokens that the driver has sealed. Raises ValueError for what it has not."""
    from cryptography.fernet import Fernet, InvalidToken

    try:
        take_tokens(Fernet(os.environ.get(KEY, "")).decrypt(sealed))
    except InvalidToken as error:
        raise ValueError("tokens that this run's driver has not sealed") from error


class TokenFile:
    """Hadoop's tokens as the file that its clients read at each connection; it is in memory, and on no disk."""

    lock, handed = threading.Lock(), threading.Lock()
    descriptor: int | None = None
    process = 0  # that has taken what it was handed


def take_handed(tokens: str) -> None:
    """Take the tokens that a process was handed at its start, in base64, once: later ones are newer.

    They stay in the environment, for the processes that this one starts.
    """
    with TokenFile.handed:
        if tokens and TokenFile.process != os.getpid():
            take_tokens(base64.b64decode(tokens))
        TokenFile.process = os.getpid()


def take_tokens(content: bytes) -> None:
    """From now on HDFS is opened with these tokens."""
    fresh = os.memfd_create("tokens")
    with open(fresh, "wb", closefd=False) as file:
        file.write(content)
    with TokenFile.lock:
        if TokenFile.descriptor is None:
            TokenFile.descriptor = fresh
        else:  # in one step: a reader has the old ones or the new ones
            os.dup2(fresh, TokenFile.descriptor, inheritable=False)
            os.close(fresh)
        place = f"/proc/{os.getpid()}/fd/{TokenFile.descriptor}"
        if os.environ.get(TOKEN_FILE) != place:
            os.environ[TOKEN_FILE] = place


# --- the file system ------------------------------------------------------------------------


@functools.cache
def client(process: int, url: str | None, known: tuple[tuple[str, str], ...]) -> hdfs_native.Client:
    """The client of a process, which its threads share; without a URL, of the default file system.

    Raises OSError where settings do not say where HDFS is.
    """
    config = dict(known)
    if f"dfs.ha.namenodes.{urllib.parse.urlparse(url or '').netloc}" not in config:
        config.setdefault(ATTEMPTS, ATTEMPTS_OF_ONE)
    if config.get("hadoop.security.authentication") != "kerberos" and SPARK_USER in os.environ:
        # Containers may run as YARN's user; Spark's own processes are then who gave the command, too.
        os.environ.setdefault(USER, os.environ[SPARK_USER])
    principal, keytab = config.pop(PRINCIPAL, None), config.pop(KEYTAB, None)
    usual = None if {"HADOOP_CONF_DIR", "HADOOP_HOME"} & set(os.environ) else USUAL_CONF
    folder = usual if usual and os.path.isdir(usual) else None
    with told(url or "hdfs://"):
        return hdfs_native.Client(
            url, config, folder, kerberos_principal=principal, kerberos_keytab=keytab
        )


class DeniedError(UserError, PermissionError):
    """HDFS does not know this user, or does not let him: a mistake in rights or settings, as a rule."""


@contextlib.contextmanager
def told(path: str, url: str = "") -> Iterator[None]:
    """Inside, what hdfs-native says is an OSError of one line, without the stack of HDFS' own Java.

    `url`: of the file system that the path is on.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise words_of(error, path, url) from error


def words_of(error: Exception, path: str, url: str = "") -> OSError:
    """An error of hdfs-native's as one of Python's kinds, in one line."""
    text, place = str(error), url + path
    if found := re.search(r'GSSAPIError\(.*, "(?:.*?: )?(.*)"\)', text, re.S):
        return DeniedError(f"{place}: {NO_TICKET} ({found[1]})")
    if found := re.search(r'RPCError\("(?:[\w$]+[.])*(?:\w+[$])*(\w+)", "(.*)"\)', text, re.S):
        kind, text = (
            found[1],
            found[2].replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"'),
        )
    else:
        kind = type(error).__name__
    first = text.strip().partition("\n")[0].strip() or kind
    said = first if path in first else f"{place}: {first}"
    if kind in ("AccessControlException", "InvalidToken", "PermissionError"):
        return DeniedError(said)
    for python in (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
        if isinstance(error, python):
            return python(said)
    return UnreachableError(said)


class Handler(fs.FileSystemHandler):
    """What `fs.PyFileSystem` asks for. `scheme`, `authority`: of the URI, ``hdfs`` and ``nameservice1``, say."""

    def __init__(self, scheme: str, authority: str) -> None:
        self.scheme, self.authority = scheme, authority
        self.found: tuple[int, hdfs_native.Client] | None = None  # the process, and its client

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handler) and (self.scheme, self.authority) == (
            other.scheme,
            other.authority,
        )

    def __hash__(self) -> int:
        return hash((self.scheme, self.authority))

    def __reduce__(self) -> tuple:
        return Handler, (self.scheme, self.authority)

    @property
    def url(self) -> str:
        """Of the file system; empty for the default one."""
        return f"{self.scheme}://{self.authority}" if self.authority else ""

    def told(self, path: str) -> contextlib.AbstractContextManager[None]:
        """`told` of a path here."""
        return told(path, self.url)

    @property
    def client(self) -> hdfs_native.Client:
        """The client, by what was known when it was first asked for."""
        process = os.getpid()
        if self.found is None or self.found[0] != process:
            known = settings()
            found = client(process, self.url or known.get(DEFAULT), tuple(sorted(known.items())))
            self.found = process, found
        return self.found[1]

    def get_type_name(self) -> str:
        """See `TYPE`."""
        return TYPE

    def normalize_path(self, path: str) -> str:
        """Paths are taken as they are."""
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """What is at each of these paths."""
        return [self.info(path) for path in paths]

    def info(self, path: str) -> fs.FileInfo:
        """What is at a path."""
        try:
            with self.told(path):
                return info_of(self.client.get_file_info(path or "/"), path)
        except (FileNotFoundError, NotADirectoryError):
            return fs.FileInfo(path, fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What is below a folder."""
        base = selector.base_dir
        there = self.info(base)
        if there.type == fs.FileType.NotFound and selector.allow_not_found:
            return []
        if there.type != fs.FileType.Directory:
            raise (
                FileNotFoundError(f"{base} is no folder")
                if there.type == fs.FileType.NotFound
                else NotADirectoryError(base)
            )
        with self.told(base):
            found = [
                info_of(status, status.path)
                for status in self.client.list_status(base, selector.recursive)
            ]
        return [one for one in found if one.path != base]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder; with those above it, if `recursive`."""
        with self.told(path):
            self.client.mkdirs(path, create_parent=recursive)

    def delete_dir(self, path: str) -> None:
        """Delete a folder with all in it."""
        self.check(path, fs.FileType.Directory)
        with self.told(path):
            self.client.delete(path, True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete all in a folder."""
        selector = fs.FileSelector(path, allow_not_found=missing_dir_ok)
        for one in self.get_file_info_selector(selector):
            with self.told(one.path):
                self.client.delete(one.path, True)

    def delete_root_dir_contents(self) -> None:
        """Nobody means this."""
        raise NotImplementedError("all that is on HDFS is not deleted")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self.check(path, fs.FileType.File)
        with self.told(path):
            self.client.delete(path, False)

    def check(self, path: str, kind: fs.FileType) -> None:
        """Raise FileNotFoundError or OSError where there is no file, or folder, of this path."""
        there = self.info(path).type
        if there == fs.FileType.NotFound:
            raise FileNotFoundError(path)
        if there != kind:
            raise OSError(f"{path} is no {'folder' if kind == fs.FileType.Directory else 'file'}")

    def move(self, src: str, dest: str) -> None:
        """Rename, in one step, in place of the file, or the empty folder, that may be there."""
        with self.told(src):
            self.client.rename(src, dest, overwrite=True)

    def move_new(self, src: str, dest: str) -> None:
        """Rename, in one step, unless there is something. Raises FileExistsError then."""
        with self.told(src):
            self.client.rename(src, dest, overwrite=False)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        with self.open_input_stream(src) as source, self.open_output_stream(dest, None) as target:
            while piece := source.read(1 << 20):
                target.write(piece)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """A file to be read from its beginning."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to be read anywhere. Raises FileNotFoundError, and OSError for a folder."""
        with self.told(path):
            return pa.PythonFile(Reader(self.client.read(path), self.url + path), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """A new file, in place of the one that may be there."""
        with self.told(path):
            return pa.PythonFile(
                Writer(self.client.create(path, REPLACE), self.url + path), mode="w"
            )

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Nothing here appends to a file."""
        raise NotImplementedError(f"{path}: files on HDFS are written whole")


def info_of(status: Any, path: str) -> fs.FileInfo:
    """hdfs-native's words in pyarrow's."""
    when = datetime.datetime.fromtimestamp(status.modification_time / 1000, datetime.UTC)
    if status.isdir:
        return fs.FileInfo(path, fs.FileType.Directory, mtime=when)
    return fs.FileInfo(path, fs.FileType.File, size=status.length, mtime=when)


class Reader:
    """A file for `pa.PythonFile`, whose reader has no state but its place. One thread at a time moves that."""

    def __init__(self, file: Any, path: str) -> None:
        self.file, self.path, self.at, self.closed = file, path, 0, False
        self.length = len(file)
        self.lock = threading.Lock()

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all that are left."""
        with self.lock, told(self.path):
            left = self.length - self.at
            wanted = left if size is None or size < 0 else min(size, left)
            content = self.file.read_range(self.at, wanted) if wanted > 0 else b""
            self.at += len(content)
            return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as files do."""
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def tell(self) -> int:
        """Where the next bytes are read."""
        return self.at

    def size(self) -> int:
        """The length of the file."""
        return self.length

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is not."""
        return False

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Nothing is held open."""
        self.closed = True


class Writer:
    """A new file for `pa.PythonFile`."""

    def __init__(self, file: Any, path: str) -> None:
        self.file, self.path, self.at, self.closed = file, path, 0, False

    def write(self, content: Any) -> int:
        """All of these bytes."""
        with told(self.path):
            piece = bytes(content)
            self.file.write(piece)
        self.at += len(piece)
        return len(piece)

    def tell(self) -> int:
        """How many bytes have been written."""
        return self.at

    def flush(self) -> None:
        """Bytes go when a packet is full, and at the end."""

    def readable(self) -> bool:
        """It is not."""
        return False

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is not."""
        return False

    def close(self) -> None:
        """End the file. Raises OSError where it is not whole."""
        if not self.closed:
            self.closed = True
            with told(self.path):
                self.file.close()
