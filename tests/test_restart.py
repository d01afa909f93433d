"""What the driver does when ranks are lost, without ranks."""

import errno
import json
import socket
import time
from types import SimpleNamespace

import pytest

from chexspark import session
from chexspark.cluster import adapted_horovod, events, job, launch
from chexspark.cluster.view import EpochTable
from chexspark.config import TrainConfig
from chexspark.errors import RunFailed, Stopped, UserError
from chexspark.progress import ProgressLine
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.training import faults
from chexspark.training.checkpoint import save
from chexspark.training.events import EventSender


@pytest.fixture
def run_with_losses(monkeypatch, tmp_path):
    """A function that runs `losses` (of rank 1, at an epoch and step each) and then to the end.

    Returns how many ranks each start had. `slots`: how many each restart finds.
    """

    def run(losses, slots=None, silent_host=None, **settings):
        started, slots = [], list(slots or [2] * len(losses))

        def run_ranks(spark, function, arguments, num_proc, on_event, *others):
            started.append(num_proc)
            if len(started) > len(losses):
                return
            epoch, step = losses[len(started) - 1]
            on_event({"event": "step", "rank": 0, "epoch": epoch, "step": step, "epochs": 9,
                      "steps": 99, "images_per_second": 1.0, "loss": 0.5, "learning_rate": 0.1,
                      "seconds_left": 1.0})  # fmt: skip
            raise launch.RanksLost("rank 1 on b died", 1, silent_host)

        monkeypatch.setattr(job, "run_ranks", run_ranks)
        monkeypatch.setattr(job, "slots_again", lambda spark, wanted, least, most: slots.pop(0))
        given = {"data": "/none", "run": str(tmp_path), "num_proc": 2, "max_restarts": 5}
        job.run_to_the_end(None, build(TrainConfig, given | settings), 2)
        return started

    return run


def test_a_run_is_begun_again_with_the_slots_that_are_left(run_with_losses, capsys, tmp_path):
    save(locate(str(tmp_path)) / "checkpoints", 7, [], {"epoch": 0, "step": 7, "steps": 99})
    (tmp_path / "logs").mkdir()
    noise = "E0000 00:00:1795260240.266212 13421 cuda_dnn.cc:8310] Unable to register cuDNN"
    (tmp_path / "logs" / "rank-1.log").write_text(f"out of luck\n{noise}\n")
    assert run_with_losses([(0, 9), (1, 9), (2, 9)], slots=[2, 1, 2], min_proc=1) == [2, 2, 1, 2]
    told = capsys.readouterr().err
    assert (
        "  out of luck\nrank 1 on b died, in epoch 1, step 10; restart 1 of 5 at epoch 1, step 8\n"
        in told
    )
    assert "restart 2 of 5" in told and "no more slots: going on with 1 rank\n" in told
    assert "restart 3 of 5" in told and "more slots again: going on with 2 ranks\n" in told
    assert told.count("\ntraining again, 0 seconds after the loss\n") == 2, "of three losses"
    assert "cuDNN" not in told


def test_restarts_are_counted(run_with_losses):
    with pytest.raises(RunFailed, match="rank 1 on b died; 2 restarts were allowed"):
        run_with_losses([(0, 1), (0, 2), (0, 3)], max_restarts=2)


def test_what_fails_in_one_place_is_not_retried_for_ever(run_with_losses):
    with pytest.raises(RunFailed, match="the same 3 times, always at epoch 1, step 8: this does"):
        run_with_losses([(0, 7)] * 3)
    assert len(run_with_losses([(0, 7), (0, 7), (0, 8), (0, 7), (0, 7)])) == 6


def test_executors_of_a_silent_host_are_given_up(run_with_losses, monkeypatch):
    given_up = []
    monkeypatch.setattr(job, "replace_executors", lambda spark, host: given_up.append(host))
    run_with_losses([(0, 1), (0, 2)], silent_host="10.0.0.9")
    assert given_up == ["10.0.0.9", "10.0.0.9"]


