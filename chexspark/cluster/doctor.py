"""What would keep ranks from starting, found within seconds. Runs on the driver.

In: a session, the number of ranks, store and run. Out: a table of one line per rank, and for each
fault one line with its remedy. One light Spark job looks (`probe`), with a task for each rank;
what it found is judged here (`diagnosis`).
"""

import contextlib
import re
import sys
import threading
import time
import uuid
from dataclasses import dataclass

import pandas as pd
import pyspark.cloudpickle
from py4j.protocol import Py4JError
from pyarrow import fs

from chexspark.arguments import takes
from chexspark.cluster import diagnosis, probe
from chexspark.cluster.probe import PlaceFacts
from chexspark.cluster.rendezvous import Rendezvous
from chexspark.cluster.slots import WAIT_SECONDS, busy, check_ranks, supply, task_counts
from chexspark.config import DoctorConfig
from chexspark.errors import Stopped, UserError
from chexspark.models import check_model_name
from chexspark.models.cost import facts_in_the_making
from chexspark.progress import ProgressLine
from chexspark.session import ENDED, has_ended, start_session
from chexspark.storage import Location, locate
from chexspark.store.manifest import Manifest, read_manifest

AFTER_SECONDS = probe.CHECK_SECONDS + probe.ALIKE_SECONDS  # for tasks that met to answer
LAST_SECONDS = 2.0  # for the job to end by itself after all that is known is known
LOOK_SECONDS = 0.1  # between two looks at the tasks
BY_VALUE = threading.Lock()


