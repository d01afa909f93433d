"""How a training would go at other numbers of ranks. Pure functions; run on the driver.

In: what ranks have measured (`StepFacts`), the sizes of the data. Out: for each number of ranks its `Forecast`, and
advice.

The model: every rank computes a step; its gradients are ready message by message on the way backward, and are summed
meanwhile, one message after the other, by ring-allreduce: of n ranks each sends and receives 2 (n − 1) / n of a
message, in 2 (n − 1) turns (Patarasuk and Yuan 2009). A step ends when the last message is summed and the slowest of the
ranks has computed: what is expected of the slowest comes from the spread of the measured steps. What a step takes at the
measured number of ranks beyond that (a processor that sends does not compute meanwhile, and ranks come a little early or
late to each message) is taken to be the same at others. Further ranks are taken to be on hosts and a network like those that were measured.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chexspark.progress import duration
from chexspark.training.step_facts import StepFacts

FEW_STEPS = 20  # of an epoch: with fewer the weights hardly move between two validations
WORTH = 0.7  # efficiency below which more ranks are not advised
CLEARLY = 1.1  # a ratio that is worth a line
HALF = 0.5  # of the bytes, as float16
FUSION_MB = 64  # that is advised, Horovod's own default
COMPUTE, NETWORK, SLOWEST, INPUT, DATA = (
    "compute", "network", "the slowest rank", "input", "few steps per epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Of the data, and of the training."""

    train_images: int
    val_images: int
    epochs: int


@dataclass(frozen=True)
class Forecast:
    """A training at so many ranks. Times are seconds."""

    ranks: int
    global_batch: int
    images_per_second: float
    efficiency: float  # of as many ranks that do not wait for each other
    steps_per_epoch: int
    step_seconds: float
    exchange_seconds: float  # of them, in which a rank waits for messages
    epoch_seconds: float  # with validation
    train_seconds: float  # of all epochs; without the start
    limit: str  # what keeps it from being faster


@dataclass(frozen=True)
class Measured:
    """What all ranks have found together. Times are seconds."""

    ranks: int
    hosts: int
    rows: int  # images per rank and step
    messages: tuple[int, ...]  # bytes, in the order in which they are ready
    ready: tuple[float, ...]
    alone: tuple[float, ...]  # steps of all ranks
    half: tuple[float, ...]
    together: float  # a step with its exchange
    byte: float  # of a message, of any rank's; 0 where that is too little to be measured
    wait: float  # of a message until it is on its way
    latency: float
    input: float
    score: float

    @property
    def computed(self) -> float:
        """A step in which nothing is sent, mean."""
        return statistics.mean(self.alone)


def merged(found: Sequence[StepFacts]) -> Measured:
    """What ranks have measured, as one. Raises ValueError for ranks that measured different things."""
    first = found[0]
    if any((each.rows, each.messages) != (first.rows, first.messages) for each in found):
        raise ValueError("ranks have measured steps of different sizes")
    times = {
        each.bytes: max(rank.exchange[number].seconds for rank in found)
        for number, each in enumerate(first.exchange)
    }
    small, *_, middle, large = sorted(times)
    byte = max(0.0, (times[large] - times[middle]) / (large - middle))
    return Measured(
        ranks=len(found), hosts=len({each.host for each in found}), rows=first.rows,
        messages=first.messages,
        ready=tuple(statistics.mean(each) for each in zip(*(rank.ready for rank in found), strict=True)),
        alone=tuple(seconds for rank in found for seconds in rank.alone),
        half=tuple(seconds for rank in found for seconds in rank.half),
        together=statistics.mean(max(each) for each in zip(*(rank.together for rank in found), strict=True)),
        byte=byte, wait=max(0.0, times[small] - small * byte),
        latency=max(rank.latency for rank in found), input=max(rank.input for rank in found),
        score=max(rank.score for rank in found),
    )  # fmt: skip


