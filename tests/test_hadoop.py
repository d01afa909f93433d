"""YARN and HDFS with Hadoop's own daemons over several hosts, by the commands of YARN's page; with Kerberos, too."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time

import hadoop
import hosts
import numpy as np
import pages
import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]
PAGE = pages.Page("yarn")
SMALL = "--model vgg16 --batch-size 8 --threads 1 --checkpoint-steps 3 --deterministic"
# What the page's settings give an executor is more than two hosts on one machine have.
LITTLE = {
    "spark.executor.cores": 1, "spark.task.cpus": 1, "spark.executor.memory": "600m",
    "spark.executor.memoryOverhead": "2400m", "spark.driver.memory": "800m", "spark.driver.memoryOverhead": "1500m",
    "spark.executorEnv.OMP_NUM_THREADS": 1,
}  # fmt: skip
STEP = re.compile(r"epoch (\d+)/\d+, step (\d+)/")
SECONDS = 600


@pytest.fixture(scope="module", autouse=True)
def possible():
    if reason := hosts.missing() or hadoop.missing():
        pytest.skip(f"a cluster of Hadoop's cannot be made here: {reason}")


class Cluster:
    """Hadoop over three hosts; the page's commands are given on the first one.

    `environment`: an unpacked environment in the workers' ``/opt/env``, or the archive; without it they have this
    machine's Python.
    """

    def __init__(self, folder, release, environment=None, **more):
        (shared := folder / "shared").mkdir()
        self.folder, self.shared, self.release = folder, shared, release
        self.environment = environment
        self.archive = environment is not None and environment.is_file()
        self.network = hosts.Hosts(3, shared)
        unpacked = environment if environment and not self.archive else None
        self.hadoop = hadoop.Hadoop(
            self.network, folder, environment=unpacked, bare=environment is not None, **more
        )

    def __enter__(self):
        self.network.__enter__()
        try:
            self.hadoop.__enter__()
            self.settings = self.write_settings()
            self.put(self.release, "/data/nih")
        except BaseException:
            self.network.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.network.__exit__(*exception)

    def put(self, folder, place):
        """Copy a local folder to HDFS."""
        self.hadoop.dfs("-put", str(folder), place)
        self.hadoop.dfs("-chmod", "-R", "777", place)

    def write_settings(self):
        """The page's settings, small."""
        text = (hosts.ROOT / "conf/clusters/yarn/cpu.conf").read_text()
        lines = [line for line in text.splitlines() if line.split(" ")[0] not in LITTLE]
        lines += [f"{name} {value}" for name, value in LITTLE.items()]
        (place := self.shared / "yarn.conf").write_text("\n".join(lines) + "\n")
        return place

    def text(self, *lines, **values):
        """The page's commands on host 1, with its function ``submit``, and then lines."""
        named = {
            "HADOOP_CONF_DIR": self.hadoop.conf, "CONF": self.settings, "ENVIRONMENT": self.environment or "none",
            "IMAGES": f"{self.hadoop.uri}/data/nih/images", "LABELS": f"{self.hadoop.uri}/data/nih/Data_Entry_2017.csv",
            "STORE": f"{self.hadoop.uri}/data/store", "RUN": f"{self.hadoop.uri}/data/run", **values,
        }  # fmt: skip
        setup = PAGE.commands("2. Ingest").partition("submit --conf")[0]
        if not self.archive:  # the environment is where the containers are already
            python = "/opt/env/bin/python" if self.environment else sys.executable
            setup, number = re.subn(
                "--archives [^ ]+#env",
                f"--conf spark.pyspark.python={python} --conf spark.yarn.jars={self.jars()}",
                setup,
            )
            assert number == 1
        return "\n".join(["set -e", pages.with_values(PAGE.commands(""), **named), setup, *lines])

    def jars(self):
        """Where containers find Spark, which is a copy less for each command."""
        return f"local:{'/opt/spark' if self.environment else hadoop.SPARK}/jars/*"

    @property
    def python(self):
        """The driver's in a container."""
        return (
            "./env/bin/python"
            if self.archive
            else "/opt/env/bin/python"
            if self.environment
            else sys.executable
        )

    def run(self, line, **values):
        """Run a line of the page's; what it says. Raises where it fails."""
        return self.network[1].run(self.text(line, **values), settings=self.hadoop.variables(1))

    def begin(self, line, **values):
        """Begin a line; return an object that gives what it says, as a terminal is told it."""
        ours, theirs = os.openpty()
        with os.fdopen(theirs, "w") as terminal:
            process = self.network[1].start_here(
                self.text(line, **values), self.hadoop.variables(1), terminal
            )
        return pages.Talk(process, ours)

    def python_on_1(self, code, *words):
        """What a script says on host 1."""
        with_words = shlex.join([sys.executable, "-c", code, *map(str, words)])
        settings = {**self.hadoop.variables(1), "PYTHONPATH": f"{hosts.ROOT}:{hosts.ROOT}/tests"}
        return self.network[1].run(with_words, settings=settings)

    def applications(self):
        """Ids of those that run."""
        said = self.hadoop.yarn("-list")
        return re.findall(r"^(application_\d+_\d+)\s", said, re.M)

    def ranks(self):
        """Processes of ranks, on the workers."""
        found = []
        for process in psutil.process_iter():
            try:
                if "gloo_exec_fn" in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


