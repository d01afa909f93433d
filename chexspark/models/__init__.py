"""The networks by name. This module runs anywhere; the networks themselves on ranks.

In: a name. Out: a Keras model that takes uint8 (batch, size, size, 1) and returns logits, float32
(batch, findings). All are built by a module's function ``build(size, findings, **settings)``; those of the
user's own by `custom`.
"""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chexspark.user_code import Code

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


def load_model_module(name: str) -> ModuleType:
    """Import a network's module, and TensorFlow with it."""
    return importlib.import_module(f"chexspark.models.{MODELS[name].module}")


def build_model(name: str, size: int, findings: int, code: "Code | None" = None) -> Any:
    """Build a network, a Keras model, with fresh weights from Keras's global seed; TensorFlow is imported.

    `code`: of a network of the user's own. Raises UserError where that cannot be trained.
    """
    import tf_keras as keras

    # Layers that have no names of their own are numbered from the first, whatever was built before.
    keras.backend.reset_uids()
    if code:
        from chexspark.models.custom import build_custom

        return build_custom(code, size, findings)
    return load_model_module(name).build(size, findings, **MODELS[name].settings)
