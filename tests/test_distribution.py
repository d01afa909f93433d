"""Ways to distribute a step: the same weights come of them, and what is told of them is what they do."""

import subprocess
import sys

import numpy as np
import pytest

from chexspark.benchmark import distribution
from chexspark.benchmark.distribution import chart_of, check_count, distribution_text, training_of
from chexspark.benchmark.exchange import (
    Sent,
    bytes_needed,
    bytes_sent,
    cut,
    joined,
    largest_difference,
    rounding_bound,
    shares,
    summed,
)
from chexspark.benchmark.job import benchmark
from chexspark.benchmark.shared_work import Shared
from chexspark.benchmark.shuffle_tasks import Part, update_slice
from chexspark.config import BenchmarkConfig
from chexspark.errors import RunFailedError, UserError
from chexspark.models.custom import find_network
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build

NETWORK = """
import tf_keras as keras
from chexspark.models.input_output import TORCH, gray_input

def build(size, findings):
    image, values = gray_input(size, TORCH)
    for filters in (4, 8):
        values = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(values)
        values = keras.layers.ReLU()(keras.layers.BatchNormalization()(values))
    return keras.Model(image, keras.layers.Dense(findings)(keras.layers.GlobalAveragePooling2D()(values)))
"""
STEPS, BATCH = 3, 8


@pytest.mark.parametrize("length, parts", [(10, 3), (7, 7), (3, 5), (16, 1)])
def test_slices_are_the_whole_vector_in_whatever_order_they_come(length, parts):
    values = np.arange(length, dtype=np.float32)
    slices = cut(values, parts)
    lengths = [len(part) for part in slices]
    assert len(slices) == parts and sum(lengths) == length and max(lengths) - min(lengths) <= 1
    np.testing.assert_array_equal(joined(reversed(list(enumerate(slices)))), values)


def test_slices_are_summed_from_the_first_rank_to_the_last():
    big, one = (np.array([value], np.float32) for value in (2.0**24, 1))
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        parts = {0: one, 1: one, 2: big}  # in another order the ones would be lost
        assert summed((rank, parts[rank]) for rank in order).tolist() == [2.0**24 + 2]
    assert one.tolist() == [1], "nobody else's vector is changed"


def test_bytes_by_formula():
    assert [bytes_needed(ranks, 1200) for ranks in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]


def test_a_host_counts_once_however_many_ranks_are_on_it():
    before = [Sent("a", 100), Sent("a", 110), Sent("b", 5)]
    after = [Sent("a", 300), Sent("a", 290), Sent("b", 7)]
    assert bytes_sent(before, after) == 200 + 2


def test_shares_are_of_the_time_of_all_ranks():
    assert shares(10.0, [4.0, 6.0], [1.0, 3.0]) == pytest.approx(
        {"compute": 0.5, "exchange": 0.2, "scheduling": 0.3}
    )


def test_a_difference_is_told_by_how_far_weights_have_moved():
    start, expected = np.array([0.0, 5.0]), np.array([2.0, 4.0])
    assert largest_difference(np.array([2.0, 4.5]), expected, start) == 0.25


def test_what_rounding_may_come_to():
    start, expected = np.array([8.0, 0.5]), np.array([8.25, -4.0])
    assert rounding_bound(expected, start, 3) == 2 * 3 * 2.0**-24 * 8.25 / 4.5


class Told(list):
    """An accumulator."""

    def add(self, items):
        self.extend(items)


def shared_of(store, folder, ranks, model="vgg16"):
    """The work of some steps on a store."""
    config = build(
        BenchmarkConfig,
        {"suite": "distribution", "out": str(folder), "model": model, "batch_size": BATCH},
    )
    training = training_of(config, store, folder / "run")
    return Shared(ResolvedTraining(training, ranks, find_network(model)), STEPS)


