"""Parquet tables of Spark, whatever their folders are called. Runs on the driver and in Spark tasks.

Spark's own reader takes a path for a pattern, and Hadoop refuses some letters; Java reads names in the
letters of its locale, and knows object stores only where more has been installed. Tables are therefore written by
pyarrow in the tasks, each row where it comes up, and read by Spark where it takes the name, else by pyarrow.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from chexspark.session import java_has_all_letters
from chexspark.storage import Location, locate

NO_NAME = re.compile(r"[\[\]{}*?\\:^\x00-\x1f]")  # what Hadoop or Spark take for something else
PART = re.compile(r"part-\d{5,}-\d{3,}\.parquet")  # of one task, until all are brought into one
DONE = "_SUCCESS"  # the file that says that a table is whole
FILE_ROWS = 4096  # rows of a file of a task: what a death of the task costs at most
BATCH_BYTES = 16 << 20  # that a task has of a table at a time
MOST_MERGED = 250_000  # rows that the driver brings into one file: of 14 findings some 100 MB


def read_parquet(spark: SparkSession, places: list[Location]) -> DataFrame:
    """Parquet files, or all below folders, as a DataFrame; the schema is that of the first.

    Raises OSError, and ValueError for what is no Parquet.
    """
    if not any(place.is_object_store for place in places) and all(
        spark_takes(place.spark_uri) for place in places
    ):
        return spark.read.parquet(*(place.spark_uri for place in places))
    uris = [uri for place in places for uri in parquet_files(place)]
    first = locate(uris[0])
    schema = for_spark(pq.read_schema(first.path, filesystem=first.filesystem))

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                place = locate(uris[number])
                with pq.ParquetFile(place.path, filesystem=place.filesystem) as file:
                    for part in file.iter_batches(batch_rows(file.metadata), columns=schema.names):
                        yield part.cast(schema)

    numbers = spark.range(0, len(uris), 1, len(uris))
    return numbers.mapInArrow(rows, from_arrow_schema(schema))


def for_spark(schema: pa.Schema) -> pa.Schema:
    """The schema as Spark has it: without bytes of a fixed length, and nothing but columns."""
    fixed = pa.types.is_fixed_size_binary
    fields = [pa.field(f.name, pa.binary() if fixed(f.type) else f.type) for f in schema]
    return pa.schema(fields)


def batch_rows(metadata: pq.FileMetaData) -> int:
    """How many rows of a file have some `BATCH_BYTES`: with images, few."""
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    return max(1, BATCH_BYTES * max(1, metadata.num_rows) // max(1, sum(groups)))


def spark_takes(uri: str) -> bool:
    """Whether Spark reads what lies at a URI, and not something else or nothing."""
    if NO_NAME.search(uri.partition("://")[2]):
        return False
    return uri.isascii() or java_has_all_letters()


def parquet_files(place: Location) -> list[str]:
    """The URIs of a table's files, in order. Names that begin with ``.`` or ``_`` are none."""
    if not place.is_directory():
        return [place.uri]
    below = [file.path[len(place.path) :].lstrip("/") for file in place.list_files()]
    return [(place / name).uri for name in below if not re.search(r"(^|/)[._]", name)]


class PartWriter:
    """A context manager: rows of one task into files of a table, each written aside and renamed whole.

    A task that is tried again writes the same files anew. Of a task that fails, the file that is being
    written goes; those before it stay.
    """

    def __init__(self, table: Location, schema: pa.Schema, task: int) -> None:
        self.table, self.schema, self.task = table, schema, task
        self.number = self.rows = 0
        self.aside = table
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.end_file()
        finally:
            self.drop_file()

    def drop_file(self) -> None:
        """Leave nothing of the file that is being written, if there is one."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk ends the writing, and the closing too
                self.writer.close()
            self.aside.filesystem.delete_file(self.aside.path)

    def write(self, rows: pa.RecordBatch) -> None:
        """Take rows of the schema's columns."""
        if not rows.num_rows:
            return
        if self.writer is None:
            self.aside = self.place().hidden_name()
            self.writer = pq.ParquetWriter(
                self.aside.path, self.schema, filesystem=self.aside.filesystem
            )
        self.writer.write_batch(rows.cast(self.schema))
        self.rows += rows.num_rows
        if self.rows >= FILE_ROWS:
            self.end_file()

    def end_file(self) -> None:
        """Move the file that is being written, if there is one, to its place."""
        if self.writer is None:
            return
        self.writer.close()
        self.aside.move_to(self.place())
        self.writer, self.rows, self.number = None, 0, self.number + 1

    def place(self) -> Location:
        """Where the next file goes."""
        return self.table / f"part-{self.task:05}-{self.number:03}.parquet"


def write_parts(frame: DataFrame, table: Location) -> pa.Schema:
    """Run a frame and let each of its tasks write its rows into files of a table; their schema."""
    schema, uri = for_spark(to_arrow_schema(frame.schema)), table.uri

    def written(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with PartWriter(locate(uri), schema, TaskContext.get().partitionId()) as writer:
            for batch in batches:
                writer.write(batch)
        yield pa.RecordBatch.from_pydict({"task": pa.array([], pa.int64())})

    frame.mapInArrow(written, "task long").collect()
    return schema


def read_parts(table: Location, schema: pa.Schema) -> pa.Table:
    """All rows of a table that tasks have written. Raises OSError."""
    places = [locate(uri) for uri in parquet_files(table)]
    parts = [pq.read_table(p.path, schema=schema, filesystem=p.filesystem) for p in places]
    return pa.concat_tables([schema.empty_table(), *parts])


def is_unfinished(table: Location) -> bool:
    """Whether tasks have written files of a table that was never finished."""
    written = any(PART.fullmatch(uri.rpartition("/")[2]) for uri in parquet_files(table))
    return written and not (table / DONE).exists()


def finish(table: Location, schema: pa.Schema, order: str) -> None:
    """Bring a table's files into one in the order of a column, if they have not very many rows.

    An empty table becomes one file of no rows, so that it can be read too. ``_SUCCESS`` beside it says
    that it is whole, as Spark's own does. The one file is written before the others go and gets its
    name after: rows are never there twice.
    """
    parts = [locate(uri) for uri in parquet_files(table)]
    counts = [pq.read_metadata(part.path, filesystem=part.filesystem).num_rows for part in parts]
    if sum(counts) <= MOST_MERGED:
        whole = table / "part-00000.parquet"
        aside = whole.hidden_name()
        rows = read_parts(table, schema).sort_by(order)
        pq.write_table(rows, aside.path, filesystem=aside.filesystem)
        for part in parts:
            part.filesystem.delete_file(part.path)
        aside.move_to(whole)
    (table / DONE).write_bytes(b"")
