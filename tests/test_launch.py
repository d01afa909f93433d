"""How the driver sees its ranks: lost, silent, absent; and why they ended."""

import errno
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from chexspark.cluster import adapted_horovod, events, launch
from chexspark.cluster.doors import Door
from chexspark.cluster.slots import Supply
from chexspark.cluster.view import EpochTable
from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.progress import ProgressLine
from chexspark.training import faults
from chexspark.training.events import (
    Alive,
    Beat,
    Connected,
    Done,
    EventSender,
    Failed,
    Placed,
    Step,
    Waiting,
    encode,
)  # fmt: skip

# A Spark job that nobody runs.
DOOR = Door("127.0.0.1", "127.0.0.1")
JOBS = SimpleNamespace(cancelled=False, task_counts=lambda: (0, 0), cancel=lambda: None)


class Line:
    """A rank's connection, of which each reading gives the next of what is given."""

    def __init__(self, *readings):
        self.readings = [*readings]
        self.client_address = ("10.0.0.9", 4711)
        self.connection, self.rfile = socket.socket(), self

    def readline(self, most):
        reading = self.readings.pop(0)
        if isinstance(reading, OSError):
            raise reading
        return reading


CONNECTED, DONE = encode(Connected(1, "b")), encode(Done())
A_STEP = Step(0, 1, 1, 9, loss=0.5, learning_rate=0.1, images_per_second=1.0, seconds_left=1.0)
STEP = encode(A_STEP)


@pytest.mark.parametrize(
    "last, message, host",
    [
        (b"", "rank 1 on b died", None),
        (b'{"event": "st', "rank 1 on b died", None),
        (OSError(errno.ECONNRESET, ""), "rank 1 on b died", None),
        (OSError(errno.ETIMEDOUT, ""), "rank 1 is lost: its host, b, does not answer", "10.0.0.9"),
    ],
)
def test_how_a_rank_is_lost_is_told_apart(last, message, host):
    seen = []
    with events.EventServer(DOOR, 8, lambda *said: seen.append(said)) as server:
        server.listen(Line(CONNECTED, STEP, last))
        ranks = launch.Ranks(None, server, 2, 300, jobs=JOBS)
        assert (
            str(ranks.note(ranks.find_lost())) == message
            and ranks.note(ranks.find_lost()).silent_host == host
        )
        assert ranks.silent == ({host} if host else set())
    assert seen == [(1, A_STEP)]


FAILURE = Failed(
    0, "a", "ValueError('x')", user_error=False, own=True, may_pass=False, stopped=False
)
OTHERS, MAY_PASS = replace(FAILURE, own=False), replace(FAILURE, may_pass=True)
HOROVOD = RuntimeError("one or more processes exited with non-zero status")


@pytest.mark.parametrize(
    "failures, last, kind, message",
    [
        ([FAILURE], b"", RunFailedError, r"rank 0 on a failed: ValueError\('x'\)"),
        ([MAY_PASS], b"", launch.RanksLost, "rank 0 on a failed"),
        ([FAILURE, replace(FAILURE, user_error=True)], b"", UserError, r"^ValueError\('x'\)"),
        ([FAILURE], OSError(errno.ETIMEDOUT, ""), launch.RanksLost, "b, does not answer"),
        ([OTHERS], b"", launch.RanksLost, "rank 1 on b died"),
        ([OTHERS], None, launch.RanksLost, "the Spark task of rank 1 on b died"),
        (
            [replace(OTHERS, stopped=True)],
            DONE,
            launch.RanksLost,
            "the Spark task of rank 1",
        ),
        ([OTHERS], DONE, launch.RanksLost, r"rank 0 on a broke off: ValueError"),
        ([], DONE, launch.RanksLost, r"ended early \((.|\n)*last words:\nalas"),
    ],
)
def test_the_reason_is_found(monkeypatch, failures, last, kind, message):
    monkeypatch.setattr(launch, "has_ended", lambda spark: False)
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0)
    with events.EventServer(DOOR, 8, print) as server:
        if last is None:  # still connected
            server.ranks[1] = events.ConnectedRank(1, "b", Line(), 0.0)
        else:
            server.listen(Line(CONNECTED, *([last, b""] if last == DONE else [last])))
        ranks = launch.Ranks(None, server, 2, 300, jobs=JOBS)
        ranks.failed.append(1)
        found = launch.why(HOROVOD, ranks, failures, "alas")
        with pytest.raises(kind, match=message):
            raise found
        ranks.stopping.set()
        assert isinstance(launch.why(HOROVOD, ranks, failures, ""), StoppedError)
        ranks.stopping.clear()
        monkeypatch.setattr(launch, "has_ended", lambda spark: True)
        assert isinstance(launch.why(HOROVOD, ranks, [], ""), StoppedError)


