"""The Spark session of a job that was not given one. Runs on the driver.

In: a session or none. Out: a session, and what the rooms need to know of it.
"""

import contextlib
import logging
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext, TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from chexspark import hdfs, object_stores
from chexspark.errors import RunFailedError, UserError

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
# On YARN Spark puts pages into its web server in one thread and YARN's filter in another; this is what it then meets.
RACED = "java.util.ConcurrentModificationException"
ENDED = "Spark's application was ended on the cluster"
GATEWAY_EXITED = "JAVA_GATEWAY_EXITED"
BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"  # of Spark 4.1 and newer
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
SAID_SECONDS = 2.0  # that Hadoop's settings count as known: every place asks for them
HDFS_TOKEN = "HDFS_DELEGATION_TOKEN"
NAMENODE_PORT = 8020  # where a URI of HDFS has none
HADOOPS_OWN = {
    "core-default.xml",
    "hdfs-default.xml",
}  # the sources of settings that nobody has made
UNBOUNDED = 2**31 - 1  # slots, as Spark's own default of spark.dynamicAllocation.maxExecutors


def start_session(
    spark: SparkSession | None, name: str, settings: dict[str, str] | None = None
) -> SparkSession:
    """Return `spark` itself, or a new session under ``spark-submit``'s settings.

    `settings` hold where ``spark-submit`` has none. Raises UserError where Spark does not start.
    """
    if spark is not None:
        hand_settings(spark)
        return spark
    builder = SparkSession.builder.appName(f"chexspark {name}")
    if settings and SparkSession.getActiveSession() is None:
        SparkContext._ensure_initialized()  # so that SparkConf knows what spark-submit was given
        given = SparkConf()
        for key, value in settings.items():
            builder = builder.config(key, given.get(key, value))
    spark = started(builder)
    hand_settings(spark)
    return spark


def started(builder: Any, attempts: int = START_ATTEMPTS) -> SparkSession:
    """The session. Raises UserError where Spark does not start."""
    try:
        return builder.getOrCreate()
    except Py4JJavaError as error:
        if innermost(error).getClass().getName() != RACED or attempts == 1:
            raise UserError(f"Spark does not start: {reason_of(error)}") from error
    log.warning("note: Spark's own start was disturbed by YARN's answer: starting it again")
    return started(builder, attempts - 1)


def hand_settings(spark: SparkSession) -> None:
    """Let the tasks of a session know what it says of object stores and of HDFS, if it says anything."""
    if not is_connect(spark) and TaskContext.get() is None:
        object_stores.settings()
        hdfs.hand_on()


def hand_to_tasks(name: str, value: str | None) -> None:
    """Put a variable into the environment of tasks that begin from now on, where there is a session.

    Spark sends it with the tasks' functions, and shows it nowhere. None: there is no such variable.
    """
    context = SparkContext._active_spark_context
    if context is not None and value is None:
        context.environment.pop(name, None)
    elif context is not None:
        context.environment[name] = value


@dataclass
class Said:
    """What Hadoop's settings were, by `time.monotonic` when, and of which session."""

    settings: dict[str, str]
    when: float
    context: SparkContext | None


last_said: dict[tuple, Said] = {}  # by what was asked for


def hadoop_settings(
    secrets: tuple[str, ...], names: tuple[str, ...], prefixes: tuple[str, ...]
) -> dict[str, str]:
    """Hadoop's settings as this driver's session has them, or ``spark-submit``'s: those of these names, and all that
    begin so. None of Hadoop's defaults, and none where there is no Java.

    `secrets` are looked for where Hadoop keeps passwords too. Raises UserError where that cannot be read.
    """
    if TaskContext.get() is not None:
        return {}
    submitted = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS")
    if SparkContext._gateway is None and not any(name in os.environ for name in submitted):
        return {}
    now, context = time.monotonic(), SparkContext._active_spark_context
    asked = (secrets, names, prefixes)
    said = last_said.get(asked)
    if said and said.context is context and now - said.when < SAID_SECONDS:
        return said.settings
    try:
        said = Said(read_hadoop_settings(secrets, names, prefixes), now, context)
    except Py4JJavaError as error:
        raise UserError(f"Hadoop's settings cannot be read: {reason_of(error)}") from error
    except (Py4JError, OSError):  # Java has ended, and what is known is still to be written
        return said.settings if said else {}
    last_said[asked] = said
    return said.settings


