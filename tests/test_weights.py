"""Where training starts from: ImageNet's weights, and models of our own."""

import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras

from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.models import build_model
from chexspark.models.weights import (
    check_fits,
    check_weights,
    layers_of,
    load_weights,
    train_trunk,
    trunk_layers,
)
from chexspark.preparation import Preparation
from chexspark.run.best import promote, save_best
from chexspark.run.folder import run_folder


def tiny(findings=14, channels=4, seed=0):
    """A network of all kinds of layers that hold weights, with two of most."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, name="normalise")(x)
    for i in range(2):
        x = keras.layers.Conv2D(channels, 3, name=f"conv_{'ba'[i]}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{'ba'[i]}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(findings, name="logits", dtype="float32")(x)
    return keras.Model(inputs, logits, name="tiny")


def same(model, other, layer):
    pairs = zip(
        model.get_layer(layer).get_weights(), other.get_layer(layer).get_weights(), strict=True
    )
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def run(tmp_path):
    """A run whose best model has statistics too."""
    model = tiny(seed=1)
    for layer in model.layers:
        layer.set_weights([w + 1 for w in layer.get_weights()])
    place = run_folder(str(tmp_path / "run"))
    save_best(model, place, {"epoch": 0}, FINDINGS, Preparation(32))
    promote(place)
    return tmp_path / "run", model


def test_a_run_gives_all_its_layers_head_and_statistics_too(run):
    place, source = run
    for uri in (place, place / "best" / "model.keras"):
        check_weights("resnet59", str(uri))
        model = tiny(seed=2)
        line = load_weights(model, "resnet59", str(uri), FINDINGS)
        assert line == (
            f"5 of 5 layers start from {place}/best/model.keras; logits of all 14 findings taken by name"
        )
        assert all(same(model, source, layer.name) for layer in model.layers)


NAMES = ("Lung Opacity", "Mass", "Infiltrate", "Fracture", "Cardiomegaly")


def test_logits_are_taken_by_name_whatever_their_number_and_order(run):
    place, source = run
    model = tiny(findings=5, seed=2)
    line = load_weights(model, "resnet59", str(place), NAMES)
    assert line == (
        f"4 of 5 layers start from {place}/best/model.keras; logits of Mass, Infiltrate, Cardiomegaly "
        "taken by name; fresh: logits of Lung Opacity, Fracture"
    )
    assert same(model, source, "conv_a") and same(model, source, "norm_b")
    kernel, bias = model.get_layer("logits").get_weights()
    theirs, their_bias = source.get_layer("logits").get_weights()
    fresh, fresh_bias = tiny(5, seed=2).get_layer("logits").get_weights()
    for ours, name in ((1, "Mass"), (2, "Infiltration"), (4, "Cardiomegaly")):
        there = FINDINGS.index(name)
        np.testing.assert_array_equal(kernel[:, ours], theirs[:, there])
        assert bias[ours] == their_bias[there]
    for ours in (0, 3):
        np.testing.assert_array_equal(kernel[:, ours], fresh[:, ours])
        assert bias[ours] == fresh_bias[ours]


def test_one_finding_and_findings_that_have_none_in_common(run):
    model = tiny(findings=1, seed=2)
    line = load_weights(model, "resnet59", str(run[0]), ("Mass",))
    assert line.endswith("best/model.keras; logits of Mass taken by name")
    line = load_weights(model, "resnet59", str(run[0]), ("Lung Opacity",))
    assert line.startswith("4 of 5 layers") and line.endswith("model.keras; fresh: logits")


def test_a_file_that_does_not_say_its_findings_gives_its_trunk(run, tmp_path):
    place, source = run
    plain = tmp_path / "plain.keras"
    source.save(plain)
    for uri in (plain, place):
        if uri is place:  # and no lineage beside it
            plain.rename(place / "best" / "model.keras")
        model = tiny(seed=2)
        line = load_weights(model, "resnet59", str(uri), FINDINGS)
        assert line.startswith("4 of 5 layers start from ")
        assert line.endswith("; fresh: logits (the file does not say its findings)")
        assert same(model, source, "conv_a") and not same(model, source, "logits")


@pytest.mark.parametrize("uri", ["run", "run/best/model.keras"])
def test_the_lineage_says_the_findings_of_an_older_run(run, tmp_path, uri):
    place, source = run
    source.save(place / "best" / "model.keras")
    lineage = {"image_size": 8, "store_fingerprint": "x", "findings": [*FINDINGS[:13], "Fracture"]}
    (place / "lineage.json").write_text(json.dumps(lineage))
    line = load_weights(tiny(seed=2), "resnet59", str(tmp_path / uri), FINDINGS)
    assert line.endswith(", … (13 in all) taken by name; fresh: logits of Hernia")
    del lineage["findings"]  # of before runs had any but NIH's
    (place / "lineage.json").write_text(json.dumps(lineage))
    line = load_weights(tiny(seed=2), "resnet59", str(tmp_path / uri), FINDINGS)
    assert line.endswith("logits of all 14 findings taken by name")


def test_findings_of_another_number_than_the_logits_are_not_taken(run):
    place, _ = run
    tiny(findings=3, seed=1).save(place / "best" / "model.keras")
    with zipfile.ZipFile(place / "best" / "model.keras", "a") as archive:
        archive.writestr("findings.json", json.dumps(FINDINGS))
    line = load_weights(tiny(seed=2), "resnet59", str(place), FINDINGS)
    assert line.startswith("4 of 5 layers") and line.endswith("; fresh: logits")


@pytest.mark.parametrize("content", ["[", '{"a": 1}', '["Mass", "Mass"]', "[" * 100_000, "[1]"])
def test_a_damaged_list_of_findings_is_named(run, content):
    path = run[0] / "best" / "model.keras"
    tiny().save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("findings.json", content)
    for look in (check_weights, lambda *names: load_weights(tiny(), *names, FINDINGS)):
        with pytest.raises(UserError, match=r"model.keras is damaged: findings.json .*; copy it"):
            look("resnet59", str(run[0]))


def test_nothing_in_common_is_another_network(run):
    with pytest.raises(UserError, match=r"model.keras: no layer has the name and shapes of one of"):
        load_weights(tiny(findings=5, channels=3), "resnet59", str(run[0]), NAMES)


def test_a_model_under_mixed_precision_starts_from_a_plain_one(run):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tiny(seed=2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    load_weights(model, "resnet59", str(run[0]), FINDINGS)
    assert same(model, run[1], "conv_b") and model.get_layer("conv_b").compute_dtype == "bfloat16"


def test_training_goes_on_at_another_size(tmp_path):
    source = build_model("resnet50", 32, 14)
    run = run_folder(str(tmp_path))
    save_best(source, run, {"epoch": 0}, FINDINGS, Preparation(32))
    promote(run)
    model = build_model("resnet50", 64, 14)
    line = load_weights(model, "resnet50", str(tmp_path), FINDINGS)
    assert line.startswith("107 of 107 layers start from ")
    assert all(same(model, source, layer.name) for layer in model.layers)


def test_imagenet_s_weights_go_into_all_but_the_logits(tmp_path):
    path = str(tmp_path / "vgg16_notop.h5")
    keras.utils.set_random_seed(7)
    source = keras.applications.VGG16(include_top=False, weights=None)
    source.save_weights(path)
    check_weights("vgg16", path)
    model = build_model("vgg16", 32, 14)
    before = model.get_layer("logits").get_weights()[0]
    line = load_weights(model, "vgg16", path, FINDINGS)
    assert line.startswith(f"13 of 14 layers start from {path}; fresh: logits")
    assert same(model, source, "block1_conv1") and same(model, source, "block5_conv3")
    assert np.array_equal(model.get_layer("logits").get_weights()[0], before)
    with pytest.raises(
        UserError,
        match=r"no layer has the name and shapes of one of resnet50's.*weights are https://",
    ):
        load_weights(build_model("resnet50", 32, 14), "resnet50", path, FINDINGS)


@pytest.mark.slow
def test_keras_s_convnext_gives_its_features(tmp_path):
    """Whose file has models within, and depthwise kernels of another shape."""
    path = str(tmp_path / "convnext_tiny_notop.h5")
    keras.utils.set_random_seed(7)
    source = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    random = np.random.default_rng(0)
    source.set_weights([w + random.normal(0, 0.05, w.shape) for w in source.get_weights()])
    source.save_weights(path)
    model = build_model("convnext_tiny", 32, 14)
    check_fits("convnext_tiny", path, layers_of(model))
    line = load_weights(model, "convnext_tiny", path, FINDINGS)
    layers = len(layers_of(model))
    assert line.startswith(f"{layers - 1} of {layers} layers start from {path}; fresh: logits")
    features = keras.Model(model.input, model.get_layer("logits").input)
    images = random.integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    expected = source(images.repeat(3, axis=3).astype(np.float32)).numpy()
    np.testing.assert_allclose(features(images).numpy(), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="no layer has the name and shapes of one of vgg16's"):
        load_weights(build_model("vgg16", 32, 14), "vgg16", path, FINDINGS)


@pytest.mark.slow
def test_keras_s_efficientnetv2_gives_its_features(tmp_path):
    path = str(tmp_path / "efficientnetv2-s_notop.h5")
    keras.utils.set_random_seed(7)
    source = keras.applications.EfficientNetV2S(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    source.save_weights(path)
    model = build_model("efficientnetv2_s", 32, 14)
    line = load_weights(model, "efficientnetv2_s", path, FINDINGS)
    assert line.endswith("fresh: logits (the file does not say its findings)")
    features = keras.Model(model.input, model.get_layer("logits").input)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    expected = source(images.repeat(3, axis=3).astype(np.float32)).numpy()
    np.testing.assert_allclose(features(images).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_an_hdf5_file_that_holds_no_weights(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w"):
        pass
    with pytest.raises(UserError, match=r"not a Keras model .no layer_names: these are no weights"):
        check_weights("resnet59", str(tmp_path / "x.h5"))


def test_what_is_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(UserError, match=r"no such file or run; vgg16's ImageNet weights are https"):
        check_weights("vgg16", str(tmp_path / "no.h5"))
    with pytest.raises(UserError, match=r"no such file or run$"):
        check_weights("resnet59", str(tmp_path / "no"))
    with pytest.raises(UserError, match=r"not a run with a best/model.keras"):
        check_weights("vgg16", str(tmp_path))
    (tmp_path / "text").write_text("weights")
    with pytest.raises(
        UserError, match=r"is not an HDF5 file of Keras weights, and no .keras file"
    ):
        check_weights("vgg16", str(tmp_path / "text"))


def test_a_torn_file_is_named(run, tmp_path):
    content = (run[0] / "best" / "model.keras").read_bytes()
    torn = tmp_path / "torn.keras"
    torn.write_bytes(content[: len(content) // 2])
    for look in (check_weights, lambda *names: load_weights(tiny(), *names, FINDINGS)):
        with pytest.raises(UserError, match=r"torn.keras is damaged, or not a Keras model"):
            look("resnet59", str(torn))
    changed = bytearray(content)
    changed[content.index(b"HDF") + 5000] ^= 1
    torn.write_bytes(changed)
    with pytest.raises(UserError, match=r"torn.keras is damaged"):
        load_weights(tiny(), "resnet59", str(torn), FINDINGS)
    (tmp_path / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(
        UserError, match=r"torn.h5 is damaged, or not a Keras model .*; vgg16's ImageNet weights"
    ):
        load_weights(build_model("vgg16", 32, 14), "vgg16", str(tmp_path / "torn.h5"), FINDINGS)


def test_a_layer_that_carries_code_is_refused(tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1, name="evil")(inputs))
    model.save(tmp_path / "lambda.keras")
    for look in (check_weights, lambda *names: load_weights(tiny(), *names, FINDINGS)):
        with pytest.raises(UserError, match="layer evil is a Lambda, which carries code"):
            look("resnet59", str(tmp_path / "lambda.keras"))


def test_what_a_file_names_is_not_imported(run, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("def build(): pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "foreign.keras"
    with (
        zipfile.ZipFile(run[0] / "best" / "model.keras") as source,
        zipfile.ZipFile(path, "w") as out,
    ):
        config = json.loads(source.read("config.json"))
        config |= {"module": "foreign", "class_name": "build", "registered_name": None}
        for name in source.namelist():
            out.writestr(name, json.dumps(config) if name == "config.json" else source.read(name))
    check_weights("resnet59", str(path))
    load_weights(tiny(), "resnet59", str(path), FINDINGS)
    assert "foreign" not in sys.modules
    keras.models.load_model(path, safe_mode=True)
    assert "foreign" in sys.modules, "Keras's own loader does"


def test_a_frozen_trunk_trains_the_logits_alone():
    model = tiny()
    assert [layer.name for layer in model.layers if layer not in trunk_layers(model)] == ["logits"]
    everything = [v.name for v in model.trainable_variables]
    train_trunk(model, False)
    assert [v.name for v in model.trainable_variables] == ["logits/kernel:0", "logits/bias:0"]
    statistics = model.get_layer("norm_a").get_weights()
    model(np.full((2, 8, 8, 1), 200, np.uint8), training=True)
    assert np.array_equal(model.get_layer("norm_a").get_weights(), statistics)
    train_trunk(model, True)
    assert [v.name for v in model.trainable_variables] == everything


KERAS_3 = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, numpy as np
out = sys.argv[1]
keras.utils.set_random_seed(3)
trunk = keras.applications.DenseNet121(include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3))
rng = np.random.default_rng(0)
for layer in trunk.layers:
    layer.set_weights([w + (w.ndim == 1) * rng.normal(size=w.shape) ** 2 / 10 for w in layer.get_weights()])
trunk.save(out + "/whole.keras")
trunk.save(out + "/whole.h5")
trunk.save_weights(out + "/plain.weights.h5")
nested = keras.Sequential([keras.Input((64, 64, 3)), trunk, keras.layers.Dense(5, name="predictions")])
nested.save(out + "/nested.keras")
nested.save(out + "/nested.h5")
np.savez(out + "/values.npz", conv=trunk.get_layer("conv1_conv").get_weights()[0],
         bn=trunk.get_layer("conv5_block16_1_bn").get_weights()[3], kernel=nested.layers[-1].get_weights()[0],
         images=(images := rng.random((2, 64, 64, 3)).astype("float32")), features=trunk.predict(images, verbose=0))
"""