def test_ranks_that_do_not_come_are_waited_for_with_a_word_and_not_for_ever(monkeypatch):
    told, slots, tasks = [], [2], [2]
    now = stopped_clock(monkeypatch, launch)
    monkeypatch.setattr(launch, "has_ended", lambda spark: False)
    monkeypatch.setattr(
        launch, "supply", lambda spark: Supply(slots[0], 2, 2**31, "spark://m:7077")
    )
    monkeypatch.setattr(JOBS, "task_counts", lambda: (tasks[0], 0))
    with events.EventServer(DOOR, 8, lambda *said: told.append(said)) as server:
        ranks = launch.Ranks(None, server, 2, 300, wait_seconds=60, jobs=JOBS)
        server.ranks[1] = events.ConnectedRank(1, "b", Line(), now[0])

        def absent(seconds):
            now[0] = ranks.begun + seconds
            ranks.see_start()
            return ranks.find_absent()

        for seconds in (0.5, 1.2, 1.4, 3.0):
            assert absent(seconds) is None
        assert told == [
            (0, Waiting(2, 2, 1, 2, pytest.approx(1.2))),
            (0, Waiting(2, 2, 1, 2, pytest.approx(3.0))),
        ]
        slots[0] = 1
        assert absent(5) is absent(60) is None
        slots[0] = 2
        assert absent(66) is None, "an executor came back"
        slots[0] = 1
        assert absent(70) is None
        assert str(absent(131)) == "Spark has 1 task slot left for 2 ranks"
        slots[0] = 2
        assert absent(140) is None
        tasks[0] = 1
        assert "only 1 of the ranks' tasks has started in 142 seconds: other work" in str(
            absent(142)
        )
        tasks[0] = 2
        assert absent(150) is None
        late = 150 + events.FIRST_STEP_SECONDS + 1
        assert str(absent(late)) == "1 of 2 ranks have started in 901 seconds"
        server.ranks[0] = events.ConnectedRank(0, "a", Line(), now[0])
        told.clear()
        assert absent(late) is absent(late + 2) is None
        assert told == [(0, Placed(("a", "b")))]


@pytest.mark.parametrize(
    "hosts, line",
    [
        (["a"] * 3, ""),
        (["b", "a"], "rank 0 on b, rank 1 on a\n"),
        (["b", "b", "a", "c", "c", "c"], "ranks 0-1 on b, rank 2 on a, ranks 3-5 on c\n"),
    ],
)
def test_where_ranks_are_is_told_where_hosts_are_several(hosts, line, capsys):
    with ProgressLine() as progress:
        EpochTable(progress, 1).take(Placed(tuple(hosts)))
    assert capsys.readouterr().err == line


