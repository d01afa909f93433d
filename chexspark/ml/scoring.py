"""Images of a DataFrame's rows scored in Spark tasks, so many at a time. Runs on the driver and in tasks.

In: a column of images. Out: a column of structs: why an image could not be used, else its probabilities, and
whether the model has seen its patient. All other columns stay where they are, in the JVM.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from chexspark.errors import RunFailedError
from chexspark.evaluation.inference import Scorer, probabilities_of
from chexspark.ingestion.frame_columns import Kind
from chexspark.ingestion.frame_task import image_of
from chexspark.ingestion.image_errors import BadImageError
from chexspark.preparation import Preparation
from chexspark.run.seen_patients import SeenPatients, slow_hash

IMAGES = 64  # that are decoded and then scored together
REASON, PROBABILITIES, SEEN = "reason", "probabilities", "seen"
Scored = tuple[str | None, np.ndarray | None]  # reason, probabilities (findings,): one of the two
SCORED = f"{REASON} string, {PROBABILITIES} array<double>, {SEEN} boolean"


@dataclass(frozen=True)
class FrameScoring:
    """What a task needs beside the rows; plain values."""

    scorer: Scorer
    preparation: Preparation  # of the images that the model takes
    kind: Kind
    fail: bool  # an image that cannot be used ends the job
    seen: SeenPatients | None = None  # None: nobody asks

    def batch(self, images: pd.Series | pd.DataFrame) -> list[Scored]:
        """What comes of a batch of images, a few at a time. Raises RunFailedError with `fail`."""
        rows = images_of(images, self.kind)
        return [
            one for at in range(0, len(rows), IMAGES) for one in self.scored(rows[at : at + IMAGES])
        ]

    def scored(self, images: list[Any]) -> list[Scored]:
        """See `batch`, which raises the same."""
        found: list[Scored] = []
        pixels = []
        for image in images:
            try:
                pixels.append(image_of(image, self.kind, self.preparation).pixels)
                found.append((None, None))
            except BadImageError as error:
                if self.fail:
                    raise RunFailedError(
                        f"an image cannot be used: {error} (handleInvalid: keep and skip go on)"
                    ) from error
                found.append((str(error), None))
        scores = iter(probabilities_of(np.stack(pixels), self.scorer) if pixels else ())
        return [(reason, None if reason else next(scores)) for reason, _ in found]

    def patient_seen(self, patient: str | None) -> bool | None:
        """Whether the model has seen a patient, by its salted hash; None where nobody can know."""
        if self.seen is None or patient is None or self.seen.salt is None:
            return None
        return slow_hash(self.seen.salt, patient) in self.seen.splits


def images_of(part: pd.Series | pd.DataFrame, kind: Kind) -> list[Any]:
    """The images of a batch as `image_of` takes them: Spark makes a table of structs."""
    if kind == "struct":
        rows = part.to_dict("records")
        return [None if row["data"] is None else row for row in rows]
    return list(part)


def probabilities_udf(scoring: FrameScoring) -> Any:
    """A function of Spark from images to probabilities, ``array<double>``; null where there is none."""

    def score(images: Any) -> pd.Series:
        return pd.Series([found for _, found in scoring.batch(images)])

    score.__annotations__ = {"images": series_of(scoring.kind), "return": pd.Series}
    return F.pandas_udf(score, "array<double>").asNondeterministic()


def scored_udf(scoring: FrameScoring) -> Any:
    """A function of Spark from images and patients to `SCORED`.

    Spark is told that it is not deterministic, so that it never scores an image twice.
    """

    def score(images: Any, patients: pd.Series) -> pd.DataFrame:
        rows = scoring.batch(images)
        return pd.DataFrame(
            {
                REASON: [reason for reason, _ in rows],
                PROBABILITIES: [found for _, found in rows],
                SEEN: [scoring.patient_seen(patient) for patient in patients],
            }
        )

    score.__annotations__ = {
        "images": series_of(scoring.kind),
        "patients": pd.Series,
        "return": pd.DataFrame,
    }
    return F.pandas_udf(score, SCORED).asNondeterministic()


def series_of(kind: Kind) -> type:
    """What a task has of a column of images: of structs, a table."""
    return pd.DataFrame if kind == "struct" else pd.Series
