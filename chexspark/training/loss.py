"""The loss of a batch, row by row. Runs on ranks.

In: labels, logits, the recipe's choice. Out: a sum per row, and the number of known labels: sums
and counts are reduced over the ranks and divided once.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from chexspark.config import TrainConfig
from chexspark.store.manifest import Manifest


@dataclass(frozen=True)
class Asymmetry:
    """What focuses the loss of positive and of negative labels (Ridnik et al. 2021, section 2).

    `positive`: γ₊; `negative`: γ₋; `margin`: m, the probability up to which a negative counts nothing.
    """

    positive: float
    negative: float
    margin: float


@dataclass(frozen=True)
class Loss:
    """Sigmoid cross-entropy per finding, with weights, focus and smoothing.

    `positive`, `negative`: float32 (findings,), weights of the two classes. CheXNet's (Rajpurkar et al.
    2017, section 2.1) are |N| / (|P|+|N|) and |P| / (|P|+|N|).
    `gamma`: each label's loss times (1 − p)^γ, p the probability given to the truth (Lin et al.
    2017, equation 4, without α). `asymmetry`: another focus for each class, see `asymmetric`.
    `smoothing`: s moves labels 0 and 1 to s/2 and 1 − s/2.
    """

    positive: np.ndarray | None = None
    negative: np.ndarray | None = None
    gamma: float = 0.0
    smoothing: float = 0.0
    asymmetry: Asymmetry | None = None

    def per_row(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Losses summed per row, float32 (batch,), unknown labels (−1) left out.

        `labels`: int8 (batch, findings); `logits`: float32 (batch, findings).
        """
        truth = tf.cast(tf.maximum(labels, 0), tf.float32)
        target = truth * (1 - self.smoothing) + self.smoothing / 2 if self.smoothing else truth
        if self.asymmetry:
            losses = asymmetric(target, logits, self.asymmetry)
        else:
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
        if self.gamma:
            losses *= tf.sigmoid(tf.where(truth > 0, -logits, logits)) ** self.gamma
        if self.positive is not None:
            losses *= truth * self.positive + (1 - truth) * self.negative
        return tf.reduce_sum(losses * tf.cast(labels >= 0, tf.float32), axis=1)


def asymmetric(target: tf.Tensor, logits: tf.Tensor, settings: Asymmetry) -> tf.Tensor:
    """The asymmetric loss of each label, float32 (batch, findings); `target`, from 0 to 1, as the other two.

    Of a positive −(1 − p)^γ₊ log p; of a negative −pₘ^γ₋ log(1 − pₘ), where pₘ = max(p − m, 0); of a smoothed label
    both, in its shares. Finite for every finite logit, and so is its gradient.
    """
    positive = tf.nn.softplus(-logits) * power(-logits, settings.positive)
    if not settings.margin:
        negative = tf.nn.softplus(logits) * power(logits, settings.negative)
        return target * positive + (1 - target) * negative
    beyond = tf.sigmoid(logits) - settings.margin
    counts = beyond > 0
    # Where a negative counts nothing, something else than 0 is taken to the power, whose slope may be infinite there.
    focus = tf.where(counts, beyond, 1.0) ** settings.negative
    negative = -focus * tf.math.log(tf.sigmoid(-logits) + settings.margin)
    return target * positive + (1 - target) * tf.where(counts, negative, 0.0)


def power(logits: tf.Tensor, exponent: float) -> tf.Tensor:
    """The probability of logits to a power, by its logarithm, so that the gradient is finite where it is 0."""
    return tf.exp(-exponent * tf.nn.softplus(-logits))


def known_labels(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """How many labels of real rows are known: float32 scalar."""
    return tf.reduce_sum(tf.cast(labels >= 0, tf.float32) * weights[:, None])


def make_loss(config: TrainConfig, manifest: Manifest) -> Loss:
    """The recipe's loss. Class weights are those of the store's training images."""
    smoothing = config.label_smoothing
    if config.loss == "focal":
        return Loss(gamma=config.focal_gamma, smoothing=smoothing)
    if config.loss == "asymmetric":
        asymmetry = Asymmetry(config.gamma_positive, config.gamma_negative, config.clip)
        return Loss(smoothing=smoothing, asymmetry=asymmetry)
    if config.loss == "weighted":
        positive, negative = (
            np.array([manifest.class_weights[f][sign] for f in manifest.findings], np.float32)
            for sign in ("positive", "negative")
        )
        return Loss(positive, negative, smoothing=smoothing)
    return Loss(smoothing=smoothing)
