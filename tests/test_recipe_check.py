"""A recipe is not run from other weights than its own, or on other images, without a word."""

import pytest

from chexspark import errors, train
from chexspark.cluster.job import check_inputs
from chexspark.cluster.recipe_check import check_start, differences
from chexspark.command_line import run_command
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.run.folder import run_folder
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.settings import write_settings
from chexspark.settings import build


def config_of(**settings):
    return build(TrainConfig, {"data": "d", "run": "r"} | settings)


def test_a_random_start_is_asked_for():
    with pytest.raises(UserError, match=r"^--recipe chexnet starts from ImageNet's weights: give --weights FILE, the path "
                       r"of https://.*/densenet121_.*_notop.h5 \(MD5 30ee3e1110167f948a6b9946edeeb738\), or "
                       r"https://.*/densenet121-a639ec97.pth \(SHA-256 a639ec97…\), --weights imagenet where it was "
                       "given before, or --weights none"):  # fmt: skip
        check_start(config_of(recipe="chexnet"))
    with pytest.raises(
        UserError, match="surfsara-cyclic goes on from an earlier training: give --weights RUN"
    ):
        check_start(config_of(recipe="surfsara-cyclic"))
    for settings in ({}, {"recipe": "large-batch"}, {"recipe": "chexnet", "weights": "none"},
                     {"recipe": "chexnet", "weights": "/x.h5"}, {"recipe": "chexnet", "model": "resnet59"}):  # fmt: skip
        check_start(config_of(**settings))


def test_what_differs_is_told():
    config = config_of(recipe="chexnet", weights="none")
    assert differences(config, 224, FINDINGS) == []
    assert differences(config, 64, ("Infiltrate", *FINDINGS[:3], *FINDINGS[4:])) == [
        "--recipe=chexnet is for images of 224 pixels, and these have 64"
    ]
    assert differences(config, 224, (*FINDINGS[1:], "Fracture")) == [
        "--recipe=chexnet is for 14 findings, and this store lacks Atelectasis and has Fracture too"
    ]
    assert differences(config_of(), 64, ("Mass",)) == []


def test_the_command_says_both(store, tmp_path, capsys, caplog):
    flags = ["--data", store.path, "--run", str(tmp_path / "run"), "--recipe", "chexnet"]
    assert run_command("train", flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "or --weights none to start from random" in said
    assert not (tmp_path / "run").exists()
    assert run_command("train", [*flags, "--weights", "none", "--dry-run", "--num-proc", "1"]) == 0
    assert "note: --recipe chexnet is for images of 224 pixels, and these have 32" in caplog.text


def test_a_call_says_them_too(store, tmp_path, monkeypatch, caplog):
    """The settings of the recipe go with its name."""
    given = {"data": store.path, "run": str(tmp_path / "run"), "recipe": "chexnet", "dry_run": True}
    monkeypatch.setattr(errors, "at_command_line", False)
    with pytest.raises(
        UserError, match=r"^recipe=chexnet starts from ImageNet's weights: give weights=FILE"
    ):
        train(None, **given)
    train(None, **given, weights="none", num_proc=1)
    assert "note: recipe=chexnet is for images of 224" in caplog.text
    assert "plateau" in caplog.text and "from random weights" in caplog.text


def test_a_run_of_before_is_resumed_by_the_same_command(store, tmp_path):
    """It was begun from random weights, when nobody asked."""
    given = {"data": store.path, "run": str(tmp_path / "run"), "recipe": "chexnet", "dry_run": True}
    config, *_ = check_inputs(config_of(**given, weights="none"))
    run = run_folder(str(tmp_path / "run"))
    run.place.make_directory()
    write_settings(run, ResolvedTraining(config, 1))
    assert "weights: null" in run.settings.read_text()
    for more in ({}, {"weights": "none"}):
        _, _, earlier, _ = check_inputs(config_of(**given, **more))
        assert earlier and earlier.config.recipe == "chexnet"
