"""A run and images in, pictures with class activation maps out. Runs on the driver and in Spark tasks."""

import posixpath

import numpy as np
import pandas as pd

from chexspark.arguments import takes
from chexspark.config import ExplainConfig
from chexspark.errors import RunFailedError, UserError, closest
from chexspark.evaluation.maps import Mapped, NoMapsError, map_images, map_stored
from chexspark.evaluation.pictures import encoded, enlarged, overlay
from chexspark.evaluation.runs import check_fit
from chexspark.findings import FINDINGS, finding_position
from chexspark.ingestion.images import BadImageError, decode, prepare
from chexspark.ingestion.sources import find_sources, read_source_images
from chexspark.run.folder import model_and_digest, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import check_run
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS, Manifest, read_boxes, read_manifest
from chexspark.store.row_groups import image_names, row_groups

PICTURE_SIDE = 512  # pixels, at least
BATCH = 16
MOST_IMAGES = 500  # pictures for people; chexspark evaluate measures maps by the thousand


@takes(ExplainConfig)
def explain(spark, config: ExplainConfig) -> pd.DataFrame:
    """Draw maps over X-rays, ``NAME-FINDING.png``; return a row per picture.

    Columns: image_index, finding, probability, label (None where not known), picture. Raises
    UserError for images that are not there or cannot be used.
    """
    run = run_folder(config.run)
    out = locate(config.out) if config.out else run.maps
    asked = asked_findings(config.findings)
    check_run(run)
    model = model_and_digest(run)
    boxes = None
    if config.data:
        store = locate(config.data)
        manifest = read_manifest(store)
        check_fit(store, run, manifest)
        groups = groups_with(store, manifest, config.images)
        boxes = read_boxes(store, manifest)
        spark = start_session(spark, "explain")
        wanted = frozenset(config.images)
        found = run_maps(
            lambda: map_stored(spark, groups, manifest.image_size, wanted, wanted, model, BATCH)
        )
        mapped = {name: found[name] for name in dict.fromkeys(config.images)}
        pictures = {name: enlarged(image.pixels, PICTURE_SIDE) for name, image in mapped.items()}
    else:
        size = read_lineage(run)["image_size"]
        pictures, prepared = read_images(config.images, size)
        spark = start_session(spark, "explain")
        mapped = run_maps(lambda: map_files(spark, prepared, model))
    out.make_directory()
    rows = [
        draw_overlay(image, pictures[name], position, boxes, out)
        for name, image in mapped.items()
        for position in (asked or default_findings(image))
    ]
    for row in rows:
        print(f"{row['finding']:<20}{row['probability']:>7.3f}  {row['picture']}")
    return pd.DataFrame(rows)


def asked_findings(names: tuple[str, ...]) -> list[int]:
    """Positions of the findings to draw. Raises UserError for one that is none of the 14."""
    positions = []
    for name in names:
        try:
            positions.append(finding_position(name))
        except KeyError:
            raise UserError(
                f"--findings {name} is none of the 14{closest(name, FINDINGS)} ({', '.join(FINDINGS)})"
            ) from None
    return positions


def default_findings(image: Mapped) -> list[int]:
    """The finding with the highest probability, then those that the label names."""
    named = np.flatnonzero(image.labels == 1).tolist()
    return list(dict.fromkeys([int(np.argmax(image.probabilities)), *named]))


def groups_with(store: Location, manifest: Manifest, names: tuple[str, ...]):
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
    if number > MOST_IMAGES:
        raise UserError(
            f"--images are {number:,}, but at most {MOST_IMAGES} are drawn at once: give fewer"
        )


def read_images(given: tuple[str, ...], size: int):
    """Pictures to draw on, and pixels as the model sees them, by name. Raises UserError."""
    files, archives = find_sources(given)
    if archives:
        raise UserError(f"--images {archives[0].uri} is an archive: give image files, unpacked")
    check_number(len(files))
    pictures, prepared = {}, {}
    for name, uri, _, content in read_source_images(files):
        if name in pictures:
            raise UserError(f"--images has {name} twice: give each name once")
        try:
            if isinstance(content, BadImageError):
                raise content
            prepared[name] = prepare(content, size, name)
            pictures[name] = enlarged(decode(content, name)[0], PICTURE_SIDE)
        except BadImageError as error:
            raise UserError(f"--images {uri} cannot be used: {error}") from error
    return pictures, prepared


def map_files(spark, prepared: dict, model: tuple[str, str]) -> dict[str, Mapped]:
    """Maps of prepared images, by name, in Spark tasks."""
    none = np.zeros(0, np.int8)

    def of_part(part):
        part = list(part)
        if not part:
            return []
        maps, probabilities = map_images(np.stack([i.pixels for _, i in part]), model, BATCH)
        return [
            Mapped(name, maps[k], probabilities[k], none, image.original_width,
                   image.original_height, None)
            for k, (name, image) in enumerate(part)
        ]  # fmt: skip

    with watched(spark, "activation maps", len(prepared)):
        items = list(prepared.items())
        parts = spark.sparkContext.parallelize(items, -(-len(items) // BATCH))
        found = {image.name: image for image in parts.mapPartitions(of_part).collect()}
    return {name: found[name] for name in prepared}


def run_maps(maps):
    """Call `maps`. Raises UserError for a model that has no maps."""
    try:
        return maps()
    except RunFailedError as error:
        if NoMapsError.__name__ in str(error):
            raise UserError(f"--run: no class activation maps: {error}") from error
        raise


def draw_overlay(image: Mapped, gray: np.ndarray, position: int, boxes, out: Location) -> dict:
    """Write one picture, the X-ray and beside it the X-ray with the map; return its row."""
    finding, drawn = FINDINGS[position], ()
    if boxes is not None:
        of = (boxes["image_index"] == image.name) & (boxes["finding"] == finding)
        sides = np.array([image.original_width, image.original_height] * 2)
        drawn = boxes[of][["x", "y", "width", "height"]].to_numpy(float) / sides
        drawn = drawn[(drawn[:, :2] + drawn[:, 2:] <= 1.01).all(axis=1)]
    plain = overlay(gray, image.maps[position] * 0)
    picture = np.hstack([plain, overlay(gray, image.maps[position], drawn)])
    stem = posixpath.splitext(image.name)[0]
    place = out / f"{stem}-{finding}.png"
    place.write_bytes(encoded(picture, ".png"))
    label = int(image.labels[position]) if len(image.labels) else None
    return {
        "image_index": image.name, "finding": finding,
        "probability": float(image.probabilities[position]),
        "label": None if label == -1 else label, "picture": str(place),
    }  # fmt: skip
