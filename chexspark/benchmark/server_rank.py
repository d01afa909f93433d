"""A step whose weights lie on parameter servers, measured on one rank. Runs on ranks.

In: `Shared`. Out: `WayFound`, from rank 0. TensorFlow's own: ``tf.distribute.ParameterServerStrategy``. Each rank's
process has a server that computes and a server that holds parameters (a variable is whole, on one of them in turn);
in rank 0's is the coordinator, too. It gives out a step's rows of one rank as a piece of work to whoever is free, and
nobody waits for anybody: with more than one rank gradients may be of weights that have changed since (asynchronous
SGD, Dean et al. 2012).

Horovod brings the ranks together, so that they learn each other's addresses, and has left before anything is
measured. TensorFlow's servers listen on all interfaces and know no password; they end with the rank's process.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chexspark.benchmark.exchange import Sent, bytes_sent, shares
from chexspark.benchmark.shared_work import Shared, WayFound, look
from chexspark.tensorflow_import import import_tensorflow
from chexspark.training.events import EventAddress, EventSender
from chexspark.training.rank import failure_told, join_ring

if TYPE_CHECKING:
    import tensorflow as tf

JOBS = ("worker", "ps", "chief")  # TensorFlow's names; of the last there is one
PROTOCOL = "grpc"


class Places(NamedTuple):
    """Where a rank is reached, ``host:port`` each, and by Python's own connections at `meeting`."""

    worker: str
    ps: str
    chief: str
    meeting: tuple[str, int]


class Cluster(NamedTuple):
    """Where all ranks are, and the key to rank 0's `meeting`."""

    rank: int
    places: list[Places]
    key: bytes

    def addresses(self) -> dict[str, list[str]]:
        """As TensorFlow wants them."""
        found = {job: [getattr(places, job) for places in self.places] for job in JOBS}
        return found | {"chief": found["chief"][:1]}


def measure_servers(address: EventAddress, shared: Shared) -> WayFound | None:
    """Measure as one rank among those that Horovod has started."""
    rank = int(os.environ["HOROVOD_RANK"])
    with EventSender(address, rank) as events, failure_told(events):
        import_tensorflow()
        cluster, listener = meet(shared, events.socket.getsockname()[0])

        from chexspark.benchmark.distributed_step import use_one_thread

        use_one_thread()
        servers = start_servers(cluster)
        with listener:
            if rank:
                attend(cluster)
            found = None if rank else coordinate(shared, cluster, listener)
        del servers  # until here they are to be there
    return found


def meet(shared: Shared, own: str) -> tuple[Cluster, Listener]:
    """Tell the other ranks this one's places, at its address `own`, and learn theirs."""
    from chexspark.training import horovod_ring

    facts, *_ = join_ring(shared.training.config)
    ring = horovod_ring.HorovodRing()
    key = ring.from_first(secrets.token_bytes(32))
    listener = Listener((own, 0), backlog=shared.ranks, authkey=key)
    with free_ports(own, len(JOBS)) as ports:
        worker, ps, chief = (f"{own}:{port}" for port in ports)
        meeting = own, int(listener.address[1])
        places = ring.gather_objects(Places(worker, ps, chief, meeting))
    horovod_ring.leave()
    return Cluster(facts.rank, places, key), listener


@contextlib.contextmanager
def free_ports(own: str, count: int) -> Iterator[list[int]]:
    """Ports that are free at an address, and inside nobody else's."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((own, 0))) for _ in range(count)]
        yield [each.getsockname()[1] for each in held]


def start_servers(cluster: Cluster) -> list:
    """This rank's two servers of TensorFlow's, in this process."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=2
    )
    return [
        tf.distribute.Server(
            cluster.addresses(), job_name=job, task_index=cluster.rank, protocol=PROTOCOL, config=config
        )
        for job in ("worker", "ps")
    ]  # fmt: skip


def attend(cluster: Cluster) -> None:
    """Be there until rank 0 hangs up; say what this host has sent whenever it asks."""
    with (
        Client(cluster.places[0].meeting, authkey=cluster.key) as coordinator,
        contextlib.suppress(EOFError),
    ):
        while True:
            coordinator.recv()
            coordinator.send(look())  # fmt: skip


