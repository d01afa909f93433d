"""HDFS behind pyarrow, on a double of hdfs-native's client; test_hadoop.py has Hadoop's own daemons."""

import base64
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexspark import hdfs
from chexspark.cluster import kerberos
from chexspark.cluster.kerberos import Ticket, said
from chexspark.errors import UserError
from chexspark.storage import Location, locate


@dataclass
class Status:
    """As `hdfs_native.FileStatus`."""

    path: str
    isdir: bool
    length: int
    modification_time: int = 1_700_000_000_123


class Double:
    """A client that keeps its files in a local folder and refuses what a NameNode refuses."""

    def __init__(self, folder):
        self.folder = folder

    def at(self, path):
        return self.folder / path.lstrip("/")

    def status(self, path):
        place = self.at(path)
        return Status(path, place.is_dir(), 0 if place.is_dir() else place.stat().st_size)

    def get_file_info(self, path):
        if not self.at(path).exists():
            raise FileNotFoundError(path)
        return self.status(path)

    def list_status(self, path, recursive=False):
        found = self.at(path).rglob("*") if recursive else self.at(path).iterdir()
        return iter([self.status("/" + str(p.relative_to(self.folder))) for p in found])

    def mkdirs(self, path, permission=0o755, create_parent=True):
        self.at(path).mkdir(parents=create_parent, exist_ok=True)

    def rename(self, source, target, overwrite=False):
        if not self.at(source).exists():
            raise FileNotFoundError(
                f"rename source {source} is not found.\n\tat org.apache.hadoop.X(X.java:1)"
            )
        if self.at(target).exists():
            if not overwrite:
                raise FileExistsError(
                    f"rename destination {target} already exists\n\tat org.apache"
                )
            if self.at(target).is_dir() and list(self.at(target).iterdir()):
                raise RuntimeError(
                    'RPCError("java.io.IOException", "rename destination is not empty\\n\\tat X")'
                )
        os.replace(self.at(source), self.at(target))

    def delete(self, path, recursive=False):
        place = self.at(path)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return True

    def create(self, path, options):
        if self.at(path).exists() and not options.overwrite:
            raise FileExistsError(path)
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        return self.at(path).open("wb")

    def read(self, path):
        content = self.at(path).read_bytes()

        class Reader:
            def __len__(self):
                return len(content)

            def read_range(self, offset, length):
                assert offset + length <= len(content), "hdfs-native refuses to read past the end"
                return content[offset : offset + length]

        return Reader()


@pytest.fixture
def double(tmp_path, monkeypatch):
    monkeypatch.setattr(hdfs, "client", lambda *_: Double(tmp_path))
    monkeypatch.setattr(hdfs, "settings", dict)
    return tmp_path


@pytest.mark.parametrize(
    "uri, authority, path",
    [
        ("hdfs://ns1/a/b", "ns1", "/a/b"),
        ("hdfs://host:8020/a b/%20#ä?=x/", "host:8020", "/a b/%20#ä?=x"),
        ("hdfs:///a//b/.", "", "/a/b"),
        ("hdfs://ns1", "ns1", "/"),
        ("viewfs://cluster/a", "cluster", "/a"),
    ],
)
def test_a_uri_is_taken_letter_by_letter(uri, authority, path):
    place = locate(uri)
    assert place.path == path and place.is_hdfs and not place.is_object_store
    assert place.filesystem.handler.authority == authority
    assert (place / "x").uri == uri.rstrip("/") + "/x"


def test_files_are_written_read_listed_and_deleted(double):
    place = locate("hdfs://ns1/data")
    (place / "b" / "c").make_directory()
    (place / "b" / "x").write_bytes(b"0123456789")
    assert (double / "data/b/x").read_bytes() == b"0123456789"
    assert (place / "b" / "x").read_bytes(4) == b"0123"
    assert [f.path for f in place.list_files()] == ["/data/b/x"]
    assert (place / "b").list_folders() == ["c"] and (place / "none").list_folders() == []
    assert (
        not (place / "none").exists()
        and (place / "b").is_directory()
        and (place / "b" / "x").is_file()
    )
    info = place.filesystem.get_file_info("/data/b/x")
    assert info.size == 10 and info.mtime_ns == 1_700_000_000_123_000_000
    with place.filesystem.open_input_file("/data/b/x") as file:
        assert file.size() == 10 and file.read_at(3, 8) == b"89"
        file.seek(0)
        assert file.read() == b"0123456789"
        file.seek(-2, os.SEEK_END)
        assert file.read(100) == b"89" and file.read(1) == b""
    place.delete_directory()
    assert not (double / "data").exists()


