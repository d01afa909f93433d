import contextlib
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from chexspark.data.pipeline import read_ahead
from chexspark.data.plan import RankFacts, fixed_plan, shown_rows, training_plan, with_filler
from chexspark.data.reader import Cache, SplitReader
from chexspark.errors import UserError
from chexspark.ingestion.job import read_stored
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.row_groups import (
    DamagedStoreError,
    patients_of_split,
    read_row_group,
    row_groups,
)
from chexspark.store.schema import RowGroupChecksum, image_header


@pytest.fixture
def reader(store, manifest):
    return SplitReader(store, manifest, "train")


def expected_rows(store, manifest):
    """Images and labels of the split in store order, read by plain pyarrow."""
    tables = [pq.read_table((store / f.path).path) for f in manifest.splits["train"].files]
    header = len(image_header(32))
    images = [
        np.frombuffer(v, np.uint8)[header:].reshape(32, 32)
        for t in tables
        for v in t["image"].to_pylist()
    ]
    return np.stack(images), np.array([v for t in tables for v in t["labels"].to_pylist()])


def test_batches_are_the_rows_of_the_plan(store, manifest, reader):
    images, labels = expected_rows(store, manifest)
    plan = with_filler(training_plan(reader.row_groups, 7, RankFacts(0, 1), 0, 0))
    seen = 0
    for rows, batch in zip(plan, reader.batches(plan), strict=True):
        real = rows >= 0
        np.testing.assert_array_equal(batch.images[real], images[rows[real]])
        np.testing.assert_array_equal(batch.labels[real], labels[rows[real]])
        np.testing.assert_array_equal(batch.weights, real)
        np.testing.assert_array_equal(batch.images, images[shown_rows(rows)])
        seen += real.sum()
    assert seen == len(images) and not (plan >= 0).all()


def test_row_groups_in_pieces_and_a_ring_that_goes_round(store, manifest, reader, monkeypatch):
    images, labels = expected_rows(store, manifest)
    monkeypatch.setattr("chexspark.store.row_groups.PIECE_BYTES", 3 * 32 * 32)
    for ahead_bytes in (0, 20_000, 1 << 30):
        plan = training_plan(reader.row_groups, 4, RankFacts(0, 1), 0, 0)
        for rows, batch in zip(plan, reader.batches(plan, ahead_bytes), strict=True):
            np.testing.assert_array_equal(batch.images[rows >= 0], images[rows[rows >= 0]])
            np.testing.assert_array_equal(batch.labels[rows >= 0], labels[rows[rows >= 0]])


def test_going_on_at_a_step_gives_the_same_batches(reader):
    plan = training_plan(reader.row_groups, 8, RankFacts(1, 2), 0, 5)
    whole = [batch.images.copy() for batch in reader.batches(plan)]
    rest = [batch.images.copy() for batch in reader.batches(plan[3:])]
    np.testing.assert_array_equal(whole[3 : len(plan) - 1], rest[:-1])


def counted(reader, monkeypatch):
    read = []
    plain = reader.stored_pieces

    def count(number):
        read.append(number)
        return plain(number)

    monkeypatch.setattr(reader, "stored_pieces", count)
    return read


def test_a_row_group_is_read_once_and_only_if_needed(reader, monkeypatch):
    read = counted(reader, monkeypatch)
    plan = training_plan(reader.row_groups, 8, RankFacts(0, 1), 0, 0)
    list(reader.batches(plan))
    assert sorted(read) == list(range(len(reader.row_groups)))
    read.clear()
    groups = np.repeat(np.arange(len(reader.row_groups)), reader.row_groups)
    left = plan[-2:]
    list(reader.batches(left))
    assert sorted(read) == sorted(set(groups[left[left >= 0]]))


class AtOnce:
    """A pool that does its work when it is given: what is read ahead is what has been asked for."""

    def submit(self, work, *given):
        done = Future()
        done.set_result(work(*given))
        return done


def test_reading_ahead_is_bounded_in_bytes(reader, monkeypatch):
    monkeypatch.setattr("chexspark.data.reader.pool", lambda _: contextlib.nullcontext(AtOnce()))
    read = counted(reader, monkeypatch)
    plan = fixed_plan(reader.row_groups, 5, RankFacts(0, 1))
    ahead = []
    for step, _ in enumerate(reader.batches(plan, ahead_bytes=25 * 32 * 32), start=1):
        ahead.append(sum(reader.row_groups[number] for number in read) - 5 * step)
    # Ahead of the batch that is out: 25 rows, and the group of 10 that it is part of.
    assert ahead[0] > 10 and max(ahead) <= 10 + 25


