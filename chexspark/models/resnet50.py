"""ResNet-50 with a logit per finding. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (ImageNet's weights: 224). Out: logits (batch,
findings). 23,563,278 trainable parameters with 14 findings at any size.
Source: He et al. 2016, Deep Residual Learning for Image Recognition, as in Keras applications.
"""

import tf_keras as keras

from chexspark.models.input_output import CAFFE, gray_input, with_logits


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, normalised = gray_input(size, CAFFE)
    trunk = keras.applications.ResNet50(
        include_top=False, weights=None, input_tensor=normalised, pooling="avg"
    )
    return with_logits(inputs, trunk.output, findings, "resnet50")
