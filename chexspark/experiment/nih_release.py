"""NIH ChestX-ray14 as it is downloaded, found in a folder; or a part of it. Runs on the driver.

In: the folder. Out: where its images, labels, lists and boxes are. A part has whole patients of both lists, in the order
of the label file, and whatever the folder has of their images.
"""

import io
from dataclasses import dataclass

import pandas as pd
from pyarrow import fs

from chexspark.errors import UserError, listed
from chexspark.storage import Location, locate

LABELS = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TRAIN_VAL, TEST = LISTS = ("train_val_list.txt", "test_list.txt")
BOXES = "BBox_List_2017.csv"
ARCHIVES = (".tar.gz", ".tar", ".tgz", ".zip")
PART_IMAGES = {TRAIN_VAL: 240, TEST: 120}  # at least, of each list
DOWNLOAD = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


@dataclass(frozen=True)
class Release:
    """Paths, as ingest takes them."""

    images: tuple[str, ...]
    labels: str
    lists: str  # their folder
    boxes: str | None


def find_release(uri: str) -> Release:
    """What is in a folder. Raises UserError that names what is missing."""
    folder = locate(uri)
    found = {
        info.base_name: info.type
        for info in folder.entries(fs.FileSelector(folder.path, allow_not_found=True))
    }
    labels = next((name for name in LABELS if name in found), None)
    images = sorted(
        name
        for name, kind in found.items()
        if name.startswith("images") and (kind == fs.FileType.Directory or name.endswith(ARCHIVES))
    )
    missing = [name for name in LISTS if name not in found]
    missing += [] if labels else [LABELS[0]]
    missing += [] if images else ["images (a folder, or images_001.tar.gz …)"]
    if missing or labels is None:
        raise UserError(
            f"--nih={folder} lacks {listed(missing)}: give the folder of NIH ChestX-ray14 as it is downloaded ({DOWNLOAD})"
        )
    return Release(
        images=tuple(str(folder / name) for name in images), labels=str(folder / labels), lists=str(folder),
        boxes=str(folder / BOXES) if BOXES in found else None,
    )  # fmt: skip


def part_of(release: Release, out: Location) -> Release:
    """A part of a release, its labels and lists written to `out`.

    Raises UserError where the folder has images of one list only.
    """
    labels = pd.read_csv(
        io.BytesIO(locate(release.labels).read_bytes()), dtype=str, encoding="utf-8-sig"
    )
    name, patient = labels["Image Index"], labels["Patient ID"]
    images, there = images_of_part(release)
    known = name.isin(there) if there is not None else pd.Series(True, index=labels.index)
    picked = pd.Series(False, index=labels.index)
    lists = locate(release.lists)
    for kind, least in PART_IMAGES.items():
        of_list = known & name.isin((lists / kind).read_text().split())
        if not of_list.any():
            raise UserError(
                f"--nih={lists} has no image of {kind} in {listed(images)}: a part needs some of both lists"
            )
        seen = of_list.cumsum()
        last = patient[of_list & (seen <= least)].unique()
        picked |= of_list & patient.isin(last)
        (out / kind).write_text("\n".join(name[picked & of_list]) + "\n")
    table = labels[picked]
    place = out / LABELS[0]
    place.write_text(table.to_csv(index=False))
    boxes = None
    if release.boxes:
        lines = locate(release.boxes).read_text().splitlines()
        kept = [line for line in lines[1:] if line.split(",")[0] in set(table["Image Index"])]
        if kept:
            (out / BOXES).write_text("\n".join([lines[0], *kept]) + "\n")
            boxes = str(out / BOXES)
    return Release(images, str(place), str(out), boxes)


def images_of_part(release: Release) -> tuple[tuple[str, ...], set[str] | None]:
    """Where the images of a part are, and their names; None for an archive, whose names are not read: NIH's first one
    has the images that are first in the label file."""
    folders = [place for place in release.images if locate(place).is_directory()]
    if not folders:
        return release.images[:1], None
    names = {info.base_name for place in folders for info in locate(place).list_files()}
    return tuple(folders), names
