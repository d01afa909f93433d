"""Horovod's launcher, changed where it would fail or wait on a cluster. Runs on the driver.

In: the driver's address, the hosts that are known to be gone. Out: Horovod's own modules with other
functions in them, for as long as ranks run; what it is told of ranks that end. Horovod's modules are
those of the whole process, so one caller at a time may be inside (`turn`).
"""

import contextlib
import errno
import functools
import os
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import horovod.runner.common.util.network as network
import horovod.runner.gloo_run as gloo_run
import horovod.runner.launch as launch
import horovod.runner.util.threads as horovod_threads
import horovod.spark.gloo_run as spark_gloo_run
import horovod.spark.runner as spark_runner
from horovod.runner.common.service.task_service import BasicTaskClient
from horovod.spark.driver.driver_service import SparkDriverService

from chexspark.cluster.doors import Door
from chexspark.cluster.horovod_services import (
    closed_rendezvous,
    closed_services,
    replaced,
    task_function,
)
from chexspark.cluster.job_group import JobGroup
from chexspark.training.events import keep_alive

ASK_SECONDS = 0.1  # between two looks of a task at whether its rank has ended
CONNECT_SECONDS = 5.0  # to a task whose host may be gone
RunRank = Callable[[str, Any, Any], tuple[int, float]]  # → exit code, when it ended


@contextlib.contextmanager
def adapted_horovod(
    door: Door, silent_hosts: set[str], failed_ranks: list[int], jobs: JobGroup
) -> Iterator[None]:
    """Inside, Horovod differs in eleven ways.

    It does not load TensorFlow in a fork of the driver to see whether it was built with Gloo: that
    takes six seconds, and fails where only executors have TensorFlow; ``hvd.init`` finds out too.
    It leaves signals alone: its handler kills ranks that could still write a checkpoint.
    Each rank takes the network interface that leads to the driver, whatever it is called there; Horovod
    would take any whose name all hosts have in common: with all ranks on one host that may be the
    loopback, and the driver elsewhere.
    It gives up on a task whose host is silent (or among `silent_hosts`), and does not wait for hours.
    It notes in `failed_ranks` which ranks ended with another exit code than 0, in that order.
    Its own threads end in silence: when a rank fails, the one that waits for the Spark job would end
    with a page of Java stack; what matters comes as an event or in the exception of its ``run``.
    Its Spark job is one of `jobs`, so that it ends with the caller's job group, and not of a group that
    Horovod makes up.
    Its ranks import what ``--py-files`` and ``addPyFile`` brought, as the Spark tasks do that start them,
    and are run by the Python of these tasks, where it would take the driver's (`TASKS_PYTHON`).
    It asks for the end of ranks ten times a second, and not once.
    Its services listen at the driver's `door` and at those of tasks, its rendezvous answers the hosts of
    tasks that have registered, and ends with the ranks.
    """
    plain_interfaces = SparkDriverService.get_common_interfaces

    def interfaces(service: SparkDriverService) -> list[str]:
        own = service.addresses()
        return list(own) if door.bind else in_order(plain_interfaces(service), own, door.host)

    silent_thread = functools.partial(horovod_threads.in_thread, silent=True)
    plain_spark_thread = spark_runner._make_spark_thread

    def spark_thread(spark_context: Any, group: str, *arguments: Any, **settings: Any) -> Any:
        return plain_spark_thread(
            GroupedContext(spark_context, jobs, door), group, *arguments, **settings
        )

    plain_command = spark_gloo_run._exec_command_fn

    def command_of(*arguments: Any) -> RunRank:
        run = plain_command(*arguments)

        def run_rank(command: str, slot_info: Any, events: Any) -> tuple[int, float]:
            exit_code, ended = run(command, slot_info, events)
            if exit_code != 0:
                failed_ranks.append(slot_info.rank)
            return exit_code, ended

        return run_rank

    def new_socket(*arguments: Any, **settings: Any) -> WatchedSocket:
        return WatchedSocket(silent_hosts, *arguments, **settings)

    plain_wait = BasicTaskClient.wait_for_command_exit_code

    def wait_for_exit_code(client: BasicTaskClient, delay: float = ASK_SECONDS) -> int:
        return plain_wait(client, delay)

    guests: set[str] = set()
    with (
        closed_services(door, guests),
        closed_rendezvous(door, guests),
        replaced(
            (spark_gloo_run, "_exec_command_fn", command_of),
            (spark_runner, "in_thread", silent_thread),
            (spark_runner, "_make_spark_thread", spark_thread),
            (spark_runner, "_launch_job", cancelling(spark_runner._launch_job, jobs)),
            (
                spark_runner,
                "_notify_and_register_task_addresses",
                cancelling(spark_runner._notify_and_register_task_addresses, jobs),
            ),
            (horovod_threads, "in_thread", silent_thread),
            (launch, "gloo_built", lambda verbose=False: True),
            (gloo_run, "register_shutdown_event", threading.Event),
            (SparkDriverService, "get_common_interfaces", interfaces),
            (BasicTaskClient, "wait_for_command_exit_code", wait_for_exit_code),
            (network, "socket", types.SimpleNamespace(**vars(socket) | {"socket": new_socket})),
        ),
    ):
        yield


