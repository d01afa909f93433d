"""Places on file systems."""

import errno
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from chexspark.command_line import main
from chexspark.config import ReportConfig
from chexspark.errors import UserError
from chexspark.storage import Location, locate


def test_threads_may_come_to_s3_at_the_same_time():
    """Arrow crashes when they do, if nothing keeps them apart; S3 itself is not reached here."""
    script = """
import threading
from chexspark.storage import locate
together = threading.Barrier(8)
def come():
    together.wait()
    locate("s3://bucket/store")
threads = [threading.Thread(target=come) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    environment = os.environ | {"AWS_REGION": "us-east-1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_death_inside_a_write_leaves_the_file_before_and_what_can_be_cleared(
    tmp_path, monkeypatch
):
    place = locate(str(tmp_path / "history"))
    place.write_table(pa.table({"epoch": [0]}))

    def die(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Location, "move_to", die)
        with pytest.raises(KeyboardInterrupt):
            place.write_table(pa.table({"epoch": [0, 1]}))
    assert len(place.list_files()) == 2
    assert place.read_table().column("epoch").to_pylist() == [0]
    place.clear_unfinished()
    assert [file.base_name for file in place.list_files()] == ["part-00000.parquet"]
    (place / "none").clear_unfinished()


def test_a_table_takes_the_place_of_all_that_was_there(tmp_path, monkeypatch):
    place = locate(str(tmp_path / "table"))
    (place / "more").make_directory()
    for name in ("part-00000-of-spark.parquet", "part-00001.parquet", "more/part.parquet"):
        pq.write_table(pa.table({"epoch": [7]}), (place / name).path)
    (place / "_SUCCESS").write_text("")
    seen = []
    write = Location.write_bytes

    def look_and_write(target, content):
        seen.append(place.read_table()["epoch"].to_pylist())
        write(target, content)

    monkeypatch.setattr(Location, "write_bytes", look_and_write)
    place.write_table(pa.table({"epoch": [1]}))
    assert seen == [[7, 7, 7]], "while it is written, what was there is"
    assert place.read_table()["epoch"].to_pylist() == [1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["part-00000.parquet", "table"]


def test_a_table_where_folders_cannot_be_renamed(tmp_path):
    """As on an object store."""
    place = locate(str(tmp_path / "table"))
    place.make_directory()
    pq.write_table(pa.table({"epoch": [7]}), (place / "part-00001.parquet").path)
    local = fs.LocalFileSystem()

    class Store:
        """A file system that refuses to move a folder."""

        def __getattr__(self, name):
            return getattr(local, name)

        def move(self, source, target):
            if local.get_file_info(source).type == fs.FileType.Directory:
                raise OSError("Cannot move a directory")
            local.move(source, target)

    Location(Store(), place.path, place.uri).write_table(pa.table({"epoch": [1]}))
    assert place.read_table()["epoch"].to_pylist() == [1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["part-00000.parquet", "table"]


def test_a_private_folder_is_the_user_s_alone(tmp_path):
    (tmp_path / "there").mkdir(mode=0o755)
    for name in ("there", "new"):
        place = locate(str(tmp_path / name))
        place.make_directory(private=True)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    (tmp_path / "there").chmod(0o755)
    locate(str(tmp_path / "there")).make_directory()
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755
    with pytest.raises(UserError, match="--private is for local folders, and memory://x is none"):
        Location(fs.SubTreeFileSystem("/", fs.LocalFileSystem()), "x", "memory://x").make_directory(private=True)  # fmt: skip


def test_unfinished_folders_are_cleared_too(tmp_path):
    hidden = locate(str(tmp_path / "table")).hidden_name()
    hidden.make_directory()
    locate(str(tmp_path)).clear_unfinished()
    assert not hidden.exists()


def test_a_file_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    """What is written aside goes, and what was there before stays."""
    place = locate(str(tmp_path / "a"))
    place.write_bytes(b"before")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Location, "move_to", fail)
    with pytest.raises(OSError, match="No space left"):
        place.write_bytes(b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and place.read_bytes() == b"before"


@pytest.mark.parametrize(
    "number, code", [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.ECHILD, None)]
)
def test_a_full_disk_ends_a_command_with_one_line(number, code, monkeypatch, capsys):
    def fail(_):
        raise OSError(number, "Error writing bytes to file.\nDetail: no room")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = (fail, ReportConfig, "", ["--run", "x"], "chexspark report")
    if code is None:  # another fault: its trace is needed
        with pytest.raises(OSError, match="no room"):
            main(*words)
        return
    assert main(*words) == code
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1 and said[0].startswith("chexspark: ") and said[0].endswith("Detail: no room")
    )


def test_a_command_leaves_a_session_that_was_there(spark, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = (lambda config: None, ReportConfig, "", ["--run", "x"], "chexspark report")
    assert main(*words) == 0
    assert spark.range(3).count() == 3