def stopped_clock(monkeypatch, module):
    """A list whose one value is what `time.monotonic` says in a module."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def test_ranks_for_which_slots_are_missing_do_not_start(spark):
    """Spark runs two of three tasks, and Horovod would wait for the third."""
    with pytest.raises(launch.RanksLost, match="Spark has 2 task slots at most for 3 ranks"):
        launch.run_ranks(spark, print, (), 3, lambda event: None)


def test_a_job_that_is_not_submitted_yet_is_cancelled_all_the_same(monkeypatch):
    """Spark forgets a cancellation that comes before the job."""
    cancelled = []

    def cancel():
        cancelled.append(True)
        if len(cancelled) == 3:
            ranks.over.set()

    monkeypatch.setattr(JOBS, "cancel", cancel)
    with events.EventServer(DOOR, 8, print) as server:
        ranks = launch.Ranks(None, server, 2, 300, wait_seconds=60, jobs=JOBS)
        ranks.end()
    assert len(cancelled) == 3


def of_a_file(error):
    error.__cause__ = OSError("Input/output error")
    return error


@pytest.mark.parametrize(
    "error, user_error, own, may_pass",
    [
        (UserError("no such finding"), True, True, False),
        (of_a_file(UserError("/run/best cannot be made a folder")), False, True, True),
        (OSError("Input/output error"), False, True, True),
        (MemoryError(), False, True, True),
        (ValueError("a bug"), False, True, False),
        (faults.NotJoinedError("Horovod initialization failed"), False, False, False),
        (type("UnknownError", (Exception,), {})("of another library"), False, True, False),
    ],
)
def test_what_ended_a_rank_is_told_apart(error, user_error, own, may_pass):
    found = faults.failure_of(error, 1, " (log: /run/logs/rank-1.log)")
    assert (found.user_error, found.own, found.may_pass) == (user_error, own, may_pass)
    assert str(error) in found.message and not found.stopped
    assert (found.rank, found.host) == (1, socket.gethostname())
    assert found.message.endswith(" (log: /run/logs/rank-1.log)")


def test_a_collective_that_breaks_off_is_another_rank_s_fault():
    import tensorflow as tf
    from horovod.common.exceptions import HorovodInternalError

    for error in (
        HorovodInternalError("Horovod has been shut down"),
        tf.errors.UnknownError(None, None, "Connection closed by peer"),
    ):
        assert not faults.failure_of(error, 0, "log").own
    assert faults.failure_of(tf.errors.InvalidArgumentError(None, None, "a bug"), 0, "log").own
    assert faults.failure_of(faults.StoppedByUserError("stopped"), 0, "log").stopped


def test_a_fault_of_the_watch_ends_the_ranks(monkeypatch):
    ended = []
    with events.EventServer(DOOR, 8, print) as server:
        ranks = launch.Ranks(None, server, 2, 300, jobs=JOBS)
        monkeypatch.setattr(ranks, "find_stalled", lambda: 1 / 0)
        monkeypatch.setattr(ranks, "end", lambda: ended.append(True))
        ranks.watch()
    assert ended and "could not be watched: ZeroDivisionError" in str(ranks.fault)


def test_who_comes_late_hears_of_the_stop():
    with events.EventServer(DOOR, 8, print) as server:
        server.ask_to_stop()
        with EventSender(server.address, 0) as late:
            assert late.stopping.wait(60)
        server.hang_up()
        stranger = socket.create_connection((server.address.host, server.address.port))
        stranger.sendall(server.address.token.encode() + b"\n" + CONNECTED)
        stranger.settimeout(60)
        assert stranger.recv(1) == b"", "the server hangs up"


def test_a_rank_may_be_silent_for_longer_before_its_first_step(monkeypatch):
    now = stopped_clock(monkeypatch, events)
    with events.EventServer(DOOR, 8, print) as server:
        line = server.ranks[0] = events.ConnectedRank(0, "a", Line(), spoke=0.0)
        now[0] = 301.0
        assert server.stalled(300) == []
        line.working = True
        assert server.stalled(300) == [line]
        line.working = False
        now[0] = events.FIRST_STEP_SECONDS + 1
        assert server.stalled(300) == [line]
        line.done = True
        assert server.stalled(300) == []


@pytest.mark.parametrize(
    "spoke, beat, message, rank",
    [
        # All wait for one. Others fell silent before it, but its process stands still.
        ((99, 90, 95), (99, 400, 399), "rank 0 on a has done nothing for 301 seconds", 0),
        ((101, 90, 99), (400, 400, 99), "rank 2 on a has done nothing for 301 seconds", 2),
        ((395, 99, 101), (400, 400, 400), "ranks 1 on a and 2 on a have done nothing for 301 ", 1),
    ],
)
def test_the_rank_that_stands_still_is_named(monkeypatch, spoke, beat, message, rank):
    for module in (events, launch):
        stopped_clock(monkeypatch, module)[0] = 400.0
    with events.EventServer(DOOR, 8, print) as server:
        for n in range(3):
            server.ranks[n] = events.ConnectedRank(n, "a", Line(), spoke[n], beat[n], working=True)
        found = launch.Ranks(None, server, 3, 300, jobs=JOBS).find_stalled()
    assert str(found).startswith(message) and found.rank == rank


def test_a_process_that_gives_signs_but_does_nothing_is_silent(monkeypatch):
    now, seen = stopped_clock(monkeypatch, events), []
    with events.EventServer(DOOR, 8, lambda *said: seen.append(said)) as server:
        line = server.ranks[1] = events.ConnectedRank(1, "b", Line(), now[0])
        for event in (A_STEP, Alive(), Beat()):
            now[0] += 299
            server.take(line, event)
        assert server.stalled(300) == []
        now[0] += 2
        server.take(line, Beat())
        assert server.stalled(300) == [line] and line.beat == now[0]
    assert seen == [(1, A_STEP)]


@pytest.mark.parametrize(
    "common, driver_host, found",
    [
        ({"lo", "eth0", "docker0"}, "10.0.0.1", ["eth0", "docker0"]),
        ({"lo", "eth0"}, "127.0.0.1", ["lo", "eth0"]),
        ({"ens5"}, "10.0.0.1", ["ens5"]),
        ({"lo"}, "10.0.0.1", ["lo"]),
    ],
)
def test_ranks_use_the_interface_that_leads_to_the_driver(common, driver_host, found):
    addresses = {
        "lo": [("127.0.0.1", 1)],
        "eth0": [("10.0.0.1", 1)],
        "docker0": [("172.17.0.1", 1)],
    }
    assert adapted_horovod.in_order(common, addresses, driver_host) == found


def test_a_silent_host_is_not_asked_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = set()
        with adapted_horovod.WatchedSocket(silent) as ours:
            ours.connect(server.getsockname())
            assert ours.gettimeout() is None
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        silent.add("127.0.0.1")
        with adapted_horovod.WatchedSocket(silent) as ours, pytest.raises(OSError) as caught:
            ours.connect(server.getsockname())
        assert caught.value.errno == errno.EHOSTUNREACH


def test_horovod_is_as_it_was_afterwards():
    def parts():
        return (
            adapted_horovod.launch.gloo_built, adapted_horovod.gloo_run.register_shutdown_event,
            adapted_horovod.SparkDriverService.get_common_interfaces, adapted_horovod.network.socket,
            adapted_horovod.spark_gloo_run._exec_command_fn, adapted_horovod.spark_runner.in_thread,
        )  # fmt: skip

    before = parts()
    with adapted_horovod.adapted_horovod(DOOR, set(), [], JOBS):
        assert all(a is not b for a, b in zip(parts(), before, strict=True))
    assert parts() == before


def test_who_stops_waits_for_the_last_checkpoint(wait_for):
    """The step that is told is the checkpoint's, also where Spark was ended by the same Ctrl-C."""
    with events.EventServer(DOOR, 2, print) as server:
        ranks = launch.Ranks(None, server, 2, 300, jobs=JOBS)
        ranks.wait_for_ends()  # none has come
        with EventSender(server.address, 0):
            wait_for(lambda: server.ranks)
            waiting = threading.Thread(target=ranks.wait_for_ends)
            waiting.start()
            assert server.still_there() and waiting.is_alive()
        waiting.join()
        assert not server.still_there()


