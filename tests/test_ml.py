"""The Estimator, Model and Evaluator of Spark ML, as its users use them."""

import json
import logging
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import SQLTransformer
from pyspark.sql import functions as F

from chexspark import ingest_frame
from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.images import prepare
from chexspark.ml import ChestXrayClassifier, ChestXrayEvaluator, ChestXrayModel, patientFolds
from chexspark.preparation import Preparation
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest

SIZE = 32
LABELS = list(FINDINGS)
PROBABILITIES = [f"prob_{finding}" for finding in FINDINGS]


@pytest.fixture(scope="module")
def frame(spark, release):
    """The release as a DataFrame of files: path, content, name, patient, a column per finding."""
    table = pd.read_csv(release / "Data_Entry_2017.csv")
    rows = table[["Image Index", "Patient ID"]].set_axis(["name", "patient"], axis=1)
    for finding in FINDINGS:
        rows[finding] = (
            table["Finding Labels"].str.split("|").map(lambda names, f=finding: float(f in names))
        )
    files = spark.read.format("binaryFile").load(str(release / "images" / "*.png"))
    files = files.withColumn("name", F.element_at(F.split("path", "/"), -1))
    return (
        files.join(spark.createDataFrame(rows), "name")
        .select("name", "patient", "path", "content", *LABELS)
        .cache()
    )


def estimator(tmp_path, **values):
    usual = {
        "imageCol": "content", "patientCol": "patient", "nameCol": "name", "labelCols": LABELS, "imageSize": SIZE,
        "model": "vgg16", "epochs": 1, "numProc": 1, "threads": 1, "batchSize": 16, "workDir": str(tmp_path / "work"),
    }  # fmt: skip
    return ChestXrayClassifier(**usual | values)


@pytest.fixture(scope="module")
def fitted(frame, tmp_path_factory):
    return estimator(tmp_path_factory.mktemp("ml"), deterministic=True).fit(frame)


@pytest.fixture
def model(untrained_run):
    return ChestXrayModel.fromRun(
        untrained_run(0, FINDINGS).path,
        imageCol="content",
        patientCol="patient",
        nameCol="name",
        labelCols=LABELS,
    )


def scores(frame, order="name"):
    return frame.orderBy(order).select(PROBABILITIES).toPandas().to_numpy()


# Fit


def test_a_fit_gives_a_model_with_history_thresholds_and_lineage(fitted):
    assert list(fitted.history["epoch"]) == [0] and fitted.findingNames == FINDINGS
    assert fitted.lineage["image_size"] == SIZE
    known = [t for t in fitted.thresholds.values() if t is not None]
    assert list(fitted.thresholds) == LABELS and known and all(0 < t < 1 for t in known)
    assert list(fitted.calibration) == LABELS
    scaled = [c for c in fitted.calibration.values() if c is not None]
    assert all(c.slope > 0 for c in scaled)


@pytest.mark.slow
def test_the_same_rows_give_the_same_weights_as_the_jobs(spark, release, frame, fitted, tmp_path):
    """Bit for bit, with a split and names that are the same; here with a test split besides."""
    from chexspark import ingest, train

    store = fitted.lineage["store"]
    rows = spark.read.parquet(f"{store}/train", f"{store}/val").select("image_index").toPandas()
    val = set(spark.read.parquet(f"{store}/val").toPandas()["image_index"])
    lines = [f"{name},{'val' if name in val else 'train'}" for name in sorted(rows["image_index"])]
    images = tmp_path / "images"
    shutil.copytree(release / "images", images)
    labels = pd.read_csv(release / "Data_Entry_2017.csv")
    extra = labels.iloc[:1].assign(**{"Image Index": "09999999_000.png", "Patient ID": 9999999})
    pd.concat([labels, extra]).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "split.csv").write_text("\n".join(["image,split", *lines, "09999999_000.png,test"]))
    shutil.copy(images / labels["Image Index"][0], images / "09999999_000.png")
    ingest(spark, images=str(images), labels=str(tmp_path / "labels.csv"), split_file=str(tmp_path / "split.csv"),
           out=str(tmp_path / "store"), size=SIZE, fit="pad")  # fmt: skip
    train(spark, data=str(tmp_path / "store"), run=str(tmp_path / "run"), model="vgg16", epochs=1, num_proc=1,
          threads=1, batch_size=16, deterministic=True)  # fmt: skip
    theirs = ChestXrayModel.fromRun(str(tmp_path / "run"))
    assert theirs.history["val_auroc"].equals(fitted.history["val_auroc"])
    pairs = zip(
        theirs.getKerasModel().get_weights(), fitted.getKerasModel().get_weights(), strict=True
    )
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_several_fits_ingest_once_and_run_one_after_the_other(frame, tmp_path, caplog):
    """Two param maps, in two threads, as CrossValidator does it."""
    from multiprocessing.pool import ThreadPool

    caplog.set_level(logging.INFO, logger="chexspark")
    one = estimator(tmp_path)
    maps = [{one.learningRate: 1e-3}, {one.learningRate: 1e-4}]
    with ThreadPool(2) as pool:
        found = dict(
            pool.map(lambda _: next(models), range(2))
            if (models := one.fitMultiple(frame, maps))
            else ()
        )
    assert {i: model.history["learning_rate"][0] for i, model in found.items()} == {
        0: 1e-3,
        1: 1e-4,
    }
    assert len(list((tmp_path / "work" / "stores").iterdir())) == 1
    assert "the store of these rows is there already" in caplog.text
    assert found[0].uid == one.uid


