"""One set of images in the forms that the ways of `readers` read. Runs on the driver.

In: full-size image files. Out: a folder with ``full-size/`` (the files), ``store/`` (chexspark's),
``tfrecord/`` (raw, PNG and full-size PNG), ``batch-reader/`` (plain Parquet of pixels) and ``petastorm-png/``, each
only where it is asked for; all but those of full size are of the same shrunken images.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyspark.sql import SparkSession

from chexspark.benchmark.full_size import keep_full_size
from chexspark.benchmark.results import measurements
from chexspark.cluster.launch import ENVIRONMENT
from chexspark.data.reader import SplitReader
from chexspark.findings import FINDINGS
from chexspark.ingestion.job import ingest
from chexspark.petastorm_imports import petastorm_imports
from chexspark.phantom import draw_phantom
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest

FULL_SIZE_FILES = 192  # decoding these is slow: fewer measure as well
MADE_IMAGES = 64
MADE_SIZE = 1024
TFRECORD_FILES = 8


def make_forms(
    spark: SparkSession, folder: Path, images: list[Path], count: int, size: int
) -> None:
    """Write the forms of the suite ``reader``. `images` as in `make_store`."""
    make_store(spark, folder, images, count, size)
    keep_full_size(folder, FULL_SIZE_FILES)
    write_batch_reader_form(folder)
    write_petastorm_png(spark, folder, size)
    write_records(folder, "raw", "png")


def make_store(
    spark: SparkSession, folder: Path, images: list[Path], count: int, size: int
) -> None:
    """Write ``store/``. `images` (none: synthetic ones) are repeated until there are `count` to train on."""
    source = folder / "source"
    source.mkdir()
    contents = [path.read_bytes() for path in images] or list(made_images())
    # A store has three splits; the two that are not read get an image each.
    names = [f"{number:08}.png" for number in range(count + 2)]
    for name, content in zip(names, itertools.cycle(contents)):
        (source / name).write_bytes(content)
    random = np.random.default_rng(0)
    table = pa.table(
        {"image": names, "patient": names}
        | {finding: random.integers(0, 2, len(names)) for finding in FINDINGS}
    )
    table.to_pandas().to_csv(folder / "labels.csv", index=False)
    splits = ["train"] * count + ["val", "test"]
    pa.table({"patient": names, "split": splits}).to_pandas().to_csv(
        folder / "split.csv", index=False
    )
    ingest(
        spark, images=str(source), labels=str(folder / "labels.csv"), out=str(folder / "store"),
        size=size, split_file=str(folder / "split.csv"),
    )  # fmt: skip


def write_records(folder: Path, *forms: str) -> None:
    """Write ``tfrecord/`` in forms of `reader_records`. Raises RunFailedError with its last words."""
    module = "chexspark.benchmark.reader_records"  # TensorFlow stays out of the driver
    list(measurements(module, [folder, TFRECORD_FILES, *forms], ENVIRONMENT))  # it tells none


def made_images() -> Iterator[bytes]:
    """Phantoms as PNG files."""
    for number in range(MADE_IMAGES):
        random = np.random.Generator(np.random.PCG64([0, number]))
        pixels, _ = draw_phantom(MADE_SIZE, FINDINGS[number % 14 : number % 14 + 2], random)
        yield cv2.imencode(".png", pixels)[1].tobytes()


def row_groups(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 (rows, size, size) and labels int8 (rows, findings) of the store, by row group."""
    store = locate(str(folder / "store"))
    reader = SplitReader(store, read_manifest(store), "train")
    for number in range(len(reader.row_groups)):
        yield reader.read_row_group(number)


def write_batch_reader_form(folder: Path) -> None:
    """Plain Parquet: a binary column of pixels, a list column of labels."""
    (folder / "batch-reader").mkdir()
    schema = pa.schema([("image", pa.binary()), ("labels", pa.list_(pa.int64()))])
    path = folder / "batch-reader" / "part-0.parquet"
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for images, labels in row_groups(folder):
            columns = [[image.tobytes() for image in images], labels.tolist()]
            writer.write_table(pa.table(columns, schema=schema), len(images))


def write_petastorm_png(spark: SparkSession, folder: Path, size: int) -> None:
    """A Petastorm dataset as its documentation makes one, images in its PNG codec."""
    with petastorm_imports():
        from petastorm.codecs import CompressedImageCodec, NdarrayCodec
        from petastorm.etl.dataset_metadata import materialize_dataset
        from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row

    schema = Unischema(
        "Png",
        [
            UnischemaField("image", np.uint8, (size, size), CompressedImageCodec("png"), False),
            UnischemaField("labels", np.int8, (len(FINDINGS),), NdarrayCodec(), False),
        ],
    )
    rows = [
        dict_to_spark_row(schema, {"image": image, "labels": label})
        for images, labels in row_groups(folder)
        for image, label in zip(images, labels, strict=True)
    ]
    url = (folder / "petastorm-png").as_uri()
    with materialize_dataset(spark, url, schema, 4, filesystem_factory=LocalFileSystem):
        frame = spark.createDataFrame(rows, schema.as_spark_schema())
        frame.coalesce(2).write.parquet(url)
