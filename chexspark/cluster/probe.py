"""What one Spark task finds out about the place where a rank is to run. Runs in Spark tasks.

In: `Asked` and `Meeting`, and the task's number. Out: `PlaceFacts`. All three are dicts of plain values.
The functions are sent by value, so that they also run where chexspark is missing: at the top the
module imports the standard library alone.
"""

from __future__ import annotations  # so that the types are not sent along

import contextlib
import glob
import hashlib
import hmac
import importlib
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import secrets
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

PACKAGES = (
    "tensorflow",
    "tf-keras",
    "tensorboard",
    "horovod",
    "petastorm",
    "numpy",
    "pyarrow",
    "psutil",
)
CONNECT_SECONDS = (
    2.0  # from one rank to another, or to the driver: the systems do that, however busy
)
ANSWER_SECONDS = 20.0  # for a process that was reached to say who it is: its host may be busy
CHECK_SECONDS = 60.0  # for store and run to answer
ALIKE_SECONDS = 10.0  # that tasks which have met may differ in finishing
LOOPBACK = "127.0.0.1"
LONGEST_QUESTION = 256  # bytes, of what one rank asks another
CONNECTIONS = 64  # that one rank tries at a time
DRIVER_VERSION = "/sys/module/nvidia/version"
PACKED = "chexspark-env.json"  # in an environment that ``./build.sh pack`` made: what it needs
LIMITS = (  # of a container's memory: the most, what is taken, and where it says what of that is cache
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


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


class PlaceFacts(TypedDict, total=False):
    """What a task found of the place where a rank is to run; sizes in bytes."""

    rank: int
    host: str
    executor: str  # Spark's number, or "driver"
    gpus: list[str]  # that Spark assigned
    visible_gpus: list[str]  # that CUDA would show
    cores: int
    memory_bytes: int | None  # free; None where that cannot be known
    temp_disk: dict[str, int]  # folder → free
    run_disk: dict[str, int]  # the same of the run, where that is a local folder
    run_kept: int  # checkpoints that are in the run already
    versions: dict[str, str | None]  # package → version; None where it is missing
    horovod_library: bool  # Horovod was built for TensorFlow
    horovod_nvcc: str | None  # the CUDA compiler's version, where Horovod was built for GPUs
    nvidia_driver: str | None  # its version; None where no driver is loaded
    open_files: int | None  # that a process may have; None: any number
    glibc: str | None  # its version; None where the C library is another one
    glibc_needed: str | None  # by the packed environment; None where it is none
    met: bool  # the task ran at the same time as the others
    clock: float  # the host's, when all had met: seconds
    driver_clock: tuple[float, float]  # the driver's, before that and after; the driver adds it
    driver: str | None  # why the driver was not reached, at which address
    address: str  # of the interface that leads to the driver, over which ranks reach each other
    reached: (
        dict[int, list[int]] | str
    )  # other rank → its ports that were not; or why none was reached
    store: str | None  # why the store cannot be read
    run: str | None  # why the run cannot be written


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


def look_around(rank: int, gpus: list[str]) -> PlaceFacts:
    """What the process sees by itself; `gpus`: the addresses that Spark assigned."""
    folder = tempfile.gettempdir()
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "executor": executor(),
        "gpus": gpus,
        "visible_gpus": visible_gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": free_memory(),
        "temp_disk": {folder: shutil.disk_usage(folder).free},
        "versions": versions(),
        "horovod_library": horovod_library(),
        "horovod_nvcc": horovod_nvcc(),
        "nvidia_driver": nvidia_driver(),
        "open_files": open_files(),
        "glibc": glibc(),
        "glibc_needed": glibc_needed(),
    }


def executor() -> str:
    """Spark's number of the executor: it stands in the command line of the JVM above us."""
    with contextlib.suppress(ImportError, OSError):
        import psutil

        for process in psutil.Process().parents():
            command = process.cmdline()
            if "--executor-id" in command[:-1]:
                return command[command.index("--executor-id") + 1]
    return "driver"


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show to a process of this task, whatever Spark has assigned."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    nodes = glob.glob("/dev/nvidia[0-9]*")
    return sorted((node.removeprefix("/dev/nvidia") for node in nodes), key=int)


def free_memory() -> int | None:
    """Bytes that new processes may take: of the host, or of the container where that is less."""
    try:
        import psutil
    except ImportError:
        return None
    free = psutil.virtual_memory().available
    for most, taken, cache in LIMITS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such limit
            root = Path("/sys/fs/cgroup")
            pairs = (root / taken).with_name("memory.stat").read_text().split()
            kept = int(dict(zip(pairs[::2], pairs[1::2], strict=True))[cache])
            left = int((root / most).read_text()) - int((root / taken).read_text()) + kept
            free = min(free, left)
    return max(0, free)


def versions() -> dict[str, str | None]:
    """Package → version; None where it is missing. TensorFlow and Horovod are not imported."""
    import pyspark  # which may come with Spark itself, then without metadata

    found: dict[str, str | None] = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "pyspark": pyspark.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    try:
        chexspark = importlib.import_module("chexspark")
        found["chexspark"] = f"{chexspark.__version__}+{code_digest(chexspark.__path__[0])}"
    except ImportError:
        found["chexspark"] = None
    return found


def code_digest(folder: str) -> str:
    """Eight digits that differ where a package's files do: a version says little of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.py"), recursive=True)):
        digest.update(os.path.relpath(path, folder).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:8]


def horovod_library() -> bool:
    """Whether Horovod was built for TensorFlow; its library would take seconds to load."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        folder = importlib.metadata.distribution("horovod").locate_file("horovod/tensorflow")
        return bool(glob.glob(os.path.join(str(folder), "mpi_lib*.so")))
    return False


def horovod_nvcc() -> str | None:
    """The version of nvcc that Horovod's code for GPUs is of, which ``build.sh`` has noted; or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        noted = importlib.metadata.distribution("horovod").locate_file("horovod/nvcc.py")
        found = re.search(r'VERSION = "([\d.]+)"', Path(str(noted)).read_text())
        return found[1] if found else None
    return None


def nvidia_driver() -> str | None:
    """The version of the driver that is loaded, as its kernel module says."""
    with contextlib.suppress(OSError):
        return Path(DRIVER_VERSION).read_text().strip()
    return None


def open_files() -> int | None:
    """How many files and connections a process of this task may have open; None: any number."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def glibc() -> str | None:
    """The version of the C library; None where it is another one."""
    with contextlib.suppress(OSError, ValueError):  # a name that it does not know
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ") or None
    return None


def glibc_needed() -> str | None:
    """The oldest glibc that this Python's environment runs with, as far as ``./build.sh pack`` has noted it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((Path(sys.prefix) / PACKED).read_text()).get("glibc")
    return None


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
