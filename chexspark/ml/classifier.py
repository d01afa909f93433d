"""A Spark ML Estimator that trains a network on the images of a DataFrame. Runs on the driver.

In: a DataFrame, or a store. Out: a `ChestXrayModel`. On the way, below `workDir`: a store per DataFrame, which
is kept for the next fit of it, and a run per fit; training itself is ``chexspark train``'s.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.ml import Estimator
from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession

from chexspark.arguments import under
from chexspark.cluster.callbacks import callbacks_of
from chexspark.cluster.job import train
from chexspark.cluster.recipe_check import check_start
from chexspark.config import FrameConfig, TrainConfig
from chexspark.errors import StoppedError, UserError
from chexspark.evaluation.operating_points import operating_points
from chexspark.evaluation.runs import best_model
from chexspark.ingestion.frame_columns import findings_of, label_columns
from chexspark.ingestion.frames import Facts, ingest_config, read_facts, write_store
from chexspark.ingestion.inputs import layout_settings
from chexspark.ml.measuring import validate
from chexspark.ml.model import ChestXrayModel
from chexspark.ml.params import (
    COLUMNS,
    FRAME,
    OUTPUT,
    TRAINING,
    WORK,
    SettingParams,
    Values,
    check_frame,
    in_params,
    param_name,
    with_params,
)
from chexspark.models.custom import find_network
from chexspark.models.weights import check_weights, start_of
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.mlflow_server import check_registered, find_server
from chexspark.run.settings import earlier_settings, last_checkpoint
from chexspark.session import check_classic, is_local, start_session
from chexspark.settings import build
from chexspark.storage import Location, locate
from chexspark.store.manifest import FILE_NAME, read_manifest

log = logging.getLogger(__name__)

BESIDE = (
    "callbacks",
    "on_epoch",
    "registered_model",
    "recipe",
)  # settings that do not change what is trained
LETTERS = 16  # of a digest, in the names of folders
LOCKS: defaultdict[str, threading.Lock] = defaultdict(
    threading.Lock
)  # a store is written by one fit at a time
RUNNING: set[str] = set()  # runs of fits of this process that have not ended
IN_USE: Counter[str] = Counter()  # fits of this process, by their stores
IN_USE_LOCK = threading.Lock()  # of both


@with_params(FRAME, OUTPUT, WORK, TRAINING)
class ChestXrayClassifier(Estimator, SettingParams, DefaultParamsReadable, DefaultParamsWritable):
    """Trains a network that reads findings from chest X-rays, data-parallel, a rank per Spark task slot.

        model = ChestXrayClassifier(labelCols=["Mass", "Edema"], patientCol="patient", recipe="chexnet", weights="imagenet").fit(df)

    The settings are those of ``chexspark ingest`` and ``chexspark train``, in camelCase.
    """

    @in_params
    def fit(self, dataset: DataFrame, params: Any = None) -> Any:
        """Train on the rows of a DataFrame; with a list of param maps, a Model each.

        The images go into a store below `workDir`, once for all fits of the same rows. A fit that was
        interrupted is resumed by the same fit. Raises UserError for what the user can mend.
        """
        check_frame(dataset, "fit")
        check_classic(dataset.sparkSession, "fit")
        return super().fit(dataset, params)

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[Any]
    ) -> Iterator[tuple[int, ChestXrayModel]]:
        """See Spark ML, and `fit` for what it raises. After one of the fits was stopped, the others do not begin."""
        estimator, stopped = self.copy(), threading.Event()

        def fit_one(index: int) -> ChestXrayModel:
            if stopped.is_set():
                raise StoppedError("not begun, since another fit of the same search was stopped")
            try:
                return estimator.fit(dataset, paramMaps[index])
            except (StoppedError, KeyboardInterrupt):
                stopped.set()
                raise

        return _FitMultipleIterator(fit_one, len(paramMaps))

    def _fit(self, dataset: DataFrame) -> ChestXrayModel:
        spark = dataset.sparkSession
        self.check_before(dataset)
        work = self.work_place(spark)
        with self.store_of(dataset, work) as store:
            return self.fit_store(spark, store, work)

    @in_params
    def fitOnStore(self, store: str) -> ChestXrayModel:
        """Train on a store that ``chexspark ingest`` or an earlier fit wrote, by its path."""
        spark = start_session(None, "fit")
        check_classic(spark, "fitOnStore")
        return self.fit_store(spark, locate(store), self.work_place(spark))

    def write(self) -> MLWriter:
        """What saves it. Raises UserError for a function, which cannot be."""
        if self.value("on_epoch"):
            raise UserError(
                "onEpoch is a function, which cannot be saved: name it in callbacks instead, package.module:function"
            )
        return super().write()

    def check_before(self, dataset: DataFrame) -> None:
        """Raise UserError for what can be known before any image is read."""
        config = self.training_config("store", "run")
        find_network(config.model)
        check_start(config)
        callbacks_of(config)
        check_registered(config.registered_model, find_server())
        if start := start_of(config.model, config.weights):
            check_weights(config.model, start)
        names = tuple(self.label_columns())
        if names:
            labels = label_columns(dataset, names)
            findings = findings_of(names, tuple(self.value("findings")), labels.together)
            self.output_columns(dataset, findings)

    def work_place(self, spark: SparkSession) -> Location:
        """Where stores and runs are. Raises UserError where nobody said so, and hosts would not share it."""
        given = self.value("work_dir")
        if given:
            return locate(given)
        if not is_local(spark):
            raise UserError(
                "workDir is missing: a folder that all hosts reach, for the store and the run"
            )
        return locate(process_folder())

    @contextlib.contextmanager
    def store_of(self, dataset: DataFrame, work: Location) -> Iterator[Location]:
        """Inside, the store of a DataFrame's rows is there, which is written unless it was.

        One that is not to be kept goes after the last fit on it.
        """
        started = time.monotonic()
        config = build(FrameConfig, self.frame_settings() | {"out": str(work / "stores")})
        facts = read_facts(dataset, config)
        place = work / "stores" / store_name(facts, config)
        name = str(place)
        with IN_USE_LOCK:
            IN_USE[name] += 1
        try:
            self.write_once(dataset, facts, place, started)
            yield place
        finally:
            with IN_USE_LOCK:
                IN_USE[name] -= 1
                if not IN_USE[name] and not self.value("keep_store"):
                    place.delete_directory()

    def write_once(self, dataset: DataFrame, facts: Facts, place: Location, started: float) -> None:
        """Write the store of a DataFrame, unless it is there; other fits of the same rows wait."""
        with LOCKS[str(place)]:
            if (place / FILE_NAME).is_file():
                log.info("the store of these rows is there already: %s", place)
            else:
                config = build(FrameConfig, self.frame_settings() | {"out": str(place)})
                write_store(dataset, facts, config, started)

    def frame_settings(self) -> Values:
        """The settings of a store of a DataFrame that were set. Raises UserError without labels."""
        labels = self.label_columns()
        if not labels:
            raise UserError("labelCols is missing: the columns of the labels")
        return self.given(FRAME) | {"labels": labels}

    def training_config(self, store: str, run: str) -> TrainConfig:
        """The settings of training. Raises UserError for those that do not go together."""
        values = under(TrainConfig, self.given(TRAINING))
        return build(TrainConfig, values | {"data": store, "run": run})

    def fit_store(self, spark: SparkSession, store: Location, work: Location) -> ChestXrayModel:
        """Train on a store, ask its validation split for thresholds, and return the Model."""
        run = self.begin_run(store, work)
        config = self.training_config(str(store), str(run))
        try:
            train(spark, config)
            validate(spark, store, run, (config.model,))
        finally:
            with IN_USE_LOCK:
                RUNNING.discard(str(run))
        values = {
            param_name(n): self.value(n) for n in (*COLUMNS, *OUTPUT) if self.isSet(param_name(n))
        }
        model = ChestXrayModel(str(run), **values)
        model._resetUid(self.uid)
        return model.setModel(config.model)

    def begin_run(self, store: Location, work: Location) -> RunFolder:
        """The folder of a fit: that of the same fit which was interrupted, or a new one."""
        config = self.training_config(str(store), "run")
        settings = {f: getattr(config, f) for f in TRAINING if f not in BESIDE} | {
            "store": read_manifest(store).fingerprint
        }
        if code := find_network(config.model):
            settings["code"] = code.digest
        name = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest()[:LETTERS]
        number = 0
        with IN_USE_LOCK:
            while True:
                number += 1
                run = run_folder(str(work / "runs" / f"{name}-{number}"))
                if str(run) in RUNNING or is_finished(run, config.model):
                    continue
                RUNNING.add(str(run))
                return run


def is_finished(run: RunFolder, network: str) -> bool:
    """Whether a run has been trained to its end, and its validation split asked for thresholds."""
    found = last_checkpoint(run) if earlier_settings(run) else None
    trained = bool(found and found.state["finished"] and run.best_model.is_file())
    return trained and operating_points(run, best_model(run, [network])) is not None


def store_name(facts: Facts, config: FrameConfig) -> str:
    """The folder of a store: the same rows and settings have the same."""
    settings = layout_settings(ingest_config(config))
    return hashlib.sha256(json.dumps([facts.digest, settings]).encode()).hexdigest()[:LETTERS]


@functools.cache
def process_folder() -> str:
    """A folder that goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="chexspark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.info(
        "store and run are in %s, which goes with this process: give workDir to keep them, or save the model",
        folder,
    )
    return folder
