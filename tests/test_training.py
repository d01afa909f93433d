"""The parts of a rank that trains, in this process and without Horovod: its ring is of one."""

import json
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from chexspark import ingest
from chexspark.config import TrainConfig
from chexspark.data.pipeline import as_tensors
from chexspark.data.plan import FILLER, RankFacts, fixed_plan
from chexspark.data.reader import Batch, SplitReader
from chexspark.run import best
from chexspark.run.best import model_findings, model_preparation
from chexspark.run.folder import run_folder
from chexspark.run.history import read_history
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.training.clock import EVENT_SECONDS, Clock
from chexspark.training.events import Note, Step, Validating
from chexspark.training.record import Record, score_of, validation_columns
from chexspark.training.ring import Alone
from chexspark.training.schedule import Plateau
from chexspark.training.telling import Teller

ALONE = RankFacts(0, 1)


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

    return Steps(model, keras.optimizers.legacy.SGD(0.1), batch_size, Alone())


def test_the_loss_is_the_mean_over_known_labels_of_real_rows(tiny_model):
    given = batch(4, real=[1, 1, 1, 0])
    given.labels[0, :5] = -1
    logits = tiny_model(given.images[..., None]).numpy().astype(float)
    losses = np.log1p(np.exp(-np.where(given.labels == 1, logits, -logits)))
    counted = (given.labels >= 0) & (given.weights[:, None] > 0)
    loss = make_steps(tiny_model, 4).train(as_tensors(given)).loss
    assert loss == pytest.approx(losses[counted].mean(), rel=1e-5)


def test_filler_and_unknown_labels_move_no_weight(tiny_model):
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


def test_a_batch_without_any_known_label_is_no_division_by_zero(tiny_model):
    before = tiny_model.get_weights()
    loss = make_steps(tiny_model, 2).train(as_tensors(batch(2, real=[0, 0]))).loss
    assert loss == 0
    for a, b in zip(tiny_model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_scores_every_row_once(store, manifest, tiny_model):
    import tf_keras as keras
    from sklearn.metrics import roc_auc_score

    from chexspark.training.step import Steps
    from chexspark.training.validation import validate

    inputs = keras.Input((32, 32, 1), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(14)(flat))
    reader = SplitReader(store, manifest, "train")
    plan = fixed_plan(reader.row_groups, 7, RankFacts(0, 1))
    steps = Steps(model, keras.optimizers.legacy.SGD(), 7, Alone())
    found = validate(steps, reader, plan, Alone())
    groups = [reader.read_row_group(i) for i in range(len(reader.row_groups))]
    images, labels = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    logits = model(images[..., None]).numpy()
    for i in range(14):
        assert found.aurocs[i] == pytest.approx(roc_auc_score(labels[:, i], logits[:, i]), abs=0.01)
    losses = np.log1p(np.exp(-np.where(labels == 1, logits, -logits)))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-4)


class Driver:
    """Takes the events of a rank; says stop at the first of a kind."""

    def __init__(self, stop_at=None):
        self.stopping, self.stop_at, self.seen = threading.Event(), stop_at, []

    def send(self, event):
        if self.stop_at and isinstance(event, self.stop_at):
            self.stopping.set()
        self.seen.append(event)

    def of(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]


def make_training(store, manifest, run, driver, **more):
    import tf_keras as keras

    from chexspark.training.loop import Training

    keras.utils.set_random_seed(0)
    given = {"data": store.path, "run": str(run), "model": "vgg16", "epochs": 1, "batch_size": 32}
    settings = ResolvedTraining(build(TrainConfig, given | more), 1)
    return Training(settings, manifest, ALONE, Alone(), driver)