@pytest.mark.slow
def test_a_fit_on_a_store_and_a_model_of_its_run(spark, store, tmp_path, frame, fitted):
    found = estimator(tmp_path, labelCols=None).fitOnStore(store.path)
    assert found.lineage["store_fingerprint"] == read_manifest(store).fingerprint
    again = ChestXrayModel.fromRun(str(found.run), imageCol="content")
    assert np.array_equal(scores(again.transform(frame)), scores(found.transform(frame)))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"labelCols": ["Mass", "Moss"]}, "labelCols=Moss: there is no such column"),
        ({"labelCols": ["Mass", "path"]}, "labelCols=path is of type string, but must be numbers or truth values"),
        ({"labelCols": None}, "labelCols is missing"),
        ({"labelCol": "Mass"}, "labelCol contradicts labelCols"),
        ({"imageCol": "Mass"}, "imageCol=Mass is of type double, but must be the bytes of image files"),
        ({"patientCol": "Mass"}, "patientCol=Mass is of type double"),
        ({"nameCol": "patient"}, "names are of several rows with other images"),
        ({"validationIndicatorCol": "Mass"}, "validationIndicatorCol=Mass is of type double"),
        ({"validationIndicatorCol": "odd", "validationShare": 0.2}, "validationIndicatorCol contradicts validationShare"),
        ({"validationIndicatorCol": "odd"}, "validationIndicatorCol=odd: .* patients have images for training and"),
        ({"validationIndicatorCol": "none"}, "the val split is empty"),
        ({"findings": ["Mass"]}, "findings has 1 names, but there are 14 columns"),
        ({"labelCols": ["two"]}, "labelCols=two has 2 in .* such values.*, but a label is 1, 0, or -1"),
        ({"labelCols": ["several"]}, "labelCols=several has several labels in one column: name the findings"),
        ({"labelCols": ["several"], "findings": ["A", "B", "C"]}, "labelCols=several has 2 values in"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum has no effect with optimizer=adam"),
        ({"recipe": "chexnot"}, "recipe=chexnot: there is no such file"),
        ({"numProc": 5}, "Spark has 2 task slots"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_words_of_params(frame, tmp_path, values, message):
    odd = (F.substring("name", 10, 3).cast("int") % 2 == 1).alias("odd")
    more = frame.select(
        "*",
        odd,
        F.lit(False).alias("none"),
        F.lit(2.0).alias("two"),
        F.array(F.lit(1), F.lit(0)).alias("several"),
    )
    with pytest.raises(UserError, match=message):
        estimator(tmp_path, **values).fit(more)
    assert not (tmp_path / "work" / "runs").exists() or values.get("numProc")


def test_a_name_that_is_no_param_and_a_value_out_of_rule():
    with pytest.raises(UserError, match=r"no Param learning_rate.*learningRate"):
        ChestXrayClassifier(learning_rate=1.0)
    with pytest.raises(UserError, match="learningRate is -1"):
        ChestXrayClassifier(learningRate=-1)
    with pytest.raises(
        UserError, match="handleInvalid is 'ignore', but must be one of keep, skip, error"
    ):
        ChestXrayModel(handleInvalid="ignore")


def test_what_is_no_frame_and_other_mistakes(spark, frame, model, tmp_path):
    stream = spark.readStream.format("rate").load().withColumn("content", F.lit(b""))
    for call, message in (
        (lambda: estimator(tmp_path).fit(pd.DataFrame({"a": [1]})), "fit takes a Spark DataFrame"),
        (lambda: estimator(tmp_path).fit("store"), r"given a str \(fitOnStore takes the path"),
        (lambda: estimator(tmp_path).fit(stream), "this DataFrame is a stream"),
        (lambda: model.transform(pd.DataFrame()), "transform takes a Spark DataFrame"),
        (lambda: model.evaluate(stream), "this DataFrame is a stream"),
        (lambda: model.evaluate(frame, bootstrap=-1), "bootstrap is -1"),
        (lambda: model.udf("bytes"), "kind is 'bytes', but must be one of file, struct, path"),
        (lambda: ChestXrayModel.fromRun(str(tmp_path / "no")), "has no best/model.keras"),
        (lambda: ChestXrayModel().transform(frame), "has no run: use fit, load or fromRun"),
        (lambda: estimator(tmp_path, model="vgg").fit(frame), "model='vgg' is unknown"),
        (lambda: estimator(tmp_path, weights="/no").fit(frame), "weights=/no"),
        (
            lambda: estimator(tmp_path, predictionCol="probability").fit(frame),
            "two columns are to be called prob",
        ),
        (
            lambda: estimator(tmp_path, reasonCol="path").fit(frame),
            "column path already: .* another reasonCol",
        ),
        (
            lambda: estimator(tmp_path).fit(frame.withColumn("patient", F.lit(" "))),
            "can be used: 96 x no patient",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert not (tmp_path / "work").exists()
    several = ChestXrayClassifier(
        labelCols=pd.Index(["Mass", "Edema"]), workDir=tmp_path, epochs=np.int64(3)
    )
    assert (several.getLabelCols(), several.getEpochs()) == (["Mass", "Edema"], 3)
    assert several.getWorkDir() == str(tmp_path) and "ChestXrayModel: uid=" in repr(model)


def test_without_patients_and_with_bad_rows(spark, frame, tmp_path, caplog):
    """Rows that cannot be used are set aside; rows that are the same count once."""
    bad = spark.createDataFrame(
        [("empty.png", b""), ("text.png", b"no image"), ("null.png", None)],
        "name string, content binary",
    )
    bad = bad.select("name", F.lit(1).cast("long").alias("patient"), F.lit("x").alias("path"), "content",
                     *(F.lit(None).cast("double").alias(f) for f in FINDINGS))  # fmt: skip
    rows = frame.unionByName(frame.limit(5)).unionByName(bad)
    manifest = ingest_frame(
        rows, image="content", labels=LABELS, name="name", out=str(tmp_path / "store"), size=SIZE
    )
    assert manifest.quarantined == {
        "empty file": 1,
        "not a PNG, JPEG or DICOM file": 1,
        "no image": 1,
    }
    assert sum(split.images for split in manifest.splits.values()) == 96
    assert manifest.splits["train"].patients == manifest.splits["train"].images
    assert (
        "5 rows are the same as others" in caplog.text
        and "every row is taken for a patient" in caplog.text
    )
    with pytest.raises(UserError, match="already holds a store of other rows or settings"):
        ingest_frame(
            rows.limit(60),
            image="content",
            labels=LABELS,
            name="name",
            out=str(tmp_path / "store"),
            size=SIZE,
        )


@pytest.mark.slow
def test_images_in_three_forms_are_stored_alike(spark, release, frame, tmp_path):
    """Bytes, paths, and Spark's image struct; labels as a vector."""
    from pyspark.ml.functions import array_to_vector

    pictures = spark.read.format("image").load(str(release / "images"))
    structs = pictures.withColumn("name", F.element_at(F.split("image.origin", "/"), -1))
    rows = (
        frame.withColumn("vector", array_to_vector(F.array(*LABELS)))
        .drop("image")
        .join(structs, "name")
    )
    given = {"labels": "vector", "findings": LABELS, "patient": "patient", "size": SIZE}
    found = {
        column: ingest_frame(rows, image=column, name=name, out=str(tmp_path / column), **given)
        for column, name in (("content", "name"), ("path", None), ("image", "name"))
    }
    assert len({manifest.fingerprint for manifest in found.values()}) == 1
    one = ingest_frame(
        frame,
        image="content",
        labels=LABELS,
        patient="patient",
        name="name",
        size=SIZE,
        out=str(tmp_path / "one"),
    )
    assert one.fingerprint == found["path"].fingerprint


def test_colours_of_a_struct_are_the_gray_of_their_file(spark, tmp_path):
    from PIL import Image

    from chexspark.ingestion.frame_task import image_of

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    row = spark.read.format("image").load(str(tmp_path / "x.png")).collect()[0]["image"].asDict()
    how = Preparation(SIZE)
    assert np.array_equal(
        image_of(row, "struct", how).pixels, prepare((tmp_path / "x.png").read_bytes(), how).pixels
    )


def test_a_frame_that_is_another_each_time_is_refused(spark, frame, tmp_path):
    more = F.udf(lambda content: bytes(content) + os.urandom(4), "binary").asNondeterministic()
    changing = frame.withColumn("content", more("content"))
    with pytest.raises(RunFailedError, match="gives other rows each time"):
        ingest_frame(
            changing,
            image="content",
            labels=LABELS,
            patient="patient",
            name="name",
            size=SIZE,
            out=str(tmp_path / "s"),
        )


def test_a_fit_that_was_stopped_is_resumed_by_the_same_fit(spark, frame, tmp_path, monkeypatch):
    from chexspark.cluster import job
    from chexspark.ml import classifier

    runs = []

    def stopped(spark, function, arguments, *_):
        runs.append(arguments[0].config.run)
        raise StoppedError("its Spark jobs were cancelled")

    monkeypatch.setattr(job, "run_ranks", stopped)
    for rate in (1e-3, 1e-3, 1e-4):
        with pytest.raises(
            StoppedError, match="were cancelled; the same command resumes at epoch 1"
        ):
            estimator(tmp_path, learningRate=rate).fit(frame)
    assert runs[0] == runs[1] != runs[2] and not classifier.RUNNING
    one = estimator(tmp_path)
    models = one.fitMultiple(frame, [{one.epochs: 2}, {one.epochs: 3}])
    for words in ("were cancelled", "not begun, since another fit of the same search was stopped"):
        with pytest.raises(StoppedError, match=words):
            next(models)
    del runs[3:]
    monkeypatch.setattr(classifier, "is_finished", lambda run, network: str(run) == runs[0])
    with pytest.raises(StoppedError):
        estimator(tmp_path).fit(frame)
    assert runs[3] not in runs[:3], "what is finished is trained anew"


def test_a_store_that_is_not_kept(frame, tmp_path, monkeypatch):
    from chexspark.ml import classifier

    def fail(*_):
        raise RunFailedError("x")

    monkeypatch.setattr(classifier, "train", fail)
    with pytest.raises(RunFailedError):
        estimator(tmp_path, keepStore=False).fit(frame)
    assert not list((tmp_path / "work" / "stores").iterdir())


# Transform


def test_a_transform_keeps_columns_rows_and_partitions(spark, release, frame, model):
    some = frame.withColumn("note", F.when(F.rand(1) > 0.5, "x")).repartition(3, "name").cache()
    found = model.transform(some)
    assert found.columns[: len(some.columns)] == some.columns
    assert found.columns[len(some.columns) :] == [
        "probability",
        "prediction",
        "reason",
        "patient_seen",
        *PROBABILITIES,
    ]
    number = F.spark_partition_id().alias("partition")
    before = some.select("name", "note", number).toPandas()
    assert found.select("name", "note", number).toPandas().equals(before)
    row = found.filter("name = '00000001_000.png'").collect()[0]
    assert np.array_equal(row["probability"].toArray(), [row[name] for name in PROBABILITIES])
    pixels = prepare(
        (release / "images" / row["name"]).read_bytes(), Preparation(SIZE, "stretch")
    ).pixels
    logits = model.getKerasModel()(pixels[None, ..., None]).numpy()[0].astype(float)
    assert np.allclose(row["probability"].toArray(), 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert row["prediction"] == [None] * 14, "an untrained run has no validation"


def test_predictions_are_of_the_thresholds(frame, fitted):
    rows = fitted.transform(frame).select("probability", "prediction").limit(9).collect()
    for row in rows:
        for p, yes, threshold in zip(
            row["probability"], row["prediction"], fitted.thresholds.values(), strict=True
        ):
            assert yes == (None if threshold is None else float(p >= threshold))


@pytest.mark.parametrize("invalid, number", [("keep", 3), ("skip", 1), ("error", None)])
def test_images_that_cannot_be_used(spark, release, model, invalid, number):
    good = (release / "images" / "00000001_000.png").read_bytes()
    rows = spark.createDataFrame(
        [("good", good), ("bad", b"text"), ("none", None)], "name string, content binary"
    )
    found = model.copy({model.handleInvalid: invalid}).transform(rows)
    if number is None:
        with pytest.raises(Exception, match="an image cannot be used: "):
            found.collect()
        return
    table = (
        found.select("name", "reason", "prob_Mass", "probability", "prediction")
        .toPandas()
        .set_index("name")
    )
    assert (
        len(table) == number
        and table["reason"]["good"] is None
        and 0 < table["prob_Mass"]["good"] < 1
    )
    if invalid == "keep":
        assert table["reason"]["bad"] == "not a PNG, JPEG or DICOM file"
        assert table["reason"]["none"] == "no image: its value is null"
        assert table.loc[["bad", "none"], ["probability", "prediction"]].isna().all(axis=None)


@pytest.mark.slow
def test_the_other_forms_of_images_and_a_function_for_sql(spark, release, frame, model):
    names = [
        f"file://{release}/images/{row.name}" for row in frame.select("name").limit(3).collect()
    ]
    paths = spark.createDataFrame(
        [(name, name.rsplit("/")[-1]) for name in [*names, "/nowhere/x.png"]],
        "content string, name string",
    )
    found = model.transform(paths)
    assert found.filter("reason like 'cannot be read%'").count() == 1
    expected = scores(
        model.transform(frame.filter(F.col("name").isin([n.rsplit("/")[-1] for n in names])))
    )
    assert np.allclose(scores(found.filter("reason is null")), expected)
    structs = (
        spark.read.format("image")
        .load(names)
        .withColumn("name", F.element_at(F.split("image.origin", "/"), -1))
    )
    assert np.allclose(scores(model.copy({model.imageCol: "image"}).transform(structs)), expected)
    spark.udf.register("score", model.udf())
    frame.createOrReplaceTempView("xrays")
    listed = ", ".join(f"'{name.rsplit('/')[-1]}'" for name in names)
    rows = spark.sql(
        f"select name, score(content) as p from xrays where name in ({listed}) order by name"
    ).collect()
    assert np.allclose([row.p for row in rows], expected)


def test_output_columns(frame, model):
    plain = model.copy(
        {
            model.outputPrefix: "",
            model.predictionCol: "",
            model.reasonCol: "",
            model.seenPatientCol: "",
        }
    )
    assert plain.transform(frame).columns == [*frame.columns, "probability"]
    with pytest.raises(UserError, match="has a column probability already"):
        plain.transform(frame.withColumn("Probability", F.lit(1)))
    with pytest.raises(UserError, match="two columns are to be called reason"):
        model.copy({model.predictionCol: "reason"}).transform(frame)
    with pytest.raises(UserError, match="imageCol=picture: there is no such column"):
        model.copy({model.imageCol: "picture"}).transform(frame)


@pytest.mark.slow
def test_an_empty_frame_and_a_stream(spark, release, frame, model, tmp_path, wait_for):
    assert model.transform(frame.limit(0)).count() == 0
    (tmp_path / "in").mkdir()
    schema = "path string, modificationTime timestamp, length long, content binary"
    stream = spark.readStream.format("binaryFile").schema(schema).load(str(tmp_path / "in"))
    query = (
        model.transform(stream).select("path", "prob_Mass").writeStream.format("parquet")
        .option("path", str(tmp_path / "out")).option("checkpointLocation", str(tmp_path / "state")).start()
    )  # fmt: skip
    try:
        for name in ("00000001_000.png", "00000002_000.png"):
            shutil.copy(release / "images" / name, tmp_path / "in" / name)
            query.processAllAvailable()
    finally:
        query.stop()
    assert spark.read.parquet(str(tmp_path / "out")).filter("prob_Mass > 0").count() == 2


def test_seen_patients_are_marked_and_refused(spark, frame, fitted, caplog):
    split = (
        spark.read.parquet(f"{fitted.lineage['store']}/train")
        .select("patient_id")
        .distinct()
        .toPandas()["patient_id"]
    )
    others = frame.withColumn(
        "patient",
        F.when(F.col("patient").cast("string").isin(list(split[1:])), F.col("patient")).otherwise(
            F.lit(-1)
        ),
    )
    marked = fitted.transform(others).select("patient", "patient_seen").toPandas()
    assert (marked["patient_seen"] == (marked["patient"] != -1)).all() and marked[
        "patient_seen"
    ].any()
    with pytest.raises(
        UserError, match=r"was trained, or its epoch chosen, on \d+ of \d+ patients"
    ):
        fitted.evaluate(others)
    strangers = frame.withColumn("patient", F.col("patient") + 1_000_000)
    metrics = fitted.evaluate(strangers, bootstrap=100).toPandas().set_index("finding")
    assert list(metrics.index) == [*FINDINGS, "mean"]
    known = {f: t for f, t in fitted.thresholds.items() if t is not None}
    assert metrics["threshold_youden"].dropna()[list(known)].to_dict() == known
    allowed = fitted.evaluate(frame, allowSeen=True, bootstrap=100).toPandas().set_index("finding")
    assert np.allclose(
        allowed["auroc"].astype(float), metrics["auroc"].astype(float), equal_nan=True
    )
    assert "these figures flatter it" in caplog.text
    assert fitted.transform(frame.drop("patient")).filter("patient_seen is not null").count() == 0


def test_labels_go_by_name_whatever_their_order(frame, model):
    both = {model.labelCols: ["Edema", "Mass"]}
    one = (
        model.copy(both)
        .evaluate(frame, allowSeen=True, bootstrap=100)
        .toPandas()
        .set_index("finding")
    )
    renamed = frame.withColumnsRenamed({"Edema": "label_Edema", "Mass": "label_Mass"})
    other = model.copy({model.labelCols: ["label_Mass", "label_Edema"]}).evaluate(
        renamed, allowSeen=True, bootstrap=100
    )
    assert one["auroc"].to_dict() == other.toPandas().set_index("finding")["auroc"].to_dict()
    with pytest.raises(UserError, match="none is in both"):
        model.copy({model.labelCols: ["patient"]}).evaluate(frame, allowSeen=True)


# Save and load, copies, pipelines


def test_a_saved_model_moves_and_is_whole(spark, frame, fitted, tmp_path):
    fitted.save(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="is there already: give a new folder"):
        fitted.save(str(tmp_path / "saved"))
    fitted.write().overwrite().save(str(tmp_path / "saved"))
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    loaded = ChestXrayModel.load(str(tmp_path / "moved"))
    assert loaded.uid == fitted.uid and str(loaded.run).startswith(str(tmp_path / "moved"))
    assert loaded.extractParamMap() == {
        loaded.getParam(p.name): v for p, v in fitted.extractParamMap().items()
    }
    assert np.array_equal(scores(loaded.transform(frame)), scores(fitted.transform(frame)))
    assert loaded.thresholds == fitted.thresholds and loaded.calibration == fitted.calibration
    assert loaded.history.equals(fitted.history)
    assert not (tmp_path / "moved" / "run" / "predictions").exists(), (
        "they have the patients' names"
    )
    loaded.write().overwrite().save(str(tmp_path / "moved"))
    assert ChestXrayModel.load(str(tmp_path / "moved")).thresholds == fitted.thresholds
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is no saved ChestXrayModel"):
        loaded.write().overwrite().save(str(tmp_path / "other"))
    with pytest.raises(UserError, match="is no saved ChestXrayModel"):
        ChestXrayModel.load(str(tmp_path / "other"))


def test_a_saved_model_of_another_class_is_refused(fitted, tmp_path):
    fitted.save(str(tmp_path / "saved"))
    file = next(
        path
        for path in (tmp_path / "saved" / "metadata").iterdir()
        if path.name.startswith("part-")
    )
    text = json.loads(file.read_text()) | {"class": "os.system"}
    file.write_text(json.dumps(text))
    with pytest.raises(
        UserError, match=r"is a os\.system, and no chexspark\.ml\.model\.ChestXrayModel"
    ):
        ChestXrayModel.load(str(tmp_path / "saved"))


def test_params_are_spark_s(tmp_path):
    one = estimator(tmp_path, recipe="chexnet")
    assert "learningRate: at one rank" in one.explainParams()
    assert one.getLearningRate() == 1e-3 and not one.isSet(one.learningRate)
    assert one.setLearningRate(0.5).getLearningRate() == 0.5
    other = one.copy({one.epochs: 7})
    assert (other.getEpochs(), one.getEpochs(), other.uid) == (7, 1, one.uid)
    one.save(str(tmp_path / "estimator"))
    loaded = ChestXrayClassifier.load(str(tmp_path / "estimator"))
    assert {p.name: v for p, v in loaded.extractParamMap().items()} == {
        p.name: v for p, v in one.extractParamMap().items()
    }
    one.clear(one.learningRate)
    assert one.training_config("s", "r").learning_rate != 0.5, (
        "the recipe's, where the Param is not set"
    )
    for cls in (ChestXrayClassifier, ChestXrayModel, ChestXrayEvaluator):
        assert cls().params, "load calls it without arguments"


@pytest.mark.slow
def test_a_pipeline_is_saved_and_loaded_whole(frame, fitted, tmp_path):
    before = SQLTransformer(statement="select *, length(content) as bytes from __THIS__")
    after = SQLTransformer(statement="select name, bytes, prob_Mass from __THIS__")
    pipeline = PipelineModel([before, fitted, after])
    pipeline.save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    assert (
        loaded.transform(frame)
        .orderBy("name")
        .toPandas()
        .equals(pipeline.transform(frame).orderBy("name").toPandas())
    )
    Pipeline(stages=[before, estimator(tmp_path)]).save(str(tmp_path / "unfitted"))
    stage = Pipeline.load(str(tmp_path / "unfitted")).getStages()[1]
    assert stage.getLabelCols() == LABELS


# Evaluator and folds


def test_an_evaluator_agrees_with_scikit_learn(frame, model, caplog):
    from sklearn.metrics import average_precision_score, roc_auc_score

    scored = model.transform(
        frame.withColumn(
            "Mass", F.when(F.col("name") < "00000010", F.lit(-1.0)).otherwise(F.col("Mass"))
        )
    ).cache()
    table = scored.toPandas()
    mass = table[table["Mass"] >= 0]

    def figure(metric, **values):
        return ChestXrayEvaluator(metricName=metric, labelCols=LABELS, **values).evaluate(scored)

    assert figure("AUROC:Mass") == pytest.approx(
        roc_auc_score(mass["Mass"], mass["prob_Mass"]), abs=1e-12
    )
    each = [
        roc_auc_score(t[f], t[f"prob_{f}"])
        for f in FINDINGS
        if 0 < (t := mass if f == "Mass" else table)[f].sum() < len(t)
    ]
    assert figure("meanAUROC") == pytest.approx(np.mean(each), abs=1e-12)
    each = [
        average_precision_score(t[f], t[f"prob_{f}"])
        for f in FINDINGS
        if 0 < (t := mass if f == "Mass" else table)[f].sum() < len(t)
    ]
    assert figure("meanAP") == pytest.approx(np.mean(each), abs=1e-12)
    each = [
        np.mean((t[f] - t[f"prob_{f}"]) ** 2)
        for f in FINDINGS
        for t in [mass if f == "Mass" else table]
    ]
    assert figure("brier") == pytest.approx(np.mean(each), abs=1e-12)
    assert (
        not ChestXrayEvaluator(metricName="brier").isLargerBetter()
        and ChestXrayEvaluator().isLargerBetter()
    )
    assert "rows are of patients that the model has seen" in caplog.text
    for metric, message in (
        ("AUROC:Moss", "there is no such finding.*Mass"),
        ("AUROC", "must be meanAUROC"),
    ):
        with pytest.raises(UserError, match=message):
            figure(metric)
    mixed = ChestXrayEvaluator(labelCols=["Edema", "Mass"], metricName="AUROC:Mass")
    assert mixed.evaluate(scored) == figure("AUROC:Mass"), "by name, in any order"
    with pytest.raises(UserError, match="labelCols has Moss, and probability"):
        ChestXrayEvaluator(labelCols=["Mass"], findings=["Moss"]).evaluate(scored)
    unnamed = scored.withColumn("probability", F.col("probability").alias("p", metadata={}))
    with pytest.raises(UserError, match="has 14 values, and there are 1 labels"):
        ChestXrayEvaluator(labelCols=["Mass"]).evaluate(unnamed)


@pytest.mark.slow
def test_what_is_no_label_is_told_wherever_labels_are_read(frame, model):
    """By fit (above), by evaluate and by the Evaluator."""
    strange = frame.withColumn(
        "Mass", F.when(F.col("name") == "00000001_000.png", 0.5).otherwise(F.col("Mass"))
    )
    several = frame.withColumn("all", F.when(F.col("name") != "00000001_000.png", F.array(*LABELS)))
    array = {"labelCols": None, "labelCol": "all", "findings": LABELS}
    for rows, values, message in (
        (strange, {"labelCols": LABELS}, "labelCols=Mass has 0.5 in .* but a label is 1, 0, or -1"),
        (several, array, "has no values in 1 rows, .* but there are 14 findings"),
    ):
        given = {name: value for name, value in values.items() if value is not None}
        with pytest.raises(UserError, match=message):
            ChestXrayEvaluator(**given).evaluate(model.transform(rows))
        one = model.copy({model.getParam(name): value for name, value in values.items()})
        with pytest.raises(UserError, match=message):
            one.evaluate(rows, allowSeen=True)
    named = ChestXrayEvaluator(labelCol="all").evaluate(
        model.transform(several.dropna(subset=["all"]))
    )
    assert named == ChestXrayEvaluator(labelCols=LABELS).evaluate(
        model.transform(several.dropna(subset=["all"]))
    )


def test_a_store_that_another_wrote_meanwhile_stays(frame, tmp_path, monkeypatch):
    from chexspark.ingestion import frames

    given = {
        "image": "content",
        "labels": LABELS,
        "patient": "patient",
        "name": "name",
        "size": SIZE,
    }
    out = tmp_path / "store"
    plain, calls = frames.inputs_of, []

    def meanwhile(facts):
        if not calls:
            calls.append(True)
            ingest_frame(frame, out=str(out), **given)
        return plain(facts)

    monkeypatch.setattr(frames, "inputs_of", meanwhile)
    with pytest.raises(UserError, match="another ingest has written there meanwhile"):
        ingest_frame(frame, out=str(out), **given)
    assert sum(len(list((out / split).glob("*.parquet"))) for split in ("train", "val")) > 1
    assert read_manifest(locate(str(out))).splits["train"].images > 0


def test_folds_keep_patients_apart(frame):
    folds = patientFolds(frame, "patient", numFolds=3, seed=1).select("patient", "fold").toPandas()
    assert folds.groupby("patient")["fold"].nunique().max() == 1 and set(folds["fold"]) == {0, 1, 2}
    other = (
        patientFolds(frame.repartition(7), "patient", numFolds=3, seed=2)
        .select("patient", "fold")
        .toPandas()
    )
    assert (
        not other.groupby("patient")["fold"]
        .first()
        .equals(folds.groupby("patient")["fold"].first())
    )
    again = (
        patientFolds(frame.repartition(7), "patient", numFolds=3, seed=1)
        .select("patient", "fold")
        .toPandas()
    )
    assert again.groupby("patient")["fold"].first().equals(folds.groupby("patient")["fold"].first())
    with pytest.raises(UserError, match="numFolds is 1"):
        patientFolds(frame, "patient", numFolds=1)


@pytest.mark.slow
def test_cross_validation_over_patient_folds(frame, tmp_path, caplog):
    from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder

    one = estimator(tmp_path)
    grid = ParamGridBuilder().addGrid(one.learningRate, [1e-3, 1e-4]).build()
    search = CrossValidator(
        estimator=one,
        estimatorParamMaps=grid,
        evaluator=ChestXrayEvaluator(labelCols=LABELS),
        numFolds=3,
        foldCol="fold",
        parallelism=2,
    )
    best = search.fit(patientFolds(frame, "patient"))
    assert len(best.avgMetrics) == 2 and "the model has seen" not in caplog.text
    assert len(list((tmp_path / "work" / "stores").iterdir())) == 4, (
        "a store per fold, and one of all"
    )
    best.save(str(tmp_path / "best"))
    loaded = CrossValidatorModel.load(str(tmp_path / "best"))
    assert np.array_equal(scores(loaded.transform(frame)), scores(best.transform(frame)))
