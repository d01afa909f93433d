"""An experiment on NIH's download, from its folder to one page; and a part of the download."""

import json

import pandas as pd
import pytest

from chexspark.config import ReproduceConfig
from chexspark.errors import UserError
from chexspark.experiment.nih_release import BOXES, LABELS, TEST, TRAIN_VAL, find_release, part_of
from chexspark.experiment.reproduce import reproduce, sizes_of
from chexspark.experiment.reproduce_page import reproduce_page
from chexspark.experiment.stages import Stages
from chexspark.findings import FINDINGS
from chexspark.phantom import write_release
from chexspark.recipe_files import members_of
from chexspark.storage import locate

RECIPES = ReproduceConfig.recipes


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nih") / "download"
    write_release(out=str(folder), images=160, size=48)
    return folder


def test_a_release_is_found_as_it_is_downloaded(nih):
    release = find_release(str(nih))
    assert release.images == (str(nih / "images"),) and release.lists == str(nih)
    assert release.labels == str(nih / "Data_Entry_2017.csv") and release.boxes == str(nih / BOXES)


def test_archives_are_images_too_and_other_files_are_not(nih, tmp_path):
    for name in (
        LABELS[0],
        TRAIN_VAL,
        TEST,
        "images_002.tar.gz",
        "images_001.tar.gz",
        "images.txt",
    ):
        (tmp_path / name).touch()
    release = find_release(str(tmp_path))
    assert release.images == (
        str(tmp_path / "images_001.tar.gz"),
        str(tmp_path / "images_002.tar.gz"),
    )
    assert release.boxes is None and release.labels.endswith(LABELS[0])


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / TEST).touch()
    with pytest.raises(
        UserError, match=rf"lacks {TRAIN_VAL}, {LABELS[0]}, images .*: give the folder"
    ):
        find_release(str(tmp_path))


def test_a_part_has_whole_patients_of_both_lists(nih, tmp_path, monkeypatch):
    monkeypatch.setattr("chexspark.experiment.nih_release.PART_IMAGES", {TRAIN_VAL: 20, TEST: 10})
    part = part_of(find_release(str(nih)), locate(str(tmp_path)))
    whole, labels = (
        pd.read_csv(nih / "Data_Entry_2017.csv", dtype=str),
        pd.read_csv(part.labels, dtype=str),
    )
    assert 30 <= len(labels) < len(whole)
    of_patients = whole[whole["Patient ID"].isin(labels["Patient ID"])]
    assert of_patients.equals(whole[whole["Image Index"].isin(labels["Image Index"])])
    lists = [set((tmp_path / name).read_text().split()) for name in (TRAIN_VAL, TEST)]
    assert len(lists[0]) >= 20 and len(lists[1]) >= 10 and not lists[0] & lists[1]
    assert lists[0] | lists[1] == set(labels["Image Index"])
    boxed = {line.split(",")[0] for line in (tmp_path / BOXES).read_text().splitlines()[1:]}
    assert boxed <= set(labels["Image Index"])


def test_a_part_takes_only_images_that_are_there(nih, tmp_path):
    few = tmp_path / "few"
    (few / "images").mkdir(parents=True)
    for name in (TRAIN_VAL, TEST, "Data_Entry_2017.csv"):
        (few / name).write_bytes((nih / name).read_bytes())
    there = [(few / name).read_text().split()[0] for name in (TRAIN_VAL, TEST)]
    for name in there[:1]:
        (few / "images" / name).touch()
    with pytest.raises(UserError, match=f"has no image of {TEST}"):
        part_of(find_release(str(few)), locate(str(tmp_path)))
    (few / "images" / there[1]).touch()
    part = part_of(find_release(str(few)), locate(str(tmp_path)))
    assert set(pd.read_csv(part.labels)["Image Index"]) == set(there)


