"""What changes how a step is computed, and not what it means: each against the plain step."""

import numpy as np
import pytest

from chexspark.data.pipeline import as_tensors
from chexspark.data.plan import RankFacts
from chexspark.data.reader import Batch
from chexspark.run.moment import Moment
from chexspark.training.ring import Alone

SIZE, ROWS, STEPS = 8, 8, 3
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (STEPS, ROWS, SIZE, SIZE), dtype=np.uint8)
LABELS = RANDOM.integers(-1, 2, (STEPS, ROWS, 14)).astype(np.int8)
WEIGHTS = np.ones((STEPS, ROWS), np.float32)
WEIGHTS[-1, 5:] = 0  # a last batch that is not full


def make_model(batch_norm):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, name="convolution")(x)
    x = keras.layers.BatchNormalization(name="normalisation")(x) if batch_norm else x
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(14, dtype="float32")(x))


def three_steps(
    facts, ring, batch_norm=False, precision="float32", optimizer="sgd", sync=False, **settings
):
    """Train on this rank's share of the rows; return losses and the weights in the end."""
    import tf_keras as keras

    from chexspark.training.batch_norm import synchronised
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps, StepSettings

    keras.mixed_precision.set_global_policy(precision)
    try:
        model = make_model(batch_norm)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = synchronised(model, ring) if sync else model
    made = make_optimizer(optimizer, model.trainable_variables, 0.5)
    share = ROWS // facts.world_size
    steps = Steps(model, made, share, ring, settings=StepSettings(**settings))
    mine = slice(facts.rank * share, (facts.rank + 1) * share)
    results = [
        steps.train(as_tensors(Batch(images[mine], labels[mine], weights[mine], np.arange(share))))
        for images, labels, weights in zip(IMAGES, LABELS, WEIGHTS, strict=True)
    ]
    return [r.loss for r in results], model.get_weights(), [v.numpy() for v in steps.averages]


ALONE = RankFacts(0, 1)


@pytest.fixture(scope="module")
def one():
    """The ring of one rank: Horovod's, which takes the same path as that of many."""
    from chexspark.training.horovod_ring import HorovodRing, join

    assert join() == ALONE
    return HorovodRing()


def assert_same(found, expected, within):
    np.testing.assert_allclose(found[0], expected[0], rtol=within)
    for ours, plain in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, plain, atol=within * max(1e-2, np.abs(plain).max()))


@pytest.mark.parametrize(
    "settings, within",
    [({"accumulate": 2}, 1e-5), ({"accumulate": 8}, 1e-5), ({"xla": True}, 1e-4),
     ({"accumulate": 2, "xla": True}, 1e-4), ({"compression": "fp16"}, 2e-3),
     ({"clip_norm": 1e6}, 1e-6), ({"precision": "mixed_bfloat16"}, 5e-2),
     ({"precision": "mixed_float16", "scale_loss": True}, 1e-2)],
)  # fmt: skip
def test_a_step_means_the_same_however_it_is_computed(one, settings, within):
    assert_same(three_steps(ALONE, one, **settings), three_steps(ALONE, one), within)


def test_clipping_shortens_all_gradients_alike(one):
    import tf_keras as keras

    start = make_model(False).get_weights()
    moved, short = (three_steps(ALONE, one, clip_norm=c, optimizer="sgd")[1] for c in (None, 1e-3))
    keras.backend.clear_session()
    length = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(short, start, strict=True)))
    assert 0 < length < 0.5 * 1e-3 * STEPS * 6, "three steps of 0.5 × 0.001, and momentum"
    far = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(moved, start, strict=True)))
    assert far > 10 * length


