"""Ways to bring images from storage to TensorFlow, timed in turn. Runs as a process of its own.

In: the folder that `chexspark.benchmark.reader_data` wrote. Out: a JSON line per measurement on
standard output: {"way", "round", "images", "seconds"}. Every way yields batches of the same 8-bit
gray images of 256×256, shuffled, with their labels, as tensors.

    python -m chexspark.benchmark.readers FOLDER BATCH ROUNDS SECONDS
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from chexspark.data.augmentation import random_numbers
from chexspark.data.pipeline import StepInputs, tensors
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader
from chexspark.petastorm_imports import petastorm_imports
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.store.schema import images_of, labels_of

RECORDS_SHUFFLED = 10_000  # as the official models do for ImageNet
AUTOTUNE = tf.data.AUTOTUNE


class Ways:
    """Each method yields batches of one epoch; its docstring is what the table calls it."""

    def __init__(self, folder: str, batch: int) -> None:
        self.folder, self.batch = Path(folder), batch
        self.store = locate(str(self.folder / "store"))
        self.manifest = read_manifest(self.store)
        self.size, self.findings = self.manifest.image_size, len(self.manifest.findings)
        self.reader = SplitReader(self.store, self.manifest, "train")
        self.epoch = 0

    def chexspark(self) -> Iterator:
        """chexspark, read from storage"""
        yield from self.planned(self.reader)

    def planned(self, reader: SplitReader) -> Generator[StepInputs, None, None]:
        """The next epoch of a reader, as training has it."""
        self.epoch += 1
        groups = reader.row_groups
        plan = training_plan(groups, self.batch, RankFacts(0, 1), 0, self.epoch)
        yield from tensors(reader.batches(plan), random_numbers(0, self.epoch, sum(groups)))

    def pyarrow_loop(self) -> Iterator:
        """bare pyarrow loop: row groups in order, no check, no shuffle, no tensor"""
        for file in self.manifest.splits["train"].files:
            parquet = pq.ParquetFile((self.store / file.path).path)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=["image", "labels"])
                images = images_of(table["image"].combine_chunks(), self.size)
                labels = labels_of(table["labels"].combine_chunks(), self.findings)
                for start in range(0, len(images), self.batch):
                    end = start + self.batch
                    yield np.array(images[start:end]), labels[start:end]

    def tfrecord_raw(self) -> Iterator:
        """TFRecord, raw pixels → tf.data"""
        yield from self.tfrecord(
            "raw", lambda pixels: tf.reshape(tf.io.decode_raw(pixels, tf.uint8), self.shape)
        )

    def tfrecord_png(self) -> Iterator:
        """TFRecord, PNG → tf.data"""
        yield from self.tfrecord(
            "png", lambda pixels: tf.ensure_shape(tf.io.decode_png(pixels, 1), self.shape)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return self.size, self.size, 1

    def tfrecord(self, form: str, decode: Callable[[tf.Tensor], tf.Tensor]) -> Iterator:
        """In the order of the official models: interleave, shuffle, parse, batch, prefetch."""
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "labels": tf.io.FixedLenFeature([self.findings], tf.int64),
        }

        def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            found = tf.io.parse_single_example(record, features)
            return decode(found["image"]), tf.cast(found["labels"], tf.int8)

        files = sorted(str(p) for p in (self.folder / "tfrecord").glob(f"{form}-*"))
        data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files))
        data = data.interleave(
            tf.data.TFRecordDataset, cycle_length=len(files), num_parallel_calls=AUTOTUNE,
            deterministic=False,
        )  # fmt: skip
        images = self.manifest.splits["train"].images
        data = data.prefetch(self.batch).shuffle(min(RECORDS_SHUFFLED, images))
        yield from data.map(parse, AUTOTUNE).batch(self.batch).prefetch(AUTOTUNE)

    def make_reader(self) -> Iterator:
        """Petastorm make_reader → tf.data, this store"""
        yield from self.petastorm(self.folder / "store" / "train")

    def make_reader_png(self) -> Iterator:
        """Petastorm make_reader → tf.data, PNG codec"""
        yield from self.petastorm(self.folder / "petastorm-png")

    def petastorm(self, place: Path) -> Iterator:
        """Batches of a Petastorm dataset, in the way that its documentation gives."""
        with petastorm_imports():
            from petastorm import make_reader
            from petastorm.tf_utils import make_petastorm_dataset

        with make_reader(place.as_uri(), schema_fields=["image", "labels"], num_epochs=1) as reader:
            data = make_petastorm_dataset(reader).map(lambda row: (row.image, row.labels))
            yield from data.batch(self.batch).prefetch(AUTOTUNE)

    def make_batch_reader(self) -> Iterator:
        """Petastorm make_batch_reader → tf.data, raw pixels"""
        with petastorm_imports():
            from petastorm import make_batch_reader
            from petastorm.tf_utils import make_petastorm_dataset

        def decode(rows: Any) -> tuple[tf.Tensor, tf.Tensor]:
            pixels = tf.io.decode_raw(rows.image, tf.uint8)
            return tf.reshape(pixels, (-1, *self.shape)), rows.labels

        url = (self.folder / "batch-reader").as_uri()
        with make_batch_reader(url, schema_fields=["image", "labels"], num_epochs=1) as reader:
            data = make_petastorm_dataset(reader).map(decode)
            yield from data.rebatch(self.batch).prefetch(AUTOTUNE)

    def full_size_naive(self) -> Iterator:
        """full-size PNG → tf.data, one after the other"""
        for images in self.full_size().map(self.decode_file).batch(self.batch):
            yield images, None

    def full_size_tuned(self) -> Iterator:
        """full-size PNG → tf.data, in parallel, with prefetch"""
        data = self.full_size().map(self.decode_file, AUTOTUNE)
        for images in data.batch(self.batch).prefetch(AUTOTUNE):
            yield images, None

    def full_size(self) -> tf.data.Dataset:
        """The names of the full-size PNG files, shuffled."""
        files = sorted(str(p) for p in (self.folder / "full-size").iterdir())
        return tf.data.Dataset.from_tensor_slices(files).shuffle(len(files))

    def decode_file(self, path: tf.Tensor) -> tf.Tensor:
        """The uint8 image (size, size, 1) of a full-size PNG file."""
        image = tf.io.decode_png(tf.io.read_file(path), 1)
        return tf.cast(tf.image.resize(image, self.shape[:2], method="area"), tf.uint8)


WAYS = ("chexspark", "pyarrow_loop", "tfrecord_raw", "make_batch_reader", "tfrecord_png",
        "make_reader", "make_reader_png", "full_size_tuned", "full_size_naive")  # fmt: skip


def images_in(batch: Any) -> int:
    """Real images of a batch of any of the ways."""
    weights = getattr(batch, "weights", None)
    return len(batch[0]) if weights is None else int(np.sum(weights))


def measure(ways: Ways, name: str, seconds: float) -> tuple[int, float]:
    """Whole epochs for at least that long: images, seconds."""
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in getattr(ways, name)():
            images += images_in(batch)
    return images, time.perf_counter() - started


def again_and_again(ways: Ways) -> Generator[StepInputs, None, None]:
    """The batches of a training of as many epochs as are asked for."""
    while True:
        yield from ways.planned(ways.reader)


def waiting_while_training(ways: Ways, steps: int) -> tuple[float, float]:
    """Share of the time of `steps` training steps of DenseNet-121 that waits for input; seconds."""
    import tf_keras as keras

    from chexspark.models import build_model
    from chexspark.training.ring import Alone
    from chexspark.training.step import Steps

    model = build_model("densenet121", ways.size, ways.findings)
    step = Steps(model, keras.optimizers.legacy.Adam(1e-3), ways.batch, Alone())
    batches = again_and_again(ways)
    step.train(next(batches))  # compiles
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        inputs = next(batches)
        waited += time.perf_counter() - asked
        step.train(inputs)
    seconds = time.perf_counter() - started
    batches.close()
    return waited / seconds, seconds


def main(folder: str, batch: str, rounds: str, seconds: str, steps: str) -> None:
    # Libraries print too: results go to where standard output was, all else to standard error.
    """Measure all ways and write a line of JSON for each to standard output."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    pa.set_memory_pool(pa.system_memory_pool())  # as on a rank; the bare loop gains most
    ways = Ways(folder, int(batch))
    for number in range(-1, int(rounds)):  # round −1 warms up
        for name in WAYS:
            images, took = measure(ways, name, float(seconds) if number >= 0 else 0.0)
            if number >= 0:
                line = {"way": name, "round": number, "images": images, "seconds": took}
                print(json.dumps(line), file=results)
    share, took = waiting_while_training(ways, int(steps))
    line = {"way": "training", "waiting": share, "seconds": took}
    print(json.dumps(line), file=results)


if __name__ == "__main__":
    main(*sys.argv[1:])
