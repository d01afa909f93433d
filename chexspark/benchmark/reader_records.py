"""The store's images as TFRecord files. Runs as a process of its own, with TensorFlow.

In: the folder with ``store/``. Out: ``tfrecord/raw-*`` and ``tfrecord/png-*``.

    python -m chexspark.benchmark.reader_records FOLDER FILES
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from chexspark.benchmark.reader_data import row_groups


def record(image: bytes, labels: np.ndarray) -> bytes:
    """A serialised ``tf.train.Example``; `labels`: int8 (findings,)."""
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "labels": tf.train.Feature(int64_list=tf.train.Int64List(value=labels.tolist())),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def main(folder: str, files: str) -> None:
    """Write the TFRecords of a folder's images, in so many files."""
    place = Path(folder) / "tfrecord"
    place.mkdir()
    forms: dict[str, Callable[[np.ndarray], bytes]] = {
        "raw": lambda image: image.tobytes(),
        "png": lambda image: cv2.imencode(".png", image)[1].tobytes(),
    }
    with contextlib.ExitStack() as stack:
        writers = {
            form: [
                stack.enter_context(tf.io.TFRecordWriter(str(place / f"{form}-{number:02}")))
                for number in range(int(files))
            ]
            for form in forms
        }
        count = 0
        for images, labels in row_groups(Path(folder)):
            for image, label in zip(images, labels, strict=True):
                for form, encode in forms.items():
                    writers[form][count % int(files)].write(record(encode(image), label))
                count += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