def test_a_slice_moves_against_the_sum_of_its_gradients_and_goes_to_all(tmp_path):
    shared, told = shared_of(str(tmp_path), tmp_path, 2), Told()
    gradients = [np.array([1, -2], np.float32), np.array([3, 5], np.float32)]
    weights = np.array([10, 20], np.float32)
    parts = [(1, Part(0, gradients[0], None)), (1, Part(1, gradients[1], weights))]
    found = list(update_slice(shared, told, 4, 1, reversed(parts)))
    assert [(rank, number) for rank, (number, _) in found] == [(0, 1), (1, 1)]
    for _, (_, values) in found:
        np.testing.assert_allclose(values, [10 - 0.01 * 4, 20 - 0.01 * 3], rtol=1e-7)
    assert [(each.step, each.rank, each.loss) for each in told] == [(4, 1, None)]


def test_too_few_images_are_refused():
    check_count(64, 16, 4)
    with pytest.raises(UserError, match="--count 64 is too few: 8 ranks of 16 images take 128"):
        check_count(64, 16, 8)


def test_an_unknown_network_is_refused(spark, tmp_path):
    with pytest.raises(
        UserError, match=r"--model .*densenet11.* unknown; did you mean densenet121"
    ):
        benchmark(spark, suite="distribution", out=str(tmp_path), model="densenet11")


def a_row(way, ranks, **more):
    return {"way": way, "ranks": ranks, "images_per_second": 1234.5, "rounds": [1234.5], "bytes_sent": 2e6,
            "bytes_needed": 1e6, "compute": 0.625, "exchange": 0.25, "scheduling": 0.125, "losses": [0.7],
            "difference": None, "rounding": None, "fresh_workers": 0} | more  # fmt: skip


def test_table_and_chart_name_every_way():
    rows = [a_row(way, ranks) for ranks in (1, 2) for way in distribution.WAYS]
    rows[-1] |= {"difference": 2.5e-7, "rounding": 4e-5, "fresh_workers": 3}
    found = {"model": "vgg16", "batch_size": 4, "steps": 8, "learning_rate": 0.01, "gradient_bytes": 9, "rows": rows}  # fmt: skip
    text, chart = distribution_text(found, 64), chart_of(rows, "a title")
    for name in distribution.WAYS.values():
        assert name in text and name in chart
    assert "vgg16 at 64x64" in text and "3 fresh Python workers" in text and "asynchronous" in text
    last = next(line for line in text.splitlines() if "2.5e-07" in line)
    assert last.split() == ["2", "Spark's", "shuffle", "1234.5", "2.00", "1.00", "62.5%", "25.0%", "12.5%", "2.5e-07", "(4.0e-05)"]  # fmt: skip
    assert "a title" in chart and "1,234.5" in chart


@pytest.fixture
def network(tmp_path, monkeypatch):
    """The name of a small network with normalisation."""
    (tmp_path / "few_weights.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return "few_weights:build"


@pytest.mark.slow
def test_three_ways_take_the_same_steps(spark, tmp_path, network, monkeypatch):
    monkeypatch.setattr(distribution, "ROUNDS", 1)
    monkeypatch.setattr(distribution, "STEPS", STEPS)
    found = benchmark(spark, suite="distribution", out=str(tmp_path / "out"), model=network, ranks=(1, 2),
                      batch_size=BATCH, count=64, size=32)  # fmt: skip
    rows = {(row["way"], row["ranks"]): row for row in found["rows"]}
    assert set(rows) == {(way, ranks) for way in distribution.WAYS for ranks in (1, 2)}
    for way, ranks in [("shuffle", 1), ("shuffle", 2), ("servers", 1)]:
        row = rows[way, ranks]
        # For two ranks there is one sum: it was 0. The bound leaves room for processors that fuse operations.
        assert row["difference"] <= row["rounding"] < 1e-2, (way, ranks)
    assert rows["servers", 2]["difference"] is None
    for (way, ranks), row in rows.items():
        # Asynchronous gradients are of weights that are a piece of work older, which moves a loss little.
        close = 2e-2 if (way, ranks) == ("servers", 2) else 1e-5
        assert row["losses"] == pytest.approx(rows["ring", ranks]["losses"], rel=close), (
            way,
            ranks,
        )
        assert len(row["losses"]) == 1 + STEPS and row["images_per_second"] > 0
        assert row["bytes_sent"] >= row["bytes_needed"], (way, ranks)
        assert row["compute"] > 0 and row["exchange"] >= 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "distribution.json",
        "distribution.svg",
    }


