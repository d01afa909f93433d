"""All jobs on S3: a server on loopback that checks signatures, fails, is slow. Settings reach drivers, tasks and ranks; keys nothing else."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3 import BUCKET, KEY, S3, SECRET, plain_environment

from chexspark import ingest
from chexspark.phantom import write_release
from chexspark.storage import locate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

README = (Path(__file__).parent.parent / "README.md").read_text()
BIN = Path(sys.executable).parent
SMALL = {
    "ingest": ["--size", "32"],
    "train": ["--model", "vgg16", "--epochs", "1", "--batch-size", "8", "--num-proc", "2", "--threads", "1"],
    "evaluate": ["--bootstrap", "100"],
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """48 phantoms in NIH's form."""
    folder = tmp_path_factory.mktemp("nih")
    write_release(out=str(folder), images=48, size=32, seed=1)
    return folder


@pytest.fixture(scope="module")
def s3(tmp_path_factory, images):
    with S3(tmp_path_factory.mktemp("s3")) as server:
        server.put(images, "nih")
        yield server


def section():
    """The commands of README's section on object stores, each in one line."""
    (text,) = re.findall(r"### Object stores\n(.*?)\n### ", README, re.S)
    blocks = re.findall(r"(?:^    .*\n)+", text, re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines]


def begin(words, environment, folder):
    """Start a command in a folder of its own."""
    environment = environment | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    return subprocess.Popen([*map(str, words)], env=environment, cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)  # fmt: skip


def run(words, environment, folder, code=0):
    """What a command says that ends with a code."""
    process = begin(words, environment, folder)
    said = process.communicate()[0]
    assert process.returncode == code, f"{words}\n{said}"
    return said


def chexspark(*words):
    return [sys.executable, "-m", "chexspark", *words]


