"""The tables of an evaluation, as Parquet and as text. Runs on the driver.

In: records. Out: ``OUT/metrics``, ``OUT/subgroups``, ``OUT/comparison``, ``OUT/localisation`` and
``OUT/examples``, each a folder per split, so that one split stands beside another;
``OUT/evaluation.json``, which says of each split what was scored.
"""

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa

from chexspark.errors import UserError
from chexspark.evaluation.comparison import Comparison
from chexspark.evaluation.examples import ExampleRow
from chexspark.evaluation.localisation import Localisation
from chexspark.evaluation.metrics import GroupMetric, Metric
from chexspark.evaluation.predictions import label_column, probability_column
from chexspark.evaluation.subgroups import Difference, Group
from chexspark.findings import MEAN, is_mean, names_fault, of_file
from chexspark.json_types import misfit
from chexspark.run.folder import (
    COMPARISON,
    EXAMPLES,
    LOCALISATION,
    METRICS,
    PREDICTIONS,
    SUBGROUPS,
    RunFolder,
)
from chexspark.store.schema import DAMAGE
from chexspark.text_files import one_line, read_json

AGAIN = "run chexspark evaluate again"
SMALLEST = 1e-6  # a probability that is still written without an exponent
SYNTHETIC = "these are synthetic X-rays: the figures say nothing about patients"


class _Group(TypedDict):
    subgroup_by: str  # an attribute, such as sex
    subgroup: str  # its value
    images: int


class SubgroupRow(_Group, Metric, Difference):
    """A row of ``subgroups``: one finding, or their mean, of one group."""


class ComparisonRow(Comparison):
    """A row of ``comparison``, and what it is of."""

    images: int  # that both have
    other: str  # what the other model's scores are called


# The rows of each table but the predictions, whose columns are of their findings.
ROWS: dict[str, Any] = {METRICS: Metric, SUBGROUPS: SubgroupRow, COMPARISON: ComparisonRow,
                        LOCALISATION: Localisation, EXAMPLES: ExampleRow}  # fmt: skip
# Columns that tables of earlier versions lack, and what holds there.
LATER = {"rough": False, "auroc_others": None, "compared": 0, "detectable": None}
LARGEST_SCORE = 1e15  # of anybody's scores, which may be other than probabilities
ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_(), bytes: pa.binary(),
    list[list[float]]: pa.list_(pa.list_(pa.float64())),
}  # fmt: skip


class SplitFacts(TypedDict, total=False):
    """What ``evaluation.json`` says of a split. Earlier versions left out `findings`: NIH's 14."""

    findings: list[str]  # that were scored, in the order of the tables
    left_out: str | None  # which others there were, in words
    # Of runs on a store.
    runs: list[str]
    models: list[str]  # SHA-256 of each run's best model
    tta: list[str]  # what was scored beside each image; earlier versions have `flip`
    weights: list[float]  # of the runs' models in an ensemble; none: all weigh the same
    store: str
    store_fingerprint: str
    split_hash: str
    official_split: bool  # of NIH's lists, or the label file's own
    data: dict[str, str]  # what the store holds, in words
    synthetic: bool  # whether images of the store say that they are; False where nobody looked
    seconds: float
    # Of scores that were there already.
    scores: str
    labels: str | None
    checked_against: list[str]  # runs whose training patients they do not share; none: not checked
    # Of both.
    images: int
    patients: int
    metrics: bool  # whether metrics are of these scores
    bootstrap: int  # resamples
    fitted_on: str | None  # where thresholds and scaling come from, in words
    warnings: list[str]
    by: str  # image or study: what a row of the metrics counts
    aggregate: str | None  # of a study's images: mean or max of their scores


# By their names; what the findings are is checked by their own rules.
SPLIT_FACTS = {n: k for n, k in typing.get_type_hints(SplitFacts).items() if n != "findings"}


def schema_of(row: type) -> pa.Schema:
    """The Parquet schema of a TypedDict's rows; ``| None`` is left out, since all may be null."""
    fields = []
    for name, kind in typing.get_type_hints(row).items():
        if isinstance(kind, types.UnionType):
            (kind,) = [each for each in typing.get_args(kind) if each is not types.NoneType]
        fields.append((name, ARROW_TYPES[kind]))
    return pa.schema(fields)


def subgroup_rows(
    groups: Sequence[Group], records: Sequence[Sequence[GroupMetric]]
) -> list[SubgroupRow]:
    """The rows of ``subgroups``: the records of each group."""
    return [
        SubgroupRow(subgroup_by=group.by, subgroup=group.name, images=int(group.rows.sum()), **record)
        for group, of_group in zip(groups, records, strict=True)
        for record in of_group
    ]  # fmt: skip


