"""chexspark: chest X-rays to an honestly evaluated CheXNet, on the Spark cluster you have.

    from chexspark import ingest, train, evaluate, report

Each function is what the command of the same name runs; so are search, doctor, predict, explain and export.
`read_store` gives a store as a Spark DataFrame, `ingest_frame` takes one; `chexspark.ml` has a Spark ML
Estimator, its Model and Evaluator.
They load on first use, so that a rank never loads pyspark and the driver never loads TensorFlow.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "doctor", "evaluate", "explain", "export", "ingest", "ingest_frame", "predict", "read_store", "report",
    "search", "train",
]  # fmt: skip
OTHERS = {
    "ingest_frame": "chexspark.ingestion.frames",
    "read_store": "chexspark.ingestion.read_store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'chexspark' has no attribute {name!r}")
    if name in OTHERS:
        return getattr(importlib.import_module(OTHERS[name]), name)
    from chexspark.commands import COMMANDS

    return COMMANDS[name].load()
