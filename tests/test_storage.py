"""Places on file systems."""

import subprocess
import sys


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
