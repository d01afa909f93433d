"""The store's manifest, ``STORE/dataset.json``. Runs on driver and ranks.

In: what ingestion counted. Out: the file that makes a folder a dataset, and its checked reading.
It is JSON, written last and atomically: no manifest, no dataset.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, get_type_hints

import pandas as pd
import pyarrow as pa

from chexspark.errors import UserError
from chexspark.findings import names_fault
from chexspark.json_types import fits, misfit
from chexspark.preparation import STRETCH, Preparation
from chexspark.storage import Location
from chexspark.store.schema import DAMAGE, columns_checksum
from chexspark.text_files import CHECKSUM, is_whole, one_line, read_json, with_checksum

# Of the store's layout. 1: NIH's 14 findings. 2: its own list of findings, a column `source`, and a
# checksum per row group of the columns beside images and labels. 3: a perceptual hash of 256 bits. 4: columns of
# study, institution and device.
SCHEMA_VERSION = 4
READABLE = (1, 2, 3, 4)
FILE_NAME = "dataset.json"
FILE_PATH = re.compile(r"[a-z]+/part-[0-9]+-[0-9]+\.parquet")
UNFINISHED = "_unfinished"  # the folder in which an ingest works
SPLITS = ("train", "val", "test")
# The tables beside the splits.
QUARANTINE, UNMATCHED, DUPLICATES, BOXES = "quarantine", "unmatched", "duplicates", "boxes"
TABLES = (QUARANTINE, UNMATCHED, DUPLICATES, BOXES)


@dataclass(frozen=True)
class StoreFile:
    """One Parquet file of a split. `path` is relative to the store."""

    path: str
    bytes: int
    row_groups: tuple[int, ...]  # rows of each row group
    checksums: tuple[str, ...]  # XXH3 of each row group's images and labels
    column_checksums: tuple[str, ...] = ()  # XXH3 of its other columns; none in version 1


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds. `positives`, `negatives`, `unknown` map each finding to a count."""

    images: int
    patients: int
    positives: dict[str, int]
    negatives: dict[str, int]
    unknown: dict[str, int]
    files: tuple[StoreFile, ...]


@dataclass(frozen=True)
class Manifest:
    """All that a reader must know about a store before it opens a Parquet file."""

    schema_version: int
    image_size: int
    findings: tuple[str, ...]  # in the order of every row's labels
    splits: dict[str, SplitSummary]
    class_weights: dict[str, dict[str, float]]  # finding → weight of a positive, of a negative
    quarantined: dict[str, int]  # reason → images
    unmatched: dict[str, int]  # kind (image without a label, …) → names, listed in STORE/unmatched
    original_modes: dict[str, int]  # Pillow's mode, or DICOM's → images; all but L were converted
    inverted: int  # images that look inverted; nothing was changed
    duplicates: dict[str, int]  # exact, near → pairs of patients, listed in STORE/duplicates
    boxes: int
    split_hash: str  # SHA-256 of which patient is in which split
    fingerprint: str  # SHA-256 of names, labels and pixels, whatever the files' layout
    sources: dict[str, Any]  # images, labels, and the digests of all input that went in
    settings: dict[str, Any]
    seconds: float
    synthetic: int = 0  # images that say of themselves that they are; not counted before version 3
    # Name → findings whose mean stands beside that of all; none before version 4.
    means: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    fit: str = STRETCH  # how an image that is not square was fitted into one
    bit_depth: int | None = None  # of 16-bit PNGs, as declared; None: found per file
    not_square: int | None = None  # images; None where they were not counted
    boxes_checksum: str | None = None  # XXH3 of the table of boxes; older stores have none
    burned_in: int = 0  # DICOM files that say that annotations are drawn in their pixels

    @property
    def preparation(self) -> Preparation:
        """How the images were made. Raises ValueError for what cannot be."""
        return Preparation(self.image_size, self.fit, self.bit_depth)

    def write(self, store: Location) -> None:
        """Write the file, in one step."""
        values = with_checksum(dataclasses.asdict(self))
        (store / FILE_NAME).write_text(json.dumps(values, indent=1) + "\n")

    def __str__(self) -> str:
        """A table of positives per finding and split, for people."""
        head = ["finding", *SPLITS]
        rows = [
            ["images", *(f"{self.splits[s].images:,}" for s in SPLITS)],
            ["patients", *(f"{self.splits[s].patients:,}" for s in SPLITS)],
        ]
        rows += [[f, *(f"{self.splits[s].positives[f]:,}" for s in SPLITS)] for f in self.findings]
        width = max(len(row[0]) for row in rows)
        return "\n".join(
            f"{r[0]:<{width}}" + "".join(f"{c:>10}" for c in r[1:]) for r in [head, *rows]
        )