def test_the_moving_average_follows_the_weights(one):
    *_, averages = three_steps(ALONE, one, ema=0.5)
    trail = [make_model(False).get_weights()]
    for count in range(1, STEPS + 1):
        trail.append(first_steps(count, one))
    expected = trail[0]
    # Less than 0.5 as long as few steps are taken: (1 + n) / (10 + n) after step n.
    for decay, weights in zip((2 / 11, 3 / 12, 4 / 13), trail[1:], strict=True):
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for ours, plain in zip(averages, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    *_, (low, *_) = three_steps(ALONE, one, ema=0.2)
    first = trail[0][0]
    for decay, weights in zip((2 / 11, 0.2, 0.2), trail[1:], strict=True):
        first = decay * first + (1 - decay) * weights[0]
    np.testing.assert_allclose(low, first, atol=1e-6)


def first_steps(count, ring):
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    model = make_model(False)
    steps = Steps(model, make_optimizer("sgd", model.trainable_variables, 0.5), ROWS, ring)
    for images, labels, weights in list(zip(IMAGES, LABELS, WEIGHTS, strict=True))[:count]:
        steps.train(as_tensors(Batch(images, labels, weights, np.arange(ROWS))))
    return model.get_weights()


def test_a_loss_scale_that_is_too_high_is_lowered_and_the_step_left_out(one):
    import tf_keras as keras

    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps, StepSettings

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_model(False)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    start = model.get_weights()
    made = make_optimizer("sgd", model.trainable_variables, 0.5)
    steps = Steps(model, made, ROWS, one, settings=StepSettings(scale_loss=True))
    steps.scale.assign(2.0**40)
    given = as_tensors(Batch(IMAGES[0], LABELS[0], WEIGHTS[0], np.arange(ROWS)))
    result = steps.train(given)
    assert result.finite and not result.applied and float(steps.scale) == 2.0**39
    for now, before in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(now, before)
    steps.scale.assign(2.0**10)
    assert steps.train(given).applied and int(steps.good_steps) == 1


def statistics_of(facts, ring, *, sync=False, parts=1, rows_each=None):
    """Mean and variance of the normalisation, of this rank's share of all batches but filler."""
    from chexspark.training.batch_norm import Statistics, synchronised

    model = make_model(True)
    model = synchronised(model, ring) if sync else model
    share = ROWS // facts.world_size
    mine = slice(facts.rank * share, (facts.rank + 1) * share)
    weights = np.ones((STEPS, ROWS), np.float32) if rows_each is None else rows_each
    Statistics(model, parts).recompute(
        [as_tensors(Batch(images[mine], labels[mine], w[mine], np.arange(share)))
         for images, labels, w in zip(IMAGES, LABELS, weights, strict=True)], ring,
    )  # fmt: skip
    layer = model.get_layer("normalisation")
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def moments_of(images):
    """The mean and variance, by numpy, of what the normalisation of `make_model` gets."""
    kernel, bias = make_model(True).get_layer("convolution").get_weights()
    pixels = images.reshape(-1, SIZE, SIZE).astype(np.float64) / 255
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), (1, 2))
    values = np.einsum("nxyij,ijc->nxyc", windows, kernel[:, :, 0].astype(np.float64)) + bias
    return values.mean((0, 1, 2)), values.var((0, 1, 2))


