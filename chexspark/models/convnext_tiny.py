"""ConvNeXt-T with a logit per finding. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (ImageNet's weights: 224). Out: logits (batch,
findings). 27,830,894 trainable parameters with 14 findings at any size. There is no batch normalisation,
and nothing that is drawn at random: the model of Keras applications drops no path.

Layers are called as in Keras applications, whose ImageNet weights fit, but two of a block are other ones: for what
convolves each channel by itself theirs has a convolution of as many groups, which takes 28 times as long on a CPU
(56×56, 96 channels), and for what scales each channel a class of its own, which `load_model` does not find. Both
are Keras's depthwise convolution here.
Source: Liu et al. 2022, A ConvNet for the 2020s.
"""

import tf_keras as keras

from chexspark.models.input_output import TORCH, KerasTensor, gray_input, with_logits

layers = keras.layers
NAME = "convnext_tiny"
STAGES = ((3, 96), (3, 192), (9, 384), (3, 768))  # blocks, channels
EPSILON = 1e-6  # of the normalisations
FIRST_SCALE = 1e-6  # of what a block adds, as it starts


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, x = gray_input(size, TORCH)
    for stage, (blocks, channels) in enumerate(STAGES):
        x = smaller(x, channels, stage - 1) if stage else stem(x, channels)
        for position in range(blocks):
            x = block(x, channels, f"{NAME}_stage_{stage}_block_{position}")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    features = layers.LayerNormalization(epsilon=EPSILON, name="layer_normalization")(x)
    return with_logits(inputs, features, findings, NAME)


def stem(x: KerasTensor, channels: int) -> KerasTensor:
    """Patches of 4×4 pixels, and their normalisation."""
    x = layers.Conv2D(channels, 4, 4, name=f"{NAME}_stem_conv")(x)
    return layers.LayerNormalization(epsilon=EPSILON, name=f"{NAME}_stem_layernorm")(x)


def smaller(x: KerasTensor, channels: int, number: int) -> KerasTensor:
    """A normalisation, and half the height and width."""
    name = f"{NAME}_downsampling"
    x = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_layernorm_{number}")(x)
    return layers.Conv2D(channels, 2, 2, name=f"{name}_conv_{number}")(x)


def block(x: KerasTensor, channels: int, name: str) -> KerasTensor:
    """Each channel by itself over 7×7; at each place four times the channels, and back; scaled, and added."""
    shortcut = x
    x = layers.DepthwiseConv2D(7, padding="same", name=f"{name}_depthwise_conv")(x)
    x = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_layernorm")(x)
    x = layers.Dense(4 * channels, name=f"{name}_pointwise_conv_1")(x)
    x = layers.Activation("gelu", name=f"{name}_gelu")(x)
    x = layers.Dense(channels, name=f"{name}_pointwise_conv_2")(x)
    scale = keras.initializers.Constant(FIRST_SCALE)
    x = layers.DepthwiseConv2D(
        1, use_bias=False, depthwise_initializer=scale, name=f"{name}_layer_scale"
    )(x)
    return layers.Add(name=f"{name}_add")([shortcut, x])
