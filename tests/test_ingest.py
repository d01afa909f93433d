import json
import shutil

import numpy as np
import pandas as pd
import pytest

from chexspark import ingest
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.images import prepare
from chexspark.ingestion.labels import read_labels
from chexspark.petastorm_imports import petastorm_imports
from chexspark.preparation import Preparation
from chexspark.storage import locate
from chexspark.store.manifest import SPLITS, class_weights, read_manifest
from chexspark.text_files import with_checksum

with petastorm_imports():
    from petastorm import make_reader


def settings(release, out, **more):
    return {
        "images": str(release / "images"), "labels": str(release / "Data_Entry_2017.csv"),
        "out": str(out), "size": 32, **more,
    }  # fmt: skip


def frame(spark, store):
    return {s: spark.read.parquet((store / s).spark_uri).toPandas() for s in SPLITS}


def test_the_store_holds_every_image_with_its_labels(spark, release, store, manifest):
    truth = read_labels(locate(str(release / "Data_Entry_2017.csv"))).rows.set_index("image_index")
    found = pd.concat(frame(spark, store).values()).set_index("image_index")
    assert sorted(found.index) == sorted(truth.index)
    for name, row in found.iterrows():
        assert list(row.labels) == truth.labels[name].tolist()
        assert (row.patient_id, row.age, row.sex) == tuple(
            truth.loc[name, ["patient_id", "age", "sex"]]
        )
        pixels = prepare((release / "images" / name).read_bytes(), Preparation(32)).pixels
        assert bytes(row.image).endswith(pixels.tobytes())
    assert sum(split.images for split in manifest.splits.values()) == 96


def test_no_patient_crosses_splits(spark, store, manifest):
    patients = {name: set(table.patient_id) for name, table in frame(spark, store).items()}
    assert not patients["train"] & patients["val"]
    assert not patients["test"] & (patients["train"] | patients["val"])
    assert {n: len(p) for n, p in patients.items()} == {
        n: manifest.splits[n].patients for n in SPLITS
    }


def test_the_manifest_counts_what_is_there(spark, store, manifest):
    for name, table in frame(spark, store).items():
        labels = np.stack(table.labels)
        split = manifest.splits[name]
        assert split.images == len(table)
        assert list(split.positives.values()) == (labels == 1).sum(0).tolist()
        assert list(split.negatives.values()) == (labels == 0).sum(0).tolist()
        assert sum(sum(file.row_groups) for file in split.files) == len(table)
        assert all(rows <= 10 for file in split.files for rows in file.row_groups)
        for file in split.files:
            assert (store / file.path).filesystem.get_file_info(
                (store / file.path).path
            ).size == file.bytes
    weights = class_weights(manifest.findings, manifest.splits["train"])["Mass"]
    positive, negative = (
        getattr(manifest.splits["train"], n)["Mass"] for n in ("positives", "negatives")
    )
    assert weights == {
        "positive": negative / (positive + negative),
        "negative": positive / (positive + negative),
    }


@pytest.mark.filterwarnings("ignore")
def test_plain_petastorm_reads_the_same_rows(spark, store):
    for name, table in frame(spark, store).items():
        expected = table.set_index("image_index")
        with make_reader(
            (store / name).spark_uri, num_epochs=1, reader_pool_type="dummy"
        ) as reader:
            rows = list(reader)
        assert sorted(row.image_index for row in rows) == sorted(expected.index)
        for row in rows:
            assert row.image.shape == (32, 32) and row.image.dtype == np.uint8
            assert bytes(expected.image[row.image_index]).endswith(row.image.tobytes())
            np.testing.assert_array_equal(row.labels, expected.labels[row.image_index])


def test_boxes_come_along(spark, store, manifest):
    boxes = spark.read.parquet((store / "boxes").spark_uri)
    assert boxes.columns == ["image_index", "finding", "x", "y", "width", "height"]
    assert boxes.count() == manifest.boxes > 0


