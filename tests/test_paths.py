"""A name that is there is a name, whatever letters it has; links; tables of any name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexspark import command_line, evaluate, predict, read_store, session
from chexspark.errors import RunFailedError, UserError
from chexspark.evaluation import predict as predicting
from chexspark.ingestion.listing import DANGLING, NOT_UTF8, files_below
from chexspark.ingestion.sources import find_sources, read_source_images
from chexspark.spark_tables import PartWriter, finish, parquet_files, read_parquet
from chexspark.storage import locate

LETTERS = "a [v2] #1 50% {x,y} *?: \\ ä%20"
PNG = b"\x89PNG\r\n\x1a\n"


def names_of(given):
    return [file.name for file in find_sources(given).files]


@pytest.mark.parametrize("given", [LETTERS, f"{LETTERS}/images", f"{LETTERS}/images/[1] *.png"])
def test_a_name_that_is_there_is_a_name(tmp_path, given):
    folder = tmp_path / LETTERS / "images"
    folder.mkdir(parents=True)
    (folder / "[1] *.png").write_bytes(PNG)
    (file,) = find_sources((f"{tmp_path}/{given}",)).files
    assert file.uri == f"{folder}/[1] *.png"
    (image,) = read_source_images([file])
    assert image.content == PNG and image.name == "[1] *.png"


def test_what_is_there_goes_before_what_a_glob_would_mean(tmp_path):
    for name in ("x1.png", "x2.png", "x[1].png", "x[12].png", "deep/y1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    assert names_of((f"{tmp_path}/x[1].png",)) == ["x[1].png"]
    assert names_of((f"{tmp_path}/x[2].png",)) == ["x2.png"]
    assert names_of((f"{tmp_path}/x?.png",)) == ["x1.png", "x2.png"]
    assert names_of((f"{tmp_path}/*1.png",)) == ["x1.png", "y1.png"]
    assert names_of((f"{tmp_path}/x[[]*",)) == ["x[12].png", "x[1].png"]
    for nothing in ("x[3].png", "z*", "z"):
        with pytest.raises(UserError, match="--images"):
            find_sources((f"{tmp_path}/{nothing}",))


def test_a_file_uri_has_its_letters_escaped_and_a_path_has_not(monkeypatch):
    assert locate("file:///a%20b/%23%5B1%5D").path == "/a b/#[1]"
    assert locate("/a%20b/#[1]").path == "/a%20b/#[1]"
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    place = locate("s3://bucket//a%20b [1]?#/")
    assert (place.path, place.uri) == ("bucket/a%20b [1]?#", "s3://bucket//a%20b [1]?#")


def test_links_are_followed_once_and_what_they_lead_nowhere_is_named(tmp_path):
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (images / "sub", elsewhere):
        folder.mkdir(parents=True)
    (images / "a.png").write_bytes(PNG)
    (elsewhere / "b.png").write_bytes(PNG)
    (elsewhere / "c.png").write_bytes(PNG)
    (images / "linked").symlink_to(elsewhere)
    (images / "again").symlink_to(elsewhere)
    (images / "c.png").symlink_to("../elsewhere/c.png")
    (images / "sub" / "up").symlink_to("..")
    (images / "gone.png").symlink_to("nowhere.png")
    (images / "round.png").symlink_to("round.png")
    os.mkfifo(images / "pipe.png")
    found = {os.path.relpath(f.path, images): f.fault for f in files_below(locate(str(images)))}
    assert found.pop("round.png").startswith("cannot be read: ")
    assert found == {
        "a.png": "", "c.png": "", "again/b.png": "", "again/c.png": "", "gone.png": DANGLING
    }  # fmt: skip
    (image,) = [f for f in read_source_images(find_sources((str(images),)).files) if f.name == "gone.png"]  # fmt: skip
    assert str(image.content) == DANGLING


def test_names_that_are_no_utf_8_are_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/r\xf6.png", "wb") as file:
        file.write(PNG)
    (tmp_path / "a.png").write_bytes(PNG)
    found = {image.name: str(image.content) for image in read_source_images(find_sources((str(tmp_path),)).files)}  # fmt: skip
    assert found == {"a.png": str(PNG), "r\\xf6.png": NOT_UTF8}
    with pytest.raises(UserError, match=r"r\\xf6.png: the name is not UTF-8: rename it"):
        find_sources((os.fsdecode(os.fsencode(tmp_path) + b"/r\xf6.png"),))
    with pytest.raises(UserError, match="has a file whose name is not UTF-8"):
        locate(str(tmp_path)).list_files()


def test_links_to_an_image_are_not_that_image_twice(spark, release, tmp_path):
    """Also a name that is not UTF-8, and a dangling link, with labels and without."""
    from chexspark import ingest

    folder = tmp_path / LETTERS
    shutil.copytree(release / "images", folder / "images")
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "links").mkdir()
    (folder / "links" / names[0]).symlink_to(folder / "images" / names[0])
    (folder / "images" / names[1]).unlink()
    (folder / "images" / names[1]).symlink_to("nowhere")
    (folder / "images" / "unlabelled.png").symlink_to("nowhere")
    (folder / "images" / f"._{names[2]}").write_bytes(b"\0\5\x16\7")
    out = folder / "store"
    manifest = ingest(spark, images=str(folder), labels=str(release / "Data_Entry_2017.csv"),
                      out=str(out), size=32, max_bad=0.5)  # fmt: skip
    assert sum(split.images for split in manifest.splits.values()) == len(names) - 1
    refused = pq.read_table(out / "quarantine").to_pylist()
    assert {(Path(row["path"]).name, row["reason"]) for row in refused} == {
        (names[1], DANGLING), ("unlabelled.png", DANGLING)
    }  # fmt: skip
    assert manifest.unmatched == {"file that is no image": 1}
    table = read_store(spark, str(out)).toPandas()
    assert sorted(table["image_index"]) == sorted({*names} - {names[1]})


@pytest.mark.parametrize("name", ["plain", "a [v2]", "10:30", "{a,b}", "50%20 #1 *?\\", "rönt gen"])
def test_tables_of_any_name_are_read_by_spark(spark, tmp_path, name):
    table = pa.table({"n": range(10), "text": [f"ä{i}" for i in range(10)],
                      "seen": pa.array([None, True] * 5), "scores": [[0.5, i] for i in range(10)]})  # fmt: skip
    (tmp_path / name).mkdir()
    pq.write_table(table[:6], tmp_path / name / "a.parquet")
    pq.write_table(table[6:], tmp_path / name / "b.parquet")
    (tmp_path / name / ".c.parquet.unfinished").write_bytes(b"half")
    (tmp_path / name / "_SUCCESS").touch()
    (tmp_path / "a v").mkdir()  # what a glob of the name would mean
    pq.write_table(table[:1], tmp_path / "a v" / "a.parquet")
    found = read_parquet(spark, [locate(str(tmp_path / name))])
    rows = sorted(found.collect(), key=lambda row: row.n)
    assert [row.asDict() for row in rows] == table.to_pylist()
    assert found.filter("n > 7").count() == 2


def test_spark_that_lacks_letters_is_not_asked(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "letters_of_java", lambda: "ANSI_X3.4-1968")
    monkeypatch.setattr(spark.__class__, "read", property(lambda _: 1 / 0))
    (tmp_path / "ä").mkdir()
    pq.write_table(pa.table({"n": [1]}), tmp_path / "ä" / "a.parquet")
    assert [row.n for row in read_parquet(spark, [locate(f"{tmp_path}/ä")]).collect()] == [1]


def test_files_of_a_task_are_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("chexspark.spark_tables.FILE_ROWS", 3)
    schema = pa.schema([("n", pa.int64())])
    table = locate(str(tmp_path / "10:30"))
    table.make_directory()
    with pytest.raises(ZeroDivisionError), PartWriter(table, schema, 4) as writer:
        for start in (6, 3):
            writer.write(pa.RecordBatch.from_pydict({"n": range(start, start + 3)}, schema))
        writer.write(pa.RecordBatch.from_pydict({"n": [100]}, schema))
        assert len(list(Path(table.path).iterdir())) == 3
        raise ZeroDivisionError
    assert sorted(p.name for p in Path(table.path).iterdir()) == [
        "part-00004-000.parquet", "part-00004-001.parquet"
    ]  # fmt: skip
    finish(table, schema, "n")
    assert sorted(p.name for p in Path(table.path).iterdir()) == ["_SUCCESS", "part-00000.parquet"]
    assert table.read_table()["n"].to_pylist() == [3, 4, 5, 6, 7, 8]
    monkeypatch.setattr("chexspark.spark_tables.MOST_MERGED", 5)
    with PartWriter(table, schema, 7) as writer:
        writer.write(pa.RecordBatch.from_pydict({"n": [1]}, schema))
    finish(table, schema, "n")
    assert len(parquet_files(table)) == 2  # too many rows for one file


@pytest.fixture(scope="module")
def run(untrained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / LETTERS
    shutil.copytree(untrained_run(0).path, folder)
    return str(folder)


@pytest.mark.slow
def test_what_was_scored_before_a_task_failed_stays(spark, release, run, tmp_path, monkeypatch):
    images = sorted((release / "images").iterdir())[:6]
    monkeypatch.setattr(predicting, "TASK_IMAGES", 2)
    out = tmp_path / "10:30.parquet"
    # No file can get this name. Of two slots, the third task has one when another task is done.
    (out / "part-00002-000.parquet").mkdir(parents=True)
    given = {"images": list(map(str, images)), "run": run, "out": str(out)}
    with pytest.raises(RunFailedError, match=r"what was scored until then is in .*10:30"):  # fmt: skip
        predict(spark, **given)
    found = pd.concat(map(pd.read_parquet, filter(Path.is_file, out.glob("part-*"))))
    done, names = set(found.image_index), [path.name for path in images]
    assert done in (set(names[:2]), set(names[2:4]), set(names[:4]))
    assert not (out / "_SUCCESS").exists()


@pytest.mark.slow
def test_predict_and_evaluate_into_names_of_any_letters(spark, release, store, run, tmp_path):
    images = tmp_path / LETTERS
    images.mkdir()
    for path in sorted((release / "images").iterdir())[:3]:
        shutil.copy(path, images)
    (images / "bad.png").touch()
    out = f"{tmp_path}/{LETTERS}/scores.parquet"
    found = predict(spark, images=str(images), run=run, out=out)
    assert found.predictions.count() == 3 and found.quarantine.count() == 1
    table = pq.ParquetFile(f"{out}/part-00000.parquet").read().to_pandas()
    assert table["image_index"].tolist() == sorted(p.name for p in images.glob("0*.png"))
    scored = evaluate(spark, data=str(store), run=run, bootstrap=100)
    assert {row.split for row in scored.metrics.select("split").distinct().collect()} == {"test"}
    whole = pq.ParquetFile(f"{run}/predictions/split=test/part-00000.parquet").read().to_pandas()
    assert sorted(row.image_index for row in scored.predictions.collect()) == whole["image_index"].tolist()  # fmt: skip
    given = evaluate(spark, predictions=f"{run}/predictions/split=test", bootstrap=100,
                     labels=str(release / "Data_Entry_2017.csv"), out=f"{tmp_path}/{LETTERS}/given")  # fmt: skip
    both = [e.metrics.toPandas().set_index("finding")["auroc"] for e in (scored, given)]
    np.testing.assert_allclose(both[0].sort_index(), both[1].sort_index())


@pytest.mark.parametrize(
    "letters, gateway, refused",
    [("ANSI_X3.4-1968", True, True), ("UTF-8", True, False), ("ANSI_X3.4-1968", False, False)],
)
def test_letters_that_spark_submit_has_lost_are_told(monkeypatch, letters, gateway, refused):
    monkeypatch.setattr(session, "letters_of_java", lambda: letters)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    if gateway:
        monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    command_line.check_letters(["--images", "a?.png"])
    if not refused:
        command_line.check_letters(["--images", "r??ntgen"])
        return
    with pytest.raises(UserError, match=r"r\?\?ntgen: .*locale of ANSI.*export LC_ALL=C.UTF-8"):
        command_line.check_letters(["--images", "r??ntgen"])


def test_names_of_any_letters_without_a_locale(tmp_path):
    (tmp_path / "röntgen").mkdir()
    (tmp_path / "röntgen" / "ä.png").write_bytes(PNG)
    script = "from chexspark.ingestion.sources import *\n" \
             "print(ascii([i.name for i in read_source_images(find_sources(('röntgen',)).files)]))"  # fmt: skip
    environment = os.environ | {"LC_ALL": "POSIX", "LANG": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True)  # fmt: skip
    assert done.stdout == "['\\xe4.png']\n", done.stderr
