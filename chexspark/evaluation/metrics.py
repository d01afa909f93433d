"""Metrics of pooled predictions, for all rows and for groups of them. Pure; runs anywhere.

In: labels (rows, findings) of 1, 0 or −1, scores of the same shape, the patient of each row, and what
was fitted on the validation split. Out: one record per finding and one for their mean, of each group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np

from chexspark.auroc import mean_auroc
from chexspark.evaluation import calibration, thresholds
from chexspark.evaluation.delong import NORMAL_95, delong_variance
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.ranking import Draws, bootstrap, interval, rankings
from chexspark.evaluation.subgroups import LEVEL, MIN_PATIENTS, Group, falls_behind
from chexspark.findings import MEAN


class _Finding(TypedDict):
    finding: str  # or MEAN


class Ranking(TypedDict):
    """How the scores rank, with 95 % intervals; None where not defined."""

    auroc: float | None
    auroc_low: float | None  # from resampled patients
    auroc_high: float | None
    delong_variance: float | None
    delong_low: float | None
    delong_high: float | None
    average_precision: float | None
    average_precision_low: float | None
    average_precision_high: float | None


class Decisions(TypedDict):
    """Each rule's threshold, from validation, and what comes of it; None where not defined."""

    threshold_youden: float | None
    sensitivity_youden: float | None
    specificity_youden: float | None
    ppv_youden: float | None
    npv_youden: float | None
    threshold_sens90: float | None
    sensitivity_sens90: float | None
    specificity_sens90: float | None
    ppv_sens90: float | None
    npv_sens90: float | None


class Calibration(TypedDict):
    """What the probabilities are worth, before and after scaling; None where not defined."""

    brier: float | None
    ece: float | None
    temperature: float | None  # from validation
    brier_scaled: float | None
    ece_scaled: float | None


class Counts(TypedDict):
    """Images by label; None in the row of the mean."""

    positives: int | None
    negatives: int | None
    unknown: int | None


class Metric(_Finding, Ranking, Decisions, Calibration, Counts):
    """A row of ``metrics``: one finding, or their mean."""

    rough: bool  # the interval is rough, and no test is made: the rarer class has few patients
    note: str  # why something is not defined


class Difference(TypedDict):
    """A group's AUROC minus that of all rows; None where it is not tested."""

    difference: float | None
    difference_low: float | None  # 95 % interval
    difference_high: float | None
    p_behind: float | None  # one-sided, corrected for all tests
    behind: bool  # by more than chance


class GroupMetric(Metric, Difference):
    """A `Metric` of a group, and how it differs from that of all rows."""


class Measured(NamedTuple):
    """The records of all rows, and of each group."""

    whole: list[Metric]
    groups: list[list[GroupMetric]]


class Ranked(NamedTuple):
    """How one finding's scores rank, and what to say of it."""

    ranking: Ranking
    note: str = ""
    rough: bool = False


NO_RANKING = Ranking(
    auroc=None, auroc_low=None, auroc_high=None, delong_variance=None, delong_low=None,
    delong_high=None, average_precision=None, average_precision_low=None, average_precision_high=None,
)  # fmt: skip
NO_CALIBRATION = Calibration(
    brier=None, ece=None, temperature=None, brier_scaled=None, ece_scaled=None
)
NO_DIFFERENCE = Difference(
    difference=None, difference_low=None, difference_high=None, p_behind=None, behind=False
)


@dataclass(frozen=True)
class Fitted:
    """What the validation split says of one finding."""

    thresholds: thresholds.Thresholds
    temperature: float | None
    note: str = ""


NOT_FITTED = Fitted(thresholds.NO_THRESHOLDS, None)