@pytest.mark.parametrize("settings", [{}, {"sync": True}, {"parts": 4}])
def test_statistics_are_the_moments_of_all_batches(one, settings):
    for found, expected in zip(
        statistics_of(ALONE, one, **settings), moments_of(IMAGES), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_batches_of_filler_do_not_count_for_statistics(one):
    weights = np.ones((STEPS, ROWS), np.float32)
    weights[1] = 0
    found = statistics_of(ALONE, one, rows_each=weights)
    for ours, expected in zip(found, moments_of(IMAGES[[0, 2]]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_statistics_follow_batches_where_a_normalisation_is_trained():
    from chexspark.training.batch_norm import Statistics

    model = make_model(True)
    assert Statistics(model).follow_batches
    assert not Statistics(make_model(False)).follow_batches
    model.get_layer("normalisation").trainable = False
    assert not Statistics(model).follow_batches


def test_two_ranks_are_one_rank_with_twice_the_batch(spark, one):
    """Without normalisation over a batch, with it synchronised, and in the ways of computing."""
    import sys

    import cloudpickle

    from chexspark.cluster.launch import run_ranks

    variants = {
        "plain": {}, "adam": {"optimizer": "adam"}, "lamb": {"optimizer": "lamb"},
        "synchronised": {"batch_norm": True, "sync": True}, "accumulated": {"accumulate": 2},
        "compressed": {"compression": "fp16"}, "averaged": {"ema": 0.9},
    }  # fmt: skip

    def rank(address, variants):
        from chexspark.training.horovod_ring import HorovodRing, join

        facts, ring = join(), HorovodRing()
        found = {name: three_steps(facts, ring, **settings) for name, settings in variants.items()}
        return found, [statistics_of(facts, ring, sync=sync) for sync in (False, True)]

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        ranks = run_ranks(spark, rank, (variants,), 2, lambda event: None)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    (first, second), statistics = zip(*ranks, strict=True)
    for of_rank in statistics:
        for found in of_rank:
            np.testing.assert_allclose(found, moments_of(IMAGES), rtol=1e-5)
    for name, settings in variants.items():
        alone = {
            k: v for k, v in settings.items() if k not in ("accumulate", "compression", "sync")
        }
        within = {"compressed": 2e-3, "synchronised": 1e-4, "adam": 1e-3}.get(name, 1e-4)
        assert_same(first[name], three_steps(ALONE, one, **alone), within)
        for ours, theirs in zip(first[name][1], second[name][1], strict=True):
            if name != "synchronised":
                np.testing.assert_array_equal(ours, theirs)


def test_normalisation_that_is_not_synchronised_is_another_thing(one):
    plain, with_norm = three_steps(ALONE, one), three_steps(ALONE, one, batch_norm=True)
    assert abs(plain[0][-1] - with_norm[0][-1]) > 1e-4


def test_a_nan_is_told_with_step_rank_and_images(one, store, manifest):
    from chexspark.data.reader import SplitReader
    from chexspark.training.faults import NotFiniteError, check_finite
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    model = make_model(False)
    steps = Steps(model, make_optimizer("sgd", model.trainable_variables, 0.5), ROWS, one)
    reader = SplitReader(store, manifest, "train")
    rows = np.array([3, 12, 20, 21, 22, 40, -1, -1])
    weights = (rows >= 0).astype(np.float32)
    given = as_tensors(Batch(IMAGES[0], LABELS[0], weights, rows))
    check_finite(steps.train(given), given, reader, 0, Moment())
    model.layers[-1].bias.assign(np.full(14, np.nan, np.float32))
    names = reader.image_names(rows[:6])
    with pytest.raises(
        NotFiniteError, match=rf"epoch 3, step 5: .*rank 0, images {', '.join(names)};"
    ):
        check_finite(steps.train(given), given, reader, 0, Moment(2, 4))


@pytest.mark.parametrize("kind", ["weighted", "focal", "smoothed"])
def test_losses_are_their_formulas(kind):
    from chexspark.training.loss import Loss

    labels = LABELS[0][:4]
    logits = np.random.default_rng(1).normal(size=(4, 14)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(float)))
    y = np.maximum(labels, 0)
    positive, negative = np.linspace(0.1, 0.9, 14), np.linspace(0.9, 0.1, 14)
    given, expected = {
        "weighted": (
            Loss(positive.astype(np.float32), negative.astype(np.float32)),
            -positive * y * np.log(p) - negative * (1 - y) * np.log(1 - p),
        ),
        "focal": (
            Loss(gamma=2.0),
            -y * (1 - p) ** 2 * np.log(p) - (1 - y) * p**2 * np.log(1 - p),
        ),
        "smoothed": (
            Loss(smoothing=0.1),
            -(0.9 * y + 0.05) * np.log(p) - (1 - 0.9 * y - 0.05) * np.log(1 - p),
        ),
    }[kind]
    found = given.per_row(labels, logits).numpy()
    np.testing.assert_allclose(found, (expected * (labels >= 0)).sum(axis=1), rtol=1e-5)


def losses_and_slopes(loss, labels, logits):
    """The losses of single labels, and their derivatives by the logit, float32."""
    import tensorflow as tf

    given = tf.constant(np.array(logits, np.float32)[:, None])
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = loss.per_row(np.array(labels, np.int8)[:, None], given)
    return found.numpy(), tape.gradient(found, given).numpy()[:, 0]


def test_the_asymmetric_loss_by_hand():
    # At p = 1/2 with m = .05: pₘ = .45, pₘ⁴ = .04100625, −log .55 = .5978370: .0245150. Its derivative by p,
    # 4 · .45³ · .5978370 + .04100625 / .55 = .2924683, times p (1 − p) = 1/4. A positive: log 2, −1/2; with γ₊ = 1
    # half of log 2, and −(½ · log 2 + ½) / 2. At p = .04 a negative counts nothing.
    from chexspark.training.loss import Asymmetry, Loss

    low = float(np.log(0.04 / 0.96))
    found, slopes = losses_and_slopes(
        Loss(asymmetry=Asymmetry(0.0, 4.0, 0.05)), [0, 1, 0, -1], [0.0, 0.0, low, 0.0]
    )
    assert found == pytest.approx([0.0245150, 0.6931472, 0, 0], rel=1e-5)
    assert slopes == pytest.approx([0.0731171, -0.5, 0, 0], rel=1e-5)
    found, slopes = losses_and_slopes(Loss(asymmetry=Asymmetry(1.0, 4.0, 0.05)), [1], [0.0])
    assert found == pytest.approx([0.3465736]) and slopes == pytest.approx([-0.4232868])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positive, negative, margin",
                         [(0, 4, 0.05), (1, 4, 0.05), (0.5, 0.5, 0.05), (0, 0, 0), (2, 2, 0), (0.5, 0.5, 0), (0, 0, 0.2)])  # fmt: skip
def test_the_asymmetric_loss_is_its_formula_and_so_is_its_slope(
    positive, negative, margin, smoothing
):
    from chexspark.training.loss import Asymmetry, Loss

    logits = np.linspace(-12, 12, 50)
    y = np.tile([0.0, 1.0], 25)
    target = y * (1 - smoothing) + smoothing / 2

    def formula(x):
        p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        beyond = np.maximum(p - margin, 0)
        focus = np.where(p > margin, beyond**negative, 0)
        return -target * q**positive * np.log(p) - (1 - target) * focus * np.log(
            np.minimum(q + margin, 1)
        )

    loss = Loss(smoothing=smoothing, asymmetry=Asymmetry(positive, negative, margin))
    found, slopes = losses_and_slopes(loss, y, logits)
    np.testing.assert_allclose(found, formula(logits), rtol=2e-4, atol=1e-6)
    step = 1e-6
    expected = (formula(logits + step) - formula(logits - step)) / (2 * step)
    np.testing.assert_allclose(slopes, expected, rtol=2e-3, atol=1e-5)
    if (positive, negative, margin) == (0, 0, 0):
        np.testing.assert_allclose(
            found, losses_and_slopes(Loss(smoothing=smoothing), y, logits)[0], rtol=1e-5
        )
    if (positive, negative, margin, smoothing) == (2, 2, 0, 0):
        np.testing.assert_allclose(
            found, losses_and_slopes(Loss(gamma=2), y, logits)[0], rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 4])
