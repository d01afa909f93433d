"""The ways of the reader benchmark do the same work: every image of the set once, with its labels."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from chexspark.benchmark.chart import rates_chart
from chexspark.benchmark.job import SUITES, benchmark, find_images
from chexspark.benchmark.pipelines import PIPELINES
from chexspark.benchmark.reader_data import make_forms, row_groups, write_records
from chexspark.benchmark.reading import READER_WAYS, reader_text
from chexspark.benchmark.training import job_environment
from chexspark.config import BenchmarkConfig
from chexspark.errors import UserError
from chexspark.phantom import write_release

COUNT, SIZE = 100, 64


@pytest.fixture(scope="module")
def forms(spark, tmp_path_factory):
    """All forms of images that ingest shrinks from 150 pixels."""
    folder = tmp_path_factory.mktemp("forms")
    write_release(out=str(folder / "nih"), images=40, size=150, seed=2)
    make_forms(spark, folder, sorted((folder / "nih" / "images").glob("*.png")), COUNT, SIZE)
    write_records(folder, "full-size")
    return folder


def labelled(images, labels):
    """Labels as text and sum of pixels, of each image."""
    return [
        ["".join(map(str, label)), int(image.astype(int).sum())]
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


@pytest.mark.slow
def test_every_way_yields_every_image_once_with_its_labels(forms):
    script = """
import json, sys
import numpy as np
from chexspark.benchmark.fed_steps import again_and_again, full_batches
from chexspark.benchmark.readers import Ways
from test_benchmark import labelled
ways = Ways(sys.argv[1], 32)
found = {}
for name in sys.argv[2:]:
    found[name] = []
    for batch in getattr(ways, name)():
        real = np.asarray(batch.weights) > 0 if hasattr(batch, "weights") else slice(None)
        found[name] += labelled(np.asarray(batch[0])[real], np.asarray(batch[1])[real])
for name in ("chexspark", "full_size_tuned", "memory"):
    batches = again_and_again(getattr(ways, name), 32)
    taken = [next(batches) for _ in range(9)]  # of 3 or 4 in an epoch
    batches.close()
    found[name + ", fed"] = [[list(v.shape) + [v.dtype.name] for v in batch[:4]] for batch in taken]
print(json.dumps(found))
"""
    ways = [*dict.fromkeys([*READER_WAYS, *PIPELINES])]
    done = subprocess.run(
        [sys.executable, "-c", script, str(forms), *ways],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    expected = sorted(row for group in row_groups(forms) for row in labelled(*group))
    assert len(expected) == COUNT
    for way in ways:
        images = sorted(found[way])
        if "full_size" not in way:
            assert images == expected, way
            continue
        # Shrunken by TensorFlow: other roundings.
        assert [labels for labels, _ in images] == [labels for labels, _ in expected], way
        off = [abs(a - b) / SIZE**2 for (_, a), (_, b) in zip(images, expected, strict=True)]
        assert max(off) < 0.1, way  # gray levels in the mean
    inputs = [[32, SIZE, SIZE, 1, "uint8"], [32, 14, "int8"], [32, "float32"], [32, 7, "float32"]]
    for way in ("chexspark", "full_size_tuned", "memory"):
        assert found[way + ", fed"] == [inputs] * 9, way


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
