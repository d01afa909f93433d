"""Which patients a run has seen, so that it is never scored on them. Runs on ranks and the driver.

In: the store's splits. Out: ``RUN/trained_patients`` (Parquet: patient_hash, split), written when
training starts. Hashes, and not names: a run may travel further than its store. They are salted and
slow (scrypt), so that a patient can be looked up and a list of all possible names is dear to try.
"""

import functools
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from chexspark.errors import UserError
from chexspark.progress import ProgressLine
from chexspark.run.folder import RunFolder
from chexspark.run.lineage import Lineage, read_lineage
from chexspark.storage import Location
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import patients_of_split

SEEN = ("train", "val")  # learned from; chose the best epoch, the thresholds and the scaling
SALT = re.compile(r"[0-9a-f]{32}")
SCRYPT_COST, SCRYPT_BLOCK = 2**10, 8  # 1 MiB and about 2 ms a patient
KEPT_HASHES = 2**17  # a process's, for several runs of one store
SHOWN_EACH = 100  # patients


@dataclass(frozen=True)
class SeenPatients:
    """What ``trained_patients`` says: patient hash → split, and the hashes' salt."""

    splits: dict[str, str]
    salt: str | None  # None: plain SHA-256, of a run from before they were salted

    def among(self, patients: Collection[str]) -> list[str]:
        """The splits of those of some patients that the run has seen. Seconds for thousands, and says so."""
        found: list[str] = []
        with ProgressLine() as line:
            for number, text in enumerate(patient_hashes(patients, self.salt)):
                if number % SHOWN_EACH == 0:
                    line.show(
                        f"looking for patients that the run has seen: {number:,} of {len(patients):,}"
                    )
                if text in self.splits:
                    found.append(self.splits[text])
        return found


def salt_of(fingerprint: str) -> str:
    """The salt of a store's patients, hexadecimal: runs of one store share it, so that an ensemble's
    patients are hashed once, and the same training writes the same."""
    return hashlib.sha256(f"patients of {fingerprint}".encode()).hexdigest()[:32]


def patient_hashes(patients: Iterable[str], salt: str | None) -> Iterator[str]:
    """Yield the hash of each patient's name in the store, hexadecimal, in order; calculated on all cores."""
    if salt is None:
        yield from (hashlib.sha256(patient.encode()).hexdigest() for patient in patients)
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(functools.partial(slow_hash, salt), patients)


@functools.lru_cache(KEPT_HASHES)
def slow_hash(salt: str, patient: str) -> str:
    """See `patient_hashes`."""
    return hashlib.scrypt(
        patient.encode(), salt=bytes.fromhex(salt), n=SCRYPT_COST, r=SCRYPT_BLOCK, p=1, dklen=32
    ).hex()


def write_seen_patients(run: RunFolder, store: Location, manifest: Manifest) -> tuple[str, str]:
    """Write the table, unless it is there, and return salt and digest of its rows, for the lineage."""
    salt = salt_of(manifest.fingerprint)
    if run.lineage.is_file():
        lineage = read_lineage(run)
        if lineage.get("patient_salt") == salt and read_seen_patients(run, lineage):
            return salt, lineage["trained_patients"]
    rows = sorted(
        (text, split)
        for split in SEEN
        for text in patient_hashes(patients_of_split(store, manifest, split), salt)
    )
    columns = list(zip(*rows, strict=True))
    run.seen_patients.write_table(pa.table(columns, names=["patient_hash", "split"]))
    return salt, digest_of(rows, salt)


def read_seen_patients(run: RunFolder, lineage: Lineage) -> SeenPatients | None:
    """What the run has seen; None for a run from before that was written down.

    Raises UserError where the table is missing, damaged or not the lineage's.
    """
    told = lineage.get("trained_patients")
    if not run.seen_patients.is_directory():
        if told:
            raise UserError(f"{run.seen_patients} is missing: copy it along with the run")
        return None
    try:
        table = run.seen_patients.read_table().select(["patient_hash", "split"])
        splits = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.seen_patients} is damaged ({reason}): copy the run again") from error
    salt = lineage.get("patient_salt")
    if salt is not None and not (isinstance(salt, str) and SALT.fullmatch(salt)):
        raise UserError(
            f"{run.lineage} is damaged: patient_salt is {salt!r:.60}; copy the run again"
        )
    if digest_of(sorted(splits.items(), key=str), salt) != told:
        raise UserError(
            f"{run.seen_patients} is not the table that {run.lineage} tells of: one of the two "
            "was changed; copy the run again, or train again"
        )
    return SeenPatients(splits, salt)


def digest_of(rows: list[tuple[str, str]], salt: str | None) -> str:
    """SHA-256 of the salt and of (patient hash, split) pairs in order."""
    lines = "".join(f"{patient}\t{split}\n" for patient, split in rows)
    return hashlib.sha256(((f"{salt}\n" if salt else "") + lines).encode()).hexdigest()
