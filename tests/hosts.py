"""Several hosts on one machine: each a network namespace on a common bridge, for tests of clusters.

A host's processes see the other hosts, a folder that all share, and Spark; on a bare host not this
checkout, and no Python of this machine. Only root can make them: `missing` says what is lacking.
"""

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pyspark

ROOT = Path(__file__).parent.parent
NETWORK = "10.231.7"
NUMBERS = itertools.count()

# Run in namespaces of its own: $1 is to be the root folder, $2 what is shared, $3 the host's own disk, $4 the
# host's name, $5 the environment with its Python, empty on a host that has this machine's, $6 Spark's folder.
BARE = r"""
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"; cd "$1"
for folder in bin sbin lib lib64; do
  if [ -L /$folder ]; then ln -s "$(readlink /$folder)" $folder; else mkdir $folder; mount --rbind /$folder $folder; fi
done
mkdir -p usr etc proc dev tmp opt/spark opt/env nothing
mount --rbind /usr usr; mount --rbind /etc etc; mount --rbind /dev dev; mount -t proc proc proc
mount --bind "$3" tmp; mkdir -p ".$2"; mount --bind "$2" ".$2"; mount --bind "$6" opt/spark
: >empty
mount --bind "$2/hosts" etc/hosts
if [ "$5" ]; then
  [ "$5" = none ] || mount --bind "$5" opt/env
  for path in usr/local usr/lib/python3*; do [ ! -d $path ] || mount --bind nothing $path; done
  for path in usr/bin/python* usr/bin/pypy*; do [ ! -f $path ] || mount --bind empty $path; done
fi
hostname "$4"
shift 6
exec chroot . "$@"
"""


def missing():
    """Why hosts cannot be made here; None where they can."""
    for words in (
        ["ip", "netns", "list"],
        ["tc", "qdisc"],
        ["unshare", "--mount", "--uts", "true"],
    ):
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        if done.returncode:
            return f"{shlex.join(words)}: {done.stderr.strip()}"
    name = f"cx{os.getpid()}x"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode == 0:
        ip("netns", "del", name)
    return done.stderr.strip() or None


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Hosts:
    """A context manager; `hosts[n]` is the host with the address that ends in n, from 1.

    `shared`: a folder that all see under its path; `disk`: the size of each host's own, ``300m`` say, where it has
    an end.
    """

    def __init__(self, number, shared, disk=None):
        self.shared, self.disk, self.stack = Path(shared), disk, contextlib.ExitStack()
        self.prefix = f"cx{os.getpid() % 100_000}-{next(NUMBERS)}"
        self.switch = f"{self.prefix}s"
        self.number, self.hosts = number, {}

    def __enter__(self):
        lines = ["127.0.0.1 localhost"]
        lines += [f"{NETWORK}.{n} host{n}" for n in range(1, self.number + 1)]
        (self.shared / "hosts").write_text("\n".join(lines) + "\n")
        with contextlib.ExitStack() as stack:
            self._namespace(stack, self.switch)
            self._in_switch("link", "add", "bridge", "type", "bridge")
            self._in_switch("link", "set", "bridge", "up")
            for n in range(1, self.number + 1):
                self.hosts[n] = self._host(stack, n)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        for host in self.hosts.values():
            host.end()
        self.stack.close()

    def __getitem__(self, n):
        return self.hosts[n]

    def _namespace(self, stack, name):
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("netns", "exec", name, "ip", "link", "set", "lo", "up")

    def _in_switch(self, *words):
        ip("netns", "exec", self.switch, "ip", *words)

    def _host(self, stack, n):
        name = f"{self.prefix}h{n}"
        self._namespace(stack, name)
        ip(
            "-n",
            self.switch,
            "link",
            "add",
            f"port{n}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            name,
        )
        self._in_switch("link", "set", f"port{n}", "master", "bridge")
        self._in_switch("link", "set", f"port{n}", "up")
        ip("-n", name, "address", "add", f"{NETWORK}.{n}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        disk = self.shared.parent / f"disk{n}"
        disk.mkdir(exist_ok=True)
        if self.disk:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={self.disk}", "none", disk], check=True
            )
            stack.callback(subprocess.run, ["umount", "--lazy", disk], check=True)
        return Host(self, n, name, disk)