def write_split(
    out: RunFolder, name: str, split: str, rows: Sequence[Mapping[str, Any]]
) -> None:  # fmt: skip
    """Write the rows of one split in place of those that were there; other splits stay.

    `name`: one of `ROWS`.
    """
    folder = out.table(name, split)
    folder.delete_directory()
    folder.write_table(pa.Table.from_pylist(list(rows), schema_of(ROWS[name])))


def read_split(out: RunFolder, name: str, split: str) -> pd.DataFrame | None:
    """The rows of one split by `ROWS`, or None where it has none. Raises UserError for damage."""
    folder = out.table(name, split)
    if not folder.is_directory():
        return None
    schema = schema_of(ROWS[name])
    try:
        table = folder.read_table()
        if "temperature" in table.column_names and "scaling" not in table.column_names:
            table = scaled_by_temperature(table)
        for column, value in LATER.items():
            if column in schema.names and column not in table.column_names:
                filled = pa.array([value] * len(table), schema.field(column).type)
                table = table.append_column(column, filled)
        return table.select(schema.names).cast(schema).to_pandas()
    except DAMAGE as error:
        raise damaged(str(folder), error) from error


def scaled_by_temperature(table: pa.Table) -> pa.Table:
    """A table from before there was another scaling than by temperature, with the columns of today."""
    temperature = table["temperature"].to_pylist()
    there = [None if t is None else (1 / t, 0.0, "temperature") for t in temperature]
    for i, name in enumerate(("slope", "intercept", "scaling")):
        table = table.append_column(name, pa.array([each and each[i] for each in there]))
    for name in ("brier", "ece"):
        table = table.append_column(f"{name}_temperature", table[f"{name}_scaled"])
    return table


def read_predictions(out: RunFolder, split: str, findings: Sequence[str]) -> pd.DataFrame | None:
    """The predictions of one split, or None. Raises UserError for damage, and for a missing column."""
    folder = out.table(PREDICTIONS, split)
    if not folder.is_directory():
        return None
    needed = {"image_index": pa.string(), "patient_id": pa.string()}
    needed |= dict.fromkeys(map(probability_column, findings), pa.float64())
    needed |= dict.fromkeys(map(label_column, findings), pa.int8())
    try:
        table = folder.read_table()
        missing = [column for column in needed if column not in table.column_names]
        if missing:
            raise UserError(f"{folder} is damaged: it has no column {missing[0]}; {AGAIN}")
        fields = [pa.field(f.name, needed.get(f.name, f.type)) for f in table.schema]
        table = table.cast(pa.schema(fields))
        if not len(table) or any(table[name].null_count for name in needed):
            raise ValueError("it has no rows, or empty cells")
        for name in map(probability_column, findings):
            if not (np.abs(table[name].to_numpy()) <= LARGEST_SCORE).all():
                raise ValueError(f"{name} has what is no score")
        return table.to_pandas()
    except DAMAGE as error:
        raise damaged(str(folder), error) from error


def damaged(what: str, error: Exception) -> UserError:
    """What to say of a table that cannot be read."""
    return UserError(f"{what} is damaged ({one_line(error)[:200]}): {AGAIN}")


def read_evaluation(out: RunFolder) -> dict[str, SplitFacts]:
    """Split → what was scored, `findings` and `synthetic` always among it; empty where nothing was.

    Raises UserError for a damaged file.
    """
    if not out.evaluation.is_file():
        return {}
    found = read_json(out.evaluation, str(out.evaluation), "evaluate again, into a new --out")
    for split, facts in found.items():
        if not isinstance(facts, dict):
            raise UserError(f"{out.evaluation} is damaged: {split} is no object; {AGAIN}")
        facts["findings"] = of_file(facts)
        facts.setdefault("synthetic", False)
        mirrored = facts.pop("flip", False) is True  # of earlier versions
        facts.setdefault("tta", ["flip"] if mirrored else [])
        facts.setdefault("weights", [])
        if wrong := misfit(facts, SPLIT_FACTS):
            raise UserError(f"{out.evaluation} is damaged: {wrong}; {AGAIN}")
        fault = (
            names_fault(facts["findings"]) if isinstance(facts["findings"], list) else "is no list"
        )
        if fault:
            raise UserError(f"{out.evaluation} is damaged: findings of {split} {fault}; {AGAIN}")
    return found


