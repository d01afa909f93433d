"""Flipped bits in a store's Parquet files: each is told, or changes no value."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from spoiling import Tally, flipped, mutants

from chexspark.data.reader import SplitReader
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.manifest import BOXES, SPLITS, read_boxes
from chexspark.store.row_groups import (
    checked_columns,
    groups_of,
    read_row_group,
)
from chexspark.store.schema import LABELS, parquet_schema


def chunks(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Column → the bytes of each of its chunks with their pages; and those of the footer and the marks."""
    found: dict[str, list[tuple[int, int]]] = {}
    with pq.ParquetFile(path) as parquet:
        footer = parquet.metadata
    for number in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(number).column(column)
            first = chunk.dictionary_page_offset or chunk.data_page_offset
            name = chunk.path_in_schema.split(".")[0]
            found.setdefault(name, []).append((first, first + chunk.total_compressed_size))
    size = path.stat().st_size
    found["footer"] = [(size - 8 - footer.serialized_size, size - 8)]
    found["marks"] = [(0, 4), (size - 8, size)]
    return found


@pytest.fixture(scope="module")
def copy(store, tmp_path_factory):
    """A copy of the store that may be spoiled, on a file system in memory where there is one."""
    place = tmp_path_factory.mktemp("spoiled") / "store"
    shutil.copytree(store.path, place)
    return locate(str(place))


def by_training(copy, manifest, file):
    """All of a file that training reads, by the reader that it has."""
    reader = SplitReader(copy, manifest, file.path.split("/")[0])
    numbers = [i for i, name in enumerate(reader.files) if name == file.path]
    return [part.tobytes() for i in numbers for part in reader.read_row_group(i)]


def by_evaluation(copy, manifest, file):
    """All of a file, with all columns, as tasks of evaluate read it."""
    schema = parquet_schema(manifest.image_size, manifest.schema_version)
    names = tuple(name for name in schema.names if name not in ("image", LABELS))
    found = []
    for group in groups_of(copy, manifest, file):
        read = read_row_group(group, manifest.image_size, names)
        found += [read.images.tobytes(), read.labels.tobytes(), read.others.to_pylist()]
    return found


def by_append(copy, manifest, file):
    """What an ingest that adds to the store reads: all columns but images."""
    names = ("image_index", "patient_id", LABELS, "perceptual_hash", "source")
    return checked_columns(groups_of(copy, manifest, file), names).to_pylist()


READERS = {"training": by_training, "evaluation": by_evaluation, "append": by_append}


def test_flipped_bits_of_a_store(store, copy, manifest):
    rng = np.random.default_rng(2)
    tallies = {name: Tally(f"store, {name}") for name in [*READERS, "check"]}
    files = [file for split in SPLITS for file in manifest.splits[split].files]
    ranges = {file.path: chunks(Path((store / file.path).path)) for file in files}
    clean = {(n, f.path): read(store, manifest, f) for n, read in READERS.items() for f in files}
    kinds = sorted(ranges[files[0].path])
    for number in range(mutants(200)):
        file = files[int(rng.integers(len(files)))]
        kind = kinds[number % len(kinds)]
        first, end = ranges[file.path][kind][int(rng.integers(len(ranges[file.path][kind])))]
        path = Path((copy / file.path).path)
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, rng, first, end))
        for name, read in READERS.items():

            def judge(found, right=clean[name, file.path]):
                return ("clean values", "") if found == right else ("believed", "other values")

            tallies[name].attempt(
                kind, lambda read=read, file=file: read(copy, manifest, file), judge,
                note=f"{file.path}, number {number}",
            )  # fmt: skip
        split = file.path.split("/")[0]
        tallies["check"].attempt(
            kind, lambda split=split: check_files(copy, manifest, [split]), lambda _: ("passed", "")
        )
        path.write_bytes(whole)
    for tally in tallies.values():
        tally.finish()


def test_flipped_bits_of_the_boxes(store, copy, manifest):
    rng, tally = np.random.default_rng(3), Tally("boxes")
    right = read_boxes(store, manifest)
    path = Path((copy / BOXES).path) / "part-00000.parquet"
    whole = path.read_bytes()

    def judge(found):
        return ("clean values", "") if found.equals(right) else ("believed", "other values")

    for number in range(mutants(60)):
        path.write_bytes(flipped(whole, rng))
        tally.attempt(
            "bit flip", lambda: read_boxes(copy, manifest), judge, note=f"number {number}"
        )
    path.write_bytes(whole)
    tally.finish()