def class_weights(findings: tuple[str, ...], train: SplitSummary) -> dict[str, dict[str, float]]:
    """CheXNet's weights: w+ = |N| / (|P|+|N|) for positives, w− = |P| / (|P|+|N|) for negatives.

    Source: Rajpurkar et al. 2017, section 2.1. A finding without known labels weighs 0 and 0.
    """
    weights = {}
    for finding in findings:
        positives, negatives = train.positives[finding], train.negatives[finding]
        known = max(1, positives + negatives)
        weights[finding] = {"positive": negatives / known, "negative": positives / known}
    return weights


def read_boxes(store: Location, manifest: Manifest) -> pd.DataFrame | None:
    """``STORE/boxes``: image_index, finding, x, y, width, height in pixels of the original image.

    None where there are none. Raises UserError for damage.
    """
    table = boxes_table(store, manifest)
    return None if table is None else table.to_pandas()


def boxes_table(store: Location, manifest: Manifest) -> pa.Table | None:
    """The table that `read_boxes` reads, as it is stored. Raises UserError for damage."""
    if not manifest.boxes:
        return None
    try:
        table = (store / BOXES).read_table()
        if manifest.boxes_checksum not in (None, columns_checksum(table)):
            raise ValueError("its checksum does not fit")
        return table
    except DAMAGE as error:
        raise UserError(f"{store / BOXES} is damaged ({one_line(error)}): ingest again") from error


def check_types(manifest: Manifest) -> None:
    """Raise ValueError for a value that is not of its type."""
    summaries = list(manifest.splits.values())
    parts: list[Any] = [
        manifest,
        *summaries,
        *(file for summary in summaries for file in summary.files),
    ]
    for part in parts:
        fault = misfit(vars(part), get_type_hints(type(part)))
        if fault:
            raise ValueError(fault)
    if not fits(manifest.sources.get("digests"), list[str]):
        raise ValueError(f"digests are {manifest.sources.get('digests')!r:.60}")
    for file in (file for summary in summaries for file in summary.files):
        groups = len(file.row_groups)
        if len(file.checksums) != groups or len(file.column_checksums) not in (0, groups):
            raise ValueError(f"{file.path} has other row groups than checksums")


def check_counts(manifest: Manifest) -> None:
    """Raise ValueError for a manifest that contradicts itself: files and counts of splits, class weights."""
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"splits are {', '.join(manifest.splits)}")
    for name, split in manifest.splits.items():
        paths = [file.path for file in split.files]
        if len(set(paths)) < len(paths):
            raise ValueError(f"a file of {name} is there twice")
        for path in paths:
            if not FILE_PATH.fullmatch(path) or not path.startswith(f"{name}/"):
                raise ValueError(f"{path!r} is no file of {name}")
        if sum(sum(file.row_groups) for file in split.files) != split.images:
            raise ValueError(f"the files of {name} do not have its {split.images} images")
        for finding in manifest.findings:
            counts = (split.positives[finding], split.negatives[finding], split.unknown[finding])
            if min(counts) < 0 or sum(counts) != split.images:
                raise ValueError(f"counts of {finding} in {name} are not those of its images")
        if not 0 <= split.patients <= split.images:
            raise ValueError(f"{name} has {split.patients} patients and {split.images} images")
    if manifest.class_weights != class_weights(manifest.findings, manifest.splits["train"]):
        raise ValueError("class weights are not those of the counts")


def read_manifest(store: Location) -> Manifest:
    """Read and check ``dataset.json``. Raises UserError when the folder is not a whole store."""
    place = store / FILE_NAME
    if not place.is_file():
        begun = (store / UNFINISHED).exists()
        what = "an ingest has not finished there" if begun else "there is none"
        what = what if store.exists() else "there is no such folder"
        raise UserError(
            f"{store} is not a chexspark store: it has no {FILE_NAME} ({what}); run chexspark ingest"
        )
    try:
        raw = read_json(place, str(place), "ingest again")
        if not is_whole(raw):
            raise ValueError("its checksum does not fit")
        raw.pop(CHECKSUM, None)
        version = raw["schema_version"]
        if version not in READABLE:
            raise UserError(
                f"{place} has schema version {version}, this chexspark reads "
                f"{READABLE[0]} to {READABLE[-1]}: ingest again"
            )
        splits = {
            name: SplitSummary(
                **{
                    **split,
                    "files": tuple(
                        StoreFile(
                            f["path"],
                            f["bytes"],
                            tuple(f["row_groups"]),
                            tuple(f["checksums"]),
                            tuple(f.get("column_checksums", ())),
                        )
                        for f in split["files"]
                    ),
                }
            )
            for name, split in raw["splits"].items()
        }
        manifest = Manifest(**{**raw, "splits": splits, "findings": tuple(raw["findings"])})
        check_types(manifest)
        _ = manifest.preparation  # raises for what cannot be
        fault = names_fault(manifest.findings)
        if fault:
            raise ValueError(f"findings {fault}")
        check_counts(manifest)
        return manifest
    except (*DAMAGE, RecursionError) as error:
        reason = repr(error)[:200]
        raise UserError(f"{place} is damaged ({reason}): ingest again") from error
