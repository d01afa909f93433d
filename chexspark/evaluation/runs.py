"""Runs as the evaluation needs them, checked before Spark is asked for anything. Runs on the driver.

In: runs and what is to be scored. Out: their models, or a UserError.
"""

import pandas as pd

from chexspark.errors import UserError
from chexspark.evaluation import seen_patients_check
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.run.seen_patients import read_seen_patients
from chexspark.run.settings import check_run
from chexspark.storage import Location
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import patients_of_split


def check_fit(store: Location, run: RunFolder, manifest: Manifest) -> None:
    """Raise UserError unless the run has a model of the store's image size."""
    check_run(run)
    size = read_lineage(run)["image_size"]
    if size != manifest.image_size:
        raise UserError(
            f"--data {store} has images of {manifest.image_size} pixels, but --run {run} was trained "
            f"at {size}: ingest with --size {size}"
        )


def check_seen(runs: list[RunFolder], store: Location, manifest: Manifest, split: str) -> None:
    """Raise UserError when a run has seen patients of the split, or the split has none."""
    if not manifest.splits[split].images:
        raise UserError(f"--split {split} of {store} has no images")
    patients = patients_of_split(store, manifest, split)
    for run in runs:
        seen_patients_check.check_split(run, store, manifest, split, patients)
    if split == "val":
        print("note: the best epoch was chosen on validation: its figures flatter the model")


def validation_split(
    runs: list[RunFolder], store: Location, manifest: Manifest, split: str
) -> str | None:
    """``val`` where thresholds and temperature can be fitted on it; None, said so, where not."""
    try:
        if split != "val":
            if not manifest.splits["val"].images:
                raise UserError(f"the val split of {store} has no images")
            patients = patients_of_split(store, manifest, "val")
            for run in runs:
                seen_patients_check.check_split(run, store, manifest, "val", patients)
    except UserError as error:
        print(f"note: no thresholds and no temperature: {error}", flush=True)
        return None
    return "val"


def check_runs_of(table: pd.DataFrame) -> None:
    """Raise UserError when scores of known runs are of patients that those have seen."""
    names = {run for runs in table.get("run", pd.Series(dtype=str)).dropna().unique()
             for run in str(runs).split(" + ")}  # fmt: skip
    known = {run: run_folder(run) for run in sorted(names) if "/" in run}
    seen = {run: read_seen_patients(place) for run, place in known.items()}
    for run, patients in seen.items():
        if patients is not None:
            scored = set(table["patient_id"])
            seen_patients_check.check_patients(run, patients, scored, "--predictions", False)
    if not seen or None in seen.values():
        print(
            "note: which patients the model of --predictions has seen is not known here", flush=True
        )