class Host:
    """One host. `disk`: its own temporary folder."""

    def __init__(self, hosts, n, name, disk):
        self.hosts, self.n, self.name, self.disk = hosts, n, name, disk
        self.address, self.processes = f"{NETWORK}.{n}", []

    def start(self, command, environment=None, spark=None, settings=None, log=None):
        """Begin a command of bash on a bare host; `environment`: what lies in ``/opt/env`` there, if anything does."""
        (root := self.disk.with_name(f"root{self.n}")).mkdir(exist_ok=True)
        words = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
                 "sh", "-c", BARE, "sh", root, self.hosts.shared, self.disk, f"host{self.n}", environment or "none",
                 spark or Path(pyspark.__file__).parent, "bash", "-c", command]  # fmt: skip
        return self._begin(
            words, self.variables() | {"SPARK_HOME": "/opt/spark"} | (settings or {}), log
        )

    def start_here(self, command, settings=None, log=None):
        """Begin a command of bash that sees this machine's files, and so this checkout and its Python."""
        names = f"mount --make-rprivate / && mount --bind {self.hosts.shared}/hosts /etc/hosts && hostname host{self.n}"
        words = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
                 "--mount-proc", "sh", "-c", f'{names} && exec bash -c "$1"', "sh", command]  # fmt: skip
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        return self._begin(words, self.variables() | own | (settings or {}), log)

    def variables(self):
        """What a host's shell has."""
        java = {"JAVA_HOME": os.environ["JAVA_HOME"]} if "JAVA_HOME" in os.environ else {}
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "SPARK_LOCAL_IP": self.address,
            "SPARK_WORKER_DIR": "/tmp/work", "OMP_NUM_THREADS": "1", **java,
        }  # fmt: skip

    def run(self, command, **more):
        """The output of a command that this machine's files are for; which must end well."""
        process = self.start_here(command, **more)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, f"{command}\n{said}"
        return said

    def _begin(self, words, variables, log):
        process = subprocess.Popen(
            [str(word) for word in words], env=variables, cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self):
        """End all its processes: the first of its process namespaces is killed, and all others with it."""
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
            process.kill()
            process.wait()

    def each(self, number):
        """Send a signal to all its processes."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        for pid in map(int, done.stdout.split()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def cable(self, state):
        """Plug it in or out: ``up`` or ``down``."""
        self.hosts._in_switch("link", "set", f"port{self.n}", state)

    @contextlib.contextmanager
    def for_a_while(self, seconds, begin, end):
        """Do something now and something else after so many seconds, and at the end at the latest."""
        done = threading.Event()

        def once():
            if not done.is_set():
                done.set()
                end()

        begin()
        timer = threading.Timer(seconds, once)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            once()

    @contextlib.contextmanager
    def full(self):
        """Inside, its disk is full."""
        filler = self.disk / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
            yield
        finally:
            filler.unlink()

    def frozen(self, seconds):
        """A context manager: its processes stand still for so many seconds."""
        stop, go = signal.SIGSTOP, signal.SIGCONT
        return self.for_a_while(seconds, lambda: self.each(stop), lambda: self.each(go))

    def slow(self, rate, seconds):
        """A context manager: it sends no more than ``20mbit``, say, for so many seconds."""
        queue = ["netns", "exec", self.name, "tc", "qdisc"]
        limit = ["dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
        return self.for_a_while(
            seconds,
            lambda: ip(*queue, "add", *limit),
            lambda: ip(*queue, "del", "dev", "eth0", "root"),
        )

    def cut_off(self, seconds):
        """A context manager: its cable is out for so many seconds."""
        return self.for_a_while(seconds, lambda: self.cable("down"), lambda: self.cable("up"))
