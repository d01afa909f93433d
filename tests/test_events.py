"""Events between ranks and driver: how they travel, and what they are."""

import contextlib
import socket

import pytest

from chexspark import hdfs
from chexspark.cluster.doors import Door
from chexspark.cluster.events import EventServer
from chexspark.progress import ProgressLine, duration
from chexspark.training.events import (
    LONGEST_TEXT,
    Alive,
    Beat,
    Connected,
    Done,
    Epoch,
    Event,
    EventAddress,
    EventSender,
    Failed,
    Note,
    Placed,
    Problem,
    Round,
    Starting,
    Step,
    Validating,
    Waiting,
    decode,
    encode,
)  # fmt: skip

DOOR = Door("127.0.0.1", "127.0.0.1")
STEP = Step(1, 3, 2, 9, loss=0.5, learning_rate=0.1, images_per_second=7.5, seconds_left=3.0)
# One of each kind of event that ranks send.
EVENTS = [
    Connected(2, "a"), Beat(), Alive(), Done(), Note("a line"), Problem(2, "a", "low on disk"),
    Failed(2, "a", "ValueError('x')", user_error=False, own=True, may_pass=False, stopped=False),
    Starting("TensorFlow"), STEP, Validating(1), Round(4),
    Epoch(1, 0.5, 0.25, 0.75, 0.001, 7.5, 61.0, best=True),
    Epoch(1, 0.5, 0.25, None, 0.001, float("inf"), 61.0, best=False),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event):
    line = encode(event)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode(line) == event


def test_every_kind_of_event_is_among_them():
    kinds = {kind for kind in Event.__subclasses__() if kind not in (Waiting, Placed)}
    assert {type(event) for event in EVENTS} == kinds


STRANGE = [
    b"", b"no JSON", b"[]", b"1", b'{"event": []}', b'{"event": "waiting"}', b'{"event": "hello"}',
    b'{"rank": 1}', b'{"event": "round"}', b'{"event": "round", "round": 1, "more": 2}',
    b'{"event": "round", "round": "1"}', b'{"event": "round", "round": 1.5}',
    b'{"event": "round", "round": true}', b'{"event": "note", "text": null}', b"[" * 60_000,
    b'{"event": "connected", "rank": 1, "host": ["a"]}', b'{"event": "beat", "beat": 1}', b"\xff\xfe",
    encode(STEP).replace(b"0.5", b'"0.5"'), encode(STEP).replace(b"0.5", b"null"),
    encode(EVENTS[-2]).replace(b"true", b"1"),
]  # fmt: skip


@pytest.mark.parametrize("line", STRANGE, ids=range(len(STRANGE)))
def test_a_line_that_is_no_event_is_refused(line):
    with pytest.raises(ValueError):
        decode(line)


def test_a_whole_number_is_a_number():
    assert decode(encode(STEP).replace(b"0.5", b"1")).loss == 1


def test_events_arrive_with_their_rank(wait_for):
    seen = []
    with EventServer(DOOR, 8, lambda *said: seen.append(said)) as server:
        with EventSender(server.address, 3) as sender:
            sender.send(STEP)
            sender.send(Note("a line"))
        wait_for(lambda: len(seen) == 2)
    assert seen == [(3, STEP), (3, Note("a line"))]


def test_who_does_not_know_the_token_is_not_heard(wait_for):
    seen = []
    with EventServer(DOOR, 8, lambda *said: seen.append(said)) as server:
        stranger = EventAddress("127.0.0.1", server.address.port, "guess")
        with EventSender(stranger, 0) as sender, contextlib.suppress(OSError):
            # The server hangs up without reading on: each of these may find the line cut.
            sender.send(Note("lies"))
            sender.socket.shutdown(socket.SHUT_WR)
            assert sender.socket.recv(1) == b""
        with EventSender(server.address, 1) as sender:
            sender.send(Validating(1))
        wait_for(lambda: seen)
    assert seen == [(1, Validating(1))]


