"""Every name in a run, and the version of its layout. Runs anywhere.

In: where a run is, or the ``--out`` of an evaluation, which has the same names. Out: the places in
it. No other module spells these names.
"""

import hashlib
import posixpath
from dataclasses import dataclass
from typing import Any

from chexspark.errors import UserError
from chexspark.storage import Location, locate

# 1: chexspark 0.1 before runs had a version. 2: config.yaml and state.json say the version.
LAYOUT_VERSION = 2

# The tables of an evaluation, a folder per split each.
PREDICTIONS, METRICS, SUBGROUPS = "predictions", "metrics", "subgroups"
COMPARISON, LOCALISATION, EXAMPLES = "comparison", "localisation", "examples"
TABLES = (PREDICTIONS, METRICS, SUBGROUPS, COMPARISON, LOCALISATION, EXAMPLES)


@dataclass(frozen=True)
class RunFolder:
    """A run. `place` is the folder itself; the properties are what is in it."""

    place: Location

    def __str__(self) -> str:
        return str(self.place)

    # What train writes.

    @property
    def settings(self) -> Location:
        """The effective settings, YAML."""
        return self.place / "config.yaml"

    @property
    def lineage(self) -> Location:
        """Where the run comes from, JSON: `lineage.Lineage`."""
        return self.place / "lineage.json"

    @property
    def seen_patients(self) -> Location:
        """Hashes of the patients that the run has seen, Parquet."""
        return self.place / "trained_patients"

    @property
    def history(self) -> Location:
        """One row per epoch, Parquet."""
        return self.place / "history"

    @property
    def start_weights(self) -> Location:
        """The ImageNet weights that it starts from, for its ranks, until it is finished."""
        return self.place / "start-weights"

    @property
    def checkpoints(self) -> Location:
        """The folder of the last checkpoints: `checkpoint`."""
        return self.place / "checkpoints"

    @property
    def best(self) -> Location:
        """The folder of the best epoch."""
        return self.place / "best"

    @property
    def best_model(self) -> Location:
        """The best epoch's whole Keras model."""
        return self.best / "model.keras"

    @property
    def best_figures(self) -> Location:
        """The best epoch's row of the history, JSON."""
        return self.best / "best.json"

    @property
    def waiting(self) -> Location:
        """The folder in which a best model waits until a checkpoint knows of its epoch."""
        return self.place / "best-unfinished"

    @property
    def waiting_model(self) -> Location:
        """See `waiting`."""
        return self.waiting / "model.keras"

    @property
    def waiting_figures(self) -> Location:
        """See `waiting`."""
        return self.waiting / "best.json"

    @property
    def tracking(self) -> Location:
        """The run's MLflow run, JSON: `tracking.Known`."""
        return self.place / "mlflow.json"

    @property
    def tensorboard(self) -> Location:
        """TensorBoard's files."""
        return self.place / "tensorboard"

    @property
    def trace(self) -> Location:
        """What was recorded of some steps."""
        return self.place / "trace"

    @property
    def logs(self) -> Location:
        """The folder of the ranks' logs."""
        return self.place / "logs"

    def log_of(self, rank: int | None) -> Location:
        """What a rank and its libraries said, text."""
        return self.logs / f"rank-{rank}.log"

    # What evaluate, report, explain and export write.

    @property
    def evaluation(self) -> Location:
        """What was scored, by split, JSON."""
        return self.place / "evaluation.json"

    def table(self, name: str, split: str | None = None) -> Location:
        """One of `TABLES`, or its rows of one split."""
        if name not in TABLES:
            raise ValueError(f"{name} is not one of {', '.join(TABLES)}")
        return self.place / name / f"split={split}" if split else self.place / name

    @property
    def report(self) -> Location:
        """The report, one HTML file."""
        return self.place / "report.html"

    @property
    def model_card(self) -> Location:
        """The model card, Markdown."""
        return self.place / "model_card.md"

    @property
    def maps(self) -> Location:
        """Pictures of class activation maps."""
        return self.place / "maps"

    @property
    def exported(self) -> Location:
        """The best model in other formats."""
        return self.place / "export"


def run_folder(uri: str) -> RunFolder:
    """The run at a path or URI, whether it is there or not. Raises UserError as `locate` does."""
    return RunFolder(locate(uri))


def run_of_model(place: Location) -> RunFolder | None:
    """The run whose best model a file would be by its path, ``RUN/best/model.keras``; None for others.

    Whether there is such a run is not looked at.
    """
    folder = posixpath.dirname(posixpath.dirname(place.path))
    uri = posixpath.dirname(posixpath.dirname(place.uri))
    run = RunFolder(Location(place.filesystem, folder, uri))
    return run if run.best_model.path == place.path else None


def check_model(run: RunFolder) -> None:
    """Raise UserError unless the run has a best model."""
    if not run.best_model.is_file():
        raise UserError(
            f"--run={run} has no best/model.keras: give a folder that chexspark train wrote"
        )


def model_and_digest(run: RunFolder) -> tuple[str, str]:
    """The URI of the best model and its SHA-256, which tells it from one before it."""
    return str(run.best_model), hashlib.sha256(run.best_model.read_bytes()).hexdigest()


def check_layout(run: RunFolder, version: Any) -> int:
    """The layout version that a file of the run says. Raises UserError for one not known here."""
    if type(version) is not int or not 1 <= version <= LAYOUT_VERSION:
        raise UserError(
            f"--run={run} has layout version {version!r:.40}, this chexspark reads 1 to "
            f"{LAYOUT_VERSION}: use the chexspark that wrote it, or a newer one"
        )
    return version
