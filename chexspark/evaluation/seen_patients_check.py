"""No run is scored on patients that it has seen. Runs on the driver.

In: a run, the patients of what is to be scored. Out: nothing, or a UserError that says how many.
The lineage tells which store and split the run saw, ``RUN/trained_patients`` which patients.
"""

from collections.abc import Collection

from chexspark.errors import UserError
from chexspark.evaluation.store_split import StoreSplit
from chexspark.run.folder import RunFolder
from chexspark.run.lineage import read_lineage
from chexspark.run.seen_patients import SeenPatients, read_seen_patients

REMEDY = (
    "score patients that it has not seen (if these are other people whose numbers are equal by "
    "chance, ingest them under other names, such as B-17 for 17)"
)


def check_split(run: RunFolder, split: StoreSplit, patients: Collection[str]) -> None:
    """Raise UserError when a split of a store has patients that the run has seen.

    For a run that was written before runs listed their patients, only its own store can be known.
    """
    lineage = read_lineage(run)
    seen, store = read_seen_patients(run, lineage), split.store
    if seen is not None:
        what = f"--data={store}, split {split.name}"
        check_patients(run, seen, patients, what, selected_may=split.name == "val")
    elif lineage.get("store_fingerprint") != split.manifest.fingerprint:
        raise UserError(
            f"--run={run} does not say which patients it was trained on, and {store} is not its own "
            f"store ({lineage.get('store')}): it cannot be checked that they share none; train again"
        )
    elif split.name == "train":
        raise UserError(
            f"--split train of {store}: --run={run} was trained on all its {len(patients):,} "
            "patients; score val or test"
        )


def check_patients(
    run: RunFolder, seen: SeenPatients, patients: Collection[str], what: str, selected_may: bool
) -> None:
    """Raise UserError when `patients` were trained on, or (unless `selected_may`) validated on.

    `what`: what a message calls the patients.
    """
    found = seen.among(patients)
    trained = found.count("train")
    if trained:
        raise UserError(
            f"{what}: --run={run} was trained on {trained:,} of its {len(patients):,} patients; {REMEDY}"
        )
    if found and not selected_may:
        raise UserError(
            f"{what}: the best epoch of --run={run} was chosen on {len(found):,} of its "
            f"{len(patients):,} patients; {REMEDY}"
        )
