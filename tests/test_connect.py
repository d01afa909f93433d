"""What works through Spark Connect, against a server of Spark's own in this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from chexspark.findings import FINDINGS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(
        pyspark.__version__.startswith("3."), reason="Spark 3.5 comes without its Connect server"
    ),
]
PROGRAM = """
import sys
import pandas as pd
from pyspark.sql import SparkSession, functions as F
from chexspark import evaluate, ingest, ingest_frame, predict, read_store, train
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ml import ChestXrayClassifier, ChestXrayEvaluator, ChestXrayModel, patientFolds
from chexspark.store.manifest import read_manifest

release, store, run, out = sys.argv[1:]
spark = SparkSession.builder.remote("local[2]").getOrCreate()
labels = pd.read_csv(release + "/Data_Entry_2017.csv")
rows = labels[["Image Index", "Patient ID"]].set_axis(["name", "patient"], axis=1)
for finding in FINDINGS:
    rows[finding] = labels["Finding Labels"].str.split("|").map(lambda names: float(finding in names))
files = spark.read.format("binaryFile").load(release + "/images/*.png")
files = files.withColumn("name", F.element_at(F.split("path", "/"), -1))
frame = files.join(spark.createDataFrame(rows), "name")

given = {"image": "content", "labels": list(FINDINGS), "patient": "patient", "name": "name", "size": 32}
made = ingest_frame(frame, out=out + "/store", **given)
assert sum(split.images for split in made.splits.values()) == read_store(spark, out + "/store").count() == 96
assert read_store(spark, store).count() == 96

model = ChestXrayModel.fromRun(run, imageCol="content", patientCol="patient", labelCols=list(FINDINGS))
scored = model.transform(frame)
table = scored.orderBy("name").select("name", "prob_Mass", "patient_seen").toPandas()
table.to_csv(out + "/scores.csv", index=False)
metrics = model.evaluate(frame, allowSeen=True, bootstrap=100).toPandas()
figure = ChestXrayEvaluator(labelCols=list(FINDINGS)).evaluate(scored)
assert abs(metrics["auroc"].iloc[-1] - figure) < 1e-9
assert patientFolds(frame, "patient").select("fold").distinct().count() == 3
model.save(out + "/saved")
again = ChestXrayModel.load(out + "/saved").transform(frame).orderBy("name").select("prob_Mass").toPandas()
assert (again["prob_Mass"] - table["prob_Mass"]).abs().max() < 1e-6
found = predict(spark, images=release + "/images/00000001_000.png", run=run, out=out + "/predicted")
assert found.predictions.count() == 1
for call in (
    lambda: ChestXrayClassifier(labelCols=["Mass"]).fit(frame),
    lambda: train(spark, data=store, run=out + "/run"),
    lambda: evaluate(spark, data=store, run=run),
    lambda: ingest(spark, images=release, labels=release + "/Data_Entry_2017.csv", out=out + "/other"),
):
    try:
        call()
    except UserError as error:
        assert "needs classic access to Spark" in str(error), error
    else:
        raise AssertionError("it should not work")
print("all of it")
"""


def test_frames_models_and_stores_work_through_spark_connect(
    spark, release, store, untrained_run, tmp_path
):
    from pyspark.sql import functions as F

    from chexspark.ml import ChestXrayModel

    run = untrained_run(0, FINDINGS)
    settings = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    for name in ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"):
        settings.pop(name, None)
    arguments = [str(release), store.path, run.path, str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=settings,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 0 and "all of it" in ended.stdout, ended.stderr[-3000:]
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    theirs = {line.split(",")[0]: float(line.split(",")[1]) for line in lines[1:]}
    files = spark.read.format("binaryFile").load(str(release / "images" / "*.png"))
    files = files.withColumn("name", F.element_at(F.split("path", "/"), -1))
    ours = (
        ChestXrayModel.fromRun(run.path, imageCol="content")
        .transform(files)
        .select("name", "prob_Mass")
    )
    assert {row.name for row in ours.collect()} == set(theirs)
    assert max(abs(row.prob_Mass - theirs[row["name"]]) for row in ours.collect()) < 1e-6
