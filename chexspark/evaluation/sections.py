"""What the report and the model card say, before it is laid out. Pure; runs on the driver.

In: the tables of an evaluation and of a training. Out: a dictionary of texts, rows and pictures.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np
import pandas as pd

from chexspark.drawing import spoken
from chexspark.errors import listed
from chexspark.evaluation import calibration, plots
from chexspark.evaluation.examples import KINDS
from chexspark.evaluation.localisation import Localisation, best_thresholds
from chexspark.evaluation.metrics import Metric
from chexspark.evaluation.pictures import encoded, enlarged, overlay
from chexspark.evaluation.predictions import label_column, labels_of, probability_column
from chexspark.evaluation.published_aurocs import (
    OFFICIAL_IMAGES,
    Published,
    are_published,
    published_beside,
)
from chexspark.evaluation.studies import STUDY
from chexspark.evaluation.subgroups import MIN_PATIENTS, rarer_patients
from chexspark.evaluation.tables import SplitFacts, SubgroupRow, records_of
from chexspark.evaluation.training_sections import Trained, trained_rows, training_contents
from chexspark.evaluation.views import views_text
from chexspark.findings import MEAN, is_mean
from chexspark.store.manifest import SPLITS

PICTURE_SIDE = 256  # pixels, at least, of an example in the report


@dataclass(frozen=True)
class Evaluated:
    """The tables of one split."""

    split: str
    facts: SplitFacts
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    subgroups: pd.DataFrame
    examples: pd.DataFrame | None
    localisation: pd.DataFrame | None
    comparison: pd.DataFrame | None


def figure(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number for a cell; a dash where there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"


def for_markdown(name: str) -> str:
    """A name as people write it, in a cell of a Markdown table."""
    return spoken(name).replace("|", "\\|")


def contents(
    run: str, evaluated: Evaluated, trained: Trained | None, others: Sequence[Trained]
) -> dict[str, Any]:
    """All that the templates need. `others`: runs to stand beside `trained` in the scaling chart."""
    records = cast(list[Metric], records_of(evaluated.metrics))
    findings = [r["finding"] for r in of_findings(records)]
    subgroups = cast(list[SubgroupRow], records_of(evaluated.subgroups))
    return {
        "run": run,
        "split": evaluated.split,
        "facts": evaluated.facts,
        "title": title_of(evaluated, trained),
        "images": len(evaluated.predictions),
        "rows_are": rows_are(evaluated.facts),
        "counted": "studies" if evaluated.facts.get("by") == STUDY else "images",
        "patients": evaluated.predictions["patient_id"].nunique(),
        "findings": findings,
        "published": published(evaluated, findings),
        "on_others": on_other_splits(evaluated, findings),
        "official": is_official(evaluated),
        "of_nih": are_published(findings) and not evaluated.facts.get("synthetic"),
        "synthetic": evaluated.facts.get("synthetic", False),
        **metric_contents(evaluated, records),
        **subgroup_contents(subgroups, mean_of_all(records)),
        "localisation": localised(evaluated.localisation),
        "comparison": records_of(evaluated.comparison),
        "examples": pictured(evaluated.examples),
        "kinds": KINDS,
        **training_contents(trained, others),
        "lineage": lineage_rows(run, evaluated, trained),
    }


def rows_are(facts: SplitFacts) -> str:
    """What the metrics count, in words."""
    if facts.get("by") != STUDY:
        return "images"
    return f"studies (each with the {facts['aggregate']} of its images’ scores)"


def of_findings(records: Sequence[Metric]) -> list[Metric]:
    """The records that are a finding's."""
    return [r for r in records if not is_mean(r["finding"])]


def mean_of_all(records: Sequence[Metric]) -> Metric:
    """The record of the mean of all findings."""
    return next(r for r in records if r["finding"] == MEAN)


def is_official(evaluated: Evaluated) -> bool:
    """Whether the figures are of the whole of NIH's official test list."""
    facts = evaluated.facts
    return (
        facts.get("official_split", False)
        and evaluated.split == "test"
        and facts.get("images") == OFFICIAL_IMAGES
    )


