"""A synthetic release in NIH's form, of chest-like phantoms. Runs anywhere.

In: a folder, a number of images, their size, a seed. Out: ``images/*.png``, ``Data_Entry_2017.csv``,
``BBox_List_2017.csv``, ``train_val_list.txt`` and ``test_list.txt``, spelled as NIH's are. Each of
the 14 findings is a sign drawn inside a known box. The phantoms are for trying the software; what
is learned from them says nothing about patients.

    chexspark phantom --out FOLDER --images 1200 --size 64
"""

import csv
import io
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from chexspark.arguments import takes
from chexspark.config import PhantomConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS, NO_FINDING
from chexspark.progress import ProgressLine
from chexspark.storage import Location, locate

log = logging.getLogger(__name__)
SYNTHETIC = ("Source", "synthetic chest X-ray (chexspark phantom)")  # the PNGs' text: keyword, text
PREVALENCE = 0.13  # of each finding, independently: rarer ones would need more images to learn
SIDED = (
    "Effusion",
    "Mass",
    "Pneumothorax",
    "Pleural_Thickening",
)  # that may have lookalikes across the chest
IMAGES_PER_PATIENT = 3
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Box:
    """A sign's place in pixels: upper left corner, width, height."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Anatomy:
    """What is a patient's own, and so in each of their images. Lengths are shares of the image's side."""

    breadth: float  # of the whole chest; 1 is the usual
    height: float
    lung_width: float
    lung_height: float
    heart_x: float
    heart_width: float
    heart_height: float
    domes: tuple[float, float]  # how far the diaphragm rises, right and left
    collarbone: float
    spine: float
    ribs: float  # from top to bottom
    rib_phase: float
    rib_slope: float
    rib_brightness: float
    bend: np.ndarray  # (2, 4, 4): how far the chest is out of shape, down and to the right
    tissue: np.ndarray  # (14, 14): brightness of what lies before and behind


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    """A patient's anatomy: no two are alike, and none is ill."""
    among = random.uniform
    return Anatomy(
        breadth=among(0.92, 1.06),
        height=among(0.92, 1.05),
        lung_width=among(0.14, 0.165),
        lung_height=among(0.34, 0.39),
        heart_x=among(0.525, 0.56),
        heart_width=among(0.085, 0.12),
        heart_height=among(0.12, 0.16),
        domes=(among(0.0, 0.06), among(-0.02, 0.04)),
        collarbone=among(0.13, 0.19),
        spine=among(0.035, 0.055),
        ribs=among(7, 11),
        rib_phase=among(0, 1),
        rib_slope=among(2, 4),
        rib_brightness=among(8, 16),
        bend=random.normal(0, 0.008, (2, 4, 4)),
        tissue=random.normal(0, 9, (14, 14)),
    )


