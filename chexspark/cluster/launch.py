"""Ranks on Spark through ``horovod.spark.run``. Runs on the driver.

In: a function for a rank and its arguments, by value. Out: what each rank returned; on the way,
the events that ranks send, handed to a function. A rank that dies or stalls ends the others.
"""

import io
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import horovod.spark
from pyspark.sql import SparkSession

from chexspark import hdfs
from chexspark.cluster.adapted_horovod import adapted_horovod
from chexspark.cluster.doors import door_of
from chexspark.cluster.events import FIRST_STEP_SECONDS, EventServer
from chexspark.cluster.horovod_services import TASKS_PYTHON
from chexspark.cluster.job_group import CANCELLED, JobGroup
from chexspark.cluster.slots import WAIT_SECONDS, Supply, busy, slots_text, supply
from chexspark.cluster.turn import signals_to, turn
from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.session import ENDED, hadoop_tokens, hand_settings, has_ended
from chexspark.training.events import Event, Failed, Placed, Problem, Waiting

Result = TypeVar("Result")

ENVIRONMENT = {
    # oneDNN's notice, missing CUDA drivers and the like: nothing that a user could act on.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Large buffers come and go with every step: glibc would give each back to the system and take
    # it again page by page, which costs more than to fill it.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
START_TIMEOUT = 86_400  # of Horovod: `Ranks.find_absent` knows more
LAST_WORDS = 20  # lines of a rank that ended before it could say why
LOOK_SECONDS = 0.2  # between two looks at the ranks
TOKEN_SECONDS = 10.0  # between two looks at Hadoop's tokens
START_LOOK_SECONDS = 1.0  # between two looks at tasks and slots while ranks start
STOP_SECONDS = 6.0  # for a step, and its checkpoint, after a signal
CANCEL_SECONDS = 6.0  # for ranks to end by themselves, before their Spark job is cancelled


class RanksLost(RunFailedError):
    """A rank died or stalled, through no fault of the program: the run may be resumed with others.

    `rank`: which, if that is known; `silent_host`: the address of its host, if that is gone too.
    """

    def __init__(
        self, message: str, rank: int | None = None, silent_host: str | None = None
    ) -> None:
        super().__init__(message)
        self.rank, self.silent_host = rank, silent_host


class Ranks:
    """Ranks that run, seen from a second thread, while the first one waits for Horovod."""

    def __init__(
        self, spark: Any, events: EventServer, num_proc: int, stall_seconds: float,
        wait_seconds: float = WAIT_SECONDS, run_lost: threading.Event | None = None,
        jobs: JobGroup | None = None, stop_asked: threading.Event | None = None,
    ) -> None:  # fmt: skip
        self.spark, self.events, self.num_proc = spark, events, num_proc
        self.jobs = jobs or JobGroup(spark, "ranks")
        self.run_lost, self.stop_asked = run_lost, stop_asked
        self.stall_seconds, self.wait_seconds = stall_seconds, wait_seconds
        self.begun = self.looked = self.tokens_looked = time.monotonic()
        self.tokens = hadoop_tokens()
        self.supply: Supply | None = None  # Spark's, at the last look while ranks start
        self.tasks = 0  # that ran then
        self.short_since: float | None = None  # of task slots
        self.all_run_since: float | None = None  # of the tasks
        self.placed = False  # where they are has been told
        self.over, self.stopping = threading.Event(), threading.Event()
        self.fault: RanksLost | None = None
        self.silent: set[str] = set()  # addresses of hosts that do not answer
        self.failed: list[int] = []  # ranks whose tasks or processes failed, the first one first

    def watch(self) -> None:
        """Look for lost and stalled ranks until the run is over; end the others then."""
        try:
            while not self.over.wait(LOOK_SECONDS):
                if self.stop_asked and self.stop_asked.is_set() and not self.stopping.is_set():
                    self.stop()
                self.renew_tokens()
                if self.stopping.is_set():
                    self.over.wait(STOP_SECONDS)
                elif self.run_lost and self.run_lost.is_set():
                    self.note(RanksLost("another training has taken the run"))
                elif not self.note(self.find_lost()):
                    self.see_start()
                    self.note(self.find_stalled() or self.find_absent())
                if self.fault or self.stopping.is_set():
                    break
        except Exception as error:  # without this thread nobody would see a loss
            self.fault = RanksLost(f"the ranks could not be watched: {error!r}")
        if not self.over.is_set():
            self.end()

    def renew_tokens(self) -> None:
        """Hand Hadoop's tokens to the ranks where Spark has got new ones."""
        if not self.tokens or time.monotonic() - self.tokens_looked < TOKEN_SECONDS:
            return
        self.tokens_looked = time.monotonic()
        tokens = hadoop_tokens()
        if tokens and tokens != self.tokens:
            self.tokens = tokens
            self.events.tell_tokens(hdfs.seal(tokens))

    def note(self, fault: RanksLost | None) -> RanksLost | None:
        """Keep the first fault that is found; return it."""
        if fault and not self.fault:
            self.fault = fault
            if fault.silent_host:
                self.silent.add(fault.silent_host)
        return self.fault

    def find_stalled(self) -> RanksLost | None:
        """Ranks that do nothing."""
        if not (found := self.events.stalled(self.stall_seconds)):
            return None
        names = " and ".join(map(str, found))
        seconds = time.monotonic() - min(rank.spoke for rank in found)
        one = len(found) == 1
        return RanksLost(
            f"rank{'' if one else 's'} {names} {'has' if one else 'have'} done nothing for "
            f"{seconds:.0f} seconds",
            found[0].rank,
        )

    def see_start(self) -> None:
        """Tell the driver what ranks wait for that have not started, and where all are that have."""
        came, now = len(self.events.ranks), time.monotonic()
        if came == self.num_proc:
            if not self.placed:
                self.placed = True
                hosts = tuple(self.events.ranks[rank].host for rank in range(came))
                self.events.tell(Placed(hosts))
        elif now - self.looked > START_LOOK_SECONDS and not has_ended(self.spark):
            self.looked = now
            self.supply = supply(self.spark)
            self.tasks = max(came, self.jobs.task_counts()[0])
            enough, all_run = self.supply.slots >= self.num_proc, self.tasks >= self.num_proc
            self.short_since = None if enough else self.short_since or now
            self.all_run_since = (self.all_run_since or now) if all_run else None
            waited = now - self.begun
            self.events.tell(
                Waiting(self.supply.slots, self.tasks, came, self.num_proc, seconds=waited)
            )

    def find_absent(self) -> RanksLost | None:
        """Ranks that do not come, by what `see_start` saw."""
        came, now = len(self.events.ranks), time.monotonic()
        if came == self.num_proc or not self.supply:
            return None
        if self.supply.most < self.num_proc:
            slots = slots_text(self.supply.most)
            return RanksLost(f"Spark has {slots} at most for {self.num_proc} ranks")
        if self.short_since and now - self.short_since > self.wait_seconds:
            slots = slots_text(self.supply.slots)
            return RanksLost(f"Spark has {slots} left for {self.num_proc} ranks")
        if self.all_run_since is None:
            waited = now - self.begun
            if waited > self.wait_seconds and not self.short_since:
                return RanksLost(busy(self.supply, self.tasks, self.num_proc, waited))
            return None
        seconds = now - self.all_run_since
        if seconds > max(self.stall_seconds, FIRST_STEP_SECONDS):
            return RanksLost(
                f"{came} of {self.num_proc} ranks have started in {seconds:.0f} seconds"
            )
        return None

    def find_lost(self) -> RanksLost | None:
        """What is known of a rank that has died."""
        if not (lost := self.events.lost()):
            return None
        if lost.answers:
            return RanksLost(f"rank {lost} died", lost.rank)
        return RanksLost(
            f"rank {lost.rank} is lost: its host, {lost.host}, does not answer",
            lost.rank,
            lost.address,
        )

    def wait_for_ends(self) -> None:
        """Until all have written their checkpoint and hung up, also where Spark itself was ended meanwhile."""
        until = time.monotonic() + STOP_SECONDS
        while self.events.still_there() and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def known_fault(self) -> RanksLost | None:
        """The first fault that was found, or what is known by now of a rank that has died."""
        return self.fault or self.find_lost()

    def end(self) -> None:
        """Hang up on all ranks; cancel their Spark job if that does not end them.

        Again and again until they have ended: Horovod may not have submitted the job yet, and Spark
        forgets what it is to cancel.
        """
        self.events.hang_up()
        over = self.over.wait(CANCEL_SECONDS if self.events.ranks else 0)
        while not over:
            self.jobs.cancel()
            over = self.over.wait(LOOK_SECONDS)

    def stop(self, *signal_and_frame: object) -> None:
        """For a signal: the first asks the ranks to stop with a checkpoint, the second ends them."""
        if self.stopping.is_set():
            threading.Thread(target=self.end, daemon=True).start()
        self.stopping.set()
        self.events.ask_to_stop()


def run_ranks(
    spark: SparkSession, function: Callable[..., Result], arguments: tuple, num_proc: int,
    on_event: Callable[[Event], None], environment: dict[str, str] | None = None,
    stall_seconds: float = 300.0, wait_seconds: float = WAIT_SECONDS,
    run_lost: threading.Event | None = None, stop_asked: threading.Event | None = None,
) -> list[Result]:  # fmt: skip
    """Run ``function(event_address, *arguments)`` on `num_proc` ranks; return results in rank order.

    The function is to open an `EventSender` at once, if it takes long: ranks that have not after a
    quarter of an hour count as lost.

    One at a time in a process: a second call, from another thread, waits and says so. Task slots, and
    tasks that have not started, are waited for `wait_seconds` long.

    `on_event` takes the events of rank 0, and the problems of all; `environment` is added to the
    ranks'; when `run_lost` is set, the ranks are ended; `stop_asked` stops them as a signal does. Raises UserError when a rank met a mistake of the
    user, RanksLost when one died, stalled or met what may pass, StoppedError after a signal or when Spark's
    application was ended, RunFailedError when one failed otherwise.
    """
    door = door_of(spark)
    failures: list[Failed] = []
    errors = io.StringIO()

    def handle(rank: int, event: Event) -> None:
        if isinstance(event, Failed):
            failures.append(event)
        elif rank == 0 or isinstance(event, Problem):
            on_event(event)

    with (
        turn(spark),
        EventServer(door, num_proc, handle) as events,
    ):
        ranks = Ranks(
            spark, events, num_proc, stall_seconds, wait_seconds, run_lost, stop_asked=stop_asked
        )
        hand_settings(
            spark
        )  # those of the session's start may have ended since: Hadoop's tokens do
        with adapted_horovod(door, ranks.silent, ranks.failed, ranks.jobs), signals_to(ranks.stop):
            threading.Thread(target=ranks.watch, daemon=True).start()
            try:
                return horovod.spark.run(
                    function, args=(events.address, *arguments), num_proc=num_proc,
                    env=ENVIRONMENT | (environment or {}), use_gloo=True, stderr=errors, verbose=0,
                    start_timeout=START_TIMEOUT, executable=TASKS_PYTHON,
                )  # fmt: skip
            except Exception as error:  # Horovod raises bare ones; `why` finds the reason
                failed = error
            finally:
                ranks.over.set()
        # While the server still listens: who hangs up now has ended.
        raise why(failed, ranks, failures, errors.getvalue()) from failed


def why(error: Exception, ranks: Ranks, failures: list[Failed], said: str) -> Exception:
    """What to raise for an exception of Horovod: the reason, as far as it is known.

    `failures`: of ranks that failed; `said`: what ranks wrote that failed before.
    """
    if ranks.stopping.is_set():
        ranks.wait_for_ends()
        return StoppedError("stopped")
    if ranks.jobs.cancelled:
        return StoppedError(CANCELLED)
    for failure in sorted(failures, key=lambda f: (not f.user_error, not f.own)):
        if failure.user_error:
            return UserError(failure.message)
        fault = ranks.known_fault()
        if failure.own and not (fault and fault.silent_host):
            what = f"rank {failure.rank} on {failure.host} failed: {failure.message}"
            return RanksLost(what, failure.rank) if failure.may_pass else RunFailedError(what)
    for _ in range(5):  # a rank's connection may end a little after Horovod has seen it end
        if fault := ranks.known_fault():
            break
        time.sleep(LOOK_SECONDS)
    if has_ended(ranks.spark):
        return StoppedError(ENDED)
    if fault:
        return fault
    # A rank outlives its Spark task by a little, and hangs up or takes its leave with the others.
    first = ranks.events.ranks.get(ranks.failed[0]) if ranks.failed else None
    if first and (not first.done or any(failure.stopped for failure in failures)):
        return RanksLost(f"the Spark task of rank {first} died", first.rank)
    for failure in failures:
        return RanksLost(
            f"rank {failure.rank} on {failure.host} broke off: {failure.message}", failure.rank
        )
    last = "\n".join(said.splitlines()[-LAST_WORDS:])
    return RanksLost(f"the ranks ended early ({error}); their last words:\n{last}")