def published(evaluated: Evaluated, findings: Iterable[str]) -> tuple[Published, ...]:
    """What stands beside the figures: what was published of the same test images."""
    if evaluated.facts.get("synthetic") or not is_official(evaluated):
        return ()
    return tuple(p for p in published_beside(findings) if p.official)


def on_other_splits(evaluated: Evaluated, findings: Iterable[str]) -> tuple[Published, ...]:
    """What was published of other images, to be known and not compared; nothing where these are phantoms."""
    if evaluated.facts.get("synthetic"):
        return ()
    same = published(evaluated, findings)
    return tuple(p for p in published_beside(findings) if p not in same)


def metric_contents(evaluated: Evaluated, records: Sequence[Metric]) -> dict[str, Any]:
    """Figures of the findings and of their means."""
    mean, each = mean_of_all(records), of_findings(records)
    scored = [r for r in each if r["auroc"] is not None]
    beside = published(evaluated, [r["finding"] for r in each])
    enough = with_enough_patients(evaluated, scored)
    return {
        "records": records,
        "mean": mean,
        "scored": scored,
        "enough": enough,
        "rough": len(scored) - len(enough),
        "best": max(enough, key=lambda r: r["auroc"] or 0, default=None),
        "worst": min(enough, key=lambda r: r["auroc"] or 0, default=None),
        "fitted": any(r["threshold_sens90"] is not None for r in scored),
        "calibrated": mean["ece"] is not None,
        "platt": sum(r["scaling"] == "platt" for r in scored),
        "intervals": plots.intervals(records, beside) if scored else "",
        "curves": finding_panels(evaluated, scored),
        "reliability": reliability_panels(evaluated, scored),
        "least_patients": MIN_PATIENTS,
    }  # fmt: skip


def with_enough_patients(evaluated: Evaluated, scored: Sequence[Metric]) -> list[Metric]:
    """The findings with `MIN_PATIENTS` or more both positive and negative patients.

    Counted here, since tables of earlier versions do not tell.
    """
    labels = labels_of(evaluated.predictions, [r["finding"] for r in scored])
    patients = rarer_patients(labels, evaluated.predictions["patient_id"].to_numpy(str))
    return [r for r, number in zip(scored, patients, strict=True) if number >= MIN_PATIENTS]


def subgroup_contents(subgroups: Sequence[SubgroupRow], mean: Metric) -> dict[str, Any]:
    """The groups of patients. `mean`: of all images."""
    of_means = [r for r in subgroups if r["finding"] == MEAN]
    tested = [r for r in subgroups if r["p_behind"] is not None]
    gaps = [r["detectable"] for r in tested if r["detectable"] is not None]
    # In tables of earlier versions a group was compared with all images.
    earlier = bool(tested) and all(r["auroc_others"] is None for r in tested)
    return {
        "subgroups": of_means,
        "subgroup_findings": [r for r in subgroups if r["finding"] != MEAN],
        "behind": [r for r in tested if r["behind"]],
        "tests": len(tested),
        "others": "all images" if earlier else "the other images of which the same is known",
        "gaps": {"median": float(np.median(gaps)), "largest": max(gaps)} if gaps else None,
        "forest": plots.forest(of_means, mean) if of_means and mean["auroc"] else "",
    }


def title_of(evaluated: Evaluated, trained: Trained | None) -> str:
    """What was evaluated, in a few words."""
    facts = evaluated.facts
    if "scores" in facts:
        return "Chest X-ray scores"
    several = len(facts.get("runs", []))
    if several > 1:
        return f"Chest X-ray model: an ensemble of {several}"
    name = trained.settings.get("model", "") if trained else ""
    return f"Chest X-ray model {name}".strip()


