"""What Spark's tasks do with the rows of a DataFrame of images.

In: rows in the order in which they are to be stored. Out: Parquet files, and a `TaskResult` of each task of
the plan, as bytes.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from chexspark.errors import RunFailedError
from chexspark.ingestion.frame_columns import Kind, read_path
from chexspark.ingestion.image_errors import BadImageError
from chexspark.ingestion.images import StoredImage, check_dimensions, prepare, prepared
from chexspark.ingestion.task import (
    FileWriter,
    Label,
    TaskResult,
    WriteTask,
    digest_of,
    end_files,
    kept_image,
    store,
)
from chexspark.preparation import Preparation
from chexspark.store.manifest import SPLITS

CHANGED = "the DataFrame gives other rows each time that it is asked: cache it, or write it and read it again"
CHANNELS = {0: 1, 16: 3, 24: 4}  # of Spark's image struct: OpenCV's type → channels of 8 bits
Batches = Iterable[pa.RecordBatch]


@dataclass(frozen=True)
class FrameTask:
    """How the rows of a frame are stored; plain values."""

    folder: str  # the URI that train/ and val/ are below
    preparation: Preparation
    rows_per_group: int
    kind: Kind
    facts: tuple[str | None, ...]  # of every image, in the order of `store.schema.FACTS`

    def write(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        """The function that Spark maps over its Arrow batches: rows of tasks, one after the other."""
        cv2.setNumThreads(1)  # Spark runs a task per core
        writing: Writing | None = None
        for batch in batches:
            for row in rows_of(batch):
                if writing is None or writing.number != row["task"]:
                    if writing:
                        yield writing.end()
                    writing = Writing(self, row["task"])
                writing.add(row)
        if writing:
            yield writing.end()


class Writing:
    """The files of one task of the plan."""

    def __init__(self, how: FrameTask, number: int) -> None:
        self.how, self.number = how, number
        task = WriteTask(how.folder, number, how.preparation, how.rows_per_group, ())
        self.writers = {split: FileWriter(task, split) for split in SPLITS}
        self.result = TaskResult()
        self.last = -1  # position of the row before

    def add(self, row: dict[str, Any]) -> None:
        """Store the image of a row, or set it aside. Raises RunFailedError where it is another by now."""
        if row["digest"] != row["now"]:
            raise RunFailedError(CHANGED)
        if row["position"] == self.last:  # a row that is the same
            return
        self.last, name = row["position"], row["name"]
        self.result.labelled.append(name)
        try:
            image = image_of(row["image"], self.how.kind, self.how.preparation)
        except BadImageError as error:
            self.result.quarantined.append((name, str(error), size_of(row["image"])))
            return
        label = Label(row["patient"], row["split"], row["labels"], self.how.facts, name)
        digest = digest_of(image.pixels.data.cast("B"))
        kept = kept_image(name, label, row["split"], image, digest)
        store(kept, label, image, self.result, self.writers)

    def end(self) -> pa.RecordBatch:
        """Write what is left; the result in a row."""
        end_files(self.result, self.writers)
        return pa.RecordBatch.from_pydict({"result": [pickle.dumps(self.result)]})


def result_of(row: bytes) -> TaskResult:
    """The result that a task of this job has handed on."""
    return pickle.loads(row)


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch, one at a time."""
    for place in range(batch.num_rows):
        yield {name: batch.column(name)[place].as_py() for name in batch.schema.names}


def size_of(image: Any) -> int:
    """How long an image is that a row has, bytes; of a path, none is known."""
    content = image["data"] if isinstance(image, dict) else image
    return len(content) if isinstance(content, bytes) else 0


def image_of(image: Any, kind: Kind, how: Preparation) -> StoredImage:
    """One image of a frame as it is stored. Raises BadImageError."""
    if image is None:
        raise BadImageError("no image: its value is null")
    if kind == "struct":
        return prepared(*struct_pixels(image), how)
    content = read_path(image) if kind == "path" else bytes(image)
    if isinstance(content, BadImageError):
        raise content
    return prepare(content, how, image if kind == "path" else "")


def struct_pixels(image: dict[str, Any]) -> tuple[np.ndarray, str]:
    """The pixels of Spark's image struct, uint8 (height, width), and their mode. Raises BadImageError.

    Of colours, which stand as blue, green, red, the gray that a file of them would have.
    """
    height, width, mode, data = (image[name] for name in ("height", "width", "mode", "data"))
    if data is None or not data:
        raise BadImageError("cannot be decoded: Spark's image struct has no pixels")
    channels = CHANNELS.get(mode)
    if channels is None:
        raise BadImageError(f"cannot be decoded: mode {mode} of Spark's image struct is none of {', '.join(map(str, CHANNELS))}")  # fmt: skip
    check_dimensions(width, height, channels)
    if len(data) != height * width * channels:
        raise BadImageError(
            f"cannot be decoded: {len(data):,} bytes for {width}x{height} pixels of {channels} bytes"
        )
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
    if channels == 1:
        return pixels[..., 0], "L"
    colours = np.ascontiguousarray(pixels[..., 2::-1])
    return np.asarray(Image.fromarray(colours).convert("L")), "RGB" if channels == 3 else "RGBA"
