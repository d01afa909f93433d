"""Settings reach the part that they are settings of."""

from types import SimpleNamespace

import numpy as np
import pytest

from chexspark.config import TrainConfig
from chexspark.data.plan import RankFacts
from chexspark.findings import FINDINGS
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.training.ring import Alone

ALONE = RankFacts(0, 1)


@pytest.fixture
def model():
    import tf_keras as keras

    inputs = keras.Input((32, 32, 1), dtype="uint8")
    x = keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(14)(x))


def settings_of(began_with=1, **settings):
    config = build(TrainConfig, {"data": "/store", "run": "/run", **settings})
    return ResolvedTraining(config, began_with)


def steps_of(model, manifest, facts=ALONE, began_with=1, **settings):
    from chexspark.training.setup import make_steps

    return make_steps(settings_of(began_with, **settings), manifest, facts, Alone(), model)


@pytest.mark.parametrize(
    "settings, name, value",
    [({"accumulate": 4}, "accumulate", 4), ({"clip_norm": 2.5}, "clip_norm", 2.5),
     ({"ema": 0.99}, "ema", 0.99), ({"compression": "fp16"}, "compression", "fp16"),
     ({"xla": True}, "xla", True), ({"deterministic": True}, "deterministic", True),
     ({"precision": "mixed_float16"}, "scale_loss", True),
     ({"precision": "mixed_bfloat16"}, "scale_loss", False)],
)  # fmt: skip
def test_what_changes_the_step_is_in_its_settings(model, manifest, settings, name, value):
    from chexspark.training.step import StepSettings

    plain = steps_of(model, manifest).settings
    assert plain == StepSettings()
    found = steps_of(model, manifest, **settings).settings
    assert found == StepSettings(**{name: value})


def test_the_loss_is_the_recipe_s(model, manifest):
    plain = steps_of(model, manifest).loss
    assert (plain.gamma, plain.smoothing, plain.positive) == (0, 0, None)
    focal = steps_of(model, manifest, loss="focal", focal_gamma=1.5, label_smoothing=0.2).loss
    assert (focal.gamma, focal.smoothing, focal.positive) == (1.5, 0.2, None)
    weighted = steps_of(model, manifest, loss="weighted").loss
    assert weighted.gamma == 0
    np.testing.assert_allclose(weighted.positive + weighted.negative, np.ones(14), rtol=1e-6)


def test_the_asymmetric_loss_is_the_paper_s_unless_the_recipe_says_otherwise(model, manifest):
    from chexspark.training.loss import Asymmetry

    assert steps_of(model, manifest, loss="asymmetric").loss.asymmetry == Asymmetry(0.0, 4.0, 0.05)
    given = {"gamma_positive": 1.0, "gamma_negative": 2.0, "clip": 0.1}
    found = steps_of(model, manifest, loss="asymmetric", label_smoothing=0.2, **given).loss
    assert (found.asymmetry, found.smoothing) == (Asymmetry(1.0, 2.0, 0.1), 0.2)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("sync_batch_norm", [False, True])
