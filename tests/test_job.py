"""The main job at small size, two ranks, ingest to report; and the user's mistakes."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from chexspark import evaluate, report, train
from chexspark.cluster.events import EventServer
from chexspark.cluster.job import check_inputs
from chexspark.cluster.slots import check_ranks
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.session import task_slots
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.text_files import with_checksum
from chexspark.training.events import Epoch

JOBS = Path(__file__).parent.parent / "jobs"


@pytest.fixture(scope="module")
def whole(spark, store, tmp_path_factory):
    """Two epochs on two ranks, then evaluation of the test split and the report.

    The run, its history, its evaluation, the report's path, and the ranks' own events of epochs.
    """
    place = locate(str(tmp_path_factory.mktemp("runs") / "run"))
    settings = {"data": store.path, "run": place.path}
    take, events = EventServer.take, []

    def keep(server, rank, event):
        events.append((rank.rank, event))
        take(server, rank, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventServer, "take", keep)
        history = train(
            spark, **settings, model="vgg16", epochs=2, batch_size=5, num_proc=2, threads=1
        )
    evaluation = evaluate(spark, **settings, bootstrap=100)
    epochs = [(rank, event) for rank, event in events if isinstance(event, Epoch)]
    return place, history, evaluation, report(run=place.path), epochs


@pytest.fixture
def run(whole):
    return whole[:4]


def test_the_run_holds_all_that_the_design_says(run, manifest):
    place, history, *_ = run
    config = yaml.safe_load((place / "config.yaml").read_text())
    assert (config["epochs"], config["batch_size"], config["num_proc"]) == (2, 5, 2)
    lineage = json.loads((place / "lineage.json").read_text())
    assert lineage["store_fingerprint"] == manifest.fingerprint
    assert (lineage["image_size"], lineage["fit"], lineage["bit_depth"]) == (
        manifest.image_size,
        "stretch",
        None,
    )
    assert [rank["rank"] for rank in lineage["ranks"]] == [0, 1]
    assert [rank["threads"] for rank in lineage["ranks"]] == [1, 1]
    assert lineage["packages"]["horovod"] == "0.28.1"
    written = pq.read_table((place / "history").path).to_pandas()
    pd.testing.assert_frame_equal(written, pd.DataFrame(history))
    assert history.run == str(place) and type(history[["epoch"]]) is pd.DataFrame
    assert history["epoch"].tolist() == [0, 1] and history["best"].sum() == 1
    assert history["steps"].tolist() == [-(-manifest.splits["train"].images // 10)] * 2
    assert np.isfinite(history["train_loss"]).all() and (history["val_loss"] > 0).all()
    for rank in (0, 1):
        assert "epoch 1" in (place / "logs" / f"rank-{rank}.log").read_text()
    assert (place / "best" / "model.keras").is_file()
    assert (place / "tensorboard").list_files()
    shares = history[["input_share", "compute_share", "allreduce_share"]]
    assert (shares >= 0).all(axis=None) and shares.sum(axis=1).round(6).eq(1).all()
    assert json.loads((place / "best" / "best.json").read_text())["best"] is True


def test_both_ranks_come_to_the_same_figures(whole):
    *_, events = whole

    def figures(rank):
        return [
            (event.epoch, event.train_loss, event.val_loss, event.val_auroc, event.best)
            for sender, event in events if sender == rank
        ]  # fmt: skip

    assert [epoch for epoch, *_ in figures(0)] == [0, 1]
    assert figures(0) == figures(1)


def test_predictions_are_the_model_s_own(run, store, manifest):
    import tf_keras as keras

    from chexspark.data.reader import SplitReader

    place, _, evaluation, _ = run
    table = evaluation.predictions.toPandas().set_index("image_index").sort_index()
    assert len(table) == manifest.splits["test"].images and set(table.split) == {"test"}
    model = keras.models.load_model((place / "best" / "model.keras").path, compile=False)
    reader = SplitReader(store, manifest, "test")
    groups = [reader.read_row_group(i) for i in range(len(reader.row_groups))]
    images, labels = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    names = [n for f in manifest.splits["test"].files
             for n in pq.read_table((store / f.path).path)["image_index"].to_pylist()]  # fmt: skip
    expected = 1 / (1 + np.exp(-model(images[..., None]).numpy().astype(float)))
    found = table.loc[names]
    np.testing.assert_allclose(found[[f"prob_{f}" for f in FINDINGS]], expected, atol=1e-5)
    np.testing.assert_array_equal(found[[f"label_{f}" for f in FINDINGS]], labels)


def test_metrics_are_those_of_the_predictions(run):
    _, _, evaluation, _ = run
    metrics = evaluation.metrics.toPandas().set_index("finding")
    table = evaluation.predictions.toPandas()
    assert metrics.index.tolist() == [*FINDINGS, "mean"]
    left_out = []
    for finding in FINDINGS:
        labels = table[f"label_{finding}"]
        if 0 < labels.sum() < len(labels):
            expected = roc_auc_score(labels, table[f"prob_{finding}"])
            assert metrics.auroc[finding] == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(metrics.auroc[finding]) and "no AUROC" in metrics.note[finding]
            left_out.append(finding)
    assert metrics.auroc["mean"] == pytest.approx(metrics.auroc[list(FINDINGS)].mean())
    without, *_ = metrics.note["mean"].split("; ")
    assert without == "without " + ", ".join(left_out) if left_out else "without" not in without


def test_a_second_split_stands_beside_the_first(spark, run, store):
    place, *_ = run
    evaluate(spark, data=store.path, run=place.path, split="val", bootstrap=100)
    for name in ("metrics", "predictions"):
        splits = spark.read.parquet((place / name).spark_uri).select("split").distinct().collect()
        assert sorted(row.split for row in splits) == ["test", "val"]


def test_the_report_is_one_file_that_says_what_was_found(run):
    place, _, evaluation, path = run
    page = Path(path).read_text()
    mean = evaluation.metrics.where("finding = 'mean'").first().auroc
    assert f"<b>{mean:.3f}</b>" in page and "Not a medical device" in page
    for finding in FINDINGS:
        assert finding.replace("_", " ") in page
    for text in ("Synthetic X-rays", "Training", "learning rate"):
        assert text in page
    assert "CheXNet v3" not in page, "published results are of patients"
    sources = set(re.findall(r'(?:src|href)="([^"]{1,10})', page))
    assert all(source.startswith(("#", "data:image")) for source in sources)
    assert not [part for part in ("<script", "<link", "@import", 'url("http') if part in page]
    targets = set(re.findall(r'href="#([a-z]+)"', page))
    assert targets <= set(re.findall(r'id="([a-z]+)"', page))
    card = (place / "model_card.md").read_text()
    assert f"| mean | {mean:.3f} |" in card and "Not a medical device" in card


def test_a_plan_shows_what_would_run_and_starts_nothing(store, manifest, tmp_path, capsys):
    new = tmp_path / "new"
    train(None, data=store.path, run=str(new), dry_run=True, num_proc=4, batch_size=4, epochs=3,
          model="vgg16", schedule="cosine", scale_learning_rate="linear", warmup_epochs=1)  # fmt: skip
    shown = capsys.readouterr().out
    steps = -(-manifest.splits["train"].images // 16)
    assert f"{steps} steps per epoch of 16 images, {3 * steps} steps in all" in shown
    assert "14,721,870 trainable parameters" in shown and "learning rate (cosine):" in shown
    assert "█" in shown and not new.exists()


def test_the_learning_rate_of_an_earlier_run_is_taken_up(run, store, tmp_path):
    place, history, *_ = run
    best = history[history["best"]].iloc[0]
    settings = {
        "data": store.path,
        "run": str(tmp_path / "new"),
        "learning_rate_from_weights": True,
    }
    config, *_ = check_inputs(
        build(TrainConfig, settings | {"weights": place.path, "dry_run": True})
    )
    assert config.learning_rate == best["learning_rate"]
    with pytest.raises(UserError, match="needs --weights to name a run"):
        check_inputs(build(TrainConfig, settings | {"dry_run": True}))


@pytest.mark.slow
def test_a_network_that_memory_does_not_hold_is_refused_before_the_start(spark, store, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"of free memory, but its 2 ranks need [\d.]+ GiB"):
        train(spark, data=store.path, run=str(run), model="vgg16", batch_size=1_000_000, num_proc=2)
    assert not (run / "config.yaml").exists()


def test_what_a_killed_doctor_left_makes_no_run(store, tmp_path):
    (tmp_path / ".doctor-0123").touch()
    settings = {"data": store.path, "run": str(tmp_path)}
    assert check_inputs(build(TrainConfig, settings))[2] is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="has files in it, but no run"):
        check_inputs(build(TrainConfig, settings))


def test_a_job_that_is_told_to_end_does_so_in_good_order():
    script = """
