"""What one rank runs, from its first line to its last. Runs on ranks.

In: the config and where events go, by value. Out: the rank's facts; ``RUN/logs/rank-N.log`` with
what the rank and its libraries say. The heavy imports stand inside the function: the driver
imports this module to send it.
"""

import contextlib
import errno
import gc
import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO

from pyarrow.fs import LocalFileSystem

from chexspark.config import TrainConfig
from chexspark.data.plan import RankFacts
from chexspark.run.folder import run_folder
from chexspark.run.lineage import Lineage, Placed, write_lineage
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.seen_patients import write_seen_patients
from chexspark.storage import Location, locate
from chexspark.store.manifest import Manifest, read_manifest
from chexspark.tensorflow_import import import_tensorflow
from chexspark.training.events import EventAddress, EventSender, Problem, Starting
from chexspark.training.faults import NotJoinedError, failure_of

CPU_CYCLE_MILLISECONDS = "5"  # Horovod's default of 1 cost a tenth of the rate on two cores
CANNOT_GROW = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL)
LOG_SECONDS = 5.0  # between two copies of a log to where files cannot grow
OTHERS_SECONDS = 2.0  # for the rank that knows more to say so, before this one ends the run
PACKAGES = ("tensorflow", "tf-keras", "horovod", "pyspark", "petastorm", "pyarrow", "numpy")


def run_rank(address: EventAddress, settings: ResolvedTraining) -> Placed:
    """Train as one rank among those that Horovod has started. Returns who ran where."""
    rank = int(os.environ["HOROVOD_RANK"])
    place = run_folder(settings.config.run).log_of(rank)
    with EventSender(address, rank) as events:
        logging.captureWarnings(True)
        signal.signal(signal.SIGTERM, lambda *_: events.stopping.set())
        with failure_told(events, f" (log: {place})"), rank_log(place), traceback_there():
            logging.getLogger().addHandler(Warnings(events))
            return train_as_rank(settings, events)


@contextlib.contextmanager
def failure_told(events: EventSender, where: str = "") -> Iterator[None]:
    """Tell the driver of an exception inside, whatever it is, and raise it again; `where`: more is said."""
    try:
        yield
    except Exception as error:
        failure = failure_of(error, events.rank, where)
        events.send(failure)
        if not failure.own and not events.stopping.is_set():
            time.sleep(OTHERS_SECONDS)
        raise


def train_as_rank(settings: ResolvedTraining, events: EventSender) -> Placed:
    """Join the ring and train."""
    events.send(Starting("TensorFlow"))
    gc.disable()  # until the network is there: until then objects come, and none goes
    import_tensorflow()
    from chexspark.training import horovod_ring
    from chexspark.training.loop import run_epochs

    facts, device, threads = join_ring(settings.config)
    ring = horovod_ring.HorovodRing()
    mine = Placed(rank=facts.rank, host=socket.gethostname(), device=device, threads=threads)
    ranks = ring.gather_objects(mine)
    store, run = locate(settings.config.data), run_folder(settings.config.run)
    manifest = read_manifest(store)
    if facts.rank == 0:
        events.send(Starting("the list of its patients"))
        seen = write_seen_patients(run, store, manifest)
        write_lineage(run, lineage_of(settings, manifest, seen, ranks))
    events.send(Starting("the model"))
    run_epochs(settings, manifest, facts, ring, events)
    horovod_ring.leave()
    return mine


