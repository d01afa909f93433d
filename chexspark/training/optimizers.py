"""The optimizers by name. Runs on ranks.

In: a name, the variables to train, the settings. Out: a Keras optimizer whose state exists, so that
it can be broadcast and saved (``variables()``); ``learning_rate`` is assigned per step.

The base are Keras's legacy classes, which update each variable with one fused operation where
TensorFlow has one: a graph that is a third of the size, and is traced that much faster.

Weight decay and the layer-wise rates of LARS and LAMB are for weights of rank 2 and more. Biases
and the scales and shifts of normalisation, all of rank 1, are left alone, as in the published runs
(Goyal et al. 2017, section 5.1; You et al. 2019, in the code that its authors published).

The head, the network's last layer, may have a learning rate of its own, a multiple of that of the others. It takes
the place of the learning rate wherever that stands in a method: in Adam's step, in the decay of AdamW, in the
velocity of LARS, before the ratio of LAMB.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tf_keras.optimizers import legacy

from chexspark.config import OPTIMIZERS
from chexspark.errors import UserError, closest

TRUST_COEFFICIENT = 0.001  # η of LARS: You, Gitman, Ginsburg 2017, section 5
LAMB_EPSILON = 1e-6  # the authors' code
# What Keras's legacy classes call the learning rate, and what they make of it.
RATES = ("lr_t", "neg_lr_t", "lr")


def make_optimizer(
    name: str,
    variables: list,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    head: Sequence[tf.Variable] = (),
    head_rate: float = 1.0,
) -> legacy.Optimizer:
    """Make an optimizer and its state for `variables`.

    `momentum`: of sgd, rmsprop and lars. `head`: those of the variables that learn at `head_rate` times the
    learning rate. Raises UserError for an unknown name.
    """
    makers: dict[str, Callable[[], legacy.Optimizer]] = {
        "adam": lambda: Adam(weight_decay, learning_rate),
        "adamw": lambda: AdamW(weight_decay, learning_rate),
        "sgd": lambda: SGD(weight_decay, learning_rate, momentum),
        "rmsprop": lambda: RMSprop(weight_decay, learning_rate, momentum=momentum),
        "lars": lambda: LARS(weight_decay, learning_rate, momentum),
        "lamb": lambda: LAMB(weight_decay, learning_rate, epsilon=LAMB_EPSILON),
    }
    if name not in OPTIMIZERS:
        valid = ", ".join(OPTIMIZERS)
        raise UserError(
            f"the optimizer {name!r} is unknown{closest(name, OPTIMIZERS)} (valid: {valid})"
        )
    optimizer = makers[name]()
    if head_rate != 1:
        optimizer.multiples = {variable.ref(): head_rate for variable in head}
    optimizer._create_all_weights(variables)
    return optimizer


def is_weight(variable: tf.Variable) -> bool:
    """Whether a variable is a kernel, and no bias, scale or shift. A depthwise kernel of 1×1 is a scale."""
    shape = variable.shape
    scales = "depthwise_kernel" in variable.name and tuple(shape[:2]) == (1, 1)
    return shape.rank > 1 and not scales


def norm(tensor: tf.Tensor) -> tf.Tensor:
    """The Euclidean norm of all elements."""
    return tf.sqrt(2 * tf.nn.l2_loss(tensor))


def unless_zero(first: tf.Tensor, second: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """`ratio`, or 1 where one of two norms is 0: a layer at zero, or one without a gradient."""
    return tf.where((first > 0) & (second > 0), ratio, 1.0)


class Decaying(legacy.Optimizer):
    """A weight decay, and variables with learning rates of their own, ahead of a Keras class.

    `multiples`: what the learning rate of a variable is multiplied by, by its `ref`.
    """

    def __init__(self, weight_decay: float, *settings: float, **more: float) -> None:
        super().__init__(*settings, name=type(self).__name__, **more)
        self.weight_decay = weight_decay
        self.multiples: dict[Any, float] = {}

    def state_for(self, var: tf.Variable, apply_state: Any) -> Any:
        """Keras's `apply_state`, numbers by device and type, with the learning rate of this variable."""
        multiple = self.multiples.get(var.ref(), 1.0)
        if multiple == 1:
            return apply_state
        key = var.device, var.dtype.base_dtype
        rates = {n: multiple * v for n, v in apply_state[key].items() if n in RATES}
        return {key: {**apply_state[key], **rates}}

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        return super()._resource_apply_dense(grad, var, self.state_for(var, apply_state))