def test_the_head_learns_at_its_own_rate_whether_the_trunk_is_frozen_or_not(
    manifest, precision, sync_batch_norm
):
    import tf_keras as keras

    from chexspark.data.pipeline import as_tensors
    from chexspark.data.reader import Batch
    from chexspark.models.weights import train_trunk

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 32, 32)).astype(np.uint8)
    labels = random.integers(0, 2, (4, 14)).astype(np.int8)
    batch = as_tensors(Batch(images, labels, np.ones(4, np.float32), np.arange(4)))

    def moved(head_rate, frozen):
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_global_policy(precision)
        inputs = keras.Input((32, 32, 1), dtype="uint8")
        x = keras.layers.BatchNormalization()(
            keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(inputs))
        )
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
        network = keras.Model(inputs, keras.layers.Dense(14, name="logits", dtype="float32")(x))
        keras.mixed_precision.set_global_policy("float32")
        steps = steps_of(
            network, manifest, optimizer="sgd", momentum=0.0, learning_rate=0.5, batch_size=4,
            head_rate=head_rate, sync_batch_norm=sync_batch_norm,
        )  # fmt: skip
        if frozen:
            train_trunk(steps.model, False)
            steps.compile()
        before = [v.numpy() for v in steps.variables]
        steps.train(batch)
        return [v.numpy() - was for v, was in zip(steps.variables, before, strict=True)]

    for frozen in (False, True):
        *trunk, kernel, bias = moved(4.0, frozen)
        *trunk_alike, kernel_alike, bias_alike = moved(1.0, frozen)
        assert np.abs(kernel_alike).max() > 1e-3 and len(trunk) == (0 if frozen else 4)
        np.testing.assert_allclose(kernel, 4 * kernel_alike, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(bias, 4 * bias_alike, rtol=1e-3, atol=1e-6)
        for each, alike in zip(trunk, trunk_alike, strict=True):
            np.testing.assert_array_equal(each, alike)


def test_the_optimizer_is_the_recipe_s(model, manifest):
    import tf_keras as keras

    steps = steps_of(model, manifest, optimizer="sgd", learning_rate=0.25, momentum=0.5)
    assert isinstance(steps.optimizer, keras.optimizers.legacy.SGD)
    assert float(steps.optimizer.learning_rate) == 0.25
    assert steps.optimizer.get_config()["momentum"] == 0.5


def test_augmentation_is_the_recipe_s(model, manifest):
    from chexspark.data.augmentation import NO_AUGMENTATION, Augmentation

    assert steps_of(model, manifest).augmentation == NO_AUGMENTATION
    given = {"flip": True, "shift": 0.1, "scale": 0.2, "rotation": 5.0, "brightness": 0.3,
             "contrast": 0.4, "crop": 0.6, "shear": 3.0, "tone": 0.2}  # fmt: skip
    assert steps_of(model, manifest, **given).augmentation == Augmentation(**given)


def test_normalisation_is_synchronised_where_it_is_asked_for(model, manifest):
    from chexspark.training.batch_norm import SynchronisedBatchNormalization

    def kinds(model):
        return [isinstance(layer, SynchronisedBatchNormalization) for layer in model.layers]

    assert not any(kinds(steps_of(model, manifest).model))
    assert sum(kinds(steps_of(model, manifest, sync_batch_norm=True).model)) == 1


@pytest.mark.parametrize(
    "world_size, batch, began_with, accumulate, rows",
    [(1, 4, 1, 1, 4), (2, 4, 2, 1, 4), (1, 4, 2, 1, 8), (3, 4, 4, 1, 6), (1, 5, 1, 2, 6),
     (3, 5, 3, 4, 8)],
)  # fmt: skip
def test_rows_of_a_step(model, manifest, world_size, batch, began_with, accumulate, rows):
    """The global batch is kept when ranks are lost, and a rank's part can be cut into equal ones."""
    steps = steps_of(
        model, manifest, RankFacts(0, world_size),
        began_with=began_with, batch_size=batch, accumulate=accumulate,
    )  # fmt: skip
    assert steps.input_specs[0].shape == (rows, 32, 32, 1)


def test_the_seed_and_the_precision_make_the_model():
    import tf_keras as keras

    from chexspark.training.setup import make_model

    def weights(**settings):
        try:
            model, loaded = make_model(settings_of(model="vgg16", **settings).config, 32, FINDINGS)
        finally:
            keras.mixed_precision.set_global_policy("float32")
        assert loaded == ""
        return model.get_weights(), model.layers[3].compute_dtype

    first, again, other = weights(seed=1), weights(seed=1), weights(seed=2)
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first[0], other[0], strict=True))
    assert (first[1], weights(precision="mixed_bfloat16")[1]) == ("float32", "bfloat16")


def test_what_fits_in_the_cache_is_read_once(store, manifest, tmp_path):
    from chexspark.training.loop import Training

    given = {"data": store.path, "run": str(tmp_path), "model": "vgg16"}
    trainings = [
        Training(settings_of(**given, **more), manifest, ALONE, Alone(), SimpleNamespace())
        for more in ({}, {"cache_mb": 3})
    ]
    for training, size in zip(trainings, (0, 3 << 20), strict=True):
        first, second = training.feed.reader.cache, training.val_reader.cache
        assert first is second, "what validation reads is kept too"
        assert first.bytes_left == size


@pytest.mark.parametrize("images, began_with, batch, global_batch, steps",
                         [(100, 2, 5, 10, 10), (101, 2, 5, 10, 11), (3, 4, 1, 4, 1)])  # fmt: skip
def test_the_global_batch_is_of_the_ranks_that_a_run_began_with(
    images, began_with, batch, global_batch, steps
):
    settings = settings_of(began_with, batch_size=batch, num_proc=1)
    assert settings.global_batch == global_batch
    assert settings.steps_per_epoch(images) == steps