def fit(labels: np.ndarray, scores: np.ndarray) -> list[Fitted]:
    """Thresholds and temperature of each finding, from the validation split.

    `labels`: int8 (rows, findings) of 1, 0 or −1; `scores`: float64 (rows, findings).
    """
    fitted = []
    for i in range(labels.shape[1]):
        known = labels[:, i] >= 0
        truth, score = labels[known, i], scores[known, i]
        if not 0 < truth.sum() < len(truth):
            lacking = "negative" if truth.sum() else "positive"
            note = f"no thresholds, no temperature: validation has no {lacking}"
            fitted.append(Fitted(thresholds.NO_THRESHOLDS, None, note))
            continue
        temperature = None
        if calibration.are_probabilities(score):
            temperature = calibration.fit_temperature(truth, score)
        chosen = thresholds.choose_thresholds(truth, score)
        notes = []
        if chosen["youden"] is None:
            notes.append("no Youden threshold: none beats chance")
        if temperature is None and calibration.are_probabilities(score):
            notes.append("no temperature: validation asks for an endless one")
        fitted.append(Fitted(chosen, temperature, "; ".join(notes)))
    return fitted


def metric_records(
    rows: LabelledScores, resamples: int, groups: Sequence[Group] = (),
    fitted: list[Fitted] | None = None, seed: int = 0,
) -> Measured:  # fmt: skip
    """A record of each finding and one of their mean, of all rows and of each of `groups`.

    What is not defined is None, and `note` says why. `resamples`: of the patients, for the intervals;
    `fitted`: per finding. Raises ValueError for scores that are no numbers.
    """
    if not np.isfinite(rows.scores).all():
        raise ValueError(f"{(~np.isfinite(rows.scores)).sum()} scores are not numbers")
    masks = [np.ones(len(rows.labels), bool), *(group.rows for group in groups)]
    draws = bootstrap(rows.labels, rows.scores, rows.patients, resamples, masks, seed)
    # Whether a column holds probabilities is a matter of the column, not of a group's part of it.
    calibrated = [calibration.are_probabilities(column) for column in rows.scores.T]
    fits = fitted or [NOT_FITTED] * len(rows.findings)
    whole, *parts = [
        group_records(
            rows.part(mask), Draws(draws.aurocs[g], draws.precisions[g]), fits, calibrated
        )
        for g, mask in enumerate(masks)
    ]
    differences = differences_from_all(whole, parts, draws.aurocs)
    return Measured(whole, [
        [GroupMetric(**record, **difference) for record, difference in zip(*pair, strict=True)]
        for pair in zip(parts, differences, strict=True)
    ])  # fmt: skip


def group_records(
    rows: LabelledScores, draws: Draws, fitted: list[Fitted], calibrated: list[bool]
) -> list[Metric]:
    """The records of one group of rows. `draws`: (resamples, findings) of that group."""
    aurocs, precisions = rankings(rows.labels, rows.scores)
    records = []
    for i, finding in enumerate(rows.findings):
        known = rows.labels[:, i] >= 0
        truth, score, patients = rows.labels[known, i], rows.scores[known, i], rows.patients[known]
        positives = int(truth.sum())
        counts = Counts(positives=positives, negatives=len(truth) - positives,
                        unknown=int((~known).sum()))  # fmt: skip
        if np.isnan(aurocs[i]):
            lacking = "negative" if positives else "positive"
            ranked = Ranked(NO_RANKING, f"no AUROC: there is no {lacking}")
        else:
            point = float(aurocs[i]), float(precisions[i])
            mine = Draws(draws.aurocs[:, i], draws.precisions[:, i])
            ranked = ranked_with_intervals(point, truth, score, patients, mine)
        notes, calibrations = [ranked.note], NO_CALIBRATION
        if len(truth):
            notes.append(fitted[i].note)
            if calibrated[i]:
                calibrations = calibration_of(truth, score, fitted[i].temperature)
            else:
                notes.append("no calibration: scores outside 0-1 are no probabilities")
        records.append(Metric(
            finding=finding, **ranked.ranking, **decisions_of(truth, score, fitted[i].thresholds),
            **calibrations, **counts, rough=ranked.rough, note="; ".join(filter(None, notes)),
        ))  # fmt: skip
    return [*records, mean_record(records, aurocs, draws, rows.patients)]


