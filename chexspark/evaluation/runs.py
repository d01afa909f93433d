"""Runs as the evaluation needs them, checked before Spark is asked for anything. Runs on the driver.

In: runs and what is to be scored. Out: their models, or a UserError.
"""

import hashlib

import pandas as pd

from chexspark.errors import UserError
from chexspark.evaluation import seen_patients_check
from chexspark.storage import Location, locate
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import patients_of_split


def model_of(run: Location) -> Location:
    return run / "best" / "model.keras"


def check_model(run: Location) -> None:
    """Raise UserError unless the run has a best model."""
    if not model_of(run).is_file():
        raise UserError(
            f"--run {run} has no best/model.keras: give a folder that jobs/train.py wrote"
        )


def model_facts(run: Location) -> tuple[str, str]:
    """The URI of the best model and its SHA-256, which tells it from one before it."""
    return str(model_of(run)), digest(model_of(run))


def digest(place: Location) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()


def check_fit(store: Location, run: Location, manifest: Manifest) -> None:
    """Raise UserError unless the run has a model of the store's image size."""
    check_model(run)
    size = seen_patients_check.read_lineage(run)["image_size"]
    if size != manifest.image_size:
        raise UserError(
            f"--data {store} has images of {manifest.image_size} pixels, but --run {run} was trained "
            f"at {size}: ingest with --size {size}"
        )


def check_seen(runs: list[Location], store: Location, manifest: Manifest, split: str) -> None:
    """Raise UserError when a run has seen patients of the split, or the split has none."""
    if not manifest.splits[split].images:
        raise UserError(f"--split {split} of {store} has no images")
    patients = patients_of_split(store, manifest, split)
    for run in runs:
        seen_patients_check.check_store(run, store, manifest, split, patients)
    if split == "val":
        print("note: the best epoch was chosen on validation: its figures flatter the model")


def validation_split(runs, store: Location, manifest: Manifest, split: str) -> str | None:
    """``val`` where thresholds and temperature can be fitted on it; None, said so, where not."""
    try:
        if split != "val":
            if not manifest.splits["val"].images:
                raise UserError(f"the val split of {store} has no images")
            patients = patients_of_split(store, manifest, "val")
            for run in runs:
                seen_patients_check.check_store(run, store, manifest, "val", patients)
    except UserError as error:
        print(f"note: no thresholds and no temperature: {error}", flush=True)
        return None
    return "val"


def check_runs_of(table: pd.DataFrame) -> None:
    """Raise UserError when scores of our own runs are of patients that those have seen."""
    names = {run for runs in table.get("run", pd.Series(dtype=str)).dropna().unique()
             for run in str(runs).split(" + ")}  # fmt: skip
    known = {run: locate(run) for run in sorted(names) if "/" in run}
    seen = {run: seen_patients_check.read_seen_patients(place) for run, place in known.items()}
    for run, patients in seen.items():
        if patients is not None:
            scored = set(table["patient_id"])
            seen_patients_check.check_patients(run, patients, scored, "--predictions", False)
    if not seen or None in seen.values():
        print(
            "note: which patients the model of --predictions has seen is not known here", flush=True
        )