def command_lines():
    """Of all processes below this one: Spark's, ranks, the server."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            yield " ".join(process.cmdline())


def assert_no_secret(text, where):
    """Neither the secret nor what it looks like in a URI, a JSON or a properties file."""
    for form in (
        SECRET,
        SECRET.replace("/", "%2F"),
        SECRET.replace("/", "\\/"),
        SECRET.replace("=", "\\="),
    ):
        assert form not in text, where


@pytest.mark.slow
def test_the_commands_of_the_readme_on_s3a_and_no_key_anywhere(s3, tmp_path):
    folder, events, own = tmp_path / "here", tmp_path / "events", tmp_path / "own"
    for place in (folder, events, own):
        place.mkdir()
    settings = s3.properties(own / "s3.conf")
    with settings.open("a") as file:
        file.write(f"spark.master local[2]\nspark.eventLog.enabled true\nspark.eventLog.dir {events}\n"
                   f"spark.local.dir {tmp_path}/local\n")  # fmt: skip
    names = []
    for line in section():
        words = shlex.split(
            line.replace("$(chexspark script)", "SCRIPT").replace("s3.conf", str(settings))
        )
        if words[0] != "spark-submit" or "--append" in words:
            continue
        at = words.index("SCRIPT")
        script = run(["chexspark", "script"], plain_environment(), folder).strip()
        name = words[at + 1]
        process = begin([*words[:at], script, *words[at + 1 :], *SMALL.get(name, [])], plain_environment(), folder)  # fmt: skip
        said = ""
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=1)[0]
            assert_no_secret("\n".join(command_lines()), "a command line")
        assert process.returncode == 0, f"{line}\n{said}"
        assert_no_secret(said, line)
        assert KEY not in said
        names.append(name)
    assert names == ["ingest", "train", "evaluate", "predict", "report"]
    written = s3.objects()
    for name in ("store/dataset.json", "run/lineage.json", "run/logs/rank-0.log", "run/logs/rank-1.log", "run/evaluation.json",
                 "run/report.html", "run/predictions/split=test/part-00000.parquet", "scores.parquet/_SUCCESS"):  # fmt: skip
        assert name in written, sorted(written)
    files = {
        str(path): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path != settings
    }
    assert any(str(events) in name for name in files) and written["run/history/part-00000.parquet"]
    for name, content in (files | written).items():
        assert_no_secret(content.decode("latin-1"), name)


@pytest.mark.slow
@pytest.mark.parametrize("fault, few", [({"fails_every": 20}, 48), ({"seconds": 1.0}, 24)])
def test_all_jobs_on_a_server_that_fails_or_is_slow(spark, tmp_path, fault, few):
    """By ``s3://`` and AWS_*; one request in twenty is refused, or each takes a second. The store is that of a local ingest."""
    nih = tmp_path / "nih"
    write_release(out=str(nih), images=few, size=32, seed=1)
    local = ingest(spark, images=str(nih / "images"), labels=str(nih / "Data_Entry_2017.csv"),
                   out=str(tmp_path / "store"), size=32)  # fmt: skip
    with S3(tmp_path, **fault) as s3:
        with ThreadPoolExecutor(16) as writers:
            list(
                writers.map(
                    lambda path: s3.put_file(path, f"nih/{path.relative_to(nih)}"), nih.rglob("*.*")
                )
            )
        at = f"s3://{BUCKET}"
        jobs = {
            "ingest": ["--images", f"{at}/nih/images", "--labels", f"{at}/nih/Data_Entry_2017.csv", "--out", f"{at}/store"],
            "train": ["--data", f"{at}/store", "--run", f"{at}/run"],
            "evaluate": ["--data", f"{at}/store", "--run", f"{at}/run"],
            "predict": ["--images", f"{at}/nih/images/*.png", "--run", f"{at}/run", "--out", f"{at}/scores.parquet"],
            "report": ["--run", f"{at}/run"],
        }  # fmt: skip
        for name, words in jobs.items():
            said = run(chexspark(name, *words, *SMALL.get(name, [])), s3.variables(), tmp_path)
            assert_no_secret(said, name)
            assert "restart" not in said
        manifest = json.loads(s3.read(f"{BUCKET}/store/dataset.json"))
        scores = pq.read_table(f"{BUCKET}/scores.parquet", filesystem=s3.files)
    assert manifest["fingerprint"] == local.fingerprint
    assert scores.num_rows == few


def test_reads_of_few_bytes_that_are_refused_are_tried_again(tmp_path, monkeypatch):
    """A refusal is longer than they are, which Amazon's client does not take well."""
    with S3(tmp_path, fails_every=4) as s3:
        for name, value in s3.variables().items():
            monkeypatch.setenv(name, value)
        place = locate(f"s3://{BUCKET}/folder")
        for number in range(8):
            (place / "file").write_bytes(b"x" * number)
            assert (place / "file").read_bytes() == b"x" * number
        assert (place / "file").read_bytes(2) == b"xx"
        place.write_table(pa.table({"n": [1]}))
        assert place.read_table()["n"].to_pylist() == [1]
        assert place.is_directory() and not (place / "none").exists()


