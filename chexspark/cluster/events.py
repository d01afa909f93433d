"""Where the ranks' events arrive, as they happen. Runs on the driver.

In: JSON lines over TCP, from ranks that know the token. Out: calls of a handler, one at a time, and
what is known of each rank. Horovod carries the ranks' output too, but hands it over in pieces of
64 KB: minutes late.
"""

import contextlib
import errno
import hmac
import secrets
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from chexspark.cluster.doors import Door, GuardedServer
from chexspark.training.events import (
    BEAT_SECONDS,
    STOP,
    TOKENS,
    Alive,
    Beat,
    Connected,
    Done,
    Event,
    EventAddress,
    Failed,
    Step,
    decode,
    keep_alive,
)

BEATS_MISSED = 4  # after which a process stands still
LONGEST_LINE = 1 << 16
UNREACHABLE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}
FIRST_STEP_SECONDS = 900.0  # that a rank may be silent while it starts and compiles


@dataclass
class ConnectedRank:
    """One rank's connection: who it is, when it last spoke of its work, and how it ended."""

    rank: int
    host: str
    connection: Any  # of `EventServer`: a `socketserver.StreamRequestHandler`
    spoke: float
    beat: float = 0.0  # when its process last gave a sign
    working: bool = False  # has taken a step
    done: bool = False
    lost: bool = False
    answers: bool = True  # its host does

    def __str__(self) -> str:
        return f"{self.rank} on {self.host}"

    @property
    def address(self) -> str:
        """Of its host, as the driver sees it."""
        return self.connection.client_address[0]


class EventServer:
    """A context manager; inside it, `address` is what a rank needs to send events.

    `handle` takes the rank that an event is of, and the event: all but signs of life. It is called
    by one thread at a time.
    """

    def __init__(self, door: Door, num_proc: int, handle: Callable[[int, Event], None]) -> None:
        self.token = secrets.token_hex(16)
        self.ranks: dict[int, ConnectedRank] = {}
        self.lock = threading.Lock()
        self.num_proc = num_proc
        self.handle, self.stopping, self.over = handle, False, False
        self.tokens: bytes | None = None  # the last that were told
        outer = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                token = self.rfile.readline(LONGEST_LINE).strip()
                if hmac.compare_digest(token, outer.token.encode()):
                    outer.server.admit(self.client_address)
                    outer.listen(self)

        self.server = door.open(lambda address: GuardedServer(address, Connection))
        self.address = EventAddress(door.host, self.server.server_address[1], self.token)

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hang_up()
        self.server.shutdown()
        self.server.server_close()

    def listen(self, connection: Any) -> None:
        """Take a rank's events until its connection ends, or says what is no event."""
        rank = None
        keep_alive(connection.connection)
        try:
            while text := connection.rfile.readline(LONGEST_LINE):
                if not text.endswith(b"\n"):
                    break  # the rank ended within a line
                try:
                    event = decode(text)
                except ValueError:
                    break  # no rank of ours: it counts as lost
                with self.lock:
                    if isinstance(event, Connected):
                        if not 0 <= event.rank < self.num_proc:
                            break
                        rank = self.take_up(event, connection)
                        if self.over:
                            break
                    elif rank:
                        self.take(rank, event)
        except OSError as error:
            if rank:
                rank.answers = error.errno not in UNREACHABLE
        finally:
            if rank and not rank.done:
                rank.lost = True

    def take_up(self, event: Connected, connection: Any) -> ConnectedRank:
        """Note a rank that has come; tell it what it has missed."""
        rank = ConnectedRank(event.rank, event.host, connection, time.monotonic())
        self.ranks[rank.rank] = rank
        if self.tokens:
            connection.wfile.write(TOKENS + self.tokens + b"\n")
        if self.stopping and not self.over:
            connection.wfile.write(STOP + b"\n")
        return rank

    def take(self, rank: ConnectedRank, event: Event) -> None:
        """Note what an event says of its rank; hand it on if it says more."""
        rank.beat = time.monotonic()
        if not isinstance(event, Beat):
            rank.spoke = rank.beat
        rank.working |= isinstance(event, Step)
        rank.done |= isinstance(event, (Done, Failed))
        if not isinstance(event, (Beat, Alive, Done)):
            with contextlib.suppress(OSError):  # of a screen that is gone; the rank is not
                self.handle(rank.rank, event)

    def tell(self, event: Event) -> None:
        """Hand an event of the driver's own to the handler, as if rank 0 had sent it."""
        with self.lock:
            self.handle(0, event)

    def still_there(self) -> bool:
        """Whether a rank that has come has neither ended nor hung up."""
        return any(not (rank.done or rank.lost) for rank in list(self.ranks.values()))

    def lost(self) -> ConnectedRank | None:
        """A rank whose connection ended before its work did."""
        return next((rank for rank in list(self.ranks.values()) if rank.lost), None)

    def stalled(self, seconds: float) -> list[ConnectedRank]:
        """The ranks that have done nothing for so long, or longer before their first step.

        When one does nothing, all wait for it. Those whose processes stand still are named alone;
        where none does, all that are silent.
        """
        now, first = time.monotonic(), max(seconds, FIRST_STEP_SECONDS)
        silent = {
            rank.rank: (now - rank.spoke) / (seconds if rank.working else first)
            for rank in list(self.ranks.values())
            if not rank.done
        }
        if max(silent.values(), default=0) <= 1:
            return []
        found = [self.ranks[rank] for rank in sorted(silent) if silent[rank] > 0.5]
        still = [rank for rank in found if now - rank.beat > BEATS_MISSED * BEAT_SECONDS]
        return still or found

    def ask_to_stop(self) -> None:
        """Ask all ranks, those too that are yet to come, to end after a step, with a checkpoint."""
        self.stopping = True
        self._each(lambda rank: rank.connection.wfile.write(STOP + b"\n"))

    def tell_tokens(self, sealed: bytes) -> None:
        """Give all ranks, those too that are yet to come, new tokens of Hadoop's."""
        self.tokens = sealed
        self._each(lambda rank: rank.connection.wfile.write(TOKENS + sealed + b"\n"))

    def hang_up(self) -> None:
        """End all connections: ranks that still run, or start now, end themselves."""
        self.over = True
        self._each(lambda rank: rank.connection.connection.shutdown(2))

    def _each(self, do: Callable[[ConnectedRank], Any]) -> None:
        for rank in list(self.ranks.values()):
            with contextlib.suppress(OSError, ValueError):
                do(rank)
