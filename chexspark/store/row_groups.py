"""The one reader of a store's row groups. Runs on driver, ranks and in Spark tasks.

In: a store and its manifest. Out: images and labels as arrays, checked against the manifest's
checksums. Nothing is unpickled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexspark.errors import UserError
from chexspark.findings import UNKNOWN
from chexspark.storage import Location, locate
from chexspark.store.manifest import FILE_NAME, Manifest, StoreFile
from chexspark.store.schema import (
    DAMAGE,
    IMAGE,
    LABELS,
    RowGroupChecksum,
    columns_checksum,
    images_of,
    labels_of,
    parquet_schema,
)
from chexspark.text_files import one_line

PIXELS = (IMAGE, LABELS)
PIECE_BYTES = 1 << 20  # a row group is decoded in pieces that fit a processor's cache


class DamagedStoreError(UserError):
    """A file is not what the manifest says; the message names file and row group."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split; plain values, that may be sent to a task."""

    uri: str  # of its Parquet file
    number: int  # in the file
    findings: int  # labels of a row
    rows: int
    checksum: str  # of pixels and labels, as the manifest has it
    column_checksum: str | None  # of the other columns; a store of version 1 has none

    def __str__(self) -> str:
        return f"{self.uri}, row group {self.number}"


class Piece(NamedTuple):
    """Rows of a row group that follow each other, from the row `first`."""

    first: int
    images: np.ndarray  # uint8 (rows, size, size)
    labels: np.ndarray  # int8 (rows, findings): 1, 0, or −1 for unknown
    others: pa.Table  # the other columns that were asked for


def row_groups(store: Location, manifest: Manifest, split: str) -> list[RowGroup]:
    """All row groups of a split in the store's order."""
    return [
        group for file in manifest.splits[split].files for group in groups_of(store, manifest, file)
    ]


def groups_of(store: Location, manifest: Manifest, file: StoreFile) -> list[RowGroup]:
    """The row groups of one file."""
    others = file.column_checksums or (None,) * len(file.row_groups)
    known = zip(file.row_groups, file.checksums, others, strict=True)
    uri, findings = (store / file.path).uri, len(manifest.findings)
    return [RowGroup(uri, number, findings, *each) for number, each in enumerate(known)]