def test_a_table_and_what_is_aside(double):
    place = locate("hdfs://ns1/run/metrics")
    for number in (1, 2):
        place.write_table(pa.table({"a": [number]}))
        assert place.read_table()["a"].to_pylist() == [number]
    pq.write_table(
        pa.table({"a": [3]}), (place / "part-00001.parquet").path, filesystem=place.filesystem
    )
    place.write_table(pa.table({"a": [4]}))
    assert place.read_table()["a"].to_pylist() == [4]
    assert sorted(p.name for p in (double / "run").rglob("*")) == ["metrics", "part-00000.parquet"]
    (double / "run/.x.unfinished").write_bytes(b"")
    locate("hdfs://ns1/run").clear_unfinished()
    assert [p.name for p in (double / "run").iterdir()] == ["metrics"]


def test_of_two_files_that_are_given_one_name_at_the_same_moment_one_gets_it(double, monkeypatch):
    place = locate("hdfs://ns1/store/lock")
    place.filesystem.create_dir("/store")
    assert place.creates_exclusively and place.create(b"1") and not place.create(b"2")
    monkeypatch.setattr(Location, "exists", lambda _: False)
    assert not place.create(b"3"), "it came between the look and the renaming"
    assert (double / "store/lock").read_bytes() == b"1"
    assert [p.name for p in (double / "store").iterdir()] == ["lock"]


def test_a_file_gives_way_to_another_in_one_step(double):
    first, second = locate("hdfs://ns1/a"), locate("hdfs://ns1/b")
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    first.move_to(second)
    assert second.read_bytes() == b"1" and not first.exists()
    with pytest.raises(FileNotFoundError, match=r"^rename source /a is not found\.$"):
        first.move_to(second)


DENIED = r"""RPCError("org.apache.hadoop.security.AccessControlException", "Permission denied: user=eva, access=WRITE, inode=\"/\":hdfs:drwx\n\tat org.apache.hadoop.X(X.java:3)")"""


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (RuntimeError(DENIED), PermissionError, '/x: Permission denied: user=eva, access=WRITE, inode="/":hdfs:drwx'),
        (FileNotFoundError("File does not exist: /x\n\tat org"), FileNotFoundError, "File does not exist: /x"),
        (RuntimeError('GSSAPIError(GssMajorCodes { routine_error: "GSS_S_NO_CRED" }, 25, "No credentials: No Kerberos '
                      'credentials available (default cache: FILE:/tmp/krb5cc_0)")'), PermissionError,
         f"/x: {hdfs.NO_TICKET} (No Kerberos credentials available (default cache: FILE:/tmp/krb5cc_0))"),
        (RuntimeError('RPCError("org.apache.hadoop.security.token.SecretManager$InvalidToken", "token is expired")'),
         PermissionError, "/x: token is expired"),
        (ConnectionRefusedError(111, "Connection refused"), OSError, "/x: [Errno 111] Connection refused"),
        (ValueError(""), OSError, "/x: ValueError"),
    ],
)  # fmt: skip
def test_what_hdfs_says_is_an_error_of_one_line(error, kind, said):
    with pytest.raises(kind) as caught, hdfs.told("/x"):
        raise error
    assert str(caught.value) == said
    assert isinstance(caught.value, UserError) or kind is FileNotFoundError


def test_a_file_system_travels_and_is_the_same(double):
    import pickle

    place = locate("hdfs://ns1/a")
    assert pickle.loads(pickle.dumps(place)) == place
    assert place.filesystem != locate("hdfs://ns2/a").filesystem


def test_tokens_are_in_memory_and_given_way_to_in_one_step(monkeypatch):
    monkeypatch.setenv(hdfs.TOKEN_FILE, "of before")
    monkeypatch.setattr(hdfs.TokenFile, "descriptor", None)
    hdfs.take_tokens(b"HDTS first")
    path = os.environ[hdfs.TOKEN_FILE]
    with open(path, "rb") as before:
        hdfs.take_tokens(b"HDTS second, longer")
        assert before.read() == b"HDTS first"
    assert os.environ[hdfs.TOKEN_FILE] == path and Path(path).read_bytes() == b"HDTS second, longer"
    assert os.path.exists(path) and os.readlink(path).startswith("/memfd:")
    os.close(hdfs.TokenFile.descriptor)


def test_only_the_tokens_of_its_own_driver_are_taken(monkeypatch):
    taken = []
    monkeypatch.setattr(hdfs, "take_tokens", taken.append)
    monkeypatch.setenv(hdfs.KEY, hdfs.sealing_key())
    sealed = hdfs.seal(b"HDTS")
    assert b"HDTS" not in base64.urlsafe_b64decode(sealed) and b"\n" not in sealed
    hdfs.take_sealed(sealed)
    for other in (b"", b"x", sealed[:-4] + b"AAAA"):
        with pytest.raises(ValueError):
            hdfs.take_sealed(other)
    monkeypatch.setenv(hdfs.KEY, base64.urlsafe_b64encode(bytes(32)).decode())
    with pytest.raises(ValueError):
        hdfs.take_sealed(sealed)
    monkeypatch.delenv(hdfs.KEY)
    with pytest.raises(ValueError):
        hdfs.take_sealed(sealed)
    assert taken == [b"HDTS"]


