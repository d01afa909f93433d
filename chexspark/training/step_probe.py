"""The step of a training, its exchange and its input, timed. Runs on ranks.

In: settings of a run, who this rank is, its ring. Out: `StepFacts`. All ranks work through the same list at the same
time, so that what they take from each other, of a host or of a network, is in the figures.
"""

import itertools
import socket
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from chexspark.data.pipeline import StepInputs, tensors
from chexspark.data.plan import RankFacts, fixed_plan
from chexspark.data.reader import SplitReader
from chexspark.run.resolved import ResolvedTraining
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.training.events import Alive, EventSender, Starting
from chexspark.training.feed import Feed
from chexspark.training.ring import Alone, Ring
from chexspark.training.setup import make_model, make_steps
from chexspark.training.step import Steps
from chexspark.training.step_facts import Exchange, StepFacts

SECONDS, LEAST_STEPS, MOST_STEPS = 12.0, 4, 60  # of each kind of step
MESSAGES = (1 << 16, 1 << 20, 1 << 22, 1 << 24)  # bytes of timed allreduces
MESSAGE_TIMES, PINGS, BATCHES = 8, 50, 8
PING_SECONDS = 5.0  # until the next rank counts as out of reach


class StepProbe:
    """What is measured, one after the other. `here`: a connected socket at whose address
    other ranks reach this one."""

    def __init__(
        self, settings: ResolvedTraining, facts: RankFacts, ring: Ring, events: EventSender,
        here: socket.socket,
    ) -> None:  # fmt: skip
        self.settings, self.facts, self.ring = settings, facts, ring
        self.events, self.here = events, here
        self.store = locate(settings.config.data)
        self.manifest = read_manifest(self.store)

    def measure(self, on_cpu: bool = True) -> StepFacts:
        """All of it. On a GPU, `ready` is not measured: what is there is only queued."""
        self.events.send(Starting("the model"))
        batch, input_seconds = self.read()
        steps = self.make_steps()
        timed = TimedRing(steps)
        alone, rows = alike(steps, timed, steps.batch_size), steps.batch_size
        self.events.send(Starting("the timing of steps"))
        alone_seconds, ready = self.time(lambda: timed.train(alone, batch))
        half_seconds: list[float] = []
        if rows % (2 * self.settings.config.accumulate) == 0:
            half, part = alike(steps, Alone(), rows // 2), part_of(batch, rows // 2)
            half_seconds, _ = self.time(lambda: half.train(part))
        together, _ = self.time(lambda: steps.train(batch))
        self.events.send(Starting("the timing of messages"))
        return StepFacts(
            host=socket.gethostname(), rows=rows, messages=timed.bytes,
            ready=tuple(map(statistics.median, zip(*ready, strict=True)))
            if on_cpu
            else evenly(len(timed.bytes), statistics.median(alone_seconds)),
            alone=tuple(alone_seconds), half=tuple(half_seconds), together=tuple(together),
            exchange=tuple(map(self.exchange, MESSAGES)), latency=self.latency(),
            input=input_seconds, score=self.score(steps),
        )  # fmt: skip

    def read(self) -> tuple[StepInputs, float]:
        """A batch to train on, and the seconds that it takes to read one, nothing being done meanwhile."""
        feed = Feed(self.reader("train"), self.settings, self.facts)
        self.all_are_here()
        began = time.perf_counter()
        batches = feed.batches(0)
        found = list(itertools.islice(batches, BATCHES))
        seconds = time.perf_counter() - began
        batches.close()
        return found[0], seconds / len(found)

    def reader(self, split: str) -> SplitReader:
        """Of a split, as the training reads it."""
        size = self.settings.image_size(self.manifest)
        return SplitReader(self.store, self.manifest, split, size=size)

    def make_steps(self) -> Steps:
        """The steps of the training."""
        model, _ = make_model(
            self.settings.config, self.settings.image_size(self.manifest), self.manifest.findings,
            self.settings.code,
        )  # fmt: skip
        return make_steps(self.settings, self.manifest, self.facts, self.ring, model)

    def all_are_here(self) -> None:
        """Wait for the other ranks."""
        self.ring.sum([0.0], "all_are_here")

    def time(self, one: Callable) -> tuple[list[float], list]:
        """Seconds of steps, and what each returned; all ranks take as many."""
        one()  # compiles
        self.all_are_here()
        began = time.perf_counter()
        one()
        longest = max(self.ring.gather_objects(time.perf_counter() - began))
        seconds, returned = [], []
        for _ in range(max(LEAST_STEPS, min(MOST_STEPS, int(SECONDS / longest)))):
            began = time.perf_counter()
            returned.append(one())
            seconds.append(time.perf_counter() - began)
            self.events.send(Alive())
        return seconds, returned

    def exchange(self, size: int) -> Exchange:
        """Time allreduces of so many bytes."""
        values, times = tf.zeros(size // 4), []
        for _ in range(1 + MESSAGE_TIMES):
            self.all_are_here()
            began = time.perf_counter()
            self.ring.sum_tensor(values, f"timed_{size}").numpy()
            times.append(time.perf_counter() - began)
        return Exchange(size, statistics.median(times[1:]))  # the first one is negotiated

    def score(self, steps: Steps) -> float:
        """Seconds to score a batch of the validation split."""
        reader = self.reader("val")
        plan = fixed_plan(reader.row_groups, steps.batch_size, self.facts)
        batch = next(tensors(reader.batches(plan[:1])))
        seconds, _ = self.time(lambda: steps.score(batch))
        return statistics.median(seconds)

    def latency(self) -> float:
        """Seconds of a byte to the next rank."""
        own = self.here.getsockname()[0]
        with socket.create_server((own, 0), family=self.here.family) as server:
            places = self.ring.gather_objects(server.getsockname()[:2])
            threading.Thread(target=echo, args=(server,), daemon=True).start()
            try:
                return ping(places[(self.facts.rank + 1) % len(places)])
            except OSError:
                return 0.0
            finally:
                self.all_are_here()


def ping(place: tuple[str, int]) -> float:
    """Half of the seconds of a byte to who sends it back. Raises OSError where nobody does."""
    with socket.create_connection(place, PING_SECONDS) as there:
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(PINGS):
            began = time.perf_counter()
            there.sendall(b"\n")
            there.recv(1)
            times.append(time.perf_counter() - began)
    return statistics.median(times) / 2


def echo(server: socket.socket) -> None:
    """Send back what one who connects has sent, until he ends."""
    there, _ = server.accept()
    with there:
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while said := there.recv(1):
            there.sendall(said)


def alike(steps: Steps, ring: Ring, rows: int) -> Steps:
    """The same steps in another ring, of so many rows."""
    return Steps(
        steps.model, steps.optimizer, rows, ring, steps.augmentation, steps.loss, steps.settings
    )


def part_of(batch: StepInputs, rows: int) -> StepInputs:
    """The first rows of a batch."""
    return StepInputs(*(values[:rows] for values in batch))


def evenly(messages: int, seconds: float) -> tuple[float, ...]:
    """When messages are ready in a step of so many seconds, of which the backward pass takes the last two thirds."""
    return tuple(seconds * (1 + 2 * (number + 1) / messages) / 3 for number in range(messages))


def clock(_: np.ndarray) -> float:
    """The time in seconds, of when a value, float (), is there."""
    return time.time()


class TimedRing(Alone):
    """A ring of one that notes when each message of gradients is ready."""

    def __init__(self, steps: Steps) -> None:
        groups = [[steps.variables[number] for number in group] for group in steps.groups()]
        size = 2 if steps.fp16 else 4  # on the wire
        self.bytes = tuple(sum(size * v.shape.num_elements() for v in group) for group in groups)
        self.times = {
            f"gradients_{number}": tf.Variable(0.0, dtype=tf.float64, trainable=False)
            for number in range(len(groups))
        }

    def sum_tensor(self, tensor: tf.Tensor, name: str, half: bool = False) -> tf.Tensor:
        """The tensor itself; when it is there is noted."""
        if name in self.times:
            # No `tf.timestamp`: TensorFlow lets it wait for whatever has state, and so for all gradients.
            now = tf.numpy_function(clock, [tensor[0, 0]], tf.float64, stateful=False)
            self.times[name].assign(now)
        return tensor

    def train(self, steps: Steps, batch: StepInputs) -> list[float]:
        """Take a step; return the seconds from its start to each message."""
        began = time.time()
        steps.train(batch)
        return [float(each) - began for each in self.times.values()]