def test_the_same_input_again_does_nothing(spark, release, store, capsys):
    before = (store / "dataset.json").read_bytes()
    boxes = str(release / "BBox_List_2017.csv")
    again = settings(release, store.path, boxes=boxes, rows_per_group=10)
    manifest = ingest(spark, **again)
    assert "nothing to do" in capsys.readouterr().out
    assert manifest == read_manifest(store) and (store / "dataset.json").read_bytes() == before
    with pytest.raises(UserError, match="split_seed 0 there, 5 here"):
        ingest(spark, **again | {"split_seed": 5})
    with pytest.raises(UserError, match="already holds a store of other images"):
        ingest(spark, **{name: value for name, value in again.items() if name != "boxes"})


def test_bad_images_are_set_aside_and_the_rest_is_as_before(
    spark, release, store, tmp_path, capsys
):
    shutil.copytree(release / "images", tmp_path / "images")
    train = frame(spark, store)["train"].image_index
    spoiled = {train[0]: b"", train[1]: b"no image", train[2]: None}
    for name, content in spoiled.items():
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[:150] if content is None else content)
    (tmp_path / "images" / "notes.txt").write_text("not for reading")
    out = locate(str(tmp_path / "store"))
    manifest = ingest(spark, **settings(release, out.path, images=str(tmp_path / "images")))
    assert manifest.unmatched == {"file that is no image": 1}
    assert (out / "unmatched").read_table().to_pylist() == [
        {"name": "notes.txt", "kind": "file that is no image"}
    ]
    assert "passed over, as no images: 1 (1 .txt): notes.txt" in capsys.readouterr().out
    refused = spark.read.parquet((out / "quarantine").spark_uri).toPandas().set_index("path")
    assert sorted(path.rsplit("/", 1)[1] for path in refused.index) == sorted(spoiled)
    reasons = {path.rsplit("/", 1)[1]: row.reason for path, row in refused.iterrows()}
    assert reasons[train[0]] == "empty file" and reasons[train[1]].startswith("not a PNG")
    assert reasons[train[2]].startswith("truncated")
    assert refused.bytes.tolist().count(150) == 1
    assert sum(manifest.quarantined.values()) == 3
    rest = {n: t.set_index("image_index").image for n, t in frame(spark, out).items()}
    for name, table in frame(spark, store).items():
        expected = table.set_index("image_index").image.drop(list(spoiled), errors="ignore")
        assert rest[name].sort_index().to_dict() == expected.sort_index().to_dict()


def test_a_dead_run_leaves_no_dataset_and_is_cleaned_up(spark, release, store, tmp_path):
    out = locate(str(tmp_path / "store"))
    (out / "_unfinished" / "train").make_directory()
    (out / "_unfinished" / "train" / "part-00099.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="an ingest has not finished there"):
        read_manifest(out)
    manifest = ingest(spark, **settings(release, out.path))
    assert manifest.fingerprint == read_manifest(store).fingerprint, "whatever the row groups"
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        "dataset.json", "duplicates", "quarantine", "test", "train", "unmatched", "val",
    ]  # fmt: skip
    assert "part-00099" not in str(list((tmp_path / "store").rglob("*")))


