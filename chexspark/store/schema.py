"""How a row of the store looks in Parquet. Runs on driver and ranks.

An image is stored in the layout of Petastorm's NdarrayCodec, which is that of ``numpy.save``:
for one shape the header is the same few bytes in every row, so a row is header + pixels, of
fixed length, and reading is a copy. Plain Petastorm opens it; our reader needs no codec.
"""

import functools
import io
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

IMAGE, LABELS = "image", "labels"
# What reading a damaged Parquet file raises, of Arrow and of what looks at its columns.
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError,
          OverflowError)  # fmt: skip
# What is known of an image's patient and study, where it is: column → type, and the version of the layout
# that brought it.
FACTS: dict[str, tuple[pa.DataType, int]] = {
    "view_position": (pa.string(), 1),
    "sex": (pa.string(), 1),
    "age": (pa.int16(), 1),  # years
    "follow_up": (pa.int16(), 1),
    "study_id": (pa.string(), 4),
    "series_id": (pa.string(), 4),
    "institution": (pa.string(), 4),
    "manufacturer": (pa.string(), 4),
    "device": (pa.string(), 4),
    "study_date": (pa.string(), 4),  # 2014-09-15, or 2014
    "source": (pa.string(), 2),  # the set that the image is of
}


@functools.cache
def image_header(size: int) -> bytes:
    """What ``numpy.save`` puts before the pixels of a uint8 (size, size) array."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((size, size), np.uint8), allow_pickle=False)
    return buffer.getvalue()[: -size * size]


def parquet_schema(size: int, version: int = 4) -> pa.Schema:
    """The columns of ``STORE/train``, ``val`` and ``test``, for images of `size` × `size` pixels.

    `version`: of the store's layout. `perceptual_hash`: 64 digits in hex; in versions 1 and 2 another one,
    of 64 bits.
    """
    facts = {n: pa.field(n, kind) for n, (kind, since) in FACTS.items() if since <= version}
    first = [name for name in facts if FACTS[name][1] == 1]
    hash_type = pa.string() if version > 2 else pa.int64()
    return pa.schema(
        [
            pa.field("image_index", pa.string(), nullable=False),
            pa.field("patient_id", pa.string(), nullable=False),
            pa.field(IMAGE, pa.binary(len(image_header(size)) + size * size), nullable=False),
            pa.field(LABELS, pa.list_(pa.int8()), nullable=False),
            *(facts.pop(name) for name in first),
            pa.field("original_width", pa.int32(), nullable=False),
            pa.field("original_height", pa.int32(), nullable=False),
            pa.field("original_mode", pa.string(), nullable=False),
            pa.field("pixel_mean", pa.float32(), nullable=False),
            pa.field("pixel_std", pa.float32(), nullable=False),
            pa.field("inverted", pa.bool_(), nullable=False),
            pa.field("perceptual_hash", hash_type, nullable=False),
            pa.field("pixel_digest", pa.int64(), nullable=False),
            *facts.values(),
        ]
    )


def image_column(images: list[np.ndarray], size: int) -> pa.Array:
    """Make a column of uint8 (size, size) images: the header, then the pixels, of each."""
    header = np.frombuffer(image_header(size), np.uint8)
    rows = np.empty((len(images), len(header) + size * size), np.uint8)
    rows[:, : len(header)] = header
    for row, image in zip(rows, images, strict=True):
        row[len(header) :] = image.ravel()
    buffers = [None, pa.py_buffer(rows)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(images), buffers)


def images_of(column: pa.Array, size: int) -> np.ndarray:
    """View an image column as uint8 (rows, size, size), without a copy.

    Raises ValueError when a value does not begin with the header of that size.
    """
    width = len(image_header(size)) + size * size
    if column.type != pa.binary(width):
        raise ValueError(f"image column is {column.type}, expected fixed_size_binary[{width}]")
    flat = np.frombuffer(column.buffers()[1], np.uint8)
    rows = flat[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
    header = np.frombuffer(image_header(size), np.uint8)
    if not (rows[:, : len(header)] == header).all():
        raise ValueError(f"an image is not a uint8 array of {size}x{size}")
    return rows[:, len(header) :].reshape(-1, size, size)


def labels_of(column: pa.Array, findings: int) -> np.ndarray:
    """View a label column as int8 (rows, findings). Raises ValueError for rows of another length."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if not (lengths == findings).all():
        raise ValueError(f"a row has not {findings} labels")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, findings)


def columns_checksum(table: pa.Table) -> str:
    """XXH3, 64 bits in hex, of the values of all columns but images and labels, in their order."""
    digest = xxhash.xxh3_64()
    for name in table.column_names:
        if name not in (IMAGE, LABELS):
            digest.update(json.dumps([name, table[name].to_pylist()]).encode())
    return digest.hexdigest()


class RowGroupChecksum:
    """XXH3, 64 bits each in hex, of the pixels and of the labels of a row group, in row order.

    Computed with each read: four times as fast as CRC-32, at the speed of memory.
    """

    def __init__(self) -> None:
        self.images, self.labels = xxhash.xxh3_64(), xxhash.xxh3_64()

    def add(self, images: Iterable[np.ndarray], labels: np.ndarray) -> None:
        """Take the next rows: images uint8 (rows, size, size) or a list, labels int8 (rows, findings)."""
        for image in images:
            self.images.update(image)
        self.labels.update(np.ascontiguousarray(labels))

    def hexdigest(self) -> str:
        """32 digits: the images' checksum, then the labels'."""
        return self.images.hexdigest() + self.labels.hexdigest()
