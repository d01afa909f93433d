"""What a rank and the driver tell each other while it works. Runs on ranks and the driver.

In: events, dataclasses of plain values. Out: JSON lines to the driver, and events again there; the
driver's words: to stop, and Hadoop's tokens when there are new ones. Who speaks is known by the connection, from its first event, `Connected`.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self, get_type_hints

from chexspark.hdfs import take_sealed
from chexspark.json_types import fits

CONNECT_SECONDS = 30
STOP = b"stop"
TOKENS = b"tokens "  # and sealed tokens of Hadoop's
LONGEST_WORD = 1 << 20  # bytes of a line of the driver's
GRACE_SECONDS = 3.0  # for a last checkpoint, when the driver is gone or has hung up
BEAT_SECONDS = 1.0  # between two signs that the process itself runs, whatever it waits for
LONGEST_TEXT = 10_000  # characters of one value
SILENT_SECONDS, ASKED_EVERY, ASKED_TIMES = 4, 2, 3  # a host that is down is noticed after ten


@dataclass(frozen=True)
class Event:
    """Something that a handler of the driver is told of."""


@dataclass(frozen=True)
class Connected(Event):
    """The first of every rank."""

    rank: int
    host: str


@dataclass(frozen=True)
class Beat(Event):
    """The process runs, whatever it waits for."""


@dataclass(frozen=True)
class Alive(Event):
    """The rank works."""


@dataclass(frozen=True)
class Done(Event):
    """The last one, of a rank that returns."""


@dataclass(frozen=True)
class Failed(Event):
    """The last one, of a rank that is ended by an exception; see `faults.failure_of`."""

    rank: int
    host: str
    message: str
    user_error: bool  # a mistake of the user
    own: bool  # it began here, and not on another rank
    may_pass: bool  # another attempt may go well
    stopped: bool  # a stop was heeded


@dataclass(frozen=True)
class Note(Event):
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Problem(Event):
    """A warning of a rank's log."""

    rank: int
    host: str
    text: str


@dataclass(frozen=True)
class Starting(Event):
    """What takes long before the first step."""

    what: str


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Validating(Event):
    """An epoch's steps are done."""

    epoch: int


@dataclass(frozen=True)
class Epoch(Event):
    """An epoch is over: of its row of the history, what is shown."""

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float | None
    learning_rate: float
    images_per_second: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class Round(Event):
    """Of the benchmark: a round begins, counted from 0."""

    round: int


@dataclass(frozen=True)
class Waiting(Event):
    """The driver's own: `tasks` and `started` (processes) of `ranks`, in `slots` task slots."""

    slots: int
    tasks: int
    started: int
    ranks: int
    seconds: float  # since the start


@dataclass(frozen=True)
class Placed(Event):
    """The driver's own: all ranks have started; `hosts`: of rank 0, 1 and so on."""

    hosts: tuple[str, ...]


OF_RANKS: tuple[type[Event], ...] = (
    Connected, Beat, Alive, Done, Failed, Note, Problem, Starting, Step, Validating, Epoch, Round,
)  # fmt: skip
BY_NAME = {kind.__name__.lower(): kind for kind in OF_RANKS}
TYPES = {kind: get_type_hints(kind) for kind in OF_RANKS}


def encode(event: Event) -> bytes:
    """An event of a rank as a line of JSON; texts that are too long are cut."""
    values = {
        name: value[:LONGEST_TEXT] if isinstance(value, str) else value
        for name, value in dataclasses.asdict(event).items()
    }
    return json.dumps({"event": type(event).__name__.lower(), **values}).encode() + b"\n"


def decode(line: bytes) -> Event:
    """The event of a rank that a line says. Raises ValueError for any other line."""
    try:
        values = json.loads(line)
    except RecursionError as error:
        raise ValueError("a line is nested too deeply") from error
    if not isinstance(values, dict) or values.get("event") not in list(BY_NAME):
        raise ValueError("a line is no event of a rank")
    kind = BY_NAME[values.pop("event")]
    types = TYPES[kind]
    if values.keys() != types.keys():
        raise ValueError(f"{kind.__name__} has {', '.join(types) or 'nothing'}, and not {values}")
    for name, value in values.items():
        if not fits(value, types[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value!r}")
    return kind(**values)


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

    def __init__(self, address: EventAddress, rank: int) -> None:
        self.rank, self.stopping, self.done = rank, threading.Event(), False
        self.lock = threading.Lock()
        self.socket = socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        self.socket.settimeout(None)
        keep_alive(self.socket)
        self.socket.sendall(f"{address.token}\n".encode())
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        self.send(Connected(self.rank, socket.gethostname()))
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.done = True
        if kind is None:
            self.send(Done())
        self.socket.close()

    def send(self, event: Event) -> None:
        """Send one event. To a driver that is gone nothing is said."""
        try:
            with self.lock:
                self.socket.sendall(encode(event))
        except OSError:
            self.stopping.set()

    def _beat(self) -> None:
        while not self.done:
            self.send(Beat())
            time.sleep(BEAT_SECONDS)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self.socket.makefile("rb") as words:
            while word := words.readline(LONGEST_WORD):
                if word.strip() == STOP:
                    self.stopping.set()
                elif word.startswith(TOKENS):
                    with contextlib.suppress(ValueError):  # not of this run's driver
                        take_sealed(word.removeprefix(TOKENS).strip())
        if not self.done:
            self.stopping.set()
            time.sleep(GRACE_SECONDS)
            if not self.done:
                os._exit(1)
