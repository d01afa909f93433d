"""AmoebaNet-D with a logit per finding, of any number of cells and filters. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more. Out: logits (batch, findings).

| normal cells, filters | size in SURFsara's poster | trainable parameters, 14 findings |
|---|---|---|
| 4, 256 | 299 | 79,963,918 |
| 2, 512 | 480 | 167,924,846 |

A stem of a convolution and two reduction cells, then three stacks of normal cells with a reduction
cell between them. `normal_cells` counts those of one stack and `filters` those of the first, as
N and F in the paper; each reduction cell doubles the filters.

Source: Real et al. 2019, Regularized Evolution for Image Classifier Architecture Search. Where the
paper's drawing and its authors' code (tensorflow/tpu, models/official/amoeba_net) differ, in what a
normal cell hands on, this is the code's cell, of which GPipe (Huang et al. 2019) gives the number
of parameters. The stem and the normalisation's settings are the code's too. The auxiliary
classifier, dropped paths and dropout, which are for training alone, are left out.
"""

from collections.abc import Callable

import tf_keras as keras

from chexspark.models.input_output import TORCH, KerasTensor, gray_input, with_logits

layers = keras.layers
STEM_FILTERS = 32
Pair = int | tuple[int, int]  # height and width
Operation = Callable[[KerasTensor, int, int, str], KerasTensor]
Pairs = tuple[tuple[tuple[int, Operation], tuple[int, Operation]], ...]


def build(size: int, findings: int, normal_cells: int, filters: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, x = gray_input(size, TORCH)
    x = convolution(x, STEM_FILTERS, 3, 2, "stem", padding="valid")
    states = [x, x]  # what the last two cells gave
    for number in range(2):
        states = cell(states, filters // 4 * 2**number, f"stem{number + 1}", *REDUCTION)
    for stack in range(3):
        width = filters * 2**stack
        if stack > 0:
            states = cell(states, width, f"reduction{stack}", *REDUCTION)
        for number in range(normal_cells):
            states = cell(states, width, f"stack{stack + 1}_cell{number + 1}", *NORMAL)
    x = layers.ReLU(name="relu")(states[-1])
    features = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return with_logits(inputs, features, findings, f"amoebanet-d-{normal_cells}-{filters}")


def cell(
    before: list, filters: int, name: str, stride: int, pairs: Pairs, outputs: tuple[int, ...]
) -> list:
    """Add a cell. `before`: what the two cells ahead of it gave; returned: the last of them, and it.

    States 0 and 1 are the last and the last but one, brought to `filters` channels and one size;
    each pair of operations makes a state more, their sum; `outputs` are put side by side.
    """
    older, last = before
    states = [relu_convolution(last, filters, 1, 1, f"{name}_last")]
    states.append(fit(older, last, filters, f"{name}_older"))
    for number, pair in enumerate(pairs, start=2):
        sides = [
            operation(states[state], filters, stride if state < 2 else 1, f"{name}_{number}{side}")
            for side, (state, operation) in zip("ab", pair, strict=True)
        ]
        states.append(layers.Add(name=f"{name}_{number}")(sides))
    return [last, layers.Concatenate(name=name)([states[i] for i in outputs])]


def fit(x: KerasTensor, like: KerasTensor, filters: int, name: str) -> KerasTensor:
    """Bring an older state to `filters` channels and to the size of `like`."""
    if x.shape[1] == like.shape[1]:
        return x if x.shape[-1] == filters else relu_convolution(x, filters, 1, 1, name)
    # Every other pixel, and beside them every other pixel from the second: none is lost.
    x = layers.ReLU(name=f"{name}_relu")(x)
    shifted = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    shifted = layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_shift")(shifted)
    halves = [
        layers.Conv2D(
            filters // 2, 1, 2, use_bias=False, kernel_initializer=initial(), name=f"{name}_conv{i}"
        )(half)
        for i, half in enumerate((x, shifted), start=1)
    ]  # fmt: skip
    return normalisation(layers.Concatenate(name=f"{name}_both")(halves), name)


def convolution(
    x: KerasTensor, filters: int, kernel: Pair, stride: Pair, name: str, padding: str = "same"
) -> KerasTensor:
    """A convolution without bias, then normalisation; (batch, height, width, channels) in and out."""
    x = layers.Conv2D(
        filters, kernel, stride, padding=padding, use_bias=False, kernel_initializer=initial(),
        name=f"{name}_conv",
    )(x)  # fmt: skip
    return normalisation(x, name)


def relu_convolution(
    x: KerasTensor, filters: int, kernel: Pair, stride: Pair, name: str
) -> KerasTensor:
    """ReLU, convolution, normalisation."""
    return convolution(layers.ReLU(name=f"{name}_relu")(x), filters, kernel, stride, name)


def normalisation(x: KerasTensor, name: str) -> KerasTensor:
    """Batch normalisation with the settings of the paper's code."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def initial() -> keras.initializers.Initializer:
    """What kernels start from: the variance of the outputs, as in the paper's code."""
    return keras.initializers.VarianceScaling(2.0, "fan_out")


# The operations of a cell: (x, filters, stride, name) → x, of a size that the stride divides.


def identity(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: the input itself."""
    return x


def conv_1x1(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: a 1 × 1 convolution."""
    return relu_convolution(x, filters, 1, stride, name)


def conv_3x3(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: a 3 × 3 convolution in a bottleneck."""
    x = relu_convolution(x, filters // 4, 1, 1, f"{name}_in")
    x = relu_convolution(x, filters // 4, 3, stride, f"{name}_3x3")
    return relu_convolution(x, filters, 1, 1, f"{name}_out")


def conv_1x7_7x1(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: 1 × 7, then 7 × 1, in a bottleneck."""
    x = relu_convolution(x, filters // 4, 1, 1, f"{name}_in")
    x = relu_convolution(x, filters // 4, (1, 7), (1, stride), f"{name}_1x7")
    x = relu_convolution(x, filters // 4, (7, 1), (stride, 1), f"{name}_7x1")
    return relu_convolution(x, filters, 1, 1, f"{name}_out")


def max_2x2(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: the largest of 2 × 2."""
    return layers.MaxPooling2D(2, stride, padding="same", name=name)(x)


def max_3x3(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: the largest of 3 × 3."""
    return layers.MaxPooling2D(3, stride, padding="same", name=name)(x)


def avg_3x3(x: KerasTensor, filters: int, stride: int, name: str) -> KerasTensor:
    """Operation of a cell: the mean of 3 × 3."""
    return layers.AveragePooling2D(3, stride, padding="same", name=name)(x)


# Stride on the states from outside; pairs of (state, operation), which make states 2 to 6; outputs.
NORMAL = (1, (
    ((1, conv_1x1), (1, max_3x3)),
    ((1, identity), (0, conv_1x7_7x1)),
    ((0, conv_1x1), (0, conv_1x7_7x1)),
    ((2, max_3x3), (2, identity)),
    ((1, avg_3x3), (5, conv_1x1)),
), (0, 3, 4, 6))  # fmt: skip
REDUCTION = (2, (
    ((0, max_2x2), (0, max_3x3)),
    ((2, identity), (1, conv_3x3)),
    ((2, conv_1x7_7x1), (2, max_3x3)),
    ((3, identity), (1, max_2x2)),
    ((2, avg_3x3), (3, conv_1x1)),
), (4, 5, 6))  # fmt: skip