@pytest.mark.slow
def test_the_other_commands_over_executors_of_their_own(s3, images, tmp_path):
    """On ``local-cluster``, whose executors are other processes; recipe, space, weights and an archive are in the bucket too."""
    at = f"s3a://{BUCKET}/others"
    (tmp_path / "recipe.yaml").write_text("model: vgg16\nepochs: 1\nbatch_size: 8\nthreads: 1\n")
    space = f"recipe: {at}/recipe.yaml\nlearning_rate: [1.0e-3, 1.0e-4]\n"
    (tmp_path / "space.yaml").write_text(space)
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(images / "images", "images")
    for name in ("recipe.yaml", "space.yaml", "images.tar.gz"):
        s3.put_file(tmp_path / name, f"others/{name}")
    settings = s3.properties(tmp_path / "s3.conf")
    with settings.open("a") as file:
        file.write("spark.master local-cluster[2,1,1024]\n")
    (folder := tmp_path / "here").mkdir()
    some = sorted(path.name for path in (images / "images").iterdir())[0]
    jobs = [
        f"ingest --images {at}/images.tar.gz --labels s3a://{BUCKET}/nih/Data_Entry_2017.csv --out {at}/store --size 32",
        f"train --data {at}/store --run {at}/run-0 --recipe {at}/recipe.yaml --num-proc 2",
        f"train --data {at}/store --run {at}/run --recipe {at}/recipe.yaml --num-proc 2 --weights {at}/run-0",
        f"doctor --data {at}/store --run {at}/run --num-proc 2",
        f"evaluate --data {at}/store --run {at}/run --bootstrap 100",
        f"predict --images {at}/images.tar.gz --run {at}/run --out {at}/scores.parquet",
        f"explain --data {at}/store --run {at}/run --images {some} --findings Mass",
        f"export --run {at}/run",
        f"search --data {at}/store --space {at}/space.yaml --out {at}/search --trials 2 --num-proc 2",
        f"phantom --out {at}/phantoms --images 4 --size 32",
    ]
    script = run(["chexspark", "script"], plain_environment(), folder).strip()
    said = [run(["spark-submit", "--properties-file", settings, script, *job.split()], plain_environment(), folder) for job in jobs]  # fmt: skip
    assert_no_secret("".join(said), "what was said")
    assert "2 ranks can start" in said[3]
    written = s3.objects("others")
    for name in ("run/maps/", "run/export/model.onnx", "search/best.yaml", "search/search.html", "phantoms/images/",
                 "scores.parquet/part-00000.parquet"):  # fmt: skip
        assert any(found.startswith(f"others/{name}") for found in written), (name, sorted(written))
    for name, content in written.items():
        assert_no_secret(content.decode("latin-1"), name)


def patients(s3):
    """The split of each patient of the store, and the images of all."""
    split_of, names = {}, []
    for split in ("train", "val", "test"):
        table = pq.read_table(f"{BUCKET}/store/{split}", filesystem=s3.files, columns=["patient_id", "image_index"])  # fmt: skip
        split_of |= dict.fromkeys(table["patient_id"].to_pylist(), split)
        names += table["image_index"].to_pylist()
    return split_of, names


@pytest.mark.slow
def test_a_folder_that_grows_night_by_night(images, spark, tmp_path, wait_for):
    """By README's command, each night the same; while one is at work, and after one that was killed within its writing."""
    local = ingest(spark, images=str(images / "images"), labels=str(images / "Data_Entry_2017.csv"),
                   out=str(tmp_path / "local"), size=32)  # fmt: skip
    (line,) = [line for line in section() if "--append" in line]
    words = chexspark(*shlex.split(line.partition("script)")[2]), "--size", "32")
    labels = (images / "Data_Entry_2017.csv").read_text().splitlines(keepends=True)
    with S3(tmp_path) as s3:

        def night(every):
            """Images and labels as they are then."""
            for path in sorted((images / "images").iterdir())[::every]:
                s3.put_file(path, f"nih/images/{path.name}")
            (tmp_path / "labels.csv").write_text("".join([labels[0], *labels[1::every]]))
            s3.put_file(tmp_path / "labels.csv", "nih/Data_Entry_2017.csv")

        night(2)
        run(words, s3.variables(), tmp_path)
        first, names = patients(s3)
        manifest = s3.read(f"{BUCKET}/store/dataset.json")
        assert len(names) == 24
        night(1)
        at_work = begin(words, s3.variables(), tmp_path)
        wait_for(lambda: any(name.endswith(".parquet") for name in s3.names("store/_unfinished")))
        at_work.send_signal(signal.SIGSTOP)
        said = run(words, s3.variables(), tmp_path, code=2)
        (refused,) = [line for line in said.splitlines() if line.startswith("chexspark: ")]
        assert re.search(
            rf"another ingest is writing there \(host .*, process {at_work.pid}\)", refused
        )
        for process in [*psutil.Process(at_work.pid).children(recursive=True), at_work]:
            process.kill()
        at_work.wait()
        assert s3.read(f"{BUCKET}/store/dataset.json") == manifest
        assert patients(s3) == (first, names)
        run(words, s3.variables(), tmp_path)
        after, names = patients(s3)
        assert after.items() >= first.items() and len(names) == len(set(names)) == 48
        whole = json.loads(s3.read(f"{BUCKET}/store/dataset.json"))
        assert whole["fingerprint"] == local.fingerprint
        there = s3.names("store")
        assert there and not [name for name in there if "_unfinished" in name or "_lock" in name]
        assert "nothing to do" in run(words, s3.variables(), tmp_path)