def cancelling(function: Callable, jobs: JobGroup) -> Callable:
    """A step of Horovod's that ends the jobs where it fails, before Horovod waits for them."""

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except BaseException:
            jobs.cancel()
            raise

    return call


class GroupedContext:
    """The SparkContext for the thread of Horovod's job, which is one of `jobs`."""

    def __init__(self, context: Any, jobs: JobGroup, door: Door) -> None:
        self.context, self.jobs, self.door = context, jobs, door

    def setJobGroup(self, group: str, description: str, interruptOnCancel: bool) -> None:  # noqa: N802, N803
        """Take the group of `jobs`, whatever Horovod says."""
        self.jobs.enter("chexspark: ranks")

    def range(self, *arguments: Any, **settings: Any) -> "NotedJob":
        """The start of Horovod's job."""
        return NotedJob(self.context.range(*arguments, **settings), self.jobs, self.door)


class NotedJob:
    """The RDD of Horovod's job: what ends it is noted."""

    def __init__(self, rdd: Any, jobs: JobGroup, door: Door) -> None:
        self.rdd, self.jobs, self.door = rdd, jobs, door

    def mapPartitionsWithIndex(self, function: Callable) -> "NotedJob":  # noqa: N802
        """As the RDD's."""
        ours = task_function(function, self.door)
        return NotedJob(self.rdd.mapPartitionsWithIndex(ours), self.jobs, self.door)

    def collect(self) -> list[Any]:
        """Run it. Raises what Spark raises."""
        try:
            return self.rdd.collect()
        except Exception as error:
            self.jobs.note(error)
            raise


def in_order(
    common: set[str], addresses: dict[str, list[tuple[str, int]]], driver_host: str
) -> list[str]:
    """Interfaces that all have in common, the one with the driver's address first, no others' loopback.

    `addresses`: of the driver, by interface, pairs of address and port.
    """
    with contextlib.suppress(OSError):
        driver_host = socket.gethostbyname(driver_host)
    own = {n for n, pairs in addresses.items() if driver_host in (address for address, _ in pairs)}
    local = {n for n, pairs in addresses.items() if all(a.startswith("127.") for a, _ in pairs)}
    return sorted(common - (local - own) or common, key=lambda name: (name not in own, name))


class WatchedSocket(socket.socket):
    """A socket that notices within seconds that the other host is gone."""

    def __init__(self, silent_hosts: set[str], *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.silent_hosts = silent_hosts

    def connect(self, address: Any) -> None:
        """Connect, and be told of a host that is gone."""
        if address[0] in self.silent_hosts:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        asked = self.gettimeout()
        self.settimeout(asked or CONNECT_SECONDS)
        super().connect(address)
        self.settimeout(asked)
        keep_alive(self)
