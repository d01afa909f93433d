"""Which patients a run has seen, so that it is never scored on them. Runs on ranks and the driver.

In: the store's splits. Out: ``RUN/trained_patients`` (Parquet: patient_hash, split), written when
training starts. Hashes, and not names: a run may travel further than its store.
"""

import hashlib

import pyarrow as pa

from chexspark.errors import UserError
from chexspark.run.folder import RunFolder
from chexspark.storage import Location
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import patients_of_split

SEEN = ("train", "val")  # learned from; chose the best epoch, the thresholds and the scaling


def patient_hash(patient_id: str) -> str:
    """SHA-256 of a patient's name in the store, hexadecimal."""
    return hashlib.sha256(patient_id.encode()).hexdigest()


def write_seen_patients(run: RunFolder, store: Location, manifest: Manifest) -> str:
    """Write the table and return the SHA-256 of its rows, for the lineage."""
    rows = sorted(
        (patient_hash(patient), split)
        for split in SEEN
        for patient in patients_of_split(store, manifest, split)
    )
    columns = list(zip(*rows, strict=True))
    run.seen_patients.write_table(pa.table(columns, names=["patient_hash", "split"]))
    return digest_of(rows)


def read_seen_patients(run: RunFolder) -> dict[str, str] | None:
    """Patient hash → split, as the run saw them; None without a table. Raises UserError for a damaged one."""
    if not run.seen_patients.is_directory():
        return None
    try:
        table = run.seen_patients.read_table().select(["patient_hash", "split"])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.seen_patients} is damaged ({reason}): copy the run again") from error
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def digest_of(rows: list[tuple[str, str]]) -> str:
    """SHA-256 of (patient hash, split) pairs in order."""
    lines = "".join(f"{patient}\t{split}\n" for patient, split in rows)
    return hashlib.sha256(lines.encode()).hexdigest()
