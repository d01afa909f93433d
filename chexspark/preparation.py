"""How image files become the square images of a store: one mapping for pixels, boxes and maps. Pure; runs
anywhere.

In: the size of an original image, and how it is fitted into a square. Out: which part of it lies where.
A store has one `Preparation`, and a run that of its store: what the model is shown is made alike.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

STRETCH, PAD, CROP = "stretch", "pad", "crop"
LARGEST = 2048  # pixels of a side of a stored image
FITS = (PAD, STRETCH, CROP)
FITTED = {PAD: "padded with black", STRETCH: "stretched", CROP: "cut to their middle"}  # for people
DEPTHS = range(8, 17)  # bits of the samples in a 16-bit PNG, as they may be declared


@dataclass(frozen=True)
class Preparation:
    """What is done to every image file. Raises ValueError for what cannot be."""

    size: int  # height and width of the result, pixels
    fit: str = STRETCH  # of FITS; stores and runs that do not say it are stretched
    bit_depth: int | None = None  # of 16-bit PNGs; None: found per file

    def __post_init__(self) -> None:
        """Check what a file may have given."""
        if type(self.size) is not int or not 1 <= self.size <= LARGEST:
            raise ValueError(f"image size is {self.size!r}")
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}, not one of {', '.join(FITS)}")
        if self.bit_depth is not None and (
            type(self.bit_depth) is not int or self.bit_depth not in DEPTHS
        ):
            raise ValueError(f"bit depth is {self.bit_depth!r}, not one of 8 to 16")

    @classmethod
    def of(cls, facts: Any) -> "Preparation":
        """From the JSON object that a file has: size, fit, bit_depth. Raises ValueError for another."""
        try:
            return cls(**facts)
        except TypeError as error:
            raise ValueError(f"is {facts!r}") from error

    def placing(self, width: int, height: int) -> "Placing":
        """Where an original of `width` × `height` pixels lies in its stored square."""
        return placing(width, height, self.size, self.fit)

    def words(self) -> str:
        """For people: ``320 pixels, fit pad, bit depth 12``."""
        depth = "" if self.bit_depth is None else f", bit depth {self.bit_depth}"
        return f"{self.size} pixels, fit {self.fit}{depth}"


class Rectangle(NamedTuple):
    """Whole pixels: `x`, `y` of the upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Placing:
    """Where an original image lies in its stored square."""

    width: int  # of the original, pixels
    height: int
    size: int  # of the stored image
    part: Rectangle  # of the original, that is stored
    place: Rectangle  # of the stored image, that the part fills; the others are black

    def visible(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes clipped to the part that is stored: float64 (boxes, 4), x, y, width, height of the original.

        One that lies outside it has no width or no height.
        """
        x, y, width, height = self.part
        corners = [boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        first, last = (np.clip(each, [x, y], [x + width, y + height]) for each in corners)
        return np.hstack([first, last - first])

    def stored(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the original, float64 (boxes, 4), as they lie in the stored image, in its pixels.

        They are clipped as by `visible`.
        """
        scale = np.array(self.place[2:]) / np.array(self.part[2:])  # across and down
        seen = self.visible(boxes)
        seen[:, :2] = (seen[:, :2] - self.part[:2]) * scale + self.place[:2]
        seen[:, 2:] *= scale
        return seen


def placing(width: int, height: int, size: int, fit: str) -> Placing:
    """Where an original of `width` × `height` pixels lies in a square of `size`.

    ``stretch``: all of it fills the square, whatever that does to its shape. ``pad``: all of it, its longer
    side as long as the square's, in the middle. ``crop``: the largest square in its middle. What cannot be
    halved is one pixel nearer to the upper left.
    """
    whole, square = Rectangle(0, 0, width, height), Rectangle(0, 0, size, size)
    if fit == STRETCH:
        return Placing(width, height, size, whole, square)
    if fit == CROP:
        side = min(width, height)
        part = Rectangle((width - side) // 2, (height - side) // 2, side, side)
        return Placing(width, height, size, part, square)
    across, down = (max(1, round(side * size / max(width, height))) for side in (width, height))
    place = Rectangle((size - across) // 2, (size - down) // 2, across, down)
    return Placing(width, height, size, whole, place)
