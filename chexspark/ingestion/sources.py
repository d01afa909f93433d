"""Where the images are. Runs on the driver; archives are read in Spark tasks.

In: folders, globs and tar archives, as the user wrote them. Out: the list of loose image files, of
archives, and of files that are neither; and, for an archive, its members one after the other, never
unpacked to disk. A file whose name does not say what it is is known by its first bytes.
"""

import fnmatch
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.ingestion.images import BadImageError, NoImageError
from chexspark.ingestion.kinds import DICOM, EXTENSIONS, HEAD, kind_of
from chexspark.storage import Location, locate

IMAGES = tuple(EXTENSIONS)
ARCHIVES = (".tar", ".tar.gz", ".tgz")
WILD = "*?["
ARCHIVE, KINDS = "archive", frozenset(EXTENSIONS.values())
READERS = 16  # files whose first bytes are read at a time
SHOWN, LISTED_ENDS = 3, 8  # examples, and kinds, of what is passed over
NO_IMAGE = "passed over: not a PNG, JPEG or DICOM file"
LARGEST_MEMBER = 1 << 30  # bytes; no chest X-ray is near it


@dataclass(frozen=True)
class SourceFile:
    """An image file or an archive. `uri` is what `locate` takes; `bytes` its size."""

    uri: str
    name: str
    bytes: int
    modified: str  # time of the last change, so that a file that was written over is another


class Sources(NamedTuple):
    """What the user's folders, globs and files have, each sorted by name."""

    files: list[SourceFile]
    archives: list[SourceFile]
    passed_over: list[SourceFile]  # neither by name nor by content an image or an archive


class ImageFile(NamedTuple):
    """One image of a task, from a loose file or an archive."""

    name: str  # the file's own, or the member's; of a damaged archive, the archive's
    path: str  # where it is: a URI, for a member ``archive!member``
    size: int  # bytes
    content: bytes | BadImageError  # BadImageError says why there is none; NoImageError: no image


def find_sources(images: tuple[str, ...]) -> Sources:
    """Return the image files and the archives that the user means, and what is neither.

    A folder is searched through; a glob's ``*`` also crosses ``/``. Raises UserError for one that
    has nothing to offer, and for DICOM files where pydicom is not installed.
    """
    found: dict[str, SourceFile] = {}
    kinds: dict[str, str | None] = {}
    for given in images:
        matches = matching(given)
        new = kinds_of(matches)
        if not any(new.values()):
            raise UserError(
                f"--images={given} has no file that ends with {', '.join(IMAGES + ARCHIVES)}, or that "
                "is an image by its content"
            )
        found |= {source.uri: source for source in matches}
        kinds |= new
    if DICOM in kinds.values():
        check_extra("dicom", "a DICOM file of --images")
    sources = Sources([], [], [])
    for source in sorted(found.values(), key=lambda source: (source.name, source.uri)):
        kind = kinds[source.uri]
        place = sources.archives if kind == ARCHIVE else sources.files
        (place if kind else sources.passed_over).append(source)
    return sources


def kinds_of(sources: list[SourceFile]) -> dict[str, str | None]:
    """What each file is, by URI: by its name, else by its first bytes; None: no image and no archive."""
    kinds = {source.uri: kind_by_name(source.name) for source in sources}
    unknown = [uri for uri, kind in kinds.items() if kind is None]
    with ThreadPoolExecutor(READERS) as readers:
        return kinds | dict(zip(unknown, readers.map(kind_by_content, unknown), strict=True))


def kind_by_name(name: str) -> str | None:
    """What the name of a file says that it is."""
    if name.lower().endswith(ARCHIVES):
        return ARCHIVE
    return next((kind for end, kind in EXTENSIONS.items() if name.lower().endswith(end)), None)


def kind_by_content(uri: str) -> str | None:
    """What the first bytes of a file say that it is; nothing where it cannot be read."""
    try:
        return kind_of(locate(uri).read_bytes(HEAD))
    except OSError:
        return None


def is_archive(source: SourceFile) -> bool:
    """Whether a source is an archive, by its name."""
    return kind_by_name(source.name) == ARCHIVE


