"""What a rank and the driver tell each other while it works. Runs on ranks.

In: events by name, with plain values, as JSON lines to the driver. Out: the driver's word to stop.
"""

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TypedDict

CONNECT_SECONDS = 30
STOP = b"stop"
GRACE_SECONDS = 3.0  # for a last checkpoint, when the driver is gone or has hung up
BEAT_SECONDS = 1.0  # between two signs that the process itself runs, whatever it waits for
LONGEST_TEXT = 10_000  # characters of one value
SILENT_SECONDS, ASKED_EVERY, ASKED_TIMES = 4, 2, 3  # a host that is down is noticed after ten


class Event(TypedDict):
    """What every event has; `rank`: who sent it."""

    event: str  # a key of EVENTS
    rank: int


class Connected(Event):
    """The first of every rank."""

    host: str


class Failed(Event):
    """A rank ended by an exception; for the rest see `faults.failure_of`."""

    host: str
    message: str
    user_error: bool
    own: bool
    may_pass: bool
    stopped: bool


class Note(Event):
    """A line for the user."""

    text: str


class Problem(Event):
    """A warning of a rank's log."""

    host: str
    text: str


class Starting(Event):
    """What takes long before the first step."""

    what: str


class Step(Event):
    """A step is done: `step` of `steps` in `epoch`, which counts from 0, of `epochs`."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # mean of the epoch so far
    learning_rate: float
    images_per_second: float  # over all ranks
    seconds_left: float  # of the run


class Validating(Event):
    """An epoch's steps are done."""

    epoch: int


class Epoch(Event):
    """An epoch is over: a row of the history, of which these are shown."""

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float | None
    learning_rate: float
    images_per_second: float
    seconds: float
    best: bool


class Waiting(Event):
    """The driver's own: `tasks` and `started` (processes) of `ranks`, in `slots` task slots."""

    slots: int
    tasks: int
    started: int
    ranks: int
    seconds: float  # since the start


class Placed(Event):
    """The driver's own: all ranks have started; `hosts`: of rank 0, 1 and so on."""

    hosts: list[str]


class Round(Event):
    """Of the benchmark: a round begins, counted from 0."""

    round: int


EVENTS: dict[str, type] = {
    "connected": Connected,
    "beat": Event,  # the process runs, whatever it waits for
    "alive": Event,  # it works
    "starting": Starting,
    "note": Note,
    "problem": Problem,
    "step": Step,
    "validating": Validating,
    "epoch": Epoch,
    "done": Event,  # the last one, of a rank that returns
    "failed": Failed,  # the last one, of a rank that does not
    "waiting": Waiting,
    "placed": Placed,
    "round": Round,
}


@dataclass(frozen=True)
class EventAddress:
    """Where the driver listens, and the token that says who may speak."""

    host: str
    port: int
    token: str


def keep_alive(connection: socket.socket) -> None:
    """Let the system ask the other host, when it is silent, whether it is there.

    Without it a connection to a host that lost power or network stays open for hours.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    lost_after = SILENT_SECONDS + ASKED_EVERY * ASKED_TIMES
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS), ("TCP_KEEPINTVL", ASKED_EVERY),
        ("TCP_KEEPCNT", ASKED_TIMES), ("TCP_USER_TIMEOUT", lost_after * 1000),
    ):  # fmt: skip
        if hasattr(socket, name):  # not all systems have all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class EventSender:
    """A context manager around one rank's connection to the driver.

    `stopping` is set when the driver asks to stop. When the driver hangs up, or dies, this process
    ends soon after, wherever it hangs itself: no rank outlives its run.
    """

    def __init__(self, address: EventAddress, rank: int):
        self.rank, self.stopping, self.done = rank, threading.Event(), False
        self.lock = threading.Lock()
        self.socket = socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        self.socket.settimeout(None)
        keep_alive(self.socket)
        self.socket.sendall(f"{address.token}\n".encode())
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self):
        self.send("connected", host=socket.gethostname())
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind, error, trace):
        self.done = True
        if kind is None:
            self.send("done")
        self.socket.close()

    def send(self, event: str, **values) -> None:
        """Send one event; `values` must be JSON. To a driver that is gone nothing is said."""
        values = {k: v[:LONGEST_TEXT] if isinstance(v, str) else v for k, v in values.items()}
        line = json.dumps({"event": event, "rank": self.rank, **values})
        try:
            with self.lock:
                self.socket.sendall(f"{line}\n".encode())
        except OSError:
            self.stopping.set()

    def _beat(self) -> None:
        while not self.done:
            self.send("beat")
            time.sleep(BEAT_SECONDS)

    def _listen(self) -> None:
        try:
            while heard := self.socket.recv(64):
                if STOP in heard:
                    self.stopping.set()
        except OSError:
            pass
        if not self.done:
            self.stopping.set()
            time.sleep(GRACE_SECONDS)
            if not self.done:
                os._exit(1)
