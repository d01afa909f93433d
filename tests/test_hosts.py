"""A standalone cluster over several hosts, by the commands of its page: environment, security, strangers, faults."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hosts
import numpy as np
import pages
import psutil
import pytest

from chexspark.run.checkpoint import latest
from chexspark.storage import locate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]
PAGE = pages.Page("standalone")
# What makes the page's training small, and the same each time.
SMALL = ("--model vgg16 --epochs 12 --batch-size 4 --threads 1 --checkpoint-steps 3 --learning-rate 1e-4 "
         "--deterministic")  # fmt: skip
STEP = re.compile(r"epoch (\d+)/\d+, step (\d+)/")


@pytest.fixture(scope="module", autouse=True)
def possible():
    if reason := hosts.missing():
        pytest.skip(f"hosts cannot be made here: {reason}")


class Cluster:
    """The page's cluster: host 1 gives the commands and has the master, `workers` are the next; the last is a stranger.

    `environment`: the archive of ``./build.sh pack``, or the folder of an unpacked one, for hosts that have no Python;
    without it they have this machine's.
    """

    def __init__(self, workers, folder, release, environment=None, disk=None):
        (shared := folder / "shared").mkdir()
        shutil.copytree(release, shared / "nih")
        self.folder, self.shared, self.environment = folder, shared, environment
        self.network = hosts.Hosts(workers + 2, shared, disk)
        self.archive = environment is not None and environment.is_file()

    def __enter__(self):
        self.network.__enter__()
        try:
            self._begin()
        except BaseException:
            self.network.__exit__()
            raise
        return self

    def _begin(self):
        first = self.network[1]
        first.run(f"{self.block(1)}\n{PAGE.commands('2. Settings')}")
        self.start(1, "3. Master")
        for n in range(2, self.network.number):
            self.start(n, "4. Workers")

    def __exit__(self, *exception):
        self.network.__exit__(*exception)

    def block(self, n):
        """The variables that the page has at its top, on a host."""
        spark = (
            "/opt/spark"
            if self.environment and n > 1
            else Path(psutil.__file__).parents[1] / "pyspark"
        )
        return pages.with_values(
            PAGE.commands(""), SPARK_HOME=spark, HOST=self.network[n].address, MASTER=f"spark://{self.network[1].address}:7077",
            CONF=self.shared / "chexspark.conf", ENVIRONMENT=self.environment or "none", RUN=self.shared / "run",
            STORE=self.shared / "store", IMAGES=self.shared / "nih/images", LABELS=self.shared / "nih/Data_Entry_2017.csv",
        )  # fmt: skip

    def start(self, n, heading):
        """Start what stands under a heading, on a host."""
        command = f"{self.block(n)}\n{PAGE.commands(heading)}\nwait"
        log = (self.folder / f"host{n}.log").open("a")
        settings = {"SPARK_WORKER_DIR": "/tmp/work"}
        if self.environment and n > 1:
            folder = None if self.archive else self.environment
            self.network[n].start(command, folder, settings=settings, log=log)
        else:
            settings["SPARK_WORKER_DIR"] = str(self.network[n].disk / "work")
            self.network[n].start_here(command, settings, log)

    def text(self, *lines, **values):
        """The page's commands on host 1, with its function ``submit``, and then lines."""
        page = PAGE.commands("5. Ingest")
        if not self.archive:  # the environment is where the executors are already
            python = "/opt/env/bin/python" if self.environment else sys.executable
            page, number = re.subn(
                "--archives [^ ]+#env",
                f"--conf spark.pyspark.python={python} --conf spark.pyspark.driver.python={sys.executable}",
                page,
            )
            assert number == 1
        setup = page[: page.index("submit --conf")]
        return "\n".join(["set -e", pages.with_values(self.block(1), **values), setup, *lines])

    def page_lines(self):
        """The commands of the last section, one each."""
        return PAGE.lines("5. Ingest")

    def run(self, line, **values):
        """Run a line of the page's; raises where it fails."""
        return self.network[1].run(self.text(line, **values))

    def begin(self, line, **values):
        """Begin a line; return an object that gives what it says, as a terminal is told it."""
        ours, theirs = os.openpty()
        with os.fdopen(theirs, "w") as terminal:
            process = self.network[1].start_here(self.text(line, **values), log=terminal)
        return pages.Talk(process, ours)


