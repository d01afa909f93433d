"""The files that one Spark task writes.

In: the image files, or the archive, of the task, and the labels. Out: Parquet files, each written
aside and renamed whole, and a `TaskResult` with their counts and what was refused.
"""

import hashlib
import posixpath
from dataclasses import dataclass, field
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexspark.ingestion.image_errors import BadImageError, NoImageError
from chexspark.ingestion.image_names import ends, label_name, plain_path
from chexspark.ingestion.images import StoredImage, prepare
from chexspark.ingestion.sources import SourceFile, is_archive, read_source_images
from chexspark.preparation import Preparation
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS, StoreFile
from chexspark.store.schema import (
    FACTS,
    IMAGE,
    LABELS,
    RowGroupChecksum,
    columns_checksum,
    image_column,
    parquet_schema,
)

FINGERPRINT_MODULUS = 2**256
SOURCE = list(FACTS).index("source")
FILE_ROWS = 1024  # 100 MB of 320 × 320 images: large for a file system, small for a retry


@dataclass(frozen=True)
class Label:
    """What the labels say of one image. `labels`: an int8 per finding, as bytes."""

    patient_id: str
    split: str | None  # None: the split that was given does not name the image
    labels: bytes
    facts: tuple[str | int | None, ...]  # in the order of `store.schema.FACTS`
    path: str = ""  # of the image, as the label file has it; empty: it is its name


@dataclass(frozen=True)
class WriteTask:
    """The work of one task: image files, or one archive, in `sources`."""

    folder: str  # the URI that train/, val/ and test/ are below
    number: int  # its files are SPLIT/part-NUMBER-….parquet
    preparation: Preparation
    rows_per_group: int
    sources: tuple[SourceFile, ...]
    prefix: str = ""  # what names of images begin with in the store


@dataclass(frozen=True)
class Kept:
    """One stored image, as the driver needs it for counting and for duplicates."""

    name: str
    patient_id: str
    split: str
    labels: bytes
    mode: str
    inverted: bool
    perceptual_hash: str
    pixel_digest: int
    original: tuple[int, int]  # width and height before it was shrunk
    source: str  # the set that it is of


@dataclass
class TaskResult:
    """What came of a task."""

    files: list[tuple[str, StoreFile]] = field(default_factory=list)  # (split, file)
    kept: list[Kept] = field(default_factory=list)
    quarantined: list[tuple[str, str, int]] = field(default_factory=list)  # path, reason, bytes
    unlabelled: list[str] = field(default_factory=list)
    labelled: list[str] = field(default_factory=list)  # names of labels that have found their image
    # Name of a label → that of its image in the store, where another image has the name.
    renamed: dict[str, str] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)  # members of archives that are no images
    stored_before: int = 0
    synthetic: int = 0  # of the kept
    burned_in: int = 0  # of the kept
    fingerprint: int = 0


Row = dict[str, Any]  # column → value


class FileWriter:
    """Parquet files of one split of one task, a row group at a time."""

    def __init__(self, task: WriteTask, split: str) -> None:
        self.task, self.split = task, split
        self.schema = parquet_schema(task.preparation.size)
        self.files: list[tuple[str, StoreFile]] = []
        self.rows: list[tuple[Row, np.ndarray]] = []
        self.number = 0  # of the file
        self.begin_file()

    def begin_file(self) -> None:
        """Forget the file that was written."""
        self.writer: pq.ParquetWriter | None = None
        self.groups: list[int] = []  # rows of each row group
        self.checksums: list[str] = []
        self.column_checksums: list[str] = []

    def add(self, row: Row, pixels: np.ndarray) -> None:
        """Take one image, uint8 (size, size), and its other columns."""
        self.rows.append((row, pixels))
        if len(self.rows) == self.task.rows_per_group:
            self.end_group()
        if sum(self.groups) + len(self.rows) >= FILE_ROWS:
            self.end_file()

    def end_group(self) -> None:
        """Write the rows that were taken as a row group, if there are any."""
        if not self.rows:
            return
        if self.writer is None:
            others = [name for name in self.schema.names if name != IMAGE]
            aside = self.aside()
            aside.filesystem.create_dir(posixpath.dirname(aside.path), recursive=True)
            self.writer = pq.ParquetWriter(
                aside.path,
                self.schema,
                filesystem=aside.filesystem,
                use_dictionary=False,
                write_statistics=others,  # else the smallest and largest image stand there again
                compression={name: "SNAPPY" for name in others} | {IMAGE: "NONE"},
            )
        images = [pixels for _, pixels in self.rows]
        values = {
            name: [row[name] for row, _ in self.rows] for name in self.schema.names if name != IMAGE
        }
        columns = [
            image_column(images, self.task.preparation.size)
            if field.name == IMAGE
            else pa.array(values[field.name], field.type)
            for field in self.schema
        ]
        table = pa.Table.from_arrays(columns, schema=self.schema)
        cast(pq.ParquetWriter, self.writer).write_table(table, len(images))
        found = RowGroupChecksum()
        found.add(images, np.stack(values[LABELS]))
        self.checksums.append(found.hexdigest())
        self.column_checksums.append(columns_checksum(table))
        self.groups.append(len(self.rows))
        self.rows = []

    def end_file(self) -> None:
        """Write what is left, and move the file to its place."""
        self.end_group()
        if self.writer is None:
            return
        self.writer.close()
        aside, place = self.aside(), locate(self.task.folder) / self.path()
        aside.move_to(place)
        size = place.filesystem.get_file_info(place.path).size
        file = StoreFile(
            self.path(), size, tuple(self.groups), tuple(self.checksums),
            tuple(self.column_checksums),
        )  # fmt: skip
        self.files.append((self.split, file))
        self.begin_file()
        self.number += 1

    def path(self) -> str:
        """Of the file, below the folder."""
        return f"{self.split}/part-{self.task.number:05}-{self.number:03}.parquet"

    def aside(self) -> Location:
        """Where the file is while it is being written."""
        return locate(self.task.folder) / f"{self.path()}.tmp"


