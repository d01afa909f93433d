"""Object stores as far as no server is needed; tests/test_s3.py has one."""

import errno
import json

import pyarrow as pa
import pytest
from pyarrow import fs

from chexspark import object_stores, session, storage
from chexspark.config import ReportConfig
from chexspark.errors import UserError
from chexspark.object_stores import UnreachableError, arguments
from chexspark.session import start_session
from chexspark.settings import build
from chexspark.storage import Location, locate

SECRET = "se/cr+et="
PAIR = {"fs.s3a.access.key": "K", "fs.s3a.secret.key": SECRET}
AWS = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_SESSION_TOKEN": "C"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """None of this machine's own settings, and no Java asked."""
    for name in (*object_stores.KEYS, *object_stores.ENDPOINTS, *object_stores.REGIONS):
        monkeypatch.delenv(name, raising=False)


class Store:
    """A local folder that says it is on S3; `fault`: what every question raises."""

    type_name = "s3"

    def __init__(self, fault=None):
        self.local, self.fault = fs.LocalFileSystem(), fault

    def __getattr__(self, name):
        if self.fault:
            raise self.fault
        return getattr(self.local, name)


@pytest.mark.parametrize(
    "found, expected",
    [
        ({}, {"keys": None, "endpoint": "", "scheme": "https", "region": "", "virtual": False}),
        (PAIR | AWS, {"keys": ("K", SECRET, "")}),
        (AWS, {"keys": ("A", "B", "C")}),
        (PAIR | {"fs.s3a.bucket.b.secret.key": "own"}, {"keys": ("K", "own", "")}),
        (PAIR | {"fs.s3a.bucket.other.secret.key": "own"}, {"keys": ("K", SECRET, "")}),
        ({"fs.s3a.endpoint": "http://h:9/"}, {"endpoint": "h:9", "scheme": "http"}),
        ({"fs.s3a.endpoint": "h:9"}, {"endpoint": "h:9", "scheme": "https"}),
        ({"fs.s3a.endpoint": "h:9", "fs.s3a.connection.ssl.enabled": "false"}, {"scheme": "http"}),
        ({"fs.s3a.endpoint": "h", "fs.s3a.path.style.access": "false"}, {"virtual": True}),
        ({"fs.s3a.endpoint": "h", "fs.s3a.path.style.access": "true"}, {"virtual": False}),
        ({"fs.s3a.endpoint": "s3.amazonaws.com"}, {"endpoint": "", "region": ""}),
        (
            {"fs.s3a.endpoint": "s3.amazonaws.com", "AWS_ENDPOINT_URL": "http://h"},
            {"endpoint": "h"},
        ),
        ({"fs.s3a.endpoint": "https://s3.eu-west-1.amazonaws.com", "AWS_ENDPOINT_URL": "http://h"},
         {"endpoint": "", "region": "eu-west-1"}),
        ({"fs.s3a.endpoint": "h", "AWS_ENDPOINT_URL": "http://other"}, {"endpoint": "h"}),
        ({"fs.s3a.endpoint.region": "r", "AWS_REGION": "other"}, {"region": "r"}),
        ({"AWS_DEFAULT_REGION": "r"}, {"region": "r"}),
        ({"fs.s3a.aws.credentials.provider": "org.x.AnonymousAWSCredentialsProvider"}, {"anonymous": True}),
    ],
)  # fmt: skip
def test_what_settings_mean(found, expected):
    assert arguments("b", found).items() >= expected.items()


def test_a_task_s_own_region_and_endpoint_hold_where_the_driver_has_none(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "r")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://h")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "found by pyarrow itself")
    assert arguments("b", {}).items() >= {"region": "r", "endpoint": "h", "keys": None}.items()


@pytest.mark.parametrize(
    "uri", [f"s3://KEY:{SECRET}@bucket/store", f"s3a://KEY:{SECRET}@bucket", f"s3://bucket/x?access_key=KEY&secret_key={SECRET}",
            f"s3n://KEY:{SECRET}@bucket/store", f"https://KEY:{SECRET}@bucket/store"],
)  # fmt: skip
def test_keys_in_a_uri_are_refused_and_not_repeated(uri):
    for call in (locate, lambda text: locate(build(ReportConfig, {"run": text}).run[0])):
        with pytest.raises(UserError) as caught:
            call(uri)
        said = str(caught.value)
        assert "se/cr" not in said and "et=" not in said and "KEY:" not in said
        assert "spark.hadoop.fs.s3a" in said or "AWS_" in said or "no file system" in said


