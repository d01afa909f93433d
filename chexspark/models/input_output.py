"""What stands around every network: the input made ready, and the logits. Runs on ranks.

In: the size. Out: one gray channel made three normalised ones, on the device; the whole model.
"""

from typing import Any, TypeAlias

import numpy as np
import tf_keras as keras

from chexspark.models import LOGITS
from chexspark.models.normalisation import CAFFE, HALVES, TORCH

__all__ = ["CAFFE", "HALVES", "TORCH", "gray_input", "with_logits"]

KerasTensor: TypeAlias = Any  # what layers take and give; tf_keras does not say its own type


def gray_input(
    size: int, normalisation: tuple[np.ndarray, np.ndarray]
) -> tuple[KerasTensor, KerasTensor]:
    """The input, uint8 (batch, size, size, 1), and the three channels made of it, (…, 3)."""
    inputs = keras.Input((size, size, 1), dtype="uint8", name="image")
    # One channel against three scales and offsets makes three.
    scale, offset = (numbers.tolist() for numbers in normalisation)
    # In float32 whatever the network computes in: then a pixel's value is rounded once.
    return inputs, keras.layers.Rescaling(scale, offset, name="normalise", dtype="float32")(inputs)


def with_logits(
    inputs: KerasTensor, features: KerasTensor, findings: int, name: str
) -> keras.Model:
    """End a network: features (batch, channels) to logits, float32 under mixed precision too."""
    logits = keras.layers.Dense(findings, name=LOGITS, dtype="float32")(features)
    return keras.Model(inputs, logits, name=name)