def listening(host):
    """(address, port) → command line, of what the processes of a host listen at."""
    words = ["ip", "netns", "exec", host.name, "ss", "-Htlnp"]
    found = {}
    for line in subprocess.run(
        words, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        with contextlib.suppress(psutil.Error):
            command = psutil.Process(int(re.search(r"pid=(\d+)", line)[1])).cmdline()
            found[address.removeprefix("[::ffff:").rstrip("]"), int(port)] = " ".join(command)
    return found


# What a stranger tries at each port: what Horovod's rendezvous takes, a guessed token, noise with a length.
STRANGER = r"""
import concurrent.futures, itertools, socket, sys
ASKED = [b"GET /global/0 HTTP/1.1\r\n\r\n", b"PUT /global/0 HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b"0" * 32 + b"\n{}\n",
         bytes(32) + (40).to_bytes(4, "little") + b"x" * 40, b"half"]
def ask(place, asked):
    host, port = place.split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.settimeout(60)
        try:
            connection.sendall(asked)
            return connection.recv(100)
        except ConnectionError:
            return b""
with concurrent.futures.ThreadPoolExecutor(100) as pool:
    pairs = [*itertools.product(sys.argv[1:], ASKED)]
    for (place, _), said in zip(pairs, pool.map(ask, *zip(*pairs))):
        print(place, said)
"""


def asked_by_a_stranger(host, places):
    """What is answered, if anything, to what a stranger on a host tries at places."""
    words = " ".join(f"{address}:{port}" for address, port in places)
    said = host.run(f"exec {sys.executable} -c {shlex.quote(STRANGER)} {words}").splitlines()
    assert len(said) == 5 * len(places)
    return {line for line in said if not line.endswith(" b''")}


def is_java(command):
    return Path(command.split(" ")[0]).name == "java"


def check_doors(cluster):
    """While ranks run: what listens, where, and what a stranger on another host gets of it."""
    first, *workers, stranger = cluster.network.hosts.values()
    ports = {
        place
        for host in (first, *workers)
        for place, command in listening(host).items()
        if not is_java(command) and "gloo_exec_fn" not in command  # the ring is open to its network
    }
    of_hosts = {host.address for host in (first, *workers)}
    assert {address for address, _ in ports} <= of_hosts | {"127.0.0.1"}, ports
    beyond = [place for place in ports if place[0] in of_hosts]
    of_driver = [place for place in beyond if place[0] == first.address]
    # Of the driver events and Horovod's two; of each rank the task that started it.
    assert len(of_driver) >= 3 and len(beyond) >= 3 + len(workers), ports
    assert all(20_000 <= port <= 20_063 for _, port in beyond), "they are of spark.chexspark.ports"
    assert not asked_by_a_stranger(stranger, beyond)
    # Not because nobody gets an answer: a guest does, of one of them.
    answers = asked_by_a_stranger(workers[0], of_driver)
    assert len({line.split()[0] for line in answers}) == 1, answers
    assert any("HTTP/1.0 200 OK" in line for line in answers)


def check_page(cluster):
    """The page's commands, one after the other; the doors while it trains."""
    looked = []
    for line in cluster.page_lines():
        if " train " in line:
            talk = cluster.begin(f"{line.replace('--recipe chexnet', '')} {SMALL}")
            for text in talk:
                if STEP.search(text):
                    if not looked:
                        check_doors(cluster)
                    looked.append(text)
            assert talk.process.returncode == 0 and len(looked) > 3, str(talk)
            assert "on host" in str(talk), "the ranks are on hosts of their own"
        else:
            small = (
                "--size 32"
                if " ingest " in line
                else "--bootstrap 100"
                if " evaluate " in line
                else ""
            )
            cluster.run(f"{line} {small}")
    assert (cluster.shared / "run" / "report.html").is_file()


def test_the_page_s_commands_over_three_hosts_and_a_stranger(release, tmp_path):
    """Hosts that have this machine's Python; the next test is of hosts that have none."""
    with Cluster(2, tmp_path, release) as cluster:
        check_page(cluster)


@pytest.mark.slow
def test_the_page_s_commands_on_hosts_without_python(packed, release, tmp_path):
    """Neither this checkout nor any Python is on the workers' hosts: all comes with the archive."""
    with Cluster(2, tmp_path, release, packed) as cluster:
        check_page(cluster)


@pytest.fixture(scope="module")
def larger(unpacked, release, tmp_path_factory):
    """A cluster of three workers, one more than there are ranks; its store; the weights of an undisturbed run."""
    with Cluster(3, tmp_path_factory.mktemp("larger"), release, unpacked, "1g") as cluster:
        ingest = next(line for line in cluster.page_lines() if " ingest " in line)
        cluster.run(f"{ingest} --size 32")
        seconds = train_disturbed(cluster, "undisturbed", lambda: None)[0]
        yield cluster, weights(cluster, "undisturbed"), seconds


def weights(cluster, name):
    return latest(locate(str(cluster.shared / name)) / "checkpoints").arrays()


def ranks_hosts(cluster):
    """The hosts that have ranks now."""
    return [
        host
        for host in list(cluster.network.hosts.values())[1:]
        if any("gloo_exec_fn" in command for command in commands_on(host))
    ]


def commands_on(host):
    done = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True)
    for pid in map(int, done.stdout.split()):
        with contextlib.suppress(psutil.Error):
            yield " ".join(psutil.Process(pid).cmdline())