def test_seconds_of_a_stage_are_kept_over_attempts(tmp_path):
    place = locate(str(tmp_path / "stages.json"))
    stages = Stages(place)
    assert stages.run("a", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        stages.run("b", lambda: 1 // 0)
    again = Stages(place)
    assert set(again.seconds) == {"a", "b"} and again.seconds == json.loads(
        (tmp_path / "stages.json").read_text()
    )
    before = again.seconds["b"]
    again.run("b", lambda: None)
    assert again.seconds["b"] > before


def figures(auroc, **more):
    return {
        "auroc": auroc,
        "low": auroc - 0.01,
        "high": auroc + 0.01,
        "findings": dict.fromkeys(FINDINGS, auroc),
    } | more


def found(**more):
    seed = figures(
        0.8,
        seed=0,
        epochs=2,
        best_epoch=2,
        val_auroc=0.81,
        images_per_second=9.0,
        train_seconds=60.0,
    )
    settings = {"batch_size": 16, "precision": "float32", "scale_learning_rate": "none"}
    recipe = {
        "weights": [], "random_start": False, "ranks": 2,
        "hosts": 1, "devices": ["CPU"], "seeds": [seed, seed | {"seed": 1, "auroc": 0.79}], "mean": 0.795,
        "deviation": 0.007, "ensemble": figures(0.8123), "rank_hours": 0.1,
    }  # fmt: skip
    return {
        "quick": False, "images": {"train": 10, "val": 2, "test": 3}, "patients": {"train": 9, "val": 2, "test": 3},
        "official": True, "synthetic": False, "store_fingerprint": "f00", "refused": {}, "seconds": {"ingest": 61.0},
        "recipes": {name: recipe | {
            "members": {name: {"size": 224, "settings": settings}},
            "seeds": [each | {"recipe": name} for each in recipe["seeds"]],
        } for name in RECIPES}, "versions": {"python": "3.11"},
    } | more  # fmt: skip


def test_the_page_has_every_figure_and_only_published_ones_of_the_same_images():
    page = reproduce_page(found())
    assert "0.8123" in page and "0.812</b>" in page and "1:01" in page and page.count("<svg") == 1
    assert "took 32 images per step on 2 ranks, of which its recipe is for 16" in page
    assert "Swin-T" in page and "CheXNet v3" not in page and "try-out" not in page
    other = reproduce_page(found(official=False, quick=True))
    assert "Published" not in other and "Its figures mean nothing" in other
    assert "not all images of NIH" in reproduce_page(found(official=False))


def test_a_training_whose_rate_is_not_known_has_a_dash():
    one = found()["recipes"]["chexnet"]
    seeds = [each | {"images_per_second": None} for each in one["seeds"]]
    assert "9.0</td>" not in reproduce_page(found(recipes={"chexnet": one | {"seeds": seeds}}))


def test_the_page_tells_of_an_ensemble_s_members_and_weights():
    one = found()["recipes"]["chexnet"]
    settings = one["members"]["chexnet"]
    both = one | {
        "members": {"e/a": settings, "e/b": settings | {"size": 320}},
        "weights": [0.25, 0.75],
    }
    page = reproduce_page(found(recipes={"e": both}))
    assert "weights 0.25, 0.75" in page and "e/b: 32 images of 320×320 per step" in page
    assert "e/a took 32 images" in page and "e, 2 trainings as an ensemble" in page


def test_one_store_serves_the_sizes_of_all_recipes():
    assert sizes_of(RECIPES, False) == {"chexnet": 224, "official-best": 320}
    assert sizes_of(RECIPES, True) == {"chexnet": 44, "official-best": 64}
    assert sizes_of(members_of("official-ensemble"), False) == {
        "official-ensemble/densenet121-224": 224, "official-ensemble/densenet121-320": 320,
        "official-ensemble/convnext_tiny-384": 384, "official-ensemble/efficientnetv2_s-384": 384,
    }  # fmt: skip
    with pytest.raises(UserError, match="does not say what size"):
        sizes_of(["large-batch"], False)


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_without_imagenet_s_weights_nothing_begins(nih, tmp_path, monkeypatch, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="imagenet"):
        reproduce(None, nih=str(nih), out=str(tmp_path / "out"), weights=weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_try_out_ends_in_a_page_and_goes_on_where_it_was(spark, nih, tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"nih": str(nih), "out": str(tmp_path / "out"), "quick": True, "seeds": 2}
    first = reproduce(spark, **given)
    assert first["synthetic"] and not first["official"]
    assert {
        name: len(recipe["seeds"]) for name, recipe in first["recipes"].items()
    } == dict.fromkeys(RECIPES, 2)
    assert first == json.loads((tmp_path / "out" / "quick" / "reproduction.json").read_text())
    assert str(tmp_path) not in json.dumps(first), "no path is told"
    assert "Synthetic X-rays" in (tmp_path / "out" / "quick" / "reproduction.html").read_text()
    caplog.clear()
    again = reproduce(spark, **given)
    assert again["recipes"]["chexnet"]["ensemble"] == first["recipes"]["chexnet"]["ensemble"]
    assert "is finished" in caplog.text and "scoring" not in caplog.text