import sys, time
from chexspark import command_line
from chexspark.config import ReportConfig
def job(config):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("put away", flush=True)
sys.argv = ["job", "--run", "/run"]
sys.exit(command_line.main(job, ReportConfig, ""))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=600) == ("put away\n", "chexspark: stopped\n")
    assert process.returncode == 130


def test_a_run_is_not_written_over(run, store):
    place, *_ = run
    with pytest.raises(UserError, match=r"was begun with other settings: .*epochs was 2, now 10"):
        train(None, data=store.path, run=place.path)


def test_a_model_of_another_image_size_is_refused(run, store, tmp_path):
    place, *_ = run
    other = json.loads((store / "dataset.json").read_text()) | {"image_size": 64}
    (tmp_path / "dataset.json").write_text(json.dumps(with_checksum(other)))
    with pytest.raises(UserError, match="was trained at 32: ingest with --size 32"):
        evaluate(None, data=str(tmp_path), run=place.path)


def test_more_ranks_than_slots(spark):
    assert task_slots(spark) == 2 and check_ranks(spark, None) == 2
    with pytest.raises(UserError, match="--num-proc is 3, but Spark has 2 task slots"):
        check_ranks(spark, 3)


@pytest.mark.slow
def test_a_damaged_store_ends_the_run_with_file_and_row_group(spark, store, manifest, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    file = tmp_path / "store" / manifest.splits["train"].files[0].path
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    run = tmp_path / "run"
    message = (
        rf"{file.name}, row group 0: pixels or labels have changed since ingest .log: .*rank-\d.log"
    )
    with pytest.raises(UserError, match=message):
        train(
            spark, data=str(tmp_path / "store"), run=str(run), model="vgg16", num_proc=2, threads=1
        )
    logs = [path.read_text() for path in sorted((run / "logs").iterdir())]
    assert any("Traceback" in log and "DamagedStoreError" in log for log in logs)


@pytest.mark.slow
def test_weights_of_another_network_are_told_before_ranks_start(spark, store, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        file.create_group("dense").attrs["weight_names"] = [b"dense/kernel:0"]
        file["dense"]["dense/kernel:0"] = np.zeros((2, 3), np.float32)
    settings = {"data": store.path, "run": str(tmp_path / "run"), "num_proc": 1, "threads": 1}
    with pytest.raises(
        UserError, match=r"^--weights .*: no layer has the name and shapes of one of densenet121's"
    ):
        train(spark, **settings, weights=str(tmp_path / "other.h5"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def job(name, *flags):
    command = [sys.executable, str(JOBS / f"{name}.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["ingest", "--images", "/nowhere", "--labels", "{csv}", "--out", "{new}"], "there is no such file or folder"),
        (["ingest", "--images", "{images}", "--labels", "{boxes}", "--out", "{new}"], "has no column Patient ID, Finding Labels; it has"),
        (["train", "--data", "{images}", "--run", "{new}"], "is not a chexspark store: it has no dataset.json"),
        (["train", "--data", "{store}", "--run", "{new}", "--model", "densnet121"], "did you mean densenet121"),
        (["train", "--data", "{store}", "--run", "{new}", "--modle", "x"], "did you mean --model"),
        (["train", "--data", "{store}", "--run", "{new}", "--recipe", "{bad}"], "unknown setting 'epoch'"),
        (["train", "--data", "{store}", "--run", "{new}", "--weights", "/no.h5"], "keras-applications/densenet/"),
        (["train", "--data", "{store}", "--run", "{new}", "--weights", "{csv}"], "is not an HDF5 file"),
        (["evaluate", "--data", "{store}", "--run", "{new}"], "has no best/model.keras"),
        (["evaluate", "--data", "{store}", "--run", "{new}", "--split", "all"], "invalid choice: 'all'"),
        (["evaluate", "--predictions", "{csv}", "--out", "{new}"], "has no label_ columns: give --labels CSV"),
        (["evaluate", "--predictions", "/no.csv", "--out", "{new}"], "--predictions /no.csv: there is no such file"),
        (["predict", "--images", "{images}", "--run", "{store}", "--out", "{new}"], "has no best/model.keras"),
        (["explain", "--images", "x.png", "--run", "{store}", "--findings", "Mas"], "has no best/model.keras"),
        (["export", "--run", "{store}"], "has no best/model.keras"),
        (["export", "--run", "{store}", "--formats", "tflite"], "invalid choice: 'tflite'"),
        (["train", "--data", "ftp://x/y", "--run", "{new}"], "no file system for it"),
        (["train", "--data", "{store}", "--run", "{csv}/run"], "cannot be made a folder"),
        (["report", "--run", "{new}"], "has no history: run chexspark train first"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(release, store, tmp_path, flags, message):
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    places = {
        "csv": release / "Data_Entry_2017.csv", "boxes": release / "BBox_List_2017.csv",
        "images": release / "images", "store": store.path, "new": tmp_path / "new",
        "bad": tmp_path / "bad.yaml",
    }  # fmt: skip
    result = job(*[flag.format(**places) for flag in flags])
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("chexspark: ") and message in lines[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["ingest", "train", "evaluate", "report", "predict", "explain", "export"]
)
def test_help_shows_the_command_and_groups(name):
    result = job(name, "--help")
    assert result.returncode == 0
    assert f"chexspark {name} --" in result.stdout and "input" in result.stdout