def train_line(more=""):
    """The page's training, small."""
    (line,) = [line for line in PAGE.lines("2. Ingest") if " train " in line]
    return f"{line.replace('--recipe chexnet', '')} {SMALL} {more}"


def ingest_line(more=""):
    (line,) = [line for line in PAGE.lines("2. Ingest") if " ingest " in line]
    return f"{line} --size 32 {more}"


def check_page(cluster):
    """The page's commands, one after the other; by line its seconds."""
    seconds = {}
    values = {
        "STORE": f"{cluster.hadoop.uri}/data/store-of-the-page",
        "RUN": f"{cluster.hadoop.uri}/data/run",
    }
    for line in PAGE.lines("2. Ingest"):
        began = time.monotonic()
        if " train " in line:
            said = cluster.run(train_line("--epochs 2"), **values)
            assert re.search(r"rank 0 on host\d, rank 1 on host\d", said), said
            assert "restart" not in said, said
        elif " ingest " in line:
            cluster.run(ingest_line(), **values)
        else:
            cluster.run(line + (" --bootstrap 100" if " evaluate " in line else ""), **values)
        seconds[line.split(" --data")[0][-20:]] = round(time.monotonic() - began)
    print(seconds)
    listed = cluster.hadoop.dfs("-ls", "/data/run")
    for name in ("best", "predictions", "metrics", "report.html", "model_card.md"):
        assert f"/data/run/{name}" in listed, listed


# --- a cluster for all that follows, of hosts that have this machine's Python -----------------


@pytest.fixture(scope="module")
def plain(release, tmp_path_factory):
    """HDFS and YARN as they come: nobody is asked who he is. There is a store."""
    with Cluster(tmp_path_factory.mktemp("plain"), release) as cluster:
        cluster.run(ingest_line())
        yield cluster


def test_the_page_s_commands_on_yarn_and_hdfs(plain):
    check_page(plain)


def test_the_page_s_commands_on_hosts_without_python(packed, release, tmp_path):
    """All comes with the archive, from the driver's disk."""
    with Cluster(tmp_path, release, packed) as cluster:
        check_page(cluster)


def test_the_archive_may_lie_on_hdfs(packed, release, tmp_path):
    with Cluster(tmp_path, release, packed) as cluster:
        cluster.put(packed, "/data/env.tar.gz")
        on_hdfs = {"ENVIRONMENT": "hdfs:///data/env.tar.gz"}
        cluster.run(ingest_line(), **on_hdfs)
        cluster.run(train_line("--epochs 1"), **on_hdfs)


def look(cluster, code, *words):
    """What a script with a `locate` says on host 1, as JSON."""
    start = "import json, sys\nfrom chexspark.storage import locate\n"
    said = cluster.python_on_1(start + code, *words)
    return json.loads(said.splitlines()[-1])


CHECKPOINT = """
from chexspark.run.checkpoint import latest
found = latest(locate(sys.argv[1]) / "checkpoints")
print(json.dumps(found and [found.state["epoch"], found.state["step"], found.state["finished"]]))
"""
IMAGES = """
from chexspark.store.manifest import read_manifest
store = locate(sys.argv[1])
names, patients = [], {}
if (store / "dataset.json").exists():
    for split, part in read_manifest(store).splits.items():
        for file in part.files:
            table = (store / file.path).read_table().select(["image_index", "patient_id"])
            names += table["image_index"].to_pylist()
            patients |= dict.fromkeys(table["patient_id"].to_pylist(), split)
print(json.dumps([sorted(names), patients]))
"""


def until_step(talk, epoch=2, step=3):
    """Hear a training until it is there."""
    for text in talk:
        found = STEP.search(text)
        if found and (int(found[1]), int(found[2])) >= (epoch, step):
            return
    raise AssertionError(f"it never came to epoch {epoch}, step {step}:\n{talk}")


def ask_to_end(talk):
    """Send SIGTERM to a command's driver."""
    for process in psutil.Process(talk.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("python") and "__main__.py" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGTERM)


def hear_out(talk):
    """Hear it to its end, whichever; its exit code."""
    for _ in talk:
        pass
    return talk.process.returncode


def no_ranks(cluster, seconds=60):
    """Whether all ranks end within so many seconds."""
    until = time.monotonic() + seconds
    while cluster.ranks() and time.monotonic() < until:
        pause(0.5)
    return not cluster.ranks()


