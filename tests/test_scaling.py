"""The scaling study: what trainings at several numbers of ranks come to, and its page."""

import json

import pandas as pd
import pytest

from chexspark.benchmark.job import benchmark
from chexspark.benchmark.rank_numbers import numbers_of_ranks
from chexspark.benchmark.scaling_page import scaling_page
from chexspark.benchmark.scaling_rows import Training, curves, rows_of, scaling_text, trainings
from chexspark.benchmark.training import split_text
from chexspark.errors import UserError
from chexspark.run.folder import run_folder
from chexspark.run.history import read_history

ABOUT = {
    "model": "densenet121", "batch_size": 16, "epochs": 3, "learning_rate": 1e-3, "optimizer": "adam",
    "precision": "float32", "store": "/a/store", "train_images": 96, "val_images": 20, "image_size": 64,
    "synthetic": False, "hosts": 2, "devices": ["CPU"],
}  # fmt: skip
FORECAST = [
    {"ranks": n, "images_per_second": 40.0 * n, "efficiency": 0.9, "steps_per_epoch": 96 // n, "epoch_seconds": 9.0,
     "limit": "network"}
    for n in (1, 2, 4)
]  # fmt: skip


def history(rates, loss=0.5):
    rows = len(rates)
    return pd.DataFrame(
        {"epoch": range(rows), "train_loss": loss, "val_loss": loss, "val_auroc": [0.5] * (rows - 1) + [0.75],
         "learning_rate": 1e-3, "images_per_second": rates, "seconds": [96 / rate for rate in rates],
         "input_share": 0.01, "compute_share": 0.8, "allreduce_share": 0.19, "best": True}
    )  # fmt: skip


@pytest.fixture
def table():
    return curves(
        {Training(1, "none"): history([10.0, 48.0, 48.0]),
         Training(2, "none"): history([10.0, 70.0, 72.0]), Training(2, "linear"): history([9.0, 74.0, 80.0], 0.4)},
        96,
    )  # fmt: skip


def test_each_number_is_trained_as_it_is_and_scaled_but_for_one_rank():
    names = [training.name for training in trainings([1, 2])]
    assert names == ["ranks-1-none", "ranks-2-none", "ranks-2-linear"]


def test_a_rate_is_of_all_epochs_but_the_first_and_efficiency_per_rank(table):
    notes = {"forecast": FORECAST, "ranks-1-none": 30.0, "ranks-2-linear": 20.0}
    one, two = rows_of(table, notes)
    assert (one.ranks, one.images_per_second, one.efficiency, one.train_seconds) == (1, 48, 1, 30)
    assert (two.images_per_second, two.slowest, two.fastest) == (73, 70, 80)
    assert two.efficiency == pytest.approx(73 / 2 / 48) and two.predicted == 80
    assert two.train_seconds == 20, "of the one that was not interrupted"
    assert rows_of(table, {})[0].train_seconds is None
    assert list(table[table["scaling"] == "linear"]["images_seen"]) == [96, 192, 288]


def test_patients_are_split_as_wanted():
    names = [f"{patient:08}_{number:03}.png" for patient in range(11) for number in range(2)]
    splits = [line.split(",")[1] for line in split_text(names, 0.2).splitlines()[1:]]
    assert splits == ["train"] * 8 + ["val"] * 2 + ["test"]
    assert split_text(names, 0.0).count("val") == 1


def test_efficiency_is_of_the_fewest_ranks_there_are(table):
    (two,) = rows_of(table[table["ranks"] == 2], {})
    assert two.efficiency == 1.0


def test_the_tables_say_what_was_measured(table):
    text = scaling_text(rows_of(table, {"forecast": FORECAST, "ranks-1-none": 30.0}), table)
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:6] == ["1", "48.0", "40.0", "100%", "0:02", "0:30"]
    assert lines[2][:6] == ["2", "73.0", "80.0", "76%", "0:01", "–"]
    assert lines[-1] == ["2", "scaled,", "warm-up", "0.4000", "0.4000", "0.7500"]


def test_the_page_shows_what_was_measured_and_what_was_forecast(table):
    notes = {"forecast": FORECAST}
    page = scaling_page(ABOUT, rows_of(table, notes), table, FORECAST)
    assert page.count("<svg") == 3 and "http://" not in page.replace("http://www.w3.org", "")
    assert "76 %</b>" in page and "Beyond what was measured" in page and "160.0" in page
    assert "Synthetic" not in page and "one host" not in page
    alone = scaling_page(ABOUT | {"synthetic": True, "hosts": 1}, rows_of(table, {}), table, [])
    assert "Beyond" not in alone and "Synthetic" in alone and "on one host" in alone


class Slots:
    """As `check_ranks`, of a Spark of so many."""

    def __init__(self, slots):
        self.slots = slots

    def __call__(self, spark, wanted, setting):
        assert setting == "--ranks"
        return wanted or self.slots


@pytest.mark.parametrize(
    "slots, given, expected",
    [(1, (), [1]), (2, (), [1, 2]), (4, (), [1, 2, 4]), (6, (), [1, 2, 4, 6]), (6, (3, 1, 3), [1, 3])],
)  # fmt: skip
def test_numbers_of_ranks_are_doubled_up_to_all_slots(monkeypatch, slots, given, expected):
    monkeypatch.setattr("chexspark.benchmark.rank_numbers.check_ranks", Slots(slots))
    assert numbers_of_ranks(None, given) == expected


def test_more_ranks_than_slots_are_refused(spark):
    assert numbers_of_ranks(spark, ()) == [1, 2]
    with pytest.raises(
        UserError, match=r"^--ranks is 64, but Spark has .*: lower --ranks, or give Spark more"
    ):
        numbers_of_ranks(spark, (1, 64))


@pytest.mark.slow
def test_a_study_trains_measures_and_is_not_repeated(spark, tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"suite": "scaling", "out": str(tmp_path / "out"), "ranks": (1, 2), "count": 160, "size": 64,
             "epochs": 2, "batch_size": 8}  # fmt: skip
    found = benchmark(spark, **given)
    assert [row["ranks"] for row in found["rows"]] == [1, 2]
    history = read_history(run_folder(str(tmp_path / "out" / "runs" / "ranks-1-none")))
    assert found["rows"][0]["images_per_second"] == pytest.approx(history["images_per_second"][1])
    assert found["rows"][1]["train_seconds"] > 0 and found["rows"][1]["predicted"] > 0
    table = spark.read.parquet(str(tmp_path / "out" / "scaling.parquet")).toPandas()
    assert set(zip(table["ranks"], table["scaling"], strict=True)) == {
        (1, "none"),
        (2, "none"),
        (2, "linear"),
    }
    assert (tmp_path / "out" / "scaling.html").is_file()
    assert json.loads((tmp_path / "out" / "scaling.json").read_text()) == json.loads(
        json.dumps(found)
    )
    caplog.clear()
    again = benchmark(spark, **given)
    assert again["rows"] == found["rows"] and "is finished" in caplog.text
