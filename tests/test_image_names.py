"""Which label is an image's."""

import io
import tarfile
import unicodedata

import cv2
import numpy as np
import pytest

from chexspark.ingestion.image_names import common_parts, label_name, label_names
from chexspark.ingestion.inputs import named_as_labels
from chexspark.ingestion.sources import SourceFile
from chexspark.ingestion.task import Known, Label, WriteTask, write_task
from chexspark.preparation import Preparation

TREE = [f"set/train/patient{i:05}/study{j}/view1.jpg" for i in (1, 2) for j in (1, 2)]


@pytest.mark.parametrize(
    "paths, names",
    [
        (["a.png", "b.png"], ["a.png", "b.png"]),
        (["images_006/a.png", "images_007/b.png"], ["a.png", "b.png"]),
        (TREE, [path.removeprefix("set/train/") for path in TREE]),
        (["x/a.png", "y/a.png", "z/b.png"], ["x/a.png", "y/a.png", "b.png"]),
        (["a.png", "x/a.png"], ["a.png", "x/a.png"]),
        (["./x//a.png", r"y\a.png"], ["x/a.png", "y/a.png"]),
        (["a.png", "./a.png"], ["a.png", "a.png"]),
        (["u/x/a.png", "v/x/a.png", "v/y/a.png"], ["u/x/a.png", "v/x/a.png", "y/a.png"]),
    ],
)
def test_a_label_s_name_is_the_shortest_end_that_is_its_own(paths, names):
    assert list(label_names(paths).values()) == names


@pytest.mark.parametrize(
    "path, name",
    [
        ("/data/images/a.png", "a.png"),
        ("/data/p1/s1/v.jpg", "p1/s1/v.jpg"),
        ("/data/p2/s1/v.jpg", None),
        ("/data/s1/v.jpg", None),
        ("/data/0004.dcm", "0004"),
        ("/data/0004.PNG", "0004"),
        ("/data/0004.gz", None),
        ("images_006.tar.gz!images/a.png", "a.png"),
    ],
)
def test_an_image_has_the_longest_end_that_is_a_name(path, name):
    assert label_name(path, {"a.png", "p1/s1/v.jpg", "0004"}) == name


def test_the_longest_end_goes_first():
    assert label_name("/x/a.png", {"a.png", "x/a.png"}) == "x/a.png"
    assert label_name("/y/a.png", {"a.png", "x/a.png"}) == "a.png"


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_one_letter_in_two_encodings_is_one(written, on_disk):
    names = label_names([unicodedata.normalize(written, "Müller_1.png")])
    path = unicodedata.normalize(on_disk, "/data/Müller_1.png")
    assert label_name(path, set(names.values())) == unicodedata.normalize("NFC", "Müller_1.png")


def test_parts_in_common():
    assert common_parts("/d/x/a.png", "x/a") == 2 and common_parts("/d/y/a.png", "x/a.png") == 1
    assert common_parts("/d/b.png", "a.png") == 0


def source(path):
    return SourceFile(path, path.rpartition("/")[2], 1, "")


def test_files_are_named_as_their_labels():
    labels = {"a.png": "x/a.png", "p1/v.jpg": "set/p1/v.jpg", "p2/v.jpg": "set/p2/v.jpg", "c": "c"}
    paths = ["/d/x/a.png", "/d/y/a.png", "/d/p1/v.jpg", "/d/p3/v.jpg", "/d/p4/v.jpg", "/d/c.dcm"]
    named = {f.uri: f.name for f in named_as_labels([source(p) for p in paths], labels)}
    assert named == {
        "/d/x/a.png": "a.png",  # and the other a.png has less of the label's path
        "/d/y/a.png": "/d/y/a.png",
        "/d/p1/v.jpg": "p1/v.jpg",
        "/d/p3/v.jpg": "p3/v.jpg",
        "/d/p4/v.jpg": "p4/v.jpg",
        "/d/c.dcm": "c",
    }
    both = named_as_labels([source("/d/x/a.png"), source("/e/x/a.png")], labels)
    assert [f.name for f in both] == ["a.png", "a.png"], "none is more the label's than the other"


def test_members_of_an_archive_have_the_labels_of_their_paths(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for member, image in zip(("set/p1/v.png", "set/p2/v.png", "p3/v.png"), pixels, strict=True):
            content = cv2.imencode(".png", image)[1].tobytes()
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    task = WriteTask(
        str(tmp_path / "out"), 0, Preparation(32), 8, (source(str(tmp_path / "a.tar")),)
    )
    labels = {f"p{i}/v.png": Label(str(i), "train", bytes([i]), (None,) * 11) for i in (1, 2)}
    result = write_task(task, Known(labels, {}, frozenset()))
    assert {k.name: (k.patient_id, k.labels) for k in result.kept} == {
        "p1/v.png": ("1", b"\1"),
        "p2/v.png": ("2", b"\2"),
    }
    assert result.unlabelled == ["v.png"]
    there = {k.name: k.pixel_digest for k in result.kept if k.name == "p1/v.png"}
    again = write_task(task, Known(labels, there, frozenset()))
    assert [k.name for k in again.kept] == ["p2/v.png"] and again.stored_before == 1
