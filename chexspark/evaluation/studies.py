"""From a row per image to a row per study. Pure; runs anywhere.

In: a table of predictions with study_id. Out: the same columns, a row per study: the label is what any of
its images has, the score the mean or the largest of its images'. A study is one of a patient's.
"""

from collections.abc import Sequence

import pandas as pd

from chexspark.errors import UserError
from chexspark.evaluation.predictions import label_column, probability_column
from chexspark.evaluation.tables import SplitFacts

STUDY = "study"
MEAN, MAX = "mean", "max"
KEY = ["patient_id", "study_id"]
IMAGES = "images"  # the column that counts a study's


def by_study(
    table: pd.DataFrame, findings: Sequence[str], aggregate: str, name: str = "--by=study"
) -> pd.DataFrame:
    """One row per study, sorted; an image without a study is one of its own.

    `table`: in the form of ``RUN/predictions``; `aggregate`: `MEAN` or `MAX` of the scores. Of labels
    that differ within a study 1 goes before 0, and 0 before −1 for unknown. Other columns are those of
    the first image, or null where its images differ. Raises UserError where no image has a study.
    """
    if "study_id" not in table or table["study_id"].isna().all():
        raise UserError(
            f"{name}: no image has a study: the label form needs study, or, of DICOM files, ingest "
            "--dicom-columns=study"
        )
    table = table.sort_values("image_index").reset_index(drop=True)
    study = table["study_id"].where(table["study_id"].notna(), table["image_index"])
    table = table.assign(**{KEY[0]: table[KEY[0]].astype(str), KEY[1]: study.astype(str)})
    scores, labels = map(probability_column, findings), map(label_column, findings)
    ways = (
        dict.fromkeys(labels, "max") | dict.fromkeys(scores, aggregate) | {"image_index": "first"}
    )
    rest = [name for name in table if name not in (*ways, *KEY)]
    grouped = table.groupby(KEY, sort=True)
    result = grouped.agg(ways | dict.fromkeys(rest, "first"))
    for name in rest:  # of several values none is the study's
        several = grouped[name].nunique(dropna=False) > 1
        result[name] = result[name].astype(object).where(~several, None)
    result[IMAGES] = grouped.size()
    return result.reset_index()[[*table.columns, IMAGES]]


def scored_rows(table: pd.DataFrame | None, facts: SplitFacts) -> pd.DataFrame | None:
    """The rows that the metrics are of, from a table of predictions: images, or studies."""
    if table is None or facts.get("by") != STUDY:
        return table
    return by_study(table, facts["findings"], facts["aggregate"] or MEAN)
