"""MLflow is told of a run where it is there, and nothing that it does ends a training or holds it up."""

import http.server
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from chexspark import evaluate, predict, report, train
from chexspark.config import TrainConfig
from chexspark.errors import StoppedError, UserError
from chexspark.evaluation.job import figures
from chexspark.evaluation.mlflow_model import _load_pyfunc
from chexspark.findings import FINDINGS
from chexspark.ml import ChestXrayClassifier
from chexspark.run import mlflow_server, tracking
from chexspark.run.folder import run_folder
from chexspark.run.history import read_history, write_history
from chexspark.run.lineage import read_lineage
from chexspark.run.mlflow_server import Answer, Server, find_server
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.tracking import (
    Message,
    TrainingLog,
    copy_for_scoring,
    known_run,
    parameter,
    read_known,
    tell_figures,
    tell_pages,
)

ROW = {"epoch": 0, "steps": 3, "val_auroc": 0.7, "best": True, "learning_rate": 0.1,
       "val_auroc_Mass": 0.6, "val_auroc_Hernia": None, "val_loss": float("nan")}  # fmt: skip

OWN = """
import tf_keras as keras

def build(size, findings):
    image = keras.Input((size, size, 1))
    middle = keras.layers.Conv2D(4, 3, strides=4)(keras.layers.Rescaling(1 / 255)(image))
    middle = keras.layers.GlobalMaxPooling2D()(middle)
    return keras.Model(image, keras.layers.Dense(findings)(middle))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where MLflow's database and artifacts are, for all tests of this file."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "x-rays")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield folder


@pytest.fixture(scope="module")
def trained(spark, store, place):
    """A run of two epochs, and the settings that it was trained with."""
    given = {"data": store.path, "run": str(place / "run"), "model": "vgg16", "epochs": 2, "batch_size": 16,
             "num_proc": 1, "threads": 1, "registered_model": "chest"}  # fmt: skip
    train(spark, **given)
    return run_folder(given["run"]), given


@pytest.fixture(scope="module")
def logged(trained):
    return MlflowClient().get_run(read_known(trained[0]).run_id)


def curve(run_id, name):
    return {m.step: m.value for m in MlflowClient().get_metric_history(run_id, name)}


def test_curves_by_epoch_are_those_of_the_history(trained, logged):
    assert logged.info.status == "FINISHED" and logged.info.run_name == "run"
    history = read_history(trained[0])
    for name in ("train_loss", "val_auroc", "learning_rate", "val_auroc_Mass", "images_per_second"):
        expected = {n + 1: v for n, v in enumerate(history[name]) if not np.isnan(v)}
        assert expected and curve(logged.info.run_id, name) == expected
    assert {"epoch", "best"}.isdisjoint(logged.data.metrics)


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_the_same_mlflow_run(spark, trained, place):
    given = trained[1] | {"run": str(place / "resumed"), "epochs": 3, "registered_model": None}
    train(spark, **given, on_epoch=lambda epoch: epoch.stop())
    first = MlflowClient().get_run(read_known(run_folder(given["run"])).run_id)
    history = train(spark, **given)
    second = MlflowClient().get_run(read_known(run_folder(given["run"])).run_id)
    assert first.info.run_id == second.info.run_id
    assert (first.info.status, second.info.status) == ("KILLED", "FINISHED")
    assert list(curve(second.info.run_id, "train_loss").values()) == history["train_loss"].tolist()


def test_settings_store_and_experiment_are_there(trained, logged, manifest, store):
    assert MlflowClient().get_experiment(logged.info.experiment_id).name == "x-rays"
    params = logged.data.params
    assert params["model"] == "vgg16" and params["ranks"] == "1" and params["epochs"] == "2"
    assert params["findings"] == ", ".join(FINDINGS) and "on_epoch" not in params
    assert params["train_patients"] == str(manifest.splits["train"].patients)
    (dataset,) = logged.inputs.dataset_inputs
    assert manifest.fingerprint.startswith(dataset.dataset.digest)
    assert len(dataset.dataset.digest) == 36
    assert json.loads(dataset.dataset.source) == {"uri": store.path}
    assert dataset.tags[0].value == "training"
    assert logged.data.tags["chexspark.store_fingerprint"] == manifest.fingerprint


def test_a_finished_training_is_told_once(trained, logged):
    run, given = trained
    before = read_known(run)
    train(None, **given)
    assert read_known(run) == before
    (version,) = MlflowClient().search_model_versions("name='chest'")
    assert version.run_id == logged.info.run_id
    train(None, **given | {"registered_model": "other"})
    assert read_known(run).registered_model == "other"
    assert len(MlflowClient().search_model_versions("name='other'")) == 1
    steps = [m.step for m in MlflowClient().get_metric_history(before.run_id, "learning_rate")]
    assert steps == [1, 2]


@pytest.mark.slow
def test_spark_udf_gives_the_figures_of_predict(spark, trained, release, tmp_path):
    run = trained[0]
    files = sorted((release / "images").glob("*.png"))[:9]
    for file in files:
        shutil.copy(file, tmp_path)
    predicted = predict(spark, images=str(tmp_path), run=str(run), out=str(tmp_path / "scores"))
    expected = predicted.predictions.toPandas().set_index("image_index")
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:99])
    frame = spark.read.format("binaryFile").load(f"{tmp_path}/*.png").coalesce(1)
    score = mlflow.pyfunc.spark_udf(spark, "models:/chest/1")
    found = frame.select("path", score("content").alias("s")).select("path", "s.*").toPandas()
    found.index = [Path(path).name for path in found["path"]]
    names = [f"prob_{name}" for name in FINDINGS]
    assert list(found.columns) == ["path", *names] and len(found) == 10
    assert found.loc["broken.png", names].isna().all()
    np.testing.assert_allclose(found.loc[expected.index, names], expected[names], atol=1e-6)
    score = mlflow.pyfunc.spark_udf(spark, "models:/chest/1", result_type="array<double>")
    row = frame.filter("path like '%" + files[3].name + "'").select(score("content")).first()
    np.testing.assert_allclose(row[0], expected.loc[files[3].name, names].astype(float), atol=1e-6)


def test_a_logged_model_takes_tables_and_empty_ones(trained, release):
    model = mlflow.pyfunc.load_model("models:/chest/1")
    assert model.metadata.signature.inputs.input_names() == ["image"]
    content = next((release / "images").glob("*.png")).read_bytes()
    found = model.predict(pd.DataFrame({"image": [content, b"", content]}, index=[5, 7, 9]))
    assert found.index.tolist() == [5, 7, 9] and found.loc[7].isna().all()
    assert found.loc[5].equals(found.loc[9]) and found.loc[5].between(0, 1).all()
    assert len(model.predict(pd.DataFrame({"image": []}, dtype=object))) == 0


@pytest.mark.slow
def test_figures_and_report_follow_without_images_and_patients(spark, trained, place):
    run, given = trained
    found = evaluate(spark, data=given["data"], run=str(run), bootstrap=100)
    report(run=str(run))
    client, run_id = MlflowClient(), read_known(run).run_id
    metrics = client.get_run(run_id).data.metrics
    rows = found.metrics.toPandas().set_index("finding")
    assert metrics["test_auroc_mean"] == rows.loc["mean", "auroc"]
    assert metrics["test_average_precision_mean_low"] == rows.loc["mean", "average_precision_low"]
    aurocs = rows.drop("mean")["auroc"].dropna()
    assert {n: metrics[f"test_auroc_{n}"] for n in aurocs.index} == aurocs.to_dict()
    assert {file.path for file in client.list_artifacts(run_id)} == {"report.html", "model_card.md"}
    sent = [file.read_bytes() for file in (place / "mlruns").rglob("*") if file.is_file()]
    with sqlite3.connect(place / "mlflow.db") as database:
        sent.append("\n".join(database.iterdump()).encode())
    names = [row["image_index"] for row in found.predictions.collect()]
    own = run.report.read_text()
    assert any(name in own for name in names) and '<section id="examples">' in own
    hashes = run.seen_patients.read_table().column(0).to_pylist()
    secret = [*names, *hashes, read_lineage(run)["patient_salt"], '<section id="examples">']
    assert len(hashes) > 5 and any(b"AUROC" in text for text in sent)
    assert not [word for word in secret for text in sent if word.encode() in text]


def test_what_a_logged_model_has_of_its_run(trained, place):
    folder = place / "copy"
    copy_for_scoring(trained[0], run_folder(str(folder)))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "lineage.json", "best/model.keras", "best/best.json"}
    kept, whole = (read_lineage(run_folder(str(f))) for f in (folder, trained[0]))
    assert set(whole) - set(kept) == {"ranks", "patient_salt", "trained_patients"}


def test_figures_and_pages_go_to_the_run_s_own_mlflow_run(trained, tmp_path, monkeypatch):
    run, run_id, client = trained[0], read_known(trained[0]).run_id, MlflowClient()
    tell_figures(run, {"val_auroc_mean": 0.5, "val_auroc_Mass": None})
    tell_pages(run, [(run.model_card, "a card")])
    metrics = client.get_run(run_id).data.metrics
    assert metrics["val_auroc_mean"] == 0.5
    assert client.list_artifacts(run_id)[0].path == "model_card.md"
    with mlflow.start_run() as users:
        tell_figures(run_folder(str(tmp_path)), {"x": 1.0})
    assert client.get_run(users.info.run_id).data.metrics == {"x": 1.0}
    tell_figures(
        run_folder(str(tmp_path)), {"x": 1.0}
    )  # of a run that MLflow does not know: nothing
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tell_figures(run, {"x": 1.0})
    assert "x" not in client.get_run(run_id).data.metrics


def test_names_of_figures_are_those_of_the_metrics():
    record = {"finding": "Lung Opacity", "auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.8,
              "average_precision": None, "average_precision_low": None, "average_precision_high": None}  # fmt: skip
    found = figures([record], "test")
    assert found["test_auroc_Lung_Opacity"] == 0.7 and found["test_auroc_Lung_Opacity_low"] == 0.6
    assert len(found) == 6


@pytest.fixture
def log_of(store, manifest, tmp_path, place):
    """A function from a `Server` to a log of a training of one epoch, without ranks."""

    def make(server, **settings):
        run = run_folder(str(tmp_path / "training"))
        run.place.make_directory()
        write_history(run, [ROW], ("Mass", "Hernia"))
        config = TrainConfig(data=store.path, run=str(run), **settings)
        return TrainingLog(server, run, ResolvedTraining(config, 2), manifest, 2)

    return make


def test_the_user_s_own_run_is_used_and_left_open(log_of):
    with mlflow.start_run() as users:
        mlflow.log_param("model", "another")
        log = log_of(find_server())
        with log.working():
            log.take(ROW)
        assert mlflow.active_run().info.run_id == users.info.run_id
        found = MlflowClient().get_run(users.info.run_id)
        assert found.info.status == "RUNNING" and found.data.params["model"] == "another"
        assert found.data.params["ranks"] == "2" and found.data.metrics["val_auroc"] == 0.7
        assert {"val_loss", "val_auroc_Hernia"}.isdisjoint(found.data.metrics)
        assert read_known(log.run).ours is False
    assert find_server().users_run is None


def test_an_epoch_that_ends_before_mlflow_is_open_is_sent_once(log_of, monkeypatch):
    log, go = log_of(find_server()), threading.Event()
    opened = log.open
    monkeypatch.setattr(log, "open", lambda client: go.wait(60) and opened(client))
    with log.working():
        second = ROW | {"epoch": 1}
        write_history(log.run, [ROW, second], ("Mass", "Hernia"))
        log.take(second)
        go.set()
    client = MlflowClient()
    metrics = client.get_metric_history(read_known(log.run).run_id, "learning_rate")
    assert [metric.step for metric in metrics] == [1, 2]


@pytest.mark.parametrize(
    "error, status", [(StoppedError, "KILLED"), (KeyboardInterrupt, "KILLED"), (OSError, "FAILED")]
)
def test_how_a_training_ended_is_told(log_of, error, status):
    log = log_of(find_server())
    with pytest.raises(error), log.working():
        raise error("over")
    assert MlflowClient().get_run(read_known(log.run).run_id).info.status == status


def test_a_second_start_goes_on_in_the_same_mlflow_run_with_what_it_lacks(log_of):
    first, client = log_of(find_server()), MlflowClient()
    with pytest.raises(StoppedError), first.working():
        raise StoppedError("before MLflow heard of the second epoch")
    rows = [ROW, ROW | {"epoch": 1, "learning_rate": 0.05}]
    second = log_of(find_server())
    write_history(second.run, rows, ("Mass", "Hernia"))
    with second.working():
        pass
    run_id = read_known(first.run).run_id
    assert read_known(second.run).run_id == run_id
    assert curve(run_id, "learning_rate") == {1: 0.1, 2: 0.05}
    assert len(client.get_metric_history(run_id, "learning_rate")) == 2


def test_an_id_in_a_stranger_s_run_leads_to_no_run_that_is_not_of_chexspark(log_of):
    client = MlflowClient()
    other = client.create_run("0").info.run_id
    log = log_of(find_server())
    log.run.tracking.write_text(
        json.dumps({"run_id": other, "ours": True, "model": None, "registered_model": None})
    )
    assert read_known(log.run).run_id == other and known_run(client, read_known(log.run)) is None
    log = log_of(find_server())
    with log.working():
        pass
    assert read_known(log.run).run_id != other and not client.get_run(other).data.params
    for text in ("[]", "{", '{"run_id": "../x"}', json.dumps({"run_id": "http://x", "ours": True})):
        log.run.tracking.write_text(text)
        assert read_known(log.run) is None


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers 500, or nonsense, to all."""

    answer = (500, b"no")

    def do_GET(self):
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "answer", [(500, b"no"), (200, b"<html>"), (200, b"{}"), (403, b"no"), None]
)
def test_a_server_that_fails_is_a_note_and_no_more(log_of, monkeypatch, caplog, answer):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        if answer:
            monkeypatch.setattr(Failing, "answer", answer)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()  # nobody is there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        log = log_of(find_server())
        with log.working():
            for _ in range(50):
                log.take(ROW)
        if answer:
            server.shutdown()
    notes = [r.getMessage() for r in caplog.records if r.name.startswith("chexspark")]
    assert notes and all(n.startswith("note: MLflow did not take ") for n in notes)
    refused = answer in ((200, b"{}"), (403, b"no"))  # and not tried again
    assert ("the same command sends what is missing" in caplog.text) != refused
    assert len(notes) == len(set(notes)) < 4 and read_known(log.run) is None


