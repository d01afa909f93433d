"""The loss of a batch, row by row. Runs on ranks.

In: labels, logits, the recipe's choice. Out: a sum per row, and the number of known labels: sums
and counts are reduced over the ranks and divided once.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from chexspark.store.manifest import Manifest


@dataclass(frozen=True)
class Loss:
    """Sigmoid cross-entropy per finding, with weights, focus and smoothing.

    `positive`, `negative`: float32 (findings,), weights of the two classes. CheXNet's (Rajpurkar et al.
    2017, section 2.1) are |N| / (|P|+|N|) and |P| / (|P|+|N|).
    `gamma`: each label's loss times (1 − p)^γ, p the probability given to the truth (Lin et al.
    2017, equation 4, without α). `smoothing`: s moves labels 0 and 1 to s/2 and 1 − s/2.
    """

    positive: np.ndarray | None = None
    negative: np.ndarray | None = None
    gamma: float = 0.0
    smoothing: float = 0.0

    def per_row(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Losses summed per row, float32 (batch,), unknown labels (−1) left out.

        `labels`: int8 (batch, findings); `logits`: float32 (batch, findings).
        """
        truth = tf.cast(tf.maximum(labels, 0), tf.float32)
        target = truth * (1 - self.smoothing) + self.smoothing / 2 if self.smoothing else truth
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
        if self.gamma:
            losses *= tf.sigmoid(tf.where(truth > 0, -logits, logits)) ** self.gamma
        if self.positive is not None:
            losses *= truth * self.positive + (1 - truth) * self.negative
        return tf.reduce_sum(losses * tf.cast(labels >= 0, tf.float32), axis=1)


def known_labels(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """How many labels of real rows are known: float32 scalar."""
    return tf.reduce_sum(tf.cast(labels >= 0, tf.float32) * weights[:, None])


def make_loss(kind: str, gamma: float, smoothing: float, manifest: Manifest) -> Loss:
    """The recipe's loss: `kind` is one of the setting `loss`, `gamma` and `smoothing` are of `Loss`.

    Class weights are those of the store's training images.
    """
    if kind == "focal":
        return Loss(gamma=gamma, smoothing=smoothing)
    if kind == "weighted":
        positive, negative = (
            np.array([manifest.class_weights[f][sign] for f in manifest.findings], np.float32)
            for sign in ("positive", "negative")
        )
        return Loss(positive, negative, smoothing=smoothing)
    return Loss(smoothing=smoothing)
