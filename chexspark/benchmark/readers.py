"""Ways to bring images from storage to TensorFlow, timed in turn. Runs as a process of its own.

In: the folder that `chexspark.benchmark.reader_data` wrote. Out: a JSON line per measurement on
standard output: {"way", "round", "images", "seconds"}. Every way yields batches of the same 8-bit
gray images of the store's size, shuffled, with their labels, as tensors.

    python -m chexspark.benchmark.readers FOLDER BATCH ROUNDS SECONDS STEPS
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from chexspark.benchmark.fed_steps import again_and_again, compiled_steps, images_in, train_fed
from chexspark.benchmark.full_size import full_size_images
from chexspark.benchmark.results import Results
from chexspark.data.augmentation import random_numbers
from chexspark.data.pipeline import StepInputs, tensors
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader
from chexspark.petastorm_imports import petastorm_imports
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.store.schema import images_of, labels_of

RECORDS_SHUFFLED = 10_000  # as the official models do for ImageNet
FULL_SIZE_SHUFFLED = 1_000  # half a megabyte each
AUTOTUNE = tf.data.AUTOTUNE


def by_tf_data(build: Callable[["Ways"], tf.data.Dataset]) -> Callable[["Ways"], Iterator]:
    """A way whose dataset is built once, as a training does; each call iterates over it, an epoch."""

    @functools.wraps(build)
    def epoch(ways: "Ways") -> Iterator:
        if build.__name__ not in ways.datasets:
            ways.datasets[build.__name__] = build(ways)
        yield from ways.datasets[build.__name__]

    return epoch


class Ways:
    """Each method yields batches of one epoch; its docstring is what the table calls it."""

    def __init__(self, folder: str, batch: int) -> None:
        self.folder, self.batch = Path(folder), batch
        self.store = locate(str(self.folder / "store"))
        self.manifest = read_manifest(self.store)
        self.size, self.findings = self.manifest.image_size, len(self.manifest.findings)
        self.reader = SplitReader(self.store, self.manifest, "train")
        self.epoch = 0
        self.datasets: dict[str, tf.data.Dataset] = {}  # of tf.data's ways

    def chexspark(self) -> Generator[StepInputs, None, None]:
        """chexspark, read from storage"""
        self.epoch += 1
        groups = self.reader.row_groups
        plan = training_plan(groups, self.batch, RankFacts(0, 1), 0, self.epoch)
        yield from tensors(self.reader.batches(plan), random_numbers(0, self.epoch, sum(groups)))

    def memory(self) -> Iterator:
        """one batch that stays in memory, without end: nothing is read"""
        while True:
            yield self.first

    @functools.cached_property
    def first(self) -> StepInputs:
        """A batch of the store."""
        with contextlib.closing(self.chexspark()) as batches:
            return next(batches)

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

    @by_tf_data
    def tfrecord_raw(self) -> tf.data.Dataset:
        """TFRecord, raw pixels → tf.data"""
        return self.tfrecord(
            "raw", lambda pixels: tf.reshape(tf.io.decode_raw(pixels, tf.uint8), self.shape)
        )

    @by_tf_data
    def tfrecord_png(self) -> tf.data.Dataset:
        """TFRecord, PNG → tf.data"""
        return self.tfrecord(
            "png", lambda pixels: tf.ensure_shape(tf.io.decode_png(pixels, 1), self.shape)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return self.size, self.size, 1

    @by_tf_data
    def full_size_records_tuned(self) -> tf.data.Dataset:
        """TFRecord of full-size PNG → tf.data, in parallel, with prefetch"""
        return self.tfrecord("full-size", self.shrunken, FULL_SIZE_SHUFFLED)

    @by_tf_data
    def full_size_records_naive(self) -> tf.data.Dataset:
        """TFRecord of full-size PNG → tf.data, one after the other"""
        files = self.record_files("full-size")
        data = files.flat_map(tf.data.TFRecordDataset).shuffle(self.at_most(FULL_SIZE_SHUFFLED))
        return self.naive(data, self.parser(self.shrunken))

    def tfrecord(
        self, form: str, decode: Callable[[tf.Tensor], tf.Tensor], shuffled: int = RECORDS_SHUFFLED
    ) -> tf.data.Dataset:
        """In the order of the official models: interleave, shuffle, parse, batch, prefetch."""
        files = self.record_files(form)
        data = files.interleave(
            tf.data.TFRecordDataset, cycle_length=len(files), num_parallel_calls=AUTOTUNE,
            deterministic=False,
        )  # fmt: skip
        data = data.prefetch(self.batch).shuffle(self.at_most(shuffled))
        return self.tuned(data, self.parser(decode))

    def record_files(self, form: str) -> tf.data.Dataset:
        """The names of the TFRecord files of a form, shuffled."""
        files = sorted(str(p) for p in (self.folder / "tfrecord").glob(f"{form}-*"))
        return tf.data.Dataset.from_tensor_slices(files).shuffle(len(files))

    def at_most(self, shuffled: int) -> int:
        """How many images wait to be drawn from: `shuffled`, or all."""
        return min(shuffled, self.manifest.splits["train"].images)

    def parser(self, decode: Callable[[tf.Tensor], tf.Tensor]) -> Callable:
        """What makes image and labels, int8 (findings,), of a record."""
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "labels": tf.io.FixedLenFeature([self.findings], tf.int64),
        }

        def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            found = tf.io.parse_single_example(record, features)
            return decode(found["image"]), tf.cast(found["labels"], tf.int8)

        return parse

    def naive(self, data: tf.data.Dataset, make: Callable) -> tf.data.Dataset:
        """Batches of what `make` makes, one image after the other, when they are asked for."""
        options = tf.data.Options()  # by default a `map` is made parallel, and a prefetch added
        options.experimental_optimization.apply_default_optimizations = False
        return data.map(make).batch(self.batch).with_options(options)

    def tuned(self, data: tf.data.Dataset, make: Callable) -> tf.data.Dataset:
        """Batches of what `make` makes, in parallel, the next ones ahead."""
        options = tf.data.Options()
        options.threading.private_threadpool_size = 0  # as many as cores, not those of a training
        data = data.map(make, AUTOTUNE).batch(self.batch).prefetch(AUTOTUNE)
        return data.with_options(options)

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

    @by_tf_data
    def full_size_naive(self) -> tf.data.Dataset:
        """full-size PNG → tf.data, one after the other"""
        return self.naive(self.full_size(), self.read_file)

    @by_tf_data
    def full_size_tuned(self) -> tf.data.Dataset:
        """full-size PNG → tf.data, in parallel, with prefetch"""
        return self.tuned(self.full_size(), self.read_file)

    def full_size(self) -> tf.data.Dataset:
        """The names of the full-size PNG files with their labels, int8 (findings,), shuffled."""
        files, labels = full_size_images(self.folder)
        names = [str(file) for file in files]
        return tf.data.Dataset.from_tensor_slices((names, labels)).shuffle(len(files))

    def read_file(self, path: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Image and labels of a full-size PNG file."""
        return self.shrunken(tf.io.read_file(path)), labels

    def shrunken(self, content: tf.Tensor) -> tf.Tensor:
        """The uint8 image (size, size, 1) of a full-size PNG, by area as ingest does it."""
        image = tf.io.decode_png(content, 1)
        shrunken = tf.image.resize(image, self.shape[:2], method="area")
        return tf.cast(tf.round(shrunken), tf.uint8)


