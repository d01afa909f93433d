"""Which label is an image's. Pure functions; runs on the driver and in Spark tasks.

In: the paths that labels give for images, and the paths at which images are. Out: one name for both. A
label's name is the shortest end of its path that no other label's path has: the file name where that
is unique, else ``patient00001/study1/view1_frontal.jpg``. An image has the longest end of its path
that is a label's name. One letter in two encodings of Unicode is one letter, and a name without the
extension of an image stands for the image with one.
"""

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from chexspark.ingestion.kinds import EXTENSIONS


def plain_path(path: str) -> str:
    """A path with composed letters, ``/`` between folders, and nothing that says the same folder."""
    path = unicodedata.normalize("NFC", path.strip())
    if "/" not in path:
        path = path.replace("\\", "/")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def ends(path: str) -> list[str]:
    """All ends of a plain path at a folder's border, the shortest first."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]


def label_names(paths: Iterable[str]) -> dict[str, str]:
    """The name of each label, by the path that it gives for its image. Equal paths have one name."""
    plain = {path: plain_path(path) for path in paths}
    shared = Counter(posixpath.basename(path) for path in set(plain.values()))
    long = {path for path in plain.values() if shared[posixpath.basename(path)] > 1}
    times = Counter(end for path in long for end in ends(path))
    return {
        given: next((end for end in ends(path) if times[end] == 1), path)
        if path in long
        else posixpath.basename(path)
        for given, path in plain.items()
    }


def without_extension(path: str) -> str:
    """A path without the extension of an image, if it has one."""
    stem, extension = posixpath.splitext(path)
    return stem if extension.lower() in EXTENSIONS else path


def label_name(path: str, names: Collection[str]) -> str | None:
    """The longest end of an image's path that is one of `names`, with or without its extension."""
    path = plain_path(path)
    for end in reversed(ends(path)):
        if end in names:
            return end
        stem = without_extension(end)
        if stem in names:
            return stem
    return None


def common_parts(path: str, other: str) -> int:
    """How many parts two paths have in common, from the end; extensions of images do not count."""
    pairs = zip(
        without_extension(plain_path(path)).split("/")[::-1],
        without_extension(plain_path(other)).split("/")[::-1],
        strict=False,
    )
    number = 0
    for one, two in pairs:
        if one != two:
            break
        number += 1
    return number
