"""Spark tasks meet where ranks are to run, and reach for each other, the store and the run. Runs in tasks.

In: `Asked` and `Meeting`, and the task's number. Out: `PlaceFacts`. All three are dicts of plain values.
The functions are sent by value, so that they also run where chexspark is missing: they need the standard
library alone, and the functions of `place`, which are sent along.
"""

from __future__ import annotations  # so that the types are not sent along

import contextlib
import glob
import hmac
import json
import random
import secrets
import shutil
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

from chexspark.cluster.place import PlaceFacts, look_around

CONNECT_SECONDS = (
    2.0  # from one rank to another, or to the driver: the systems do that, however busy
)
ANSWER_SECONDS = 20.0  # for a process that was reached to say who it is: its host may be busy
CHECK_SECONDS = 60.0  # for store and run to answer
ALIKE_SECONDS = 10.0  # that tasks which have met may differ in finishing
LOOPBACK = "127.0.0.1"
LONGEST_QUESTION = 256  # bytes, of what one rank asks another
CONNECTIONS = 64  # that one rank tries at a time


class Asked(TypedDict):
    """What a task is to find out about."""

    store: str  # path or URI
    fingerprint: str  # the store's
    manifest: str  # the name of the store's file that says the same
    files: list[str]  # of the store; a task opens one
    run: str | None  # path or URI
    run_folder: str | None  # where the run is a local folder
    mark: str | None  # a file that the driver has left in the run
    kept: str | None  # pattern of the run's checkpoints


class Meeting(TypedDict):
    """Where tasks meet: see `rendezvous`."""

    host: str
    port: int
    token: str
    seconds: float  # until the first round ends
    ports: list[int]  # of which a task takes one to listen at; none: any


class Address(TypedDict):
    """How a task is reached."""

    host: str
    address: str  # IPv4, of the interface that leads to the driver; empty where that is not known
    ports: list[int]


def make_probe(asked: Asked, meeting: Meeting) -> Callable[[int, Iterable[Any]], list[PlaceFacts]]:
    """A function for ``mapPartitionsWithIndex`` that yields the facts of one task.

    Nothing comes of a task that starts after the others have met without it.
    """

    def probe(rank: int, _: Iterable[Any]) -> list[PlaceFacts]:
        from pyspark import TaskContext

        context = TaskContext.get()
        resources = context.resources() if context else {}
        gpus = list(resources["gpu"].addresses) if "gpu" in resources else []
        place = meet(look_around(rank, gpus), asked, meeting)
        return [place] if place["met"] else []

    return probe