def slowest(seconds: Sequence[float], ranks: int) -> float:
    """What is expected of the slowest of so many ranks, each of which takes one of these times by chance."""
    ordered, number = sorted(seconds), len(seconds)
    return sum(
        value * (((place + 1) / number) ** ranks - (place / number) ** ranks)
        for place, value in enumerate(ordered)
    )


def share(ranks: int) -> float:
    """How often a byte of a gradient passes a rank's wire in a ring-allreduce."""
    return 2 * (ranks - 1) / ranks


@dataclass(frozen=True)
class Step:
    """A step of so many ranks, by the model. Times are seconds."""

    computed: float  # by the slowest rank
    whole: float


def modelled(found: Measured, ranks: int, wire: float = 1.0, fusion: int = 0) -> Step:
    """A step without what talking costs beside the wire; `wire`: the share of bytes that are sent; `fusion`: up to so
    many bytes of messages that are ready, while others are summed, travel together."""
    computed = slowest(found.alone, ranks)
    if ranks == 1:
        return Step(computed, computed)
    slower = computed / found.computed
    more = 2 * (ranks - found.ranks) * found.latency  # for turns beyond those measured
    byte = found.byte * wire * share(ranks) / share(found.ranks)
    end, place = 0.0, 0
    while place < len(found.messages):
        start = max(found.ready[place] * slower + max(0.0, found.wait + more), end)
        size, place = found.messages[place], place + 1
        while place < len(found.messages) and found.ready[place] * slower <= start:
            if size + found.messages[place] > fusion:
                break
            size, place = size + found.messages[place], place + 1
        end = start + max(0.0, size * byte + more)
    backward = found.ready[-1] * slower
    return Step(computed, max(backward, end) + computed - backward)


