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
class Published:
    """A file of ImageNet weights as it is published: `digest` is all of its MD5, or how its SHA-256 begins."""

    folder: str
    file: str
    algorithm: str
    digest: str

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"{self.folder}/{self.file}"

    @property
    def digest_words(self) -> str:
        """Its digest, for a message."""
        return f"MD5 {self.digest}" if self.algorithm == "md5" else f"SHA-256 {self.digest[:16]}…"


@dataclass(frozen=True)
class Network:
    """Where a network is built, with which settings, and which ImageNet weights of it are published."""

    module: str
    settings: dict[str, int] = field(default_factory=dict)
    imagenet: tuple[Published, ...] = ()


def keras_file(folder: str, name: str, md5: str) -> Published:
    """A file of Keras applications, without the top. `md5`: the `file_hash` in tf_keras's sources."""
    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Published(f"{GOOGLE}/{folder}", file, "md5", md5)


GOOGLE = "https://storage.googleapis.com/tensorflow/keras-applications"
# tf_keras.src.applications: densenet.py, resnet.py (WEIGHTS_HASHES), vgg16.py, convnext.py, efficientnet_v2.py.
DENSENET121 = keras_file("densenet", "densenet121", "30ee3e1110167f948a6b9946edeeb738")
RESNET50 = keras_file("resnet", "resnet50", "4d473c1dd8becc155b73f8504c6f6626")
VGG16 = keras_file("vgg16", "vgg16", "6d6bbae143d832006294945121d1f1fc")
CONVNEXT_TINY = Published(
    f"{GOOGLE}/convnext", "convnext_tiny_notop.h5", "sha256",
    "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
)  # fmt: skip
EFFICIENTNETV2_S = Published(
    f"{GOOGLE}/efficientnet_v2", "efficientnetv2-s_notop.h5", "md5", "af0682fb74e8c54910f2d4393339c070"
)  # fmt: skip
# torchvision.models.DenseNet121_Weights; its file has the digits in its name.
TORCHVISION = Published("https://download.pytorch.org/models", "densenet121-a639ec97.pth", "sha256", "a639ec97")  # fmt: skip

MODELS = {
    "densenet121": Network("densenet121", imagenet=(DENSENET121, TORCHVISION)),
    "resnet50": Network("resnet50", imagenet=(RESNET50,)),
    "resnet59": Network("resnet59"),
    "vgg16": Network("vgg16", imagenet=(VGG16,)),
    "convnext_tiny": Network("convnext_tiny", imagenet=(CONVNEXT_TINY,)),
    "efficientnetv2_s": Network("efficientnetv2_s", imagenet=(EFFICIENTNETV2_S,)),
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
