"""The commands: one table for ``chexspark NAME``, jobs/NAME.py and ``from chexspark import NAME``.

Runs on the driver. In: a command's name. Out: its function, loaded on demand, so that a list of
commands or a ``--help`` needs neither Spark nor TensorFlow.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from chexspark import config
from chexspark.extras import check_extra


@dataclass(frozen=True)
class Command:
    """`place`: module and function, as ``module:function``. `usage`: flags, a line per way to call.

    `extras`: those of pyproject.toml that its module needs to load.
    """

    place: str
    config: type
    summary: str
    usage: tuple[str, ...]
    extras: tuple[str, ...] = ()

    def load(self) -> Callable:
        """The function. Raises UserError where a package of an extra is missing."""
        module, _, function = self.place.partition(":")
        for extra in self.extras:
            check_extra(extra, function)
        return getattr(importlib.import_module(module), function)


COMMANDS = {
    "ingest": Command(
        "chexspark.ingestion.job:ingest",
        config.IngestConfig,
        "Turn chest X-rays and their labels into a store for training.",
        ("--images PATH [PATH …] --labels CSV --out STORE [--size 320] [--boxes CSV]",),
    ),
    "train": Command(
        "chexspark.cluster.job:train",
        config.TrainConfig,
        "Train a CheXNet on a store, data-parallel, one rank per Spark task slot.",
        ("--data STORE --run RUN [--recipe chexnet] [--weights FILE] [--num-proc N]",),
        extras=("train",),
    ),
    "search": Command(
        "chexspark.tuning.job:search",
        config.SearchConfig,
        "Look for the settings of training with the best validation AUROC: trials on the cluster, some at once.",
        ("--data STORE --space YAML --out FOLDER [--trials 20] [--parallel N --num-proc N]",),
        extras=("train", "search", "report"),
    ),
    "evaluate": Command(
        "chexspark.evaluation.job:evaluate",
        config.EvaluateConfig,
        "Score a split with a run's best model, or take anybody's scores: predictions and metrics.",
        (
            "--data STORE --run RUN [RUN …] [--split test] [--tta flip,crops,scales] [--against RUN]",
            "--predictions FILE --labels CSV --out DIR",
        ),
    ),
    "report": Command(
        "chexspark.evaluation.report:report",
        config.ReportConfig,
        "Write RUN/report.html, one self-contained file, and RUN/model_card.md from an evaluated run.",
        ("--run RUN [OTHER_RUN …]",),
        extras=("report",),
    ),
    "predict": Command(
        "chexspark.evaluation.predict:predict",
        config.PredictConfig,
        "Score images that have no labels with a run's best model: probabilities as Parquet.",
        ("--images PATH [PATH …] --run RUN [RUN …] --out PARQUET [--tta flip,crops,scales]",),
    ),
    "explain": Command(
        "chexspark.evaluation.explain:explain",
        config.ExplainConfig,
        "Draw class activation maps over X-rays: RUN/maps/NAME-FINDING.png.",
        (
            "--run RUN --data STORE --images NAME [NAME …] [--findings FINDING …]",
            "--run RUN --images FILE [FILE …] [--findings FINDING …]",
        ),
    ),
    "export": Command(
        "chexspark.evaluation.export:export",
        config.ExportConfig,
        "Write a run's best model as SavedModel and ONNX, each verified against it on images.",
        ("--run RUN [--data STORE]",),
    ),
    "doctor": Command(
        "chexspark.cluster.doctor:doctor",
        config.DoctorConfig,
        "Examine what would keep a training from starting: slots, GPUs, packages, memory, network, store, run.",
        ("--data STORE [--run RUN] [--num-proc N] [--batch-size N] [--model NAME]",),
    ),
    "benchmark": Command(
        "chexspark.benchmark.job:benchmark",
        config.BenchmarkConfig,
        "Measure chexspark beside its alternatives, and at several numbers of ranks, in one run.",
        ("--suite scaling|distribution|pipelines|reader|train|start --out FOLDER",),
        extras=("train", "report"),
    ),
    "reproduce": Command(
        "chexspark.experiment.reproduce:reproduce",
        config.ReproduceConfig,
        "Train, evaluate and report two recipes over several seeds on NIH's official lists: one page of figures.",
        ("--nih FOLDER --out FOLDER [--weights FILE] [--seeds 3] [--quick]",),
        extras=("train", "report"),
    ),
    "ablate": Command(
        "chexspark.experiment.ablation:ablate",
        config.AblateConfig,
        "Train with and without each lever over several seeds: what it does to AUROC, with paired intervals.",
        ("--out FOLDER [--data STORE] [--levers YAML] [--seeds 5] [--num-proc N]",),
        extras=("train", "report"),
    ),
    "phantom": Command(
        "chexspark.phantom:write_release",
        config.PhantomConfig,
        "Write synthetic X-rays with known findings, in NIH's form, to try the software on.",
        ("--out FOLDER [--images 1200] [--size 64]",),
    ),
}