def test_what_is_kept_in_memory_is_not_read_again(store, manifest, monkeypatch):
    sizes = SplitReader(store, manifest, "train").row_groups
    for kept, expected in ((10**6, 0), (2 * 10 * 32 * 32, len(sizes) - 2)):
        reader = SplitReader(store, manifest, "train", Cache(kept))
        read = counted(reader, monkeypatch)
        first, second = (
            {
                int(row): image.tobytes()
                for b in reader.batches(training_plan(sizes, 8, RankFacts(0, 1), 0, epoch))
                for row, image in zip(b.rows, b.images, strict=True)
                if row >= 0
            }
            for epoch in (0, 1)
        )
        assert first == second
        assert len(read) == len(sizes) + expected


@pytest.mark.parametrize("rows, world_size, batch", [(1, 4, 2), (9, 1, 8), (5, 8, 4)])
def test_fewer_rows_than_ranks_and_a_last_batch_of_one(store, manifest, rows, world_size, batch):
    seen = []
    for rank in range(world_size):
        reader = SplitReader(store, manifest, "train")
        plan = training_plan([rows], batch * world_size, RankFacts(rank, world_size), 0, 0)
        for step in reader.batches(plan):
            assert step.images.shape == (batch, 32, 32)
            seen += step.rows[step.weights > 0].tolist()
    assert sorted(seen) == list(range(rows))


def test_filler_has_images_of_other_rows_or_is_black(reader):
    plan = np.array([[3, 4, 5, -2 - 12], [-2 - 4, -2 - 3, -1, 6], [-1, -1, -1, -1]])
    first, second, third = (
        (b.images.copy(), b.weights, b.labels.copy(), b.rows) for b in reader.batches(plan)
    )
    (alone,) = (b.images.copy() for b in reader.batches(np.array([[3, 4, 12, 6]])))
    np.testing.assert_array_equal(first[0][[0, 1, 3]], alone[:3])
    np.testing.assert_array_equal(second[0], [alone[1], alone[0], np.zeros((32, 32)), alone[3]])
    assert first[1].tolist() == [1, 1, 1, 0] and second[1].tolist() == [0, 0, 0, 1]
    assert first[3].tolist() == [3, 4, 5, -1] and second[3].tolist() == [-1, -1, -1, 6]
    assert not second[2][:3].any() and not any(each.any() for each in third[:3])


def test_filler_that_makes_a_group_s_rows_as_many_as_it_has_is_no_group_read_whole(reader):
    rows = reader.row_groups[0]
    plan = np.array([[*range(rows - 1), -2 - 0]])  # one row is missing, and another comes twice
    (images,) = (b.images.copy() for b in reader.batches(plan))
    (alone,) = (b.images.copy() for b in reader.batches(np.arange(rows)[None]))
    np.testing.assert_array_equal(images, alone[[*range(rows - 1), 0]])


