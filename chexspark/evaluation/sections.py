"""What the report and the model card say, before it is laid out. Pure; runs on the driver.

In: the tables of an evaluation and of a training. Out: a dictionary of texts, rows and pictures.
"""

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexspark.evaluation import calibration, plots
from chexspark.evaluation.examples import KINDS
from chexspark.evaluation.inference import LABEL, PROBABILITY
from chexspark.evaluation.pictures import encoded, enlarged, overlay
from chexspark.evaluation.published_aurocs import PUBLISHED
from chexspark.progress import duration
from chexspark.store.manifest import SPLITS

PICTURE_SIDE = 256  # pixels, at least, of an example in the report
SHARES = {"input_share": "input", "compute_share": "compute", "allreduce_share": "allreduce"}


@dataclass(frozen=True)
class Evaluated:
    """The tables of one split."""

    split: str
    facts: dict
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    subgroups: pd.DataFrame
    examples: pd.DataFrame | None
    localisation: pd.DataFrame | None
    comparison: pd.DataFrame | None


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    run: str
    history: pd.DataFrame
    lineage: dict
    settings: dict

    @property
    def ranks(self) -> int:
        return len(self.lineage.get("ranks", [])) or 1

    @property
    def rate(self) -> float:
        """Images per second of the median epoch but the first, which compiles."""
        later = self.history["images_per_second"].iloc[1:]
        return float((later if len(later) else self.history["images_per_second"]).median())


def figure(value, digits: int = 3, signed: bool = False) -> str:
    """A number for a cell; a dash where there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def records_of(frame: pd.DataFrame | None) -> list[dict]:
    """A table's rows, with None for what is not there."""
    if frame is None:
        return []
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def contents(run: str, evaluated: Evaluated, trained: Trained | None, others: list) -> dict:
    """All that the templates need."""
    records = records_of(evaluated.metrics)
    mean = records[-1]
    scored = [r for r in records[:-1] if r["auroc"] is not None]
    subgroups = records_of(evaluated.subgroups)
    of_means = [r for r in subgroups if r["finding"] == "mean"]
    return {
        "run": run,
        "split": evaluated.split,
        "facts": evaluated.facts,
        "title": title_of(evaluated, trained),
        "images": len(evaluated.predictions),
        "patients": evaluated.predictions["patient_id"].nunique(),
        "records": records,
        "mean": mean,
        "scored": scored,
        "best": max(scored, key=lambda r: r["auroc"], default=None),
        "worst": min(scored, key=lambda r: r["auroc"], default=None),
        "published": PUBLISHED,
        "fitted": any(r["threshold_sens90"] is not None for r in scored),
        "calibrated": mean["ece"] is not None,
        "subgroups": of_means,
        "subgroup_findings": [r for r in subgroups if r["finding"] != "mean"],
        "behind": [r for r in subgroups if r["behind"]],
        "tests": sum(r["p_behind"] is not None for r in subgroups),
        "localisation": localised(evaluated.localisation),
        "comparison": records_of(evaluated.comparison),
        "examples": pictured(evaluated.examples),
        "kinds": KINDS,
        "trained": training_facts(trained),
        "trained_model": trained.settings.get("model", "a network") if trained else None,
        "image_size": trained.lineage.get("image_size") if trained else None,
        "scaling": scaling_rows(trained, others),
        "lineage": lineage_rows(run, evaluated, trained),
        "settings": [(n, "none" if v is None else v) for n, v in trained.settings.items()]
        if trained
        else [],
        "pictures": {
            "intervals": plots.intervals(records) if scored else "",
            "curves": finding_panels(evaluated, scored),
            "reliability": reliability_panels(evaluated, scored),
            "forest": plots.forest(of_means, mean) if of_means and mean["auroc"] else "",
            **training_pictures(trained),
            "scaling": scaling_picture(scaling_rows(trained, others)),
        },
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


def known(evaluated: Evaluated, finding: str):
    """Labels and probabilities of a finding's known rows."""
    truth = evaluated.predictions[LABEL + finding].to_numpy()
    score = evaluated.predictions[PROBABILITY + finding].to_numpy(np.float64)
    return truth[truth >= 0], score[truth >= 0]


def finding_panels(evaluated: Evaluated, scored: list[dict]) -> list[str]:
    return [plots.curves(*known(evaluated, r["finding"]), r) for r in scored]


def reliability_panels(evaluated: Evaluated, scored: list[dict]) -> list[str]:
    panels = []
    for r in scored:
        if r["ece"] is None:
            continue
        truth, score = known(evaluated, r["finding"])
        after = None if r["temperature"] is None else calibration.scale(score, r["temperature"])
        panels.append(plots.reliability(truth, score, after, r))
    return panels


def localised(frame: pd.DataFrame | None) -> list[dict]:
    """Of each finding the threshold with the largest mean IoU."""
    best = {}
    for record in records_of(frame):
        if record["iou"] >= best.get(record["finding"], record)["iou"]:
            best[record["finding"]] = record
    return list(best.values())


def pictured(examples: pd.DataFrame | None) -> list[dict]:
    """Examples by finding: for each kind a picture as a data URI, or none."""
    found = {}
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
            "boxed": bool(len(row["boxes"])),
        }  # fmt: skip
    return [{"finding": finding, "kinds": kinds} for finding, kinds in found.items()]


