"""Events between ranks and driver: how they travel, and what they are."""

import ast
import contextlib
import socket
from pathlib import Path

import pytest

from chexspark.cluster.events import EventServer
from chexspark.progress import ProgressLine, duration
from chexspark.training.events import EVENTS, LONGEST_TEXT, Event, EventAddress, EventSender


def test_events_arrive_with_their_rank(wait_for):
    seen = []
    with EventServer("127.0.0.1", "127.0.0.1", seen.append) as server:
        with EventSender(server.address, 3) as sender:
            sender.send("step", loss=0.5)
            sender.send("epoch", epoch=1)
        wait_for(lambda: len(seen) == 2)
    assert seen == [
        {"event": "step", "rank": 3, "loss": 0.5}, {"event": "epoch", "rank": 3, "epoch": 1},
    ]  # fmt: skip


def test_who_does_not_know_the_token_is_not_heard(wait_for):
    seen = []
    with EventServer("127.0.0.1", "127.0.0.1", seen.append) as server:
        stranger = EventAddress("127.0.0.1", server.address.port, "guess")
        with EventSender(stranger, 0) as sender, contextlib.suppress(OSError):
            # The server hangs up without reading on: each of these may find the line cut.
            sender.send("failed", message="lies")
            sender.socket.shutdown(socket.SHUT_WR)
            assert sender.socket.recv(1) == b""
        with EventSender(server.address, 1) as sender:
            sender.send("epoch")
        wait_for(lambda: seen)
    assert seen == [{"event": "epoch", "rank": 1}]


def test_a_long_text_is_cut_and_a_screen_that_is_gone_is_no_loss(wait_for):
    seen = []

    def show(event):
        seen.append(event)
        raise BrokenPipeError

    with EventServer("127.0.0.1", "127.0.0.1", show) as server:
        with EventSender(server.address, 0) as sender:
            sender.send("problem", text="\u00e9" * 100_000)
            sender.send("problem", text="short")
        wait_for(lambda: 0 in server.ranks and server.ranks[0].done)
        assert server.lost() is None
    assert [len(event["text"]) for event in seen] == [LONGEST_TEXT, 5]


def test_a_rank_gives_signs_while_it_works(wait_for):
    with EventServer("127.0.0.1", "127.0.0.1", print) as server, EventSender(server.address, 0):
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


def sent_events():
    """Name, keys, and whether there may be more, of each event that chexspark's code sends."""
    for path in (Path(__file__).parent.parent / "chexspark").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in ("send", "tell") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    keys = {keyword.arg for keyword in node.keywords}
                    yield name.value, keys - {None}, None in keys


def test_every_event_that_is_sent_is_declared_with_its_keys():
    sent = list(sent_events())
    assert {name for name, *_ in sent} == set(EVENTS)
    for name, keys, more in sent:
        declared = set(EVENTS[name].__annotations__) - set(Event.__annotations__)
        assert keys == declared or (more and keys <= declared), name
