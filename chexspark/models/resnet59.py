"""ResNet-59 with a logit per finding: a residual network for large X-rays. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (the poster: 896). Out: logits (batch, findings).
94,252,622 trainable parameters with 14 findings at any size, four times ResNet-50's.

Source: the table of SURFsara's poster on CheXNet at scale. It is ResNet-50 with a stage more, a
stride of 2 in the first stage, an average pool ahead of the last, and 4 blocks in the third: seven
halvings, from 896 to 7. Which convolution of a block has the stride is not in the table: here the
3×3 one, as in Goyal et al. 2017, section 5.1, where the normalisation's settings are from.
"""

import tf_keras as keras

from chexspark.models.input_output import TORCH, KerasTensor, gray_input, with_logits

layers = keras.layers
# Stage: blocks, channels inside a block (out of it four times as many), stride of the first block.
STAGES = {2: (3, 64, 2), 3: (3, 128, 2), 4: (4, 256, 2), 5: (6, 512, 2), 6: (3, 1024, 1)}
EXPANSION = 4


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, x = gray_input(size, TORCH)
    x = layers.Activation("relu", name="1_relu")(convolution(x, 64, 7, 2, "1"))
    x = layers.MaxPooling2D(3, 2, padding="same", name="1_pool")(x)
    for stage, (blocks, channels, stride) in STAGES.items():
        if stage == 6:
            x = layers.AveragePooling2D(2, padding="same", name="5_pool")(x)
        for position in range(blocks):
            name = f"{stage}{'abcdef'[position]}"
            x = block(x, channels, stride if position == 0 else 1, name)
    features = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return with_logits(inputs, features, findings, "resnet59")


def block(x: KerasTensor, channels: int, stride: int, name: str) -> KerasTensor:
    """A bottleneck: 1×1, 3×3, 1×1, and the input added, projected where the shape changes."""
    shortcut = x
    if stride > 1 or x.shape[-1] != EXPANSION * channels:
        shortcut = convolution(x, EXPANSION * channels, 1, stride, f"{name}_shortcut")
    x = layers.Activation("relu", name=f"{name}_1_relu")(
        convolution(x, channels, 1, 1, f"{name}_1")
    )
    x = convolution(x, channels, 3, stride, f"{name}_2")
    x = layers.Activation("relu", name=f"{name}_2_relu")(x)
    x = convolution(x, EXPANSION * channels, 1, 1, f"{name}_3")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def convolution(x: KerasTensor, channels: int, kernel: int, stride: int, name: str) -> KerasTensor:
    """A convolution without bias, and its normalisation."""
    x = layers.Conv2D(
        channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv",
        kernel_initializer="he_normal",
    )(x)  # fmt: skip
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