def write_evaluation(out: RunFolder, split: str, facts: SplitFacts) -> None:
    """Say what was scored of one split, in place of what was said before; other splits stay."""
    out.place.make_directory()
    text = json.dumps(read_evaluation(out) | {split: facts}, indent=1) + "\n"
    out.evaluation.write_text(text)


def records_of(frame: pd.DataFrame | None) -> list[dict[str, Any]]:
    """A table's rows, with None for what is not there."""
    if frame is None:
        return []
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def width_of(records: Sequence[Mapping[str, Any]]) -> int:
    """The width of the first column, characters."""
    return max(20, *(len(record["finding"]) + 2 for record in records))


def metrics_text(records: Sequence[Metric], split: str) -> str:
    """The metrics as a table for the terminal."""
    width = width_of(records)
    with_auroc = sum(r["auroc"] is not None for r in records if not is_mean(r["finding"]))
    lines = [
        f"{'finding':<{width}}{'AUROC':>8}{'95 % interval':>17}{'precision':>11}{'positives':>11}  {split}"
    ]
    for r in records:
        positives = "" if r["positives"] is None else f"{r['positives']:,}"
        if r["auroc"] is None:
            lines.append(f"{r['finding']:<{width}}{'':>36}{positives:>11}  {r['note']}")
            continue
        between = "" if r["auroc_low"] is None else f"{r['auroc_low']:.3f} - {r['auroc_high']:.3f}"
        note = r["note"]
        if r["finding"] == MEAN:
            note = "; ".join(filter(None, [f"of {with_auroc} findings", note]))
        lines.append(
            f"{r['finding']:<{width}}{r['auroc']:>8.4f}{between:>17}{r['average_precision']:>11.4f}"
            f"{positives:>11}  {note}".rstrip()
        )
    return "\n".join(lines)


def warnings_text(
    groups: Sequence[Group], records: Sequence[Sequence[GroupMetric]]
) -> list[str]:  # fmt: skip
    """A line for each subgroup and finding that falls behind its complement by more than chance."""
    return [
        f"warning: {group}: {behind_text(r)} of the other images whose {group.by.replace('_', ' ')} is "
        f"known (p {r['p_behind']:.2g}, corrected for all tests)"
        for group, of_group in zip(groups, records, strict=True)
        for r in of_group
        if r["behind"]
    ]


def behind_text(record: GroupMetric) -> str:
    """By how much the group of a record falls behind, in words."""
    others, gap = record["auroc_others"] or 0.0, -(record["difference"] or 0.0)
    what = f"AUROC of {record['finding']}"
    if record["finding"] == MEAN:
        what = f"mean AUROC of the {record['compared']} findings tested"
    return f"{what} is {others - gap:.3f}, {gap:.3f} below the {others:.3f}"


def comparison_text(records: Sequence[Comparison], other: str) -> str:
    """The comparison as a table for the terminal."""
    width = width_of(records)
    lines = [f"{'finding':<{width}}{'AUROC':>8}{'other':>8}{'difference':>12}{'95 % interval':>18}"
             f"{'p':>8}{'p DeLong':>10}  against {other}"]  # fmt: skip
    for r in records:
        if r["difference"] is None:
            lines.append(f"{r['finding']:<{width}}{'':>64}  {r['note']}")
            continue
        low, high = r["difference_low"], r["difference_high"]
        between = "" if low is None else f"{low:+.3f} to {high:+.3f}"
        lines.append(
            f"{r['finding']:<{width}}{r['auroc']:>8.4f}{r['auroc_other']:>8.4f}{r['difference']:>+12.4f}"
            f"{between:>18}{p_text(r['p_bootstrap']):>8}{p_text(r['p_delong']):>10}  {r['note']}".rstrip()
        )
    return "\n".join(lines)


def p_text(p: float | None) -> str:
    """A p for a cell; nothing where there is none."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def probability_text(value: float | None) -> str:
    """A probability or a threshold for a cell, so that 0.00043 and 0.99957 are neither 0 nor 1.

    Three decimals, and as many more as two significant digits of the distance to 0 or 1 take.
    """
    if value is None or pd.isna(value):
        return "–"
    if value in (0, 1):
        return f"{value:.0f}"
    if not 0 < value < 1:  # of a score that is no probability
        return f"{value:.3g}"
    if value < SMALLEST:
        return f"{value:.1e}"
    distance = max(min(value, 1 - value), SMALLEST)
    return f"{value:.{max(3, 1 - math.floor(math.log10(distance)))}f}"
