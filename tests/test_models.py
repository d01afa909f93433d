"""The networks: known sizes, shapes, and what their first layer makes of a gray image."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from chexspark.errors import RunFailedError, UserError
from chexspark.models import MODELS, amoebanet_d, build_model, load_model_module
from chexspark.models.cost import (
    KNOWN,
    ToCount,
    count,
    counted_in_background,
    keep_cost,
    kept_cost,
    place_of,
)
from chexspark.models.weights import fill
from chexspark.user_code import Code


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def shape_after(model, layer):
    return model.get_layer(layer).output.shape[1:].as_list()


# Keras's documentation, less the top of 1,000 classes, plus one of 14: ResNet-50 25,636,712 with
# 53,120 that are not trained, less 2,049,000; VGG-16's convolutions 14,714,688. EfficientNetV2-S 21,612,360 with
# 153,872 that are not trained, less 1,281,000; ConvNeXt-T 28,589,128, less 769,000.
@pytest.mark.parametrize(
    "name, parameters",
    [
        ("resnet50", 25_636_712 - 53_120 - 2_049_000 + 2048 * 14 + 14),
        ("vgg16", 14_714_688 + 512 * 14 + 14),
        ("convnext_tiny", 28_589_128 - 769_000 + 768 * 14 + 14),
        ("efficientnetv2_s", 21_612_360 - 153_872 - 1_281_000 + 1280 * 14 + 14),
    ],
)
def test_known_sizes(name, parameters):
    model = build_model(name, 32, 14)
    assert trainable(model) == parameters
    logits = model(np.zeros((2, 32, 32, 1), np.uint8))
    assert logits.shape == (2, 14) and logits.dtype == "float32"


def test_gray_becomes_three_channels_as_caffe_s_weights_expect():
    model = build_model("vgg16", 32, 14)
    head = keras.Model(model.input, model.get_layer("normalise").output)
    found = head(np.full((1, 32, 32, 1), 128, np.uint8)).numpy()[0, 5, 5]
    gray = np.full((1, 1, 1, 3), 128.0, np.float32)
    expected = keras.applications.vgg16.preprocess_input(gray)[0, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found, [128 - 103.939, 128 - 116.779, 128 - 123.68], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnetv2_s"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_step_of_a_network_changes_all_of_its_weights(name, precision):
    from chexspark.data.pipeline import as_tensors
    from chexspark.data.reader import Batch
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.ring import Alone
    from chexspark.training.step import Steps

    random = np.random.default_rng(0)
    keras.mixed_precision.set_global_policy(precision)
    try:
        keras.utils.set_random_seed(0)
        model = build_model(name, 32, 3)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    steps = Steps(model, make_optimizer("adam", model.trainable_variables), 4, Alone())
    images = random.integers(0, 256, (4, 32, 32)).astype(np.uint8)
    labels = random.integers(0, 2, (4, 3)).astype(np.int8)
    before = [v.numpy() for v in model.trainable_variables]
    result = steps.train(as_tensors(Batch(images, labels, np.ones(4, np.float32), np.arange(4))))
    assert result.finite and 0.3 < result.loss < 3
    # Ahead of a normalisation over a single place nothing has a gradient.
    moved = [(v.numpy() != was).any() for v, was in zip(steps.variables, before, strict=True)]
    assert np.mean(moved) > 0.8
    logits, _, _ = steps.score(
        as_tensors(Batch(images, labels, np.ones(4, np.float32), np.arange(4)))
    )
    assert np.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnetv2_s"])
def test_a_saved_network_opens_with_keras_alone_and_fills_its_twin(name, tmp_path):
    keras.utils.set_random_seed(0)
    model, twin = build_model(name, 32, 3), build_model(name, 32, 3)
    model.save(tmp_path / "model.keras")
    content = (tmp_path / "model.keras").read_bytes()
    fill(twin, content, hashlib.sha256(content).hexdigest(), "it")
    code = (
        "import sys, numpy as np, tf_keras as keras\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "np.save(sys.argv[2], model(np.load(sys.argv[2])).numpy())\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    names = [str(tmp_path / "model.keras"), str(tmp_path / "images.npy")]
    subprocess.run([sys.executable, "-c", code, *names], check=True, env=quiet, cwd=tmp_path)
    expected = model(images).numpy()
    np.testing.assert_allclose(twin(images).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resnet59():
    return build_model("resnet59", 896, 14)


def test_resnet_59_is_the_poster_s_table(resnet59):
    table = {
        "1_conv": (448, 64), "1_pool": (224, 64), "2a_out": (112, 256), "2c_out": (112, 256),
        "3c_out": (56, 512), "4d_out": (28, 1024), "5f_out": (14, 2048), "5_pool": (7, 2048),
        "6a_out": (7, 4096), "6c_out": (7, 4096),
    }  # fmt: skip
    for layer, (side, features) in table.items():
        assert shape_after(resnet59, layer) == [side, side, features], layer
    assert shape_after(resnet59, "avg_pool") == [4096] and resnet59.output.shape[1:] == [14]


def test_resnet_59_has_59_layers_and_four_times_the_parameters(resnet59):
    weighted = [
        layer.name for layer in resnet59.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        and "shortcut" not in layer.name
    ]  # fmt: skip
    assert len(weighted) == 59
    # ResNet-50 without biases ahead of normalisation, as the paper has it: 23,508,032 and the head.
    assert trainable(resnet59) == 94_252_622
    assert trainable(resnet59) / (23_508_032 + 2048 * 14 + 14) == pytest.approx(4, abs=0.02)


@pytest.mark.slow
def test_amoebanet_d_shapes():
    model = build_model("amoebanet-d-4-256", 299, 14)
    # Outputs of a normal cell are four states, of a reduction cell three.
    for layer, side, features in [
        ("stem_bn", 149, 32), ("stem1", 75, 3 * 64), ("stem2", 38, 3 * 128),
        ("stack1_cell4", 38, 4 * 256), ("reduction1", 19, 3 * 512), ("stack2_cell4", 19, 4 * 512),
        ("reduction2", 10, 3 * 1024), ("stack3_cell4", 10, 4 * 1024),
    ]:  # fmt: skip
        assert shape_after(model, layer) == [side, side, features], layer
    assert trainable(model) == 79_963_918


@pytest.mark.slow
def test_amoebanet_d_has_the_parameters_that_gpipe_reports():
    # Huang et al. 2019, table 1: 82 million with 18 normal cells, 208 filters, 1,000 classes. The
    # auxiliary classifier, not built here, is 1×1 to 51 channels, 4×4 to 307, and the classes.
    auxiliary = 4 * 416 * 51 + 16 * 51 * 307 + 308 * 1000 + 2 * (51 + 307)
    model = amoebanet_d.build(32, 1000, normal_cells=6, filters=208)
    assert round((trainable(model) + auxiliary) / 1e6) == 82


def test_a_cell_computes_what_the_drawing_says():
    """One normal cell on 4×4 states, its convolutions' weights all one, against sums by hand."""
    older, last = keras.Input((4, 4, 8)), keras.Input((4, 4, 8))
    cell = keras.Model(
        [older, last], amoebanet_d.cell([older, last], 8, "c", *amoebanet_d.NORMAL)[1]
    )
    for layer in cell.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.zeros(layer.kernel.shape)
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1 / kernel.shape[2]
            layer.set_weights([kernel])
        elif isinstance(layer, keras.layers.BatchNormalization):
            ones = np.ones(layer.gamma.shape)
            layer.set_weights([ones, 0 * ones, 0 * ones, ones - layer.epsilon])
    # Each convolution then hands on the mean over channels, of what is above zero: for constant
    # states each operation is the identity. 0 is the last cell's state, 1 the older; 2 = 1 + 1;
    # 3 = 1 + 0; 4 = 0 + 0; 5 = 2 + 2; 6 = 1 + 5. Out: 0, 3, 4, 6.
    found = cell([np.full((1, 4, 4, 8), 10.0), np.full((1, 4, 4, 8), 1.0)]).numpy()[0, 2, 2]
    np.testing.assert_allclose(found, np.repeat([1, 11, 2, 50], 8), rtol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_state_that_shrinks_loses_no_pixel(shift):
    """Both halves of the channels see one pixel of each 2×2: the first, and the last."""
    x, like = keras.Input((5, 5, 2)), keras.Input((3, 3, 2))
    model = keras.Model([x, like], amoebanet_d.fit(x, like, 2, "f"))
    for name in ("f_conv1", "f_conv2"):
        model.get_layer(name).set_weights([np.ones((1, 1, 2, 1))])
    image = np.zeros((1, 5, 5, 2), np.float32)
    image[0, 2 + shift, 2 + shift, 0] = 1
    found = model([image, np.zeros((1, 3, 3, 2))]).numpy()[0]
    assert np.argwhere(found > 0.5).tolist() == [[1, 1, shift]]


@pytest.mark.parametrize("name", MODELS)
def test_every_name_leads_to_a_network_that_says_its_size_and_source(name):
    module = load_model_module(name)
    assert callable(module.build)
    assert "Source" in module.__doc__ and "trainable parameters" in module.__doc__


def test_what_a_step_keeps_is_counted():
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Conv2D(4, 3)(layers.Rescaling(1.0)(inputs))
    x = layers.MaxPooling2D(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(14)(layers.GlobalAveragePooling2D()(x)))
    facts = count(model, batch=5, slots=2)
    # In floats: into the convolution 8·8, into the normalisation 6·6·4, out of the ReLU and into
    # the pool as many, out of the pool 3·3·4, into the logits 4. The largest is 6·6·4.
    assert facts["activations_bytes"] == 5 * 4 * (64 + 144 + 144 + 36 + 4)
    # 9·4 + 4 weights of the convolution, 4·4 of the normalisation, half of them trained, 4·14 + 14.
    assert (facts["parameters"], facts["trainable"]) == (126, 118)
    kept = facts["activations_bytes"]
    assert facts["memory_bytes"] == kept + 4 * (126 + 3 * 118) + 5 * 4 * 144
    assert facts["checkpoint_bytes"] == 4 * (126 + 2 * 118)


def test_what_smooth_activations_and_products_keep_is_counted():
    layers = keras.layers
    inputs = keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3)(inputs)
    x = layers.Activation("gelu")(layers.LayerNormalization()(x))
    x = layers.Multiply()([layers.Activation("swish")(layers.Dense(5)(x)), layers.Dense(5)(x)])
    model = keras.Model(inputs, layers.Dense(14)(layers.GlobalAveragePooling2D()(x)))
    facts = count(model, batch=3, slots=2)
    # In floats: into the depthwise convolution 8·8·2, into the normalisation 6·6·2, three of it for gelu, its product
    # as it goes into both dense layers, into swish 6·6·5, into the product twice that, into the logits 5.
    assert facts["activations_bytes"] == 3 * 4 * (128 + 72 + 3 * 72 + 72 + 180 + 2 * 180 + 5)
    assert facts["forward_flops"] == 2 * (9 * 72 + 2 * 180 + 2 * 180 + 5 * 14)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own, and nothing that this process has counted before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = dict(KNOWN)
    KNOWN.clear()
    yield tmp_path / "chexspark" / "networks"
    KNOWN.clear()
    KNOWN.update(known)