@pytest.fixture(scope="module")
def keras_3(tmp_path_factory):
    """Files that Keras 3 writes of DenseNet-121, and what it makes of two images."""
    folder = tmp_path_factory.mktemp("keras3")
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-c", KERAS_3, str(folder)], check=True, env=quiet, capture_output=True
    )
    return folder


@pytest.mark.slow
def test_files_of_keras_3_give_what_keras_3_computes(keras_3):
    values = np.load(keras_3 / "values.npz")
    ours = build_model("densenet121", 64, 5)
    names = ("Mass", "Edema", "Hernia", "Nodule", "Fracture")
    for file in ("whole.keras", "whole.h5", "plain.weights.h5", "nested.keras", "nested.h5"):
        model = build_model("densenet121", 64, 5)
        given = names if file.startswith("nested") else ()
        check_weights("densenet121", str(keras_3 / file))
        check_fits("densenet121", str(keras_3 / file), layers_of(model), given)
        line = load_weights(model, "densenet121", str(keras_3 / file), names, given)
        assert line.startswith("242 of 242" if given else "241 of 242"), (file, line)
        assert ("all 5 findings taken by name" in line) == bool(given)
        trunk = keras.Model(model.get_layer("normalise").output, model.get_layer("logits").input)
        np.testing.assert_allclose(
            trunk(values["images"]), values["features"], atol=1e-5, err_msg=file
        )
        if given:
            np.testing.assert_array_equal(
                model.get_layer("logits").get_weights()[0], values["kernel"]
            )
    other = ("vgg16", str(keras_3 / "whole.keras"), layers_of(build_model("vgg16", 32, 5)))
    with pytest.raises(UserError, match="no layer has the name and shapes of one of vgg16's"):
        check_fits(*other)
    assert ours.name == "densenet121"


