"""The model, its optimizer and its steps, made from the config. Runs on ranks.

In: config, manifest, rank facts. Out: all of them alike on every rank.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from chexspark.config import TrainConfig
from chexspark.data.augmentation import Augmentation
from chexspark.data.plan import RankFacts
from chexspark.models import build_model
from chexspark.models.weights import head_variables, load_weights, start_of
from chexspark.run.folder import run_folder
from chexspark.run.resolved import ResolvedTraining
from chexspark.store.manifest import Manifest
from chexspark.training.batch_norm import synchronised
from chexspark.training.loss import make_loss
from chexspark.training.network import Network
from chexspark.training.optimizers import make_optimizer
from chexspark.training.ring import Ring
from chexspark.training.step import Steps, StepSettings
from chexspark.user_code import Code


def make_model(
    config: TrainConfig, size: int, findings: Sequence[str], code: Code | None = None
) -> tuple[keras.Model, str]:
    """Build the network and load its start weights; also a line that says what was loaded."""
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(config.policy)
    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model, size, len(findings), code)
    start = start_of(config.model, config.weights, run_folder(config.run))
    if not start:
        return model, ""
    return model, load_weights(model, config.model, start, findings, config.weights_findings)


def make_network(
    settings: ResolvedTraining, manifest: Manifest, facts: RankFacts, ring: Ring
) -> tuple[Network, str]:
    """The network and its steps, alike on all ranks; also a line that says what weights were loaded."""
    model, loaded = make_model(
        settings.config, settings.image_size(manifest), manifest.findings, settings.code
    )
    return Network(model, make_steps(settings, manifest, facts, ring, model)), loaded


def make_steps(
    settings: ResolvedTraining, manifest: Manifest, facts: RankFacts, ring: Ring, model: keras.Model
) -> Steps:
    """The compiled steps; weights and the optimizer's state are those of rank 0."""
    config = settings.config
    if config.sync_batch_norm:
        model = synchronised(model, ring)
    optimizer = make_optimizer(
        config.optimizer, model.trainable_variables, config.learning_rate,
        config.weight_decay, config.momentum, head_variables(model), config.head_rate,
    )  # fmt: skip
    ring.copy_first([*model.variables, *optimizer.variables()])
    step_settings = StepSettings(
        accumulate=config.accumulate, clip_norm=config.clip_norm, ema=config.ema,
        compression=config.compression, xla=config.xla,
        scale_loss=config.precision == "mixed_float16", deterministic=config.deterministic,
    )  # fmt: skip
    loss = make_loss(config, manifest)
    return Steps(
        model, optimizer, settings.rows_per_rank(facts.world_size), ring, augmentation_of(config),
        loss, step_settings,
    )  # fmt: skip


def augmentation_of(config: TrainConfig) -> Augmentation:
    """The config's settings of that name."""
    names = [field.name for field in dataclasses.fields(Augmentation)]
    return Augmentation(**{name: getattr(config, name) for name in names})