def meet(place: PlaceFacts, asked: Asked, meeting: Meeting) -> PlaceFacts:
    """Meet the other tasks, then reach for them, the store and the run, all at the same time."""
    rank, address = place["rank"], address_towards(meeting["host"])  # where Horovod will listen
    place |= {
        "met": True, "driver": None, "address": address, "reached": {}, "store": None, "run": None, "run_disk": {},
        "run_kept": 0,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        # A port that Horovod's task would have, and one of the system's, as the ring has.
        kinds = [meeting["ports"], []] if meeting["ports"] else [[]]
        ports = [stack.enter_context(listener(meeting["token"], rank, address, k)) for k in kinds]
        mine: Address = {"host": place["host"], "address": address, "ports": ports}
        try:
            ranks = gather(meeting, "start", rank, mine)
        except OSError as error:
            place["driver"] = f"{meeting['host']}:{meeting['port']} ({error})"
            return place
        place["clock"] = time.time()
        if rank not in ranks:
            place["met"] = False
            return place
        reached = in_background(reach_all, rank, mine, ranks, meeting["token"])
        store = in_background(store_fault, asked, rank)
        run = in_background(run_fault, asked, rank)
        until = time.monotonic() + CHECK_SECONDS
        place["reached"], place["store"], place["run"] = reached(until), store(until), run(until)
        folder, kept = asked["run_folder"], asked["kept"]
        if folder and kept and not place["run"]:
            place["run_disk"] = {folder: shutil.disk_usage(folder).free}
            place["run_kept"] = len(glob.glob(kept))
        # The ports stay open until all are done; and Spark hands over no result while a task waits
        # for a slot.
        with contextlib.suppress(OSError):
            gather(meeting, "end", rank, place)
    return place


def address_towards(host: str) -> str:
    """This host's IPv4 address on the way to another; empty where there is no way."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked,
    ):
        asked.connect((host, 9))  # sends nothing
        return str(asked.getsockname()[0])
    return ""


@contextlib.contextmanager
def listener(token: str, rank: int, bind: str, ports: list[int]) -> Iterator[int]:
    """Prove to whoever asks that this is the rank, and say nothing else; yields the port.

    `ports`: of which it is one; any where there are none. Raises OSError where none is free.
    """

    class Connection(socketserver.StreamRequestHandler):
        timeout = CONNECT_SECONDS

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # who does not ask
                asked = self.rfile.readline(LONGEST_QUESTION).strip()
                self.wfile.write(f"{proof(token, rank, asked)}\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    with first_free(lambda port: Server((bind, port), Connection), ports) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def first_free(make: Callable[[int], Any], ports: list[int]) -> Any:
    """What `make` makes of the first port that is free. Raises OSError where none is."""
    for port in random.sample(ports, len(ports)):
        with contextlib.suppress(OSError):
            return make(port)
    if ports:
        raise OSError(
            f"no port from {ports[0]} to {ports[-1]} is free on {socket.gethostname()}: widen spark.chexspark.ports"
        )
    return make(0)


def proof(token: str, rank: int, asked: bytes) -> str:
    """What only who knows the token can answer to a question; the question is a new one each time."""
    return hmac.new(token.encode(), b"rank %d %b" % (rank, asked), "sha256").hexdigest()


def gather(meeting: Meeting, round_name: str, rank: int, value: Any) -> dict[int, Any]:
    """Hand `value`, which must be JSON, to the driver and wait for those of all ranks; rank → value."""
    goal = meeting["host"], meeting["port"]
    with socket.create_connection(goal, CONNECT_SECONDS) as connection:
        connection.settimeout(meeting["seconds"] + CHECK_SECONDS + ALIKE_SECONDS)
        file = connection.makefile("rw")
        message = {"round": round_name, "rank": rank, "value": value}
        file.write(f"{meeting['token']}\n{json.dumps(message)}\n")
        file.flush()
        answer = file.readline()
        if not answer:
            raise ConnectionError("it hung up")
        return {int(who): value for who, value in json.loads(answer).items()}


def reach_all(
    rank: int, mine: Address, ranks: dict[int, Address], token: str
) -> dict[int, list[int]]:
    """Other rank → those of its ports at which it was not reached."""
    others = [other for other in ranks if other != rank]
    pairs = [(other, port) for other in others for port in ranks[other]["ports"]]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(
            pool.map(lambda pair: reach(mine, pair[0], ranks[pair[0]], pair[1], token), pairs)
        )
    lost = [pair for pair, is_reached in zip(pairs, found, strict=True) if not is_reached]
    return {other: [port for who, port in lost if who == other] for other in others}


def reach(mine: Address, other: int, theirs: Address, port: int, token: str) -> bool:
    """Whether another rank answers at a port. Loopback counts between ranks of one host."""
    if theirs["address"].startswith("127.") and mine["host"] != theirs["host"]:
        return False
    goal = theirs["address"], port
    with contextlib.suppress(OSError), socket.create_connection(goal, CONNECT_SECONDS) as their:
        their.settimeout(ANSWER_SECONDS)
        asked = secrets.token_hex(16).encode()
        their.sendall(asked + b"\n")
        said = their.makefile("rb").readline(LONGEST_QUESTION).strip()
        # Another host may have the same address, of a bridge for containers say.
        return hmac.compare_digest(said, proof(token, other, asked).encode())
    return False


def in_background(function: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
    """Start a function; what is returned waits for its value, or says that it took too long."""
    values: list[Any] = []

    def work() -> None:
        try:
            values.append(function(*arguments))
        except Exception as error:  # what a place cannot do is what is looked for
            values.append(" ".join(f"{type(error).__name__}: {error}".split()))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def answer(until: float) -> Any:
        thread.join(max(0.0, until - time.monotonic()))
        return values[0] if values else f"no answer within {CHECK_SECONDS:.0f} s"

    return answer


def store_fault(asked: Asked, rank: int) -> str | None:
    """What keeps this process from reading the store, in words."""
    import pyarrow.parquet as pq

    from chexspark.storage import locate

    store = locate(asked["store"])
    manifest = json.loads((store / asked["manifest"]).read_text())
    if manifest["fingerprint"] != asked["fingerprint"]:
        return "another store is there than on the driver"
    file = store / asked["files"][rank % len(asked["files"])]
    with file.filesystem.open_input_file(file.path) as source:
        pq.ParquetFile(source)
    return None


def run_fault(asked: Asked, rank: int) -> str | None:
    """What keeps this process from writing into the run, in words."""
    from chexspark.storage import locate

    place, mark = asked["run"], asked["mark"]
    if not (place and mark):
        return None
    run = locate(place)
    if not (run / mark).is_file():
        return "it is not the folder that the driver sees"
    mine = run / f"{mark}-{rank}-{uuid.uuid4().hex}"
    mine.write_bytes(b"x")
    mine.filesystem.delete_file(mine.path)
    return None
