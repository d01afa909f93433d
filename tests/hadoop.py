"""Hadoop's own daemons, as on a cluster: HDFS and YARN over the hosts of `hosts`, with Kerberos if asked for.

Host 1 has NameNodes and ResourceManager, and the KDC; the others have a DataNode and a NodeManager each, and are
bare. Maven brings Hadoop, of the version of Spark's client, into the user's cache folder.
"""

import fcntl
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from xml.sax.saxutils import escape

import pyspark

SPARK = Path(pyspark.__file__).parent
PATIENCE = 180  # seconds for a daemon to start, on a busy machine
REALM = "CHEST.TEST"
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId><artifactId>hadoop</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.hadoop</groupId><artifactId>hadoop-minicluster</artifactId><version>{0}</version></dependency>
    <dependency><groupId>org.apache.hadoop</groupId><artifactId>hadoop-minikdc</artifactId><version>{0}</version></dependency>
  </dependencies>
</project>
"""
LOG4J = """
rootLogger.level = info
log4j.rootLogger = INFO, console
log4j.appender.console = org.apache.log4j.ConsoleAppender
log4j.appender.console.target = System.err
log4j.appender.console.layout = org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern = %d %p %c{2}: %m%n
"""


def missing():
    """Why Hadoop cannot be had here; None where it can."""
    return None if shutil.which("mvn") else "Maven (mvn) is not here"


def jars():
    """The folder of Hadoop's jars; fetched once for each version, by one process at a time."""
    (client,) = SPARK.glob("jars/hadoop-client-api-*.jar")
    version = client.stem.removeprefix("hadoop-client-api-")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chexspark"
    folder, aside = cache / f"hadoop-{version}", cache / f"hadoop-{version}.making"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"hadoop-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            (aside / "pom.xml").write_text(POM.format(version))
            words = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
            done = subprocess.run(words, cwd=aside, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-3000:]
            aside.rename(folder)
    return folder / "jars"


