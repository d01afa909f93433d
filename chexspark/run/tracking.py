"""What MLflow is told of a run: its settings, store, epochs, figures, pages and model. Runs on the driver.

In: a run, and a `Server`. Out: an MLflow run, whose id stands in ``RUN/mlflow.json``, so that what comes later goes
on in it. Of a training it is told in a thread of its own: a slow server holds nobody up.
"""

import contextlib
import json
import math
import numbers
import posixpath
import queue
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from chexspark import __version__
from chexspark.errors import StoppedError, UserError
from chexspark.findings import PROBABILITY, column_name
from chexspark.json_types import misfit
from chexspark.run.folder import RunFolder, model_and_digest, run_folder
from chexspark.run.history import best_epoch, has_history, read_history
from chexspark.run.lineage import read_lineage
from chexspark.run.mlflow_server import SECONDS, Answer, Server, find_server
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.settings import FREE, effective_settings, last_checkpoint
from chexspark.storage import Location
from chexspark.store.manifest import Manifest
from chexspark.text_files import read_json

LOADER = "chexspark.evaluation.mlflow_model"  # the module that MLflow loads a model with
# What a user names when a model of a network of their own is loaded; `model` would be a parameter twice.
NETWORK = "network"
MODEL = "model"  # what the logged model is called in its run
RUN_TAG, STORE_TAG, NETWORK_TAG = (
    "chexspark.run",
    "chexspark.store_fingerprint",
    "chexspark.network",
)
VERSION_TAG = "chexspark.version"
DIGEST_LETTERS = 36  # that MLflow has room for
LONGEST_PARAMETER = 6000  # letters
PAUSE = 30.0  # seconds until what failed is tried again
AT_HOME = ("ranks", "patient_salt", "trained_patients")  # of a lineage; not sent
# Seconds that are waited for MLflow after a training: that ended, failed, was stopped.
AFTER_END, AFTER_FAILURE, AFTER_STOP = 600.0, 60.0, 5.0
MODEL_SECONDS = 120.0  # that the answer to a file may take


@dataclass(frozen=True)
class Known:
    """``RUN/mlflow.json``. No server is taken from it, only what is asked for at the user's own."""

    run_id: str
    ours: bool  # chexspark began it, and ends it
    model: str | None = None  # SHA-256 of the best model that was logged
    registered_model: str | None = None  # under which name


def read_known(run: RunFolder) -> Known | None:
    """What is known of a run's MLflow run; None where there is none, or what is there is of no use."""
    if not run.tracking.is_file():
        return None
    kinds = {"run_id": str, "ours": bool, "model": str | None, "registered_model": str | None}
    try:
        found = read_json(run.tracking, str(run.tracking))
    except UserError:
        return None
    if set(found) != set(kinds) or misfit(found, kinds):
        return None
    return Known(**found) if re.fullmatch(r"[0-9a-f]{32}", found["run_id"]) else None


def write_known(run: RunFolder, known: Known) -> None:
    """Write the file."""
    run.tracking.write_text(json.dumps(asdict(known), indent=1) + "\n")