def forecast(
    found: Measured, ranks: int, sizes: Sizes, wire: float = 1.0, fusion: int = 0
) -> Forecast:
    """A training at so many ranks. `found`: of two ranks or more; `wire`, `fusion`: as for `modelled`."""
    talking = max(0.0, found.together - modelled(found, found.ranks).whole)
    step = modelled(found, ranks, wire, fusion)
    whole = step.whole + (talking if ranks > 1 else 0.0)
    seconds = max(whole, found.input)
    batch = ranks * found.rows
    steps = math.ceil(sizes.train_images / batch)
    epoch = steps * seconds + math.ceil(sizes.val_images / batch) * found.score
    exchange = whole - step.computed
    if steps < FEW_STEPS:
        limit = DATA
    elif seconds > whole:
        limit = INPUT
    elif seconds < CLEARLY * found.computed:
        limit = COMPUTE
    else:
        limit = NETWORK if exchange >= step.computed - found.computed else SLOWEST
    return Forecast(
        ranks=ranks, global_batch=batch, images_per_second=batch / seconds,
        efficiency=found.computed / seconds, steps_per_epoch=steps, step_seconds=seconds,
        exchange_seconds=exchange, epoch_seconds=epoch, train_seconds=sizes.epochs * epoch, limit=limit,
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The settings of a training that advice is about."""

    scaling: str  # of the learning rate
    learning_rate: float
    compression: str
    fusion_mb: int | None
    cache_mb: int
    sync_batch_norm: bool


def advice(
    found: Measured, forecasts: Sequence[Forecast], sizes: Sizes, recipe: Recipe
) -> list[str]:
    """What would make the training better or faster, a line each."""
    lines = []
    if found.hosts == 1:
        lines.append(
            "all ranks were on one host: between hosts messages take longer. Let Spark have slots on two"
        )
    if recipe.sync_batch_norm:
        lines.append(
            "what --sync-batch-norm sends counts as measured, not as it would grow with the ranks"
        )
    good = [
        each for each in forecasts if each.efficiency >= WORTH and each.steps_per_epoch >= FEW_STEPS
    ]
    most = max(forecasts, key=lambda each: each.ranks)
    best = max(good, key=lambda each: each.ranks, default=None)
    if best and best is not most:
        lines.append(
            f"{best.ranks} rank{'s are' if best.ranks > 1 else ' is'} worth {'their' if best.ranks > 1 else 'its'} "
            f"while; beyond, {most.limit} keeps it back"
        )
    short = [each for each in forecasts if each.steps_per_epoch < FEW_STEPS]
    if short:
        fewest = min(each.ranks for each in short)
        lines.append(
            f"from {fewest} rank{'s' * (fewest > 1)} on an epoch has fewer than {FEW_STEPS} steps: rather than with more ranks, train "
            "several seeds at the same time, and evaluate them as an ensemble"
        )
    if recipe.scaling == "none" and most.ranks > 1:
        lines.append(
            f"the learning rate, {recipe.learning_rate:g}, stays what it is at one rank, though a step has "
            f"up to {most.global_batch:,} images: --scale-learning-rate linear "
            "--warmup-epochs 1 raises it with the number of ranks"
        )
    if recipe.compression == "none":
        half = forecast(found, most.ranks, sizes, HALF, (recipe.fusion_mb or 0) << 20)
        if half.images_per_second > CLEARLY * most.images_per_second:
            lines.append(
                f"--compression fp16 would halve the messages: {half.images_per_second:,.1f} images/s at "
                f"{most.ranks} ranks"
            )
    if recipe.fusion_mb is None:
        fused = forecast(found, most.ranks, sizes, fusion=FUSION_MB << 20)
        if fused.images_per_second > CLEARLY * most.images_per_second:
            lines.append(
                f"--fusion-mb={FUSION_MB} would sum messages together that wait for each other: "
                f"{fused.images_per_second:,.1f} images/s at {most.ranks} ranks"
            )
    if found.half:
        gain = 2 * statistics.mean(found.half) / found.computed
        if gain > CLEARLY:
            lines.append(
                f"an image takes {gain:.2f} times as long in batches of {found.rows // 2} as in those of {found.rows}: "
                "a larger --batch-size may be faster still, where memory allows"
            )
        elif most.limit == DATA or most.steps_per_epoch < 2 * FEW_STEPS:
            lines.append(
                f"batches of {found.rows // 2} are as fast per image as those of {found.rows}, and make twice the steps"
            )
    if most.limit == INPUT and not recipe.cache_mb:
        lines.append(
            "reading keeps it back: --cache-mb keeps in memory what was read once, from the second epoch on"
        )
    return lines


def table(forecasts: Sequence[Forecast]) -> str:
    """The forecasts, for people."""
    lines = [
        f"{'ranks':>6}{'batch':>8}{'images/s':>11}{'efficiency':>12}{'steps':>8}{'an epoch':>11}{'training':>11}"
        "  kept back by"
    ]
    lines += [
        f"{each.ranks:>6}{each.global_batch:>8,}{each.images_per_second:>11,.1f}{each.efficiency:>12.0%}"
        f"{each.steps_per_epoch:>8,}{duration(each.epoch_seconds):>11}{duration(each.train_seconds):>11}  {each.limit}"
        for each in forecasts
    ]
    return "\n".join(lines)


def measured_text(found: Measured) -> str:
    """What the forecasts come from, for people."""
    size, rate = sum(found.messages), found.rows / found.computed
    wire = share(found.ranks) / found.byte if found.byte else math.inf
    return (
        f"measured on {found.ranks} ranks, {found.hosts} host{'s' * (found.hosts != 1)}: {found.rows} images a step, "
        f"{found.computed * 1e3:,.0f} ms alone ({rate:,.1f} images/s a rank), {found.together * 1e3:,.0f} ms together\n"
        f"gradients of {size / 1e6:.1f} MB in {len(found.messages)} messages, ready from {found.ready[0] * 1e3:,.0f} to "
        f"{found.ready[-1] * 1e3:,.0f} ms; {wire * 8 / 1e9:.2f} Gbit/s between neighbours, {found.latency * 1e6:,.0f} µs "
        f"there; input {found.rows / found.input:,.0f} images/s a rank"
    )
