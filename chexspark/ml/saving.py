"""A Model in a folder of its own. Runs on the driver.

In: a Model. Out: Spark ML's ``metadata`` and, in ``run``, what of the run it needs: the network, its findings and
thresholds, which patients it has seen (salted hashes), and no patient's name. The folder can be moved.
"""

import os
import posixpath
from typing import TYPE_CHECKING, Any

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

from chexspark.errors import UserError
from chexspark.evaluation.runs import network_of
from chexspark.ml.params import spoken_as_params
from chexspark.models.custom import is_custom
from chexspark.run.folder import METRICS, RunFolder
from chexspark.run.settings import check_run
from chexspark.session import is_connect
from chexspark.storage import Location, locate
from chexspark.text_files import read_json

if TYPE_CHECKING:
    from chexspark.ml.model import ChestXrayModel

RUN = "run"  # the folder of the run in that of the Model
METADATA, PART, DONE = (
    "metadata",
    "part-00000",
    "_SUCCESS",
)  # a folder of text files, as Spark ML's own
REMEDY = "copy the Model again"


class ModelWriter(MLWriter):
    """What ``ChestXrayModel.write()`` returns."""

    def __init__(self, model: "ChestXrayModel") -> None:
        super().__init__()
        self.model = model

    def save(self, path: str) -> None:
        """Write the folder. Raises UserError where something is there and `overwrite` was not said."""
        with spoken_as_params():
            place = place_of(self.sparkSession, path)
            if place.exists():
                if not self.shouldOverwrite:
                    raise UserError(
                        f"{place} is there already: give a new folder, or write().overwrite()"
                    )
                check_is_model(place)
            run = self.model.run
            copies = {
                name: (run.place / name).read_bytes() for name in needed(run)
            }  # also of itself
            place.delete_directory()
            for name, content in copies.items():
                target = place / RUN / name
                (place / RUN / posixpath.dirname(name)).make_directory()
                target.write_bytes(content)
            # Spark's own writer knows object stores only where more has been installed.
            said = DefaultParamsWriter._get_metadata_to_save(
                self.model, context_of(self.sparkSession)
            )
            (place / METADATA).make_directory()
            (place / METADATA / PART).write_text(said + "\n")
            (place / METADATA / DONE).write_bytes(b"")

    def saveImpl(self, path: str) -> None:
        """What Spark ML asks of a writer."""
        self.save(path)


class ModelReader(MLReader):
    """What ``ChestXrayModel.read()`` returns."""

    def __init__(self, cls: type["ChestXrayModel"]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> Any:
        """The Model in a folder. Raises UserError for what is none."""
        with spoken_as_params():
            place = place_of(self.sparkSession, path)
            check_is_model(place)
            name = f"{self.cls.__module__}.{self.cls.__name__}"
            metadata = read_metadata(place)
            if metadata.get("class") != name:
                raise UserError(f"{place} is a {metadata.get('class')}, and no {name}")
            model = self.cls(str(place / RUN))
            check_run(model.run)
            if not is_custom(network_of(model.run)):  # whose user names it later
                model.best_model()  # which says what is wrong
            model._resetUid(metadata["uid"])
            DefaultParamsReader.getAndSetParams(model, metadata)
            return model


def read_metadata(place: Location) -> dict[str, Any]:
    """What Spark ML says of a Model in its folder. Raises UserError where that is damaged."""
    for info in (place / METADATA).list_files():
        if info.base_name.startswith("part-") and info.size:
            part = place / METADATA / info.base_name
            return read_json(part, str(part), REMEDY)
    raise UserError(f"{place} is damaged: its metadata has nothing in it; {REMEDY}")


def context_of(spark: SparkSession) -> Any:
    """What Spark ML writes and reads metadata through: Spark 3.5 knows no session there."""
    return spark if is_connect(spark) else spark.sparkContext


def place_of(spark: SparkSession, path: str) -> Location:
    """Where a path leads as Spark takes it: one without a scheme is of its default file system."""
    path = os.fspath(path)
    if "://" in path or path.startswith("file:") or is_connect(spark):
        return locate(path)
    hadoop = spark._jvm.org.apache.hadoop.fs.FileSystem.get(spark._jsc.hadoopConfiguration())
    default = hadoop.getUri().toString()
    if default.startswith("file:"):
        return locate(path)
    whole = spark._jvm.org.apache.hadoop.fs.Path(path).makeQualified(
        hadoop.getUri(), hadoop.getWorkingDirectory()
    )
    return locate(whole.toString())


def needed(run: RunFolder) -> list[str]:
    """The files of a run that a Model needs, as names in it; of a table, those that are there."""
    places = [run.settings, run.lineage, run.best_model, run.best_figures, run.evaluation]
    paths = [place.path for place in places if place.is_file()]
    for folder in (run.seen_patients, run.history, run.table(METRICS)):
        if folder.is_directory():
            paths += [info.path for info in folder.list_files()]
    return [path[len(run.place.path) :].lstrip("/") for path in paths]


def check_is_model(place: Location) -> None:
    """Raise UserError unless a folder has a saved Model."""
    if not (place / "metadata").is_directory() or not (place / RUN).is_directory():
        raise UserError(f"{place} is no saved ChestXrayModel")