class Flaky(Server):
    """Fails when it is asked the first times."""

    def __init__(self, failures):
        super().__init__()
        self.failures, self.asked = failures, []

    def ask(self, what, function, seconds=1.0):
        self.asked.append(what)
        self.failures -= 1
        return Answer.FAILED if self.failures >= 0 else Answer.DONE


def test_what_failed_is_sent_in_its_order_when_the_server_is_back(log_of, monkeypatch):
    monkeypatch.setattr(tracking, "PAUSE", 0.01)
    server = Flaky(failures=5)
    log = log_of(server)
    with log.working():
        log.take(ROW)
        wait = threading.Event()
        log.waiting.put(Message("more", lambda client: None))
        while server.asked[-1:] != ["more"]:
            wait.wait(0.01)
    order = list(dict.fromkeys(server.asked))
    assert server.asked[:6] == ["the run"] * 6
    assert order == ["the run", "the settings", "the store", "the epochs before", "the epochs",
                     "more", "the end of the run"]  # fmt: skip


def test_one_that_stays_away_is_given_up_at_the_end(log_of):
    server = Flaky(failures=1000)
    log = log_of(server)
    with log.working():
        for _ in range(100):
            log.take(ROW)
    assert 1 <= len(server.asked) <= 2


def test_one_that_does_not_answer_is_not_waited_for_when_stopped(log_of, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "AFTER_STOP", 0.1)
    answer = threading.Event()

    class Slow(Server):
        def ask(self, what, function, seconds=1.0):
            answer.wait(60)
            return Answer.FAILED

    log = log_of(Slow())
    with pytest.raises(StoppedError), log.working():
        raise StoppedError("stopped")
    assert "MLflow did not take all of the run" in caplog.text and not answer.is_set()
    answer.set()