@dataclass(frozen=True)
class Examination:
    """`ranks`: what `probe` found where each would run; `str()` of it is a table."""

    num_proc: int
    ranks: tuple[PlaceFacts, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row per rank, for people."""
        shown = ("python", "tensorflow", "horovod", "chexspark")
        rows = [
            {
                "rank": r["rank"],
                "host": r["host"],
                "executor": r["executor"],
                "device": device(r),
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
        lines = [self.table().to_string(index=False)] if self.ranks else []
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])

    def raise_for_faults(self) -> None:
        """Raise UserError with one line per fault, if there are any."""
        if self.faults:
            raise UserError("\n".join(self.faults))


def device(rank: PlaceFacts) -> str:
    """What the rank would compute on."""
    if rank["gpus"]:
        return f"GPU {rank['gpus'][0]}"
    return "a visible GPU" if rank["visible_gpus"] else "CPU"


@takes(DoctorConfig)
def doctor(spark, config: DoctorConfig) -> pd.DataFrame:
    """Examine whether a training can start; print and return a table, one row per rank.

    Raises UserError with one line per fault.
    """
    if config.model:
        check_model_name(config.model)
    store = locate(config.data)
    manifest = read_manifest(store)
    run = locate(config.run) if config.run else None
    counting = contextlib.nullcontext()
    if config.model:
        counting = facts_in_the_making(config.model, manifest.image_size, config.batch_size)
    with counting as cost:
        spark = start_session(spark, "doctor")
        num_proc = check_ranks(spark, config.num_proc, config.wait_seconds)
        found = examine(
            spark, num_proc, store, run, manifest, config.batch_size, cost, config.wait_seconds
        )
    print(found, flush=True)
    found.raise_for_faults()
    print(f"{num_proc} rank{'s' * (num_proc != 1)} can start", flush=True)
    return found.table()


def examine(
    spark,
    num_proc: int,
    store: Location,
    run: Location | None,
    manifest: Manifest,
    batch_size: int,
    cost=None,
    wait_seconds: float = WAIT_SECONDS,
) -> Examination:
    """Look at every place where a rank would run. Takes a second or two once its tasks have started.

    `batch_size`: images per rank and step. `cost`: a function that returns what the network costs, as
    `models.cost.count` gives it; without it, memory is held against what a rank takes beside the
    network. `wait_seconds`: for all tasks to run at the same time. Raises Stopped when Spark's
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
            faults.append(f"--run {run} cannot be written by the driver ({error}): give another")
        asked = {
            "python": sys.executable,
            "store": store.uri,
            "fingerprint": manifest.fingerprint,
            "files": [file.path for file in train.files][:num_proc],
            "run": run.uri if mark else None,
            "run_folder": run.path if mark and is_local_folder(run) else None,
            "mark": mark,
        }
        ranks, failure = look(spark, asked, num_proc, wait_seconds)
    cost = cost() if cost and ranks else None
    if failure:
        faults.append(failure)
    else:
        expected = probe.versions()
        faults += diagnosis.diagnose(ranks, num_proc, expected, store.uri, asked["run"], cost)
    warnings = [
        *diagnosis.data_warnings(train.images, row_groups, num_proc, batch_size),
        *diagnosis.container_warnings(ranks, container_overhead(spark), cost),
    ]
    return Examination(num_proc, tuple(ranks), tuple(faults), tuple(warnings))


def is_local_folder(place: Location) -> bool:
    return isinstance(place.filesystem, fs.LocalFileSystem)


@contextlib.contextmanager
def marked(run: Location):
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


@contextlib.contextmanager
def sent_by_value(module):
    """Inside, functions of `module` are sent to executors as they are, not by their name.

    Registered for the whole process: it is held for as long as a function is pickled, and undone.
    """
    with BY_VALUE:
        before = module.__name__ in pyspark.cloudpickle.list_registry_pickle_by_value()
        pyspark.cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            if not before:
                pyspark.cloudpickle.unregister_pickle_by_value(module)


class ProbeJob:
    """A Spark job of one `probe` per rank, in a thread of its own.

    `places`: what came of it; `error`: why it failed, if it did.
    """

    def __init__(self, spark, asked: dict, num_proc: int):
        self.context, self.group = spark.sparkContext, f"chexspark doctor {uuid.uuid4().hex}"
        self.places: list[PlaceFacts] = []
        self.error: Exception | None = None
        tasks = self.context.range(0, num_proc, numSlices=num_proc)
        job = tasks.mapPartitionsWithIndex(probe.make_probe(asked))
        with sent_by_value(probe):  # chexspark may be what an executor lacks
            self.pickled = job._jrdd  # which pickles the function now, and once
        self.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.thread.start()

    def _run(self, job) -> None:
        try:
            self.context.setJobGroup(
                self.group, "chexspark: before the start", interruptOnCancel=True
            )
            self.places = job.collect()
        except Exception as error:  # of Spark, for the thread that waits
            self.error = error

    def cancel(self) -> None:
        """End the job, if it still runs."""
        if self.thread.is_alive():
            with contextlib.suppress(Py4JError, OSError):  # Spark's application has ended
                self.context.cancelJobGroup(self.group)


def look(
    spark, asked: dict, num_proc: int, wait_seconds: float
) -> tuple[list[PlaceFacts], str | None]:
    """Run the tasks; return what those that met have found, and a fault where not all came so far."""
    conf = spark.sparkContext.getConf()
    host, bind = conf.get("spark.driver.host"), conf.get("spark.driver.bindAddress")
    with (
        Rendezvous(bind or host, num_proc, wait_seconds, AFTER_SECONDS) as rendezvous,
        ProgressLine() as line,
    ):
        asked |= {
            "host": host,
            "port": rendezvous.port,
            "token": rendezvous.token,
            "seconds": wait_seconds,
        }
        job = ProbeJob(spark, asked, num_proc)
        try:
            started = wait_for_answers(spark, job, rendezvous, line)
            error = job.error  # before the job is cancelled, which is an error too
        finally:
            job.cancel()
        if has_ended(spark):
            raise Stopped(ENDED)
        if error:
            return [], spark_failure(str(error))
        found = job.places or rendezvous.values("end")
        if started < num_proc:
            return found, busy(supply(spark), started, num_proc, wait_seconds)
        return found, None


def wait_for_answers(spark, job: ProbeJob, rendezvous: Rendezvous, line: ProgressLine) -> int:
    """Wait for the job, as long as more can come of it; return how many of its tasks have started."""
    num_proc, last, started = rendezvous.num_tasks, None, 0
    while job.thread.is_alive():
        came, known = len(rendezvous.values("start")), len(rendezvous.values("end"))
        running, ended = (0, 0) if has_ended(spark) else task_counts(spark, job.group)
        in_time = came if rendezvous.is_over() else running + ended
        started = min(num_proc, max(started, came, in_time))
        line.show(
            f"examining the ranks' places: {started} of {num_proc} tasks have started, "
            f"{known} have answered"
        )
        now = time.monotonic()
        if not rendezvous.is_over() and came + ended >= num_proc:
            rendezvous.end_start()  # those that ended did not reach the driver
        if rendezvous.is_over():
            # Spark hands over no result of a job as long as one of its tasks waits for a slot.
            seconds = LAST_SECONDS if known == came < num_proc else AFTER_SECONDS
            last = min(last or now + AFTER_SECONDS, now + seconds)
            if now >= last:
                break
        job.thread.join(LOOK_SECONDS)
    return started if job.thread.is_alive() or job.error else len(job.places)


def spark_failure(text: str) -> str:
    """One line out of the pages that Spark says about a task that failed.

    Spark gives nothing but text; where that is of another form, its first exception is told.
    """
    where = re.search(r"\(TID \d+\) \((\S+) executor (\S+)\)", text)
    place = f"executor {where[2]} on {where[1]}" if where else "the executors"
    if found := re.search(
        r"Python in worker has different version (.+?) than that in driver (.+?),", text
    ):
        worker, driver = (".".join(re.findall(r"\d+", version)) for version in found.groups())
        return (
            f"Python on {place} is {worker}, the driver's is {driver}: set PYSPARK_PYTHON to one Python "
            f"for all, or {diagnosis.SAME_ENVIRONMENT}"
        )  # fmt: skip
    if found := re.search(r'Cannot run program "([^"]+)"', text):
        return f"there is no {found[1]} on {place}: {diagnosis.SAME_ENVIRONMENT}"
    if found := re.search(r"No module named '?([\w.]+)", text):
        return f"{found[1]} is missing on {place}: {diagnosis.SAME_ENVIRONMENT}"
    said = [
        line.strip()
        for line in text.splitlines()
        if re.match(r"\s*[\w.]+(Error|Exception)\b", line)
    ]
    reason = said[-1] if said else text.strip().partition("\n")[0]
    return f"no rank can start on {place} ({reason}): see Spark's log of that executor"  # fmt: skip


def container_overhead(spark) -> int | None:
    """Bytes that an executor's container has beside the JVM, where YARN or Kubernetes limits them."""
    master = spark.sparkContext.master
    if not master.startswith(("yarn", "k8s")):
        return None
    conf = spark.sparkContext._jsc.sc().conf()
    heap = conf.getSizeAsMb("spark.executor.memory", "1g")
    usual = "0.1" if master.startswith("yarn") else "0.4"
    share = float(conf.get("spark.executor.memoryOverheadFactor", usual))
    overhead = conf.getSizeAsMb("spark.executor.memoryOverhead", f"{max(384, int(heap * share))}m")
    return (overhead + conf.getSizeAsMb("spark.executor.pyspark.memory", "0m")) << 20