def test_the_top_of_a_model_as_chexnet_keras_saves_it(tmp_path):
    """A sigmoid over 14 in an order of its own, in HDF5."""
    order = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
             "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
             "Hernia")  # fmt: skip
    base = keras.applications.VGG16(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    top = keras.layers.Dense(14, activation="sigmoid", name="predictions")(base.output)
    source = keras.Model(base.input, top)
    source.get_layer("predictions").set_weights(
        [np.random.default_rng(1).normal(size=(512, 14)), np.arange(14.0)]
    )
    for path in (tmp_path / "whole.h5", tmp_path / "only.h5"):
        (source.save if path.name == "whole.h5" else source.save_weights)(path)
        model = build_model("vgg16", 32, 3)
        wanted = ("Hernia", "Scoliosis", "Mass")
        line = load_weights(model, "vgg16", str(path), wanted, order)
        assert line.endswith("logits of Hernia, Mass taken by name; fresh: logits of Scoliosis")
        kernel, bias = model.get_layer("logits").get_weights()
        assert bias[[0, 2]].tolist() == [13, 4]
        np.testing.assert_allclose(
            kernel[:, 2], source.get_layer("predictions").get_weights()[0][:, 4]
        )
        with pytest.raises(UserError, match="has no last layer of 512 channels and 13 outputs"):
            load_weights(model, "vgg16", str(path), wanted, order[:13])


def test_a_file_whose_first_layers_do_not_fit_is_refused_and_not_half_taken(tmp_path):
    source = build_model("vgg16", 32, 3)
    layers = [(n, [list(s) for s in shapes]) for n, shapes in layers_of(source)]
    run = run_folder(str(tmp_path))
    save_best(source, run, {"epoch": 0}, FINDINGS[:3], Preparation(32))
    promote(run)
    check_fits("vgg16", str(tmp_path), layers)
    first = [("block1_conv1", [[3, 3, 1, 64], [64]]), *layers[1:]]
    with pytest.raises(
        UserError, match="12 of 13 layers of vgg16's trunk fit, but block1_conv1 does not"
    ):
        check_fits("vgg16", str(tmp_path), first)
    last = [*layers[:12], ("block5_conv3", [[1, 1, 512, 512], [512]]), layers[-1]]
    check_fits("vgg16", str(tmp_path), last)
    with pytest.raises(UserError, match="says itself that its findings are"):
        check_fits("vgg16", str(tmp_path), layers, FINDINGS[1:4])


def with_weights(source, target, change):
    """A copy of a .keras file with another HDF5 member, which `change` is given open."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model.weights.h5":
                place = target.with_suffix(".h5")
                place.write_bytes(content)
                with h5py.File(place, "a") as file:
                    change(file)
                content = place.read_bytes()
            new.writestr(name, content)


def replaced(file, link):
    values = file["layers/conv2d/vars"]
    del values["0"]
    values["0"] = link


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda f: replaced(f, h5py.ExternalLink("/etc/passwd", "/x")), "is a link"),
        (lambda f: replaced(f, h5py.SoftLink("/layers/conv2d_1/vars/0")), "is a link"),
        (lambda f: replaced(f, np.array([b"text"] * 3)), "no array of numbers"),
        (lambda f: replaced(f, np.full((3, 3, 1, 4), np.nan, "f4")), "no number"),
        (lambda f: f["layers/conv2d/vars"].create_dataset("2", (1 << 20, 1 << 20), "f4"), "more than 2048"),
    ],
)  # fmt: skip
def test_a_file_that_leads_elsewhere_or_has_no_numbers(run, tmp_path, change, reason):
    with_weights(run[0] / "best" / "model.keras", tmp_path / "m.keras", change)
    with pytest.raises(UserError, match=f"m.keras is damaged, or not a Keras model .*{reason}"):
        load_weights(tiny(), "resnet59", str(tmp_path / "m.keras"), FINDINGS)
