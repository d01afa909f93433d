"""Two steps of each optimizer, against numbers worked out by hand from the papers' formulas."""

import numpy as np
import pytest
import tensorflow as tf

from chexspark.config import OPTIMIZERS
from chexspark.errors import UserError
from chexspark.training.optimizers import make_optimizer


def take_steps(name, values, *steps, weight_decay=0.0, momentum=0.9, head=0, head_rate=1.0):
    """Apply ``(learning rate, gradients)`` for each step; return where the variables are after each.

    The last `head` variables are the head's.
    """
    variables = [tf.Variable(value, dtype=tf.float32) for value in values]
    of_head = variables[len(variables) - head :]
    optimizer = make_optimizer(name, variables, 1.0, weight_decay, momentum, of_head, head_rate)

    @tf.function
    def apply(*grads):
        optimizer.apply_gradients(zip(grads, variables, strict=True))

    places = []
    for rate, gradients in steps:
        optimizer.learning_rate.assign(rate)
        apply(*[tf.constant(g, tf.float32) for g in gradients])
        places.append([v.numpy().tolist() for v in variables])
    return places


def flat(nested):
    return np.concatenate([np.ravel(part) for part in nested])


def test_lars():
    # λ = 0.1, m = 0.9, η = 0.001. w = (3, 4), ‖w‖ = 5; g = (.6, .8), ‖g‖ = 1.
    #   layer's rate .001 · 5 / (1 + .1 · 5) = 1/300; g + λw = (.9, 1.2);
    #   v = 10 / 300 · (.9, 1.2) = (.03, .04); w = (2.97, 3.96), ‖w‖ = 4.95.
    # Then at the rate 20 with g = (.297, .396), ‖g‖ = .495: .001 · 4.95 / (.495 + .495) = .005;
    #   v = .9 · (.03, .04) + 20 · .005 · (.594, .792) = (.0864, .1152); w = (2.8836, 3.8448).
    # The bias: v = 10 · .5 = 5, b = 1 − 5; v = .9 · 5 + 20 · .5 = 14.5, b = −4 − 14.5.
    first, second = take_steps(
        "lars", [[[3.0], [4.0]], [1.0]],
        (10, [[[0.6], [0.8]], [0.5]]), (20, [[[0.297], [0.396]], [0.5]]), weight_decay=0.1,
    )  # fmt: skip
    assert flat(first) == pytest.approx([2.97, 3.96, -4.0], rel=1e-6)
    assert flat(second) == pytest.approx([2.8836, 3.8448, -18.5], rel=1e-6)


def test_lamb():
    # λ = 0.1, rate 0.1. w = (3, 4). With g = (.5, −.25) corrected m = g, v = g²: m / √v = (1, −1).
    #   step (1 + .3, −1 + .4) = (1.3, −.6); ‖step‖ = √2.05 = 1.4317821; ratio 5 / 1.4317821 =
    #   3.4921515; w = (3 − .34921515 · 1.3, 4 + .34921515 · .6) = (2.5460203, 4.2095291).
    # With −g: m = .9 · .1 g − .1 g = −.01 g, corrected by 1 − .81: −g/19; v, corrected, g² again.
    #   step (−1/19 + .25460203, 1/19 + .42095291) = (.20197045, .47358449), ‖step‖ = .51485370;
    #   ‖w‖ = √(6.4822194 + 17.7201352) = 4.9195888; ratio 9.5553141;
    #   w = (2.5460203 − .95553141 · .20197045, 4.2095291 − .95553141 · .47358449)
    #     = (2.3530312, 3.7570043).
    # The bias has no decay and no ratio: 1 − .1, and .9 + .1/19.
    g = [[0.5], [-0.25]]
    first, second = take_steps(
        "lamb", [[[3.0], [4.0]], [1.0]],
        (0.1, [g, [0.5]]), (0.1, [np.negative(g), [-0.5]]), weight_decay=0.1,
    )  # fmt: skip
    assert flat(first) == pytest.approx([2.5460203, 4.2095291, 0.9], rel=1e-5)
    assert flat(second) == pytest.approx([2.3530312, 3.7570043, 0.9052632], rel=1e-5)


