"""The parts of a rank, in this process: Horovod at world size 1 takes the same path as at N."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from chexspark.config import TrainConfig
from chexspark.data.pipeline import as_tensors
from chexspark.data.plan import RankFacts, fixed_plan
from chexspark.data.reader import Batch, SplitReader
from chexspark.settings import build


@pytest.fixture(scope="module")
def hvd():
    import horovod.tensorflow as hvd

    hvd.init()
    return hvd


@pytest.fixture
def tiny_model():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    return keras.Model(inputs, keras.layers.Dense(14)(keras.layers.Flatten()(scaled)))


def batch(rows, real=None, seed=0):
    random = np.random.default_rng(seed)
    weights = np.ones(rows, np.float32) if real is None else np.asarray(real, np.float32)
    images = random.integers(0, 256, (rows, 8, 8), dtype=np.uint8)
    labels = random.integers(0, 2, (rows, 14)).astype(np.int8)
    return Batch(images, labels, weights, np.arange(rows))


def make_steps(model, batch_size):
    import tf_keras as keras

    from chexspark.training.step import Steps

    return Steps(model, keras.optimizers.legacy.SGD(0.1), batch_size, 8)


def test_the_loss_is_the_mean_over_known_labels_of_real_rows(hvd, tiny_model):
    given = batch(4, real=[1, 1, 1, 0])
    given.labels[0, :5] = -1
    logits = tiny_model(given.images[..., None]).numpy().astype(float)
    losses = np.log1p(np.exp(-np.where(given.labels == 1, logits, -logits)))
    counted = (given.labels >= 0) & (given.weights[:, None] > 0)
    loss = make_steps(tiny_model, 4).train(as_tensors(given)).loss
    assert loss == pytest.approx(losses[counted].mean(), rel=1e-5)


def test_filler_and_unknown_labels_move_no_weight(hvd, tiny_model):
    import tf_keras as keras

    start = tiny_model.get_weights()
    full = batch(3)
    make_steps(tiny_model, 3).train(as_tensors(full))
    expected = tiny_model.get_weights()
    padded = Batch(
        np.concatenate([full.images, batch(2, seed=9).images]),
        np.concatenate([full.labels, np.array([[1] * 14, [-1] * 14], np.int8)]),
        np.array([1, 1, 1, 0, 1], np.float32),
        np.arange(5),
    )
    again = keras.models.clone_model(tiny_model)
    again.set_weights(start)
    make_steps(again, 5).train(as_tensors(padded))
    for a, b in zip(again.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_batch_without_any_known_label_is_no_division_by_zero(hvd, tiny_model):
    before = tiny_model.get_weights()
    loss = make_steps(tiny_model, 2).train(as_tensors(batch(2, real=[0, 0]))).loss
    assert loss == 0
    for a, b in zip(tiny_model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_scores_every_row_once(hvd, store, manifest, tiny_model):
    import tf_keras as keras
    from sklearn.metrics import roc_auc_score

    from chexspark.training.step import Steps
    from chexspark.training.validation import validate

    inputs = keras.Input((32, 32, 1), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(14)(flat))
    reader = SplitReader(store, manifest, "train")
    plan = fixed_plan(reader.row_groups, 7, RankFacts(0, 1))
    found = validate(Steps(model, keras.optimizers.legacy.SGD(), 7, 32), reader, plan)
    groups = [reader.read_row_group(i) for i in range(len(reader.row_groups))]
    images, labels = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    logits = model(images[..., None]).numpy()
    for i in range(14):
        assert found.aurocs[i] == pytest.approx(roc_auc_score(labels[:, i], logits[:, i]), abs=0.01)
    losses = np.log1p(np.exp(-np.where(labels == 1, logits, -logits)))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-4)


def test_each_rank_s_statistics_are_kept(hvd):
    import tf_keras as keras

    from chexspark.training.statistics import all_statistics, take_statistics

    values = [np.array([1.0, 2.0], np.float32), np.array([[3.0], [4.0]], np.float32)]
    variables = [keras.backend.variable(value) for value in values]
    steps = SimpleNamespace(statistics=variables)
    found = all_statistics(steps)
    assert found.tolist() == [[1, 2, 3, 4]]
    take_statistics(steps, found * 2, 0)
    assert [v.numpy().tolist() for v in variables] == [[2, 4], [[6], [8]]]
    # Written by three ranks, taken up by one: the mean of all.
    take_statistics(steps, np.concatenate([found, found * 2, found * 6]), 0)
    assert [v.numpy().tolist() for v in variables] == [[3, 6], [[9], [12]]]
    none = SimpleNamespace(statistics=[])
    take_statistics(none, all_statistics(none), 0)


class Driver:
    """Takes the events of a rank; says stop at the first of a kind."""

    def __init__(self, stop_at=None):
        self.stopping, self.stop_at, self.notes = threading.Event(), stop_at, []

    def send(self, event, **values):
        if event == self.stop_at:
            self.stopping.set()
        if event == "note":
            self.notes.append(values["text"])


def test_a_stop_while_validating_leaves_a_checkpoint_of_the_trained_epoch(
    hvd, store, manifest, tmp_path
):
    import tf_keras as keras

    from chexspark.training.faults import StoppedByUserError
    from chexspark.training.loop import Training

    def training(name, driver):
        keras.utils.set_random_seed(0)
        settings = {"data": store.path, "run": str(tmp_path / name), "model": "vgg16", "epochs": 1,
                    "batch_size": 32, "num_proc": 1, "ema": 0.9}  # fmt: skip
        return Training(build(TrainConfig, settings), manifest, RankFacts(0, 1), driver)

    clean = training("clean", Driver())
    clean.epochs()
    with pytest.raises(StoppedByUserError, match="while validating"):
        training("run", Driver("validating")).epochs()
    assert not (tmp_path / "run" / "history").exists()
    driver = Driver()
    again = training("run", driver)
    again.epochs()
    assert driver.notes == ["resumes at epoch 1, validation"]
    (before,), (after,) = clean.history, again.history
    for figure in ("train_loss", "val_loss"):
        assert after[figure] == pytest.approx(before[figure], rel=1e-5)
    assert after["learning_rate"] == before["learning_rate"]


@pytest.fixture(scope="module")
def densenet():
    from chexspark.models import densenet121

    return densenet121.build(32, 14)


def test_densenet_121_has_the_known_size_and_shape(densenet):
    trainable = sum(int(np.prod(v.shape)) for v in densenet.trainable_variables)
    assert trainable == 6_968_206, "torchvision's DenseNet-121 with 14 outputs has as many"
    assert densenet(np.zeros((2, 32, 32, 1), np.uint8)).shape == (2, 14)


def test_gray_becomes_three_channels_as_imagenet_s_weights_expect(densenet):
    import tf_keras as keras

    head = keras.Model(densenet.input, densenet.get_layer("normalise").output)
    found = head(np.full((1, 32, 32, 1), 128, np.uint8)).numpy()[0, 5, 5]
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "best, patience, over",
    [([1, 0, 0], 2, True), ([1, 0, 0], 3, False), ([0, 0, 1], 1, False), ([1, 0, 0], None, False),
     ([], 1, False)],
)  # fmt: skip
def test_early_stopping_counts_epochs_since_the_best(best, patience, over):
    from chexspark.training.loop import Training

    history = [{"best": bool(value)} for value in best]
    given = SimpleNamespace(config=SimpleNamespace(early_stop=patience), history=history)
    assert Training.is_over(given) is over


def test_freezing_leaves_all_but_the_last_layer(hvd):
    from chexspark.models import build_model
    from chexspark.models.weights import train_trunk
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    model = build_model("vgg16", 32, 14)
    steps = Steps(model, make_optimizer("adam", model.trainable_variables), 2, 32)
    train_trunk(model, False)
    steps.compile()
    before = model.get_weights()
    random = np.random.default_rng(0)
    given = Batch(
        random.integers(0, 256, (2, 32, 32), dtype=np.uint8),
        random.integers(0, 2, (2, 14)).astype(np.int8), np.ones(2, np.float32), np.arange(2),
    )  # fmt: skip
    steps.train(as_tensors(given))
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [False] * (len(moved) - 2) + [True, True]