@pytest.mark.parametrize("rank", [-1, 2, 10**30])
def test_a_number_that_no_rank_has_is_hung_up_on(rank):
    with EventServer(DOOR, 2, print) as server:
        address = server.address.host, server.address.port
        with socket.create_connection(address) as strange:
            strange.sendall(server.address.token.encode() + b"\n" + encode(Connected(rank, "a")))
            assert strange.recv(1) == b""
        assert not server.ranks


@pytest.mark.parametrize("line", [line for line in STRANGE if line])
def test_who_says_what_is_no_event_is_hung_up_on_and_others_are_heard(wait_for, line):
    seen = []
    with EventServer(DOOR, 8, lambda *said: seen.append(said)) as server:
        address = server.address.host, server.address.port
        with socket.create_connection(address) as strange, EventSender(server.address, 1) as sender:
            strange.sendall(server.address.token.encode() + b"\n" + encode(Connected(0, "a")))
            wait_for(lambda: len(server.ranks) == 2)
            assert server.lost() is None
            strange.sendall(line.strip() + b"\n" + encode(Note("unheard")))
            wait_for(server.lost)
            assert server.lost().rank == 0
            strange.settimeout(60)
            with contextlib.suppress(ConnectionResetError):  # what it said last was not read
                assert strange.recv(1) == b""
            sender.send(Note("heard"))
            wait_for(lambda: seen)
    assert seen == [(1, Note("heard"))]


def test_a_long_text_is_cut_and_a_screen_that_is_gone_is_no_loss(wait_for):
    seen = []

    def show(rank, event):
        seen.append(event)
        raise BrokenPipeError

    with EventServer(DOOR, 8, show) as server:
        with EventSender(server.address, 0) as sender:
            sender.send(Problem(0, "a", "\u00e9" * 100_000))
            sender.send(Problem(0, "a", "short"))
        wait_for(lambda: 0 in server.ranks and server.ranks[0].done)
        assert server.lost() is None
    assert [len(event.text) for event in seen] == [LONGEST_TEXT, 5]


def test_a_rank_gives_signs_while_it_works(wait_for):
    with EventServer(DOOR, 8, print) as server, EventSender(server.address, 0):
        wait_for(lambda: 0 in server.ranks and server.ranks[0].beat)
        first = server.ranks[0].beat
        wait_for(lambda: server.ranks[0].beat > first)
        # Within: when it closes, it says that it is done.
        assert server.ranks[0].spoke < first


class Terminal:
    def __init__(self, live):
        self.live, self.text = live, ""

    def isatty(self):
        return self.live

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_progress_line_rewrites_itself_on_a_terminal_only():
    screen, file = Terminal(True), Terminal(False)
    for stream in (screen, file):
        with ProgressLine(stream) as line:
            line.show("half way there")
            line.show("done")
            line.say("lasting")
    assert screen.text.startswith("\rhalf way there\rdone          ") and "lasting\n" in screen.text
    assert file.text == "lasting\n", "ten seconds have not passed"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_new_tokens_reach_ranks_that_are_there_and_those_that_come_later(wait_for, monkeypatch):
    taken = []
    monkeypatch.setattr(hdfs, "take_tokens", taken.append)
    monkeypatch.setenv(hdfs.KEY, hdfs.sealing_key())
    with EventServer(DOOR, 8, print) as server, EventSender(server.address, 0) as first:
        wait_for(lambda: 0 in server.ranks)
        server.tell_tokens(b"of another driver")
        server.tell_tokens(hdfs.seal(b"HDTS new"))
        wait_for(lambda: taken == [b"HDTS new"])
        with EventSender(server.address, 1) as second:
            wait_for(lambda: taken == [b"HDTS new"] * 2)
            server.ask_to_stop()
            wait_for(lambda: first.stopping.is_set() and second.stopping.is_set())