class NameTakenError(BadImageError):
    """The store has another image of this name."""


@dataclass(frozen=True)
class Known:
    """What the tasks know of labels and of the set's images in the store; by name, without its prefix."""

    labels: dict[str, Label]
    stored: dict[str, int]  # name → digest of its pixels
    left_out: frozenset[str]  # labels that are not asked for


def write_task(task: WriteTask, known: Known) -> TaskResult:
    """Decode, check, shrink and store the images of one task, but for those that the store has.

    Raises nothing for an image that cannot be used: the result says why.
    """
    cv2.setNumThreads(1)  # Spark runs a task per core
    result = TaskResult()
    writers = {split: FileWriter(task, split) for split in SPLITS}
    for file_name, path, size, content in read_source_images(task.sources):
        # A file of its own has its label's name already; what is in an archive is only seen here.
        member = path.removeprefix(f"{task.sources[0].uri}!") if is_archive(task.sources[0]) else ""
        found = (label_name(member, names) for names in (known.labels, known.left_out))
        name = next(filter(None, found), file_name)
        if name in known.left_out:
            continue
        label = known.labels.get(name)
        result.labelled += [name] * (label is not None)
        try:
            if isinstance(content, BadImageError):
                raise content
            whole = (label.path if label else plain_path(member)) or name
            if label is None and not in_store(whole, known.stored):
                result.unlabelled.append(name)
                continue
            image = prepare(content, task.preparation, posixpath.basename(path))
            digest = digest_of(image.pixels.data.cast("B"))
            if digest in in_store(whole, known.stored).values():
                result.stored_before += 1
                continue
            if label is None:
                result.unlabelled.append(name)
                continue
            if label.split is None:
                raise BadImageError("no split: the given one does not name it or its patient")
            own = free_name(name, whole, known.stored)
        except NoImageError:
            result.passed_over.append(path)
            continue
        except BadImageError as error:
            result.quarantined.append((path, str(error), size))
            continue
        if own != name:
            result.renamed[name] = own
        kept = kept_image(task.prefix + own, label, label.split, image, digest)
        store(kept, label, image, result, writers)
    end_files(result, writers)
    return result


def store(
    kept: Kept, label: Label, image: StoredImage, result: TaskResult, writers: dict[str, FileWriter]
) -> None:
    """Give one image to the writer of its split, and count it."""
    result.kept.append(kept)
    result.synthetic += image.synthetic
    result.burned_in += image.burned_in
    share = row_digest(kept, image.pixels.data.cast("B"))
    result.fingerprint = (result.fingerprint + share) % FINGERPRINT_MODULUS
    writers[kept.split].add(row_of(kept, label, image), image.pixels)


def end_files(result: TaskResult, writers: dict[str, FileWriter]) -> None:
    """Write what the writers still hold, and note all their files."""
    for writer in writers.values():
        writer.end_file()
        result.files += writer.files


def in_store(path: str, stored: dict[str, int]) -> dict[str, int]:
    """The images of the store that may be that of a path: their names are ends of it."""
    return {end: stored[end] for end in ends(path) if end in stored}


def free_name(name: str, path: str, stored: dict[str, int]) -> str:
    """The name of a new image: its label's, or, where another image has it, its whole path.

    Names are the shortest that tell the images of one label file apart: of a later file, they may be those
    of others. Raises NameTakenError where the path is another's too.
    """
    if name not in stored:
        return name
    if path not in stored:
        return path
    raise NameTakenError(f"name taken: the store has another image called {path}")


def digest_of(pixels: memoryview) -> int:
    """What tells an image's pixels from others': the first 64 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big", signed=True)


def kept_image(name: str, label: Label, split: str, image: StoredImage, digest: int) -> Kept:
    """What the driver is to know of an image. `digest`: of its pixels."""
    return Kept(
        name, label.patient_id, split, label.labels, image.original_mode, image.inverted,
        image.perceptual_hash, digest,
        (image.original_width, image.original_height),
        str(label.facts[SOURCE]),
    )  # fmt: skip


def row_digest(kept: Kept, pixels: memoryview) -> int:
    """A row's share of the fingerprint, which is a sum and so knows no order."""
    digest = hashlib.sha256(f"{kept.split}/{kept.name}/{kept.patient_id}/".encode())
    digest.update(kept.labels)
    digest.update(pixels)
    return int.from_bytes(digest.digest(), "big")


def row_of(kept: Kept, label: Label, image: StoredImage) -> Row:
    """The values of one row, by column, but for the pixels."""
    return {
        "image_index": kept.name,
        "patient_id": label.patient_id,
        "labels": np.frombuffer(label.labels, np.int8),
        **dict(zip(FACTS, label.facts, strict=True)),
        "original_width": image.original_width,
        "original_height": image.original_height,
        "original_mode": image.original_mode,
        "pixel_mean": image.pixel_mean,
        "pixel_std": image.pixel_std,
        "inverted": image.inverted,
        "perceptual_hash": kept.perceptual_hash,
        "pixel_digest": kept.pixel_digest,
    }


def label_counts(kept: list[Kept], findings: int) -> np.ndarray:
    """How many of each finding are negative, positive, unknown: int64 (findings, 3)."""
    labels = np.frombuffer(b"".join(k.labels for k in kept), np.int8).reshape(-1, findings)
    return np.stack([(labels == value).sum(0) for value in (0, 1, -1)], axis=1)
