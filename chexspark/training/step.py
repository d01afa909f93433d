"""One training step and one scoring step, compiled once. Runs on ranks.

In: `StepInputs`. Out: the loss of the global batch, the same on every rank; or logits. Sums and
counts are reduced over the ranks, then divided once: a row that only fills up a batch, and a label
that is unknown, weigh nothing, whatever rank they are on.

The number of known labels is reduced while the network runs forward, so that gradients come out
divided by it. They are reduced in groups, each one message, as soon as the backward pass has passed its layers.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from chexspark.data.augmentation import DRAWS, NO_AUGMENTATION, Augmentation, augment
from chexspark.data.pipeline import StepInputs
from chexspark.training.loss import Loss, known_labels
from chexspark.training.packing import pack, unpack
from chexspark.training.ring import Ring

GROUP_BYTES = 4 << 20  # of gradients, reduced together
FIRST_SCALE, SCALE_STEPS = 2.0**15, 2000  # Keras's defaults for a dynamic loss scale


@dataclass(frozen=True)
class StepSettings:
    """What changes how a step is computed, and not what it means, but for `clip_norm` and `ema`."""

    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    compression: str = "none"
    xla: bool = False
    scale_loss: bool = False  # as float16 needs it
    deterministic: bool = False


@dataclass(frozen=True)
class StepResult:
    """Figures of one step: `loss` is of the global batch, per known label."""

    loss: float
    finite: bool  # loss and gradients, of all ranks
    finite_here: bool  # of this rank
    applied: bool  # not, where a loss scale had to be lowered
    stopping: bool  # some rank was asked to stop
    allreduce_seconds: float  # from this rank's last gradient to the last one reduced
    row_losses: tf.Tensor  # float32 (batch,), this rank's


class Steps:
    """The compiled steps of one model and optimizer, with what they remember.

    The model takes uint8 (batch, size, size, 1) and returns logits (batch, findings); the batch is of
    `batch_size` rows of this rank. `ring`: the ranks whose batches are one.
    """

    def __init__(
        self, model: keras.Model, optimizer: Any, batch_size: int, ring: Ring,
        augmentation: Augmentation = NO_AUGMENTATION, loss: Loss | None = None,
        settings: StepSettings | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.ring, self.augmentation = ring, augmentation
        self.fp16 = settings is not None and settings.compression == "fp16"
        self.loss, self.settings = loss or Loss(), settings or StepSettings()
        self.tracked = model.trainable_variables if self.settings.ema else []
        self.averages = [tf.Variable(v, trainable=False) for v in self.tracked]
        self.scale = tf.Variable(FIRST_SCALE if self.settings.scale_loss else 1.0, trainable=False)
        self.good_steps = tf.Variable(0, trainable=False)
        self.stop = tf.Variable(0.0, trainable=False)
        self.input_specs = [
            tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.uint8),
            tf.TensorSpec((batch_size, model.output_shape[-1]), tf.int8),
            tf.TensorSpec((batch_size,), tf.float32),
        ]
        self.compile()

    def compile(self) -> None:
        """Make the steps for the variables that are trainable now."""
        self.variables = self.model.trainable_variables
        draws = tf.TensorSpec((self.input_specs[0].shape[0], DRAWS), tf.float32)
        self._gradients = tf.function(self._part, autograph=False, jit_compile=self.settings.xla)
        self._train = tf.function(self._train_step, [*self.input_specs, draws], autograph=False)
        self._score = tf.function(self._score_step, self.input_specs, autograph=False)

    @property
    def state(self) -> list[tf.Variable]:
        """What is remembered beside model and optimizer."""
        return [*self.averages, self.scale, self.good_steps]

    def logits(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """What the model says of images, float32 (batch, findings), whatever it computes in."""
        return tf.cast(self.model(images, training=training), tf.float32)

    def _part(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, count: tf.Tensor
    ) -> tuple[list, tf.Tensor]:
        """Gradients of the (scaled) loss of some rows, and each row's loss."""
        with tf.GradientTape() as tape:
            rows = self.loss.per_row(labels, self.logits(images, training=True)) * weights
            total = tf.reduce_sum(rows) / count * self.scale
        return tape.gradient(total, self.variables), rows

    def _all_parts(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, count: tf.Tensor
    ) -> tuple[list, tf.Tensor]:
        """The same for the whole batch, in `accumulate` parts one after the other."""
        parts = self.settings.accumulate
        if parts == 1:
            return self._gradients(images, labels, weights, count)
        cut = [tf.reshape(t, (parts, -1, *t.shape[1:])) for t in (images, labels, weights)]

        def work(part: tf.Tensor, rows: tf.TensorArray, *sums: tf.Tensor) -> tuple:
            gradients, found = self._gradients(*(t[part] for t in cut), count)
            rows = rows.write(part, found)
            return (part + 1, rows, *(s + g for s, g in zip(sums, gradients, strict=True)))

        start = (0, tf.TensorArray(tf.float32, parts), *(tf.zeros_like(v) for v in self.variables))
        _, rows, *sums = tf.while_loop(lambda part, *_: part < parts, work, start)
        return sums, tf.reshape(rows.stack(), [-1])

    def _train_step(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Figures, float64 (5,): see `train`; and the loss of each row."""
        images = augment(images, draws, self.augmentation)
        count = self.ring.sum_tensor(known_labels(labels, weights), "count")
        count = tf.maximum(count, 1.0)
        gradients, rows = self._all_parts(images, labels, weights, count)
        loss = tf.reduce_sum(rows) / count
        groups = self.groups()
        shaped = [tf.reshape(g, v.shape) for g, v in zip(gradients, self.variables, strict=True)]
        messages = [pack([shaped[number] for number in group]) for group in groups]
        length = tf.add_n([tf.cast(tf.nn.l2_loss(message), tf.float32) for message in messages])
        with tf.control_dependencies([length]):
            ready = self._now()
        figures = tf.stack([loss, length, self.stop])
        gradients, (loss, lengths, stops) = self._reduce(groups, messages, figures)
        with tf.control_dependencies(gradients):
            reduced = self._now()
        here = tf.math.is_finite(length) & tf.reduce_all(tf.math.is_finite(rows))
        everywhere = tf.math.is_finite(lengths) & tf.math.is_finite(loss)
        if self.settings.scale_loss:
            tf.cond(everywhere, lambda: self._apply(gradients), self._lower_scale)
        else:
            self._apply(gradients)
        flags = [tf.cast(flag, tf.float64) for flag in (everywhere, here, stops > 0)]
        return tf.stack([tf.cast(loss, tf.float64), *flags, reduced - ready]), rows

    def _now(self) -> tf.Tensor:
        """The time in seconds, float64."""
        if self.settings.deterministic:  # then TensorFlow refuses its own
            return tf.numpy_function(time.time, [], tf.float64)
        return tf.timestamp()

    def groups(self) -> list[list[int]]:
        """The numbers of the gradients that are reduced together, in groups from the last layer to the first."""
        groups: list[list[int]] = []
        filled, kind = GROUP_BYTES, None
        for number in reversed(range(len(self.variables))):
            variable = self.variables[number]
            if filled >= GROUP_BYTES or variable.dtype != kind:
                groups.append([])
                filled, kind = 0, variable.dtype
            groups[-1].append(number)
            filled += variable.shape.num_elements() * variable.dtype.size
        return groups

    def _reduce(
        self, groups: list[list[int]], messages: list, figures: tf.Tensor
    ) -> tuple[list, list]:
        """Sum over the ranks: the gradients, by their numbers, and the figures, which are of no half precision."""
        reduced: list = [None] * len(self.variables)
        for index, (group, message) in enumerate(zip(groups, messages, strict=True)):
            found = self.ring.sum_tensor(message, f"gradients_{index}", half=self.fp16)
            shapes = [self.variables[number].shape for number in group]
            for number, gradient in zip(group, unpack(found, shapes), strict=True):
                reduced[number] = gradient
        return reduced, tf.unstack(self.ring.sum_tensor(figures, "figures"))

    def _apply(self, gradients: list) -> tf.Tensor:
        """Move weights and averages; returns nothing of use, for `tf.cond`."""
        if self.settings.scale_loss:
            gradients = [g / self.scale for g in gradients]
        if self.settings.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.settings.clip_norm)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        # Lower in the first steps, as of `tf.train.ExponentialMovingAverage` with its `num_updates`: an average that
        # begins at the first weights would otherwise keep them for a thousand steps at 0.999.
        taken = tf.cast(self.optimizer.iterations, tf.float32)
        decay = tf.minimum(self.settings.ema or 0.0, (1 + taken) / (10 + taken))
        for average, variable in zip(self.averages, self.tracked, strict=True):
            average.assign_sub((1 - decay) * (average - variable))
        if self.settings.scale_loss:
            grown = self.good_steps + 1 >= SCALE_STEPS
            self.scale.assign(tf.where(grown, self.scale * 2, self.scale))
            self.good_steps.assign(tf.where(grown, 0, self.good_steps + 1))
        return tf.constant(True)

    def _lower_scale(self) -> tf.Tensor:
        self.scale.assign(tf.maximum(self.scale / 2, 1.0))
        self.good_steps.assign(0)
        return tf.constant(False)

    def _score_step(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        logits = self.logits(images, training=False)
        loss = tf.reduce_sum(self.loss.per_row(labels, logits) * weights)
        return logits, loss, known_labels(labels, weights)

    def train(self, inputs: StepInputs) -> StepResult:
        """Take one step. Where loss or gradients are not finite, the weights are spoilt, except
        under a loss scale that can still be lowered."""
        lowest = float(self.scale) <= 1.0
        figures, rows = self._train(inputs.images, inputs.labels, inputs.weights, inputs.draws)
        loss, finite, here, stopping, seconds = figures.numpy().tolist()
        lowered = self.settings.scale_loss and not finite
        return StepResult(
            loss, bool(finite) or (lowered and not lowest), bool(here), not lowered,
            bool(stopping), seconds, rows,
        )  # fmt: skip

    def score(self, inputs: StepInputs) -> tuple[np.ndarray, float, float]:
        """Return logits float32 (batch, findings), this rank's sum of losses, and its count of labels."""
        logits, loss, count = self._score(inputs.images, inputs.labels, inputs.weights)
        return logits.numpy(), float(loss), float(count)
