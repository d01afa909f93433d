"""Runs as the evaluation needs them, checked before Spark is asked for anything. Runs on the driver.

In: runs and what is to be scored. Out: their models and findings, or a UserError. What is worth a
note is returned, and said by who asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from chexspark.errors import UserError, listed
from chexspark.evaluation import seen_patients_check
from chexspark.evaluation.inference import Model
from chexspark.evaluation.store_split import StoreSplit
from chexspark.findings import shared
from chexspark.run.best import model_findings
from chexspark.run.folder import RunFolder, model_and_digest, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.run.seen_patients import read_seen_patients
from chexspark.run.settings import check_run
from chexspark.storage import Location
from chexspark.store.manifest import Manifest


class Shared(NamedTuple):
    """Findings that all have, and what to say of the others."""

    findings: tuple[str, ...]
    note: str | None  # which of the findings who lacks; None where all have the same


def different_runs(names: Sequence[str]) -> list[RunFolder]:
    """The runs of an ensemble. Raises UserError where one is named twice."""
    runs = [run_folder(name) for name in names]
    if len({str(run) for run in runs}) < len(runs):
        raise UserError("--run names a run twice: an ensemble needs different ones")
    return runs


def best_model(run: RunFolder) -> Model:
    """The run's best model, with its digest and the findings of its outputs.

    Raises UserError where the model itself says others: one of the two is not this run's.
    """
    uri, digest = model_and_digest(run)
    findings, said = tuple(read_lineage(run)["findings"]), model_findings(run.best_model)
    if said not in (None, findings):
        raise UserError(
            f"--run={run}: its lineage names the findings {listed(findings)}, and its best model "
            f"{listed(said)}: one of the two was changed; copy the run again"
        )
    return Model(uri, digest, findings)


def shared_findings(holders: Mapping[str, Sequence[str]]) -> Shared:
    """The findings that all have, by name, in the order of the first.

    `holders`: what a message calls the store or the run → its findings. Raises UserError where they
    share none.
    """
    findings = shared(holders.values())
    if not findings:
        having = "; ".join(f"{name} has {listed(has)}" for name, has in holders.items())
        raise UserError(f"no finding is shared by all, and they go by name: {having}")
    anywhere = dict.fromkeys(f for has in holders.values() for f in has)
    lacking = {name: [f for f in anywhere if f not in has] for name, has in holders.items()}
    parts = [f"{name} lacks {listed(lacks)}" for name, lacks in lacking.items() if lacks]
    if not parts:
        return Shared(findings, None)
    number = f"{len(findings)} finding{'s' if len(findings) > 1 else ''} that all have"
    return Shared(findings, f"scored on the {number}: {'; '.join(parts)}")


def check_fit(store: Location, run: RunFolder, manifest: Manifest) -> None:
    """Raise UserError unless the run has a model of the store's image size."""
    check_run(run)
    size = read_lineage(run)["image_size"]
    if size != manifest.image_size:
        raise UserError(
            f"--data={store} has images of {manifest.image_size} pixels, but --run={run} was trained "
            f"at {size}: ingest with --size={size}"
        )


def check_seen(runs: Iterable[RunFolder], split: StoreSplit) -> None:
    """Raise UserError when a run has seen patients of the split, or the split has none."""
    if not split.images:
        raise UserError(f"--split={split.name} of {split.store} has no images")
    patients = split.patients()
    for run in runs:
        seen_patients_check.check_split(run, split, patients)


def validation_fault(runs: Iterable[RunFolder], val: StoreSplit) -> str | None:
    """Why thresholds and scaling cannot be fitted on the validation split; None: they can."""
    if not val.images:
        return f"the val split of {val.store} has no images"
    patients = val.patients()
    try:
        for run in runs:
            seen_patients_check.check_split(run, val, patients)
    except UserError as error:
        return str(error)
    return None


def check_runs_of(table: pd.DataFrame) -> str | None:
    """Raise UserError when scores of known runs are of patients that those have seen.

    Returns what to say where it is not known whom a model has seen.
    """
    names = {run for runs in table.get("run", pd.Series(dtype=str)).dropna().unique()
             for run in str(runs).split(" + ")}  # fmt: skip
    known = {run: run_folder(run) for run in sorted(names) if "/" in run}
    seen = {run: read_seen_patients(place) for run, place in known.items()}
    for run, patients in seen.items():
        if patients is not None:
            scored = set(table["patient_id"])
            seen_patients_check.check_patients(
                known[run], patients, scored, "--predictions", selected_may=False
            )
    if not seen or None in seen.values():
        return "which patients the model of --predictions has seen is not known here"
    return None
