"""What an ingest comes to, from results written by hand: no Spark, no files."""

import numpy as np
import pytest

from chexspark.findings import FINDINGS
from chexspark.ingestion.summary import (
    kind,
    path_name,
    patients_of,
    reasons,
    refused_images,
    summary_of,
    table_of,
    too_many_refused,
)
from chexspark.ingestion.task import Kept, TaskResult, label_counts


def kept(name, patient="1", split="train", labels=()):
    values = np.zeros(len(FINDINGS), np.int8)
    for finding, value in dict(labels).items():
        values[FINDINGS.index(finding)] = value
    return Kept(name, patient, split, values.tobytes(), "L", False, "00" * 32, 0)


@pytest.mark.parametrize(
    "path, name",
    [
        ("/a/b.png", "b.png"), ("s3://x/a!images/b.png", "b.png"), ("b.png", "b.png"),
        ("/a!b/c.png", "c.png"), ("/a/x.tar!b.png", "b.png"), ("/a/x.tar", "x.tar"),
    ],
)  # fmt: skip
def test_the_name_of_a_path_or_a_member(path, name):
    assert path_name(path) == name


def test_reasons_are_counted_by_their_kind_the_most_frequent_first():
    refused = [("a", "blank: all", 1), ("b", "empty file", 0), ("c", "blank", 2)]
    assert reasons(refused) == "2 blank, 1 empty file"
    assert kind("damaged archive: a: b") == "damaged archive"


def test_the_share_of_refused_images():
    results = [
        TaskResult(kept=[kept("a"), kept("b")], quarantined=[("z", "blank: x", 1)]),
        TaskResult(kept=[kept("c")]),
    ]
    assert refused_images(results) == [("z", "blank: x", 1)]
    assert too_many_refused(results, 0.25) is None, "as many as may be"
    assert too_many_refused(results, 0.24) == (
        "1 of 4 images were refused (1 blank), more than --max-bad=0.24"
    )
    assert too_many_refused([], 0.0) is None
    assert too_many_refused([TaskResult(quarantined=[("z", "blank", 1)])], 1.0) is None


def test_a_split_s_counts():
    images = [
        kept("a", "1", labels={"Mass": 1, "Edema": -1}),
        kept("b", "1", labels={"Mass": 1}),
        kept("c", "2", labels={"Mass": -1}),
    ]
    summary = summary_of(images, FINDINGS, ("file",))
    assert (summary.images, summary.patients, summary.files) == (3, 2, ("file",))
    found = (summary.positives, summary.negatives, summary.unknown)
    assert [part["Mass"] for part in found] == [2, 0, 1]
    assert [part["Edema"] for part in found] == [0, 2, 1]
    assert [part["Hernia"] for part in found] == [0, 3, 0]
    assert label_counts([], 14).shape == (14, 3) and summary_of([], FINDINGS, ()).images == 0


def test_patients_of_each_split():
    images = [kept("a", "1"), kept("b", "1"), kept("c", "2", "val")]
    assert patients_of(images) == {"train": {"1"}, "val": {"2"}, "test": set()}


def test_rows_become_a_table():
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
    assert table_of([("a", 1)], schema).to_pylist() == [{"path": "a", "bytes": 1}]
    assert table_of([], schema).schema == schema
