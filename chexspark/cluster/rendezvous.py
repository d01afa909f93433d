"""Where tasks wait for each other, and the driver sees who has come. Runs on the driver.

In: one value per task and round, as JSON over TCP, from tasks that know the token. Out: the values
of all, to each. Spark's barrier mode would do this too, but not under dynamic allocation; where
slots are short it tries for ten minutes, and it does not say which tasks have come.
"""

import hmac
import json
import secrets
import socketserver
import threading
import time
from collections import defaultdict
from typing import Any, Self

from chexspark.cluster.doors import Door, GuardedServer

FIRST = "start"  # the round to which all are to come
ROUNDS = (FIRST, "end")
LONGEST_LINE = 1 << 20


class Rendezvous:
    """A context manager; inside it, tasks may `probe.gather` at `port`.

    The round ``start`` ends when all have come, when `seconds` have passed or when it is told to; who
    comes later is sent away with an empty answer. Other rounds wait for those that were in it, for
    `after_seconds` from its end at most.
    """

    def __init__(self, door: Door, num_tasks: int, seconds: float, after_seconds: float) -> None:
        self.token = secrets.token_hex(16)
        self.num_tasks, self.after_seconds = num_tasks, after_seconds
        self.until = time.monotonic() + seconds  # of the round ``start``
        self.rounds: dict[str, dict[int, Any]] = defaultdict(dict)  # rank → value, by round
        self.changed = threading.Condition()
        self.closed = False
        rendezvous = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                token = self.rfile.readline(LONGEST_LINE).strip()
                if hmac.compare_digest(token, rendezvous.token.encode()):
                    rendezvous.server.admit(self.client_address)
                    said = rendezvous.checked(self.rfile.readline(LONGEST_LINE))
                    if said:
                        self.wfile.write((json.dumps(rendezvous.wait(*said)) + "\n").encode())

        self.server = door.open(lambda address: GuardedServer(address, Connection))
        self.port = self.server.server_address[1]

    def checked(self, line: bytes) -> tuple[str, int, Any] | None:
        """Round, rank and value of a line; None where it says no such thing."""
        try:
            said = json.loads(line)
            name, rank, value = said["round"], said["rank"], said["value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        known = name in ROUNDS and type(rank) is int and 0 <= rank < self.num_tasks
        return (name, rank, value) if known else None

    def wait(self, name: str, rank: int, value: Any) -> dict[int, Any]:
        """Add a value to a round; return the round's values when it ends."""
        with self.changed:
            came, is_first = self.rounds[name], name == FIRST
            if is_first and self.is_over() and rank not in came:  # a task may be run again
                return {}
            came[rank] = value
            if is_first and len(came) == self.num_tasks:
                self.until = min(self.until, time.monotonic())
            self.changed.notify_all()
            while not self.closed and (seconds := self._seconds_left(name)) > 0:
                self.changed.wait(seconds)
            return dict(came)

    def _seconds_left(self, name: str) -> float:
        """Until a round ends."""
        left = self.until - time.monotonic()
        if name == FIRST:
            return left
        all_came = len(self.rounds[name]) >= len(self.rounds[FIRST])
        return 0.0 if all_came and left <= 0 else left + self.after_seconds

    def end_start(self) -> None:
        """End the round ``start``: no other task will come."""
        with self.changed:
            self.until = min(self.until, time.monotonic())
            self.changed.notify_all()

    def is_over(self) -> bool:
        """Whether the round ``start`` has ended."""
        return time.monotonic() >= self.until

    def values(self, name: str) -> list:
        """What has been brought to a round so far, in the order of ranks."""
        with self.changed:
            return [value for _, value in sorted(self.rounds[name].items())]

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self.changed:
            self.closed = True  # who waits is told what has come
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