def test_what_was_counted_is_kept_for_the_next_process(cache, monkeypatch):
    given = ToCount("vgg16", 32, 14, 4)
    with counted_in_background(given) as facts:
        counted = facts()
    (file,) = cache.iterdir()
    KNOWN.clear()
    monkeypatch.setattr(subprocess, "Popen", None)  # no child is needed
    with counted_in_background(given) as facts:
        assert json.dumps(facts()) == json.dumps(counted)
    for damaged in ("", "[]", '{"parameters": 1}', json.dumps(counted | {"trainable": "many"})):
        file.write_text(damaged)
        assert kept_cost(given) is None, damaged
    for other in ({"batch": 8}, {"size": 64}, {"precision": "mixed_bfloat16"}, {"slots": 1}):
        assert place_of(given._replace(**other)) != file
    assert place_of(given._replace(code=Code("m:f", (("m.py", ""),)))) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nobody")
    keep_cost(given, counted)  # where nothing can be kept, nothing is


def test_facts_come_from_a_process_of_their_own(cache):
    with counted_in_background(ToCount("vgg16", 32, 14, 4, 1, "mixed_float16")) as facts:
        facts = facts()
    # 15,346,630,656 multiplications in the convolutions at 224: 49 times as many as at 32.
    assert facts["forward_flops"] == 2 * (15_346_630_656 // 49 + 512 * 14)
    assert facts["trainable"] == facts["parameters"] == 14_721_870
    half = 2 * facts["activations_bytes"]
    whole = count(build_model("vgg16", 32, 14), 4, slots=1)["activations_bytes"]
    pixels = 4 * 32 * 32 * 3 * 4  # that are normalised in float32
    assert half - pixels == pytest.approx(whole, rel=1e-3), "all but pixels and features is halved"


def test_a_child_that_fails_is_named_with_its_last_words():
    with (
        pytest.raises(
            RunFailedError, match=r"vgg16 at 8x8 could not .*: error: argument batch: inv"
        ),
        counted_in_background(ToCount("vgg16", 8, 14, "many")) as facts,
    ):
        facts()


def test_a_child_whose_facts_are_not_needed_is_ended(cache, monkeypatch):
    given = ToCount("vgg16", 33, 14, 4)
    children, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: children.append(start(*a, **k)) or children[-1]
    )
    with pytest.raises(UserError), counted_in_background(given):
        raise UserError("something else is wrong")
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert given not in KNOWN
    KNOWN[given] = {"parameters": 1}
    with counted_in_background(given) as facts:
        assert facts() == {"parameters": 1} and len(children) == 1
    del KNOWN[given]