ESTIMATOR = """
import sys
from pyspark.sql import SparkSession, functions as F
from chexspark.ml import ChestXrayClassifier, ChestXrayModel

what, at, nih = sys.argv[1:]
spark = SparkSession.builder.getOrCreate()
import pandas as pd
rows = pd.read_csv(nih + "/Data_Entry_2017.csv")
rows = pd.DataFrame({"path": "s3a://chest/nih/images/" + rows["Image Index"], "patient": rows["Patient ID"].astype(str),
                     "Mass": rows["Finding Labels"].str.contains("Mass").astype(float),
                     "Effusion": rows["Finding Labels"].str.contains("Effusion").astype(float)})
frame = spark.createDataFrame(rows)
if what == "fit":
    classifier = ChestXrayClassifier(imageCol="path", patientCol="patient", labelCols=["Mass", "Effusion"], workDir=at + "/work",
                                     imageSize=32, model="vgg16", epochs=1, batchSize=8, numProc=2, threads=1, validationShare=0.3)
    model = classifier.fit(frame)
    model.save(at + "/model")
else:
    model = ChestXrayModel.load(at + "/model")
scores = model.transform(frame).orderBy("path").select("reason", "prob_Mass").collect()
assert len(scores) == 48 and all(row.reason is None for row in scores), scores[:3]
print("SCORES", [round(row.prob_Mass, 6) for row in scores])
"""


@pytest.mark.slow
def test_an_estimator_whose_images_work_folder_and_model_are_on_s3(s3, images, tmp_path):
    """Without hadoop-aws; the Model is loaded by another process."""
    settings = s3.properties(tmp_path / "s3.conf")
    (tmp_path / "program.py").write_text(ESTIMATOR)
    said = [
        run(["spark-submit", "--master", "local-cluster[2,1,1024]", "--properties-file", settings, "program.py", what,
             f"s3a://{BUCKET}/estimator", images], plain_environment(), tmp_path)
        for what in ("fit", "load")
    ]  # fmt: skip
    scores = [re.search(r"^SCORES .*$", text, re.M)[0] for text in said]
    assert scores[0] == scores[1]
    assert_no_secret("".join(said), "what was said")
    assert s3.objects("estimator/model")["estimator/model/metadata/part-00000"].startswith(
        b'{"class":'
    )


@pytest.mark.parametrize(
    "change", ["secret", pytest.param("endpoint", marks=pytest.mark.slow), "bucket"]
)
def test_a_wrong_setting_is_one_line(s3, tmp_path, change):
    wrong = s3.variables() | {
        "secret": {"AWS_SECRET_ACCESS_KEY": SECRET[::-1]}, "endpoint": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "bucket": {},
    }[change]  # fmt: skip
    bucket = "none" if change == "bucket" else BUCKET
    said = run(chexspark("report", "--run", f"s3://{bucket}/run"), wrong, tmp_path, code=2)
    assert len(said.splitlines()) == 1 and f"s3://{bucket}/run" in said
    assert SECRET[::-1] not in said and KEY not in said
