"""Images for the report: where the model is right and where it is wrong. Pure; runs on the driver.

In: predictions and metrics of a split. Out: for the most frequent findings, the most certain image
that was found, missed, and falsely called, with its map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd

from chexspark.evaluation.localisation import box_fractions
from chexspark.evaluation.metrics import Metric
from chexspark.evaluation.predictions import label_column, probability_column
from chexspark.findings import is_mean

if TYPE_CHECKING:
    from chexspark.evaluation.maps import Mapped

FINDINGS_SHOWN = 4
KINDS = ("found", "missed", "false alarm")


class ExampleRow(TypedDict):
    """A row of ``examples``: an image with its map."""

    finding: str
    kind: str  # one of KINDS
    image_index: str
    probability: float
    threshold: float
    size: int  # height and width of `pixels`
    pixels: bytes  # uint8
    map_height: int
    map_width: int
    map: bytes  # float32
    boxes: list[list[float]]  # x, y, width, height as fractions of the image


@dataclass(frozen=True)
class Example:
    """An image that stands for how the model does on a finding."""

    finding: str
    kind: str  # one of KINDS
    name: str
    probability: float
    threshold: float


def choose_examples(table: pd.DataFrame, records: Sequence[Metric]) -> list[Example]:
    """For each of the most frequent findings with a threshold, an image of each kind, if there is one.

    Of each kind the most certain: the highest probability found, the lowest missed, the highest
    falsely called. Ties go to the first name. `table`: predictions; `records`: their metrics.
    """
    known = [
        (r["positives"], r["finding"], r["threshold_youden"])
        for r in records
        if not is_mean(r["finding"]) and r["threshold_youden"] is not None and r["positives"]
    ]
    examples = []
    for _, finding, threshold in sorted(known, key=lambda each: -each[0])[:FINDINGS_SHOWN]:
        label = table[label_column(finding)].to_numpy()
        score = table[probability_column(finding)].to_numpy()
        called = score >= threshold
        choices = (((label == 1) & called, -score), ((label == 1) & ~called, score),
                   ((label == 0) & called, -score))  # fmt: skip
        for kind, (rows, order) in zip(KINDS, choices, strict=True):
            if rows.any():
                row = int(np.argmin(np.where(rows, order, np.inf)))
                name = table["image_index"].iloc[row]
                examples.append(Example(finding, kind, name, float(score[row]), threshold))
    return examples


def example_row(example: Example, mapped: "Mapped", boxes: pd.DataFrame | None) -> ExampleRow:
    """A row of ``OUT/examples``. `boxes`: in pixels of the original image. Raises ValueError without pixels."""
    if mapped.pixels is None:
        raise ValueError(f"{mapped.name} was mapped without its pixels")
    activation = mapped.map_of(example.finding)
    return {
        "finding": example.finding, "kind": example.kind, "image_index": example.name,
        "probability": example.probability, "threshold": example.threshold,
        "size": len(mapped.pixels), "pixels": mapped.pixels.tobytes(),
        "map_height": activation.shape[0], "map_width": activation.shape[1],
        "map": activation.astype(np.float32).tobytes(),
        "boxes": box_fractions(boxes, mapped, example.finding).tolist(),
    }  # fmt: skip