def shares_of(history: pd.DataFrame) -> dict[str, str]:
    """Which shares of the step time a history tells."""
    return {c: n for c, n in SHARES.items() if c in history and history[c].notna().any()}


def training_facts(trained: Trained | None) -> dict | None:
    """A training in figures."""
    if trained is None:
        return None
    history, ranks = trained.history, trained.lineage.get("ranks", [])
    best = history[history["best"]].iloc[0]
    return {
        "epochs": len(history),
        "best_epoch": int(best["epoch"]) + 1,
        "val_auroc": best["val_auroc"],
        "ranks": trained.ranks,
        "hosts": len({rank["host"] for rank in ranks}),
        "devices": ", ".join(sorted({rank["device"] for rank in ranks})),
        "time": duration(history["seconds"].sum()),
        "rate": trained.rate,
        "shares": [(name, float(history[column].mean())) for column, name in
                   shares_of(history).items()],
        "rows": records_of(history),
    }  # fmt: skip


def training_pictures(trained: Trained | None) -> dict[str, str]:
    if trained is None:
        return {"training": "", "throughput": ""}
    shares = shares_of(trained.history)
    return {
        "training": plots.training(trained.history),
        "throughput": plots.throughput(trained.history, shares),
    }


def scaling_rows(trained: Trained | None, others: list[Trained]) -> list[dict]:
    """Ranks, rate and efficiency of runs of the same model and image size, fewest ranks first."""
    if trained is None or not others:
        return []

    def kind(run: Trained):
        return run.settings.get("model"), run.lineage.get("image_size")

    same = {run.run: run for run in [trained, *others] if kind(run) == kind(trained)}
    ordered = sorted(same.values(), key=lambda run: run.ranks)
    first = ordered[0].rate / ordered[0].ranks
    return [
        {"run": run.run, "ranks": run.ranks, "rate": run.rate,
         "batch": run.settings.get("batch_size"), "efficiency": run.rate / run.ranks / first}
        for run in ordered
    ]  # fmt: skip


def scaling_picture(rows: list[dict]) -> str:
    return plots.scaling([(r["ranks"], r["rate"]) for r in rows]) if len(rows) > 1 else ""


def lineage_rows(run: str, evaluated: Evaluated, trained: Trained | None) -> list[tuple]:
    """Where the figures come from."""
    facts, rows = evaluated.facts, [("Evaluation", run)]
    rows += [("Scores", facts["scores"]), ("Labels", facts["labels"])] if "scores" in facts else []
    rows += [("Run", one) for one in facts.get("runs", [])]
    rows += [("Model SHA-256", one) for one in facts.get("models", [])]
    names = {"store": "Store scored", "store_fingerprint": "Store fingerprint",
             "split_hash": "Split hash"}  # fmt: skip
    rows += [(text, facts[name]) for name, text in names.items() if name in facts]
    for name, words in facts.get("data", {}).items():
        rows.append((f"Store, {name}" if name in SPLITS else name, words))
    rows.append(("Mirror images averaged", "yes" if facts.get("flip") else "no"))
    rows.append(("Thresholds and temperature", f"from {facts['fitted_on']}"
                 if facts.get("fitted_on") else "none: no validation split"))  # fmt: skip
    rows.append(("Bootstrap", f"{facts['bootstrap']:,} resamples of the patients"))
    if trained is None:
        return rows
    lineage = trained.lineage
    rows += [("Trained on", lineage["store"]), ("Its fingerprint", lineage["store_fingerprint"])]
    if "trained_patients" in lineage:
        rows.append(("Patients seen, SHA-256", lineage["trained_patients"]))
    rows += [(text, lineage[name]) for name, text in (("chexspark", "chexspark"), ("python", "Python"))
             if name in lineage]  # fmt: skip
    packages = lineage.get("packages", {})
    if packages:
        rows.append(("Packages", ", ".join(f"{n} {v}" for n, v in packages.items())))
    return rows