def test_paths_with_spaces_and_uris(spark, release, tmp_path):
    folder = tmp_path / "a b+c"
    shutil.copytree(release / "images", folder / "images_001" / "images")
    out = folder / "the store"
    ingest(spark, **settings(release, out.as_uri(), images=str(folder)))
    assert spark.read.parquet((locate(str(out)) / "train").spark_uri).count() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": "/nowhere"}, "--images /nowhere: there is no such file or folder"),
        ({"labels": "/nowhere.csv"}, "--labels /nowhere.csv: there is no such file"),
        ({"boxes": "/nowhere.csv"}, "--boxes /nowhere.csv: there is no such file"),
        ({"size": 5}, "--size is 5, but must be at least 32"),
        ({"out": "gopher://x/y"}, "no file system for it"),
    ],
)
def test_mistakes_are_found_before_spark_is_needed(release, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        ingest(None, **settings(release, tmp_path / "out") | change)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_other_things_are_not_touched(release, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has other files in it"):
        ingest(None, **settings(release, tmp_path))
    assert (tmp_path / "train" / "thesis.txt").exists()


def test_images_and_labels_that_do_not_meet(release, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.png").write_bytes(b"x")
    with pytest.raises(UserError, match="none of the 1 images has a label"):
        ingest(None, **settings(release, tmp_path / "out", images=str(tmp_path / "images")))
    with pytest.raises(UserError, match="has no file that ends with"):
        ingest(
            None,
            **settings(release, tmp_path / "out", images=str(tmp_path))
            | {"images": str(mkdir(tmp_path / "empty"))},
        )
    name = next((release / "images").iterdir()).name
    shutil.copy(release / "images" / name, tmp_path / "images" / name)
    images = str(tmp_path / "images")
    with pytest.raises(
        UserError, match=r"1 x image without a label .other.png.*--allow-missing labels"
    ):
        ingest(None, **settings(release, tmp_path / "out", images=images))
    with pytest.raises(UserError, match="split is empty: 1 patients are too few"):
        ingest(None, **settings(release, tmp_path / "out", images=images, allow_missing="all"))
    shutil.copytree(tmp_path / "images", tmp_path / "more")
    several = [str(tmp_path / "images"), str(tmp_path / "more")]
    with pytest.raises(
        UserError, match=r"1 x duplicate image .*; mend that, or give --allow-missing all"
    ):
        ingest(None, **settings(release, tmp_path / "out", images=several))


def mkdir(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw | {"schema_version": 99}, "schema version 99"),
        (lambda raw: {k: v for k, v in raw.items() if k != "splits"}, "is damaged"),
        (lambda raw: [], "is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_clear_line(store, tmp_path, change, message):
    raw = change(json.loads((store / "dataset.json").read_text()))
    (tmp_path / "dataset.json").write_text(
        json.dumps(with_checksum(raw) if isinstance(raw, dict) else raw)
    )
    with pytest.raises(UserError, match=message):
        read_manifest(locate(str(tmp_path)))


def test_the_manifest_prints_as_a_table(manifest):
    lines = str(manifest).splitlines()
    assert lines[0].split() == ["finding", "train", "val", "test"]
    assert len(lines) == 3 + len(FINDINGS)


def edited(raw, path, value):
    """The object with another value at a path of keys."""
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value(at[path[-1]]) if callable(value) else value
    return raw


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["splits", "train", "images"], lambda n: n + 1, "files of train do not have its"),
        (["splits", "test", "files", 0, "path"], "train/part-00000-000.parquet", "is no file of test"),
        (["splits", "test", "files", 0, "path"], "test/../../x.parquet", "is no file of test"),
        (["splits", "test", "files", 0, "path"], "/etc/part-00000-000.parquet", "is no file of test"),
        (["splits", "train", "positives", "Mass"], lambda n: n + 1, "counts of Mass in train"),
        (["splits", "train", "negatives", "Mass"], -1, "counts of Mass in train"),
        (["splits", "val", "patients"], 10_000, "10000 patients"),
        (["class_weights", "Mass", "positive"], 0.5, "class weights are not those of the counts"),
        (["splits", "train", "files"], lambda files: files + files[:1], "is there twice"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(store, tmp_path, path, value, message):
    whole = json.loads((store / "dataset.json").read_text())
    raw = edited(whole, path, value)
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"is damaged .*its checksum does not fit"):
        read_manifest(locate(str(tmp_path)))
    (tmp_path / "dataset.json").write_text(json.dumps(with_checksum(raw)))
    with pytest.raises(UserError, match=f"is damaged .*{message}"):
        read_manifest(locate(str(tmp_path)))


def same(text, other):
    try:
        return json.loads(text) == json.loads(other)
    except ValueError:
        return False


def test_every_changed_letter_of_a_manifest_is_seen(store, tmp_path):
    text = (store / "dataset.json").read_text()
    rng = np.random.default_rng(0)
    seen = 0
    for place in rng.choice(len(text), 200, replace=False):
        changed = text[:place] + ("7" if text[place] != "7" else "3") + text[place + 1 :]
        if text[place].isspace() or same(text, changed):
            continue  # it says the same
        (tmp_path / "dataset.json").write_text(changed)
        with pytest.raises(UserError):
            read_manifest(locate(str(tmp_path)))
        seen += 1
    assert seen > 50
