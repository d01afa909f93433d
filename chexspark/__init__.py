"""chexspark: chest X-rays to an honestly evaluated CheXNet, on the Spark cluster you have.

    from chexspark import ingest, train, evaluate, report

Each function is what the command of the same name runs; so are doctor, predict, explain and export.
They load on first use, so that a rank never loads pyspark and the driver never loads TensorFlow.
"""

__version__ = "0.1.0"
__all__ = ["doctor", "evaluate", "explain", "export", "ingest", "predict", "report", "train"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module 'chexspark' has no attribute {name!r}")
    from chexspark.commands import COMMANDS

    return COMMANDS[name].load()