def pause(seconds):
    """For a look again, or a kill at some time or other."""
    time.sleep(seconds)


def test_files_belong_to_who_gave_the_command(plain):
    """Whoever the containers run as."""
    store = f"{plain.hadoop.uri}/data/of-eva"
    plain.run(f"export HADOOP_USER_NAME=eva\n{ingest_line()}", STORE=store)
    listed = plain.hadoop.dfs("-ls", "-R", "/data/of-eva")
    owners = set(re.findall(r"^[-d]\S+ +\S+ (\w+) ", listed, re.M))
    assert owners == {"eva"}, listed


def test_the_driver_in_a_container_and_its_client_gone(plain):
    """``--deploy-mode cluster``: the command is killed as soon as ranks work, and the run comes to its end."""
    run = f"{plain.hadoop.uri}/data/of-cluster-mode"
    line = train_line("--epochs 4").replace(
        "submit ",
        f"submit --deploy-mode cluster --conf spark.pyspark.driver.python={plain.python} ",
        1,
    )
    talk = plain.begin(line, RUN=run)
    wait_for(lambda: plain.ranks(), SECONDS)
    for child in psutil.Process(talk.process.pid).children(recursive=True):
        child.kill()
    hear_out(talk)
    assert no_ranks(plain, SECONDS)
    assert look(plain, CHECKPOINT, run)[2], "it is finished"


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        pause(0.5)
    return found


def test_an_application_that_is_killed_and_a_driver_that_is_asked_to_end(plain):
    """All ranks end, a checkpoint is there, and the same command goes on from it."""
    for how in ("yarn", "SIGTERM"):
        run = f"{plain.hadoop.uri}/data/ended-by-{how}"
        talk = plain.begin(train_line("--epochs 6"), RUN=run)
        until_step(talk)
        began = time.monotonic()
        if how == "yarn":
            (application,) = plain.applications()
            plain.hadoop.yarn("-kill", application)
        else:
            ask_to_end(talk)
        code = hear_out(talk)
        assert no_ranks(plain)
        print(how, code, f"{time.monotonic() - began:.0f} s")
        assert code == 130, str(talk)
        epoch, step, finished = look(plain, CHECKPOINT, run)
        assert (epoch, step) >= (1, 0) and not finished, (epoch, step)
        said = plain.run(train_line("--epochs 6"), RUN=run)
        assert look(plain, CHECKPOINT, run)[2], said


def test_a_host_that_dies_with_its_node_manager_and_data_node(plain):
    run = f"{plain.hadoop.uri}/data/of-a-host-that-died"
    talk = plain.begin(train_line("--epochs 4 --stall-seconds 60"), RUN=run)
    until_step(talk)
    began = time.monotonic()
    plain.network[3].end()
    try:
        code = hear_out(talk)
    finally:
        plain.hadoop.start_worker(3)
    assert code == 0 and "restart 1 of 3" in str(talk), str(talk)
    print(
        "a host died:",
        f"{time.monotonic() - began:.0f} s to the end",
        re.findall(r"training again.*", str(talk)),
    )
    assert look(plain, CHECKPOINT, run)[2]


