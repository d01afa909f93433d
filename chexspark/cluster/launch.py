"""Ranks on Spark through ``horovod.spark.run``. Runs on the driver.

In: a function for a rank and its arguments, by value. Out: what each rank returned; on the way,
the events that ranks send, handed to a function. A rank that dies or stalls ends the others.
"""

import contextlib
import io
import re
import signal
import threading
import time

import horovod.spark
from horovod.spark.driver import job_id

from chexspark.cluster.adapted_horovod import adapted_horovod
from chexspark.cluster.events import FIRST_STEP_SECONDS, EventServer
from chexspark.errors import RunFailed, Stopped, UserError
from chexspark.session import ENDED, has_ended, task_slots

ENVIRONMENT = {
    # oneDNN's notice, missing CUDA drivers and the like: nothing that a user could act on.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Large buffers come and go with every step: glibc would give each back to the system and take
    # it again page by page, which costs more than to fill it.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
START_TIMEOUT = 86_400  # of Horovod: `Ranks.absence` knows more
LAST_WORDS = 20  # lines of a rank that ended before it could say why
LOOK_SECONDS = 0.2  # between two looks at the ranks
TELL_SECONDS = 1.0  # between two words on ranks that have not started
STOP_SECONDS = 6.0  # for a step, and its checkpoint, after a signal
SLOTS_SECONDS = 30.0  # that Spark may have too few task slots while ranks start
CANCEL_SECONDS = 6.0  # for ranks to end by themselves, before their Spark job is cancelled


class RanksLost(RunFailed):
    """A rank died or stalled, through no fault of the program: the run may go on with others.

    `rank`: which, if that is known; `silent_host`: the address of its host, if that is gone too.
    """

    def __init__(self, message: str, rank: int | None = None, silent_host: str | None = None):
        super().__init__(message)
        self.rank, self.silent_host = rank, silent_host


class Ranks:
    """Ranks that run, seen from a second thread, while the first one waits for Horovod."""

    def __init__(self, spark, events: EventServer, num_proc: int, stall_seconds: float):
        self.spark, self.events, self.num_proc = spark, events, num_proc
        self.stall_seconds, self.begun, self.told = stall_seconds, time.monotonic(), 0.0
        self.short_since = None  # of task slots
        self.placed = False  # where they are has been told
        self.over, self.stopping = threading.Event(), threading.Event()
        self.fault: RanksLost | None = None
        self.silent: set[str] = set()  # addresses of hosts that do not answer

    def watch(self) -> None:
        """Look for lost and stalled ranks until the run is over; end the others then."""
        try:
            while not self.over.wait(LOOK_SECONDS):
                if self.stopping.is_set():
                    self.over.wait(STOP_SECONDS)
                elif not self.loss():
                    self.fault = self.stall() or self.absence()
                if self.fault or self.stopping.is_set():
                    break
        except Exception as error:  # without this thread nobody would see a loss
            self.fault = RanksLost(f"the ranks could not be watched: {error!r}")
        if not self.over.is_set():
            self.end()

    def stall(self) -> RanksLost | None:
        """Ranks that do nothing."""
        if not (lines := self.events.stalled(self.stall_seconds)):
            return None
        names = " and ".join(map(str, lines))
        seconds = time.monotonic() - min(line.spoke for line in lines)
        one = len(lines) == 1
        return RanksLost(
            f"rank{'' if one else 's'} {names} {'has' if one else 'have'} done nothing for "
            f"{seconds:.0f} seconds",
            lines[0].rank,
        )

    def absence(self) -> RanksLost | None:
        """Ranks that do not come; tells the driver of those, and where all are that came."""
        came, now = len(self.events.lines), time.monotonic()
        seconds = now - self.begun
        if came == self.num_proc:
            if not self.placed:
                self.placed = True
                hosts = [self.events.lines[rank].host for rank in range(came)]
                self.events.tell("placed", hosts=hosts)
            return None
        if seconds > max(self.stall_seconds, FIRST_STEP_SECONDS):
            return RanksLost(
                f"{came} of {self.num_proc} ranks have started in {seconds:.0f} seconds"
            )
        if seconds - self.told > TELL_SECONDS:
            self.told = seconds
            self.events.tell("waiting", started=came, ranks=self.num_proc, seconds=seconds)
            if (slots := task_slots(self.spark)) >= self.num_proc:
                self.short_since = None
            elif self.short_since is None:
                self.short_since = now
            elif now - self.short_since > SLOTS_SECONDS:
                return RanksLost(f"Spark has {slots} task slots left for {self.num_proc} ranks")
        return None

    def loss(self) -> RanksLost | None:
        """What is known of a rank that has died."""
        if not self.fault and (line := self.events.lost()):
            if line.answers:
                self.fault = RanksLost(f"rank {line} died", line.rank)
            else:
                self.silent.add(line.address)
                self.fault = RanksLost(
                    f"rank {line.rank} is lost: its host, {line.host}, does not answer",
                    line.rank, line.address,
                )  # fmt: skip
        return self.fault

    def end(self) -> None:
        """Hang up on all ranks; cancel their Spark job if that does not end them."""
        group = f"horovod.spark.run.{job_id.JOB_ID}"
        self.events.hang_up()
        if not self.over.wait(CANCEL_SECONDS if self.events.lines else 0):
            self.spark.sparkContext.cancelJobGroup(group)

    def stop(self, *signal_and_frame) -> None:
        """For a signal: the first asks the ranks to stop with a checkpoint, the second ends them."""
        if self.stopping.is_set():
            threading.Thread(target=self.end, daemon=True).start()
        self.stopping.set()
        self.events.ask_to_stop()


def run_ranks(
    spark, function, arguments: tuple, num_proc: int, on_event,
    environment: dict | None = None, stall_seconds: float = 300.0,
) -> list:  # fmt: skip
    """Run ``function(event_address, *arguments)`` on `num_proc` ranks; return results in rank order.

    The function is to open an `EventSender` at once, if it takes long: ranks that have not after a
    quarter of an hour count as lost.

    `on_event` takes the events of rank 0, and the problems of all; `environment` is added to the
    ranks'. Raises UserError when a rank met a mistake of the user, RanksLost when one died, stalled
    or met what may pass, Stopped after a signal or when Spark's application was ended, RunFailed when
    one failed otherwise.
    """
    conf = spark.sparkContext.getConf()
    host = conf.get("spark.driver.host")
    failures, errors = [], io.StringIO()

    def handle(event: dict) -> None:
        if event["event"] == "failed":
            failures.append(event)
        elif event["rank"] == 0 or event["event"] == "problem":
            on_event(event)

    with EventServer(host, conf.get("spark.driver.bindAddress", host), handle) as events:
        ranks = Ranks(spark, events, num_proc, stall_seconds)
        with adapted_horovod(host, ranks.silent), signals_to(ranks.stop), quiet_threads():
            threading.Thread(target=ranks.watch, daemon=True).start()
            try:
                return horovod.spark.run(
                    function, args=(events.address, *arguments), num_proc=num_proc,
                    env=ENVIRONMENT | (environment or {}), use_gloo=True, stderr=errors, verbose=0,
                    start_timeout=START_TIMEOUT,
                )  # fmt: skip
            except Exception as error:
                failed = error
            finally:
                ranks.over.set()
        # While the server still listens: who hangs up now has ended.
        raise why(failed, ranks, failures, errors.getvalue()) from failed


def why(error: Exception, ranks: Ranks, failures: list[dict], said: str) -> Exception:
    """What to raise for an exception of Horovod: the reason, as far as it is known.

    `failures`: the events of ranks that failed; `said`: what ranks wrote that failed before.
    """
    if ranks.stopping.is_set():
        return Stopped("stopped")
    for failure in sorted(failures, key=lambda f: (not f["mendable"], not f["own"])):
        what = f"rank {failure['rank']} on {failure['host']} failed: {failure['message']}"
        if failure["mendable"]:
            return UserError(failure["message"])
        if failure["own"] and not (ranks.loss() and ranks.fault.silent_host):
            return RanksLost(what, failure["rank"]) if failure["may_pass"] else RunFailed(what)
    for _ in range(5):  # a rank's connection may end a little after Horovod has seen it end
        if ranks.loss():
            break
        time.sleep(LOOK_SECONDS)
    if has_ended(ranks.spark):
        return Stopped(ENDED)
    if ranks.fault:
        return ranks.fault
    # A rank outlives its Spark task by a little, and hangs up or takes its leave with the others.
    task = re.search(r"Process name: (\d+)", str(error))
    line = ranks.events.lines.get(int(task[1])) if task else None
    if line and (not line.done or any(failure["stopped"] for failure in failures)):
        return RanksLost(f"the Spark task of rank {line} died", line.rank)
    for failure in failures:
        return RanksLost(
            f"rank {failure['rank']} on {failure['host']} broke off: {failure['message']}",
            failure["rank"],
        )
    last = "\n".join(said.splitlines()[-LAST_WORDS:])
    return RanksLost(f"the ranks ended early ({error}); their last words:\n{last}")


@contextlib.contextmanager
def signals_to(handler):
    """Inside, Ctrl-C and SIGTERM go to `handler`, where this is the thread that they come to."""
    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {
            number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


@contextlib.contextmanager
def quiet_threads():
    """Keep the traceback of Horovod's own threads off the screen.

    When a rank fails, the thread that waits for the Spark job ends with a page of Java stack;
    what matters comes as an event or in the exception of ``horovod.spark.run``.
    """
    hook, threading.excepthook = threading.excepthook, lambda arguments: None
    try:
        yield
    finally:
        threading.excepthook = hook
