"""A DenseNet-121 of PyTorch as one of Keras applications. Anywhere; no PyTorch, no TensorFlow.

In: tensors by where they stand (`torch_files`), of torchvision's network, of torchxrayvision's, or of one that
has either inside, whatever stands before the names. Out: arrays by the names of our layers, as `model_files` has
them, that compute the same.

What differs. Kernels have their axes in another order. A variance has 1e-5 added by PyTorch and 1.001e-5 by
Keras: the difference is taken off it. A first convolution of three channels expects images normalised by ImageNet's mean and
deviation, as ours does; one of a single channel is torchxrayvision's, and is spread over the three (`normalisation.shares`).
"""

import functools
import re
from collections.abc import Callable

import numpy as np

from chexspark.errors import listed
from chexspark.models.model_files import plain_name
from chexspark.models.normalisation import TORCH, XRAYVISION, shares
from chexspark.models.torch_files import Tensor, Tensors

NETWORK = "densenet121"
EPSILON, OURS = 1e-5, 1.001e-5  # of PyTorch's BatchNorm2d, and of Keras applications' DenseNet
LESS = np.float64(EPSILON - OURS)  # so that float16 is float64 before it is added
FIRST, LAST = "conv0.weight", "norm5.weight"
FIRST_LAYER = "conv1_conv"  # ours
BEFORE_0_4 = re.compile(r"\b(norm|conv)\.([12])\.")  # norm.1.weight, as torchvision's file has it
NORMALISATION = ("weight", "bias", "running_mean", "running_var")
# PyTorch's name → the layer's.
LAYERS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"conv0", lambda _: FIRST_LAYER),
    (r"norm0", lambda _: "conv1_bn"),
    (r"denseblock(\d)\.denselayer(\d+)\.norm([12])",
     lambda m: f"conv{int(m[1]) + 1}_block{m[2]}_{int(m[3]) - 1}_bn"),
    (r"denseblock(\d)\.denselayer(\d+)\.conv([12])",
     lambda m: f"conv{int(m[1]) + 1}_block{m[2]}_{m[3]}_conv"),
    (r"transition(\d)\.norm", lambda m: f"pool{int(m[1]) + 1}_bn"),
    (r"transition(\d)\.conv", lambda m: f"pool{int(m[1]) + 1}_conv"),
    (r"norm5", lambda _: "bn"),
)  # fmt: skip
IMAGENET = "PyTorch's; images as for ImageNet's weights"
ONE_CHANNEL = "PyTorch's of one channel: images as torchxrayvision has them, −1024 to 1024"


def densenet_arrays(tensors: Tensors) -> tuple[dict[str, list[Tensor]], str]:
    """The arrays of each layer, and in words how its images are normalised.

    A dense layer outside the trunk has the name of its place. Raises ValueError where there is no such network,
    or more than one.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = BEFORE_0_4.sub(r"\1\2.", name).rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    trunk = trunk_of(modules)
    layers: dict[str, list[Tensor]] = {}
    for module, parts in modules.items():
        if not module.startswith(trunk):
            if is_dense(parts):
                layers[plain_name(module)] = dense(parts)
        elif layer := layer_of(module.removeprefix(trunk)):
            layers[layer] = arrays_of(module, parts, normalises=layer.endswith("bn"))
    (first,) = layers[FIRST_LAYER]
    height, width, channels, filters = first.shape
    if channels != 1:
        return layers, IMAGENET
    layers[FIRST_LAYER] = [first.changed((height, width, 3, filters), over_three)]
    return layers, ONE_CHANNEL


def trunk_of(modules: dict[str, dict[str, Tensor]]) -> str:
    """What stands before the names of the trunk. Raises ValueError where none is there, or several are."""
    first, last = (name.rpartition(".")[0] for name in (FIRST, LAST))
    ends = [name.removesuffix(first) for name in modules if re.search(rf"(^|\.){first}$", name)]
    found = [prefix for prefix in ends if "weight" in modules.get(prefix + last, {})]
    if not found:
        raise ValueError(f"it has no {FIRST} with a {LAST} beside it, as DenseNet-121 has")
    if len(found) > 1:
        names = listed(f"{prefix}{FIRST}" for prefix in found)
        raise ValueError(f"it has several networks ({names}): save the one that is meant")
    return found[0]


def layer_of(module: str) -> str | None:
    """Our name of a layer; None where we have none such."""
    for pattern, name in LAYERS:
        if found := re.fullmatch(pattern, module):
            return name(found)
    return None


def is_dense(parts: dict[str, Tensor]) -> bool:
    """Whether a module is a dense layer."""
    return {"weight", "bias"} <= parts.keys() and len(parts["weight"].shape) == 2


def arrays_of(module: str, parts: dict[str, Tensor], normalises: bool) -> list[Tensor]:
    """A layer's arrays in Keras's order and layout. Raises ValueError where one is not there."""
    for part in NORMALISATION if normalises else ("weight",):
        if part not in parts:
            raise ValueError(f"it has no {module}.{part}")
    if not normalises:
        return [kernel(module, parts["weight"])]
    *others, variance = (parts[part] for part in NORMALISATION)
    return [*others, variance.changed(variance.shape, lambda values: values + LESS)]


def kernel(module: str, weight: Tensor) -> Tensor:
    """A convolution's, (out, in, height, width) → (height, width, in, out). Raises ValueError for another."""
    if len(weight.shape) != 4:
        raise ValueError(f"{module}.weight is no kernel of a convolution")
    out, into, height, width = weight.shape
    return weight.changed((height, width, into, out), lambda values: values.transpose(2, 3, 1, 0))


def dense(parts: dict[str, Tensor]) -> list[Tensor]:
    """A dense layer's kernel, (out, in) → (in, out), and bias."""
    out, into = parts["weight"].shape
    return [parts["weight"].changed((into, out), np.transpose), parts["bias"]]


def over_three(values: np.ndarray) -> np.ndarray:
    """A kernel of one channel as one of our three that computes the same: (…, 1, out) → (…, 3, out)."""
    return values * gray_shares()[:, None]


@functools.cache
def gray_shares() -> np.ndarray:
    """torchxrayvision's channel in our three: float64 (3,)."""
    return shares(XRAYVISION, TORCH)