def test_lamb_adds_epsilon_to_the_corrected_root():
    # g = ε = 10⁻⁶: g / (√g² + ε) = 1/2, for the bias at rate .1; the kernel's step has a ratio.
    # w = (1), ratio 1 / (1/2) = 2: it moves by .1 · 2 · 1/2.
    (after,) = take_steps("lamb", [[[1.0]], [1.0]], (0.1, [[[1e-6]], [1e-6]]))
    assert flat(after) == pytest.approx([0.9, 0.95], rel=1e-5)


def test_layers_at_zero_and_layers_without_gradient():
    at_zero, still = [[0.0], [0.0]], [[0.0], [0.0]]
    # The layer's rate is 1: v = 2 · (.6, .8); and v = 2 · λw.
    (after,) = take_steps(
        "lars", [at_zero, [[3.0], [4.0]]], (2, [[[0.6], [0.8]], still]), weight_decay=0.1
    )
    assert flat(after) == pytest.approx([-1.2, -1.6, 2.4, 3.2], rel=1e-6)
    # The ratio is 1: Adam's first step; and λw alone, (.3, .4) of length .5, ratio 10.
    (after,) = take_steps(
        "lamb", [at_zero, [[3.0], [4.0]]], (0.1, [[[0.6], [-0.8]], still]), weight_decay=0.1
    )
    assert flat(after) == pytest.approx([-0.1, 0.1, 2.7, 3.6], rel=1e-5)
    (after,) = take_steps("lamb", [[[3.0], [4.0]]], (0.1, [still]))
    assert flat(after).tolist() == [3.0, 4.0], "no step at all, and no division by zero"


def test_adamw_decays_by_itself():
    # λ = 0.1, rate 0.1: 2 · (1 − .01) − .1 · 1 = 1.88; with −g, corrected moments −g/19 and g²:
    # 1.88 · .99 + .1/19 = 1.8664632. The bias: 1 − .1; .9 + .1/19.
    first, second = take_steps(
        "adamw", [[[2.0]], [1.0]], (0.1, [[[0.5]], [0.5]]), (0.1, [[[-0.5]], [-0.5]]),
        weight_decay=0.1,
    )  # fmt: skip
    assert flat(first) == pytest.approx([1.88, 0.9], rel=1e-5)
    assert flat(second) == pytest.approx([1.8664632, 0.9052632], rel=1e-5)


def test_sgd_keeps_the_rate_out_of_the_velocity():
    # m = .5. v = 1, w = 1 − .1 · (1 + .5) = .85; v = .5 + 1, w = .85 − .2 · (1 + .5 · 1.5) = .5.
    first, second = take_steps("sgd", [[[1.0]]], (0.1, [[[1.0]]]), (0.2, [[[1.0]]]), momentum=0.5)
    assert flat(first + second) == pytest.approx([0.85, 0.5])