def test_a_folder_that_grows_every_night(plain, release, tmp_path):
    """A second one while the first is at work, one that is killed, and patients that stay in their split."""
    store, images = f"{plain.hadoop.uri}/data/grows", "/data/grown"
    line = ingest_line("--append --allow-missing all")
    every = sorted((release / "images").glob("*.png"))
    plain.hadoop.dfs("-mkdir", "-p", images)
    plain.hadoop.dfs("-chmod", "777", images)
    values = {"STORE": store, "IMAGES": f"{plain.hadoop.uri}{images}"}
    patients = {}
    for night, upto in enumerate((len(every) // 2, len(every) * 3 // 4, len(every))):
        before = 0 if night == 0 else (len(every) // 2, len(every) * 3 // 4)[night - 1]
        plain.hadoop.dfs("-put", *map(str, every[before:upto]), images)
        if night == 1:  # one that is killed
            talk = plain.begin(line, **values)
            pause(20)
            for child in psutil.Process(talk.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            hear_out(talk)
        if night == 2:  # and a second one while the first is at work
            first, second = plain.begin(line, **values), plain.begin(line, **values)
            codes = [hear_out(first), hear_out(second)]
            assert sorted(codes) == [0, 2], f"{first}\n{second}"
        else:
            plain.run(line, **values)
        names, now = look(plain, IMAGES, store)
        assert names == [path.name for path in every[:upto]]
        assert patients.items() <= now.items(), "patients stay in their split"
        patients = now


def test_ten_kills_of_ingest(plain):
    """After each the store is whole or not there, and the last command makes it."""
    store, kills = f"{plain.hadoop.uri}/data/often-killed", 0
    reference = look(plain, IMAGES, f"{plain.hadoop.uri}/data/store")
    waits = np.linspace(12, 34, 10)
    for seconds in waits:
        talk = plain.begin(ingest_line(), STORE=store)
        pause(seconds)
        for child in psutil.Process(talk.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        kills += hear_out(talk) != 0
        for application in plain.applications():
            plain.hadoop.yarn("-kill", application)
        assert look(plain, IMAGES, store) in ([[], {}], reference)
        if look(plain, IMAGES, store) == reference:
            plain.hadoop.dfs("-rm", "-r", "/data/often-killed")
    print(f"{kills} of {len(waits)} were killed before their end")
    assert kills >= 5
    plain.run(ingest_line(), STORE=store)
    assert look(plain, IMAGES, store) == reference
    left = plain.hadoop.dfs("-ls", "-R", "/data/often-killed")
    assert "unfinished" not in left and ".tmp" not in left, left


# --- Kerberos -------------------------------------------------------------------------------

TOKEN_SECONDS = 120  # that a token of HDFS lives


@pytest.fixture(scope="module")
def secured(release, tmp_path_factory):
    """All secured, two NameNodes, and tokens that live for two minutes."""
    if not shutil.which("kinit"):
        pytest.skip("kinit is not here (krb5-user)")
    life = {
        "dfs.namenode.delegation.token.max-lifetime": str(TOKEN_SECONDS * 1000),
        "dfs.namenode.delegation.token.renew-interval": str(TOKEN_SECONDS * 500),
        "dfs.namenode.delegation.key.update-interval": str(TOKEN_SECONDS * 1000),
    }
    more = {"kerberos": True, "nameservice": "ns1", "settings": {"hdfs": life}}
    with Cluster(tmp_path_factory.mktemp("secured"), release, **more) as cluster:
        cluster.run(by_keytab(cluster, ingest_line()))
        yield cluster


def by_keytab(cluster, line):
    """The line with the page's principal and keytab, as they are called here."""
    (theirs,) = PAGE.lines("3. Kerberos")
    given = re.search(r"--principal eva@EXAMPLE.ORG --keytab eva.keytab ", theirs)[0]
    given = given.replace("eva@EXAMPLE.ORG", f"chest@{hadoop.REALM}")
    given = given.replace("eva.keytab", str(cluster.hadoop.keytab))
    return line.replace("submit ", f"submit {given}", 1)


def test_ranks_outlive_their_tokens_and_a_name_node(secured):
    """Tokens of two minutes in a run of six; the other NameNode takes over meanwhile."""
    secured.network[1].run("kdestroy -A", settings=secured.hadoop.variables(1))
    talk = secured.begin(by_keytab(secured, train_line("--epochs 400")))
    until_step(talk)
    began, failed_over, late = time.monotonic(), False, 0
    for text in talk:
        lived = time.monotonic() - began
        if not failed_over and lived > 1.2 * TOKEN_SECONDS:
            failed_over = True
            secured.hadoop.command(1, "hdfs.tools.DFSHAAdmin", "-transitionToStandby", "nn1")
            secured.hadoop.command(1, "hdfs.tools.DFSHAAdmin", "-transitionToActive", "nn2")
        late += lived > 2 * TOKEN_SECONDS and bool(STEP.search(text))
        if lived > 3 * TOKEN_SECONDS and late > 3:
            break
    ask_to_end(talk)
    assert hear_out(talk) == 130 and late > 3, str(talk)
    assert "restart" not in str(talk), str(talk)
    print(str(talk)[-3000:])


def test_a_driver_in_a_container_by_keytab(secured):
    run = f"{secured.hadoop.uri}/data/by-keytab"
    line = by_keytab(secured, train_line("--epochs 2")).replace(
        "submit ",
        f"submit --deploy-mode cluster --conf spark.pyspark.driver.python={secured.python} ",
        1,
    )
    secured.run(line, RUN=run)
    secured.hadoop.kinit("chest")
    assert look(secured, CHECKPOINT, run)[2]


def test_the_doctor_names_the_ticket_and_what_nothing_renews(secured):
    secured.hadoop.kinit("chest")
    (line,) = [line for line in PAGE.lines("2. Ingest") if " doctor " in line]
    said = secured.run(line, RUN=f"{secured.hadoop.uri}/data/of-the-doctor")
    assert f"Kerberos: chest@{hadoop.REALM}, by a ticket that ends in" in said, said
    assert "and nothing renews it" in said, said


def test_without_a_ticket_there_is_one_line(secured):
    secured.network[1].run("kdestroy -A", settings=secured.hadoop.variables(1))
    talk = secured.begin("chexspark report --run $RUN")
    assert hear_out(talk) == 2 and "kinit" in str(talk), str(talk)