def coordinate(shared: Shared, cluster: Cluster, listener: Listener) -> WayFound:
    """Train on all ranks' servers as soon as they are there."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(listener.accept()) for _ in range(shared.ranks - 1)]
        return ServerTraining(shared, cluster).measure(lambda: looks(others))


def looks(others: list[Connection]) -> list[Sent]:
    """What the hosts of all ranks have sent."""
    for other in others:
        other.send(None)
    return [look(), *(other.recv() for other in others)]


class ServerTraining:
    """The coordinator's: a network whose variables are on the servers, and what workers do with it."""

    def __init__(self, shared: Shared, cluster: Cluster) -> None:
        import tensorflow as tf

        from chexspark.benchmark.distributed_step import build, rows_of_all

        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster.addresses()), task_type="chief", task_id=0, rpc_layer=PROTOCOL
        )  # fmt: skip
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self.shared, self.rows = shared, rows_of_all(shared)
        with strategy.scope():
            self.model = build(shared)
        self.variables = self.model.trainable_variables
        self.work = tf.function(
            self._work, input_signature=[tf.TensorSpec((), tf.int32)], autograph=False
        )

    def measure(self, looks: Callable[[], list[Sent]]) -> WayFound:
        """Take the steps; all workers have compiled theirs after the first."""
        from chexspark.benchmark.distributed_step import flat

        steps, ranks = self.shared.steps, self.shared.ranks
        losses, _ = self.take(1, first=0)
        before, began = looks(), time.perf_counter()
        more, times = self.take(steps, first=1)
        seconds = time.perf_counter() - began
        sent = bytes_sent(before, looks()) / ranks / steps
        pulled, computed, pushed = np.diff(times, axis=1).sum(axis=0) / ranks
        found = shares(seconds, [computed] * ranks, [pulled + pushed] * ranks)
        return WayFound(seconds, sent, found, losses + more, flat(self.variables))

    def take(self, steps: int, first: int) -> tuple[list[float], np.ndarray]:
        """Each step's rows of all ranks, from the step `first` on. Returns the losses, and the times of each piece
        of work, float64 (steps × ranks, 4): see `_work`. Raises what a worker raised."""
        import tensorflow as tf

        ranks = self.shared.ranks
        done = [
            self.coordinator.schedule(self.work, (tf.constant(number % len(self.rows.images)),))
            for number in range(first * ranks, (first + steps) * ranks)
        ]
        self.coordinator.join()
        parts, times = zip(*self.coordinator.fetch(done), strict=True)
        return np.reshape(parts, (steps, ranks)).sum(axis=1).tolist(), np.stack(times)

    def _work(self, at: Any) -> tuple["tf.Tensor", "tf.Tensor"]:
        """Rows' part of the loss, and float64 (4,): when it began, had all weights, all gradients, and applied them.

        The network does not wait for the last weights to begin: it computes for a part of the time until then.
        """
        import tensorflow as tf

        from chexspark.benchmark.distributed_step import loss_and_gradients

        began = tf.timestamp()
        images, labels, known = (tf.gather(tf.constant(values), at) for values in self.rows)
        loss, gradients = loss_and_gradients(self.model, images, labels, known)
        operations = tf.compat.v1.get_default_graph().get_operations()
        reads = [each.outputs[0] for each in operations if each.type == "ReadVariableOp"]
        here = tf.stack([tf.reshape(values, [-1])[0] for values in reads])
        with tf.control_dependencies([here]):
            pulled = tf.timestamp()
        with tf.control_dependencies([pulled, *gradients]):
            computed = tf.timestamp()
        with tf.control_dependencies([computed]):
            rate = self.shared.training.config.learning_rate
            pairs = zip(self.variables, gradients, strict=True)
            applied = [variable.assign_sub(rate * g, read_value=False) for variable, g in pairs]
        with tf.control_dependencies(applied):
            pushed = tf.timestamp()
        return loss, tf.stack([began, pulled, computed, pushed])