@pytest.mark.parametrize(
    "uri, path, kind",
    [
        ("s3://b/a b/ä%20#?", "b/a b/ä%20#?", "py::s3"),
        ("s3a://b//x/", "b/x", "py::s3"),
        ("s3a://b", "b", "py::s3"),
        ("gs://b/x/y", "b/x/y", "gcs"),
        ("abfss://c@account.dfs.core.windows.net/x", "c/x", "abfs"),
        ("/Volumes/catalog/schema/x", "/Volumes/catalog/schema/x", "local"),
    ],
)
def test_places(uri, path, kind, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    place = locate(uri)
    assert (place.path, place.filesystem.type_name) == (path, kind)
    assert (place / "n").path == f"{path}/n" and locate((place / "n").uri) == place / "n"
    assert place.is_object_store is (kind != "local")


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "gs://", "abfss://c/x", "abfss://@a.b.c/x", "s3n://b/x"])  # fmt: skip
def test_what_is_no_place_is_refused(uri):
    with pytest.raises(UserError, match=uri):
        locate(uri)


def test_what_pyarrow_lacks_is_named(monkeypatch):
    for name, uri in (("GcsFileSystem", "gs://b/x"), ("AzureFileSystem", "abfss://c@a.b.c/x")):
        object_stores.of_google.cache_clear()  # of another test
        object_stores.of_azure.cache_clear()
        monkeypatch.delattr(fs, name)
        with pytest.raises(UserError, match=f"{name}: install pyarrow from PyPI"):
            locate(uri)


def test_dbfs_is_a_folder_where_it_is_mounted(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="dbfs:/x: there is no /dbfs here"):
        locate("dbfs:/x")
    monkeypatch.setattr(storage, "DBFS", str(tmp_path))
    assert locate("dbfs:/x/y").path == locate("dbfs:///x/y").path == f"{tmp_path}/x/y"


def test_what_a_store_answers_is_one_line_and_what_is_not_there_is_not_there(tmp_path):
    place = Location(Store(OSError("AWS Error\nACCESS_DENIED")), "b/x", "s3://b/x")
    for ask in (place.exists, place.read_bytes, place.list_folders, lambda: place.write_bytes(b"")):
        with pytest.raises(UnreachableError, match=r"^s3://b/x cannot be reached: AWS Error ACCESS_DENIED$"):  # fmt: skip
            ask()
    with pytest.raises(FileNotFoundError):
        Location(Store(), str(tmp_path / "none"), "s3://b/none").read_bytes()
    with pytest.raises(OSError) as caught:
        locate(str(tmp_path)).write_bytes(b"")
    assert not isinstance(caught.value, UserError) and caught.value.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)  # fmt: skip


def test_a_file_of_an_object_store_is_written_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(Location, "move_to", lambda *_: pytest.fail("it was copied"))
    place = Location(Store(), str(tmp_path / "a.gz"), "s3://b/a.gz")
    place.write_text("1")
    assert (tmp_path / "a.gz").read_bytes() == b"1", "it was packed"
    assert place.create(b"2") is False and (Location(Store(), str(tmp_path / "c"), "s3://b/c")).create(b"2")  # fmt: skip
    table = Location(Store(), str(tmp_path / "t"), "s3://b/t")
    table.make_directory()
    (table / "old.parquet").write_bytes(b"")
    table.write_table(pa.table({"n": [1]}))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "a.gz", "c", "t", "t/part-00000.parquet"
    ]  # fmt: skip


def test_tasks_have_what_the_session_says_and_hadoop_s_defaults_are_nothing(spark, monkeypatch):
    def in_task(_):
        import os

        from chexspark import object_stores

        return os.environ.get(object_stores.VARIABLE), object_stores.settings()

    def ask():
        monkeypatch.setattr(session, "last_said", {})
        start_session(spark, "test")
        return spark.sparkContext.range(1).map(in_task).collect()[0]

    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    given = PAIR | {"fs.s3a.bucket.b.endpoint": "http://h", "fs.s3a.session.token": "C"}
    assert ask()[0] is None
    try:
        for name, value in (given | {"fs.s3a.endpoint": "http://g"}).items():
            hadoop.set(name, value)
        handed, found = ask()
        assert json.loads(handed) == found == given | {"fs.s3a.endpoint": "http://g"}
        for name, value in AWS.items():
            monkeypatch.setenv(name, value)
        found = ask()[1]
        assert "fs.s3a.session.token" not in found, (
            "Spark took it from AWS_*, and it is another key's"
        )
        assert arguments("b", found)["keys"] == ("K", SECRET, "")
    finally:
        for name in (*given, "fs.s3a.endpoint"):
            hadoop.unset(name)
        for name in AWS:
            monkeypatch.delenv(name, raising=False)
    assert ask()[0] is None
