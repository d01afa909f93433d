"""Figures of an evaluated run, as an experiment keeps them. Runs on the driver."""

from collections.abc import Sequence
from typing import Any

from chexspark.arguments import under
from chexspark.cluster.recipe_check import check_start
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.evaluation.tables import read_evaluation, read_split
from chexspark.findings import MEAN, is_mean
from chexspark.models.custom import find_network
from chexspark.models.weights import check_weights, start_of
from chexspark.run.folder import METRICS, RunFolder, model_and_digest
from chexspark.settings import build


def check_training(given: dict[str, Any]) -> TrainConfig:
    """The config of a training. Raises UserError for settings that contradict each other, and for weights that it
    cannot start from, or lacks."""
    config = build(TrainConfig, under(TrainConfig, given))
    find_network(config.model)
    check_start(config)
    weights = start_of(config.model, config.weights)
    if weights:
        check_weights(config.model, weights)
    return config


def is_scored(place: RunFolder, runs: Sequence[RunFolder], split: str = "test") -> bool:
    """Whether a split was evaluated with these runs' models as they are."""
    facts = read_evaluation(place).get(split, {})
    models = [model_and_digest(run)[1] for run in runs]
    return bool(facts.get("metrics")) and facts.get("models") == models


def none_if_nan(value: Any) -> float | None:
    """A number for JSON."""
    return None if value is None or value != value else float(value)


def figures_of(place: RunFolder, split: str = "test") -> dict[str, Any]:
    """AUROC of a split with its interval, and of each finding. Raises UserError where there are none."""
    table = read_split(place, METRICS, split)
    if table is None:
        raise UserError(f"{place} has no metrics of the {split} split: run the same command again")
    rows = {row["finding"]: row for row in table.to_dict("records")}
    mean = rows[MEAN]
    return {
        "auroc": none_if_nan(mean["auroc"]), "low": none_if_nan(mean["auroc_low"]),
        "high": none_if_nan(mean["auroc_high"]),
        "findings": {name: none_if_nan(row["auroc"]) for name, row in rows.items() if not is_mean(name)},
    }  # fmt: skip
