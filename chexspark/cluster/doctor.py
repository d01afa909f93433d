"""What would keep ranks from starting, found within seconds. Runs on the driver.

In: a session, the number of ranks, store and run. Out: a table of one line per rank, and for each
fault one line with its remedy. One light Spark job looks (`probe`), with a task for each rank;
what it found is judged here (`diagnosis`).
"""

import contextlib
import glob
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from pyarrow import fs
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.cluster import conf_diagnosis, diagnosis, host_diagnosis, place
from chexspark.cluster.kerberos import kerberos_lines
from chexspark.cluster.place import PlaceFacts
from chexspark.cluster.probe import Asked
from chexspark.cluster.probe_job import look
from chexspark.cluster.slots import WAIT_SECONDS, check_ranks, is_dynamic
from chexspark.config import DoctorConfig
from chexspark.errors import UserError, spoken
from chexspark.models.cost import NetworkCost, ToCount, counted_in_background
from chexspark.models.custom import find_network
from chexspark.run.checkpoint import PATTERN
from chexspark.run.folder import RunFolder
from chexspark.session import is_local, start_session
from chexspark.storage import Location, locate
from chexspark.store.manifest import FILE_NAME, Manifest, read_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """`ranks`: what `probe` found where each would run; `str()` of it is a table, empty without ranks."""

    num_proc: int
    ranks: tuple[PlaceFacts, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """One row per rank, for people."""
        shown = ("python", "tensorflow", "horovod", "chexspark")
        rows = [
            {
                "rank": r["rank"],
                "host": r["host"],
                "executor": r["executor"],
                "device": device(r),
                "bfloat16": "yes" if r["bfloat16"] else "no",
                "cores": r["cores"],
                "free memory": diagnosis.size(r["memory_bytes"])
                if r["memory_bytes"]
                else "unknown",
                "free disk": diagnosis.size(min((r["temp_disk"] | r["run_disk"]).values())),
                **{name: r["versions"][name] or "missing" for name in shown},
            }
            for r in sorted(self.ranks, key=lambda r: r["rank"])
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return self.table().to_string(index=False) if self.ranks else ""

    def raise_for_faults(self) -> None:
        """Raise UserError with one line per fault, if there are any."""
        if self.faults:
            raise UserError("\n".join(self.faults))


def show(found: Examination) -> None:
    """Show the table and the warnings."""
    if found.ranks:
        log.info(str(found))
    for note in found.notes:
        log.info(note)
    for warning in found.warnings:
        log.warning("note: %s", spoken(warning))


def device(rank: PlaceFacts) -> str:
    """What the rank would compute on."""
    if rank["gpus"]:
        return f"GPU {rank['gpus'][0]}"
    return "a visible GPU" if rank["visible_gpus"] else "CPU"


@takes(DoctorConfig)
def doctor(spark: SparkSession | None, config: DoctorConfig) -> pd.DataFrame:
    """Examine whether a training can start; show and return a table, one row per rank.

    Raises UserError with one line per fault.
    """
    code = find_network(config.model) if config.model else None
    store = locate(config.data)
    manifest = read_manifest(store)
    run = locate(config.run) if config.run else None
    with contextlib.ExitStack() as stack:
        cost = None
        if config.model:
            shape = manifest.image_size, len(manifest.findings)
            network = ToCount(config.model, *shape, config.batch_size, code=code)
            cost = stack.enter_context(counted_in_background(network))
            if code:
                cost()  # before Spark is asked: it may not be one that can be trained
        spark = start_session(spark, "doctor")
        num_proc = check_ranks(spark, config.num_proc, config.wait_seconds)
        found = examine(
            spark, num_proc, store, run, manifest, config.batch_size, cost, config.wait_seconds
        )
    show(found)
    found.raise_for_faults()
    log.info("%d rank%s can start", num_proc, "s" * (num_proc != 1))
    return found.table()


def examine(
    spark: SparkSession,
    num_proc: int,
    store: Location,
    run: Location | None,
    manifest: Manifest,
    batch_size: int,
    cost: Callable[[], NetworkCost] | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> Examination:
    """Look at every place where a rank would run. Takes a second or two once its tasks have started.

    `batch_size`: images per rank and step. `cost`: a function that returns what the network costs;
    without it, memory is held against what a rank takes beside the
    network. `wait_seconds`: for all tasks to run at the same time. Raises StoppedError when Spark's
    application ends.
    """
    train = manifest.splits["train"]
    row_groups = sum(len(file.row_groups) for file in train.files)
    faults = diagnosis.data_faults(train.images, num_proc)
    with contextlib.ExitStack() as stack:
        mark = None
        try:
            mark = stack.enter_context(marked(run)) if run else None
        except (UserError, OSError) as error:
            faults.append(f"--run={run} cannot be written by the driver ({error}): give another")
        asked = what_to_ask(store, manifest, run if mark else None, mark, num_proc)
        ranks, failure = look(spark, asked, num_proc, wait_seconds)
    network = cost() if cost and ranks else None
    if failure:
        faults.append(failure)
    else:
        expected = place.versions()
        faults += diagnosis.spark_faults(expected["pyspark"], spark.version)
        faults += host_diagnosis.glibc_faults(ranks)
        faults += diagnosis.diagnose(ranks, num_proc, expected, store.uri, asked["run"], network)
    notes, kerberos_warnings = (
        kerberos_lines(spark) if store.is_hdfs or (run and run.is_hdfs) else ([], [])
    )
    warnings = [
        *kerberos_warnings,
        *diagnosis.data_warnings(train.images, row_groups, num_proc, batch_size),
        *diagnosis.gpu_warnings(ranks),
        *diagnosis.container_warnings(ranks, container_overhead(spark), network),
        *host_diagnosis.clock_warnings(ranks),
        *host_diagnosis.open_files_warnings(ranks, num_proc),
        *settings_warnings(spark),
    ]
    return Examination(num_proc, tuple(ranks), tuple(faults), tuple(warnings), tuple(notes))


def what_to_ask(
    store: Location, manifest: Manifest, run: Location | None, mark: str | None, num_proc: int
) -> Asked:
    """What tasks are to find out about store and run; `mark`: the name of a file in the run."""
    files = [file.path for file in manifest.splits["train"].files]
    return {
        "store": store.uri,
        "fingerprint": manifest.fingerprint,
        "files": files[:num_proc],
        "run": run.uri if run else None,
        "run_folder": run.path if run and is_local_folder(run) else None,
        "mark": mark,
        "kept": checkpoint_pattern(run) if run else None,
        "manifest": FILE_NAME,
    }


def checkpoint_pattern(run: Location) -> str:
    """What `glob` finds the checkpoints of a local run by."""
    return f"{glob.escape(RunFolder(run).checkpoints.path)}/{PATTERN}"


def is_local_folder(place: Location) -> bool:
    """Whether a place is on the local file system."""
    return isinstance(place.filesystem, fs.LocalFileSystem)


@contextlib.contextmanager
def marked(run: Location) -> Iterator[str]:
    """Leave a small file in the run, by which ranks know that they see the same folder.

    Takes away what it and the ranks left, and the folder too if that was not there before.
    """
    mark, new = f".doctor-{uuid.uuid4().hex}", not run.exists()
    run.make_directory()
    try:
        (run / mark).write_bytes(b"")
        yield mark
    finally:
        for entry in run.filesystem.get_file_info(fs.FileSelector(run.path)):
            if entry.base_name.startswith(mark):
                run.filesystem.delete_file(entry.path)
        if new and not run.list_files():
            run.delete_directory()


def settings_warnings(spark: SparkSession) -> list[str]:
    """What of Spark's settings does not suit ranks, where they run on a cluster."""
    if is_local(spark):
        return []
    conf, name = spark.sparkContext.getConf(), "spark.dynamicAllocation.executorIdleTimeout"
    idle = None
    if is_dynamic(spark):
        idle = spark.sparkContext._jsc.sc().conf().getTimeAsSeconds(name, "60s")
    return conf_diagnosis.settings_warnings(dict(conf.getAll()), idle)


def container_overhead(spark: SparkSession) -> int | None:
    """Bytes that an executor's container has beside the JVM, where YARN or Kubernetes limits them."""
    context = spark.sparkContext
    master, settings = str(context.master), dict(context.getConf().getAll())
    if not master.startswith(("yarn", "k8s")):
        return None

    def mebibytes(name: str, usual: str) -> int:
        return context._jsc.sc().conf().getSizeAsMb(f"spark.executor.{name}", usual)

    given = "spark.executor.memoryOverhead" in settings
    overhead = conf_diagnosis.overhead_mebibytes(
        master, mebibytes("memory", "1g"), settings,
        mebibytes("memoryOverhead", "0m") if given else None, mebibytes("minMemoryOverhead", "384m"),
    )  # fmt: skip
    # Kubernetes adds what is Python's only where it has started the driver too, and knows that it is Python.
    if master.startswith("yarn") or settings.get("spark.kubernetes.resource.type") == "python":
        overhead += mebibytes("pyspark.memory", "0m")
    return overhead << 20
