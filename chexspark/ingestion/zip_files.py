"""The members of a zip archive. Runs in Spark tasks.

In: a file that can be sought in. Out: names, sizes and contents, with why a member may not be read. The
directory at the end says where members are; what it says of sizes is not believed.

Source: PKWARE's APPNOTE.TXT 6.3.10.
"""

import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from chexspark.ingestion.listing import is_utf8

MOST_DIRECTORY = 64 << 20  # bytes, of some 800,000 members
END, END64 = b"PK\x05\x06", b"PK\x06\x06"
END_SIZE, MOST_COMMENT = 22, 0xFFFF
LOCAL_SIZE = 30  # bytes, at least, of what stands before a member
ENCRYPTED, UTF8 = 0x1, 0x800  # bits of a member's flags
DOS = 0  # the system that made it, as others call it
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of others, zipfile unpacks without a bound


class ZipMember(NamedTuple):
    """A file of the archive."""

    name: bytes  # in UTF-8
    size: int  # as the directory says
    fault: str  # why it may not be read; empty where it may
    info: zipfile.ZipInfo


def opened(file: IO[bytes]) -> zipfile.ZipFile:
    """Read the directory. Raises zipfile.BadZipFile, also for one that would take much memory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - END_SIZE - MOST_COMMENT))
    tail = file.read(END_SIZE + MOST_COMMENT)
    place = tail.rfind(END)
    if 0 <= place <= len(tail) - END_SIZE:
        (directory,) = struct.unpack_from("<L", tail, place + 12)
        wide = tail.rfind(END64, 0, place)
        if directory == 0xFFFFFFFF and 0 <= wide <= len(tail) - 56:
            (directory,) = struct.unpack_from("<Q", tail, wide + 40)
        if min(directory, size) > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {directory:,} bytes")
    return zipfile.ZipFile(file)


def zip_members(archive: zipfile.ZipFile) -> Iterator[ZipMember]:
    """Yield every file of the directory, not its folders, in the directory's order."""
    members = archive.infolist()
    times = Counter(info.header_offset for info in members)
    begins = sorted(times)
    after = dict(zip(begins, [*begins[1:], archive.start_dir], strict=True))
    for info in members:
        if not name_of(info).endswith(b"/"):
            begin = info.header_offset
            end = begin + LOCAL_SIZE + info.compress_size
            overlaps = times[begin] > 1 or end > after[begin]
            yield ZipMember(name_of(info), info.file_size, fault_of(info, overlaps), info)


def name_of(info: zipfile.ZipInfo) -> bytes:
    """The name in UTF-8, with ``/`` between folders.

    Without a mark it is in the letters of DOS, or, as macOS writes it, in UTF-8 all the same.
    """
    name = info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437")
    name = name if is_utf8(name) else info.orig_filename.encode()
    return name.replace(b"\\", b"/") if info.create_system == DOS else name


def fault_of(info: zipfile.ZipInfo, overlaps: bool) -> str:
    """Why a member may not be read, or nothing. `overlaps`: its bytes are another's too."""
    if info.flag_bits & ENCRYPTED:
        return "encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link"
    if info.compress_type not in METHODS:
        return (
            f"packed by method {info.compress_type}, and only 0 (stored) and 8 (deflate) are read"
        )
    return "its bytes are another's too" if overlaps else ""
