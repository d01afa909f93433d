"""One Spark session and one small store per process of the suite, of synthetic images only.

Under pytest-xdist each worker is a process with a session and a store of its own;
``--dist loadfile`` keeps the tests of a file, and what they share, in one of them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: TensorFlow's and OpenMP's threads would take them twice.
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import hypothesis
import pytest

from chexspark import errors, ingest
from chexspark.findings import FINDINGS
from chexspark.models import build_model
from chexspark.output import LOGGER, show_output
from chexspark.phantom import draw_anatomy, draw_phantom, generator, write_release
from chexspark.run.folder import RunFolder
from chexspark.run.seen_patients import write_seen_patients
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest

SIZE = 32
PATIENCE = 60  # seconds after which what has not happened will not; on a busy machine too

# The machine may be busy: no deadline. On a host that builds, the same examples each time.
hypothesis.settings.register_profile("tests", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def as_command(monkeypatch):
    """Texts as a command says them; tests/test_messages.py has those of a call."""
    show_output(always=True)  # nothing but pytest has set up logging
    monkeypatch.setattr(LOGGER, "propagate", True)  # so that `caplog` hears it
    monkeypatch.setattr(errors, "at_command_line", True)


@pytest.fixture(scope="session")
def spark():
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("tests")
    session = builder.config("spark.ui.enabled", "false").getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """96 phantoms of 32 pixels in NIH's form."""
    folder = tmp_path_factory.mktemp("nih")
    write_release(out=str(folder), images=96, size=SIZE, seed=1)
    return folder


@pytest.fixture(scope="session")
def store(spark, release, tmp_path_factory):
    """The release, ingested in row groups of 10."""
    out = tmp_path_factory.mktemp("stores") / "store"
    ingest(
        spark,
        images=str(release / "images"),
        labels=str(release / "Data_Entry_2017.csv"),
        boxes=str(release / "BBox_List_2017.csv"),
        out=str(out),
        size=SIZE,
        rows_per_group=10,
    )
    return locate(str(out))


@pytest.fixture(scope="session")
def manifest(store):
    return read_manifest(store)


@pytest.fixture(scope="session")
def untrained_run(store, manifest, tmp_path_factory):
    """A function from a seed to a run with a small model, as jobs/train.py would leave it.

    Without `findings`, a run from before runs named theirs: NIH's 14.
    """

    def make(seed: int, findings=None):
        import tf_keras as keras

        folder = tmp_path_factory.mktemp("untrained") / "run"
        keras.utils.set_random_seed(seed)
        model = build_model("vgg16", SIZE, len(findings or FINDINGS))
        # Fresh weights tell images hardly apart: the logits of a phantom are spread about 0.
        kernel, bias = model.get_layer("logits").get_weights()
        phantom, _ = draw_phantom(SIZE, (), generator(1), draw_anatomy(generator(2)))
        middle = 20 * model(phantom[None, ..., None]).numpy()[0]
        model.get_layer("logits").set_weights([20 * kernel, bias - middle])
        run = locate(str(folder))
        (run / "best").make_directory()
        model.save(folder / "best" / "model.keras")
        (run / "config.yaml").write_text("layout_version: 2\nmodel: vgg16\n")
        salt, digest = write_seen_patients(RunFolder(run), store, manifest)
        lineage = {"store": store.path, "store_fingerprint": manifest.fingerprint,
                   "trained_patients": digest, "patient_salt": salt, "image_size": SIZE}  # fmt: skip
        lineage |= {"findings": list(findings)} if findings else {}
        (run / "lineage.json").write_text(json.dumps(lineage))
        return run

    return make


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """What ``./build.sh pack`` makes."""
    folder = tmp_path_factory.mktemp("packed")
    done = subprocess.run([Path(__file__).parent.parent / "build.sh", "pack", folder], capture_output=True, text=True,
                          env=os.environ | {"CHEXSPARK_VENV": sys.prefix})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def unpacked(packed):
    """The same, unpacked, as hosts have it that do not wait for it each time."""
    (folder := packed.parent / "env").mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", folder], check=True)
    return folder


@pytest.fixture
def wait_for():
    """A function that returns as soon as a condition holds, and fails if it never does."""

    def wait(condition, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"it did not happen within {seconds} seconds")
            time.sleep(0.02)

    return wait