def test_a_task_knows_what_it_was_handed(monkeypatch):
    monkeypatch.setenv(hdfs.VARIABLE, json.dumps({"dfs.nameservices": "ns1"}))
    monkeypatch.setenv(hdfs.TOKENS, base64.b64encode(b"HDTS").decode())
    taken = []
    monkeypatch.setattr(hdfs, "take_tokens", taken.append)
    monkeypatch.setattr(hdfs.TokenFile, "process", 0)
    assert hdfs.settings() == {"dfs.nameservices": "ns1"} == hdfs.settings()
    assert taken == [b"HDTS"] and hdfs.TOKENS in os.environ, "for the processes that it starts"


def test_the_settings_of_the_session_reach_tasks(spark, monkeypatch):
    from chexspark.session import hand_settings

    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    given = {
        "dfs.nameservices": "ns1",
        "dfs.ha.namenodes.ns1": "nn1,nn2",
        "dfs.namenode.rpc-address.ns1.nn1": "a:8020",
    }
    for name, value in given.items():
        hadoop.set(name, value)
    try:
        monkeypatch.setattr("chexspark.session.last_said", {})
        assert given.items() <= hdfs.settings().items()
        hand_settings(spark)

        def known(_):
            from chexspark import hdfs

            yield hdfs.settings()

        (in_task,) = spark.sparkContext.parallelize([0], 1).mapPartitions(known).collect()
        assert given.items() <= in_task.items() and not any("kerberos" in name for name in in_task)
    finally:
        for name in given:
            hadoop.unset(name)
        spark.sparkContext.environment.pop(hdfs.VARIABLE)


def reported(uri, folder):
    """What `chexspark report` says of a run that cannot be had, with Hadoop's settings in a folder."""
    code = "import sys; from chexspark.command_line import run_command; sys.exit(run_command('report', ['--run', sys.argv[1]]))"
    environment = {**os.environ, "HADOOP_CONF_DIR": str(folder)}
    words = [sys.executable, "-c", code, uri]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2, line
    return line


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    """Through hdfs-native itself."""
    assert "hdfs://nowhere.invalid/run/" in reported("hdfs://nowhere.invalid/run", tmp_path)
    assert "/run/" in reported("hdfs:///run", tmp_path), "no settings say which it is"
    site = "<configuration><property><name>{}</name><value>{}</value></property></configuration>"
    (tmp_path / "core-site.xml").write_text(
        site.format("fs.defaultFS", "hdfs://nowhere.invalid:8020")
    )
    assert "Name or service not known" in reported("hdfs:///run", tmp_path), "it was looked for"
    monkeypatch.setattr(hdfs, "ATTEMPTS_OF_ONE", "1")
    monkeypatch.setattr(hdfs, "settings", dict)
    with pytest.raises(hdfs.UnreachableError, match=r"^hdfs://127.0.0.1:1/run: .*refused"):
        locate("hdfs://127.0.0.1:1/run").exists()


@pytest.mark.parametrize(
    "principal, ticket, renews, token_seconds, lines, warnings",
    [
        ("eva@A.ORG", None, False, 60, ["Kerberos: eva@A.ORG, by a keytab"], []),
        (None, Ticket("eva@A.ORG", 36_000), False, 604_800,
         ["Kerberos: eva@A.ORG, by a ticket that ends in 10:00:00"], ["ends in 168:00:00, and nothing renews it"]),
        (None, Ticket("eva@A.ORG", 36_000), True, 604_800,
         ["Kerberos: eva@A.ORG, by a ticket that ends in 10:00:00"], ["the ticket ends in 10:00:00"]),
        (None, Ticket("eva@A.ORG", math.inf), True, 604_800, ["Kerberos: eva@A.ORG, by a ticket"], []),
        (None, None, False, None, [], ["Spark has no tokens of HDFS"]),
    ],
)  # fmt: skip
def test_the_doctor_says_who_one_is_and_for_how_long(
    principal, ticket, renews, token_seconds, lines, warnings
):
    told, warned = said(principal, ticket, renews, token_seconds)
    assert told == lines and len(warned) == len(warnings)
    assert all(text in warning for text, warning in zip(warnings, warned, strict=True))


def test_a_ticket_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/none")
    assert kerberos.ticket() is None
    monkeypatch.setattr(kerberos.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert kerberos.ticket() is None


def test_who_one_is_where_nobody_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    monkeypatch.setenv(hdfs.USER, "")
    monkeypatch.delenv(hdfs.USER)
    monkeypatch.setenv(hdfs.SPARK_USER, "eva")
    hdfs.client(0, "hdfs://127.0.0.1:1", (("hadoop.security.authentication", "kerberos"),))
    assert hdfs.USER not in os.environ
    hdfs.client(0, "hdfs://127.0.0.1:1", ())
    assert os.environ[hdfs.USER] == "eva"
