"""Whether a map points at what a radiologist boxed. Pure; runs on the driver.

In: class activation maps, and boxes in pixels of the original image. Out: one record per finding and
threshold, and for their mean: intersection over union, pointing game, hit rates.
A map is enlarged to the original image and scaled to 0–1; at a threshold, the box around the largest
connected region above it is what the model points out (Zhou et al. 2016, section 3.2).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import cv2
import numpy as np
import pandas as pd

from chexspark.findings import MEAN

if TYPE_CHECKING:
    from chexspark.evaluation.maps import Mapped

THRESHOLDS = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the map's range
HITS = {"hit_iou10": 0.10, "hit_iou25": 0.25, "hit_iou50": 0.50}
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
    """A map (h, w) over the original image: float32 (height, width) of 0–1; zeros for a flat one."""
    if not activation.max() > activation.min():
        return np.zeros((height, width), np.float32)
    size = (width, height)
    large = cv2.resize(activation.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return (large - large.min()) / np.ptp(large)


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
    """The boxes of a finding in an image, as fractions of it: float64 (boxes, 4), x, y, width, height.

    Those that were drawn on another, larger file are left out.
    """
    if boxes is None:
        return np.zeros((0, 4))
    of = (boxes["image_index"] == image.name) & (boxes["finding"] == finding)
    drawn = boxes[of][SIDES].to_numpy(float) / ([image.original_width, image.original_height] * 2)
    return drawn[(drawn[:, :2] + drawn[:, 2:] <= 1 + OUTSIDE).all(axis=1)]


def usable_boxes(
    boxes: pd.DataFrame, mapped: Mapping[str, "Mapped"]
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    """The boxes that lie in their image, and a note; none where too many do not."""
    images = [mapped[name] for name in boxes["image_index"]]
    width = np.array([image.original_width for image in images])
    height = np.array([image.original_height for image in images])
    inside = (boxes["x"] >= -1) & (boxes["y"] >= -1) & (boxes["width"] > 0) & (boxes["height"] > 0)
    inside &= (boxes["x"] + boxes["width"] <= width + 1) & (
        boxes["y"] + boxes["height"] <= height + 1
    )
    outside = int((~inside).sum())
    if outside > OUTSIDE * len(boxes):
        first = images[int(np.argmax(~inside.to_numpy()))]
        return boxes[:0], (
            f"no localisation: {outside:,} of {len(boxes):,} boxes lie outside their images, such as "
            f"{first.name} of {first.original_width}x{first.original_height} pixels: they were drawn on "
            "other files; ingest the images that they were drawn on"
        )
    note = f"{outside} boxes lie outside their images and are left out" if outside else ""
    return boxes[inside], note


def localisation_records(
    boxes: pd.DataFrame, mapped: Mapping[str, "Mapped"], findings: Sequence[str]
) -> list[Localisation]:
    """Per finding and threshold: images, boxes, mean IoU (of an image's best box), pointing game,
    and the share of images whose IoU reaches 0.1, 0.25, 0.5; then their means over the findings.

    `boxes`: of `findings` only, in pixels of the original image; `mapped`: image's name → its maps.
    """
    measured = []
    for (name, finding), drawn in boxes.groupby(["image_index", "finding"], sort=True):
        image = mapped[name]
        activation = enlarge(image.map_of(finding), image.original_width, image.original_height)
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
