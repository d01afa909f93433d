"""What every suite of the benchmark takes and hands back. Runs on the driver."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from chexspark.config import BenchmarkConfig


@dataclass(frozen=True)
class Work:
    """What a suite is to measure, and with what."""

    spark: SparkSession
    spark_was_there: bool  # it is the user's
    folder: Path  # local, empty, gone at the end
    config: BenchmarkConfig
    images: tuple[Path, ...]  # full-size PNG files; none: synthetic ones are to be taken
    count: int  # of images
    size: int  # pixels


@dataclass(frozen=True)
class Measured:
    """What a suite found, the table of it, and its chart, SVG, or page, HTML, if it has one."""

    found: Mapping[str, Any]  # JSON
    text: str
    chart: str | None = None
    page: str | None = None