def known(evaluated: Evaluated, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (1 or 0) and probabilities, (rows,) each, of a finding's known rows."""
    truth = evaluated.predictions[label_column(finding)].to_numpy()
    score = evaluated.predictions[probability_column(finding)].to_numpy(np.float64)
    return truth[truth >= 0], score[truth >= 0]


def finding_panels(evaluated: Evaluated, scored: Iterable[Metric]) -> list[str]:
    """A picture of curves, SVG, for each finding with an AUROC."""
    return [plots.curves(*known(evaluated, r["finding"]), r) for r in scored]


def reliability_panels(evaluated: Evaluated, scored: Iterable[Metric]) -> list[str]:
    """A picture of calibration, SVG, for each finding with probabilities; all with the same axes."""
    shown = []
    for r in scored:
        if r["ece"] is None:
            continue
        truth, before = known(evaluated, r["finding"])
        series = [calibration.calibration_bins(truth, before)]
        if r["slope"] is not None and r["intercept"] is not None:
            after = calibration.scale(before, calibration.Scaling(r["slope"], r["intercept"]))
            series.append(calibration.calibration_bins(truth, after))
        shown.append((r["finding"], series))
    top = plots.largest_shown([bins for _, series in shown for bins in series])
    return [plots.reliability(series, finding, top) for finding, series in shown]


def localised(frame: pd.DataFrame | None) -> list[Localisation]:
    """Of each finding the threshold with the largest mean IoU."""
    return best_thresholds(cast(list[Localisation], records_of(frame)))


class Picture(TypedDict):
    """An example as the page shows it."""

    name: str
    probability: float
    threshold: float
    data: str  # the picture, as a data URI


class Pictured(TypedDict):
    """The examples of a finding, by kind; of `examples.KINDS` those that there are."""

    finding: str
    kinds: dict[str, Picture]


def pictured(examples: pd.DataFrame | None) -> list[Pictured]:
    """Examples by finding: for each kind a picture, or none."""
    found: dict[str, dict[str, Picture]] = {}
    for row in records_of(examples):
        gray = np.frombuffer(row["pixels"], np.uint8).reshape(row["size"], row["size"])
        shape = row["map_height"], row["map_width"]
        activation = np.frombuffer(row["map"], np.float32).reshape(shape)
        gray = enlarged(gray, PICTURE_SIDE)
        picture = np.hstack(
            [overlay(gray, activation * 0), overlay(gray, activation, row["boxes"])]
        )
        data = base64.b64encode(encoded(picture, ".jpg")).decode()
        found.setdefault(row["finding"], {})[row["kind"]] = {
            "name": row["image_index"], "probability": row["probability"],
            "threshold": row["threshold"], "data": f"data:image/jpeg;base64,{data}",
        }  # fmt: skip
    return [{"finding": finding, "kinds": kinds} for finding, kinds in found.items()]


def lineage_rows(run: str, evaluated: Evaluated, trained: Trained | None) -> list[tuple[str, str]]:
    """Where the figures come from: what, and its value in words."""
    facts, rows = evaluated.facts, [("Evaluation", run)]
    if "scores" in facts:
        rows += [
            ("Scores", facts["scores"]),
            ("Labels", facts.get("labels") or "in the same table"),
        ]
    runs, weights = facts.get("runs", []), facts.get("weights") or []
    rows += [("Run", one) for one in runs]
    if weights:
        told = ", ".join(f"{weight:.3f}" for weight in weights)
        rows.append(("Weights of the runs, fitted on validation", told))
    rows += [("Model SHA-256", one) for one in facts.get("models", [])]
    store = {"Store scored": facts.get("store"), "Store fingerprint": facts.get("store_fingerprint"),
             "Split hash": facts.get("split_hash")}  # fmt: skip
    rows += [(name, value) for name, value in store.items() if value is not None]
    for name, words in facts.get("data", {}).items():
        rows.append((f"Store, {name}" if name in SPLITS else name, words))
    rows.append(("Findings", facts.get("left_out") or listed(facts["findings"])))
    rows.append(("Averaged with each image", views_text(facts.get("tta", [])) or "nothing"))
    rows.append(("Thresholds and scaling", f"from {facts['fitted_on']}"
                 if facts.get("fitted_on") else "none: no validation split"))  # fmt: skip
    rows.append(("Bootstrap", f"{facts['bootstrap']:,} resamples of the patients"))
    return rows if trained is None else rows + trained_rows(trained.lineage)
