"""The Spark session of a job that was not given one. Runs on the driver.

In: a session or none. Out: a session, and the facts about it that the rooms need.
"""

import contextlib
import socket
import time

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from chexspark.errors import RunFailed, Stopped, UserError
from chexspark.progress import ProgressLine

EXECUTOR_SECONDS = 60.0  # that a cluster may take to start the first executor
SETTLED_SECONDS = 10.0  # without another one after that
ENDED = "Spark's application was ended on the cluster"
UNBOUNDED = 2**31 - 1  # slots, as Spark's own default of spark.dynamicAllocation.maxExecutors


def start_session(spark: SparkSession | None, name: str, settings=None) -> SparkSession:
    """Return `spark` itself, or a new session under ``spark-submit``'s settings.

    `settings` hold where ``spark-submit`` has none.
    """
    if spark is not None:
        return spark
    builder = SparkSession.builder.appName(f"chexspark {name}")
    if settings and SparkSession.getActiveSession() is None:
        SparkContext._ensure_initialized()  # so that SparkConf knows what spark-submit was given
        given = SparkConf()
        for key, value in settings.items():
            builder = builder.config(key, given.get(key, value))
    return builder.getOrCreate()


def stop_session() -> None:
    """Give executors back in good order, if a session was started."""
    with contextlib.suppress(Py4JError, OSError):  # where its JVM is gone
        active = SparkSession.getActiveSession()
        if active is not None:
            active.stop()


def has_ended(spark: SparkSession) -> bool:
    """Whether Spark's application is over: stopped, ended on the cluster, or its JVM is gone."""
    try:
        return spark.sparkContext._jsc.sc().isStopped()
    except (Py4JError, OSError, AttributeError):
        return True


def is_local(spark: SparkSession) -> bool:
    """Whether tasks run in the driver's own process (``local-cluster`` starts executors)."""
    master = spark.sparkContext.master
    return master == "local" or master.startswith("local[")


def task_slots(spark: SparkSession) -> int:
    """How many tasks Spark can run at once: the most ranks that can start together.

    By the cores, and the GPUs where Spark deals them out, of the live executors over what a task
    takes of each; under dynamic allocation, what may still be asked for.
    """
    context = spark.sparkContext
    conf, scala = context.getConf(), context._jsc.sc()
    live = int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))
    if is_local(spark) or conf.get("spark.dynamicAllocation.enabled", "false") != "true":
        return live
    executors = scala.statusStore().executorList(True).size() - 1  # without the driver
    usual = int(conf.get("spark.executor.cores", "1")) // int(conf.get("spark.task.cpus", "1"))
    each = live // executors if live and executors > 0 else usual
    most = conf.get("spark.dynamicAllocation.maxExecutors")
    return int(most) * each if most else UNBOUNDED


def slots_again(spark: SparkSession, wanted: int, least: int, most: int) -> int:
    """How many ranks can start after some were lost: `wanted` to `most`, or at least `least`.

    Waits for executors to come back until there are `wanted` slots. Raises RunFailed when there are
    too few all the same.
    """
    started = time.monotonic()
    with ProgressLine() as line:
        while not has_ended(spark) and (slots := task_slots(spark)) < wanted:
            if time.monotonic() - started >= EXECUTOR_SECONDS / 2:
                break
            line.show(f"waiting for executors: {slots} of {wanted} task slots")
            time.sleep(0.2)
    if has_ended(spark):
        raise Stopped(ENDED)
    if slots < least:
        raise RunFailed(
            f"{slots} task slots are left, but the run is to have {least} ranks or more (--min-proc)"
        )
    return min(slots, most)


def replace_executors(spark: SparkSession, address: str) -> None:
    """Have Spark give up the executors of a host that does not answer, and ask for others.

    Spark itself would take tasks there for ``spark.network.timeout``, which is two minutes.
    """
    if is_local(spark):
        return
    scala = spark.sparkContext._jsc.sc()
    executors = scala.statusStore().executorList(True)
    for number in range(executors.size()):
        executor = executors.apply(number)
        with contextlib.suppress(OSError):  # a name that is not known any more
            if socket.gethostbyname(executor.hostPort().rsplit(":", 1)[0]) == address:
                scala.killAndReplaceExecutor(executor.id())


def check_ranks(spark: SparkSession, num_proc: int | None) -> int:
    """Return the number of ranks to start. Raises UserError when Spark has fewer slots.

    Executors register some seconds after the session starts, so it waits, and says so, for the
    slots asked for; where none were asked for, until no more have come for a while.
    """
    started = changed = time.monotonic()
    slots = task_slots(spark)
    with ProgressLine() as line:
        while not is_local(spark):
            now = time.monotonic()
            settled = slots and now - changed >= SETTLED_SECONDS
            if settled or now - started >= EXECUTOR_SECONDS or (num_proc and slots >= num_proc):
                break
            line.show(f"waiting for executors: {slots} of {num_proc or 'all'} task slots")
            time.sleep(0.2)
            if (found := task_slots(spark)) != slots:
                slots, changed = found, time.monotonic()
    if not slots or (num_proc and num_proc > slots):
        asked = f"--num-proc is {num_proc}, but" if num_proc else "no rank can start:"
        raise UserError(
            f"{asked} Spark has {slots} task slot{'s' * (slots != 1)}: lower --num-proc, or give "
            f"Spark more (--master local[{num_proc or 1}], or more executors, cores or GPUs)"
        )
    if not num_proc and slots == UNBOUNDED:
        raise UserError(
            "--num-proc is missing, and Spark would allocate executors without end: give it, or set "
            "spark.dynamicAllocation.maxExecutors"
        )
    return num_proc or slots
