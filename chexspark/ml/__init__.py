"""Spark ML on chest X-rays: an Estimator, its Model, an Evaluator, and folds of patients.

    from chexspark.ml import ChestXrayClassifier, ChestXrayEvaluator, ChestXrayModel, patientFolds

They load on first use, so that a Spark task that scores images loads no more than that needs.
"""

import importlib
from typing import Any

PLACES = {
    "ChestXrayClassifier": "chexspark.ml.classifier",
    "ChestXrayEvaluator": "chexspark.ml.evaluator",
    "ChestXrayModel": "chexspark.ml.model",
    "patientFolds": "chexspark.ml.evaluator",
}
__all__ = ["ChestXrayClassifier", "ChestXrayEvaluator", "ChestXrayModel", "patientFolds"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'chexspark.ml' has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)
