"""EfficientNetV2-S with a logit per finding. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (ImageNet's weights: 384). Out: logits (batch,
findings). 20,195,422 trainable parameters with 14 findings at any size.

While it trains, blocks are left out at random, up to a fifth of the images at the last one, as published: a run that is
resumed draws others than one that went through.
Source: Tan and Le 2021, EfficientNetV2: Smaller Models and Faster Training, as in Keras applications.
"""

import tf_keras as keras

from chexspark.models.input_output import HALVES, gray_input, with_logits


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, normalised = gray_input(size, HALVES)
    trunk = keras.applications.EfficientNetV2S(
        include_top=False, include_preprocessing=False, weights=None, input_tensor=normalised,
        pooling="avg",
    )  # fmt: skip
    return with_logits(inputs, trunk.output, findings, "efficientnetv2_s")
