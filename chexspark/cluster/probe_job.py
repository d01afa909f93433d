"""The Spark job of one `probe` per rank: started, waited for, ended. Runs on the driver.

In: a session, what the probes are asked, how long to wait for all to start. Out: what they found, and
one line where they did not start or failed.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import pyspark.cloudpickle
from pyspark import RDD
from pyspark.sql import SparkSession

from chexspark.cluster import diagnosis, place, probe
from chexspark.cluster.doors import door_of
from chexspark.cluster.host_diagnosis import PACK_ON_OLDEST, numbers
from chexspark.cluster.job_group import JobGroup
from chexspark.cluster.place import PlaceFacts
from chexspark.cluster.probe import Asked, Meeting
from chexspark.cluster.rendezvous import Rendezvous
from chexspark.cluster.slots import busy, supply
from chexspark.errors import StoppedError
from chexspark.progress import ProgressLine
from chexspark.session import ENDED, has_ended

AFTER_SECONDS = probe.CHECK_SECONDS + probe.ALIKE_SECONDS  # for tasks that met to answer
LAST_SECONDS = 2.0  # for the job to end by itself after all that is known is known
LOOK_SECONDS = 0.1  # between two looks at the tasks
NAME_PYTHON = "set spark.pyspark.python, or PYSPARK_PYTHON for a shell, to the environment's (./env/bin/python)"
BRING = "give spark-submit --archives FILE#env with the file that ./build.sh pack made"
BY_VALUE = threading.Lock()


@contextlib.contextmanager
def sent_by_value(*modules: ModuleType) -> Iterator[None]:
    """Inside, functions of `modules` are sent to executors as they are, not by their name.

    Registered for the whole process: it is held for as long as a function is pickled, and undone.
    """
    with BY_VALUE:
        before = pyspark.cloudpickle.list_registry_pickle_by_value()
        for module in modules:
            pyspark.cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in modules:
                if module.__name__ not in before:
                    pyspark.cloudpickle.unregister_pickle_by_value(module)


class ProbeJob:
    """A Spark job of one `probe` per rank, in a thread of its own.

    `places`: what came of it; `error`: why it failed, if it did; `not_met`: by the driver's clock, when its tasks
    had not met for the last time that this was looked at.
    """

    def __init__(self, spark: SparkSession, asked: Asked, meeting: Meeting, num_proc: int) -> None:
        self.jobs = JobGroup(spark, "doctor")
        self.places: list[PlaceFacts] = []
        self.error: Exception | None = None
        self.not_met = time.time()
        tasks = self.jobs.context.range(0, num_proc, numSlices=num_proc)
        job = tasks.mapPartitionsWithIndex(probe.make_probe(asked, meeting))
        with sent_by_value(probe, place):  # chexspark may be what an executor lacks
            self.pickled = job._jrdd  # which pickles the function now, and once
        self.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.thread.start()

    def _run(self, job: RDD) -> None:
        try:
            self.jobs.enter("chexspark: before the start")
            self.places = job.collect()
        except Exception as error:  # of Spark, for the thread that waits
            self.jobs.note(error)
            self.error = error

    def cancel(self) -> None:
        """End the job, if it still runs."""
        if self.thread.is_alive():
            self.jobs.cancel()


def look(
    spark: SparkSession, asked: Asked, num_proc: int, wait_seconds: float
) -> tuple[list[PlaceFacts], str | None]:
    """Run the tasks; return what those that met have found, and a fault where not all came so far.

    Raises StoppedError when Spark's application ends.
    """
    door = door_of(spark)
    with (
        Rendezvous(door, num_proc, wait_seconds, AFTER_SECONDS) as rendezvous,
        ProgressLine() as line,
    ):
        meeting: Meeting = {
            "host": door.host,
            "port": rendezvous.port,
            "token": rendezvous.token,
            "seconds": wait_seconds,
            "ports": list(door.ports),
        }
        job = ProbeJob(spark, asked, meeting, num_proc)
        try:
            started = wait_for_answers(spark, job, rendezvous, line)
            error = job.error  # before the job is cancelled, which is an error too
        finally:
            job.cancel()
        if has_ended(spark):
            raise StoppedError(ENDED)
        job.jobs.check_not_cancelled()
        if error:
            return [], spark_failure(str(error))
        found = job.places or rendezvous.values("end")
        for facts in found:
            facts["driver_clock"] = job.not_met, time.time()
        if started < num_proc:
            return found, busy(supply(spark), started, num_proc, wait_seconds)
        return found, None


def wait_for_answers(
    spark: SparkSession, job: ProbeJob, rendezvous: Rendezvous, line: ProgressLine
) -> int:
    """Wait for the job, as long as more can come of it; return how many of its tasks have started."""
    num_proc, last, started = rendezvous.num_tasks, None, 0
    while job.thread.is_alive():
        clock = time.time()
        if not rendezvous.is_over():
            job.not_met = clock
        came, known = len(rendezvous.values("start")), len(rendezvous.values("end"))
        running, ended = (0, 0) if has_ended(spark) else job.jobs.task_counts()
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
        r"Python in worker has different version:? (.+?) than that in driver:? (.+?),", text
    ):
        worker, driver = (".".join(re.findall(r"\d+", version)) for version in found.groups())
        return (
            f"Python on {place} is {worker}, the driver's is {driver}: set PYSPARK_PYTHON to one Python "
            f"for all, or {diagnosis.SAME_ENVIRONMENT}"
        )  # fmt: skip
    if lacking := re.findall(r"GLIBC_([\d.]+)' not found", text):
        needed = max(lacking, key=numbers)
        return f"Python on {place} needs glibc {needed}, which is not there: {PACK_ON_OLDEST}"
    if found := re.search(
        r'Cannot run program "([^"]+)"(?:.*?error[=:] *(\d+)\W+(\w[\w ]*))?', text
    ):
        program, number, reason = found.groups()
        if "/" not in program:  # nobody has said which: a host's own, which need not be there
            return f"{program} on {place} cannot be run: {NAME_PYTHON}, or {diagnosis.SAME_ENVIRONMENT}"
        if number not in (None, "2"):
            return f"{program} on {place} cannot be run ({reason}): {diagnosis.SAME_ENVIRONMENT}"
        remedy = diagnosis.SAME_ENVIRONMENT if program.startswith("/") else BRING
        return f"there is no {program} on {place}: {remedy}"
    if found := re.search(r"No module named '?([\w.]+)", text):
        return f"{found[1]} is missing on {place}: {diagnosis.SAME_ENVIRONMENT}"
    said = [
        line.strip()
        for line in text.splitlines()
        if re.match(r"\s*[\w.]+(Error|Exception)\b", line)
    ]
    reason = said[-1] if said else text.strip().partition("\n")[0]
    return f"no rank can start on {place} ({reason}): see Spark's log of that executor"  # fmt: skip