def known_run(client: Any, known: Known | None) -> Any:
    """The MLflow run of a run folder; None where the user's server has none that chexspark wrote to."""
    from mlflow.exceptions import MlflowException

    if known is None:
        return None
    try:
        found = client.get_run(known.run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    there = found.info.lifecycle_stage == "active" and RUN_TAG in found.data.tags
    return found if there else None


@dataclass(frozen=True)
class Message:
    """Something that MLflow is to be told."""

    what: str  # in words
    function: Callable[[Any], object]  # of the client
    needed: bool = False  # without it the others are of no use
    seconds: float = SECONDS  # that an answer may take


class TrainingLog:
    """Tells MLflow of a training; what fails is tried again after a while, and at the end."""

    def __init__(
        self, server: Server, run: RunFolder, settings: ResolvedTraining, manifest: Manifest, ranks: int
    ) -> None:  # fmt: skip
        self.server, self.run, self.settings = server, run, settings
        self.manifest, self.ranks = manifest, ranks
        self.known = read_known(run)
        self.ends = False  # whether the MLflow run ends with the training: not one of the user's
        self.there: Mapping[str, str] = {}  # parameters that the MLflow run has
        self.epochs: set[int] = set()  # that it has, from 1
        self.waiting: queue.Queue[Message | None] = queue.Queue()
        self.closing = threading.Event()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside, MLflow is told of the training; at the end of its model, and how it ended."""
        # Read now: what ranks add to it from here on is sent as it comes.
        before = self.history()
        for message in (
            Message("the run", self.open, needed=True),
            Message("the settings", self.send_settings),
            Message("the store", self.send_store),
            Message("the epochs before", lambda client: self.send_history(client, before)),
        ):
            self.waiting.put(message)
        thread = threading.Thread(target=self.work, daemon=True, name="mlflow")
        thread.start()
        status, seconds = "FAILED", AFTER_FAILURE
        try:
            yield
            if self.run.best_model.is_file():
                self.waiting.put(Message("the model", self.send_model, seconds=MODEL_SECONDS))
            found = last_checkpoint(self.run)
            status = "FINISHED" if found and found.state["finished"] else "KILLED"
            seconds = AFTER_END
        except (StoppedError, KeyboardInterrupt):
            status, seconds = "KILLED", AFTER_STOP
            raise
        finally:
            self.waiting.put(Message("the end of the run", lambda client: self.end(client, status)))
            self.waiting.put(None)
            self.closing.set()
            thread.join(seconds)
            if thread.is_alive():
                self.server.note("all of the run", f"it took more than {seconds:.0f} s at the end")

    def history(self) -> list[dict[str, Any]]:
        """The rows of the run's epochs so far; none where they cannot be read."""
        try:
            rows = read_history(self.run).to_dict("records") if has_history(self.run) else []
        except UserError as error:
            self.server.note("the epochs before", str(error))
            return []
        return [{str(name): value for name, value in row.items()} for row in rows]

    def take(self, row: Mapping[str, Any]) -> None:
        """Note an epoch's row of the history, to be sent."""
        self.waiting.put(Message("the epochs", lambda client: self.send_row(client, row)))

    def is_told(self) -> bool:
        """Whether MLflow has the whole of a training that is finished, its model last of all."""
        name = self.settings.config.registered_model
        return (
            self.known is not None
            and self.run.best_model.is_file()
            and self.known.model == model_and_digest(self.run)[1]
            and name in (None, self.known.registered_model)
        )

    def work(self) -> None:
        """Send what is waiting, in its order, until no more comes or there is no use in it."""
        while (message := self.waiting.get()) is not None:
            if not self.settled(message):
                return

    def settled(self, message: Message) -> bool:
        """Send something; False where nothing that follows can be sent."""
        while True:
            last = self.closing.is_set()
            answer = self.server.ask(message.what, message.function, message.seconds)
            if answer is not Answer.FAILED:
                return answer is Answer.DONE or not message.needed
            if last:
                self.server.note("all of the run", "the same command sends what is missing")
                return False
            self.closing.wait(PAUSE)

    # Each of these is called with MLflow's client, and raises what that raises.

    def open(self, client: Any) -> None:
        """Find the MLflow run, or begin one; put its id into the run's folder."""
        from mlflow.entities import RunTag
        from mlflow.tracking.fluent import _get_experiment_id

        users = self.server.users_run
        found = client.get_run(users) if users else known_run(client, self.known)
        if found is None:
            name = posixpath.basename(self.run.place.path.rstrip("/"))
            found = client.create_run(_get_experiment_id(), run_name=name)
        run_id, known = found.info.run_id, self.known
        if known is None or known.run_id != run_id:
            known = Known(run_id, ours=users is None)
        write_known(self.run, known)
        self.known, self.there = known, found.data.params
        self.ends = known.ours and users is None
        if self.ends:
            client.update_run(run_id, "RUNNING")
        if "learning_rate" in found.data.metrics:
            rows = client.get_metric_history(run_id, "learning_rate")
            self.epochs = {metric.step for metric in rows}
        tags = {
            RUN_TAG: str(self.run),
            VERSION_TAG: __version__,
            NETWORK_TAG: self.settings.config.model,
            STORE_TAG: self.manifest.fingerprint,
        }
        texts = [RunTag(name, without_password(value)) for name, value in tags.items()]
        client.log_batch(run_id, tags=texts, synchronous=True)

    @property
    def opened(self) -> Known:
        """The MLflow run, after `open`."""
        if self.known is None:
            raise RuntimeError("there is no MLflow run yet")
        return self.known

    @property
    def run_id(self) -> str:
        """Of the MLflow run, after `open`."""
        return self.opened.run_id

    def send_settings(self, client: Any) -> None:
        """The settings and what they meet, as parameters; MLflow changes none that is there."""
        from mlflow.entities import Param

        manifest = self.manifest
        values = effective_settings(self.settings) | {
            "ranks": self.ranks,
            "findings": manifest.findings,
            "image_size": manifest.image_size,
        }
        for name, split in manifest.splits.items():
            values |= {f"{name}_images": split.images, f"{name}_patients": split.patients}
        texts = {name: parameter(value) for name, value in values.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in self.there]
        client.log_batch(self.run_id, params=new, synchronous=True)
        other = [n for n, text in texts.items() if self.there.get(n, text) != text]
        if changed := [name for name in other if name not in FREE | {"ranks"}]:
            self.server.note(", ".join(changed), "its run has other values of another training")

    def send_store(self, client: Any) -> None:
        """The store, as the dataset of the training."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        manifest, uri = self.manifest, without_password(self.settings.config.data)
        counts = {name: split.images for name, split in manifest.splits.items()}
        dataset = Dataset(
            name=posixpath.basename(uri.rstrip("/")),
            digest=manifest.fingerprint[:DIGEST_LETTERS],
            source_type=uri.partition("://")[0] if "://" in uri else "local",
            source=json.dumps({"uri": uri}),
            profile=json.dumps({"fingerprint": manifest.fingerprint, "images": counts}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def send_history(self, client: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Those of the epochs that the run has had which MLflow does not know."""
        for row in rows:
            if row["epoch"] + 1 not in self.epochs:
                self.send_row(client, row)

    def send_row(self, client: Any, row: Mapping[str, Any]) -> None:
        """The figures of an epoch."""
        figures = {name: value for name, value in row.items() if name != "epoch"}
        log_figures(client, self.run_id, figures, int(row["epoch"]) + 1)

    def send_model(self, client: Any) -> None:
        """The best model, for MLflow's pyfunc; under the registered name, if there is one."""
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        config, digest = self.settings.config, model_and_digest(self.run)[1]
        outputs = [PROBABILITY + column_name(name) for name in read_lineage(self.run)["findings"]]
        signature = ModelSignature(
            Schema([ColSpec("binary", "image")]), Schema([ColSpec("double", n) for n in outputs])
        )
        # A network of the user's own is named again by who loads the model.
        named = {"model_config": {NETWORK: ""}} if self.settings.code else {}
        with (
            tempfile.TemporaryDirectory(prefix="chexspark-") as folder,
            warnings.catch_warnings(
                action="ignore"
            ),  # of an input example, which would be an image
        ):
            copy_for_scoring(self.run, run_folder(f"{folder}/run"))
            Model.log(
                None, mlflow.pyfunc, registered_model_name=config.registered_model, name=MODEL,
                run_id=self.run_id, step=int(best_epoch(read_history(self.run))["epoch"]) + 1,
                await_registration_for=60, loader_module=LOADER, data_path=f"{folder}/run",
                signature=signature, pip_requirements=[f"chexspark[dicom]=={__version__}"], **named,
            )  # fmt: skip
        self.known = replace(self.opened, model=digest, registered_model=config.registered_model)
        write_known(self.run, self.known)

    def end(self, client: Any, status: str) -> None:
        """How the training ended, unless the run is the user's."""
        if self.ends:
            client.set_terminated(self.run_id, status)


def tell_finished(training: TrainingLog) -> None:
    """Tell MLflow of a training that was finished before, unless it knows all of it."""
    if not training.is_told():
        with training.working():
            pass


def copy_for_scoring(run: RunFolder, copy: RunFolder) -> None:
    """Write of a run what its model needs to score images: nothing of patients, nor of hosts."""
    copy.best.make_directory()
    lineage = {name: value for name, value in read_lineage(run).items() if name not in AT_HOME}
    copy.lineage.write_text(without_password(json.dumps(lineage, indent=1)) + "\n")
    copy.settings.write_text(without_password(run.settings.read_text()))
    copy.best_model.write_bytes(run.best_model.read_bytes())
    if run.best_figures.is_file():
        copy.best_figures.write_bytes(run.best_figures.read_bytes())


def parameter(value: Any) -> str:
    """A setting as MLflow shows it."""
    several = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return without_password(str(several))[:LONGEST_PARAMETER]


def without_password(text: str) -> str:
    """A text without the user and password that URIs in it may have."""
    return re.sub(r"(?<=://)[^/@\s\"']*@", "", text)


def log_figures(client: Any, run_id: str, figures: Mapping[str, Any], step: int) -> None:
    """Send those that are finite numbers, as metrics."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, step)
        for name, value in figures.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    ]
    client.log_batch(run_id, metrics=metrics, synchronous=True)


def tell(run: RunFolder, what: str, function: Callable[[Any, str], object]) -> None:
    """Call a function with MLflow's client and the id of a run's MLflow run, or of the user's active one.

    Nothing happens where there is neither.
    """
    server, known = find_server(), read_known(run)
    if server is None or not (server.users_run or known):
        return

    def send(client: Any) -> None:
        found = client.get_run(server.users_run) if server.users_run else known_run(client, known)
        if found is not None:
            function(client, found.info.run_id)

    server.ask(what, send)


def tell_figures(run: RunFolder, figures: Mapping[str, float | None]) -> None:
    """Send figures of a run's evaluation to MLflow, as `tell` does."""
    tell(run, "the figures", lambda client, run_id: log_figures(client, run_id, figures, 0))


def tell_pages(run: RunFolder, pages: Iterable[tuple[Location, str]]) -> None:
    """Send pages on a run to MLflow, under the names of their files, as `tell` does."""

    def send(client: Any, run_id: str) -> None:
        for place, text in pages:
            client.log_text(run_id, text, posixpath.basename(place.path))

    tell(run, "the report", send)
