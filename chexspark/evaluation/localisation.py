"""Whether a map points at what a radiologist boxed. Pure; runs on the driver.

In: class activation maps, and boxes in pixels of the original image. Out: one record per finding and
threshold, and for their mean: intersection over union, pointing game, hit rates.
A map is laid over the original image and scaled to 0–1; at a threshold, the box around the largest
connected region above it is what the model points out (Zhou et al. 2016, section 3.2). Of an image that
was cropped, only the part that the model was shown counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import cv2
import numpy as np
import pandas as pd

from chexspark.findings import MEAN
from chexspark.preparation import STRETCH, Placing, placing

if TYPE_CHECKING:
    from chexspark.evaluation.maps import Mapped

THRESHOLDS = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the map's range
HITS = {"hit_iou10": 0.10, "hit_iou25": 0.25, "hit_iou50": 0.50}
FLAT = 1e-9  # range of a map, as share of its values, that is rounding alone
TIED = 1e-6  # of the map's range: values so near each other differ by rounding alone
SIDES = ["x", "y", "width", "height"]
OUTSIDE = 0.01  # share of boxes outside their image above which they are of other files, and of a
# box's image by which it may lie outside and still be drawn


class Localisation(TypedDict):
    """A row of ``localisation``: one finding, or their mean, at one threshold of the map."""

    finding: str  # or MEAN
    threshold: float
    images: int
    boxes: int
    iou: float  # mean of an image's best box
    pointing_game: float
    hit_iou10: float  # share of images whose IoU reaches 0.1
    hit_iou25: float
    hit_iou50: float


def enlarge(activation: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map (h, w) over all of an image: float32 (height, width) of 0–1; zeros for a flat one."""
    return over_original(activation, placing(width, height, max(width, height), STRETCH))


def over_original(activation: np.ndarray, where: Placing) -> np.ndarray:
    """A map (h, w) of a stored image over its original: float32 (height, width).

    0–1 in the part that is stored, and zeros beside it; zeros for a map that is flat there.
    """
    x, y, width, height = where.part
    over = np.zeros((where.height, where.width), np.float32)
    down = interpolation(len(activation), where.size, where.place.y, where.place.height, height)
    across = interpolation(activation.shape[1], where.size, where.place.x, where.place.width, width)
    part = down @ activation.astype(np.float64) @ across.T
    if part.max() - part.min() > FLAT * np.abs(part).max():
        over[y : y + height, x : x + width] = (part - part.min()) / np.ptp(part)
    return over


def interpolation(cells: int, size: int, first: int, length: int, pixels: int) -> np.ndarray:
    """Weights of a map's `cells` at each of `pixels`, linear between their centres: float64 (pixels, cells).

    The cells divide `size` stored pixels evenly, of which the pixels divide the `length` from `first`.
    """
    centres = first + (np.arange(pixels) + 0.5) * length / pixels
    at = np.clip(centres * cells / size - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))


Box = tuple[float, float, float, float]  # x, y, width, height


def pointed_box(activation: np.ndarray, threshold: float) -> Box | None:
    """x, y, width, height around the largest region at or above the threshold; None without one.

    `activation`: (height, width); the box is in its pixels.
    """
    found = largest_region(activation >= threshold)
    return None if found is None else found.box


class Region(NamedTuple):
    """Connected pixels of a map."""

    box: Box  # around them
    x: float  # of their centre; the first pixel's own is at 0.5
    y: float


def largest_region(mask: np.ndarray) -> Region | None:
    """The largest region of a mask, bool (height, width); of equal ones the first, None without one."""
    number, _, statistics, centres = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    if number < 2:
        return None
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    x, y, width, height = (int(v) for v in statistics[largest, : cv2.CC_STAT_AREA])
    centre_x, centre_y = (float(v) + 0.5 for v in centres[largest])
    return Region((x, y, width, height), centre_x, centre_y)


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x, y, width, height), 0–1."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def points_at(activation: np.ndarray, boxes: Iterable[Sequence[float]]) -> bool:
    """Whether the map's largest value is inside a box: the pointing game (Zhang et al. 2018).

    `activation`: (height, width). Where neighbours share the largest value, as along the border of an
    enlarged map, their centre is the place; of several such regions the largest counts.
    """
    low, high = float(activation.min()), float(activation.max())
    region = largest_region(activation >= high - TIED * (high - low))
    if region is None:
        return False
    x, y = region.x, region.y
    return any(bx <= x <= bx + w and by <= y <= by + h for bx, by, w, h in boxes)


def box_fractions(boxes: pd.DataFrame | None, image: "Mapped", finding: str) -> np.ndarray:
    """The boxes of a finding in a stored image, as fractions of it: float64 (boxes, 4), x, y, width, height.

    Those that were drawn on another, larger file are left out, and those that a crop cuts away.
    """
    if boxes is None:
        return np.zeros((0, 4))
    of = (boxes["image_index"] == image.name) & (boxes["finding"] == finding)
    drawn = boxes[of][SIDES].to_numpy(float)
    where = image.placing
    ends = (drawn[:, :2] + drawn[:, 2:]) / [where.width, where.height]
    stored = where.stored(drawn[(ends <= 1 + OUTSIDE).all(axis=1)]) / where.size
    return stored[(stored[:, 2:] > 0).all(axis=1)]