def ranked_with_intervals(
    point: tuple[float, float], truth: np.ndarray, score: np.ndarray, patients: np.ndarray,
    draws: Draws,
) -> Ranked:  # fmt: skip
    """The 95 % intervals and DeLong's variance of a finding, where they mean something.

    `point`: AUROC and average precision; `truth` 1 or 0, `score` and `patients`: (rows,) of known
    rows; `draws`: (resamples,) of this finding.
    """
    auroc, precision = point
    ranking: Ranking = {**NO_RANKING, "auroc": auroc, "average_precision": precision}
    number = {name: len(np.unique(patients[truth == value])) for name, value in
              (("positive", 1), ("negative", 0))}  # fmt: skip
    rarer = min(number, key=lambda name: number[name])
    if len(np.unique(patients)) < 2:
        return Ranked(ranking, "no interval: all images are of one patient")
    if number[rarer] < 2:
        return Ranked(ranking, f"no interval: all {rarer}s are of one patient")
    if score.min() == score.max():
        return Ranked(ranking, "all scores are equal: nothing is ranked")
    if auroc in (0.0, 1.0):
        return Ranked(ranking, "no interval: the scores part the classes fully")
    of_auroc, of_precision = interval(draws.aurocs), interval(draws.precisions)
    if of_auroc:
        ranking["auroc_low"], ranking["auroc_high"] = of_auroc
    if of_precision:
        ranking["average_precision_low"], ranking["average_precision_high"] = of_precision
    variance = delong_variance(truth, score)
    if variance is not None:
        half = NORMAL_95 * variance**0.5
        ranking["delong_variance"] = variance
        ranking["delong_low"] = max(0.0, auroc - half)
        ranking["delong_high"] = min(1.0, auroc + half)
    if number[rarer] < MIN_PATIENTS:
        note = f"rough interval: only {number[rarer]} patients are {rarer}"
        return Ranked(ranking, note, rough=True)
    return Ranked(ranking)


def decisions_of(truth: np.ndarray, score: np.ndarray, at: thresholds.Thresholds) -> Decisions:
    """What comes of each rule's threshold. `truth` 1 or 0, `score`: (rows,) of known rows."""
    youden, sens90 = at["youden"], at["sens90"]
    by_youden, by_sens90 = point_at(truth, score, youden), point_at(truth, score, sens90)
    return Decisions(
        threshold_youden=youden if len(truth) else None,
        sensitivity_youden=by_youden["sensitivity"], specificity_youden=by_youden["specificity"],
        ppv_youden=by_youden["ppv"], npv_youden=by_youden["npv"],
        threshold_sens90=sens90 if len(truth) else None,
        sensitivity_sens90=by_sens90["sensitivity"], specificity_sens90=by_sens90["specificity"],
        ppv_sens90=by_sens90["ppv"], npv_sens90=by_sens90["npv"],
    )  # fmt: skip


def point_at(
    truth: np.ndarray, score: np.ndarray, threshold: float | None
) -> thresholds.OperatingPoint:
    """The operating point at a threshold; of nothing, where there is no threshold or no row.

    `truth` 1 or 0, `score`: (rows,) of known rows.
    """
    if threshold is None or not len(truth):
        return thresholds.NO_POINT
    return thresholds.operating_point(truth, score, threshold)


def calibration_of(truth: np.ndarray, score: np.ndarray, temperature: float | None) -> Calibration:
    """Brier score and calibration error, before and after scaling. (rows,) of known rows."""
    scaled = None if temperature is None else calibration.scale(score, temperature)
    return Calibration(
        brier=calibration.brier(truth, score),
        ece=calibration.calibration_error(truth, score),
        temperature=temperature,
        brier_scaled=None if scaled is None else calibration.brier(truth, scaled),
        ece_scaled=None if scaled is None else calibration.calibration_error(truth, scaled),
    )


def mean_record(
    records: list[Metric], aurocs: np.ndarray, draws: Draws, patients: np.ndarray
) -> Metric:
    """The mean over the findings that have the figure; of AUROC, its own interval.

    `aurocs`: (findings,), NaN where not defined; `draws`: (resamples, findings); `patients`: (rows,).
    """
    there = ~np.isnan(aurocs)
    left_out = [r["finding"] for r, is_there in zip(records, there, strict=True) if not is_there]
    notes = ["without " + ", ".join(left_out)] if left_out else []
    ranking: Ranking = {**NO_RANKING, "average_precision": mean_of(records, "average_precision")}
    if there.any():
        ranking["auroc"] = mean_auroc(aurocs)
        of_auroc, of_precision = (interval(part[:, there].mean(axis=1)) for part in draws)
        if len(np.unique(patients)) < 2:
            notes.append("no interval: all images are of one patient")
        elif ranking["auroc"] in (0.0, 1.0):
            notes.append("no interval: the scores part the classes fully")
        elif of_auroc is None or of_precision is None:
            notes.append("no interval: most resamples lack a class of some finding")
        else:
            ranking["auroc_low"], ranking["auroc_high"] = of_auroc
            ranking["average_precision_low"], ranking["average_precision_high"] = of_precision
    return Metric(
        finding=MEAN, **ranking, **mean_decisions(records), **mean_calibration(records),
        positives=None, negatives=None, unknown=None, rough=False, note="; ".join(notes),
    )  # fmt: skip