def train_disturbed(cluster, name, disturb, *more):
    """Train; call `disturb` at a step after the second epoch. Seconds until a step followed, and what was said.

    The first step after the disturbance that is later than all before it was, or which follows a restart.
    """
    line = next(line for line in cluster.page_lines() if " train " in line)
    line = " ".join([line.replace("--recipe chexnet", ""), SMALL, *more])
    talk = cluster.begin(line, RUN=cluster.shared / name)
    begun, seconds, stack = None, None, contextlib.ExitStack()
    with stack:
        for text in talk:
            step = STEP.search(text)
            if step and begun is None and int(step[1]) > 2:
                stack.enter_context(disturb() or contextlib.nullcontext())
                begun, last = time.monotonic(), step[0]
            elif step and begun and seconds is None and step[0] != last:
                seconds = time.monotonic() - begun
            elif "restart" in text:
                seconds = None  # the steps before that were of ranks that had not noticed
    assert talk.process.returncode == 0, str(talk)
    return seconds, str(talk)


def down_for_good(host):
    host.cable("down")
    host.end()


def store_away(cluster, seconds):
    here, there = cluster.shared / "store", cluster.shared / "away"
    host = cluster.network[1]
    return host.for_a_while(seconds, lambda: here.rename(there), lambda: there.rename(here))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["cut-off", "bandwidth", "frozen", "store", "disk", "down"])
def test_a_fault_of_a_host_leaves_the_undisturbed_weights(larger, what, capfd):
    """The last one is that a host is gone for good: another takes its rank."""
    cluster, undisturbed, clean_seconds = larger
    hit, name = [], f"run-{what}"

    def disturb():
        host = ranks_hosts(cluster)[-1]
        hit.append(host)
        return {
            "cut-off": lambda: host.cut_off(60), "bandwidth": lambda: host.slow("50mbit", 60),
            "frozen": lambda: host.frozen(20), "store": lambda: store_away(cluster, 10), "disk": host.full,
            "down": lambda: down_for_good(host),
        }[what]()  # fmt: skip

    seconds, said = train_disturbed(cluster, name, disturb)
    restarts = len(re.findall(r"; restart \d of 3", said))
    with capfd.disabled():
        print(f"\n{what} on {hit[0].n}: next step after {seconds:.0f} s (undisturbed {clean_seconds:.1f} s), "
              f"{restarts} restarts")  # fmt: skip
    for ours, theirs in zip(weights(cluster, name), undisturbed, strict=True):
        np.testing.assert_array_equal(ours, theirs)


SHELL = """
import os, signal, threading, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()  # which a shell that is no terminal has not made
from chexspark import train
from chexspark.errors import StoppedError, UserError
from chexspark.training.events import Step
from chexspark.cluster.view import EpochTable
small = dict(data=STORE, model="vgg16", batch_size=4, threads=1, num_proc=2, learning_rate=1e-4, deterministic=True)
first = train(spark, run=RUN + "-a", epochs=2, **small)
print("FIRST", len(first))
try: train(spark, run=RUN + "-b", epochs=2, **small | {"batch_size": 0})
except UserError as error: print("REFUSED", error)
plain = EpochTable.take
def take(self, event):
    plain(self, event)
    if isinstance(event, Step) and event.epoch == 1 and not stopped:
        stopped.append(event.step)
        os.kill(os.getpid(), signal.SIGINT)
stopped, EpochTable.take = [], take
try: train(spark, run=RUN + "-c", epochs=3, **small)
except (StoppedError, KeyboardInterrupt) as error: print("STOPPED", repr(error))
again = train(spark, run=RUN + "-c", epochs=3, **small)
print("AGAIN", len(again), spark.range(10).count())
"""


@pytest.mark.slow
def test_calls_from_a_pyspark_shell(larger):
    """One after the other, a wrong setting, one that is interrupted and goes on: the session lives."""
    cluster = larger[0]
    script = cluster.shared / "calls.py"
    places = f"STORE, RUN = {str(cluster.shared / 'store')!r}, {str(cluster.shared / 'shell')!r}\n"
    script.write_text(places + SHELL)
    shell = cluster.text().replace("bin/spark-submit", "bin/pyspark")
    said = cluster.network[1].run(f"{shell}\necho 'exec(open(\"{script}\").read())' | submit")
    assert "FIRST 2" in said and "AGAIN 3 10" in said, said
    assert re.search("REFUSED batch_size is 0", said) and "STOPPED StoppedError" in said, said