def test_mlflow_waits_for_ten_seconds_unless_the_user_says_otherwise(place, monkeypatch):
    seen = []

    def ask():
        from mlflow.environment_variables import (
            MLFLOW_HTTP_REQUEST_MAX_RETRIES,
            MLFLOW_HTTP_REQUEST_TIMEOUT,
        )

        seen.append((MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()))

    Server().ask("it", lambda client: ask())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Server().ask("it", lambda client: ask())
    ask()
    assert seen == [(10, 1), (77, 1), (77, 7)]


def test_without_mlflow_nothing_is_imported_and_a_name_is_refused():
    code = (
        "import os, sys; os.environ.pop('MLFLOW_TRACKING_URI', 0)\n"
        "from chexspark import train\nfrom chexspark.errors import UserError\n"
        "from chexspark.run.mlflow_server import find_server\nassert find_server() is None\n"
        "try: train(None, data='/nowhere', run='/nowhere', registered_model='chest')\n"
        "except UserError as error: print(error)\nprint('mlflow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "registered_model='chest' needs MLflow: set MLFLOW_TRACKING_URI" in said.replace(
        "=chest", "='chest'"
    )
    assert said.splitlines()[-1] == "False"


def test_mlflow_that_is_not_installed_is_a_note(place, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_server.importlib.util, "find_spec", lambda name: None)
    assert find_server() is None
    assert "run pip install 'chexspark[mlflow]'" in caplog.text
    with pytest.raises(UserError, match="--registered-model needs mlflow, not installed here"):
        train(None, data="/nowhere", run="/nowhere", registered_model="chest")


