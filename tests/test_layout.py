"""Stores and runs of the layout before this one: read rightly, or refused in one line."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from chexspark import evaluate, ingest, predict, report, train
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.lock import Lock
from chexspark.phantom import write_release
from chexspark.run.folder import LAYOUT_VERSION, RunFolder, run_folder
from chexspark.run.history import read_history
from chexspark.run.lineage import read_lineage
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.seen_patients import read_seen_patients
from chexspark.run.settings import (
    check_same,
    check_same_store,
    earlier_settings,
    read_settings,
    write_settings,
)
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.manifest import SCHEMA_VERSION, read_manifest
from chexspark.store.row_groups import read_row_group, row_groups

OLD = Path(__file__).parent / "fixtures" / "layout1"
SCHEMA_2 = Path(__file__).parent / "fixtures" / "schema2" / "store"  # as commit 4252d38 wrote it
SCHEMA_3 = Path(__file__).parent / "fixtures" / "schema3" / "store"  # as commit c50282f wrote it


@pytest.fixture
def old(tmp_path):
    """A copy of the store and the run that commit 5c1b2b3 wrote."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.mark.parametrize("version, store", [(1, OLD / "store"), (2, SCHEMA_2), (3, SCHEMA_3)])
def test_a_store_of_an_earlier_schema_is_read(version, store):
    assert SCHEMA_VERSION == 4
    manifest = read_manifest(locate(str(store)))
    assert manifest.schema_version == version and manifest.findings == FINDINGS
    assert manifest.synthetic == (60 if version == 3 else 0), "was not counted before"
    assert manifest.means == {}
    check_files(locate(str(store)), manifest, ("train", "val", "test"))
    groups = row_groups(locate(str(store)), manifest, "train")
    read = [read_row_group(group, 32, ("image_index",)) for group in groups]
    assert sum(len(piece.images) for piece in read) == manifest.splits["train"].images


