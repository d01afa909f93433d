"""The members of a tar archive, one after the other. Pure but for the stream; runs in Spark tasks.

In: a stream. Out: names, sizes and contents, with why a member may not be read. The standard
library's tarfile ends without a word at a damaged header in the middle, and takes as much memory as the
headers of a small hostile file say: here a header counts for no more than 1 MiB.

Source: POSIX.1-2008, pax, "ustar interchange format" and "pax Interchange Format"; GNU tar's manual,
"Basic Tar Format", for long names, sparse files and numbers in base 256.
"""

from collections.abc import Iterator
from typing import NamedTuple

from chexspark.ingestion.compressed import BUFFER, Stream

BLOCK = 512
MOST_HEADER = 1 << 20  # bytes of a long name or a pax header
REGULAR, OLD_REGULAR, LINK, SYMLINK, FOLDER, CONTIGUOUS = b"0", b"\0", b"1", b"2", b"5", b"7"
DEVICES = (b"3", b"4", b"6")  # of characters, of blocks, a pipe
LONG_NAME, LONG_LINK, GNU_SPARSE, GNU_FOLDER, VOLUME, VOLUME_NAME = b"L", b"K", b"S", b"D", b"M", b"V"  # fmt: skip
PAX, PAX_OF_SOLARIS, PAX_OF_ALL = b"x", b"X", b"g"
SPARSE_KEY = b"GNU.sparse."


class DamagedError(Exception):
    """The archive cannot be read on; the message says why."""


class Content:
    """The bytes of one member, as far as they are read."""

    def __init__(self, stream: Stream, size: int) -> None:
        self.stream, self.left = stream, size
        self.padding = -size % BLOCK

    def read(self, size: int) -> bytes:
        """The next bytes: as many as asked for, fewer at the member's end. Raises DamagedError."""
        size = min(size, self.left)
        self.left -= size
        return exactly(self.stream, size)

    def skip(self) -> None:
        """Read on to the next header."""
        left = self.left + self.padding
        self.left = self.padding = 0
        while left:
            left -= len(exactly(self.stream, min(left, BUFFER)))


class TarMember(NamedTuple):
    """A file of the archive. `content` is there until the next member is asked for."""

    name: bytes
    size: int
    fault: str  # why it may not be read; empty where it may
    content: Content


class Said(NamedTuple):
    """What headers before a member's own say of it."""

    name: bytes | None = None
    size: int | None = None
    fault: str = ""


def exactly(stream: Stream, size: int) -> bytes:
    """So many bytes. Raises DamagedError where there are fewer."""
    parts, left = [], size
    while left:
        part = stream.read(left)
        if not part:
            raise DamagedError("it breaks off")
        parts.append(part)
        left -= len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


def tar_members(stream: Stream) -> Iterator[TarMember]:
    """Yield every file of an archive, not its folders. Raises DamagedError where it cannot be read on.

    Raises what the stream raises.
    """
    said, first = Said(), True
    while True:
        header = stream.read(BLOCK)
        if not header:
            raise DamagedError("it is empty" if first else "it breaks off")
        header += exactly(stream, BLOCK - len(header))
        if not any(header):
            return
        check_sum(header, first)
        first = False
        kind, size = header[156:157], number(header[124:136])
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_OF_SOLARIS, PAX_OF_ALL):
            said = with_header(said, kind, Content(stream, size))
            continue
        size = size if said.size is None else said.size
        name = name_in(header) if said.name is None else said.name
        fault = said.fault or fault_of(kind)
        said = Said()
        if kind == GNU_SPARSE:
            skip_sparse_map(header, stream)
        # The others have no content, whatever their size says.
        no_content = kind in (LINK, SYMLINK, FOLDER, VOLUME_NAME, *DEVICES)
        content = Content(stream, 0 if no_content else size)
        folder = kind in (FOLDER, GNU_FOLDER, VOLUME_NAME) or (
            kind in (REGULAR, OLD_REGULAR) and name.endswith(b"/")
        )
        if not folder:
            yield TarMember(name, content.left, fault, content)
        content.skip()


def check_sum(header: bytes, first: bool) -> None:
    """Raise DamagedError unless 512 bytes are a header. `first`: whether they begin the file."""
    blank = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)  # as some old writers did
    try:
        fits = int(header[148:156].strip(b" \0") or b"0", 8) in (sum(blank), signed)
    except ValueError:
        fits = False
    if not fits:
        raise DamagedError("it is no tar or zip archive" if first else "a header is damaged")


def number(field: bytes) -> int:
    """A number of a header: octal digits, or in base 256. Raises DamagedError for what is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise DamagedError("a header is damaged: its size is no number")
    return value


def name_in(header: bytes) -> bytes:
    """The name in a header, with the prefix that ustar has and GNU has not."""
    name, prefix = header[:100].partition(b"\0")[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def fault_of(kind: bytes) -> str:
    """Why a member of some kind may not be read, or nothing."""
    if kind in (LINK, SYMLINK):
        return "a link"
    if kind in DEVICES:
        return "a device"
    if kind == GNU_SPARSE:
        return "a sparse file"
    return "a part of a file" if kind == VOLUME else ""


def with_header(said: Said, kind: bytes, content: Content) -> Said:
    """What is said of the next member, with one more header. Raises DamagedError as `Content` does."""
    if kind in (LONG_LINK, PAX_OF_ALL):  # of links, and of times and owners
        content.skip()
        return said
    if content.left > MOST_HEADER:
        said = said._replace(fault=f"a header of {content.left:,} bytes before it")
    else:
        value = content.read(content.left)
        if kind == LONG_NAME:
            said = said._replace(name=value.partition(b"\0")[0])
        else:
            said = with_pax(said, value)
    content.skip()
    return said


def with_pax(said: Said, value: bytes) -> Said:
    """What is said of the next member, with what a pax header says: lines ``length key=value``."""
    damaged = said._replace(fault="a damaged header before it")
    place = 0
    while place < len(value):
        digits, _, _ = value[place : place + 20].partition(b" ")
        end = place + int(digits) if digits.isdigit() else 0
        line = value[place + len(digits) + 1 : end]
        key, equals, text = line.partition(b"=")
        if end > len(value) or not equals or not text.endswith(b"\n"):
            return damaged
        text, place = text[:-1], end
        if key == b"path":
            said = said._replace(name=text)
        elif key == b"size" and not text.isdigit():
            return damaged
        elif key == b"size":
            said = said._replace(size=int(text[:20]))
        elif key.startswith(SPARSE_KEY):
            said = said._replace(fault="a sparse file")
    return said


def skip_sparse_map(header: bytes, stream: Stream) -> None:
    """Read over the blocks that go on with the map of a sparse file."""
    more = header[482]
    while more:
        more = exactly(stream, BLOCK)[504]
