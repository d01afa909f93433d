"""What the report and the model card say of a training. Pure; runs on the driver.

In: what a training left. Out: a dictionary of texts, rows and pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import pandas as pd

from chexspark.drawing import spoken
from chexspark.evaluation import plots
from chexspark.evaluation.tables import records_of
from chexspark.preparation import FITTED, STRETCH
from chexspark.progress import duration
from chexspark.run import history_charts
from chexspark.run.history import typical_rate
from chexspark.run.lineage import Lineage, network_size_of

SHARES = {"input_share": "input", "compute_share": "compute", "allreduce_share": "allreduce"}


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    run: str
    history: pd.DataFrame
    lineage: Lineage
    settings: Mapping[str, Any]  # by name, as in ``RUN/config.yaml``

    @property
    def ranks(self) -> int:
        """How many ranks the run began with, 1 where it does not say."""
        return len(self.lineage.get("ranks", [])) or 1

    @property
    def rate(self) -> float | None:
        """Images per second of the median epoch, as of `typical_rate`."""
        return typical_rate(self.history)


def training_contents(trained: Trained | None, others: Sequence[Trained]) -> dict[str, Any]:
    """The training that led to what is evaluated, if there was one."""
    scaling = scaling_rows(trained, others)
    settings = {} if trained is None else trained.settings
    return {
        "trained": training_facts(trained),
        "trained_model": settings.get("model", "a network"),
        "image_size": network_size_of(trained.lineage) if trained else None,
        "stored_size": trained.lineage["image_size"] if trained else None,
        "fit": FITTED[trained.lineage.get("fit", STRETCH)] if trained else None,
        "outputs": len(trained.lineage["findings"]) if trained else None,
        "recipe": recipe_lines(trained),
        "chosen_by": "lowest loss" if settings.get("best_by") == "loss" else "highest mean AUROC",
        "settings": [(n, "none" if v is None else v) for n, v in settings.items()],
        "scaling": scaling,
        "pictures": training_pictures(trained) | {"scaling": scaling_picture(scaling)},
    }


def recipe_lines(trained: Trained | None) -> list[str]:
    """How the model was trained, a line each, as far as the settings tell."""
    if trained is None or not {"optimizer", "learning_rate", "batch_size", "loss"} <= set(
        trained.settings
    ):
        return []
    given, ranks = trained.settings, trained.ranks
    rate = f"{given['learning_rate']:g}"
    if ranks > 1 and given.get("scale_learning_rate", "none") != "none":
        rate += f", scaled with the {ranks} ranks ({given['scale_learning_rate']})"
    if given.get("schedule"):
        rate += f"; schedule {given['schedule']}"
    if given.get("warmup_epochs"):
        rate += f", warm-up of {given['warmup_epochs']:g} epochs"
    if given.get("head_rate", 1) != 1:
        rate += f"; the last layer's {given['head_rate']:g} times that"
    batch = given["batch_size"]
    return [
        f"Start: {given['weights'] if given.get('weights') else 'random weights'}.",
        f"Optimizer: {given['optimizer']}, learning rate {rate}.",
        f"Batch: {batch * ranks:,} images ({ranks} rank{'s' if ranks > 1 else ''} of {batch}).",
        f"Loss: {spoken_loss(given)}.",
    ]


def spoken_loss(settings: Mapping[str, Any]) -> str:
    """The loss of a training in words."""
    loss = spoken(settings["loss"])
    if settings["loss"] == "weighted":
        loss = "cross entropy, rare classes weighted"
    if settings["loss"] == "focal":
        loss += f", gamma {settings.get('focal_gamma', 'not told')}"
    if settings["loss"] == "asymmetric":
        names = {"gamma_negative": "gamma", "gamma_positive": "of positives", "clip": "margin"}
        told = (f"{words} {settings.get(name, 'not told')}" for name, words in names.items())
        loss += ", " + ", ".join(told)
    if settings.get("label_smoothing"):
        loss += f", labels smoothed by {settings['label_smoothing']:g}"
    return loss


def shares_of(history: pd.DataFrame) -> dict[str, str]:
    """Which shares of the step time a history tells."""
    return {c: n for c, n in SHARES.items() if c in history and history[c].notna().any()}


class TrainingFacts(TypedDict):
    """A training in figures."""

    epochs: int
    best_epoch: int  # from 1
    val_auroc: float
    ranks: int
    hosts: int
    devices: str
    time: str
    rate: float | None  # images per second
    shares: list[tuple[str, float]]  # of the step time
    rows: list[dict[str, Any]]  # of the history


def training_facts(trained: Trained | None) -> TrainingFacts | None:
    """A training in figures, or None."""
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
    """Pictures of a training, SVG, by name; empty without one."""
    if trained is None:
        return {"training": "", "throughput": ""}
    shares = shares_of(trained.history)
    return {
        "training": history_charts.training(trained.history),
        "throughput": history_charts.throughput(trained.history, shares),
    }


class ScalingRow(TypedDict):
    """A run in the scaling chart."""

    run: str
    ranks: int
    rate: float  # images per second
    batch: int | None  # per rank
    efficiency: float  # of the rate per rank with the fewest ranks


def scaling_rows(trained: Trained | None, others: Sequence[Trained]) -> list[ScalingRow]:
    """Ranks, rate and efficiency of runs of the same model and image size whose rate is known, fewest ranks first."""
    if trained is None or not others:
        return []

    def kind(run: Trained) -> tuple[Any, Any]:
        return run.settings.get("model"), network_size_of(run.lineage)

    same = {run.run: run for run in [trained, *others] if kind(run) == kind(trained)}
    rated = [(run, run.rate) for run in sorted(same.values(), key=lambda run: run.ranks)]
    known = [(run, rate) for run, rate in rated if rate is not None]
    return [
        {"run": run.run, "ranks": run.ranks, "rate": rate,
         "batch": run.settings.get("batch_size"),
         "efficiency": rate / run.ranks / (known[0][1] / known[0][0].ranks)}
        for run, rate in known
    ]  # fmt: skip


def scaling_picture(rows: Sequence[ScalingRow]) -> str:
    """The scaling chart, SVG; empty for a single run."""
    return plots.scaling([(r["ranks"], r["rate"]) for r in rows]) if len(rows) > 1 else ""


def trained_rows(lineage: Lineage) -> list[tuple[str, str]]:
    """Where the model comes from: what, and its value in words."""
    rows = [("Trained on", lineage["store"]), ("Its fingerprint", lineage["store_fingerprint"])]
    if "trained_patients" in lineage:
        rows.append(("Patients seen, SHA-256", lineage["trained_patients"]))
    if "chexspark" in lineage:
        rows.append(("chexspark", lineage["chexspark"]))
    if "python" in lineage:
        rows.append(("Python", lineage["python"]))
    packages = lineage.get("packages", {})
    if packages:
        rows.append(("Packages", ", ".join(f"{n} {v}" for n, v in packages.items())))
    return rows
