"""Where the images are. Runs on the driver; archives are read in Spark tasks.

In: folders, globs, files and archives, as the user wrote them. Out: the list of loose image files, of
archives, and of files that are neither; and the images of some of them. A file whose name does not say
what it is is known by its first bytes.
"""

import fnmatch
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.ingestion.archives import (
    ARCHIVES,
    LARGEST_MEMBER,
    archive_members,
    is_archive_name,
)
from chexspark.ingestion.image_errors import BadImageError, NoImageError
from chexspark.ingestion.kinds import DICOM, EXTENSIONS, HEAD, OF_MACOS, kind_by_name, kind_of
from chexspark.ingestion.listing import files_below
from chexspark.storage import Location, absolute, locate

IMAGES = tuple(EXTENSIONS)
WILD = "*?["
ARCHIVE, UNREADABLE = "archive", "unreadable"
READERS = 16  # files whose first bytes are read at a time
SHOWN, LISTED_ENDS = 3, 8  # examples, and kinds, of what is passed over


@dataclass(frozen=True)
class SourceFile:
    """An image file or an archive. `uri` is what `locate` takes; `bytes` its size."""

    uri: str
    name: str
    bytes: int
    modified: str  # time of the last change, so that a file that was written over is another
    fault: str = ""  # why it cannot be read, where that is known
    file: str = ""  # which file of the disk it is, where that is known: of links, what they lead to


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


def same_file(one: SourceFile, other: SourceFile) -> bool:
    """Whether two paths are one, or lead to one file by links."""
    return one.uri == other.uri or one.file == other.file != ""


def find_sources(images: tuple[str, ...]) -> Sources:
    """Return the image files and the archives that the user means, and what is neither.

    A folder is searched through, and links in it are followed; a glob's ``*`` also crosses ``/``. A name
    that is there is that name, whatever letters it has. A file that cannot be read is among the image
    files, with the reason. Raises UserError for one that has nothing to offer, and for DICOM files where
    pydicom is not installed.
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
    kinds = {source.uri: kind_by_its_name(source) for source in sources}
    unknown = [s.uri for s in sources if kinds[s.uri] is None and not s.fault]
    with ThreadPoolExecutor(READERS) as readers:
        return kinds | dict(zip(unknown, readers.map(kind_by_content, unknown), strict=True))


def kind_by_its_name(source: SourceFile) -> str | None:
    """What the name of a source says that it is; of one that cannot be read, whether it may be an image."""
    kind = ARCHIVE if is_archive_name(source.name) else kind_by_name(source.name)
    if source.fault and not source.name.startswith(OF_MACOS):
        return UNREADABLE if kind or not posixpath.splitext(source.name)[1] else None
    return kind


def kind_by_content(uri: str) -> str | None:
    """What the first bytes of a file say that it is; nothing where it cannot be read."""
    try:
        return kind_of(locate(uri).read_bytes(HEAD))
    except OSError:
        return None


def is_archive(source: SourceFile) -> bool:
    """Whether a source is an archive that can be read, by its name."""
    return is_archive_name(source.name) and not source.fault


def passed_over_words(names: list[str]) -> str:
    """How many files were passed over, by what their names end with, and examples."""
    ends = Counter(
        f"of macOS, {OF_MACOS}*" if posixpath.basename(name).startswith(OF_MACOS)
        else posixpath.splitext(name)[1].lower() or "without extension"
        for name in names
    )  # fmt: skip
    counted = ", ".join(f"{number:,} {end}" for end, number in ends.most_common(LISTED_ENDS))
    examples = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
    return f"passed over, as no images: {len(names):,} ({counted}): {examples}"


def matching(given: str) -> list[SourceFile]:
    """The files of one folder, file or glob. Raises UserError when it is not there."""
    try:
        place, pattern = named(given)
        there = place.is_directory() if pattern else place.exists()
        found = files_below(place) if there else []
    except OSError as error:
        raise UserError(f"--images={given} cannot be read: {error}") from error
    if not there:
        raise UserError(f"--images={given}: there is no such file or folder")
    sources = {below(place, file.path): file for file in found}
    names = sources.keys() if pattern is None else fitting(sources, pattern)
    return [
        SourceFile(
            (place / name).uri if name else place.uri,
            posixpath.basename(sources[name].path),
            sources[name].size,
            sources[name].modified,
            sources[name].fault,
            sources[name].file,
        )
        for name in names
    ]


def named(given: str) -> tuple[Location, str | None]:
    """The place that a path names, and the pattern for what is below it, if it ends with one.

    What is there is a name and no pattern, also where it is but the beginning.
    """
    parts = absolute(given).split("/")
    wild = (i for i, part in enumerate(parts) if any(sign in part for sign in WILD))
    first = next(wild, len(parts))
    place = locate("/".join(parts[:first]) or "/")
    for end in range(len(parts), first, -1):
        longer = place / "/".join(parts[first:end])
        if longer.exists():
            return longer, "/".join(parts[end:]) or None
    return place, "/".join(parts[first:]) or None


def fitting(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a glob means; where some have its brackets as letters, these."""
    literal = pattern.replace("[", "[[]")
    return [n for n in names if fnmatch.fnmatchcase(n, literal)] or [
        n for n in names if fnmatch.fnmatchcase(n, pattern)
    ]


def below(place: Location, path: str) -> str:
    """A path of the file system as a name below `place`; empty for the place itself."""
    return "" if path == place.path else path[len(place.path) :].lstrip("/")


def read_source_images(sources: Iterable[SourceFile]) -> Iterator[ImageFile]:
    """Yield every image of some files and archives. A name that an archive has twice counts once."""
    for source in sources:
        if not is_archive(source):
            yield ImageFile(source.name, source.uri, source.bytes, content_of(source))
            continue
        seen = set()
        for member, size, content in archive_members(source.uri):
            if member in seen and not isinstance(content, NoImageError):
                content = BadImageError("duplicate: the archive has this member twice")
            seen.add(member)
            path = f"{source.uri}!{member}" if member else source.uri
            yield ImageFile(posixpath.basename(member) or source.name, path, size, content)


def content_of(source: SourceFile) -> bytes | BadImageError:
    """The bytes of a loose file, or why there are none."""
    if source.fault:
        return BadImageError(source.fault)
    try:
        content = locate(source.uri).read_bytes(LARGEST_MEMBER + 1)
    except Exception as error:  # whatever a file system raises, it is about this file
        return BadImageError(f"cannot be read: {error}")
    if len(content) > LARGEST_MEMBER:
        return BadImageError(f"too large: more than {LARGEST_MEMBER >> 20} MiB")
    return content
