"""A minute on the cluster at hand in, how a training would go at other numbers of ranks out. Runs on the driver."""

import logging
from collections.abc import Sequence

from pyspark.sql import SparkSession

from chexspark.cluster.forecast import (
    Forecast,
    Recipe,
    Sizes,
    advice,
    forecast,
    measured_text,
    merged,
    table,
)
from chexspark.cluster.launch import run_ranks
from chexspark.cluster.view import waiting_text
from chexspark.errors import UserError, spoken
from chexspark.progress import ProgressLine
from chexspark.run.resolved import ResolvedTraining
from chexspark.store.manifest import Manifest
from chexspark.training.events import Event, Starting, Waiting
from chexspark.training.step_facts import measure_steps

log = logging.getLogger(__name__)


def check_measurable(num_proc: int) -> None:
    """Raise UserError for ranks that have nobody to talk to."""
    if num_proc < 2:
        raise UserError(
            "--at: one rank has no other to exchange gradients with, which is to be measured: give Spark two task "
            "slots or more, on two hosts if the training is to have several"
        )


def advise(
    spark: SparkSession, settings: ResolvedTraining, manifest: Manifest, num_proc: int,
    numbers: Sequence[int], environment: dict[str, str],
) -> list[Forecast]:  # fmt: skip
    """Measure on `num_proc` ranks; say and return how the training would go at each of `numbers`.

    `environment`: of ranks. Raises as `run_ranks` does.
    """
    config = settings.config
    with ProgressLine() as line:

        def take(event: Event) -> None:
            match event:
                case Waiting():
                    line.show(waiting_text(event))
                case Starting():
                    line.show(f"starting {event.what} on all ranks")

        found = merged(
            run_ranks(
                spark, measure_steps, (settings,), num_proc, take, environment, config.stall_seconds,
                config.wait_seconds,
            )
        )  # fmt: skip
    splits = manifest.splits
    sizes = Sizes(splits["train"].images, splits["val"].images, config.epochs)
    fusion = (config.fusion_mb or 0) << 20
    forecasts = [forecast(found, ranks, sizes, fusion=fusion) for ranks in sorted(set(numbers))]
    log.info("%s\n%s", measured_text(found), table(forecasts))
    recipe = Recipe(
        config.scale_learning_rate,
        config.learning_rate,
        config.compression,
        config.fusion_mb,
        config.cache_mb,
        config.sync_batch_norm,
    )
    for text in advice(found, forecasts, sizes, recipe):
        log.info("- %s", spoken(text))
    return forecasts