@pytest.mark.slow
def test_a_stop_while_validating_leaves_a_checkpoint_of_the_trained_epoch(
    store, manifest, tmp_path
):
    from chexspark.training.faults import StoppedByUserError

    def training(name, driver):
        return make_training(store, manifest, tmp_path / name, driver, ema=0.9)

    clean = training("clean", Driver())
    clean.epochs()
    with pytest.raises(StoppedByUserError, match="while validating"):
        training("run", Driver(Validating)).epochs()
    assert not (tmp_path / "run" / "history").exists()
    driver = Driver()
    again = training("run", driver)
    again.epochs()
    assert driver.of(Note) == [Note("resumes at epoch 1, validation")]
    assert not driver.of(Step)
    (before,), (after,) = clean.record.history, again.record.history
    for figure in ("train_loss", "val_loss"):
        assert after[figure] == pytest.approx(before[figure], rel=1e-5)
    assert after["learning_rate"] == before["learning_rate"]


def test_a_stop_within_an_epoch_is_resumed_at_the_step_that_follows(store, manifest, tmp_path):
    from chexspark.training.faults import StoppedByUserError

    recipe = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "checkpoint_steps": 0}
    clean = make_training(store, manifest, tmp_path / "clean", Driver(), **recipe)
    clean.epochs()
    stopped = make_training(store, manifest, tmp_path / "run", Driver(Step), **recipe)
    with pytest.raises(StoppedByUserError, match="stopped after epoch 1, step 2"):
        stopped.epochs()
    driver = Driver()
    again = make_training(store, manifest, tmp_path / "run", driver, **recipe)
    again.epochs()
    first, *_ = driver.of(Step)
    assert (first.epoch, first.step, first.steps) == (0, 3, again.steps_per_epoch)
    for before, after in zip(clean.record.history, again.record.history, strict=True):
        for figure in ("train_loss", "val_loss", "learning_rate"):
            assert after[figure] == pytest.approx(before[figure], rel=1e-5), figure
    for ours, theirs in zip(again.network.variables(), clean.network.variables(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)


def test_a_better_model_waits_until_the_one_before_it_is_in_its_place(
    store, manifest, tmp_path, monkeypatch
):
    """While a checkpoint is written, and puts a model into its place, the next epoch may be over."""
    from chexspark.training import checkpoints, loop

    next_comes, order = threading.Event(), []

    def promote(run):
        order.append("put into place")
        next_comes.wait(2)
        best.promote(run)
        order.append("in place")

    def save_best(model, run, row, *more):
        order.append(f"saved {row['epoch']}")
        next_comes.set() if row["epoch"] else None
        best.save_best(model, run, row, *more)

    monkeypatch.setattr(checkpoints, "promote", promote)
    monkeypatch.setattr(loop, "save_best", save_best)
    scores = iter([(0.5, 0.0), (0.6, 0.0)])
    monkeypatch.setattr(loop, "score_of", lambda *_: next(scores))
    training = make_training(store, manifest, tmp_path / "run", Driver(), epochs=2, batch_size=96)
    training.epochs()
    assert order[:4] == ["saved 0", "put into place", "in place", "saved 1"]
    figures = best.read_figures(run_folder(str(tmp_path / "run")).best_figures)
    assert figures["epoch"] == 1


OWN = ("Lung Opacity", "Mass", "Line/Tube", "Größe", "Hernia")


@pytest.fixture
def own_store(spark, release, tmp_path):
    """A function from findings to a store whose labels are drawn."""

    def make(findings):
        random = np.random.default_rng(0)
        names = sorted(path.name for path in (release / "images").glob("*.png"))
        lines = [",".join(["image", "patient", *findings])]
        for name in names:
            labels = map(str, random.integers(0, 2, len(findings)))
            lines.append(",".join([name, name.split("_")[0], *labels]))
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
        ingest(
            spark, images=str(release / "images"), labels=str(tmp_path / "labels.csv"),
            findings=list(findings), out=str(tmp_path / "store"), size=32,
        )  # fmt: skip
        return locate(str(tmp_path / "store"))

    return make


@pytest.mark.parametrize("findings", [OWN, OWN[:1]], ids=["five", "one"])
def test_a_run_is_on_the_findings_of_its_store(own_store, tmp_path, findings):
    store = own_store(findings)
    manifest = read_manifest(store)
    training = make_training(store, manifest, tmp_path / "run", Driver(), loss="weighted")
    expected = [manifest.class_weights[name]["positive"] for name in findings]
    np.testing.assert_allclose(training.network.steps.loss.positive, expected, rtol=1e-6)
    training.epochs()
    run = run_folder(str(tmp_path / "run"))
    columns = [name for name in read_history(run) if name.startswith("val_auroc_")]
    names = ["Lung_Opacity", "Mass", "Line_Tube", "Gr__e", "Hernia"][: len(findings)]
    assert columns == [f"val_auroc_{name}" for name in names]
    assert model_findings(run.best_model) == findings
    assert model_preparation(run.best_model) == (manifest.preparation, manifest.image_size)
    assert training.network.steps.model.output_shape == (None, len(findings))
    row = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert row["val_auroc"] == pytest.approx(
        np.nanmean([np.nan if row[c] is None else row[c] for c in columns])
    )


EPOCHS = [(0.5, 0.7), (0.5, 0.8), (0.5, 0.6), (math.nan, 0.1), (0.6, 0.9), (0.4, 0.1), (0.7, 0.1)]


@pytest.mark.parametrize(
    "best_by, better, best",
    [("auroc", [0, 2, 4, 6], (0.7, -0.1)), ("loss", [0, 2, 3, 5, 6], (-0.1, 0.7))],
)
def test_the_best_epoch_is_that_of_the_best_score(best_by, better, best):
    record = Record(Plateau(1.0, 0.1, 1))
    for epoch, (mean, loss) in enumerate(EPOCHS):
        score = score_of(mean, loss, best_by)
        assert (score > record.best) is (epoch in better)
        record.add({"epoch": epoch, "best": epoch in better}, score)
    assert [row["epoch"] for row in record.history if row["best"]] == [6]
    assert record.best == best


@pytest.mark.parametrize(
    "best, patience, over",
    [([1, 0, 0], 2, True), ([1, 0, 0], 3, False), ([0, 0, 1], 1, False), ([1, 0, 0], None, False),
     ([], 1, False)],
)  # fmt: skip
def test_early_stopping_counts_epochs_since_the_best(best, patience, over):
    record = Record(Plateau(1.0, 0.1, 1), [{"best": bool(value)} for value in best])
    assert record.is_over(patience) is over


def test_validation_s_columns_are_named_after_findings():
    found = validation_columns(0.5, math.nan, np.array([0.75, math.nan]), ["Lung Opacity", "Mass"])
    assert found == {"val_loss": 0.5, "val_auroc": None, "val_auroc_Lung_Opacity": 0.75,
                     "val_auroc_Mass": None}  # fmt: skip


def test_a_rank_s_batches_begin_at_any_step(store, manifest):
    from chexspark.training.feed import Feed

    config = build(
        TrainConfig, {"data": "d", "run": "r", "batch_size": 7, "accumulate": 2, "flip": True}
    )
    reader = SplitReader(store, manifest, "train")
    rows = []
    for rank in (0, 1, 2):  # of a run that two began
        feed = Feed(reader, ResolvedTraining(config, 2), RankFacts(rank, 3))
        plan = feed.plan(1)
        assert plan.shape[1] == 6 and (plan[:, 5] < FILLER).all()
        batches = list(feed.batches(1))
        for first in (1, len(plan) - 1, len(plan)):
            for ours, whole in zip(feed.batches(1, first), batches[first:], strict=True):
                np.testing.assert_array_equal(ours.rows, whole.rows)
                np.testing.assert_array_equal(ours.draws.numpy(), whole.draws.numpy())
                np.testing.assert_array_equal(ours.images.numpy(), whole.images.numpy())
        rows += [row for row in plan.ravel() if row >= 0]
    assert sorted(rows) == list(range(feed.images))


def test_a_sample_is_of_neighbouring_steps_unchanged(store, manifest):
    from chexspark.training.feed import Feed

    reader = SplitReader(store, manifest, "train")

    def rows_of(epoch, most, seed=0):
        given = {"data": "d", "run": "r", "batch_size": 7, "flip": True, "seed": seed}
        settings = ResolvedTraining(build(TrainConfig, given), 2)
        feeds = [Feed(reader, settings, RankFacts(rank, 3)) for rank in range(3)]
        batches = [list(feed.sample(epoch, most)) for feed in feeds]
        assert {len(of_rank) for of_rank in batches} == {min(most, len(feeds[0].plan(epoch)))}
        assert not any(batch.draws.numpy().any() for of_rank in batches for batch in of_rank)
        steps = [set(np.concatenate(rows)) - {FILLER} for rows in
                 zip(*([batch.rows for batch in of_rank] for of_rank in batches), strict=True)]  # fmt: skip
        whole = [set(step[step >= 0]) for step in
                 np.concatenate([feed.plan(epoch) for feed in feeds], 1)]  # fmt: skip
        first = whole.index(steps[0])
        assert steps == whole[first : first + most]
        return steps

    assert rows_of(0, 2) == rows_of(0, 2)
    assert len({str(rows_of(epoch, 2, seed)) for epoch in range(3) for seed in range(2)}) == 6
    assert sum(map(len, rows_of(0, 1000))) == sum(reader.row_groups)


def normalised_network(name, size, findings, code=None):
    import tf_keras as keras

    inputs = keras.Input((size, size, 1), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, name="convolution")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.BatchNormalization(name="normalisation")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(findings, name="logits")(x))


