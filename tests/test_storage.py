"""Places on file systems."""

import subprocess
import sys

import pyarrow as pa
import pytest

from chexspark.storage import Location, locate


def test_threads_may_come_to_s3_at_the_same_time():
    """Arrow crashes when they do, if nothing keeps them apart; S3 itself is not reached here."""
    script = """
import threading
from chexspark.storage import locate
together = threading.Barrier(8)
def come():
    together.wait()
    locate("s3://bucket/store?region=us-east-1")
threads = [threading.Thread(target=come) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
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
