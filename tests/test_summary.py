"""What an ingest comes to, from results written by hand: no Spark, no files."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from chexspark.findings import FINDINGS
from chexspark.ingestion.sets import ImageSet
from chexspark.ingestion.summary import (
    boxes_of,
    kind,
    names_present,
    patients_of,
    reasons,
    refused_images,
    summary_of,
    summary_text,
    table_of,
    too_many_refused,
)
from chexspark.ingestion.task import Kept, TaskResult, label_counts
from chexspark.storage import locate


def kept(name, patient="1", split="train", labels=()):
    values = np.zeros(len(FINDINGS), np.int8)
    for finding, value in dict(labels).items():
        values[FINDINGS.index(finding)] = value
    return Kept(name, patient, split, values.tobytes(), "L", False, "00" * 32, 0, (64, 64), "a set")


def test_a_refused_image_with_a_label_is_there():
    labels = {n: SimpleNamespace(path=n) for n in ("b", "a", "no", "deep/b")}
    inputs = SimpleNamespace(
        files=[SimpleNamespace(name="loose")], image_set=ImageSet("B", "B/"), labels=labels
    )
    stored = [
        dataclasses.replace(kept("B/b"), source="B"),
        dataclasses.replace(kept("a"), source="A"),
    ]
    result = TaskResult(
        unlabelled=["u"], labelled=["a.png"], quarantined=[("/d/t.tar", "damaged", 1)]
    )
    assert names_present(inputs, stored, [result]) == {"loose", "b", "deep/b", "u", "a.png"}


def test_boxes_beyond_their_image_are_left_out_and_named():
    rows = [("a", 0, 0, 100, 50), ("a", 50, 0, 51, 50), ("a", 50, 0, 52, 50), ("b", 0, 0, 9, 9),
            ("a", 0, 40, 10, 20)]  # fmt: skip
    columns = ["image_index", "x", "y", "width", "height"]
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])
    found, outside = boxes_of(table, {"a": (100, 50)}, None, None)
    assert found["width"].to_pylist() == [100, 51] and outside == ["a", "a"]


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


def test_what_is_said_of_shapes_and_annotations(manifest):
    def said(**facts):
        text = summary_text(dataclasses.replace(manifest, **facts), locate("/store"), [])
        return [line for line in text.splitlines() if "square" in line or "annotations" in line]

    assert said(not_square=0) == [] == said(not_square=None), "all are square, or nobody counted"
    assert said(not_square=1200, fit="pad", burned_in=3) == [
        "1,200 images are not square: padded with black (--fit pad)",
        "3 DICOM files say that annotations are burned into them",
    ]
    assert said(not_square=2, fit="crop") == [
        "2 images are not square: cut to their middle (--fit crop)"
    ]


def test_patients_of_each_split():
    images = [kept("a", "1"), kept("b", "1"), kept("c", "2", "val")]
    assert patients_of(images) == {"train": {"1"}, "val": {"2"}, "test": set()}


def test_rows_become_a_table():
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
    assert table_of([("a", 1)], schema).to_pylist() == [{"path": "a", "bytes": 1}]
    assert table_of([], schema).schema == schema
