"""Horovod's services behind a `Door`, on the driver and in tasks; a rank's Python is its task's.

In: the door. Out: Horovod's modules with other functions in them, inside a ``with``. Horovod's own
services listen on all interfaces, and its rendezvous answers anybody.
"""

import contextlib
import functools
import os
import re
import shlex
import socketserver
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import horovod.runner.common.util.network as network
import horovod.runner.http.http_server as http_server
from horovod.runner.common.service.driver_service import RegisterTaskRequest
from horovod.runner.common.util import safe_shell_exec, secret
from horovod.runner.common.util.timeout import Timeout
from horovod.spark.task.task_service import SparkTaskClient, SparkTaskService
from pyspark import SparkFiles

from chexspark.cluster.doors import Door, GuardedServer

TASKS_PYTHON = "CHEXSPARK_PYTHON_OF_THE_TASK"  # in a rank's command, until its task knows better
# In a rank's command: the interface of its ring, of Gloo and of NCCL.
INTERFACE = re.compile(r"\b((?:HOROVOD_GLOO_IFACE|NCCL_SOCKET_IFNAME)=)[^ ]*")
NOTICE_SECONDS = 0.05  # until threads of a task have seen that its rank has ended
LONGEST_MESSAGE = 1 << 28  # bytes: a function for ranks with its arguments


class ServiceServer(GuardedServer):
    """A server that waits at its end for answers that are under way, as Horovod's do."""

    daemon_threads = False


class BoundedWire(network.Wire):
    """Horovod's messages, of bounded length."""

    def read(self, rfile: Any) -> Any:
        """A message from who knows the key. Raises EOFError where it ends early, ValueError otherwise."""
        head = rfile.read(secret.DIGEST_LENGTH + 4)
        if len(head) < secret.DIGEST_LENGTH + 4:
            raise EOFError("a message has no head")
        (length,) = struct.unpack("i", head[secret.DIGEST_LENGTH :])
        if not 0 <= length <= LONGEST_MESSAGE:
            raise ValueError(f"a message of {length} bytes")
        message = rfile.read(length)
        if not secret.check_digest(self._key, message, head[: secret.DIGEST_LENGTH]):
            raise ValueError("a message from who does not know the key")
        return network.cloudpickle.loads(message)  # as Horovod does


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Inside, attributes have other values: of an owner, a name, what it is."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            if name in vars(owner):
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def closed_services(door: Door, guests: set[str] | None = None) -> Iterator[None]:
    """Inside, Horovod's services listen at the door, and hear strangers for seconds alone.

    `guests`: where the hosts of tasks that register are noted.
    """
    plain_handler = network.BasicService._make_handler

    def make_handler(service: Any) -> Any:
        plain_handle = service._handle

        def handle(request: Any, client_address: Any) -> Any:
            service._server.admit(client_address)  # it knows the key
            if guests is not None and isinstance(request, RegisterTaskRequest):
                guests.add(client_address[0])
                guests.update(announced(request.task_addresses))
            return plain_handle(request, client_address)

        service._handle = handle
        return plain_handler(service)

    plain_addresses = network.BasicService._get_local_addresses

    def addresses(service: Any) -> dict[str, list[tuple[str, int]]]:
        return bound(plain_addresses(service), service._server.server_address[0])

    servers = types.SimpleNamespace(**vars(socketserver) | {"ThreadingTCPServer": ServiceServer})
    with replaced(
        (network, "socketserver", servers),
        (network, "find_port", finder(door)),
        (network, "Wire", BoundedWire),
        (network.BasicService, "_make_handler", make_handler),
        (network.BasicService, "_get_local_addresses", addresses),
    ):
        yield


@contextlib.contextmanager
def closed_rendezvous(door: Door, guests: set[str]) -> Iterator[None]:
    """Inside, Horovod's rendezvous listens at the door and answers guests; at the end it is closed."""
    made: list[Any] = []
    plain_find = finder(door)

    def find_port(make: Callable) -> tuple[Any, int]:
        server, port = plain_find(make)
        made.append(server)
        return server, port

    def bind(server: Any) -> None:
        socketserver.TCPServer.server_bind(server)  # which does not look for a name of the address
        server.server_name, server.server_port = server.server_address[:2]

    def verify_request(server: Any, request: Any, client_address: Any) -> bool:
        return client_address[0] in guests

    plain = http_server.RendezvousHTTPServer
    with replaced(
        (http_server, "find_port", find_port),
        (plain, "server_bind", bind),
        (plain, "verify_request", verify_request),
        (plain, "request_queue_size", 128),
    ):
        try:
            yield
        finally:
            for server in made:
                threading.Thread(target=close, args=(server,), daemon=True).start()


def close(server: socketserver.BaseServer) -> None:
    """Stop a server that runs in another thread."""
    server.shutdown()
    server.server_close()


def finder(door: Door) -> Callable[[Callable], tuple[Any, int]]:
    """Horovod's ``find_port`` for a door."""

    def find_port(make: Callable) -> tuple[Any, int]:
        server = door.open(make)
        return server, server.server_address[1]

    return find_port


def announced(addresses: dict[str, list[tuple[str, int]]]) -> set[str]:
    """The hosts among a task's addresses, by interface; loopback is no address of one."""
    every = {host for pairs in addresses.values() for host, _ in pairs}
    return {host for host in every if not host.startswith("127.")}


def bound(
    addresses: dict[str, list[tuple[str, int]]], host: str
) -> dict[str, list[tuple[str, int]]]:
    """Of a service's addresses, by interface, those at which it listens; `host`: where it is bound."""
    if host == "0.0.0.0":
        return addresses
    here = {name: [p for p in pairs if p[0] == host] for name, pairs in addresses.items()}
    return {name: pairs for name, pairs in here.items() if pairs}


def task_function(function: Callable, door: Door) -> Callable:
    """What a Spark task of Horovod's runs: its service at the door, its rank by the task's own Python.

    The rank's ring goes over the door's interface, which need not be called alike on all hosts.

    A command's least lifetime, in which the driver asks for its end, counts from its start; Horovod counts it from
    the end, three seconds after every training.

    The files that Spark has brought stand on PYTHONPATH: Spark puts them on the path of its own Python
    worker, and ranks are child processes of it.
    """

    def run(index: int, rows: Any) -> Any:
        brought = [place for place in sys.path if place.startswith(SparkFiles.getRootDirectory())]
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(brought + ([before] if before else []))
        plain_run, plain_begin = SparkTaskService._run_command, SparkTaskClient.__init__

        def run_command(service: Any, command: str, *arguments: Any, **settings: Any) -> None:
            command = command.replace(TASKS_PYTHON, shlex.quote(sys.executable), 1)
            if ours.bind:
                command = INTERFACE.sub(rf"\g<1>{next(iter(service.addresses()))}", command)
            started = time.monotonic()
            plain_run(service, command, *arguments, **settings)
            left = service._minimum_command_lifetime_s - (time.monotonic() - started)
            service._minimum_command_lifetime = Timeout(max(2 * NOTICE_SECONDS, left), "")

        def begin(client: Any, *arguments: Any, match_intf: bool = False) -> None:
            plain_begin(client, *arguments, match_intf=match_intf and not ours.bind)

        ours = door.in_task()
        on_event = functools.partial(safe_shell_exec.on_event, check_stop_interval_s=NOTICE_SECONDS)
        try:
            with (
                closed_services(ours),
                replaced(
                    (safe_shell_exec, "on_event", on_event),
                    (SparkTaskService, "_run_command", run_command),
                    (SparkTaskClient, "__init__", begin),
                ),
            ):
                yield from function(index, rows)
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    return run
