"""The tables of an evaluation, as Parquet and as text. Runs on the driver.

In: records. Out: ``OUT/metrics``, ``OUT/subgroups``, ``OUT/comparison`` and ``OUT/localisation``, each
a folder per split, so that one split stands beside another; ``OUT/evaluation.json``, which says of
each split what was scored.
"""

import json

import pandas as pd
import pyarrow as pa

from chexspark.evaluation import comparison, metrics
from chexspark.evaluation.subgroups import Group
from chexspark.run.folder import RunFolder
from chexspark.text_files import read_json


def metrics_schema() -> pa.Schema:
    """``metrics``: 14 rows and ``mean``; what is not defined is null, and `note` says why."""
    return pa.schema(
        [("finding", pa.string())]
        + [(name, pa.float64()) for name in metrics.DOUBLES]
        + [(name, pa.int64()) for name in metrics.COUNTS]
        + [("note", pa.string())]
    )


def subgroups_schema() -> pa.Schema:
    """``subgroups``: the same of every group, and how it compares with all images."""
    differences = ("difference", "difference_low", "difference_high", "p_behind")
    return pa.schema(
        [("subgroup_by", pa.string()), ("subgroup", pa.string()), ("images", pa.int64())]
        + list(metrics_schema())
        + [(name, pa.float64()) for name in differences]
        + [("behind", pa.bool_())]
    )


def comparison_schema() -> pa.Schema:
    """``comparison``: two models on the same images."""
    texts, counts = {"finding", "note"}, {"positives", "negatives"}
    return pa.schema(
        [(name, pa.string() if name in texts else pa.int64() if name in counts else pa.float64())
         for name in comparison.COLUMNS]
        + [("images", pa.int64()), ("other", pa.string())]
    )  # fmt: skip


def subgroup_rows(groups: list[Group], tables: list[list[dict]]) -> list[dict]:
    """The rows of ``subgroups``, of the groups after the first, which is all images."""
    return [
        {"subgroup_by": group.by, "subgroup": group.name, "images": int(group.rows.sum()), **record}
        for group, records in zip(groups[1:], tables[1:], strict=True)
        for record in records
    ]


def write_split(out: RunFolder, name: str, split: str, rows: list[dict], schema: pa.Schema) -> None:
    """Write the rows of one split in place of those that were there; other splits stay."""
    folder = out.table(name, split)
    folder.delete_directory()
    folder.write_table(pa.Table.from_pylist(rows, schema))


def read_split(out: RunFolder, name: str, split: str) -> pd.DataFrame | None:
    """The rows of one split, or None where it has none."""
    folder = out.table(name, split)
    return folder.read_table().to_pandas() if folder.is_directory() else None


def read_evaluation(out: RunFolder) -> dict:
    """Split → what was scored; empty where nothing was."""
    return (
        read_json(out.evaluation, str(out.evaluation), "evaluate again, into a new --out")
        if out.evaluation.is_file()
        else {}
    )


def write_evaluation(out: RunFolder, split: str, facts: dict) -> None:
    out.place.make_directory()
    text = json.dumps(read_evaluation(out) | {split: facts}, indent=1) + "\n"
    out.evaluation.write_text(text)


def metrics_text(records: list[dict], split: str) -> str:
    """The metrics as a table for the terminal."""
    lines = [
        f"{'finding':<20}{'AUROC':>8}{'95 % interval':>17}{'precision':>11}{'positives':>11}  {split}"
    ]
    for r in records:
        positives = "" if r["positives"] is None else f"{r['positives']:,}"
        if r["auroc"] is None:
            lines.append(f"{r['finding']:<20}{'':>36}{positives:>11}  {r['note']}")
            continue
        between = "" if r["auroc_low"] is None else f"{r['auroc_low']:.3f} - {r['auroc_high']:.3f}"
        lines.append(
            f"{r['finding']:<20}{r['auroc']:>8.4f}{between:>17}{r['average_precision']:>11.4f}"
            f"{positives:>11}  {r['note']}".rstrip()
        )
    return "\n".join(lines)


def warnings_text(groups: list[Group], tables: list[list[dict]]) -> list[str]:
    """A line for each subgroup and finding that falls behind by more than chance."""
    return [
        f"warning: {group}: AUROC of {r['finding']} is {r['auroc']:.3f}, {-r['difference']:.3f} below "
        f"all images (p {r['p_behind']:.2g}, corrected for all tests)"
        for group, records in zip(groups[1:], tables[1:], strict=True)
        for r in records
        if r["behind"]
    ]


def comparison_text(records: list[dict], other: str) -> str:
    """The comparison as a table for the terminal."""
    lines = [f"{'finding':<20}{'AUROC':>8}{'other':>8}{'difference':>12}{'95 % interval':>18}"
             f"{'p':>8}{'p DeLong':>10}  against {other}"]  # fmt: skip
    for r in records:
        if r["difference"] is None:
            lines.append(f"{r['finding']:<20}{'':>64}  {r['note']}")
            continue
        low, high = r["difference_low"], r["difference_high"]
        between = "" if low is None else f"{low:+.3f} to {high:+.3f}"
        p = [p_text(r[name]) for name in ("p_bootstrap", "p_delong")]
        lines.append(
            f"{r['finding']:<20}{r['auroc']:>8.4f}{r['auroc_other']:>8.4f}{r['difference']:>+12.4f}"
            f"{between:>18}{p[0]:>8}{p[1]:>10}  {r['note']}".rstrip()
        )
    return "\n".join(lines)


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