def test_a_bad_name_is_refused_first(place, spark):
    for name in ("a/b", "a:1", " "):
        with pytest.raises(UserError, match=r"--registered-model .*: MLflow takes no empty name"):
            train(None, data="/nowhere", run="/nowhere", registered_model=name)
    frame = spark.createDataFrame([(b"", 1)], "image binary, Mass int")
    with pytest.raises(UserError, match="registeredModel=a/b: MLflow takes no"):
        ChestXrayClassifier(labelCols=["Mass"], registeredModel="a/b").fit(frame)


def test_no_password_of_a_uri_is_sent():
    assert parameter("s3://key:secret@bucket/a@b") == "s3://bucket/a@b"
    assert parameter(("hdfs://me@host/x", "/a/b@c")) == "hdfs://host/x, /a/b@c"
    assert parameter(None) == "None" and len(parameter("x" * 9999)) == 6000


@pytest.mark.slow
def test_a_network_of_one_s_own_is_named_again(spark, store, place, release):
    (place / "own.py").write_text(OWN)
    run = str(place / "own-run")
    train(spark, data=store.path, run=run, model="own:build", epochs=1, batch_size=16, num_proc=1,
          threads=1, registered_model="own")  # fmt: skip
    frame = spark.read.format("binaryFile").load(f"{release}/images/*.png").limit(3).coalesce(1)
    paths = [row["path"].removeprefix("file:") for row in frame.select("path").collect()]
    named = {"network": "own:build"}
    model = mlflow.pyfunc.load_model("models:/own/1", model_config=named)
    contents = [Path(path).read_bytes() for path in paths]
    expected = model.predict(pd.DataFrame({"image": contents})).to_numpy()
    spark.sparkContext.addPyFile(str(place / "own.py"))
    score = mlflow.pyfunc.spark_udf(spark, "models:/own/1", model_config=named)
    found = frame.select(score("content").alias("s")).select("s.*").toPandas().to_numpy()
    assert np.isfinite(expected).all() and np.allclose(found, expected, atol=1e-6)
    with pytest.raises(UserError, match="load it with model_config"):
        mlflow.pyfunc.load_model("models:/own/1")


def test_code_that_a_model_names_is_not_run(untrained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        "open('ran', 'w')\ndef build(size, findings): raise OSError('built')"
    )
    run = run_folder(str(untrained_run(1)))
    run.settings.write_text("layout_version: 2\nmodel: evil:build\n")
    for named in (None, {}, {"network": ""}, {"network": "evil:other"}):
        with pytest.raises(
            UserError, match=r"load it with model_config=\{\"network\": \"evil:build"
        ):
            _load_pyfunc(str(run), named)
    assert _load_pyfunc(str(run), {"network": "evil:build"}).scorer.models[0].code
    assert not (tmp_path / "ran").exists()  # before an image is scored