def test_memory_is_flat_over_fifty_epochs(store, manifest):
    """In a process of its own: the growth from the tenth to the fiftieth epoch."""
    script = """
import sys, psutil
from chexspark.data.augmentation import random_numbers
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader
from chexspark.store.check import check_files
from chexspark.store.row_groups import (
    DamagedStoreError,
    patients_of_split,
    read_row_group,
    row_groups,
)
from chexspark.data.pipeline import read_ahead
from chexspark.store.manifest import read_manifest
from chexspark.storage import locate
store = locate(sys.argv[1])
reader = SplitReader(store, read_manifest(store), "train")
resident = []
for epoch in range(50):
    plan = training_plan(reader.row_groups, 8, RankFacts(0, 1), 0, epoch)
    random_numbers(0, epoch, sum(reader.row_groups))
    for batch in read_ahead(reader.batches(plan), 2):
        pass
    resident.append(psutil.Process().memory_info().rss)
print(max(resident[10:]) - resident[9])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, store.path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 << 20


def test_a_flipped_byte_is_found_with_file_and_row_group(store, manifest, tmp_path):
    copy = locate(str(tmp_path / "store"))
    shutil.copytree(store.path, copy.path)
    path = Path((copy / manifest.splits["train"].files[1].path).path)
    content = bytearray(path.read_bytes())
    content[len(image_header(32)) + 2000] ^= 1
    path.write_bytes(content)
    damaged = SplitReader(copy, manifest, "train")
    plan = fixed_plan(damaged.row_groups, 8, RankFacts(0, 1))
    with pytest.raises(
        DamagedStoreError, match=rf"{path.name}, row group 0: pixels or labels have changed"
    ):
        list(damaged.batches(plan))


def test_missing_and_changed_files_are_named_before_a_run(store, manifest, tmp_path):
    copy = locate(str(tmp_path / "store"))
    shutil.copytree(store.path, copy.path)
    check_files(copy, manifest, ("train", "val", "test"))
    name = manifest.splits["val"].files[0].path
    path = tmp_path / "store" / name
    content = path.read_bytes()
    other = tmp_path / "store" / manifest.splits["test"].files[0].path
    for change, words in (
        (lambda: path.write_bytes(content[:-1]), "bytes, but ingest wrote"),
        (lambda: path.write_bytes(content[:-4] + b"...."), "not readable as Parquet"),
        (lambda: path.write_bytes(other.read_bytes()), "but ingest wrote|other row groups"),
        (path.unlink, "is missing"),
    ):
        change()
        with pytest.raises(UserError, match=f"{name} .*({words})"):
            check_files(copy, manifest, ("train", "val"))
        check_files(copy, manifest, ("train",))


def test_a_missing_file_is_named(store, manifest, tmp_path):
    reader = SplitReader(locate(str(tmp_path)), manifest, "train")
    with pytest.raises(DamagedStoreError, match=r"part-00000-000.parquet, row group 0"):
        reader.read_row_group(0)


def test_a_hostile_pickle_in_petastorm_s_metadata_is_not_run(store, manifest, tmp_path):
    copy = locate(str(tmp_path / "store"))
    shutil.copytree(store.path, copy.path)
    place = tmp_path / "store" / "train" / "_common_metadata"
    trap = tmp_path / "trap"
    key = b"dataset-toolkit.unischema.v1"
    schema = pq.read_schema(place)
    hostile = pickle.dumps(Trap(str(trap)))
    pq.write_metadata(schema.with_metadata({**schema.metadata, key: hostile}), place)
    reader = SplitReader(copy, manifest, "train")
    assert sum(len(reader.read_row_group(i)[0]) for i in range(len(reader.row_groups)))
    assert not trap.exists()
    pickle.loads(pq.read_schema(place).metadata[key])
    assert trap.exists(), "the trap works when sprung"


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_the_reader_s_thread_ends_with_its_consumer(wait_for):
    given = []

    def source():
        for number in range(1000):
            given.append(number)
            yield number

    before = set(threading.enumerate())
    stream = read_ahead(source(), ahead=2)
    assert next(stream) == 0
    (thread,) = set(threading.enumerate()) - before
    wait_for(lambda: len(given) == 4)  # one is out, two wait, and one more is in hand
    stream.close()
    assert not thread.is_alive() and len(given) == 4


def test_an_error_in_the_background_is_raised_in_front():
    def source():
        yield 1
        raise OSError("the disk is gone")

    stream = read_ahead(source(), ahead=2)
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_the_checksum_sees_pixels_labels_and_order():
    images, labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(2, 14, dtype=np.int8)
    other = images.copy()
    other[1, 1, 1] ^= 1

    def checksum(images, labels):
        found = RowGroupChecksum()
        found.add(images, labels)
        return found.hexdigest()

    sums = {
        checksum(*v)
        for v in ((images, labels), (other, labels), (images, 1 - labels), (images[::-1], labels))
    }
    assert len(sums) == 4


def test_a_changed_patient_is_found(store, manifest, tmp_path):
    copy = locate(str(tmp_path / "store"))
    shutil.copytree(store.path, copy.path)
    file = manifest.splits["test"].files[0]
    path = Path((copy / file.path).path)
    table = pq.read_table(path)
    patients = table["patient_id"].to_pylist()
    changed = table.set_column(
        table.schema.get_field_index("patient_id"), table.schema.field("patient_id"),
        [["stranger", *patients[1:]]],
    )  # fmt: skip
    pq.write_table(changed, path, row_group_size=file.row_groups[0])
    message = rf"{path.name}, row group 0: names, patients or what is known of them have changed"
    with pytest.raises(DamagedStoreError, match=message):
        patients_of_split(copy, manifest, "test")
    with pytest.raises(DamagedStoreError, match=message):
        read_stored(copy, manifest)
    group = row_groups(copy, manifest, "test")[0]
    with pytest.raises(DamagedStoreError, match=message):
        read_row_group(group, 32, ("image_index",))
    assert len(read_row_group(group, 32).images) == group.rows
    whole = row_groups(store, manifest, "test")[0]
    assert (
        read_row_group(whole, 32, ("patient_id",)).others["patient_id"].to_pylist()
        == (patients[: whole.rows])
    )
