"""``--weights imagenet``: files that were given once, kept and known by their digests. Driver and ranks.

In: the name of a network, and a run. Out: the path of its ImageNet weights. A file that the user gives by path,
and that is one which Keras applications or torchvision publish (`models.MODELS`), is copied to the user's cache; from then on
``imagenet`` stands for it. Nothing is fetched. The driver puts a copy into the run, where ranks on other hosts
find it. Whoever opens one compares its digest first: MD5, which is what Keras publishes, or the first digits of the
SHA-256 that torchvision's file has in its name.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from chexspark.errors import UserError, spoken
from chexspark.models import MODELS, Published
from chexspark.run.folder import RunFolder
from chexspark.storage import Location, locate

IMAGENET, RANDOM = "imagenet", "none"  # what --weights may be instead of a path
MOST_BYTES = 200 << 20  # of a file that is looked at; the largest published are some 110 MB
log = logging.getLogger(__name__)


def published_of(name: str) -> tuple[Published, ...]:
    """The published files of a network's ImageNet weights."""
    return MODELS[name].imagenet if name in MODELS else ()


def words_of(name: str) -> str:
    """Which files those are, where they are published and their digests, for a message."""
    return ", or ".join(f"{each.uri} ({each.digest_words})" for each in published_of(name))


def cached(published: Published) -> Location:
    """Where the user's cache keeps a file. Raises UserError where there is no home."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError(f"--weights={IMAGENET}: there is no home, and no XDG_CACHE_HOME") from error
    return locate(str(Path(cache) / "chexspark" / "weights")) / published.file


def is_published(content: bytes, name: str) -> Published | None:
    """Which published file of a network's this content is, by its digest."""
    for each in published_of(name):
        digest = hashlib.new(each.algorithm, content, usedforsecurity=False).hexdigest()
        if digest.startswith(each.digest):
            return each
    return None


def imagenet_place(name: str, run: RunFolder | None = None) -> Location:
    """The file of a network's ImageNet weights: the run's, or else the cache's.

    Raises UserError where neither has it, where it is damaged, or where none is published.
    """
    if not published_of(name):
        raise UserError(
            f"--weights={IMAGENET}: no ImageNet weights of {name} are published: give a file"
        )
    places = [run.start_weights] if run else []
    for place in places + [cached(each) for each in published_of(name)]:
        if place.is_file():
            if is_published(place.read_bytes(), name) is None:
                raise UserError(
                    f"--weights={IMAGENET}: {place} is damaged: delete it, and give --weights=FILE once"
                )
            return place
    raise UserError(
        f"--weights={IMAGENET}: {name}'s are not here yet: give --weights=FILE once, the path of {words_of(name)}"
    )


def put_into(run: RunFolder, name: str) -> None:
    """Copy a network's ImageNet weights into a run, for its ranks. Raises UserError as `imagenet_place` does."""
    place = imagenet_place(name, run)
    if place.path != run.start_weights.path:
        run.start_weights.write_bytes(place.read_bytes())


def keep(name: str, place: Location) -> None:
    """Copy a file into the cache, if it is a published one of a network's that the cache lacks."""
    with contextlib.suppress(UserError, OSError):  # no home, or one that cannot be written
        lacking = [each for each in published_of(name) if not cached(each).is_file()]
        info = place.filesystem.get_file_info(place.path)
        if not lacking or info.size > MOST_BYTES:
            return
        content = place.read_bytes()
        found = is_published(content, name)
        if found in lacking:
            kept = cached(found)
            os.makedirs(os.path.dirname(kept.path), exist_ok=True)
            kept.write_bytes(content)
            log.info("%s", spoken(f"--weights={IMAGENET} is this file from now on, kept as {kept}"))


def take_out(run: RunFolder) -> None:
    """Delete the copy in a run that has come to its end."""
    with contextlib.suppress(OSError):
        run.start_weights.filesystem.delete_file(run.start_weights.path)