def test_ranks_get_the_tokens_that_spark_got_while_they_run(monkeypatch):
    told, now = [], [b"first"]
    monkeypatch.setattr(launch, "hadoop_tokens", lambda: now[0])
    monkeypatch.setattr(launch, "TOKEN_SECONDS", 0.0)
    monkeypatch.setattr(launch.hdfs, "seal", lambda tokens: b"sealed " + tokens)
    ranks = launch.Ranks(None, SimpleNamespace(tell_tokens=told.append), 2, 300, jobs=JOBS)
    for now[0] in (b"first", b"second", b"second", None, b"third"):
        ranks.renew_tokens()
    assert told == [b"sealed second", b"sealed third"]


def test_ranks_know_what_the_session_says_when_they_start(spark, monkeypatch):
    """And not what it said at its own start: Hadoop's tokens end."""
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    monkeypatch.setattr("chexspark.session.last_said", {})
    hadoop.set("dfs.nameservices", "of-now")

    def rank(address):
        from chexspark import hdfs
        from chexspark.training.events import EventSender

        with EventSender(address, 0):
            return hdfs.settings()

    try:
        (known,) = launch.run_ranks(spark, rank, (), 1, print)
    finally:
        hadoop.unset("dfs.nameservices")
        spark.sparkContext.environment.pop("CHEXSPARK_HDFS")
    assert known["dfs.nameservices"] == "of-now"