def test_the_statistics_of_the_saved_model_are_of_its_weights(
    store, manifest, tmp_path, monkeypatch
):
    import tf_keras as keras

    from chexspark.training.faults import StoppedByUserError

    monkeypatch.setattr("chexspark.training.setup.build_model", normalised_network)
    # 4 divides the images: filler, which is images of other rows, would count in the moments of its batch.
    recipe = {"epochs": 2, "optimizer": "sgd", "ema": 0.9, "best_by": "loss", "batch_size": 4}
    clean = make_training(store, manifest, tmp_path / "clean", Driver(), **recipe)
    clean.epochs()
    run = run_folder(str(tmp_path / "clean"))
    (best,) = [row["epoch"] for row in clean.record.history if row["best"]]
    saved = keras.models.load_model(run.best_model.path)
    sample = np.concatenate(
        [b.images.numpy()[b.rows != FILLER] for b in clean.feed.sample(best, 32)]
    )
    values = keras.Model(saved.inputs, saved.get_layer("convolution").output)(sample)
    values = values.numpy().astype(np.float64)
    normalisation = saved.get_layer("normalisation")
    np.testing.assert_allclose(normalisation.moving_mean, values.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(normalisation.moving_variance, values.var((0, 1, 2)), rtol=1e-4)
    # A run that was stopped while it validated comes to the same, bit for bit.
    with pytest.raises(StoppedByUserError, match="while validating"):
        make_training(store, manifest, tmp_path / "run", Driver(Validating), **recipe).epochs()
    again = make_training(store, manifest, tmp_path / "run", Driver(), **recipe)
    again.epochs()
    for ours, theirs in zip(again.network.variables(), clean.network.variables(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_statistics_of_a_frozen_trunk_stay_as_they_are(store, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("chexspark.training.setup.build_model", normalised_network)
    training = make_training(store, manifest, tmp_path / "run", Driver(), freeze_epochs=1)
    normalisation = training.network.steps.model.get_layer("normalisation")
    normalisation.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    training.epochs()
    assert normalisation.moving_mean.numpy().tolist() == [1, 2, 3, 4]


def test_a_network_is_saved_with_the_weights_of_its_synchronised_twin(tiny_model):
    import tf_keras as keras

    from chexspark.training.batch_norm import synchronised
    from chexspark.training.network import Network

    twin = synchronised(tiny_model, Alone())
    network = Network(tiny_model, make_steps(twin, 2))
    twin.set_weights([weight + 1 for weight in twin.get_weights()])
    for ours, theirs in zip(network.to_save().get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    network.set_rate(0.25)
    assert float(network.steps.optimizer.learning_rate) == 0.25
    assert isinstance(network.to_save(), keras.Model) and network.to_save() is tiny_model


def test_only_rank_0_tells_of_every_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("chexspark.training.clock.time", SimpleNamespace(monotonic=lambda: now[0]))
    points = []
    for rank, told in ((0, [1, 2, 3, 4]), (1, [2, 4])):
        driver, clock, at = Driver(), Clock(images=10), Moment(1, steps=12)
        teller = Teller(driver, rank, epochs=3)
        teller.board = SimpleNamespace(step=lambda *at, **figures: points.append((at, figures)))
        for _ in range(4):
            now[0] += EVENT_SECONDS / 2
            clock.stepped(0.0)
            at = at.after_step(0.5)
            teller.step(at, 0.5, 0.1, clock)
        assert [event.step for event in driver.of(Step)] == told
        last = driver.of(Step)[-1]
        assert (last.epoch, last.epochs, last.steps, last.loss) == (1, 3, 12, 0.5)
        # 20 steps of 10 images are left, at 10 images in half of EVENT_SECONDS.
        assert last.seconds_left == pytest.approx(20 * EVENT_SECONDS / 2)
    assert [at for at, _ in points] == [(12,)] * 2, "every tenth step of an epoch"


def test_a_checkpoint_takes_up_where_the_run_stood(tmp_path, tiny_model):
    from chexspark.training.checkpoints import Checkpoints
    from chexspark.training.network import Network

    settings = ResolvedTraining(build(TrainConfig, {"data": "d", "run": str(tmp_path)}), 3)
    run = run_folder(str(tmp_path))

    def checkpoints(facts=ALONE):
        network = Network(tiny_model, make_steps(tiny_model, 2))
        return Checkpoints(run, network, settings, facts, Alone())

    assert checkpoints().resume() is None
    record = Record(Plateau(0.1, 0.1, 2, 0.5, 1), [{"epoch": 0, "best": True}], (0.75, -0.5))
    weights = tiny_model.get_weights()
    with checkpoints() as written:
        written.write(Moment(1, 2, 9, losses=1.25), record)
    tiny_model.set_weights([weight * 0 for weight in weights])
    at, again = checkpoints().resume()
    assert (at, at.steps, at.losses) == (Moment(1, 2), 9, 1.25) and again == record
    for ours, theirs in zip(tiny_model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    state = json.loads((tmp_path / "checkpoints" / "step-11" / "state.json").read_text())
    assert (state["global_batch"], state["world_size"]) == (48, 1)
    with checkpoints(RankFacts(1, 2)) as of_another_rank:
        of_another_rank.write(Moment(2, 0, 9), record)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-11"]


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


def test_freezing_leaves_all_but_the_last_layer():
    from chexspark.models import build_model
    from chexspark.training.network import Network
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    model = build_model("vgg16", 32, 14)
    network = Network(
        model, Steps(model, make_optimizer("adam", model.trainable_variables), 2, Alone())
    )
    network.freeze_trunk(True)
    before = model.get_weights()
    random = np.random.default_rng(0)
    given = Batch(
        random.integers(0, 256, (2, 32, 32), dtype=np.uint8),
        random.integers(0, 2, (2, 14)).astype(np.int8), np.ones(2, np.float32), np.arange(2),
    )  # fmt: skip
    network.steps.train(as_tensors(given))
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [False] * (len(moved) - 2) + [True, True]
