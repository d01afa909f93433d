"""Where the services of driver and tasks listen, and how long they hear a stranger. On either.

In: Spark's settings on the driver, the driver's address in a task. Out: a `Door`, and servers that
listen there and nowhere else. Who has shown no token within ten seconds is hung up on, and so is the
one that has waited longest where there are too many.
"""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
from pyspark.sql import SparkSession

from chexspark.cluster.probe import LOOPBACK, address_towards, first_free
from chexspark.errors import UserError
from chexspark.session import is_local

PORTS = "spark.chexspark.ports"
FIRST_WORDS_SECONDS = 10.0  # for a peer to show the token
MOST_STRANGERS = 64  # that a server hears at a time


@dataclass(frozen=True)
class Door:
    """Where services listen: `host` is what the others call the driver, `bind` where this process does.

    `bind` is empty for all interfaces, `ports` for any that is free.
    """

    host: str
    bind: str
    ports: tuple[int, ...] = ()

    def in_task(self) -> "Door":
        """The same of a task: of the interface that leads to the driver."""
        return Door(self.host, address_towards(self.host), self.ports)

    def open(self, make: Callable[[tuple[str, int]], Any]) -> Any:
        """Make a server of an address and a port. Raises UserError where none is free."""
        try:
            return first_free(lambda port: make((self.bind, port)), list(self.ports))
        except OSError as error:
            if not self.ports:
                raise
            raise UserError(str(error)) from error


def door_of(spark: SparkSession) -> Door:
    """The driver's. Raises UserError for a range of ports that is none."""
    conf = spark.sparkContext.getConf()
    ports = ports_of(str(conf.get(PORTS, "")))
    if is_local(spark):  # ranks are on this host
        return Door(LOOPBACK, LOOPBACK, ports)
    host = str(conf.get("spark.driver.host"))
    return Door(host, own_address(str(conf.get("spark.driver.bindAddress", host)), host), ports)


def ports_of(text: str) -> tuple[int, ...]:
    """The ports of ``FIRST-LAST``; none of an empty text. Raises UserError."""
    if not text.strip():
        return ()
    first, dash, last = text.partition("-")
    with contextlib.suppress(ValueError):
        numbers = range(int(first), int(last if dash else first) + 1)
        if numbers and numbers[0] >= 1024 and numbers[-1] < 65536:
            return tuple(numbers)
    raise UserError(
        f"{PORTS}={text} must be FIRST-LAST, of ports from 1024 to 65535: 20000-20063, say"
    )


def own_address(bind: str, host: str) -> str:
    """The address of this host that one of two names stands for, `bind` before `host`; empty: all."""
    own = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET  # Horovod takes no other kind
    }
    for name in (bind, host):
        with contextlib.suppress(OSError):
            address = socket.gethostbyname(name)
            if address in own:
                return address
            if address.startswith("127."):
                return LOOPBACK
    return ""


class GuardedServer(socketserver.ThreadingTCPServer):
    """A server that hears strangers for ten seconds, and no more than 64 of them at a time.

    Its handlers call `admit` for a peer that has shown that it belongs here.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.strangers: dict[Any, tuple[socket.socket, float]] = {}  # by their address
        self.guard = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hear a peer; where there are too many strangers, the first one has to go."""
        with self.guard:
            while len(self.strangers) >= MOST_STRANGERS:
                self._hang_up([next(iter(self.strangers))])
            self.strangers[client_address] = request, time.monotonic()
        super().process_request(request, client_address)

    def admit(self, client_address: Any) -> None:
        """It is no stranger."""
        with self.guard:
            self.strangers.pop(client_address, None)

    def service_actions(self) -> None:
        """Hang up on those that have been strangers for too long; called again and again."""
        with self.guard:
            late = time.monotonic() - FIRST_WORDS_SECONDS
            self._hang_up([who for who, (_, since) in self.strangers.items() if since < late])

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self.guard:
            for who in [w for w, (theirs, _) in self.strangers.items() if theirs is request]:
                del self.strangers[who]
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close, without waiting for strangers."""
        with self.guard:
            self._hang_up(list(self.strangers))
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a stranger that talks nonsense, or is gone."""
        if client_address not in self.strangers:
            super().handle_error(request, client_address)

    def _hang_up(self, whom: Iterable[Any]) -> None:
        for who in whom:
            with contextlib.suppress(OSError):
                self.strangers.pop(who)[0].shutdown(socket.SHUT_RDWR)
