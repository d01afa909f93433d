"""Spark's task slots, waited for: a rank takes one. Runs on the driver.

In: a session, how many ranks are wanted, how long to wait. Out: how many ranks can start; or what is
lacking, with the remedy that fits what was seen.
"""

import re
import time
from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.progress import ProgressLine
from chexspark.session import ENDED, UNBOUNDED, has_ended, is_local, task_slots

WAIT_SECONDS = 300.0  # where the caller does not say: the default of --wait-seconds
LOOK_SECONDS = 0.2  # between two looks at Spark
SETTLED_SECONDS = 10.0  # without another executor, after which no more are expected
RETURN_SECONDS = 30.0  # the same for executors that were lost: Spark starts them anew
LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


@dataclass(frozen=True)
class Supply:
    """What a session has to run tasks in, as far as its remedies depend on it.

    slots: tasks that can run at once. executors: that have registered, none of a local session.
    most: slots that its settings allow. master: its address. dynamic: whether Spark asks for executors
    as tasks need them. task_cpus, task_gpus: what a task takes.
    """

    slots: int
    executors: int
    most: int
    master: str
    dynamic: bool = False
    task_cpus: int = 1
    task_gpus: float = 0.0


def supply(spark: SparkSession) -> Supply:
    """Look once. Raises StoppedError when Spark's application has ended."""
    try:
        context = spark.sparkContext
        conf, scala = context.getConf(), context._jsc.sc()
        slots, local = task_slots(spark), is_local(spark)
        return Supply(
            slots,
            0 if local else scala.statusStore().executorList(True).size() - 1,  # not the driver
            max(slots, most_slots(str(context.master), dict(conf.getAll()))),
            str(context.master),
            is_dynamic(spark),
            int(conf.get("spark.task.cpus", "1")),
            float(conf.get("spark.task.resource.gpu.amount", "0")),
        )
    except (Py4JError, OSError, AttributeError):  # AttributeError: of a context that was stopped
        if has_ended(spark):
            raise StoppedError(ENDED) from None
        raise


def is_dynamic(spark: SparkSession) -> bool:
    """Whether Spark asks for executors as tasks need them."""
    conf = spark.sparkContext.getConf()
    return conf.get("spark.dynamicAllocation.enabled", "false") == "true" and not is_local(spark)


