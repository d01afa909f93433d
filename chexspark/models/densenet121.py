"""DenseNet-121 with a logit per finding: CheXNet. Runs on ranks.

In: uint8 (batch, size, size, 1), size 32 or more (the papers: 224, 256, 320). Out: logits
(batch, findings). 6,968,206 trainable parameters with 14 findings at any size.
Sources: Huang et al. 2017 (DenseNet-BC, growth 32, 121 layers); Rajpurkar et al. 2017 (CheXNet).
"""

import tf_keras as keras

from chexspark.models.input_output import TORCH, gray_input, with_logits


def build(size: int, findings: int) -> keras.Model:
    """Make the network with fresh weights from Keras's global seed."""
    inputs, normalised = gray_input(size, TORCH)
    trunk = keras.applications.DenseNet121(
        include_top=False, weights=None, input_tensor=normalised, pooling="avg"
    )
    return with_logits(inputs, trunk.output, findings, "densenet121")
