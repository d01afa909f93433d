"""The networks by name. This module runs anywhere; the networks themselves on ranks.

In: a name. Out: a Keras model that takes uint8 (batch, size, size, 1) and returns logits, float32
(batch, findings). All are built by a module's function ``build(size, findings, **settings)``.
"""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from chexspark.errors import UserError, closest

LOGITS = "logits"  # the name of every network's last layer; all before it is the trunk
MINIMUM_SIZE = 32  # height and width in pixels that every network can take


@dataclass(frozen=True)
class Network:
    """Where a network is built, with which settings, and where its ImageNet weights are."""

    module: str
    settings: dict[str, int] = field(default_factory=dict)
    weights: str | None = None  # in the layout of Keras applications, without the top


GITHUB = "https://github.com/keras-team/keras-applications/releases/tag"
GOOGLE = "https://storage.googleapis.com/tensorflow/keras-applications"
NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"

MODELS = {
    "densenet121": Network("densenet121", weights=f"densenet121_{NOTOP} from {GITHUB}/densenet"),
    "resnet50": Network("resnet50", weights=f"{GOOGLE}/resnet/resnet50_{NOTOP}"),
    "resnet59": Network("resnet59"),
    "vgg16": Network("vgg16", weights=f"{GOOGLE}/vgg16/vgg16_{NOTOP}"),
    "amoebanet-d-4-256": Network("amoebanet_d", {"normal_cells": 4, "filters": 256}),
    "amoebanet-d-2-512": Network("amoebanet_d", {"normal_cells": 2, "filters": 512}),
}


def check_model_name(name: str) -> None:
    """Raise UserError unless there is a model of that name."""
    if name not in MODELS:
        raise UserError(
            f"--model={name!r} is unknown{closest(name, MODELS)} (valid: {', '.join(MODELS)})"
        )


def load_model_module(name: str) -> ModuleType:
    """Import a network's module, and TensorFlow with it."""
    return importlib.import_module(f"chexspark.models.{MODELS[name].module}")


def build_model(name: str, size: int, findings: int) -> Any:
    """Build a network, a Keras model, with fresh weights from Keras's global seed; TensorFlow is imported."""
    return load_model_module(name).build(size, findings, **MODELS[name].settings)
