"""A run and images in, pictures with class activation maps out. Runs on the driver and in Spark tasks."""

import hashlib
import logging
import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.config import ExplainConfig
from chexspark.errors import UserError, closest, listed
from chexspark.evaluation.inference import Model
from chexspark.evaluation.localisation import box_fractions, over_original
from chexspark.evaluation.maps import (
    Mapped,
    Mapper,
    NoMaps,
    StoredImages,
    by_name,
    map_images,
    map_stored,
)
from chexspark.evaluation.pictures import encoded, enlarged, overlay
from chexspark.evaluation.runs import best_models, check_fit, one_preparation
from chexspark.evaluation.tables import probability_text
from chexspark.findings import UNKNOWN, column_name, find
from chexspark.ingestion.images import BadImageError, StoredImage, decode, prepare
from chexspark.ingestion.sources import find_sources, read_source_images
from chexspark.preparation import Preparation
from chexspark.run.folder import run_folder
from chexspark.run.settings import check_run
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.spark_tasks import in_tasks
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS, Manifest, read_boxes, read_manifest
from chexspark.store.row_groups import RowGroup, image_names, row_groups

log = logging.getLogger(__name__)

MOST_LETTERS = 120  # of the name of a picture
PICTURE_SIDE = 512  # pixels, at least
BATCH = 16
MOST_IMAGES = 500  # pictures for people; chexspark evaluate measures maps by the thousand


class Drawn(NamedTuple):
    """A picture that was written: a row of what `explain` returns."""

    image_index: str
    finding: str
    probability: float
    label: int | None  # 1 or 0; None where it is not known
    picture: str  # where it is


@takes(ExplainConfig)
def explain(spark: SparkSession | None, config: ExplainConfig) -> pd.DataFrame:
    """Draw maps over X-rays, ``NAME-FINDING.png``; return a row per picture.

    Columns: image_index, finding, probability, label (None where not known), picture. Raises
    UserError for images that are not there or cannot be used.
    """
    run = run_folder(config.run)
    out = locate(config.out) if config.out else run.maps
    check_run(run)
    (model,) = best_models([run], config.model)
    asked = asked_findings(config.findings, model.findings)
    boxes, names = None, tuple(dict.fromkeys(config.images))
    if config.data:
        store = locate(config.data)
        manifest = read_manifest(store)
        check_fit(store, run, manifest)
        groups = groups_with(store, manifest, names)
        boxes = read_boxes(store, manifest)
        spark = start_session(spark, "explain")
        wanted = frozenset(names)
        stored = StoredImages(wanted, wanted, manifest.preparation, manifest.findings)
        mapped = all_mapped(map_stored(spark, groups, stored, Mapper(model, BATCH)), names)
        pictures = {image.name: picture_of(image) for image in mapped}
    else:
        how = one_preparation([run], config.bit_depth)
        pictures, prepared = read_images(config.images, how)
        spark = start_session(spark, "explain")
        mapped = all_mapped(map_files(spark, prepared, model, how), prepared)
    out.make_directory(config.private)
    rows = [
        draw_overlay(
            image, map_on_picture(image, finding), pictures[image.name], finding, boxes, out
        )
        for image in mapped
        for finding in (asked or default_findings(image))
    ]
    for row in rows:
        log.info("%s", f"{row.finding:<20}{probability_text(row.probability):>9}  {row.picture}")
    return pd.DataFrame(rows, columns=Drawn._fields)


def asked_findings(names: Iterable[str], findings: Sequence[str]) -> list[str]:
    """The run's findings to draw. Raises UserError for one that the run has not."""
    asked = []
    for name in names:
        position = find(name, findings)
        if position is None:
            raise UserError(
                f"--findings={name} is none of the run's{closest(name, findings)} ({listed(findings)})"
            )
        asked.append(findings[position])
    return asked


def default_findings(image: Mapped) -> list[str]:
    """The finding with the highest probability, then those that the label names."""
    named = [finding for finding in image.findings if image.label_of(finding) == 1]
    return list(dict.fromkeys([image.findings[int(np.argmax(image.probabilities))], *named]))


def groups_with(store: Location, manifest: Manifest, names: Sequence[str]) -> list[RowGroup]:
    """The row groups of any split that hold the images. Raises UserError for names not there."""
    check_number(len(names))
    left, groups = set(names), []
    for split in SPLITS:
        for group in row_groups(store, manifest, split):
            here = left.intersection(image_names(group)) if left else set()
            if here:
                groups.append(group)
                left -= here
    if left:
        raise UserError(
            f"--images: {len(left):,} of {len(names):,} are not in {store}, the first {min(left)} (names "
            "are those of the image files; leave out --data to give files)"
        )
    return groups