def test_rmsprop():
    # g = 2: mean square .1 · 4 = .4, velocity .1 · 2 / √.4 = .3162278; then .9 · .4 + .4 = .76,
    # .9 · .3162278 + .1 · 2 / √.76 = .5140207.
    first, second = take_steps("rmsprop", [[[1.0]]], (0.1, [[[2.0]]]), (0.1, [[[2.0]]]))
    assert flat(first + second) == pytest.approx([0.6837722, 0.1697515], rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_a_penalty_is_part_of_the_gradient_and_not_for_biases(name):
    (after,) = take_steps(name, [[[2.0]], [2.0]], (0.1, [[[-1.0]], [-1.0]]), weight_decay=0.5)
    assert after[0] == [[2.0]], "−1 + ½ · 2 is no gradient"
    assert after[1][0] > 2.0


def test_a_scale_per_channel_is_no_weight_whatever_its_shape():
    import tf_keras as keras

    from chexspark.training.optimizers import is_weight

    inputs = keras.Input((4, 4, 3))
    scale, convolution = keras.layers.DepthwiseConv2D(1), keras.layers.DepthwiseConv2D(3)
    dense = keras.layers.Dense(1)
    dense(convolution(scale(inputs)))
    assert [is_weight(v) for v in [*scale.weights, *convolution.weights, *dense.weights]] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_travels_in_its_variables(name):
    steps = [(0.1, [[[0.3], [0.1]], [0.2]]), (0.2, [[[-0.1], [0.4]], [0.1]])]
    start = [[[1.0], [2.0]], [0.5]]
    half, expected = take_steps(name, start, *steps, weight_decay=0.1)
    variables = [tf.Variable(value, dtype=tf.float32) for value in start]
    first, second = (make_optimizer(name, variables, rate, 0.1) for rate, _ in steps)
    assert len(first.variables()) > len(variables)
    first.apply_gradients(zip(map(tf.constant, steps[0][1]), variables, strict=True))
    assert flat([v.numpy() for v in variables]) == pytest.approx(flat(half), rel=1e-6)
    for variable, state in zip(second.variables(), first.variables(), strict=True):
        variable.assign(state)
    second.apply_gradients(zip(map(tf.constant, steps[1][1]), variables, strict=True))
    assert flat([v.numpy() for v in variables]) == pytest.approx(flat(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "lars"])
def test_one_fused_update_per_variable(name):
    variables = [tf.Variable(tf.ones((3, 2))), tf.Variable(tf.ones(2))]
    optimizer = make_optimizer(name, variables, head=variables, head_rate=2.0)

    @tf.function
    def apply():
        optimizer.apply_gradients([(tf.ones(v.shape), v) for v in variables])

    operations = [op.type for op in apply.get_concrete_function().graph.get_operations()]
    assert sum(kind.startswith("ResourceApply") for kind in operations) == 2


# The first step of a kernel and a bias of the head at twice the learning rate, by the formulas above.
@pytest.mark.parametrize(
    "name, rate, start, gradient, decay, expected",
    [
        ("adam", 0.1, [[[2.0]], [1.0]], [[[0.5]], [0.5]], 0.0, [2 - 0.2, 1 - 0.2]),
        ("adamw", 0.1, [[[2.0]], [1.0]], [[[0.5]], [0.5]], 0.1, [2 * (1 - 0.02) - 0.2, 1 - 0.2]),
        ("sgd", 0.1, [[[1.0]], [1.0]], [[[1.0]], [1.0]], 0.0, [1 - 0.2 * 1.9, 1 - 0.2 * 1.9]),
        ("rmsprop", 0.1, [[[1.0]], [1.0]], [[[2.0]], [2.0]], 0.0, [1 - 2 * 0.3162278] * 2),
        ("lars", 10, [[[3.0], [4.0]], [1.0]], [[[0.6], [0.8]], [0.5]], 0.1, [3 - 0.06, 4 - 0.08, 1 - 10]),
        ("lamb", 0.1, [[[3.0], [4.0]], [1.0]], [[[0.5], [-0.25]], [0.5]], 0.1,
         [3 - 2 * 0.34921515 * 1.3, 4 + 2 * 0.34921515 * 0.6, 1 - 0.2]),
    ],
)  # fmt: skip
def test_the_head_at_twice_the_rate(name, rate, start, gradient, decay, expected):
    step = (rate, [*gradient, *gradient])
    (after,) = take_steps(name, [*start, *start], step, weight_decay=decay, head=2, head_rate=2.0)
    assert flat(after[2:]) == pytest.approx(expected, rel=1e-5)
    (plain,) = take_steps(name, start, (rate, gradient), weight_decay=decay)
    assert after[:2] == plain, "the others learn as before"


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_head_s_rate_is_one_that_changes_with_the_schedule(name, momentum):
    start, first, second = [[[1.0], [2.0]]], [[[0.3], [0.1]]], [[[-0.1], [0.4]]]
    more = {"weight_decay": 0.1, "momentum": momentum}
    multiple = take_steps(name, start, (0.1, first), (0.02, second), head=1, head_rate=5.0, **more)
    itself = take_steps(name, start, (0.5, first), (0.1, second), **more)
    assert flat(multiple) == pytest.approx(flat(itself), rel=1e-5)


def test_an_unknown_optimizer():
    with pytest.raises(UserError, match="'adma' is unknown; did you mean adam"):
        make_optimizer("adma", [])
