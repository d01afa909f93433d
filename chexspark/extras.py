"""Packages that only some jobs need, and what to say where one is missing. Runs anywhere.

In: the name of an extra of pyproject.toml. Out: nothing, or UserError with the remedy.
"""

import importlib.util

from chexspark.errors import UserError

PACKAGES = {  # extra → the top-level modules that are imported of it
    "train": ("horovod",),
    "report": ("matplotlib", "jinja2"),
    "export": ("onnx", "onnxruntime", "tf2onnx"),
    "dicom": ("pydicom",),
    "mlflow": ("mlflow",),
    "search": ("optuna",),
}
# Horovod comes as source, and builds without TensorFlow where it is not told otherwise.
BUILT = "build it with ./build.sh setup, or as README's Install says"


def check_extra(extra: str, what: str) -> None:
    """Raise UserError, saying that `what` needs it, unless the extra's packages are installed."""
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        remedy = BUILT if extra == "train" else f"run pip install 'chexspark[{extra}]'"
        raise UserError(f"{what} needs {' and '.join(missing)}, not installed here: {remedy}")
