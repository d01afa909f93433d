"""Measurements that a user can repeat. Runs on the driver.

In: a suite's name. Out: its table on the screen, and ``OUT/<suite>.json`` with ``OUT/<suite>.svg`` or
``OUT/<suite>.html``. What is compared is measured in turn, round after round, in one run: ratios hold, on machines
that are shared too, better than any rate by itself.
"""

import json
import logging
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.benchmark.distribution import measure_distribution
from chexspark.benchmark.pipelines import measure_pipelines
from chexspark.benchmark.reading import measure_readers
from chexspark.benchmark.scaling import measure_scaling
from chexspark.benchmark.suite import Measured, Work
from chexspark.benchmark.training import measure_job_start, measure_loop
from chexspark.config import BenchmarkConfig
from chexspark.errors import UserError
from chexspark.session import has_session, start_session
from chexspark.storage import locate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """A suite, and what it measures on where nothing is said."""

    measure: Callable[[Work], Measured]
    count: int  # images
    size: int  # pixels


SUITES = {
    "reader": Suite(measure_readers, 4096, 256),
    "train": Suite(measure_loop, 128, 224),
    "start": Suite(measure_job_start, 800, 64),
    "scaling": Suite(measure_scaling, 1200, 64),
    "pipelines": Suite(measure_pipelines, 128, 224),
    "distribution": Suite(measure_distribution, 128, 64),
}


@takes(BenchmarkConfig)
def benchmark(spark: SparkSession | None, config: BenchmarkConfig) -> dict[str, Any]:
    """Run a suite and return what was measured. Raises UserError for what the user can mend."""
    out = locate(config.out)
    images = find_images(config.images)
    suite = SUITES[config.suite]
    count, size = config.count or suite.count, config.size or suite.size
    out.make_directory()
    was_there = spark is not None or has_session()
    spark = start_session(spark, "benchmark")
    with tempfile.TemporaryDirectory(prefix="chexspark-benchmark-") as folder:
        measured = suite.measure(
            Work(spark, was_there, Path(folder), config, tuple(images), count, size)
        )
    log.info(measured.text)
    found = {
        "images": config.images or "synthetic",
        "count": count,
        "size": size,
        "machine": machine(),
        **measured.found,
    }
    texts = {
        "json": json.dumps(found, indent=1) + "\n",
        "svg": measured.chart,
        "html": measured.page,
    }
    written = []
    for kind, text in texts.items():
        if text:
            written.append(out / f"{config.suite}.{kind}")
            written[-1].write_text(text)
    log.info("written: %s", ", ".join(map(str, written)))
    return found


def machine() -> dict[str, int | str | None]:
    """What was measured on."""
    return {"cores": psutil.cpu_count(), "processor": platform.machine()}


def find_images(folder: str | None) -> list[Path]:
    """The PNG files of a local folder. Raises UserError where there are none."""
    if folder is None:
        return []
    images = sorted(Path(folder).glob("*.png"))
    if not images:
        raise UserError(f"--images={folder}: there is no PNG file in this local folder")
    return images