@pytest.mark.parametrize(
    "end, reason",
    [
        (Stopped("Spark's application was ended on the cluster"), "Spark's application was ended"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_is_stopped_says_where_the_command_goes_on(monkeypatch, tmp_path, end, reason):
    def run_ranks(*arguments):
        raise end

    monkeypatch.setattr(job, "run_ranks", run_ranks)
    config = build(TrainConfig, {"data": "/none", "run": str(tmp_path)})
    with pytest.raises(Stopped, match=f"^{reason}.*; the same command goes on at epoch 1"):
        job.run_to_the_end(None, config, 2)


@pytest.mark.parametrize("slots, found", [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_slots_that_came_back_are_used(monkeypatch, slots, found):
    monkeypatch.setattr(session, "has_ended", lambda spark: False)
    monkeypatch.setattr(session, "task_slots", lambda spark: slots)
    assert session.slots_again(None, 1, 1, 3) == found


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


CONNECTED = json.dumps({"event": "connected", "rank": 1, "host": "b"}).encode() + b"\n"
DONE = json.dumps({"event": "done", "rank": 1}).encode() + b"\n"
STEP = json.dumps({"event": "step", "rank": 1}).encode() + b"\n"


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
    with events.EventServer("127.0.0.1", "127.0.0.1", seen.append) as server:
        server.listen(Line(CONNECTED, STEP, last))
        ranks = launch.Ranks(None, server, 2, 300)
        assert str(ranks.loss()) == message and ranks.loss().silent_host == host
        assert ranks.silent == ({host} if host else set())
    assert [event["event"] for event in seen] == ["step"]


FAILURE = {"rank": 0, "host": "a", "mendable": False, "own": True, "may_pass": False, "stopped": False,
           "message": "ValueError('x')"}  # fmt: skip
HOROVOD = RuntimeError("the first process to do so was:\nProcess name: 1\nExit code: 1\n")


@pytest.mark.parametrize(
    "failures, last, kind, message",
    [
        ([FAILURE], b"", RunFailed, r"rank 0 on a failed: ValueError\('x'\)"),
        ([FAILURE | {"may_pass": True}], b"", launch.RanksLost, "rank 0 on a failed"),
        ([FAILURE, FAILURE | {"mendable": True}], b"", UserError, r"^ValueError\('x'\)"),
        ([FAILURE], OSError(errno.ETIMEDOUT, ""), launch.RanksLost, "b, does not answer"),
        ([FAILURE | {"own": False}], b"", launch.RanksLost, "rank 1 on b died"),
        ([FAILURE | {"own": False}], None, launch.RanksLost, "the Spark task of rank 1 on b died"),
        (
            [FAILURE | {"own": False, "stopped": True}],
            DONE,
            launch.RanksLost,
            "the Spark task of rank 1",
        ),
        ([FAILURE | {"own": False}], DONE, launch.RanksLost, r"rank 0 on a broke off: ValueError"),
        ([], DONE, launch.RanksLost, r"ended early \((.|\n)*last words:\nalas"),
    ],
)
def test_the_reason_is_found(monkeypatch, failures, last, kind, message):
    monkeypatch.setattr(launch, "has_ended", lambda spark: False)
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0)
    with events.EventServer("127.0.0.1", "127.0.0.1", print) as server:
        if last is None:  # still connected
            server.lines[1] = events.RankLine(1, "b", Line(), 0.0)
        else:
            server.listen(Line(CONNECTED, *([last, b""] if last == DONE else [last])))
        ranks = launch.Ranks(None, server, 2, 300)
        found = launch.why(HOROVOD, ranks, failures, "alas")
        with pytest.raises(kind, match=message):
            raise found
        ranks.stopping.set()
        assert isinstance(launch.why(HOROVOD, ranks, failures, ""), Stopped)
        ranks.stopping.clear()
        monkeypatch.setattr(launch, "has_ended", lambda spark: True)
        assert isinstance(launch.why(HOROVOD, ranks, [], ""), Stopped)


def test_ranks_that_do_not_come_are_waited_for_with_a_word_and_not_for_ever(monkeypatch):
    told, slots = [], [2]
    now = stopped_clock(monkeypatch, launch)
    monkeypatch.setattr(launch, "task_slots", lambda spark: slots[0])
    with events.EventServer("127.0.0.1", "127.0.0.1", told.append) as server:
        ranks = launch.Ranks(None, server, 2, 300)
        server.lines[1] = events.RankLine(1, "b", Line(), now[0])

        def absence(seconds):
            now[0] = ranks.begun + seconds
            return ranks.absence()

        for seconds in (0.5, 1.2, 1.4, 3.0):
            assert absence(seconds) is None
        assert [(e["started"], e["ranks"], e["seconds"]) for e in told] == [
            (1, 2, pytest.approx(1.2)),
            (1, 2, pytest.approx(3.0)),
        ]
        slots[0] = 1
        assert absence(5) is absence(30) is None
        slots[0] = 2
        assert absence(36) is None, "an executor came back"
        slots[0] = 1
        assert absence(40) is None
        assert str(absence(71)) == "Spark has 1 task slots left for 2 ranks"
        slots[0] = 2
        assert absence(80) is None
        late = events.FIRST_STEP_SECONDS + 1
        assert str(absence(late)) == "1 of 2 ranks have started in 901 seconds"
        server.lines[0] = events.RankLine(0, "a", Line(), now[0])
        told.clear()
        assert absence(late) is absence(late + 2) is None
        assert told == [{"event": "placed", "rank": 0, "hosts": ["a", "b"]}]


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
        EpochTable(progress, 1).take({"event": "placed", "rank": 0, "hosts": hosts})
    assert capsys.readouterr().err == line


def stopped_clock(monkeypatch, module):
    """A list whose one value is what `time.monotonic` says in a module."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def test_ranks_for_which_slots_are_missing_do_not_start(spark, monkeypatch):
    """Spark runs two of three tasks, and Horovod would wait for the third."""
    monkeypatch.setattr(launch, "SLOTS_SECONDS", 1.0)
    with pytest.raises(launch.RanksLost, match="Spark has 2 task slots left for 3 ranks"):
        launch.run_ranks(spark, print, (), 3, lambda event: None)


def of_a_file(error):
    error.__cause__ = OSError("Input/output error")
    return error


@pytest.mark.parametrize(
    "error, mendable, own, may_pass",
    [
        (UserError("no such finding"), True, True, False),
        (of_a_file(UserError("/run/best cannot be made a folder")), False, True, True),
        (OSError("Input/output error"), False, True, True),
        (MemoryError(), False, True, True),
        (ValueError("a bug"), False, True, False),
        (faults.NotJoined("Horovod initialization failed"), False, False, False),
        (type("UnknownError", (Exception,), {})("Connection closed by peer"), False, False, False),
    ],
)
def test_what_ended_a_rank_is_told_apart(error, mendable, own, may_pass):
    found = faults.failure_of(error)
    assert (found["mendable"], found["own"], found["may_pass"]) == (mendable, own, may_pass)
    assert str(error) in found["message"] and not found["stopped"]


def test_a_fault_of_the_watch_ends_the_ranks(monkeypatch):
    ended = []
    with events.EventServer("127.0.0.1", "127.0.0.1", print) as server:
        ranks = launch.Ranks(None, server, 2, 300)
        monkeypatch.setattr(ranks, "stall", lambda: 1 / 0)
        monkeypatch.setattr(ranks, "end", lambda: ended.append(True))
        ranks.watch()
    assert ended and "could not be watched: ZeroDivisionError" in str(ranks.fault)


def test_who_comes_late_hears_of_the_stop():
    with events.EventServer("127.0.0.1", "127.0.0.1", print) as server:
        server.ask_to_stop()
        with EventSender(server.address, 0) as late:
            assert late.stopping.wait(5)
        server.hang_up()
        stranger = socket.create_connection((server.address.host, server.address.port))
        stranger.sendall(server.address.token.encode() + b"\n" + CONNECTED)
        stranger.settimeout(5)
        assert stranger.recv(1) == b"", "the server hangs up"


def test_a_rank_may_be_silent_for_longer_before_its_first_step(monkeypatch):
    now = stopped_clock(monkeypatch, events)
    with events.EventServer("127.0.0.1", "127.0.0.1", print) as server:
        line = server.lines[0] = events.RankLine(0, "a", Line(), spoke=0.0)
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
    with events.EventServer("127.0.0.1", "127.0.0.1", print) as server:
        for n in range(3):
            server.lines[n] = events.RankLine(n, "a", Line(), spoke[n], beat[n], working=True)
        found = launch.Ranks(None, server, 3, 300).stall()
    assert str(found).startswith(message) and found.rank == rank


def test_a_process_that_gives_signs_but_does_nothing_is_silent(monkeypatch):
    now, seen = stopped_clock(monkeypatch, events), []
    with events.EventServer("127.0.0.1", "127.0.0.1", seen.append) as server:
        line = server.lines[1] = events.RankLine(1, "b", Line(), now[0])
        for name in ("step", "alive", "beat"):
            now[0] += 299
            server.take(line, {"event": name, "rank": 1})
        assert server.stalled(300) == []
        now[0] += 2
        server.take(line, {"event": "beat", "rank": 1})
        assert server.stalled(300) == [line] and line.beat == now[0]
    assert [event["event"] for event in seen] == ["step"]


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
        )  # fmt: skip

    before = parts()
    with adapted_horovod.adapted_horovod("127.0.0.1", set()):
        assert all(a is not b for a, b in zip(parts(), before, strict=True))
    assert parts() == before


def test_executors_of_other_hosts_are_kept(monkeypatch):
    from chexspark.session import replace_executors

    names = {"a": "10.0.0.8", "b": "10.0.0.9"}

    def look_up(name):
        if name not in names:
            raise OSError("unknown")
        return names[name]

    monkeypatch.setattr(socket, "gethostbyname", look_up)
    executors = [
        SimpleNamespace(id=lambda n=n: str(n), hostPort=lambda h=h: f"{h}:40000")
        for n, h in enumerate(["a", "b", "gone", "b"])
    ]
    replaced = []
    listed = SimpleNamespace(size=lambda: len(executors), apply=executors.__getitem__)
    scala = SimpleNamespace(
        statusStore=lambda: SimpleNamespace(executorList=lambda live: listed),
        killAndReplaceExecutor=replaced.append,
    )
    context = SimpleNamespace(master="spark://m:7077", _jsc=SimpleNamespace(sc=lambda: scala))
    replace_executors(SimpleNamespace(sparkContext=context), "10.0.0.9")
    assert replaced == ["1", "3"]