@pytest.mark.parametrize("version, store", [(1, OLD / "store"), (2, SCHEMA_2), (3, SCHEMA_3)])
def test_a_store_of_an_earlier_schema_is_not_added_to(version, store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    write_release(out=str(tmp_path / "nih"), images=60, size=32)
    settings = {"size": 32, "rows_per_group": 10, "out": str(tmp_path / "store"), "append": True}
    with pytest.raises(
        UserError, match=f"has schema version {version}, and this chexspark writes 4"
    ):
        ingest(None, images=str(tmp_path / "nih" / "images"),
               labels=str(tmp_path / "nih" / "Data_Entry_2017.csv"), **settings)  # fmt: skip


@pytest.mark.slow
def test_a_run_of_layout_1_is_scored_as_it_was_then(spark, old):
    before = pd.read_parquet(old / "run" / "predictions" / "split=test")
    (old / "run" / "evaluation.json").unlink(missing_ok=True)
    found, _ = evaluate(spark, data=str(old / "store"), run=str(old / "run"), bootstrap=100)
    after = found.toPandas()
    assert (after["image_index"] == before["image_index"]).all() and len(after) > 5
    for finding in FINDINGS:
        np.testing.assert_allclose(after[f"prob_{finding}"], before[f"prob_{finding}"], atol=1e-7)
        assert (after[f"label_{finding}"] == before[f"label_{finding}"]).all()
    page = Path(report(run=str(old / "run"))).read_text()
    assert "densenet121" in page
    write_release(out=str(old / "nih"), images=4, size=32)
    scores = predict(
        spark, images=str(old / "nih" / "images"), run=str(old / "run"), out=str(old / "scores")
    )
    assert scores.predictions.count() == 4


def test_a_run_of_layout_1_is_not_resumed_and_both_versions_are_named(old):
    with pytest.raises(UserError, match="layout version 1, and only runs of version 2") as raised:
        train(data=str(old / "store"), run=str(old / "run"), num_proc=2, dry_run=True)
    assert "\n" not in str(raised.value)


def test_old_keys_of_the_settings_are_mapped(old):
    version, settings = read_settings(run_folder(str(old / "run")))
    assert version == 1 and settings["dry_run"] is False and "plan" not in settings
    assert build(TrainConfig, settings).epochs == 2


@pytest.mark.parametrize("version", [LAYOUT_VERSION + 1, 0, "x", None])
def test_a_run_of_a_layout_to_come_is_refused_by_all(old, version):
    place = old / "run" / "config.yaml"
    settings = yaml.safe_load(place.read_text()) | {"layout_version": version}
    place.write_text(yaml.safe_dump(settings))
    shutil.rmtree(old / "run" / "predictions")
    message = f"has layout version {version!r}, this chexspark reads 1 to {LAYOUT_VERSION}"
    for call in (
        lambda: evaluate(data=str(old / "store"), run=str(old / "run")),
        lambda: predict(images=str(old), run=str(old / "run"), out=str(old / "scores")),
        lambda: train(data=str(old / "store"), run=str(old / "run"), num_proc=1, dry_run=True),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_settings_come_back_as_they_were_written(tmp_path):
    config = build(TrainConfig, {"data": "d", "run": str(tmp_path), "epochs": 3})
    run = RunFolder(locate(str(tmp_path)))
    asked = dataclasses.replace(config, num_proc=1)  # in a run that two ranks began
    write_settings(run, ResolvedTraining(asked, 2))
    assert earlier_settings(run) == ResolvedTraining(config, 2)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (written["layout_version"], written["num_proc"]) == (2, 2)


def test_what_the_weights_depend_on_may_not_change_and_all_else_may(tmp_path):
    began = ResolvedTraining(build(TrainConfig, {"data": "d", "run": "r", "flip": True}), 2)
    run = RunFolder(locate(str(tmp_path)))
    values = {"data": "e", "run": "r", "flip": True, "num_proc": 1, "threads": 3, "wait_seconds": 9}
    check_same(run, build(TrainConfig, values), began)
    with pytest.raises(UserError, match="other settings: flip was True, now False; give these"):
        check_same(run, build(TrainConfig, values | {"flip": False}), began)


def test_a_run_that_another_training_began_meanwhile_is_left_alone(
    spark, store, tmp_path, monkeypatch
):
    run = run_folder(str(tmp_path / "run"))
    config = build(TrainConfig, {"data": store.path, "run": str(run), "epochs": 7})
    others = ResolvedTraining(config, 2)
    take = Lock.take

    def take_later(lock):
        write_settings(run, others)
        take(lock)

    monkeypatch.setattr(Lock, "take", take_later)
    with pytest.raises(UserError, match="was begun by another training meanwhile"):
        train(spark, data=store.path, run=str(run), model="vgg16", num_proc=2)
    assert earlier_settings(run) == others


def test_a_run_of_another_store_is_not_resumed(old):
    run = run_folder(str(old / "run"))
    manifest = read_manifest(locate(str(old / "store")))
    check_same_store(run, manifest)
    check_same_store(run_folder(str(old / "new")), manifest)
    with pytest.raises(UserError, match="was begun on another store"):
        check_same_store(run, dataclasses.replace(manifest, fingerprint="0"))
    for findings in (FINDINGS[:5], (*FINDINGS[1:], FINDINGS[0])):
        with pytest.raises(UserError, match=r"begun on other findings \(Atelectasis, .*; now "):
            check_same_store(run, dataclasses.replace(manifest, findings=findings))


@pytest.mark.parametrize("name", ["history", "trained_patients"])
def test_damaged_tables_of_a_run_are_one_line(old, name):
    (old / "run" / name / "part-00000.parquet").write_bytes(b"PAR1 no more")
    run = run_folder(str(old / "run"))
    read = {
        "history": read_history,
        "trained_patients": lambda run: read_seen_patients(run, read_lineage(run)),
    }[name]
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): copy the run again") as raised:
        read(run)
    assert "\n" not in str(raised.value)


def test_a_folder_is_a_new_run_a_run_or_refused(tmp_path):
    assert earlier_settings(run_folder(str(tmp_path / "new"))) is None
    (tmp_path / ".doctor-mark").touch()
    assert earlier_settings(run_folder(str(tmp_path))) is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="has files in it, but no run"):
        earlier_settings(run_folder(str(tmp_path)))
    with pytest.raises(UserError, match="is a file"):
        earlier_settings(run_folder(str(tmp_path / "notes.txt")))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.yaml", b"a: [", r"config.yaml is not YAML: line 1"),
        ("config.yaml", b"epochs: \xe9", r"config.yaml is not YAML: line 1 has the byte 0xE9"),
        ("config.yaml", b"epochs: many\ndata: d\nrun: r\nlayout_version: 2\n", "is damaged: --epochs"),
        ("config.yaml", b"data: d\nrun: r\nlayout_version: 2\n", "is damaged: num_proc is missing"),
        ("lineage.json", b'{"a": ', r"lineage.json is damaged: line 1"),
        ("lineage.json", b"[]", r"lineage.json is damaged"),
        ("lineage.json", b'{"image_size": "x"}', r"lineage.json is damaged: image_size is 'x'"),
    ],
)  # fmt: skip
def test_damaged_files_of_a_run_are_one_line(old, name, content, message):
    (old / "run" / name).write_bytes(content)
    places = {"data": str(old / "store"), "run": str(old / "run")}
    with pytest.raises(UserError, match=message) as raised:
        if name == "config.yaml":
            train(**places, num_proc=1, dry_run=True)
        else:
            evaluate(**places)
    assert "\n" not in str(raised.value)