def lineage_of(
    settings: ResolvedTraining, manifest: Manifest, seen: tuple[str, str], ranks: list[Placed]
) -> Lineage:
    """Where the run comes from; `seen`: salt and digest of the table of patients that it has seen."""
    lineage: Lineage = {
        "store": settings.config.data,
        "store_fingerprint": manifest.fingerprint,
        "split_hash": manifest.split_hash,
        "trained_patients": seen[1],
        "patient_salt": seen[0],
        "image_size": manifest.image_size,
        "fit": manifest.fit,
        "bit_depth": manifest.bit_depth,
        "findings": list(manifest.findings),
        "chexspark": version("chexspark"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "ranks": ranks,
    }
    if settings.image_size(manifest) != manifest.image_size:
        lineage["network_size"] = settings.image_size(manifest)
    if code := settings.code:
        lineage["network"], lineage["network_sha256"] = code.name, code.digest
    return lineage


def join_ring(config: TrainConfig) -> tuple[RankFacts, str, int]:
    """Claim this rank's device and start Horovod. Returns who it is, its device, its threads."""
    import pyarrow as pa

    from chexspark.training import horovod_ring
    from chexspark.training.devices import claim_device

    local_rank, local_size = (int(os.environ[f"HOROVOD_LOCAL_{n}"]) for n in ("RANK", "SIZE"))
    device, threads = claim_device(local_rank, local_size, config.threads)
    if device == "CPU" and not config.sync_batch_norm:
        # In each cycle all ranks talk, which a CPU that trains has to stop for. But a normalisation that
        # is synchronised waits for the next one, forward and backward, layer by layer.
        os.environ.setdefault("HOROVOD_CYCLE_TIME", CPU_CYCLE_MILLISECONDS)
    if config.trace:
        os.environ["HOROVOD_TIMELINE"] = "DYNAMIC"
    try:
        facts = horovod_ring.join()
    except ValueError as error:
        raise NotJoinedError(str(error)) from error
    # Arrow's own pool gives large buffers back to the system and takes them again, page by page:
    # reading a row group then costs several times the copy.
    pa.set_memory_pool(pa.system_memory_pool())
    return facts, device, threads


class Warnings(logging.Handler):
    """Sends warnings and errors to the driver too, but for what the libraries say of themselves."""

    QUIET = ("tensorflow", "absl", "py")

    def __init__(self, events: EventSender) -> None:
        super().__init__(logging.WARNING)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record to the driver."""
        if record.name.split(".")[0] not in self.QUIET:
            text = record.getMessage()
            self.events.send(Problem(self.events.rank, socket.gethostname(), text))


@contextlib.contextmanager
def traceback_there() -> Iterator[None]:
    """Write the traceback of an exception into the log before that is closed."""
    try:
        yield
    except Exception:  # of any kind, and raised again
        traceback.print_exc()
        raise


@contextlib.contextmanager
def rank_log(place: Location) -> Iterator[None]:
    """Send standard output, errors and logging of this process to the end of the file `place`.

    On a local file system as it is said; elsewhere, and on mounts where files cannot grow either, every few
    seconds.
    """
    with contextlib.ExitStack() as stack:
        grown = open_to_grow(place)
        file: IO[str] = stack.enter_context(grown or grown_elsewhere(place))
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
        )
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def open_to_grow(place: Location) -> IO[str] | None:
    """The local file, opened at its end; None where files cannot grow, as on mounts of object stores."""
    if not isinstance(place.filesystem, LocalFileSystem):
        return None
    try:
        return open(place.path, "a")
    except OSError as error:
        if error.errno in CANNOT_GROW:
            return None
        raise


@contextlib.contextmanager
def grown_elsewhere(place: Location) -> Iterator[IO[str]]:
    """A local file that starts with what is at `place`, and goes there whenever it has grown."""
    over = threading.Event()
    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        known = place.read_bytes() if place.is_file() else b""
        Path(file.name).write_bytes(known)
        file.seek(0, os.SEEK_END)

        def copy() -> None:
            size = len(known)
            while not over.wait(LOG_SECONDS):
                with contextlib.suppress(OSError):
                    if os.path.getsize(file.name) > size:
                        content = Path(file.name).read_bytes()
                        place.write_bytes(content)
                        size = len(content)

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        try:
            yield file
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                place.write_bytes(Path(file.name).read_bytes())