def mean_of(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a figure over the records that have it; None where none has."""
    values = [record[name] for record in records if record[name] is not None]
    return float(np.mean(values)) if values else None


def mean_decisions(records: list[Metric]) -> Decisions:
    """The mean of each figure but the thresholds, which are of different scales."""
    return Decisions(
        threshold_youden=None,
        sensitivity_youden=mean_of(records, "sensitivity_youden"),
        specificity_youden=mean_of(records, "specificity_youden"),
        ppv_youden=mean_of(records, "ppv_youden"),
        npv_youden=mean_of(records, "npv_youden"),
        threshold_sens90=None,
        sensitivity_sens90=mean_of(records, "sensitivity_sens90"),
        specificity_sens90=mean_of(records, "specificity_sens90"),
        ppv_sens90=mean_of(records, "ppv_sens90"),
        npv_sens90=mean_of(records, "npv_sens90"),
    )


def mean_calibration(records: list[Metric]) -> Calibration:
    """The means; those after scaling are over the same findings as those before.

    A finding without a temperature stays as it is.
    """

    def scaled(before: str, after: str) -> float | None:
        if all(record[after] is None for record in figures):
            return None
        return mean_of(
            [{before: r[before] if r[after] is None else r[after]} for r in figures], before
        )

    figures: Sequence[Mapping[str, Any]] = records
    return Calibration(
        brier=mean_of(records, "brier"), ece=mean_of(records, "ece"), temperature=None,
        brier_scaled=scaled("brier", "brier_scaled"), ece_scaled=scaled("ece", "ece_scaled"),
    )  # fmt: skip


def differences_from_all(
    whole: list[Metric], parts: list[list[Metric]], aurocs: np.ndarray
) -> list[list[Difference]]:
    """How each group's AUROCs differ from those of all rows, and the test of each.

    `aurocs`: (1 + groups, resamples, findings), the first of all rows.
    """
    tested: dict[tuple[int, int], tuple[float, np.ndarray]] = {}
    for g, records in enumerate(parts):
        for i, (record, of_all) in enumerate(zip(records, whole, strict=True)):
            auroc, auroc_of_all = record["auroc"], of_all["auroc"]
            if auroc is None or auroc_of_all is None or record["auroc_low"] is None:
                continue
            if record["rough"]:
                continue
            draws = aurocs[g + 1] - aurocs[0]
            if record["finding"] != MEAN:
                draws = draws[:, i : i + 1]
            elif defined(records) == defined(whole):
                draws = draws[:, defined(whole)]
            else:  # the mean of a group that lacks findings is the mean of other things
                continue
            tested[g, i] = auroc - auroc_of_all, draws.mean(axis=1)
    found = [[NO_DIFFERENCE] * len(records) for records in parts]
    if tested:
        differences, of_draws = zip(*tested.values(), strict=True)
        p = falls_behind(np.array(differences), np.stack(of_draws))
        for (g, i), value in zip(tested, p, strict=True):
            found[g][i] = difference_of(*tested[g, i], None if np.isnan(value) else float(value))
    return found


def difference_of(difference: float, draws: np.ndarray, p: float | None) -> Difference:
    """A difference with the interval of its `draws` (resamples,) and the result of its test."""
    low, high = interval(draws) or (None, None)
    return Difference(
        difference=difference, difference_low=low, difference_high=high, p_behind=p,
        behind=p is not None and p < LEVEL,
    )  # fmt: skip


def defined(records: list[Metric]) -> list[bool]:
    """Which findings of a group have an AUROC."""
    return [record["auroc"] is not None for record in records[:-1]]