def read_hadoop_settings(
    secrets: tuple[str, ...], names: tuple[str, ...], prefixes: tuple[str, ...]
) -> dict[str, str]:
    """See `hadoop_settings`."""
    SparkContext._ensure_initialized()
    context, java = SparkContext._active_spark_context, SparkContext._jvm
    if context is not None:
        hadoop = context._jsc.hadoopConfiguration()
    else:
        made = java.org.apache.spark.deploy.SparkHadoopUtil.get()
        hadoop = made.newConfiguration(SparkConf()._jconf)
    found = {}
    for name in secrets:
        if (letters := hadoop.getPassword(name)) is not None:
            found[name] = java.java.lang.String.valueOf(letters)
    for name in names:
        if is_made(hadoop, name):
            found[name] = hadoop.get(name)
    for prefix in prefixes:
        for rest, value in dict(hadoop.getPropsWithPrefix(prefix)).items():
            if is_made(hadoop, name := prefix + rest):
                found[name] = value
    return {name: value for name, value in found.items() if value}


def is_made(hadoop: Any, name: str) -> bool:
    """Whether somebody has made a setting of Hadoop's, and it is not its default."""
    sources = hadoop.getPropertySources(name)
    return sources is not None and not HADOOPS_OWN & {str(source) for source in sources}


def spark_settings(names: tuple[str, ...]) -> dict[str, str]:
    """Spark's own settings of these names, as this driver's session has them, or ``spark-submit``; none in tasks."""
    if TaskContext.get() is not None or SparkContext._gateway is None:
        return {}
    context = SparkContext._active_spark_context
    try:
        conf = context.getConf() if context is not None else SparkConf()
        found = {name: conf.get(name) for name in names}
    except (Py4JError, OSError):  # Java has ended
        return {}
    return {name: value for name, value in found.items() if value}


def hadoop_tokens() -> bytes | None:
    """Hadoop's tokens that Spark has at this moment, as their file; None where Hadoop is not secured, or has given none.

    Spark gets them at its start, and new ones in time where it has a keytab (``--principal``, ``--keytab``), or
    ``spark.kerberos.renewal.credentials=ccache`` and a ticket.
    """
    context, java = SparkContext._active_spark_context, SparkContext._jvm
    if context is None or TaskContext.get() is not None:
        return None
    try:
        security = java.org.apache.hadoop.security
        users = security.UserGroupInformation
        if not users.isSecurityEnabled():
            return None
        credentials = users.getCurrentUser().getCredentials()
        if not credentials.numberOfTokens():
            return None
        name_by_host(credentials, context._jsc.hadoopConfiguration())
        out = java.java.io.ByteArrayOutputStream()
        credentials.writeTokenStorageToStream(java.java.io.DataOutputStream(out))
        return bytes(out.toByteArray())
    except (Py4JError, OSError):  # Java has ended
        return None


def token_ends() -> list[float]:
    """When tokens of HDFS that Spark has end for good, whoever renews them; seconds as `time.time` counts them."""
    context, java = SparkContext._active_spark_context, SparkContext._jvm
    if context is None or TaskContext.get() is not None:
        return []
    user = java.org.apache.hadoop.security.UserGroupInformation.getCurrentUser()
    tokens = java.java.util.ArrayList(user.getCredentials().getAllTokens())
    ours = [token for token in tokens if token.getKind().toString() == HDFS_TOKEN]
    return [token.decodeIdentifier().getMaxDate() / 1000 for token in ours]


def name_by_host(credentials: Any, hadoop: Any) -> None:
    """Add tokens of single NameNodes, which Hadoop names by their address, by the name in the default file system's URI."""
    java = SparkContext._jvm
    default = urllib.parse.urlparse(hadoop.get("fs.defaultFS", ""))
    if default.scheme != "hdfs" or not default.hostname:
        return
    name = f"{default.hostname}:{default.port or NAMENODE_PORT}"
    with contextlib.suppress(OSError):
        address = f"{socket.gethostbyname(default.hostname)}:{default.port or NAMENODE_PORT}"
        for token in java.java.util.ArrayList(credentials.getAllTokens()):
            if token.getService().toString() == address:
                named = token.copyToken()
                named.setService(java.org.apache.hadoop.io.Text(name))
                credentials.addToken(java.org.apache.hadoop.io.Text(name), named)


def reason_of(error: Py4JJavaError) -> str:
    """What the innermost exception of Java says, in one line.

    A master that does not take the application stops Spark as it starts, which is what is said then.
    """
    cause = innermost(error)
    if (
        cause.getClass().getName() == "java.lang.IllegalStateException"
    ):  # of a context that has ended
        return (
            "its master does not answer, or takes another spark.authenticate.secret than the one given here: "
            "Spark's own lines above say which"
        )
    return str(cause.getMessage() or cause.toString()).splitlines()[0]


def innermost(error: Py4JJavaError) -> Any:
    """The exception of Java's that was there first."""
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    return cause


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
