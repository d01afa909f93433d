"""The ways of the reader benchmark do the same work: every image of the set once, with its labels."""

import dataclasses
import subprocess
import sys

import pytest

from chexspark.benchmark.chart import rates_chart
from chexspark.benchmark.job import SUITES, benchmark, find_images
from chexspark.benchmark.reader_data import make_forms, row_groups
from chexspark.benchmark.reading import READER_WAYS, reader_text
from chexspark.benchmark.training import job_environment
from chexspark.config import BenchmarkConfig
from chexspark.errors import UserError

COUNT, SIZE = 100, 64


@pytest.fixture(scope="module")
def forms(spark, release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    make_forms(spark, folder, sorted((release / "images").glob("*.png")), COUNT, SIZE)
    return folder


@pytest.mark.slow
def test_every_way_yields_every_image_once(forms):
    script = """
import sys
import numpy as np
from chexspark.benchmark.readers import WAYS, Ways, again_and_again
ways = Ways(sys.argv[1], 32)
batches = again_and_again(ways)
print("more than an epoch", len([next(batches) for _ in range(9)]))
batches.close()
for name in WAYS:
    found = []
    for batch in getattr(ways, name)():
        real = np.asarray(batch.weights) > 0 if hasattr(batch, "weights") else slice(None)
        images = np.asarray(batch[0])[real]
        labels = np.zeros(len(images)) if batch[1] is None else np.asarray(batch[1])[real]
        found += [f"{int(i.astype(int).sum())}-{int(l.sum())}" for i, l in zip(images, labels)]
    print("way", name, " ".join(sorted(found)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(forms)], capture_output=True, text=True, check=True
    )
    assert "more than an epoch 9" in done.stdout
    expected = sorted(
        f"{int(image.astype(int).sum())}-{int(label.sum())}"
        for images, labels in row_groups(forms)
        for image, label in zip(images, labels, strict=True)
    )
    found = {
        line.split()[1]: line.split()[2:]
        for line in done.stdout.splitlines()
        if line.startswith("way ")
    }
    assert set(found) == set(READER_WAYS)
    for way, images in found.items():
        if way.startswith("full_size"):  # shrunken by TensorFlow: other roundings, no labels
            assert len(images) == COUNT
        else:
            assert images == expected, way


def test_every_suite_can_be_asked_for():
    (suite,) = (field for field in dataclasses.fields(BenchmarkConfig) if field.name == "suite")
    assert set(suite.metadata["choices"]) == SUITES.keys()


def test_the_table_and_the_chart_name_every_way():
    rates = {way: float(rate) for rate, way in enumerate(reversed(READER_WAYS), start=10)}
    text = reader_text({"images_per_second": rates, "waiting_share_while_training": 0.0123})
    assert "1.23%" in text and f"{rates['chexspark'] / 10:.2f} x" in text
    chart = rates_chart({READER_WAYS[way]: rate for way, rate in rates.items()}, "a title")
    assert all(name in chart for name in [*READER_WAYS.values(), "a title"])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--images .*no PNG file"):
        find_images(str(tmp_path))
    assert find_images(None) == []


@pytest.mark.slow
def test_a_start_is_measured_from_any_folder_and_the_caller_s_session_goes_on(
    spark, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = benchmark(spark, suite="start", out=str(tmp_path / "out"), count=64, size=32)
    assert found["seconds"] > 0 and found["images_per_second"] > 0
    assert (tmp_path / "out" / "start.json").is_file()
    assert spark.range(3).count() == 3


def test_a_child_of_spark_submit_has_a_session_of_its_own(monkeypatch):
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    monkeypatch.setenv("_PYSPARK_GATEWAY_SECRET", "x")
    found = job_environment(2)
    assert not [name for name in found if "GATEWAY" in name]
    assert found["PYSPARK_SUBMIT_ARGS"] == "--master local[2] pyspark-shell"