def check_number(number: int) -> None:
    """Raise UserError for more images than anybody looks at."""
    if number > MOST_IMAGES:
        raise UserError(
            f"--images are {number:,}, but at most {MOST_IMAGES} are drawn at once: give fewer"
        )


def read_images(
    given: tuple[str, ...], how: Preparation
) -> tuple[dict[str, np.ndarray], dict[str, StoredImage]]:
    """Pictures to draw on, uint8 (height, width), and images as the model sees them, by name.

    Raises UserError.
    """
    files, archives, _ = find_sources(given)
    if archives:
        raise UserError(f"--images={archives[0].uri} is an archive: give image files, unpacked")
    check_number(len(files))
    pictures: dict[str, np.ndarray] = {}
    prepared: dict[str, StoredImage] = {}
    for name, uri, _, content in read_source_images(files):
        if name in pictures:
            raise UserError(f"--images has {name} twice: give each name once")
        try:
            if isinstance(content, BadImageError):
                raise content
            prepared[name] = prepare(content, how, name)
            pictures[name] = enlarged(decode(content, name, how.bit_depth)[0], PICTURE_SIDE)
        except BadImageError as error:
            raise UserError(f"--images={uri} cannot be used: {error}") from error
    return pictures, prepared


def map_files(
    spark: SparkSession, prepared: dict[str, StoredImage], model: Model, how: Preparation
) -> dict[str, Mapped] | NoMaps:
    """Maps of prepared images, by name, in Spark tasks."""

    def of_part(images: dict[str, StoredImage]) -> list[Mapped | NoMaps]:
        found = map_images(np.stack([i.pixels for i in images.values()]), Mapper(model, BATCH))
        if isinstance(found, NoMaps):
            return [found]
        return [
            Mapped(name, model.findings, found.maps[k], found.probabilities[k], {},
                   how.placing(image.original_width, image.original_height), None)
            for k, (name, image) in enumerate(images.items())
        ]  # fmt: skip

    with watched(spark, "activation maps", len(prepared)):
        items = list(prepared.items())
        parts = [dict(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
        return by_name(list(chain.from_iterable(in_tasks(spark, parts, of_part))))


def all_mapped(mapped: dict[str, Mapped] | NoMaps, names: Iterable[str]) -> list[Mapped]:
    """The images in order. Raises UserError for a model that has no maps."""
    if isinstance(mapped, NoMaps):
        raise UserError(f"--run: no class activation maps: {mapped.reason}")
    return [mapped[name] for name in names]


def picture_of(image: Mapped) -> np.ndarray:
    """The stored pixels, large enough for people: uint8 (height, width)."""
    if image.pixels is None:
        raise ValueError(f"{image.name} was mapped without its pixels")
    return enlarged(image.pixels, PICTURE_SIDE)


def map_on_picture(image: Mapped, finding: str) -> np.ndarray:
    """A finding's map over what is drawn: float32 (h, w), of a stored image its own, else the original's."""
    activation = image.map_of(finding)
    return activation if image.pixels is not None else over_original(activation, image.placing)


def picture_stem(name: str) -> str:
    """What the picture of an image is called, without extension: a name right below its folder.

    Of a name with folders in it, or with letters that no file's name may have, they become ``_``, and a
    part of the name's digest keeps it apart from others.
    """
    stem = posixpath.splitext(name)[0]
    plain = re.sub(r"[/\\\x00-\x1f]", "_", stem)[-MOST_LETTERS:]
    return plain if plain == stem else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def draw_overlay(
    image: Mapped, activation: np.ndarray, gray: np.ndarray, finding: str, boxes: pd.DataFrame | None,
    out: Location,
) -> Drawn:  # fmt: skip
    """Write one picture, the X-ray and beside it the X-ray with the map; return its row.

    `activation`: (h, w) over all of `gray`, uint8 (height, width); `boxes`: in pixels of the original
    image, and drawn where `gray` is the stored one.
    """
    drawn = box_fractions(boxes, image, finding)
    picture = np.hstack([overlay(gray, activation * 0), overlay(gray, activation, drawn)])
    place = out / f"{picture_stem(image.name)}-{column_name(finding)}.png"
    place.write_bytes(encoded(picture, ".png"))
    label, probability = image.label_of(finding), image.probabilities[image.findings.index(finding)]
    return Drawn(
        image.name, finding, float(probability), None if label == UNKNOWN else label, str(place)
    )