class Hadoop:
    """A context manager: HDFS and YARN over `hosts.Hosts`; host 1 is the master.

    `kerberos`: all of it secured, and encrypted on the wire; `nameservice`: two NameNodes behind this name, of which
    the first is active; `settings`: more for the site files; `environment`: what the workers have in ``/opt/env``,
    if they are `bare`.
    `conf`: the folder for HADOOP_CONF_DIR.
    """

    def __init__(
        self,
        network,
        folder,
        kerberos=False,
        nameservice=None,
        settings=None,
        environment=None,
        bare=True,
    ):
        self.network, self.folder, self.environment, self.bare = (
            network,
            Path(folder),
            environment,
            bare,
        )
        self.kerberos, self.nameservice, self.more = kerberos, nameservice, settings or {}
        self.shared = network.shared
        self.conf, self.java = self.shared / "hadoop-conf", {}
        self.daemons = {}
        self.keytab = self.shared / "keys" / "all.keytab"

    @property
    def uri(self):
        """Of HDFS."""
        return f"hdfs://{self.nameservice or 'host1:8020'}"

    def __enter__(self):
        shutil.copytree(jars(), self.shared / "hadoop", dirs_exist_ok=True)
        self.write_settings()
        if self.kerberos:
            self.start_kdc()
        first = self.network[1]
        self.command(1, "hdfs.server.namenode.NameNode", "-format", "-nonInteractive")
        for name, directory in self.namenodes().items():
            if directory != "name1":
                shutil.copytree(first.disk / "name1", first.disk / directory)
            self.start(1, "hdfs.server.namenode.NameNode", name)
        if self.nameservice:
            for name in self.namenodes():
                self.wait_for("NameNode RPC up", name)
            self.command(1, "hdfs.tools.DFSHAAdmin", "-transitionToActive", "nn1")
        self.start(1, "yarn.server.resourcemanager.ResourceManager")
        for n in range(2, self.network.number + 1):
            self.start_worker(n)
        for n in range(2, self.network.number + 1):
            self.wait_for("Registered with ResourceManager|registered with RM", f"NodeManager-{n}")
        self.command(1, "hdfs.tools.DFSAdmin", "-safemode", "wait")
        self.dfs("-mkdir", "-p", "/user/root", "/user/chest", "/data")
        self.dfs("-chmod", "777", "/user", "/user/root", "/user/chest", "/data")
        return self

    def __exit__(self, *exception):
        pass  # the hosts end what they started

    def namenodes(self):
        """Name → folder, on host 1's disk."""
        return {"nn1": "name1", **({"nn2": "name2"} if self.nameservice else {})}

    def start_worker(self, n):
        """Start the daemons of a worker."""
        self.start(n, "hdfs.server.datanode.DataNode")
        self.start(n, "yarn.server.nodemanager.NodeManager")

    # --- settings ---------------------------------------------------------------------------

    def write_settings(self):
        """The site files."""
        self.conf.mkdir(exist_ok=True)
        core = {
            "fs.defaultFS": self.uri,
            "hadoop.tmp.dir": "${env.HADOOP_DISK}",
        }
        hdfs = {
            "dfs.replication": "2", "dfs.namenode.name.dir": "file://${env.HADOOP_DISK}/${env.NAMENODE_DIR}",
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.datanode.du.reserved": "0", "dfs.namenode.redundancy.considerLoad": "false",
            # A lost DataNode is noticed in seconds and not in ten minutes.
            "dfs.heartbeat.interval": "1", "dfs.namenode.heartbeat.recheck-interval": "5000",
            "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
        }  # fmt: skip
        if self.nameservice:
            ns = self.nameservice
            hdfs |= {
                "dfs.nameservices": ns, f"dfs.ha.namenodes.{ns}": "nn1,nn2",
                f"dfs.namenode.rpc-address.{ns}.nn1": "host1:8020", f"dfs.namenode.rpc-address.{ns}.nn2": "host1:8021",
                f"dfs.namenode.http-address.{ns}.nn1": "host1:9870", f"dfs.namenode.http-address.{ns}.nn2": "host1:9871",
                f"dfs.namenode.https-address.{ns}.nn1": "host1:9875", f"dfs.namenode.https-address.{ns}.nn2": "host1:9876",
                f"dfs.client.failover.proxy.provider.{ns}":
                    "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider",
                "dfs.namenode.shared.edits.dir": "file://${env.HADOOP_DISK}/edits",
                "dfs.ha.fencing.methods": "shell(/bin/true)", "dfs.ha.tail-edits.period": "2",
                "dfs.nameservice.id": ns, "dfs.ha.namenode.id": "${env.NAMENODE}",
            }  # fmt: skip
        yarn = {
            "yarn.resourcemanager.hostname": "host1", "yarn.nodemanager.hostname": "${env.HADOOP_HOST}",
            "yarn.nodemanager.resource.memory-mb": "8192", "yarn.nodemanager.resource.cpu-vcores": "4",
            "yarn.scheduler.minimum-allocation-mb": "64", "yarn.nodemanager.vmem-check-enabled": "false",
            "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": "99.5",
            "yarn.nodemanager.localizer.address": "${env.HADOOP_HOST}:8040",
            "yarn.nodemanager.log-dirs": "${env.HADOOP_DISK}/userlogs",
            "yarn.nm.liveness-monitor.expiry-interval-ms": "30000",
            "yarn.resourcemanager.nodemanagers.heartbeat-interval-ms": "500",
            "yarn.scheduler.capacity.root.queues": "default", "yarn.scheduler.capacity.root.default.capacity": "100",
            "yarn.scheduler.capacity.maximum-am-resource-percent": "0.5",
            "yarn.scheduler.capacity.resource-calculator": "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator",
            "yarn.application.classpath": str(self.shared / "hadoop/*"),
            "yarn.nodemanager.env-whitelist": "JAVA_HOME,JAVA_TOOL_OPTIONS,KRB5_CONFIG,LANG,TZ",
            "yarn.log-aggregation-enable": "false",
        }  # fmt: skip
        if self.kerberos:
            core |= {
                "hadoop.security.authentication": "kerberos", "hadoop.security.authorization": "true",
                "hadoop.rpc.protection": "privacy",
            }  # fmt: skip
            hdfs |= {
                "dfs.block.access.token.enable": "true", "dfs.data.transfer.protection": "privacy",
                "dfs.encrypt.data.transfer": "true", "dfs.encrypt.data.transfer.cipher.suites": "AES/CTR/NoPadding",
                "ignore.secure.ports.for.testing": "true",
                "dfs.web.authentication.kerberos.principal": f"HTTP/_HOST@{REALM}",
            }  # fmt: skip
            for who in ("namenode", "datanode"):
                hdfs |= {
                    f"dfs.{who}.kerberos.principal": f"hdfs/_HOST@{REALM}",
                    f"dfs.{who}.keytab.file": str(self.keytab),
                }
            for who in ("resourcemanager", "nodemanager"):
                yarn |= {
                    f"yarn.{who}.principal": f"yarn/_HOST@{REALM}",
                    f"yarn.{who}.keytab": str(self.keytab),
                }
        for name, settings in (("core", core), ("hdfs", hdfs), ("yarn", yarn)):
            self.write_site(name, settings | self.more.get(name, {}))
        (self.conf / "log4j.properties").write_text(LOG4J)

    def write_site(self, name, settings):
        """One file of settings."""
        each = "".join(
            f"<property><name>{escape(key)}</name><value>{escape(value)}</value></property>\n"
            for key, value in settings.items()
        )
        (self.conf / f"{name}-site.xml").write_text(f"<configuration>\n{each}</configuration>\n")

    # --- Kerberos ---------------------------------------------------------------------------

    def start_kdc(self):
        """Start the KDC on host 1, with keys for all services, and for the users chest and root."""
        (keys := self.shared / "keys").mkdir(exist_ok=True)
        hosts = [f"host{n}" for n in range(1, self.network.number + 1)]
        principals = [f"{who}/{host}" for who in ("hdfs", "yarn", "HTTP", "host") for host in hosts]
        (keys / "kdc.properties").write_text(
            f"org.name=CHEST\norg.domain=TEST\nkdc.bind.address={self.network[1].address}\nkdc.port=8888\n"
            "instance=DefaultKrbServer\ntransport=TCP\nmax.ticket.lifetime=86400000\nmax.renewable.lifetime=604800000\n"
        )
        words = ["keys", str(keys / "kdc.properties"), str(self.keytab), *principals, "chest"]
        (keys / "kdc").mkdir(exist_ok=True)
        self.daemons["kdc"] = self.java_start(
            1, "org.apache.hadoop.minikdc.MiniKdc", [str(keys / "kdc"), *words[1:]], "kdc"
        )
        self.wait_for("Standalone MiniKdc Running", "kdc")
        (self.conf / "krb5.conf").write_text(
            f"[libdefaults]\ndefault_realm = {REALM}\nudp_preference_limit = 1\ndns_lookup_kdc = false\n"
            "rdns = false\ndns_canonicalize_hostname = false\nforwardable = true\n"
            f"[realms]\n{REALM} = {{\n kdc = {self.network[1].address}:8888\n}}\n"
            f"[domain_realm]\n" + "".join(f"{host} = {REALM}\n" for host in hosts)
        )

    # --- daemons and commands ---------------------------------------------------------------

    def variables(self, n, name="nn1"):
        """What a command of Hadoop has on host n."""
        disk = self.network[n].disk if n == 1 or not self.bare else "/tmp"
        krb5 = f"-Djava.security.krb5.conf={self.conf}/krb5.conf" if self.kerberos else ""
        return {
            "HADOOP_DISK": str(disk), "HADOOP_HOST": f"host{n}", "HADOOP_CONF_DIR": str(self.conf),
            "NAMENODE": name, "NAMENODE_DIR": self.namenodes().get(name, "name1"), "KRB5_CONFIG": f"{self.conf}/krb5.conf",
            "KRB5CCNAME": f"{self.folder}/tickets",
            "HADOOP_OPTIONS": "-Xmx300m -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "JAVA_HOME": str(Path(shutil.which("java")).resolve().parents[1]),
            "JAVA_TOOL_OPTIONS": f"-XX:-UsePerfData {krb5}",
        }  # fmt: skip

    def java_line(self, words):
        """A command of Hadoop's Java."""
        add = "--add-opens=java.base/java.lang=ALL-UNNAMED"
        return (
            f'exec java $HADOOP_OPTIONS {add} -cp "{self.conf}:{self.shared}/hadoop/*" '
            + " ".join(words)
        )

    def java_start(self, n, java, words, name):
        host = self.network[n]
        log = (self.folder / f"{name}.log").open("a")
        line, settings = self.java_line([java, *words]), self.variables(n, name)
        if n == 1 or not self.bare:
            return host.start_here(line, settings, log)
        return host.start(line, self.environment, settings=settings, log=log)

    def start(self, n, java, name=None):
        """Start a daemon; `name`: of a NameNode."""
        name = name or f"{java.rpartition('.')[2]}-{n}"
        self.daemons[name] = self.java_start(n, f"org.apache.hadoop.{java}", [], name)

    def command(self, n, java, *words, name="nn1"):
        """Run a command of Hadoop's on host n; what it says."""
        line = self.java_line([f"org.apache.hadoop.{java}", *words])
        if self.kerberos:  # with a ticket cache of its own: what users do is their own
            cache = f"KRB5CCNAME={self.folder}/of-services"
            line = f"export {cache}; kinit -k -t {self.keytab} hdfs/host1@{REALM} && {line}"
        return self.network[n].run(line, settings=self.variables(n, name))

    def kinit(self, who):
        """Get a ticket for a user on host 1."""
        self.network[1].run(f"kinit -k -t {self.keytab} {who}@{REALM}", settings=self.variables(1))

    def dfs(self, *words):
        """``hdfs dfs`` with such words; what it says."""
        return self.command(1, "fs.FsShell", *words)

    def yarn(self, *words):
        """``yarn application`` with such words; what it says."""
        return self.command(1, "yarn.client.cli.ApplicationCLI", "application", *words)

    def log(self, name):
        """What a daemon has said."""
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, pattern, name):
        """Until a daemon has said what fits a pattern."""
        until = time.monotonic() + PATIENCE
        while not re.search(pattern, self.log(name)):
            assert self.daemons[name].poll() is None, self.log(name)[-3000:]
            assert time.monotonic() < until, self.log(name)[-3000:]
            time.sleep(0.5)