WAYS = ("chexspark", "pyarrow_loop", "tfrecord_raw", "make_batch_reader", "tfrecord_png",
        "make_reader", "make_reader_png", "full_size_tuned", "full_size_naive")  # fmt: skip


def measure(ways: Ways, name: str, seconds: float) -> tuple[int, float]:
    """Whole epochs for at least that long: images, seconds."""
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in getattr(ways, name)():
            images += images_in(batch)
    return images, time.perf_counter() - started


def waiting_while_training(ways: Ways, steps: int) -> float:
    """Share of the time of `steps` training steps of DenseNet-121 that waits for input."""
    step = compiled_steps("densenet121", ways.size, ways.findings, ways.batch)
    with contextlib.closing(again_and_again(ways.chexspark, ways.batch)) as batches:
        fed = train_fed(step, batches, steps)
    return fed.waited / fed.seconds


def main(folder: str, batch: str, rounds: str, seconds: str, steps: str) -> None:
    """Measure all ways and tell what was found."""
    results = Results()
    pa.set_memory_pool(pa.system_memory_pool())  # as on a rank; the bare loop gains most
    ways = Ways(folder, int(batch))
    for number in range(-1, int(rounds)):  # round −1 warms up
        for name in WAYS:
            images, took = measure(ways, name, float(seconds) if number >= 0 else 0.0)
            if number >= 0:
                results.tell(way=name, round=number, images=images, seconds=took)
    results.tell(way="training", waiting=waiting_while_training(ways, int(steps)))


if __name__ == "__main__":
    main(*sys.argv[1:])
