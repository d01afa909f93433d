"""Several models' predictions as one, each with its weight. Pure numpy, but for the tables that it reads and writes;
runs on the driver.

In: tables of predictions of the same images, one per model. Out: weights fitted on validation images, and the table of
the weighted mean probabilities.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession
from scipy.optimize import minimize

from chexspark.evaluation.inference import Scorer
from chexspark.evaluation.predictions import labels_of, probability_column, scores_of
from chexspark.evaluation.scoring import Scoring, earlier_scores, score, write_predictions
from chexspark.evaluation.store_split import StoreSplit
from chexspark.findings import UNKNOWN
from chexspark.run.folder import RunFolder, run_folder

LEAST = 1e-7  # of a probability, in its logarithm


def fit_weights(labels: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
    """The weights, float64 (models,), not negative, of sum 1, whose mean probability has the lowest cross-entropy.

    `labels`: int8 (rows, findings), 1, 0 or −1 for unknown, which do not count; `scores`: probabilities of each model,
    float64 (rows, findings). The cross-entropy of a weighted mean is convex in the weights: there is one minimum.
    """
    known = labels != UNKNOWN
    right = np.stack([np.where(labels == 1, each, 1 - each)[known] for each in scores])
    right = np.clip(right, LEAST, 1.0)  # the probability that each gives to what is so

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ right
        return -np.log(mixed).mean(), -(right / mixed).mean(axis=1)

    equal = np.full(len(scores), 1 / len(scores))
    found = minimize(
        loss, equal, jac=True, method="SLSQP", bounds=[(0.0, 1.0)] * len(scores),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 200},
    )  # fmt: skip
    weights = np.clip(found.x, 0, None)
    weights /= weights.sum()
    return weights if loss(weights)[0] < loss(equal)[0] else equal


def blended(
    tables: Sequence[pd.DataFrame], weights: Sequence[float], findings: Sequence[str]
) -> pd.DataFrame:
    """One table of predictions, the first one's but for its probabilities, which are the weighted means.

    Raises ValueError where the tables are of other images.
    """
    first = tables[0]
    for other in tables[1:]:
        if not other["image_index"].equals(first["image_index"]):
            raise ValueError("the predictions are of different images")
    mean = sum(
        weight * scores_of(table, findings) for weight, table in zip(weights, tables, strict=True)
    )
    columns = [probability_column(finding) for finding in findings]
    return first.assign(**dict(zip(columns, np.transpose(mean), strict=True)))


def scores_of_each(spark: SparkSession, split: StoreSplit, scoring: Scoring) -> list[pd.DataFrame]:
    """The predictions of each model alone: those that its run has, where they are the same; else made now, in
    ``OUT/members``. Raises UserError as `score` does."""
    found = []
    for number, (name, model) in enumerate(zip(scoring.runs, scoring.scorer.models, strict=True)):
        scorer = Scorer(
            (model,), scoring.scorer.findings, scoring.scorer.tta, scoring.scorer.batch_size
        )
        aside = run_folder(str(scoring.out.place / "members" / str(number)))
        places: list[RunFolder] = [run_folder(name), aside]
        each = [Scoring((name,), scorer, place) for place in places]
        there = [earlier_scores(split, one) for one in each]
        table = next((table for table in there if table is not None), None)
        found.append(score(spark, split, each[-1], f" with {name}") if table is None else table)
    return found


def weights_of(tables: Sequence[pd.DataFrame], findings: Sequence[str]) -> tuple[float, ...]:
    """`fit_weights` of tables of the validation split."""
    labels, scores = labels_of(tables[0], findings), [scores_of(each, findings) for each in tables]
    return tuple(round(float(weight), 4) for weight in fit_weights(labels, scores))


def blend(split: StoreSplit, scoring: Scoring, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Write the weighted predictions of a split into ``OUT/predictions``, and return them."""
    table = blended(tables, scoring.weights, scoring.scorer.findings)
    return write_predictions(split, scoring, table.assign(run=" + ".join(scoring.runs)))
