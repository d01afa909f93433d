"""From scores to the tables of an evaluation. Runs on the driver.

In: the predictions of a split, those of a validation split, those of another model. Out:
``OUT/metrics``, ``OUT/subgroups`` and ``OUT/comparison``, written and told.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from chexspark.errors import UserError, listed, spoken
from chexspark.evaluation import tables
from chexspark.evaluation.comparison import comparison_records
from chexspark.evaluation.metrics import Fitted, Measured, fit, metric_records
from chexspark.evaluation.predictions import labelled_scores, scores_of
from chexspark.evaluation.scores import Scores, read_scores
from chexspark.evaluation.studies import STUDY, by_study
from chexspark.evaluation.subgroups import Group, groups_of
from chexspark.evaluation.tables import ComparisonRow
from chexspark.findings import shared
from chexspark.run.folder import COMPARISON, METRICS, SUBGROUPS, RunFolder, run_folder

log = logging.getLogger(__name__)

GIVEN = "given"  # the split of scores that come as a file


@dataclass(frozen=True)
class Validation:
    """The predictions of a validation split, of all findings that are scored."""

    table: pd.DataFrame
    name: str  # in words


@dataclass(frozen=True)
class Scored:
    """The predictions of a split."""

    split: str  # of the store, or GIVEN
    table: pd.DataFrame  # in the form of ``RUN/predictions``
    findings: tuple[str, ...]
    validation: Validation | None  # where thresholds and scaling come from
    left_out: str | None = None  # which other findings there were, in words
    # Name → findings, whose mean stands beside that of all.
    means: Mapping[str, Sequence[str]] = field(default_factory=dict)
    aggregate: str | None = None  # rows are studies: the mean or max of their images' scores


@dataclass(frozen=True)
class Against:
    """The predictions of another model."""

    name: str  # a path, or words
    table: pd.DataFrame  # image_index and scores
    findings: tuple[str, ...]


def measure(scored: Scored, resamples: int) -> tuple[list[Group], Measured]:
    """Metrics of all images and of the groups of patients that the table knows.

    `resamples`: of the patients, for the intervals.
    """
    fitted: list[Fitted] | None = None
    if scored.validation is not None:
        validation = labelled_scores(scored.validation.table, scored.findings)
        fitted = fit(validation.labels, validation.scores, validation.patients)
    groups = groups_of(scored.table)
    rows = labelled_scores(scored.table, scored.findings)
    means = {n: f for n, f in scored.means.items() if set(f) <= set(scored.findings)}
    return groups, metric_records(rows, resamples, groups, fitted, means=means)


def write_metrics(scored: Scored, resamples: int, out: RunFolder, told: bool = True) -> Measured:
    """Write metrics and subgroups, say what came of it (unless not `told`), and return it."""
    groups, measured = measure(scored, resamples)
    tables.write_split(out, METRICS, scored.split, measured.whole)
    rows = tables.subgroup_rows(groups, measured.groups)
    tables.write_split(out, SUBGROUPS, scored.split, rows)
    fitted_on = None if scored.validation is None else scored.validation.name
    warnings = tables.warnings_text(groups, measured.groups)
    facts = tables.read_evaluation(out)[scored.split]
    tables.write_evaluation(out, scored.split, {
        **facts, "metrics": True, "bootstrap": resamples, "fitted_on": fitted_on,
        "left_out": scored.left_out, "warnings": warnings,
        "by": STUDY if scored.aggregate else "image", "aggregate": scored.aggregate,
    })  # fmt: skip
    if not told:
        return measured
    log.info("%s", tables.metrics_text(measured.whole, scored.split))
    if facts.get("synthetic"):
        log.warning("note: %s", tables.SYNTHETIC)
    for line in warnings:
        log.warning("%s", line)
    chosen = f"thresholds and scaling: from {fitted_on}"
    if fitted_on is None:
        chosen = "no thresholds and no scaling, which need a validation split"
        chosen += " (--validation-predictions)" * (scored.split == GIVEN)
    log.info("%s\n%s", spoken(chosen), out.table(METRICS))
    return measured


def read_against(
    given: Scores,
    split: str,
    findings: tuple[str, ...],
    fingerprint: str | None,
    aggregate: str | None,
) -> Against:
    """The scores of the other model: an evaluated run's of the same split, or scores as they are.

    `fingerprint`: of the store that is scored, if it is one. `aggregate`: where rows are studies. Raises UserError where there are none of
    these images or of any of these findings.
    """
    name = given if isinstance(given, str) else "a DataFrame"
    place = run_folder(given) if isinstance(given, str) else None
    if place is None or not (place.lineage.is_file() or place.evaluation.is_file()):
        if aggregate:
            raise UserError(
                f"--against={name} with --by=study: give an evaluated run, whose images have studies"
            )
        found = read_scores(given, "--against", findings)
        return Against(name, found.table, found.findings)
    facts = tables.read_evaluation(place)
    for one in (split, GIVEN):
        if one not in facts or (
            fingerprint and facts[one].get("store_fingerprint") not in (None, fingerprint)
        ):
            continue
        theirs = shared([findings, facts[one]["findings"]])
        if not theirs:
            raise UserError(
                f"--against={place} was scored on {listed(facts[one]['findings'])}, none of which is "
                f"scored here ({listed(findings)})"
            )
        table = tables.read_predictions(place, one, theirs)
        if table is not None and aggregate:
            table = by_study(table, theirs, aggregate, f"--against={place}")
        if table is not None:
            return Against(name, table, theirs)
    raise UserError(
        f"--against={place} has no predictions of the {split} split of this store: run "
        f"chexspark evaluate --run={place} first"
    )


def write_comparison(scored: Scored, against: Against, resamples: int, out: RunFolder) -> None:
    """Compare with another model on the images and findings that both have: written and told.

    Raises UserError where they have no image in common.
    """
    findings, name = against.findings, against.name
    key = ["patient_id", "study_id"] if scored.aggregate else ["image_index"]
    table = scored.table.set_index(key, drop=False)
    other = against.table.set_index(key)
    both = table[table.index.isin(other.index)]
    if both.empty:
        raise UserError(f"--against={name} has none of the images that were scored")
    if len(both) < max(len(table), len(other)):
        log.warning("note: compared on the %s %s that both have (of %s and %s)", f"{len(both):,}",
                    "studies" if scored.aggregate else "images",
                    *(f"{len(each):,}" for each in (table, other)))  # fmt: skip
    left_out = [finding for finding in scored.findings if finding not in findings]
    if left_out:
        log.warning("note: compared without %s, of which %s has no scores", listed(left_out), name)
    second = scores_of(other.loc[both.index], findings)
    records = comparison_records(labelled_scores(both, findings), second, resamples)
    rows = [ComparisonRow(**record, images=len(both), other=name) for record in records]
    tables.write_split(out, COMPARISON, scored.split, rows)
    log.info("%s", tables.comparison_text(records, name))