def most_slots(master: str, conf: dict[str, str]) -> int:
    """The most task slots that an application can come to have by its master and settings.

    0 for a local session, which has all from the start; UNBOUNDED where the cluster decides.
    """
    cpus = int(conf.get("spark.task.cpus", "1"))
    if master == "local" or master.startswith("local["):
        return 0
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return UNBOUNDED  # `task_slots` holds it to spark.dynamicAllocation.maxExecutors
    bounds = [UNBOUNDED]
    if found := LOCAL_CLUSTER.fullmatch(master):
        workers, cores, _ = map(int, found.groups())
        bounds.append(workers * (cores // cpus))
    elif master.startswith(("yarn", "k8s")):
        each = int(conf.get("spark.executor.cores", "1")) // cpus
        bounds.append(int(conf.get("spark.executor.instances", "2")) * each)
    if "spark.cores.max" in conf:
        bounds.append(int(conf["spark.cores.max"]) // cpus)
    return min(bounds)


def wait_for_slots(
    spark: SparkSession, wanted: int, enough: int, seconds: float, settled_seconds: float
) -> tuple[Supply, float]:
    """Wait for executors until there are `wanted` task slots; return what there is, and the seconds.

    Says on the progress line what it waits for. Waits no longer than `seconds`; where there are
    `enough`, until for `settled_seconds` no more have come; and not at all for more than Spark's
    settings allow. Raises StoppedError when Spark's application ends.
    """
    started = changed = time.monotonic()
    found, waited = supply(spark), 0.0
    with ProgressLine() as line:
        while found.slots < min(wanted, found.most):
            now = time.monotonic()
            waited, settled = now - started, now - changed >= settled_seconds
            if (
                waited >= seconds
                or (settled and found.slots >= enough)
                or is_hopeless(found, enough)
            ):
                break
            of = "" if wanted >= UNBOUNDED else f" of {wanted}"
            line.show(f"waiting for executors: {found.slots}{of} task slots")
            time.sleep(LOOK_SECONDS)
            before, found = found, supply(spark)
            if found.slots != before.slots:
                changed = time.monotonic()
    return found, waited


def is_hopeless(found: Supply, least: int) -> bool:
    """Whether waiting cannot help: settings keep the session below the least that would do."""
    return found.most < least


def check_ranks(
    spark: SparkSession, num_proc: int | None, wait_seconds: float = WAIT_SECONDS,
    setting: str = "--num-proc",
) -> int:  # fmt: skip
    """Return the number of ranks to start: `num_proc`, or as many as there are task slots. `setting`: what it
    is called.

    Executors register some seconds after the session starts, so it waits, and says so, for the
    slots asked for; where none were asked for, until no more have come for a while. Raises UserError
    when Spark has fewer, StoppedError when its application ends.
    """
    found, waited = wait_for_slots(
        spark, num_proc or UNBOUNDED, num_proc or 1, wait_seconds, SETTLED_SECONDS
    )
    if not found.slots or (num_proc and num_proc > found.slots):
        raise UserError(shortage(found, num_proc, waited, setting))
    if not num_proc and found.slots == UNBOUNDED:
        raise UserError(
            f"{setting} is missing, and Spark would allocate executors without end: give it, or set "
            "spark.dynamicAllocation.maxExecutors"
        )
    return num_proc or found.slots


def slots_again(
    spark: SparkSession, wanted: int, least: int, most: int, wait_seconds: float = WAIT_SECONDS
) -> int:
    """How many ranks can start after some were lost: `wanted` to `most`, or at least `least`.

    Waits for executors to come back until there are `wanted` slots; where there are `least`, only
    until no more have come for half a minute. Raises RunFailedError when there are too few all the same,
    StoppedError when Spark's application ends.
    """
    found, waited = wait_for_slots(spark, wanted, least, wait_seconds, RETURN_SECONDS)
    if found.slots < least:
        raise RunFailedError(
            f"{slots_text(found.slots)} {'is' if found.slots == 1 else 'are'} left after "
            f"{waited:.0f} seconds, but the run is to have {least} ranks or more: give --min-proc, or "
            f"a longer --wait-seconds; the same command resumes it when there are more"
        )
    return min(found.slots, most)


def slots_text(number: int) -> str:
    """``1 task slot``, ``2 task slots``."""
    return f"{number} task slot{'s' * (number != 1)}"


def shortage(
    found: Supply, num_proc: int | None, waited: float, setting: str = "--num-proc"
) -> str:
    """One line for a session with too few slots: what is lacking, and the remedy that fits."""
    asked = f"{setting} is {num_proc}, but" if num_proc else "no rank can start:"
    after = f" after {waited:.0f} seconds" if waited >= 1 else ""
    if num_proc and is_hopeless(found, num_proc):
        at_most = " at most" if found.most > found.slots else ""
        return (
            f"{asked} Spark has {slots_text(found.most)}{at_most}: lower {setting}, or "
            f"{how_to_have(found, num_proc)}"
        )
    if num_proc and found.slots:
        return (
            f"{asked} Spark has {slots_text(found.slots)}{after}: lower {setting}, or "
            f"{how_to_have(found, num_proc)}"
        )
    if found.executors:
        takes = f"{found.task_cpus} core{'s' * (found.task_cpus != 1)}"
        takes += f" and {found.task_gpus:g} GPUs" if found.task_gpus else ""
        number = found.executors
        return (
            f"{asked} none of Spark's {number} executor{'s' * (number != 1)} has the {takes} that a "
            "task takes: give executors more, or lower spark.task.cpus"
            + (" and spark.task.resource.gpu.amount" if found.task_gpus else "")
        )
    return f"{asked} {no_executor(found, waited)}"


def no_executor(found: Supply, waited: float) -> str:
    """Why a session may have no executor, and what to do, by its resource manager."""
    where = "whether a worker of the cluster is alive and has"
    if found.master.startswith("yarn"):
        where = "the application in YARN: whether its queue has"
    elif found.master.startswith("k8s"):
        where = "the pods (kubectl describe pod): whether a node has"
    return (
        f"no executor has registered in {waited:.0f} seconds: see {where} the cores and the memory of "
        "one executor free (--executor-cores, --executor-memory), or give a longer --wait-seconds"
    )


def how_to_have(found: Supply, num_proc: int) -> str:
    """How to give a session `num_proc` task slots, by its master."""
    each = f" of {found.task_cpus} cores each" if found.task_cpus > 1 else ""
    if found.master == "local" or found.master.startswith("local["):
        return f"give Spark more (--master local[{num_proc * found.task_cpus}])"
    if of_local := LOCAL_CLUSTER.fullmatch(found.master):
        workers, cores, memory = map(int, of_local.groups())
        workers = -(-num_proc // max(1, cores // found.task_cpus))
        return f"give Spark more (--master 'local-cluster[{workers},{cores},{memory}]')"
    how = "more workers, or a higher --total-executor-cores"
    if found.dynamic:
        how = "a higher spark.dynamicAllocation.maxExecutors"
    elif found.master.startswith(("yarn", "k8s")):
        how = "a higher --num-executors or --executor-cores"
    gpus = f", with {found.task_gpus:g} GPUs each" if found.task_gpus else ""
    return f"give Spark room for {num_proc} tasks{each}{gpus} ({how})"


def busy(found: Supply, started: int, num_proc: int, waited: float) -> str:
    """One line for tasks that did not start, though Spark is alive; the remedy fits what was seen."""
    one = num_proc == 1
    asked = "the rank's task has not started" if one else (
        f"--num-proc is {num_proc}, but only {started} of the ranks' tasks "
        f"{'has' if started == 1 else 'have'} started"
    )  # fmt: skip
    asked += f" in {waited:.0f} seconds"
    if not found.executors and found.master.startswith(
        ("yarn", "k8s", "spark://", "local-cluster")
    ):
        return f"{asked}: {no_executor(found, waited)}"
    if found.slots < num_proc:
        return (
            f"{asked}, and Spark has {slots_text(found.slots)} left: see in Spark's log why executors "
            "ended, or give a longer --wait-seconds"
        )
    lower = "" if one else ", lower --num-proc"
    return (
        f"{asked}: other work holds the slots of these executors; wait for it to end{lower}, or give a "
        "longer --wait-seconds"
    )
