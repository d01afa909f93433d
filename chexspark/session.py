"""The Spark session of a job that was not given one. Runs on the driver.

In: a session or none. Out: a session, and what the rooms need to know of it.
"""

import contextlib
import socket
from collections.abc import Iterator

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from chexspark.errors import RunFailedError, UserError

ENDED = "Spark's application was ended on the cluster"
GATEWAY_EXITED = "JAVA_GATEWAY_EXITED"
BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"  # of Spark 4.1 and newer
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
UNBOUNDED = 2**31 - 1  # slots, as Spark's own default of spark.dynamicAllocation.maxExecutors


def start_session(
    spark: SparkSession | None, name: str, settings: dict[str, str] | None = None
) -> SparkSession:
    """Return `spark` itself, or a new session under ``spark-submit``'s settings.

    `settings` hold where ``spark-submit`` has none. Raises UserError where Spark does not start.
    """
    if spark is not None:
        return spark
    builder = SparkSession.builder.appName(f"chexspark {name}")
    if settings and SparkSession.getActiveSession() is None:
        SparkContext._ensure_initialized()  # so that SparkConf knows what spark-submit was given
        given = SparkConf()
        for key, value in settings.items():
            builder = builder.config(key, given.get(key, value))
    try:
        return builder.getOrCreate()
    except Py4JJavaError as error:
        raise UserError(f"Spark does not start: {reason_of(error)}") from error


def reason_of(error: Py4JJavaError) -> str:
    """What the innermost exception of Java says, in one line.

    A master that does not take the application stops Spark as it starts, which is what is said then.
    """
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    if (
        cause.getClass().getName() == "java.lang.IllegalStateException"
    ):  # of a context that has ended
        return (
            "its master does not answer, or takes another spark.authenticate.secret than the one given here: "
            "Spark's own lines above say which"
        )
    return str(cause.getMessage() or cause.toString()).splitlines()[0]


def has_session() -> bool:
    """Whether this process has a session, which `start_session` would return."""
    return SparkContext._active_spark_context is not None


def stop_session() -> None:
    """Give executors back in good order, if a session was started."""
    with contextlib.suppress(Py4JError, OSError):  # where its JVM is gone
        active = SparkSession.getActiveSession()
        if active is not None:
            active.stop()
    if SparkContext._gateway is None:
        end_half_started()


def end_half_started() -> None:
    """End Spark's Java process that this one was starting when it was stopped: it would stay for ever."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() in ("java", "bash") and "spark" in " ".join(child.cmdline()):
                child.kill()


def letters_of_java() -> str:
    """The encoding in which this driver's Java takes names and arguments, ``ANSI_X3.4-1968`` say."""
    SparkContext._ensure_initialized()  # of ``spark-submit`` the one that is there
    return SparkContext._jvm.System.getProperty("sun.jnu.encoding")


def java_has_all_letters() -> bool:
    """Whether this driver's Java takes every name, whatever its letters."""
    return letters_of_java().upper() in ("UTF-8", "UTF8")


def is_connect(spark: SparkSession) -> bool:
    """Whether a session reaches its cluster through Spark Connect, and so has no SparkContext."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def check_classic(spark: SparkSession, what: str) -> None:
    """Raise UserError for a session that has no SparkContext. `what`: the function that needs one."""
    if is_connect(spark):
        raise UserError(
            f"{what} needs classic access to Spark: this session is of Spark Connect, which has no SparkContext"
        )


@contextlib.contextmanager
def small_batches(spark: SparkSession, rows: int) -> Iterator[None]:
    """Inside, what starts hands at most so many rows at a time to Python: they may have images."""
    before = spark.conf.get(BATCH_ROWS)
    spark.conf.set(BATCH_ROWS, str(rows))
    try:
        yield
    finally:
        spark.conf.set(BATCH_ROWS, before)


def has_ended(spark: SparkSession) -> bool:
    """Whether Spark's application is over: stopped, ended on the cluster, or its JVM is gone."""
    try:
        return spark.sparkContext._jsc.sc().isStopped()
    except (Py4JError, OSError, AttributeError):
        return True


def java_is_gone(error: BaseException) -> bool:
    """Whether an error is of this driver's Java process, which has ended, and not of what it was asked."""
    if GATEWAY_EXITED in str(error):  # before it said where it listens
        return True
    if not isinstance(error, (Py4JError, OSError, EOFError, AttributeError, PySparkException)):
        return False
    gateway = SparkContext._gateway
    process = getattr(gateway, "proc", None)
    if gateway is None or process is not None:
        return process is not None and process.poll() is not None
    try:  # one that spark-submit started
        gateway.jvm.System.nanoTime()
    except (Py4JError, OSError):
        return True
    return False


@contextlib.contextmanager
def java_loss_told() -> Iterator[None]:
    """Inside, when this driver's Java process has ended, say so. Raises RunFailedError."""
    try:
        yield
    except Exception as error:
        if not java_is_gone(error):
            raise
        raise RunFailedError(
            "Spark's Java process on this host has ended, killed from outside or out of memory: run it again"
        ) from error


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
