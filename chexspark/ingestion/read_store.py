"""A store as a Spark DataFrame. Runs on the driver; rows are read in Spark tasks.

In: a store. Out: a row per image, with the image as bytes and a column per finding. Spark reads the
files as they are; checksums are looked at by training and evaluation, not here.
"""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, expr, lit, when

from chexspark.errors import UserError, closest
from chexspark.findings import LABEL, UNKNOWN, column_name
from chexspark.session import start_session
from chexspark.spark_tables import read_parquet
from chexspark.storage import locate
from chexspark.store.manifest import SPLITS, read_manifest
from chexspark.store.schema import IMAGE, LABELS, image_header, parquet_schema


def read_store(spark: SparkSession | None, path: str, split: str | None = None) -> DataFrame:
    """Read a split of the store at `path`, or all three, lazily.

    Columns: ``split``; ``image`` (bytes, 8-bit gray, row after row), ``height``, ``width`` in pixels;
    ``label_<Finding>`` (tinyint 1 or 0, null for unknown) for each finding of the store, signs other
    than letters, digits and ``_`` as ``_``; and what else the store has: image_index, patient_id,
    view_position, sex, age (years), follow_up, study_id, source, original_width, original_height, … Raises UserError where
    there is no store, or no such split.

        read_store(spark, "stores/nih", "train").filter("label_Mass = 1").count()
    """
    if split is not None and split not in SPLITS:
        raise UserError(
            f"split is {split!r}, but must be {', '.join(SPLITS)}{closest(split, SPLITS)}"
        )
    store = locate(path)
    manifest = read_manifest(store)
    spark = start_session(spark, "read_store")
    names = [split] if split else [name for name in SPLITS if manifest.splits[name].files]
    parts = []
    for name in names:
        files = [store / file.path for file in manifest.splits[name].files]
        if not files:
            raise UserError(f"{store} has no images in its {name} split")
        parts.append(read_parquet(spark, files).withColumn("split", lit(name)))
    table = parts[0]
    for part in parts[1:]:
        table = table.unionByName(part)
    size = manifest.image_size
    labels = [
        when(col(LABELS)[i] != UNKNOWN, col(LABELS)[i]).alias(LABEL + column_name(finding))
        for i, finding in enumerate(manifest.findings)
    ]
    described = [
        name
        for name in parquet_schema(size, manifest.schema_version).names
        if name not in (IMAGE, LABELS)
    ]
    pixels = expr(f"substring({IMAGE}, {len(image_header(size)) + 1}, {size * size})")
    sides = [lit(size).alias("height"), lit(size).alias("width")]
    return table.select("split", *described, pixels.alias(IMAGE), *sides, *labels)
