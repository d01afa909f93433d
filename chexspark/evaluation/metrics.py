"""Metrics of pooled predictions, for all rows and for groups of them. Pure; runs anywhere.

In: labels (rows, findings) of 1, 0 or −1, scores of the same shape, the patient of each row, and what
was fitted on the validation split. Out: one record per finding and one for their mean, of each group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np

from chexspark.auroc import auroc_per_finding, mean_auroc
from chexspark.evaluation import calibration, thresholds
from chexspark.evaluation.delong import NORMAL_95, delong_variance
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.ranking import Draws, bootstrap, interval, rankings
from chexspark.evaluation.subgroups import (
    MIN_PATIENTS,
    Difference,
    Group,
    Ranked,
    differences,
    rarer_patients,
)
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
    temperature: float | None  # from validation, as the scaling
    brier_temperature: float | None  # after temperature scaling
    ece_temperature: float | None
    scaling: str | None  # what was chosen: temperature, or platt
    slope: float | None  # scaled logit = slope · logit + intercept
    intercept: float | None
    brier_scaled: float | None  # after the scaling that was chosen
    ece_scaled: float | None


class Counts(TypedDict):
    """Images by label; None in the row of the mean."""

    positives: int | None
    negatives: int | None
    unknown: int | None


class Metric(_Finding, Ranking, Decisions, Calibration, Counts):
    """A row of ``metrics``: one finding, or their mean."""

    rough: bool  # the rarer class has few patients; in the row of the mean, that of some finding
    note: str  # why something is not defined


class GroupMetric(Metric, Difference):
    """A `Metric` of a group, and how it differs from that of its complement."""


class Measured(NamedTuple):
    """The records of all rows, and of each group."""

    whole: list[Metric]
    groups: list[list[GroupMetric]]


class Told(NamedTuple):
    """How one finding's scores rank, and what to say of it."""

    ranking: Ranking
    note: str = ""
    rough: bool = False