@pytest.mark.parametrize("margin", [0, 0.05])
def test_the_asymmetric_loss_is_finite_at_any_logit(gamma, margin):
    from chexspark.training.loss import Asymmetry, Loss

    logits = [-1e4, -200, -100, -90, -3, 0, 90, 100, 200, 1e4]
    for label in (0, 1):
        loss = Loss(asymmetry=Asymmetry(gamma, gamma, margin))
        found, slopes = losses_and_slopes(loss, [label] * len(logits), logits)
        assert np.isfinite(found).all() and np.isfinite(slopes).all()
        assert (found >= 0).all() and ((slopes <= 1e-6) if label else (slopes >= 0)).all()


def test_a_ring_of_one_that_says_nothing_is_horovod_s_of_one(one):
    assert_same(three_steps(ALONE, Alone()), three_steps(ALONE, one), 1e-7)
    for ring in (Alone(), one):
        np.testing.assert_array_equal(ring.sum([1.0, 2.5], "numbers"), [1.0, 2.5])
        np.testing.assert_array_equal(ring.gather(LABELS[0], "rows"), LABELS[0])
        assert ring.gather_objects({"rank": 0}) == [{"rank": 0}]
        assert ring.from_first(None) is None and ring.from_first([1]) == [1]
        model = make_model(False)
        before = model.get_weights()
        ring.copy_first(model.variables)
        for now, was in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("findings", [1, 5, 200])
def test_any_number_of_findings(findings):
    import tf_keras as keras

    from chexspark.training.loss import Loss
    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    random = np.random.default_rng(0)
    labels = random.integers(-1, 2, (ROWS, findings)).astype(np.int8)
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(findings)(flat))
    weight = random.random(findings).astype(np.float32)
    made = make_optimizer("sgd", model.trainable_variables, 0.5)
    steps = Steps(model, made, ROWS, Alone(), loss=Loss(weight, 1 - weight))
    given = as_tensors(Batch(IMAGES[0], labels, np.ones(ROWS, np.float32), np.arange(ROWS)))
    logits = model(IMAGES[0][..., None]).numpy().astype(float)
    losses = np.log1p(np.exp(np.where(labels == 1, -logits, logits)))
    losses *= np.where(labels == 1, weight, 1 - weight)
    scores, total, count = steps.score(given)
    assert scores.shape == (ROWS, findings) and count == (labels >= 0).sum()
    assert total == pytest.approx(losses[labels >= 0].sum(), rel=1e-4)
    assert steps.train(given).loss == pytest.approx(losses[labels >= 0].mean(), rel=1e-4)


def test_variables_of_several_types_are_trained(one):
    """As a network of the user's own may have them."""
    import tf_keras as keras

    from chexspark.training.optimizers import make_optimizer
    from chexspark.training.step import Steps

    def trained(ring):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        x = keras.layers.Dense(5, dtype="float64")(keras.layers.Dense(4)(x))
        model = keras.Model(inputs, keras.layers.Dense(14, dtype="float32")(x))
        before = model.get_weights()
        steps = Steps(model, make_optimizer("sgd", model.trainable_variables, 0.5), ROWS, ring)
        result = steps.train(as_tensors(Batch(IMAGES[0], LABELS[0], WEIGHTS[0], np.arange(ROWS))))
        moved = [
            not np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True)
        ]
        return result.loss, result.finite, all(moved)

    assert trained(one) == trained(Alone())
    assert trained(one)[1:] == (True, True)
