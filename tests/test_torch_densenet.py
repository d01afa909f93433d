"""DenseNet-121 of PyTorch: what its files compute here is what PyTorch computes."""

import numpy as np
import pytest
import tf_keras as keras
from safetensors.numpy import save_file
from torch_writer import (
    Half,
    Writer,
    legacy_file,
    logits,
    made_state,
    module_of,
    ordered,
    zip_file,
)

from chexspark.errors import UserError
from chexspark.models import build_model
from chexspark.models.normalisation import TORCH, XRAYVISION, shares
from chexspark.models.weights import check_fits, check_weights, layers_of, load_weights

NAMES = ("Mass", "Edema", "Hernia")
PIXELS = np.random.default_rng(5).integers(0, 256, (3, 64, 64)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return build_model("densenet121", 64, len(NAMES))


def by_imagenet():
    """The images as torchvision's networks take them, (images, 3, size, size)."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    gray = PIXELS[:, None].repeat(3, axis=1) / 255
    return (gray - mean[:, None, None]) / deviation[:, None, None]


@pytest.fixture(scope="module")
def state():
    return made_state(by_imagenet(), len(NAMES))


def loaded(model, path, given=NAMES):
    """What the network gives after the file's weights, and the line about them."""
    check_weights("densenet121", str(path))
    check_fits("densenet121", str(path), layers_of(model), given)
    line = load_weights(model, "densenet121", str(path), NAMES, given)
    return model(PIXELS[..., None], training=False).numpy(), line


def in_one(state):
    return zip_file(ordered(state, {"_metadata": ordered({"": {"version": 1}})}))


def checkpoint(state):
    """Of a training on several devices, in the spelling of before 0.4, with an optimizer's state."""
    old = {n.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): a for n, a in state.items()}  # fmt: skip
    moments = {0: {"step": 3, "exp_avg": np.ones((64, 3, 7, 7), "<f4")}}
    inside = {"module.densenet121." + n.replace("classifier.", "classifier.0."): a for n, a in old.items()}  # fmt: skip
    return legacy_file(
        {"epoch": 3, "state_dict": inside, "optimizer": {"state": moments}, "lr": 0.1}
    )


@pytest.mark.parametrize("write", [in_one, checkpoint])
def test_torchvision_s_network_gives_pytorch_s_logits(model, state, tmp_path, write):
    (tmp_path / "m.pth").write_bytes(write(state))
    found, line = loaded(model, tmp_path / "m.pth")
    expected = logits(state, by_imagenet())
    assert np.ptp(expected, axis=0).min() > 0.1, "images differ"
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert line == (
        f"242 of 242 layers start from {tmp_path}/m.pth (PyTorch's; images as for ImageNet's weights); "
        "logits of all 3 findings taken by name"
    )


def test_a_network_of_one_channel_gives_pytorch_s_logits_at_the_borders_too(model, tmp_path):
    """torchxrayvision's: a whole module, in the format of before PyTorch 1.6, images from −1024 to 1024."""
    images = (2 * PIXELS[:, None].astype(float) / 255 - 1) * 1024
    state, writer = made_state(images, 5, seed=1), Writer(legacy=True)
    path = tmp_path / "nih-densenet121-best.pt"
    path.write_bytes(legacy_file(module_of(state, writer, old=True), writer))
    given = ("Edema", "", "Mass", "", "Hernia")
    found, line = loaded(model, path, given)
    np.testing.assert_allclose(found, logits(state, images)[:, [2, 0, 4]], atol=1e-4)
    assert "of one channel: images as torchxrayvision has them, −1024 to 1024" in line


def test_a_channel_is_its_shares_of_three_without_a_bias():
    part, pixel = shares(XRAYVISION, TORCH), np.arange(256.0)
    three = pixel[:, None] * TORCH[0] + TORCH[1]
    np.testing.assert_allclose(three @ part, (2 * pixel / 255 - 1) * 1024, rtol=0, atol=1e-9)


def test_keras_adds_what_is_taken_off_the_variance(model):
    layers = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    assert len(layers) == 121 and {la.epsilon for la in layers} == {1.001e-5}


def test_other_types_and_layouts_hold_the_same_numbers(model, state, tmp_path):
    """Safetensors; float16 and bfloat16; a kernel whose channels lie last; numbers behind others in a storage."""
    exact = {n: (a.astype("<f2") if a.dtype == "<f4" else a) for n, a in state.items()}
    save_file(exact, tmp_path / "m.safetensors")
    whole, line = loaded(model, tmp_path / "m.safetensors")
    assert line.startswith("242 of 242 layers")
    single = {n: a.astype("<f4") if a.dtype == "<f2" else a for n, a in exact.items()}
    last = {n: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if a.ndim == 4 else a
            for n, a in single.items()}  # fmt: skip
    (tmp_path / "last.pt").write_bytes(zip_file({"model": last}, Writer(offset=3)))
    (tmp_path / "half.pt").write_bytes(zip_file(exact))
    for name in ("last.pt", "half.pt"):
        np.testing.assert_array_equal(loaded(model, tmp_path / name)[0], whole)
    short = {n: (a.view("<u4") & 0xFFFF0000).view("<f4") if a.dtype == "<f4" else a for n, a in single.items()}  # fmt: skip
    (tmp_path / "short.pt").write_bytes(zip_file(short))
    (tmp_path / "bfloat16.pt").write_bytes(
        zip_file({n: a.view(Half) if a.dtype == "<f4" else a for n, a in short.items()})
    )
    expected = loaded(model, tmp_path / "short.pt")[0]
    np.testing.assert_array_equal(loaded(model, tmp_path / "bfloat16.pt")[0], expected)


def test_what_is_not_a_densenet_121_is_one_line(model, state, tmp_path):
    path = tmp_path / "m.pt"

    def refused(content, message, name="densenet121"):
        path.write_bytes(zip_file(content))
        with pytest.raises(UserError, match=message) as caught:
            check_weights(name, str(path))
        assert "\n" not in str(caught.value)

    refused(
        {"fc.weight": np.ones((2, 2), "<f4")}, "has no conv0.weight with a norm5.weight beside it"
    )
    refused(
        {"a": state, "b": state}, r"several networks \(a.features.conv0.weight, b.features.conv0"
    )
    refused({n: a for n, a in state.items() if "norm0.running_var" not in n}, "no features.norm0.running_var")  # fmt: skip
    refused(
        state | {"features.conv0.weight": np.ones((64,), "<f4")}, "is no kernel of a convolution"
    )
    refused(state, "of PyTorch densenet121 is taken, and no vgg16", "vgg16")
    other = {n: a for n, a in state.items() if "transition1.conv" not in n}
    path.write_bytes(zip_file(other))
    with pytest.raises(UserError, match="pool2_conv does not, which comes before some of them"):
        check_fits("densenet121", str(path), layers_of(model))
    with pytest.raises(
        UserError, match=r"names 2 findings, but .* has no last layer of 1024 channels and 2"
    ):
        path.write_bytes(zip_file(state))
        check_fits("densenet121", str(path), layers_of(model), NAMES[:2])
