"""ImageNet's weights: given once, kept by their digest, and found by every rank."""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from chexspark.cluster.job import check_inputs
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.models import MODELS, Published, imagenet
from chexspark.models.imagenet import imagenet_place, put_into, take_out, words_of
from chexspark.models.weights import start_of
from chexspark.run.folder import run_folder
from chexspark.settings import build
from chexspark.training.setup import make_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chexspark" / "weights"


@pytest.fixture(scope="module")
def source():
    keras.utils.set_random_seed(3)
    return keras.applications.VGG16(include_top=False, weights=None)


@pytest.fixture
def file(source, tmp_path, monkeypatch):
    """A file of VGG-16 that is a published one, as far as the table says."""
    path = tmp_path / "given" / "mine.h5"
    path.parent.mkdir()
    source.save_weights(str(path))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    published = Published("https://x", "vgg16_notop.h5", "md5", digest)
    monkeypatch.setitem(
        MODELS, "vgg16", dataclasses.replace(MODELS["vgg16"], imagenet=(published,))
    )
    return path


def config_of(store, tmp_path, **settings):
    return build(TrainConfig, {"data": store.path, "run": str(tmp_path / "run"), "model": "vgg16"} | settings)  # fmt: skip


def test_a_published_file_is_kept_and_found_and_goes_to_the_ranks(
    cache, file, source, store, tmp_path, caplog
):
    by_name = config_of(store, tmp_path, weights="imagenet")
    assert by_name.weights == "imagenet", "a word and no path"
    with pytest.raises(UserError, match=r"vgg16's are not here yet: give --weights FILE once, the path of "
                       r"https://x/vgg16_notop.h5 \(MD5 [0-9a-f]{32}\)$"):  # fmt: skip
        check_inputs(by_name)
    check_inputs(config_of(store, tmp_path, weights=str(file), dry_run=True))
    assert (cache / "vgg16_notop.h5").read_bytes() == file.read_bytes()
    assert "--weights imagenet is this file from now on" in caplog.text
    file.unlink()
    config, *_ = check_inputs(by_name)
    assert config.weights == "imagenet", "as the same command gives it again"
    run = run_folder(by_name.run)
    put_into(run, "vgg16")
    (cache / "vgg16_notop.h5").unlink()  # a rank on another host has none
    model, line = make_model(config, 32, FINDINGS)
    assert line.startswith(f"13 of 14 layers start from {run.start_weights}")
    for layer in ("block1_conv1", "block5_conv3"):
        np.testing.assert_array_equal(
            model.get_layer(layer).get_weights()[0], source.get_layer(layer).get_weights()[0]
        )
    assert start_of("vgg16", "imagenet", run) == str(run.start_weights), "of a driver elsewhere too"
    take_out(run), take_out(run)
    assert not run.start_weights.exists()


def test_what_is_kept_is_compared_every_time(cache, file, store, tmp_path):
    check_inputs(config_of(store, tmp_path, weights=str(file), dry_run=True))
    content = bytearray((cache / "vgg16_notop.h5").read_bytes())
    content[-1] ^= 1
    (cache / "vgg16_notop.h5").write_bytes(content)
    with pytest.raises(
        UserError, match=r"vgg16_notop.h5 is damaged: delete it, and give --weights FILE once"
    ):
        start_of("vgg16", "imagenet")


def test_another_file_is_not_kept(cache, source, store, tmp_path):
    source.save_weights(str(tmp_path / "other.h5"))
    check_inputs(config_of(store, tmp_path, weights=str(tmp_path / "other.h5"), dry_run=True))
    assert not cache.exists()


def test_a_home_that_cannot_be_written_keeps_nobody_from_training(
    file, store, tmp_path, monkeypatch
):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    check_inputs(config_of(store, tmp_path, weights=str(file), dry_run=True))


def test_none_is_random_weights_as_if_nothing_was_given(store, tmp_path):
    config, *_ = check_inputs(config_of(store, tmp_path, weights="none", dry_run=True))
    assert config.weights is None
    with pytest.raises(UserError, match=r"--weights, which is missing"):
        check_inputs(config_of(store, tmp_path, weights="none", weights_findings=["Mass"]))


def test_networks_without_published_weights(cache):
    with pytest.raises(
        UserError, match="no ImageNet weights of resnet59 are published: give a file"
    ):
        imagenet_place("resnet59")
    assert words_of("resnet59") == words_of("mine:build") == ""


def test_what_is_published_is_what_keras_and_torchvision_say():
    """Keras's sources stand in the environment; torchvision's file has its digits in its name."""
    from tf_keras.src.applications import convnext, densenet, efficientnet_v2, resnet, vgg16

    sources = {module: Path(module.__file__).read_text() for module in (densenet, vgg16)}
    for name, module in (("densenet121", densenet), ("vgg16", vgg16)):
        keras_s = MODELS[name].imagenet[0]
        assert f'file_hash="{keras_s.digest}"' in sources[module] and keras_s.file in re.sub(r'"\s*(\+\s*)?"', "", sources[module])  # fmt: skip
    assert MODELS["resnet50"].imagenet[0].digest == resnet.WEIGHTS_HASHES["resnet50"][1]
    (tiny,), (small,) = MODELS["convnext_tiny"].imagenet, MODELS["efficientnetv2_s"].imagenet
    assert tiny.digest == convnext.WEIGHTS_HASHES["convnext_tiny"][1]
    assert small.digest == efficientnet_v2.WEIGHTS_HASHES["-s"][1]
    torchvision = MODELS["densenet121"].imagenet[1]
    assert torchvision.algorithm == "sha256" and torchvision.digest in torchvision.file
    assert imagenet.is_published(b"", "densenet121") is None