class WithPenalty(Decaying):
    """Weight decay as the gradient of an L2 penalty, ``g + λw``, which takes the way of gradients."""

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        if self.weight_decay and is_weight(var):
            grad += self.weight_decay * var
        return super()._resource_apply_dense(grad, var, apply_state)


class Momentum(legacy.SGD):
    """Nesterov momentum whose velocity is of gradients: ``v ← mv + g; w ← w − rate × (g + mv)``.

    Keras keeps the learning rate inside the velocity, which is another method where the rate
    changes from step to step (Goyal et al. 2017, section 3, remark 2).
    """

    def _create_slots(self, var_list: list) -> None:
        for var in var_list:
            self.add_slot(var, "momentum")

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        c = apply_state[var.device, var.dtype.base_dtype]
        velocity = self.get_slot(var, "momentum")
        return tf.raw_ops.ResourceApplyMomentum(
            var=var.handle, accum=velocity.handle, lr=c["lr_t"], grad=grad, momentum=c["momentum"],
            use_locking=True, use_nesterov=True,
        )  # fmt: skip


class Adam(WithPenalty, legacy.Adam):
    """Kingma and Ba 2015. Its penalty goes through the moments; decay by itself is AdamW's."""


class RMSprop(WithPenalty, legacy.RMSprop):
    """Tieleman and Hinton 2012, ρ = 0.9, with momentum."""


class SGD(WithPenalty, Momentum):
    """Sutskever et al. 2013, as Goyal et al. 2017 write it."""


class AdamW(Decaying, legacy.Adam):
    """Loshchilov and Hutter 2019: Adam, and the weights shrink by ``rate × λ`` per step."""

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        if self.weight_decay and is_weight(var):
            state = self.state_for(var, apply_state)
            rate = state[var.device, var.dtype.base_dtype]["lr_t"]
            var.assign_sub(rate * self.weight_decay * var, read_value=False)
        return super()._resource_apply_dense(grad, var, apply_state)


class LARS(Decaying, Momentum):
    """You, Gitman, Ginsburg 2017, algorithm 1: a rate per layer, ``η‖w‖ / (‖g‖ + λ‖w‖)``.

    ``v ← mv + rate × layer's rate × (g + λw); w ← w − v``. A layer whose weights or gradient are
    all zero has the layer's rate 1, as in the code that TensorFlow published.
    """

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        c = self.state_for(var, apply_state)[var.device, var.dtype.base_dtype]
        velocity = self.get_slot(var, "momentum")
        if is_weight(var):
            length, slope = norm(var), norm(grad)
            ratio = TRUST_COEFFICIENT * length / (slope + self.weight_decay * length)
            grad = unless_zero(length, slope, ratio) * (grad + self.weight_decay * var)
        return tf.raw_ops.ResourceApplyKerasMomentum(
            var=var.handle, accum=velocity.handle, lr=c["lr_t"], grad=grad, momentum=c["momentum"],
            use_locking=True, use_nesterov=False,
        )  # fmt: skip


class LAMB(Decaying, legacy.Adam):
    """You et al. 2019, algorithm 2: Adam's step and decay, scaled by ``‖w‖ / ‖step‖`` per layer.

    With bias correction; φ is the identity. A layer whose weights or step are all zero has the
    ratio 1, as in the authors' code. Biases and normalisation take Adam's step as it is.
    """

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any) -> Any:
        c = self.state_for(var, apply_state)[var.device, var.dtype.base_dtype]
        m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
        if not is_weight(var):
            # The fused operation adds ε to the root of v; the paper to that of v / (1 − β₂ᵗ).
            return tf.raw_ops.ResourceApplyAdam(
                var=var.handle, m=m.handle, v=v.handle, beta1_power=c["beta_1_power"],
                beta2_power=c["beta_2_power"], lr=c["lr_t"], beta1=c["beta_1_t"],
                beta2=c["beta_2_t"], epsilon=c["epsilon"] * tf.sqrt(1 - c["beta_2_power"]),
                grad=grad, use_locking=True,
            )  # fmt: skip
        m_t = c["beta_1_t"] * m + c["one_minus_beta_1_t"] * grad
        v_t = c["beta_2_t"] * v + c["one_minus_beta_2_t"] * tf.square(grad)
        root = tf.sqrt(v_t / (1 - c["beta_2_power"])) + c["epsilon"]
        step = m_t / (1 - c["beta_1_power"]) / root + self.weight_decay * var
        length, stride = norm(var), norm(step)
        rate = c["lr_t"] * unless_zero(length, stride, length / stride)
        return tf.group(m.assign(m_t), v.assign(v_t), var.assign_sub(rate * step))
