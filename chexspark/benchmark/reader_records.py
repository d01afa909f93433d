"""A benchmark's images as TFRecord files. Runs as a process of its own, with TensorFlow.

In: the folder with ``store/`` and ``full-size/``. Out: of each form that is named, ``tfrecord/FORM-*``.

    python -m chexspark.benchmark.reader_records FOLDER FILES FORM…
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from chexspark.benchmark.full_size import full_size_images
from chexspark.benchmark.reader_data import row_groups

Record = tuple[bytes, np.ndarray]  # an image in some form, and its labels, int8 (findings,)


def record(image: bytes, labels: np.ndarray) -> bytes:
    """A serialised ``tf.train.Example``; `labels`: int8 (findings,)."""
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "labels": tf.train.Feature(int64_list=tf.train.Int64List(value=labels.tolist())),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def stored(folder: Path) -> Iterator[Record]:
    """The store's images as they are there: pixels."""
    for images, labels in row_groups(folder):
        for image, label in zip(images, labels, strict=True):
            yield image.tobytes(), label


def stored_png(folder: Path) -> Iterator[Record]:
    """The store's images as PNG."""
    for images, labels in row_groups(folder):
        for image, label in zip(images, labels, strict=True):
            yield cv2.imencode(".png", image)[1].tobytes(), label


def full_size(folder: Path) -> Iterator[Record]:
    """The full-size PNG files."""
    for file, label in zip(*full_size_images(folder), strict=True):
        yield file.read_bytes(), label


FORMS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "raw": stored,
    "png": stored_png,
    "full-size": full_size,
}


def main(folder: str, files: str, *forms: str) -> None:
    """Write the TFRecords of a folder's images, each form in so many files."""
    place = Path(folder) / "tfrecord"
    place.mkdir(exist_ok=True)
    for form in forms:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(tf.io.TFRecordWriter(str(place / f"{form}-{number:02}")))
                for number in range(int(files))
            ]
            records = FORMS[form](Path(folder))
            for (image, label), writer in zip(records, itertools.cycle(writers)):
                writer.write(record(image, label))


if __name__ == "__main__":
    main(*sys.argv[1:])
