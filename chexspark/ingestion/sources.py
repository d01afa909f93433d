"""Where the images are. Runs on the driver; archives are read in Spark tasks.

In: folders, globs and tar archives, as the user wrote them. Out: the list of loose image files and
of archives; and, for an archive, its members one after the other, never unpacked to disk.
"""

import fnmatch
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.ingestion.images import EXTENSIONS, BadImageError
from chexspark.storage import Location, locate

IMAGES = tuple(EXTENSIONS)
ARCHIVES = (".tar", ".tar.gz", ".tgz")
WILD = "*?["
LARGEST_MEMBER = 1 << 30  # bytes; no chest X-ray is near it


@dataclass(frozen=True)
class SourceFile:
    """An image file or an archive. `uri` is what `locate` takes; `bytes` its size."""

    uri: str
    name: str
    bytes: int
    modified: str  # time of the last change, so that a file that was written over is another


class ImageFile(NamedTuple):
    """One image of a task, from a loose file or an archive."""

    name: str  # the file's own, or the member's; of a damaged archive, the archive's
    path: str  # where it is: a URI, for a member ``archive!member``
    size: int  # bytes
    content: bytes | BadImageError  # BadImageError says why there is none


def find_sources(images: tuple[str, ...]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return the image files and the archives that the user means, each sorted by name.

    A folder is searched through; a glob's ``*`` also crosses ``/``. Raises UserError for one that
    has nothing to offer, and for DICOM files where pydicom is not installed.
    """
    found: dict[str, SourceFile] = {}
    for given in images:
        matches = matching(given)
        if not matches:
            raise UserError(
                f"--images={given} has no file that ends with {', '.join(IMAGES + ARCHIVES)}"
            )
        found |= {source.uri: source for source in matches}
    if any(source.name.lower().endswith(".dcm") for source in found.values()):
        check_extra("dicom", "a DICOM file of --images")
    ordered = sorted(found.values(), key=lambda source: (source.name, source.uri))
    archives = [source for source in ordered if is_archive(source)]
    return [source for source in ordered if not is_archive(source)], archives


def is_archive(source: SourceFile) -> bool:
    """Whether a source is an archive, by its name."""
    return source.name.lower().endswith(ARCHIVES)


def matching(given: str) -> list[SourceFile]:
    """The usable files of one folder, glob or file. Raises UserError when it is not there."""
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
        if info.base_name.lower().endswith(IMAGES + ARCHIVES)
        and (pattern is None or fnmatch.fnmatchcase(info.path, pattern))
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
            except OSError as error:
                content = BadImageError(f"cannot be read: {error}")
            yield ImageFile(source.name, source.uri, source.bytes, content)
            continue
        seen = set()
        for member, size, content in archive_members(source.uri):
            if member in seen:
                content = BadImageError("duplicate: the archive has this member twice")
            seen.add(member)
            path = f"{source.uri}!{member}" if member else source.uri
            yield ImageFile(posixpath.basename(member) or source.name, path, size, content)


def archive_members(archive: str) -> Iterator[tuple[str, int, bytes | BadImageError]]:
    """Yield path, size and content of each image of a tar archive, in the archive's order.

    A link, a device, or a name that is absolute or climbs with ``..`` comes as BadImageError, and so
    does an archive that breaks off, under the archive's own name.
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
                elif member.name.lower().endswith(IMAGES) and (file := tar.extractfile(member)):
                    yield member.name, member.size, file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
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
