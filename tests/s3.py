"""An S3 server on loopback for tests, with an environment of its own below the user's cache folder.

In: how many requests fail, how long each takes. Out: what settings reach it, and what lies in its bucket.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pyarrow import fs

HERE = Path(__file__).parent
LOCK = HERE / "s3_server.lock"
BUCKET, KEY = "chest", "AKIACHEXSPARK0TESTS1"
SECRET = "wJ/alrX+Utn=FEMI/K7MD+ENG=bPxRfiCY/+=="


def server_python():
    """A Python that has moto, in the versions of the lock; made where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chexspark"
    version = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:8]
    place = cache / f"moto-{version}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=cache, prefix="building."))
        subprocess.run([sys.executable, "-m", "venv", aside], check=True)
        pip = [aside / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*pip, "install", "--no-deps", "-r", LOCK], check=True)
        try:
            aside.rename(place)
        except OSError:  # another test has made it meanwhile
            shutil.rmtree(aside)
    return place / "bin" / "python"


class S3:
    """A context manager. `fails_every`: of so many requests one is answered 503; `seconds` that each takes."""

    def __init__(self, folder, fails_every=0, seconds=0.0):
        self.log = Path(folder) / "s3-requests.txt"
        self.settings = {
            "key": KEY,
            "secret": SECRET,
            "fails_every": fails_every,
            "seconds": seconds,
        }

    def __enter__(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [server_python(), HERE / "s3_server.py"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.process.stdin.write(json.dumps(self.settings) + "\n")
        self.process.stdin.flush()
        self.endpoint = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.files = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=self.endpoint, region="us-east-1",
            allow_bucket_creation=True, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=10),
        )  # fmt: skip
        self.files.create_dir(BUCKET)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def requests(self):
        """How many it has had."""
        return len(self.log.read_text().splitlines())

    def variables(self):
        """An environment by which it is reached."""
        return plain_environment() | {
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def properties(self, file):
        """Spark's settings by which it is reached, in a file for ``spark-submit --properties-file``."""
        Path(file).write_text(
            f"spark.hadoop.fs.s3a.endpoint {self.endpoint}\n"
            f"spark.hadoop.fs.s3a.access.key {KEY}\n"
            f"spark.hadoop.fs.s3a.secret.key {SECRET}\n"
            "spark.hadoop.fs.s3a.path.style.access true\n"
        )
        return file

    def put(self, folder, name):
        """Copy a local folder into the bucket."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                self.put_file(path, f"{name}/{path.relative_to(folder)}")

    def put_file(self, path, name):
        """Copy a local file into the bucket."""
        with self.files.open_output_stream(f"{BUCKET}/{name}", compression=None) as stream:
            stream.write(Path(path).read_bytes())

    def names(self, below=""):
        """The names of all objects, or of those below a folder."""
        place = f"{BUCKET}/{below}".rstrip("/")
        found = self.files.get_file_info(
            fs.FileSelector(place, recursive=True, allow_not_found=True)
        )
        return [i.path.removeprefix(f"{BUCKET}/") for i in found if i.type == fs.FileType.File]

    def objects(self, below=""):
        """The content of each object, by name."""
        return {name: self.read(f"{BUCKET}/{name}") for name in self.names(below)}

    def read(self, path):
        """The content of a file of the bucket, by its path."""
        with self.files.open_input_stream(path, compression=None) as stream:
            return stream.read()


def plain_environment():
    """This process's, without what would lead to another object store."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PYSPARK_SUBMIT"))}
