"""Services listen where they are to, and strangers are heard for a little while."""

import contextlib
import http.client
import io
import re
import socket
import socketserver
import struct
import threading
from types import SimpleNamespace

import horovod.runner.common.util.network as network
import psutil
import pytest
from horovod.runner.common.util import secret
from horovod.runner.http.http_server import RendezvousServer
from horovod.spark.driver.driver_service import SparkDriverClient, SparkDriverService

from chexspark import train
from chexspark.cluster import doors, horovod_services
from chexspark.cluster.doors import Door, GuardedServer
from chexspark.cluster.view import EpochTable
from chexspark.errors import UserError
from chexspark.training.events import Step

HERE = "127.0.0.1"
DOOR = Door(HERE, HERE)


class Echo(socketserver.StreamRequestHandler):
    """Says a line again to who knows the word, and hears it from then on."""

    def handle(self):
        while line := self.rfile.readline(100):
            if line == b"word\n":
                self.server.admit(self.client_address)
            self.wfile.write(line)


@pytest.fixture
def echo():
    with GuardedServer((HERE, 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def connect(server, *lines):
    connection = socket.create_connection(server.server_address, timeout=60)
    file = connection.makefile("rwb")
    for line in lines:
        file.write(line)
        file.flush()
        assert file.readline() == line
    return connection, file


def test_a_stranger_is_hung_up_on_and_who_knows_the_word_is_not(echo, monkeypatch):
    silent, _ = connect(echo)
    dripping, drops = connect(echo, b"drop\n")
    known, file = connect(echo, b"word\n")
    monkeypatch.setattr(doors, "FIRST_WORDS_SECONDS", 0.0)
    assert silent.recv(1) == b"", "it said nothing"
    assert drops.readline() == b"", "it said the wrong thing"
    file.write(b"still here\n")
    file.flush()
    assert file.readline() == b"still here\n" and not echo.strangers
    for connection in (silent, dripping, known):
        connection.close()


def test_of_too_many_strangers_the_first_has_to_go(echo, monkeypatch):
    monkeypatch.setattr(doors, "MOST_STRANGERS", 3)
    known = connect(echo, b"word\n")
    strangers = [connect(echo, b"a\n") for _ in range(4)]
    assert strangers[0][0].recv(1) == b""
    for _, file in [known, *strangers[1:]]:
        file.write(b"b\n")
        file.flush()
        assert file.readline() == b"b\n"
    for connection, _ in [known, *strangers]:
        connection.close()


@pytest.mark.parametrize("text", ["a-b", "5", "40000-", "50000-40000", "1-70000", "40000-70000"])
def test_a_range_of_ports_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=rf"spark.chexspark.ports={text} must be FIRST-LAST"):
        doors.ports_of(text)


def test_ports_are_of_the_range_and_a_full_one_is_told():
    assert doors.ports_of(" ") == () and doors.ports_of("40000-40002") == (40000, 40001, 40002)
    assert doors.ports_of("40000") == (40000,)
    with socket.create_server((HERE, 0)) as taken:
        (port,) = ports = (taken.getsockname()[1],)
        with pytest.raises(UserError, match=f"no port from {port} to {port} is free on .*widen"):
            Door(HERE, HERE, ports).open(lambda address: GuardedServer(address, Echo))
    with Door(HERE, HERE, ports).open(lambda address: GuardedServer(address, Echo)) as server:
        assert server.server_address == (HERE, port)


@pytest.mark.parametrize(
    "bind, host, found",
    [
        ("127.0.0.1", "anything", HERE), ("0.0.0.0", "127.0.0.1", HERE), ("0.0.0.0", "192.0.2.1", ""),
        ("127.0.1.1", "anything", HERE), ("no.such.host.invalid", "127.0.0.1", HERE),
    ],
)  # fmt: skip
def test_the_drivers_own_address(bind, host, found):
    assert doors.own_address(bind, host) == found


def test_every_interface_is_one_of_ours():
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == socket.AF_INET:
                assert doors.own_address("0.0.0.0", entry.address) == entry.address
    assert DOOR.in_task() == DOOR


def test_horovods_services_listen_at_the_door_and_note_who_registers():
    key, guests = secret.make_secret_key(), set()
    with horovod_services.closed_services(DOOR, guests):
        service = SparkDriverService(1, 1, print, (), {}, key, None)
        assert service._server.socket.getsockname() == (HERE, service.get_port())
        assert service.addresses() == {"lo": [(HERE, service.get_port())]}
        stranger = socket.create_connection((HERE, service.get_port()), timeout=60)
        stranger.sendall(b"\0" * secret.DIGEST_LENGTH + struct.pack("i", 1 << 30))
        assert stranger.recv(1) == b"", "a message of a GiB"
        client = SparkDriverClient(service.addresses(), key, verbose=0)
        assert not guests
        client.register_task(0, {"eth0": [("10.0.0.7", 1)], "lo": [("127.0.0.1", 1)]}, "host")
        assert guests == {HERE, "10.0.0.7"} and not service._server.strangers
        with pytest.raises(Exception, match="unable to connect"):
            SparkDriverClient(service.addresses(), secret.make_secret_key(), verbose=0)
        stranger.close()
        service.shutdown()
    assert network.BasicService._make_handler.__module__ == network.__name__


def test_a_message_without_the_key_is_not_unpickled():
    wire, theirs = (horovod_services.BoundedWire(secret.make_secret_key()) for _ in range(2))
    sent = io.BytesIO()
    wire.write({"a": 1}, sent)
    assert wire.read(io.BytesIO(sent.getvalue())) == {"a": 1}
    with pytest.raises(ValueError, match="who does not know the key"):
        theirs.read(io.BytesIO(sent.getvalue()))
    for length in (10, secret.DIGEST_LENGTH + 2, len(sent.getvalue()) - 1):
        with pytest.raises((EOFError, ValueError)):
            wire.read(io.BytesIO(sent.getvalue()[:length]))


def ask(port, method, path, body=None):
    """The status and the answer, or nothing of who hangs up."""
    connection = http.client.HTTPConnection(HERE, port, timeout=60)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_horovods_rendezvous_answers_its_guests_and_ends(wait_for):
    guests = set()
    with horovod_services.closed_rendezvous(DOOR, guests):
        server = RendezvousServer()
        port = server.start()
        assert server._httpd.server_address == (HERE, port)
        assert ask(port, "PUT", "/global/0", b"address") is None
        assert ask(port, "GET", "/global/0") is None
        guests.add(HERE)
        assert ask(port, "GET", "/global/0") == (404, b"")
        assert ask(port, "PUT", "/global/0", b"address") == (200, b"")
        assert ask(port, "GET", "/global/0") == (200, b"address")
    wait_for(lambda: ask(port, "GET", "/global/0") is None)


def test_a_ranks_command_gets_its_tasks_interfaces():
    command = "HOROVOD_GLOO_IFACE=eth0 NCCL_SOCKET_IFNAME=eth0 python -m x HOROVOD_GLOO_IFACE_=1"
    assert horovod_services.INTERFACE.sub(r"\g<1>ens5", command) == (
        "HOROVOD_GLOO_IFACE=ens5 NCCL_SOCKET_IFNAME=ens5 python -m x HOROVOD_GLOO_IFACE_=1"
    )
    pairs = {"lo": [("127.0.0.1", 1)], "eth0": [("10.0.0.1", 1), ("10.0.0.2", 1)]}
    assert horovod_services.bound(pairs, "10.0.0.2") == {"eth0": [("10.0.0.2", 1)]}
    assert horovod_services.bound(pairs, "0.0.0.0") == pairs


def test_nothing_listens_beyond_this_host_in_local_mode_and_nothing_afterwards(
    spark, store, tmp_path, monkeypatch, wait_for
):
    """Looked at while ranks take steps: this process, its Python workers and the ranks."""
    plain, seen = EpochTable.take, []

    def family():
        return [psutil.Process(), *psutil.Process().children(recursive=True)]

    def listening():
        found = set()
        for process in family():
            with contextlib.suppress(psutil.Error):
                if process.name() != "java":  # Spark's own
                    found |= {
                        c.laddr for c in process.net_connections("tcp") if c.status == "LISTEN"
                    }
        return found

    def take(self, event):
        plain(self, event)
        if isinstance(event, Step) and not seen:
            seen.append(listening())

    before = listening()
    monkeypatch.setattr(EpochTable, "take", take)
    recipe = {"model": "vgg16", "epochs": 1, "batch_size": 8, "num_proc": 2, "threads": 1}
    train(spark, data=store.path, run=str(tmp_path / "run"), **recipe)
    # Events, Horovod's driver and rendezvous, two tasks, and the ring of each rank.
    assert len(seen[0] - before) >= 5
    assert {place.ip for place in seen[0] - before} == {HERE}
    wait_for(lambda: not listening() - before)


def test_a_wrong_range_is_told_before_ranks_start(spark, monkeypatch):
    conf = SimpleNamespace(
        get=lambda name, default=None: "70000" if name == doors.PORTS else default
    )
    context = SimpleNamespace(getConf=lambda: conf, master="local[2]")
    with pytest.raises(UserError, match=re.escape("spark.chexspark.ports=70000 must be")):
        doors.door_of(SimpleNamespace(sparkContext=context))