def usable_boxes(
    boxes: pd.DataFrame, mapped: Mapping[str, "Mapped"]
) -> tuple[pd.DataFrame, list[str]]:
    """The boxes that lie in their image, clipped to what of it is stored, and notes.

    None where too many do not lie in their image.
    """
    images = [mapped[name] for name in boxes["image_index"]]
    width = np.array([image.placing.width for image in images])
    height = np.array([image.placing.height for image in images])
    inside = (boxes["x"] >= -1) & (boxes["y"] >= -1) & (boxes["width"] > 0) & (boxes["height"] > 0)
    inside &= (boxes["x"] + boxes["width"] <= width + 1) & (
        boxes["y"] + boxes["height"] <= height + 1
    )
    outside = int((~inside).sum())
    if outside > OUTSIDE * len(boxes):
        first = images[int(np.argmax(~inside.to_numpy()))]
        return boxes[:0], [
            f"no localisation: {outside:,} of {len(boxes):,} boxes lie outside their images, such as "
            f"{first.name} of {first.placing.width}x{first.placing.height} pixels: they were drawn on "
            "other files; ingest the images that they were drawn on"
        ]
    notes = [f"{outside} boxes lie outside their images and are left out"] if outside else []
    boxes = boxes[inside].copy()
    drawn = boxes[SIDES].to_numpy(float)
    places = [mapped[name].placing for name in boxes["image_index"]]
    seen = [where.visible(box[None])[0] for where, box in zip(places, drawn, strict=True)]
    boxes[SIDES] = np.array(seen).reshape(-1, 4)
    shown = (boxes["width"] > 0) & (boxes["height"] > 0)
    if not shown.all():
        notes.append(f"{int((~shown).sum()):,} boxes lie in what was cropped and are left out")
    return boxes[shown], notes


def localisation_records(
    boxes: pd.DataFrame, mapped: Mapping[str, "Mapped"], findings: Sequence[str]
) -> list[Localisation]:
    """Per finding and threshold: images, boxes, mean IoU (of an image's best box), pointing game,
    and the share of images whose IoU reaches 0.1, 0.25, 0.5; then their means over the findings.

    `boxes`: of `findings` only, as `usable_boxes` has them; `mapped`: image's name → its maps.
    """
    measured = []
    for (name, finding), drawn in boxes.groupby(["image_index", "finding"], sort=True):
        image = mapped[name]
        activation = over_original(image.map_of(finding), image.placing)
        truth = drawn[SIDES].to_numpy(float)
        pointing = bool(activation.any()) and points_at(activation, truth)
        for threshold in THRESHOLDS:
            found = pointed_box(activation, threshold)
            iou = 0.0 if found is None else max(overlap(found, box) for box in truth)
            measured.append((finding, threshold, len(truth), iou, float(pointing)))
    frame = pd.DataFrame(
        measured, columns=["finding", "threshold", "boxes", "iou", "pointing_game"]
    )
    for column, level in HITS.items():
        frame[column] = (frame["iou"] >= level).astype(float)
    rates = ["iou", "pointing_game", *HITS]
    groups = frame.groupby(["finding", "threshold"])
    table = groups[rates].mean().assign(images=groups.size(), boxes=groups["boxes"].sum())
    table = table.reset_index()
    means = table.groupby("threshold")[rates].mean()
    totals = table.groupby("threshold")[["images", "boxes"]].sum()
    means = means.join(totals).reset_index().assign(finding=MEAN)
    order = {name: i for i, name in enumerate((*findings, MEAN))}
    table = pd.concat([table, means]).sort_values(
        ["finding", "threshold"], key=lambda c: c.map(order) if c.name == "finding" else c
    )
    return cast(list[Localisation], table[list(Localisation.__annotations__)].to_dict("records"))


def best_thresholds(records: Iterable[Localisation]) -> list[Localisation]:
    """Of each finding the row whose threshold has the largest mean IoU; of equal ones the last."""
    best: dict[str, Localisation] = {}
    for record in records:
        if record["iou"] >= best.get(record["finding"], record)["iou"]:
            best[record["finding"]] = record
    return list(best.values())


def localisation_text(records: Iterable[Localisation]) -> str:
    """The best threshold's row of each finding, for the terminal."""
    best = best_thresholds(records)
    width = max(20, *(len(r["finding"]) + 2 for r in best))
    head = f"{'boxes':<{width}}{'images':>8}{'IoU':>8}{'pointing':>10}{'IoU>=0.1':>10}{'IoU>=0.25':>11}{'IoU>=0.5':>10}{'threshold':>11}"
    return "\n".join(
        [head]
        + [
            f"{r['finding']:<{width}}{r['images']:>8,}{r['iou']:>8.3f}{r['pointing_game']:>10.2f}"
            f"{r['hit_iou10']:>10.2f}{r['hit_iou25']:>11.2f}{r['hit_iou50']:>10.2f}{r['threshold']:>11.2f}"
            for r in best
        ]
    )