REFERENCE = """
import sys
import numpy as np
from chexspark.tensorflow_import import import_tensorflow
import_tensorflow()
import tensorflow as tf
import tf_keras as keras
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader
from chexspark.models import build_model
from chexspark.models.custom import find_network
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest

store, network, ranks, batch, steps, rate, seed, out = sys.argv[1:]
ranks, batch, steps, rate, seed = int(ranks), int(batch), int(steps), float(rate), int(seed)
manifest = read_manifest(locate(store))
reader = SplitReader(locate(store), manifest, "train")
images, labels = (np.concatenate(each) for each in zip(*map(reader.read_row_group, range(len(reader.row_groups)))))
assert (labels >= 0).all()
keras.utils.set_random_seed(seed)
model = build_model(network, manifest.image_size, len(manifest.findings), find_network(network))
variables = model.trainable_variables
weights = [variable.numpy().astype(np.float64) for variable in variables]
start = np.concatenate([each.ravel() for each in weights])
plans = [training_plan(reader.row_groups, ranks * batch, RankFacts(rank, ranks), seed, 0) for rank in range(ranks)]
whole = len(images) // (ranks * batch)
losses = []
for step in range(steps + 1):
    for variable, values in zip(variables, weights):
        variable.assign(values.astype(np.float32))
    loss, sums = 0.0, [np.zeros_like(each) for each in weights]
    for plan in plans:
        rows = plan[step % min(whole, steps + 1)]
        with tf.GradientTape() as tape:
            logits = model(images[rows][..., None], training=True)
            mean = keras.losses.BinaryCrossentropy(from_logits=True)(labels[rows].astype(np.float32), logits)
        loss += float(mean) / ranks
        for total, gradient in zip(sums, tape.gradient(mean, variables)):
            total += gradient.numpy() / ranks
    losses.append(loss)
    for values, total in zip(weights, sums):
        values -= rate * total
np.savez(out, start=start, end=np.concatenate([each.ravel() for each in weights]), losses=losses)
"""


@pytest.mark.slow
def test_the_shuffle_s_steps_are_those_of_an_average_of_means_in_float64(
    spark, store, tmp_path, network
):
    """Where all labels are known, the loss of the global batch is the average of the ranks' mean losses."""
    shared = shared_of(store.path, tmp_path, 2, network)
    training, out = shared.training.config, tmp_path / "reference.npz"
    words = [store.path, network, 2, BATCH, STEPS, training.learning_rate, training.seed, out]
    subprocess.run([sys.executable, "-c", REFERENCE, *map(str, words)], check=True)
    expected = np.load(out)
    found = distribution.measure_way(spark, "shuffle", shared, "a test")
    assert found.losses == pytest.approx(expected["losses"].tolist(), rel=1e-5)
    assert len(found.end) == len(expected["end"])
    away = largest_difference(found.end, expected["end"], expected["start"])
    bound = rounding_bound(expected["end"], expected["start"], 1 + STEPS)
    assert away <= bound < 1e-2


BREAKING = (
    NETWORK
    + """
class Breaking(keras.layers.Layer):
    def call(self, values, training=None):
        if training:
            raise ArithmeticError("this layer breaks")
        return values

def break_off(size, findings):
    model = build(size, findings)
    return keras.Model(model.input, keras.layers.Dense(findings)(Breaking()(model.output)))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("way", distribution.WAYS)
def test_what_fails_on_a_rank_or_in_a_task_is_one_line_and_the_next_round_works(
    spark, store, tmp_path, network, way
):
    (tmp_path / "breaking.py").write_text(BREAKING)
    broken = shared_of(store.path, tmp_path, 2, "breaking:break_off")
    with pytest.raises(RunFailedError, match="ArithmeticError") as caught:
        distribution.measure_way(spark, way, broken, "a test")
    assert "\n" not in str(caught.value)
    shared = shared_of(store.path, tmp_path, 2, network)
    assert len(distribution.measure_way(spark, way, shared, "a test").losses) == 1 + STEPS
