"""The model, its optimizer and its steps, made from the config. Runs on ranks.

In: config, manifest, rank facts. Out: all of them alike on every rank.
"""

import dataclasses
from collections.abc import Sequence

import horovod.tensorflow as hvd
import tensorflow as tf
import tf_keras as keras

from chexspark.config import TrainConfig
from chexspark.data.augmentation import Augmentation
from chexspark.data.plan import RankFacts
from chexspark.models import build_model
from chexspark.models.weights import load_weights
from chexspark.store.manifest import Manifest
from chexspark.training.batch_norm import synchronised
from chexspark.training.loss import make_loss
from chexspark.training.optimizers import make_optimizer
from chexspark.training.step import Steps, StepSettings


def make_model(config: TrainConfig, size: int, findings: Sequence[str]) -> tuple[keras.Model, str]:
    """Build the network and load its start weights; also a line that says what was loaded."""
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(config.precision)
    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model, size, len(findings))
    if not config.weights:
        return model, ""
    return model, load_weights(model, config.model, config.weights, findings)


def make_steps(
    config: TrainConfig, manifest: Manifest, facts: RankFacts, model: keras.Model
) -> Steps:
    """The compiled steps; weights and the optimizer's state are those of rank 0."""
    if config.sync_batch_norm:
        model = synchronised(model)
    optimizer = make_optimizer(
        config.optimizer, model.trainable_variables, config.learning_rate,
        config.weight_decay, config.momentum,
    )  # fmt: skip
    hvd.broadcast_variables([*model.variables, *optimizer.variables()], root_rank=0)
    settings = StepSettings(
        accumulate=config.accumulate, clip_norm=config.clip_norm, ema=config.ema,
        compression=config.compression, xla=config.xla,
        scale_loss=config.precision == "mixed_float16", deterministic=config.deterministic,
    )  # fmt: skip
    rows = -(-global_batch(config) // facts.world_size)
    rows = -(-rows // config.accumulate) * config.accumulate
    return Steps(
        model, optimizer, rows, manifest.image_size, augmentation_of(config),
        make_loss(config, manifest), settings,
    )  # fmt: skip


def global_batch(config: TrainConfig) -> int:
    """Images per step over the ranks that the run began with; a run keeps it to its end."""
    return config.batch_size * config.num_proc


def augmentation_of(config: TrainConfig) -> Augmentation:
    """The config's settings of that name."""
    names = [field.name for field in dataclasses.fields(Augmentation)]
    return Augmentation(**{name: getattr(config, name) for name in names})