class Canvas:
    """A float image (size, size) of 0–255, drawn on in coordinates of the chest.

    In these, 0–1 is the image's side for a patient of the usual shape who stands straight.
    """

    def __init__(self, size: int, random: np.random.Generator, anatomy: Anatomy) -> None:
        self.size, self.random, self.anatomy = size, random, anatomy
        self.pixels = np.zeros((size, size))
        right, down, turn = (random.uniform(-limit, limit) for limit in (0.01, 0.01, 0.03))
        y, x = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
        sine, cosine = np.sin(turn), np.cos(turn)
        bend_y, bend_x = (self.spread(grid) for grid in anatomy.bend)
        self.x = 0.5 + (x * cosine + y * sine - right) / anatomy.breadth + bend_x
        self.y = 0.5 + (y * cosine - x * sine - down) / anatomy.height + bend_y

    def spread(self, grid: np.ndarray) -> np.ndarray:
        """Values (rows, columns) over the whole image, smoothly: (size, size)."""
        return cv2.resize(grid, (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def ellipse(self, x: float, y: float, rx: float, ry: float, soft: float = 0.08) -> np.ndarray:
        """A mask of 0–1 with an edge that is `soft` of the radius wide."""
        distance = np.hypot((self.x - x) / rx, (self.y - y) / ry)
        return np.clip((1 - distance) / soft, 0, 1)

    def add(self, mask: np.ndarray, brightness: float | np.ndarray) -> None:
        """Make what a mask (size, size) of 0–1 covers brighter, or darker."""
        self.pixels += mask * brightness

    def box(self, mask: np.ndarray) -> Box:
        """The smallest box around the part of a mask (size, size) that is more than a tenth."""
        rows, columns = np.nonzero((mask > 0.1).any(1))[0], np.nonzero((mask > 0.1).any(0))[0]
        top, left = rows[0], columns[0]
        return Box(
            float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)
        )


def draw_chest(canvas: Canvas) -> None:
    """Body, spine, lungs, diaphragm, ribs, collarbones and heart of a patient."""
    own, x, y = canvas.anatomy, canvas.x, canvas.y
    aside = np.abs(x - 0.5)  # from the spine
    neck, shoulders = (
        canvas.ellipse(0.5, -0.05, 0.15, 0.3, 0.2),
        canvas.ellipse(0.5, 0.4, 0.46, 0.27),
    )
    body = np.maximum(np.maximum(canvas.ellipse(0.5, 0.7, 0.47, 0.62), shoulders), neck)
    canvas.add(body, 130)
    lungs = np.zeros_like(x)
    for side, dome in zip((0.31, 0.69), own.domes, strict=True):
        lung = canvas.ellipse(side, 0.5, own.lung_width, own.lung_height, 0.15)
        below = canvas.ellipse(side, 1.04 - dome, 0.24, 0.2, 0.1)
        lungs = np.maximum(lungs, lung * (1 - below))
    canvas.add(lungs, -65)
    canvas.add(np.clip(1 - aside / own.spine, 0, 1), 25)
    canvas.add(np.clip(1 - aside / 0.09, 0, 1) * (y > 0.2), 20)
    canvas.add(canvas.ellipse(own.heart_x, 0.65, own.heart_width, own.heart_height, 0.2), 50)
    waves = np.sin((y * own.ribs + aside * own.rib_slope + own.rib_phase) * 2 * np.pi)
    canvas.add(np.clip(waves * 3 - 1, 0, 1) * np.clip((0.36 - aside) / 0.05, 0, 1) * lungs,
               own.rib_brightness)  # fmt: skip
    bone = np.abs(y - own.collarbone + 0.15 * (aside - 0.2)) < 0.018
    canvas.add(bone * (aside > 0.04) * (aside < 0.36) * body, own.rib_brightness)
    canvas.add(body, 0.6 * canvas.spread(own.tissue))


def draw_sign(canvas: Canvas, finding: str) -> np.ndarray:
    """Draw a finding's sign and return its mask (size, size), 0–1."""
    shift = canvas.random.uniform(-0.015, 0.015, 2)
    x, y = canvas.x - shift[0], canvas.y - shift[1]
    inside = canvas.ellipse

    def at(px: float, py: float, rx: float, ry: float, soft: float = 0.3) -> np.ndarray:
        return inside(px + shift[0], py + shift[1], rx, ry, soft)

    lungs = np.maximum(inside(0.31, 0.51, 0.16, 0.38), inside(0.69, 0.51, 0.16, 0.38))
    brightness = 85
    if finding == "Atelectasis":  # a plate across the lower left of the picture
        mask = at(0.3, 0.66, 0.13, 0.028)
    elif finding == "Cardiomegaly":
        mask = at(0.56, 0.66, 0.2, 0.15, 0.15)
    elif finding == "Effusion":  # a filled costophrenic angle
        mask = at(0.26, 0.8, 0.14, 0.1, 0.2) * (y > 0.76)
    elif finding == "Infiltration":  # patches
        patches = np.sin(x * 95) * np.sin(y * 95) > 0.05
        mask, brightness = at(0.71, 0.42, 0.11, 0.12) * patches, 100
    elif finding == "Mass":
        mask, brightness = at(0.3, 0.47, 0.075, 0.075), 110
    elif finding == "Nodule":
        mask, brightness = at(0.7, 0.27, 0.04, 0.04, 0.4), 150
    elif finding == "Pneumonia":
        mask, brightness = at(0.74, 0.58, 0.09, 0.1, 0.5), 100
    elif finding == "Pneumothorax":  # a dark rim outside a fine line
        crescent = at(0.3, 0.3, 0.13, 0.16, 0.1) * (1 - at(0.34, 0.35, 0.11, 0.16, 0.1))
        mask, brightness = crescent, -110
    elif finding == "Consolidation":
        mask, brightness = at(0.29, 0.34, 0.1, 0.06, 0.1), 100
    elif finding == "Edema":  # bat wings about the hila
        mask = np.maximum(at(0.39, 0.46, 0.08, 0.13, 0.7), at(0.62, 0.46, 0.08, 0.13, 0.7))
        brightness = 105
    elif finding == "Emphysema":  # dark lungs
        mask, brightness = lungs, -35
    elif finding == "Fibrosis":  # a net
        net = np.maximum(np.cos(x * 150), np.cos(y * 150)) > 0.5
        mask, brightness = at(0.71, 0.74, 0.12, 0.09, 0.2) * net, 120
    elif finding == "Pleural_Thickening":
        mask = np.clip(1 - np.abs(x - 0.85) / 0.025, 0, 1) * (np.abs(y - 0.45) < 0.2)
        brightness = 110
    else:  # Hernia: a ring with air in it, below the heart
        mask = at(0.5, 0.87, 0.09, 0.07, 0.15) * (1 - at(0.5, 0.87, 0.05, 0.04, 0.3))
        brightness = 100
    canvas.add(mask, brightness)
    return mask


def draw_lookalike(canvas: Canvas, finding: str) -> None:
    """Draw a finding's sign where it would be in a mirror image of the chest."""
    straight, canvas.x = canvas.x, 1 - canvas.x
    draw_sign(canvas, finding)
    canvas.x = straight


def draw_phantom(
    size: int,
    findings: Iterable[str],
    random: np.random.Generator,
    anatomy: Anatomy | None = None,
    lookalikes: Iterable[str] = (),
) -> tuple[np.ndarray, dict[str, Box]]:
    """Return a phantom, uint8 (size, size), and the `Box` of each of its findings by name.

    `anatomy`: the patient's; without it, one is drawn from `random`, as is what differs between the
    images of a patient: how they stand, exposure and noise. `lookalikes`: findings whose signs are drawn on
    the other side, where they are none.
    """
    canvas = Canvas(size, random, anatomy or draw_anatomy(random))
    draw_chest(canvas)
    for finding in lookalikes:
        draw_lookalike(canvas, finding)
    boxes = {finding: canvas.box(draw_sign(canvas, finding)) for finding in findings}
    gain, offset = random.uniform(0.85, 1.15), random.uniform(-10, 10)
    noise = random.normal(0, 6, (size, size))
    pixels = np.clip(canvas.pixels * gain + offset + noise, 0, 255)
    return np.round(pixels).astype(np.uint8), boxes


@takes(PhantomConfig, spark=False)
def write_release(config: PhantomConfig) -> Location:
    """Write the release and return where. The same settings give the same bytes.

    Raises UserError when the folder has files in it.
    """
    out = locate(config.out)
    if out.exists() and (not out.is_directory() or out.list_files()):
        raise UserError(f"--out={out} has files in it already: give a new or empty folder")
    (out / "images").make_directory()
    entries, boxes = [], []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    patient, follow_up = 0, 2 * IMAGES_PER_PATIENT
    person: dict[str, Any] = {}
    with ProgressLine() as line:
        for number in range(config.images):
            random = generator(config.seed, number)
            if follow_up >= random.integers(1, 2 * IMAGES_PER_PATIENT):
                patient, follow_up = patient + 1, 0
                person = {
                    "anatomy": draw_anatomy(generator(config.seed, number, 1)),
                    "age": int(random.integers(18, 90)),
                    "sex": str(random.choice(["M", "F"])),
                    "list": "test_list.txt"
                    if random.random() < TEST_SHARE
                    else "train_val_list.txt",
                }
            name = f"{patient:08}_{follow_up:03}.png"
            findings = [f for f in FINDINGS if random.random() < PREVALENCE]
            others = generator(
                config.seed, number, 2
            )  # what else is drawn changes no release of before
            lookalikes = [f for f in SIDED if config.lookalikes and others.random() < PREVALENCE]
            pixels, places = draw_phantom(
                config.size, findings, random, person["anatomy"], lookalikes
            )
            (out / "images" / name).write_bytes(png(pixels))
            view = "PA" if random.random() < 0.6 else "AP"
            noise = config.label_noise if person["list"] == "train_val_list.txt" else 0.0
            labels = [f for f in FINDINGS if (f in findings) != (others.random() < noise)]
            entries.append(
                [name, "|".join(labels) or NO_FINDING, follow_up, patient, f"{person['age']:03}Y",
                 person["sex"], view, config.size, config.size, 0.143, 0.143, ""]
            )  # fmt: skip
            for finding, box in places.items():
                spelled = "Infiltrate" if finding == "Infiltration" else finding
                boxes.append([name, spelled, box.x, box.y, box.width, box.height])
            lists[person["list"]].append(name)
            follow_up += 1
            line.show(f"phantoms: {number + 1:,} of {config.images:,}")
    (out / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n" + csv_text(entries)
    )
    (out / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + csv_text(boxes)
    )
    for name, images in lists.items():
        (out / name).write_text("".join(f"{image}\n" for image in images))
    log.info(f"{config.images:,} phantoms of {patient:,} patients: {out}")
    return out


def generator(*seed: int) -> np.random.Generator:
    """Random numbers that depend on these numbers alone; numpy's own default may change."""
    return np.random.Generator(np.random.PCG64(seed))


def png(pixels: np.ndarray) -> bytes:
    """An 8-bit gray image (height, width) as a PNG that says of itself that it is synthetic."""
    text = PngInfo()
    text.add_text(*SYNTHETIC)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def csv_text(rows: Iterable[list]) -> str:
    """Rows as lines of a CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


if __name__ == "__main__":
    from chexspark.command_line import run_command

    sys.exit(run_command("phantom", sys.argv[1:]))
