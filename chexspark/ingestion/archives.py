"""Images out of archives, never unpacked to disk. Runs in Spark tasks.

In: a tar archive, packed by gzip, bzip2, xz, Zstandard or not, or a zip archive; which one its first
bytes say. Out: its members one after the other. What is sound is read, the rest comes with the reason.
An archive may be a stranger's: no name leads out of it, and memory is bounded by `LARGEST_MEMBER`,
whatever headers say.
"""

import posixpath
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chexspark.ingestion.compressed import unpacked
from chexspark.ingestion.image_errors import BadImageError, NoImageError
from chexspark.ingestion.kinds import HEAD, NO_IMAGE, kind_by_name, kind_of
from chexspark.ingestion.listing import is_utf8
from chexspark.ingestion.tar_files import tar_members
from chexspark.ingestion.zip_files import opened, zip_members
from chexspark.storage import Location, locate

ARCHIVES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst",
    ".zip",
)  # fmt: skip
ZIP_MARKS = (b"PK\x03\x04", b"PK\x05\x06")  # a member, or the end of one that is empty
LARGEST_MEMBER = 256 << 20  # bytes; the largest detectors make 40 million pixels of 2 bytes
LONGEST_NAME, SHOWN_NAME = (
    4096,
    200,
)  # bytes that a name may have, and that are told of a longer one


class Member(NamedTuple):
    """A file of an archive."""

    path: str  # in the archive; empty: it is about the archive itself
    size: int  # bytes
    content: bytes | BadImageError  # BadImageError says why there is none; NoImageError: no image


def is_archive_name(name: str) -> bool:
    """Whether the name of a file says that it is an archive."""
    return name.lower().endswith(ARCHIVES) and not name.startswith("._")


def archive_members(archive: str) -> Iterator[Member]:
    """Yield each file of an archive, in the archive's order.

    A link, a device, an encrypted file, or a name that is absolute or climbs with ``..`` comes as
    BadImageError, and so does an archive that breaks off, under an empty path; what is no image as
    NoImageError. Of what is no image by its first bytes, no more than these is read.
    """
    place = locate(archive)
    try:
        members = members_of_zip if place.read_bytes(4) in ZIP_MARKS else members_of_tar
        yield from members(place)
    except Exception as error:  # whatever a decompressor raises, it is about this archive
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Member("", size_of(place), BadImageError(f"damaged archive: {text}"))


def members_of_tar(place: Location) -> Iterator[Member]:
    """See `archive_members`, of tar. Raises DamagedError, and what a decompressor raises."""
    with unpacked(place) as stream:
        for name, size, fault, content in tar_members(stream):
            yield member_of(name, size, fault, content.read)


def members_of_zip(place: Location) -> Iterator[Member]:
    """See `archive_members`, of zip: a member that is damaged does not keep others from being read.

    Raises zipfile.BadZipFile, or others, for a directory that is damaged.
    """
    with place.filesystem.open_input_file(place.path) as file, opened(file) as archive:
        for name, size, fault, info in zip_members(archive):
            try:
                if fault:
                    yield member_of(name, size, fault, lambda _: b"")
                    continue
                with archive.open(info) as content:
                    yield member_of(name, size, "", content.read)
            except Exception as error:  # whatever it raises, it is about this member
                yield Member(text_of(name), size, BadImageError(f"damaged archive member: {error}"))


def member_of(name: bytes, size: int, fault: str, read: Callable[[int], bytes]) -> Member:
    """A member by what the archive says of it. `read`: gives its next bytes. Raises what that raises."""
    fault = fault or unsafe(name, size)
    if fault:
        return Member(text_of(name), size, BadImageError(f"unsafe archive member: {fault}"))
    head = read(HEAD)
    path = posixpath.normpath(text_of(name))  # of ./a.png, a.png
    if kind_of(head):
        return Member(path, size, b"".join((head, read(size - len(head)))))
    # By its name an image, it is refused for its content; else it is passed over.
    return Member(path, size, head if kind_by_name(path) else NoImageError(NO_IMAGE))


def unsafe(name: bytes, size: int) -> str:
    """Why a member of this name and size may not be read, or nothing."""
    if len(name) > LONGEST_NAME:
        return f"a name of {len(name):,} bytes"
    if not name:
        return "no name"
    parts = name.replace(b"\\", b"/").split(b"/")
    if not parts[0]:
        return "an absolute name"
    if b".." in parts:
        return "a name that climbs out"
    if b"\0" in name:
        return "a name with a zero byte"
    if not is_utf8(name):
        return "a name that is not UTF-8"
    return f"larger than {LARGEST_MEMBER >> 20} MiB" if size > LARGEST_MEMBER else ""


def text_of(name: bytes) -> str:
    """A name as text, of one that is too long its beginning; what is not UTF-8 as ``\\xf6``."""
    if len(name) > LONGEST_NAME:
        name = name[:SHOWN_NAME] + "…".encode()
    return name.decode(errors="backslashreplace")


def size_of(place: Location) -> int:
    """The bytes of a file; 0 where nobody knows."""
    try:
        return place.filesystem.get_file_info(place.path).size or 0
    except OSError:
        return 0
