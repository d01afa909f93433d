"""What the validation split says of a model's findings: thresholds and calibration. Runs on the driver.

In: a run that was evaluated. Out: of each finding what evaluate fitted; the same as JSON, for exported models.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from chexspark.evaluation import tables
from chexspark.evaluation.calibration import NOT_SCALED, Chosen, Scaling
from chexspark.evaluation.inference import Model
from chexspark.evaluation.metrics import Fitted
from chexspark.evaluation.studies import STUDY
from chexspark.evaluation.thresholds import Thresholds
from chexspark.evaluation.views import views_text
from chexspark.run.folder import METRICS, RunFolder

FITTED_ON = ("val", "test")  # splits whose metrics have the thresholds of validation


class OperatingPoints(NamedTuple):
    """What was fitted, and on what."""

    fitted: list[Fitted]  # of each finding of the model, in their order
    words: str  # for people: the val split of which store, and what its scores are of


def operating_points(run: RunFolder, model: Model) -> OperatingPoints | None:
    """What a run's validation split says of the findings of its best model.

    None where nobody has asked, or asked a model before it. Raises UserError for damage.
    """
    for split, facts in tables.read_evaluation(run).items():
        words = facts.get("fitted_on")
        if split not in FITTED_ON or not words or facts.get("models") != [model.digest]:
            continue
        rows = tables.read_split(run, METRICS, split)
        if rows is not None and set(model.findings) <= set(rows["finding"]):
            beside = views_text(facts.get("tta", []))
            words += f", scored with {beside}" * bool(beside)
            words += ", of whole studies" * (facts.get("by") == STUDY)
            by_finding = rows.set_index("finding").replace({np.nan: None}).to_dict("index")
            return OperatingPoints([fitted_of(by_finding[name]) for name in model.findings], words)
    return None


def fitted_of(row: dict[str, Any]) -> Fitted:
    """Thresholds and scaling out of a row of metrics."""
    points = Thresholds(youden=row["threshold_youden"], sens90=row["threshold_sens90"])
    if row["slope"] is None or row["intercept"] is None:
        return Fitted(points, NOT_SCALED)
    scaling = Scaling(row["slope"], row["intercept"])
    return Fitted(points, Chosen(row["temperature"], row["scaling"], scaling))


def points_as_json(points: OperatingPoints | None, findings: Sequence[str]) -> dict[str, Any]:
    """Finding → thresholds and calibration, as JSON has them; null what there is not.

    `findings`: of the model, in their order.
    """
    if points is None:
        return dict.fromkeys(findings)
    return {
        name: {"thresholds": dict(each.thresholds), "calibration": calibration_as_json(each.chosen)}
        for name, each in zip(findings, points.fitted, strict=True)
    }


def calibration_as_json(chosen: Chosen) -> dict[str, Any] | None:
    """Slope and intercept of the logit, the method, and the temperature where it was chosen."""
    if chosen.scaling is None:
        return None
    temperature = chosen.temperature if chosen.method == "temperature" else None
    return {**chosen.scaling._asdict(), "method": chosen.method, "temperature": temperature}