def passed_over_words(names: list[str]) -> str:
    """How many files were passed over, by what their names end with, and examples."""
    ends = Counter(posixpath.splitext(name)[1].lower() or "without extension" for name in names)
    counted = ", ".join(f"{number:,} {end}" for end, number in ends.most_common(LISTED_ENDS))
    examples = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
    return f"passed over, as no images: {len(names):,} ({counted}): {examples}"


def matching(given: str) -> list[SourceFile]:
    """The files of one folder, glob or file. Raises UserError when it is not there."""
    pattern = None
    folder = given
    if any(sign in given for sign in WILD):
        first = min(given.index(sign) for sign in WILD if sign in given)
        folder = given[:first].rpartition("/")[0] or ("/" if given.startswith("/") else ".")
        pattern = posixpath.join(locate(folder).path, given[len(folder) :].lstrip("/"))
        if folder == ".":
            pattern = posixpath.join(locate(folder).path, given)
    place = locate(folder)
    if not place.exists() or (pattern and not place.is_directory()):
        raise UserError(f"--images={given}: there is no such file or folder")
    infos = (
        place.list_files() if place.is_directory() else [place.filesystem.get_file_info(place.path)]
    )
    return [
        SourceFile(uri_of(place, info.path), info.base_name, info.size, str(info.mtime))
        for info in infos
        if pattern is None or fnmatch.fnmatchcase(info.path, pattern)
    ]


def uri_of(place: Location, path: str) -> str:
    """The URI of a file below `place` from its path on the file system."""
    return place.uri if path == place.path else (place / path[len(place.path) :].lstrip("/")).uri


def read_source_images(sources: Iterable[SourceFile]) -> Iterator[ImageFile]:
    """Yield every image of some files and archives. A name that an archive has twice counts once."""
    for source in sources:
        content: bytes | BadImageError
        if not is_archive(source):
            try:
                content = locate(source.uri).read_bytes()
            except Exception as error:  # whatever a file system raises, it is about this file
                content = BadImageError(f"cannot be read: {error}")
            yield ImageFile(source.name, source.uri, source.bytes, content)
            continue
        seen = set()
        for member, size, content in archive_members(source.uri):
            if member in seen and not isinstance(content, NoImageError):
                content = BadImageError("duplicate: the archive has this member twice")
            seen.add(member)
            path = f"{source.uri}!{member}" if member else source.uri
            yield ImageFile(posixpath.basename(member) or source.name, path, size, content)


def archive_members(archive: str) -> Iterator[tuple[str, int, bytes | BadImageError]]:
    """Yield path, size and content of each file of a tar archive, in the archive's order.

    A link, a device, or a name that is absolute or climbs with ``..`` comes as BadImageError, and so
    does an archive that breaks off, under the archive's own name; what is no image as NoImageError.
    """
    place = locate(archive)
    try:
        with (
            place.filesystem.open_input_stream(place.path, compression=compression(archive)) as raw,
            tarfile.open(fileobj=raw, mode="r|", bufsize=1 << 20) as tar,
        ):
            for member in tar:
                reason = unsafe(member)
                if reason:
                    yield (
                        member.name,
                        member.size,
                        BadImageError(f"unsafe archive member: {reason}"),
                    )
                elif file := tar.extractfile(member):
                    head = file.read(HEAD)
                    known = kind_by_name(member.name) in KINDS or kind_of(head)
                    yield (
                        member.name,
                        member.size,
                        head + file.read() if known else NoImageError(NO_IMAGE),
                    )
    except Exception as error:  # whatever a decompressor raises, it is about this archive
        yield (
            "",
            place.filesystem.get_file_info(place.path).size,
            BadImageError(
                f"damaged archive: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ),
        )


def compression(archive: str) -> str | None:
    """How an archive is compressed, in pyarrow's words, by its name."""
    return "gzip" if archive.lower().endswith(("gz", "tgz")) else None


def unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member may not be read, or None."""
    if member.issym() or member.islnk():
        return "a link"
    if member.isdev():
        return "a device"
    if member.name.startswith("/"):
        return "an absolute name"
    if ".." in member.name.split("/"):
        return "a name that climbs out"
    if member.size > LARGEST_MEMBER:
        return "larger than 1 GiB"
    return None
