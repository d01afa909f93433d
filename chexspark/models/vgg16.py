"""VGG-16 with a logit per finding. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (ImageNet's weights: 224). Out: logits (batch,
findings). 14,721,870 trainable parameters with 14 findings at any size.

The 13 convolutions, then the global average and the logits, in place of the published network's two
fully connected layers of 4,096: those are 119 million of its 138 million parameters, are of one
image size only, and are not in the weights without the top. There is no batch normalisation.
Source: Simonyan and Zisserman 2015, configuration D, as in Keras applications.
"""

import tf_keras as keras

from chexspark.models.input_output import CAFFE, gray_input, with_logits


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, normalised = gray_input(size, CAFFE)
    trunk = keras.applications.VGG16(
        include_top=False, weights=None, input_tensor=normalised, pooling="avg"
    )
    return with_logits(inputs, trunk.output, findings, "vgg16")