NO_RANKING = Ranking(
    auroc=None, auroc_low=None, auroc_high=None, delong_variance=None, delong_low=None,
    delong_high=None, average_precision=None, average_precision_low=None, average_precision_high=None,
)  # fmt: skip
NO_CALIBRATION = Calibration(
    brier=None, ece=None, temperature=None, brier_temperature=None, ece_temperature=None,
    scaling=None, slope=None, intercept=None, brier_scaled=None, ece_scaled=None,
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What the validation split says of one finding."""

    thresholds: thresholds.Thresholds
    chosen: calibration.Chosen
    note: str = ""


NOT_FITTED = Fitted(thresholds.NO_THRESHOLDS, calibration.NOT_SCALED)


def fit(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> list[Fitted]:
    """Thresholds and scaling of each finding, from the validation split.

    `labels`: int8 (rows, findings) of 1, 0 or −1; `scores`: float64 (rows, findings); `patients`: (rows,).
    """
    fitted = []
    for i in range(labels.shape[1]):
        known = labels[:, i] >= 0
        truth, score = labels[known, i], scores[known, i]
        if not 0 < truth.sum() < len(truth):
            lacking = "negative" if truth.sum() else "positive"
            note = f"no thresholds, no scaling: validation has no {lacking}"
            fitted.append(Fitted(thresholds.NO_THRESHOLDS, calibration.NOT_SCALED, note))
            continue
        chosen, notes = calibration.NOT_SCALED, []
        at = thresholds.choose_thresholds(truth, score)
        if at["youden"] is None:
            notes.append("no Youden threshold: none beats chance")
        if calibration.are_probabilities(score):
            chosen = calibration.choose_scaling(truth, score, patients[known])
            if chosen.temperature is None:
                notes.append("no temperature: validation asks for an endless one")
        fitted.append(Fitted(at, chosen, "; ".join(notes)))
    return fitted


def metric_records(
    rows: LabelledScores, resamples: int, groups: Sequence[Group] = (),
    fitted: list[Fitted] | None = None, seed: int = 0, means: Mapping[str, Sequence[str]] | None = None,
) -> Measured:  # fmt: skip
    """A record of each finding and one of their mean, of all rows and of each of `groups`.

    What is not defined is None, and `note` says why. `resamples`: of the patients, for the intervals;
    `fitted`: per finding; `means`: name → findings, of which all rows have a further mean each. Raises
    ValueError for scores that are no numbers.
    """
    if not np.isfinite(rows.scores).all():
        raise ValueError(f"{(~np.isfinite(rows.scores)).sum()} scores are not numbers")
    everybody = np.ones(len(rows.labels), bool)
    # By content: the complement of men may be women.
    masks = {mask.tobytes(): mask for mask in
             (everybody, *(group.rows for group in groups), *(group.others for group in groups))}  # fmt: skip
    every = list(masks.values())
    draws = bootstrap(rows.labels, rows.scores, rows.patients, resamples, every, seed)
    of_mask = {key: Draws(*(part[i] for part in draws)) for i, key in enumerate(masks)}
    # Whether a column holds probabilities is a matter of the column, not of a group's part of it.
    calibrated = [calibration.are_probabilities(column) for column in rows.scores.T]
    fits = fitted or [NOT_FITTED] * len(rows.findings)

    def records(mask: np.ndarray) -> list[Metric]:
        return group_records(rows.part(mask), of_mask[mask.tobytes()], fits, calibrated)

    _, patient = np.unique(rows.patients, return_inverse=True)  # numbers are quick to count
    ranked = {}
    for key, mask in masks.items():
        part = rows.part(mask)
        aurocs = auroc_per_finding(part.labels, part.scores)
        patients = rarer_patients(part.labels, patient[mask])
        ranked[key] = Ranked(aurocs, of_mask[key].aurocs, patients)
    pairs = [(ranked[group.rows.tobytes()], ranked[group.others.tobytes()]) for group in groups]
    found = differences(pairs)
    parts = []
    for group, of_group in zip(groups, found, strict=True):
        both = zip(records(group.rows), of_group, strict=True)
        parts.append([GroupMetric(**record, **difference) for record, difference in both])
    whole = records(everybody)
    of_all = of_mask[everybody.tobytes()]
    for name, findings in (means or {}).items():
        which = [rows.findings.index(finding) for finding in findings]
        drawn = Draws(*(part[:, which] for part in of_all))
        aurocs = ranked[everybody.tobytes()].aurocs[which]
        some = [whole[i] for i in which]
        whole.append(mean_record(some, aurocs, drawn, rows.patients, f"{MEAN} of {name}"))
    return Measured(whole, parts)


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
            ranked = Told(NO_RANKING, f"no AUROC: there is no {lacking}")
        else:
            point = float(aurocs[i]), float(precisions[i])
            mine = Draws(draws.aurocs[:, i], draws.precisions[:, i])
            ranked = ranked_with_intervals(point, truth, score, patients, mine)
        notes, calibrations = [ranked.note], NO_CALIBRATION
        if len(truth):
            notes.append(fitted[i].note)
            if calibrated[i]:
                calibrations = calibration_of(truth, score, fitted[i].chosen)
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
) -> Told:  # fmt: skip
    """The 95 % intervals and DeLong's variance of a finding, where they mean something.

    `point`: AUROC and average precision; `truth` 1 or 0, `score` and `patients`: (rows,) of known
    rows; `draws`: (resamples,) of this finding.
    """
    auroc, precision = point
    ranking: Ranking = {**NO_RANKING, "auroc": auroc, "average_precision": precision}
    number = {name: len(np.unique(patients[truth == value])) for name, value in
              (("positive", 1), ("negative", 0))}  # fmt: skip
    rarer = min(number, key=lambda name: number[name])
    rough = number[rarer] < MIN_PATIENTS
    if len(np.unique(patients)) < 2:
        return Told(ranking, "no interval: all images are of one patient", rough)
    if number[rarer] < 2:
        return Told(ranking, f"no interval: all {rarer}s are of one patient", rough)
    if score.min() == score.max():
        return Told(ranking, "all scores are equal: nothing is ranked", rough)
    if auroc in (0.0, 1.0):
        return Told(ranking, "no interval: the scores part the classes fully", rough)
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
    note = f"rough interval: only {number[rarer]} patients are {rarer}" if rough else ""
    return Told(ranking, note, rough)


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


def calibration_of(
    truth: np.ndarray, score: np.ndarray, chosen: calibration.Chosen
) -> Calibration:  # fmt: skip
    """Brier score and calibration error, before and after scaling. (rows,) of known rows."""

    def after(scaling: calibration.Scaling | None) -> tuple[float | None, float | None]:
        if scaling is None:
            return None, None
        scaled = calibration.scale(score, scaling)
        return calibration.brier(truth, scaled), calibration.calibration_error(truth, scaled)

    temperature, scaling = chosen.temperature, chosen.scaling
    by_temperature = after(None if temperature is None else calibration.Scaling(1 / temperature))
    by_chosen = after(scaling)
    return Calibration(
        brier=calibration.brier(truth, score), ece=calibration.calibration_error(truth, score),
        temperature=temperature, brier_temperature=by_temperature[0],
        ece_temperature=by_temperature[1], scaling=chosen.method,
        slope=None if scaling is None else scaling.slope,
        intercept=None if scaling is None else scaling.intercept,
        brier_scaled=by_chosen[0], ece_scaled=by_chosen[1],
    )  # fmt: skip


def mean_record(
    records: list[Metric],
    aurocs: np.ndarray,
    draws: Draws,
    patients: np.ndarray,
    name: str = MEAN,
) -> Metric:
    """The mean over the findings that have the figure; of AUROC, its own interval.

    `aurocs`: (findings,), NaN where not defined; `draws`: (resamples, findings); `patients`: (rows,).
    """
    there = ~np.isnan(aurocs)
    left_out = [r["finding"] for r, is_there in zip(records, there, strict=True) if not is_there]
    notes = ["without " + ", ".join(left_out)] if left_out else []
    rough = sum(r["rough"] for r in records)
    if rough:
        have = "has" if rough == 1 else "have"
        notes.append(
            f"rough: {rough} of its {there.sum()} findings {have} fewer than {MIN_PATIENTS} positive or "
            "negative patients"
        )
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
        finding=name, **ranking, **mean_decisions(records), **mean_calibration(records),
        positives=None, negatives=None, unknown=None, rough=rough > 0, note="; ".join(notes),
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

    A finding without a scaling stays as it is.
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
        brier_temperature=scaled("brier", "brier_temperature"),
        ece_temperature=scaled("ece", "ece_temperature"), scaling=None, slope=None, intercept=None,
        brier_scaled=scaled("brier", "brier_scaled"), ece_scaled=scaled("ece", "ece_scaled"),
    )  # fmt: skip