def pieces(
    group: RowGroup,
    size: int,
    others: tuple[str, ...] = (),
    place: Location | None = None,
    footers: dict[str, pq.FileMetaData] | None = None,
) -> Iterator[Piece]:
    """Yield a row group of images of `size` × `size` pixels as `Piece`s, in order.

    `others`: columns wanted beside images and labels. `place`: the file's `Location`, where the
    caller has it already. `footers`: a dict in which Parquet footers are kept by file for the next
    call. Raises DamagedStoreError, at the latest after the last piece.
    """
    place = place or locate(group.uri)
    footers = {} if footers is None else footers
    found, first = RowGroupChecksum(), 0
    described: list[pa.Table] = []
    try:
        with place.filesystem.open_input_file(place.path) as source:
            parquet = pq.ParquetFile(source, metadata=footers.get(group.uri))
            footers[group.uri] = parquet.metadata
            columns = [*others_of(parquet), *PIXELS] if others else list(PIXELS)
            for batch in parquet.iter_batches(
                max(1, PIECE_BYTES // size**2), row_groups=[group.number], columns=columns,
                use_threads=False,
            ):  # fmt: skip
                images = images_of(batch[IMAGE], size)
                labels = labels_of(batch[LABELS], group.findings)
                found.add(images, labels)
                table = pa.Table.from_batches([batch]).drop(list(PIXELS))
                described += [table] if others else []
                yield Piece(first, images, labels, table.select(list(others)))
                first += len(images)
    except DAMAGE as error:
        raise DamagedStoreError(f"{group}: {one_line(error)}") from error
    if found.hexdigest() != group.checksum:
        raise DamagedStoreError(f"{group}: pixels or labels have changed since ingest")
    if others:
        check_columns(pa.concat_tables(described), group)


def others_of(parquet: pq.ParquetFile) -> list[str]:
    """All columns but images and labels."""
    return [name for name in parquet.schema_arrow.names if name not in PIXELS]


def check_columns(table: pa.Table, group: RowGroup) -> None:
    """Raise DamagedStoreError when a row group's other columns are not as ingest wrote them."""
    try:
        whole = group.column_checksum in (None, columns_checksum(table))
    except DAMAGE as error:  # values of a type that none of our columns has
        raise DamagedStoreError(f"{group}: {one_line(error)}") from error
    if not whole:
        raise DamagedStoreError(f"{group}: names, patients or what is known of them have changed "
                                "since ingest")  # fmt: skip


def joined(parts: list[Piece]) -> Piece:
    """All of a row group in one piece, in memory of its own."""
    images, labels = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    return Piece(0, images, labels, pa.concat_tables([part.others for part in parts]))


def read_row_group(group: RowGroup, size: int, others: tuple[str, ...] = ()) -> Piece:
    """The whole of a row group, in memory of its own. Raises DamagedStoreError."""
    return joined(list(pieces(group, size, others)))


def image_names(group: RowGroup) -> list[str]:
    """The `image_index` of each row. Raises DamagedStoreError."""
    return checked_column([group], "image_index")


def patients_of_split(store: Location, manifest: Manifest, split: str) -> set[str]:
    """The patients that a split of the store has images of. Raises DamagedStoreError."""
    return set(checked_split(store, manifest, split, ("patient_id",))["patient_id"].to_pylist())


def checked_split(
    store: Location, manifest: Manifest, split: str, names: tuple[str, ...]
) -> pa.Table:
    """Columns, labels among them but not images, of all of a split.

    Raises DamagedStoreError, also where the manifest does not count the patients and labels that are there.
    """
    needed = tuple(dict.fromkeys((*names, "patient_id", LABELS)))
    files = manifest.splits[split].files
    schema = parquet_schema(manifest.image_size, manifest.schema_version)
    empty = pa.schema([schema.field(name) for name in needed]).empty_table()
    parts = [checked_columns(groups_of(store, manifest, file), needed) for file in files]
    table = pa.concat_tables([empty, *parts])
    check_counted(table, manifest, split, store / split)
    return table.select(names)


def check_counted(table: pa.Table, manifest: Manifest, split: str, place: Location) -> None:
    """Raise DamagedStoreError where a manifest counts other patients or labels than a split's table has."""
    said, findings = manifest.splits[split], manifest.findings
    if said.patients != len(table["patient_id"].unique()):
        raise DamagedStoreError(f"{place} has other patients than {FILE_NAME} counts: ingest again")
    labels = labels_of(table[LABELS].combine_chunks(), len(findings))
    for value, counts in ((1, said.positives), (0, said.negatives), (UNKNOWN, said.unknown)):
        there = (labels == value).sum(0).tolist()
        for finding, number in zip(findings, there, strict=True):
            if counts[finding] != number:
                raise DamagedStoreError(
                    f"{place} has other labels of {finding} than {FILE_NAME} counts: ingest again"
                )


def checked_column(groups: list[RowGroup], name: str) -> list:
    """A column, as Python values, of row groups of one file. Raises DamagedStoreError."""
    return checked_columns(groups, (name,))[name].to_pylist()


def checked_columns(groups: list[RowGroup], names: tuple[str, ...]) -> pa.Table:
    """Columns, labels among them but not images, of row groups of one file. Raises DamagedStoreError."""
    place, tables = locate(groups[0].uri), []
    for group in groups:
        try:
            with place.filesystem.open_input_file(place.path) as source:
                parquet = pq.ParquetFile(source)
                taken = [*others_of(parquet), *(n for n in names if n == LABELS)]
                table = parquet.read_row_group(group.number, columns=taken)
            tables.append(table.select(names))
            if LABELS in names:
                check_labels(table, group)
        except DAMAGE as error:
            raise DamagedStoreError(f"{group}: {one_line(error)}") from error
        check_columns(table, group)
    return pa.concat_tables(tables)


def check_labels(table: pa.Table, group: RowGroup) -> None:
    """Raise DamagedStoreError when a row group's labels are not as ingest wrote them."""
    found = RowGroupChecksum()
    for part in table[LABELS].chunks:
        found.add((), labels_of(part, group.findings))
    if not group.checksum.endswith(found.labels.hexdigest()):
        raise DamagedStoreError(f"{group}: labels have changed since ingest")
