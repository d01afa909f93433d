"""Which patient belongs to which split. Runs on the driver.

In: the labels, and how to split. Out: ``train``, ``val`` or ``test`` for each patient, never for an
image: a patient's images stay together.
"""

import csv
import hashlib
import io

import pandas as pd

from chexspark.config import IngestConfig
from chexspark.errors import UserError
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS

SHARES = (0.7, 0.1, 0.2)  # CheXNet's shares of the patients: train, val, test
VAL_OF_TRAIN_VAL = SHARES[1] / (SHARES[0] + SHARES[1])
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"


def draw(patient_id: str, seed: int) -> float:
    """A number of 0–1 from a hash of the patient: it does not change when others are added."""
    digest = hashlib.sha256(f"{seed}/{patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def random_split(patient_id: str, seed: int) -> str:
    """One of the three splits, 70/10/20."""
    drawn = draw(patient_id, seed)
    if drawn < SHARES[0]:
        return SPLITS[0]
    return SPLITS[1] if drawn < SHARES[0] + SHARES[1] else SPLITS[2]


def assign_splits(labels: pd.DataFrame, config: IngestConfig) -> dict[str, str]:
    """Return the split of each patient in the labels.

    Raises UserError for a patient in two splits, or an image or patient in none.
    """
    if config.split_file:
        return file_splits(labels, locate(config.split_file))
    if config.split == "official":
        return official_splits(labels, config)
    return {p: random_split(p, config.split_seed) for p in labels["patient_id"].unique()}


def official_splits(labels: pd.DataFrame, config: IngestConfig) -> dict[str, str]:
    """NIH's test list as the test split; of its other list, one patient in eight for validation."""
    folder = locate(config.split_lists or locate(config.labels).uri.rpartition("/")[0] or ".")
    listed = {}
    for name, part in ((TRAIN_VAL_LIST, "train and val"), (TEST_LIST, "test")):
        if not (folder / name).is_file():
            raise UserError(
                f"--split official needs {folder / name}: put NIH's list there, or give --split-lists"
            )
        listed |= dict.fromkeys((folder / name).read_text().split(), part)
    parts = one_per_patient(labels, listed, f"{folder / TRAIN_VAL_LIST} and {TEST_LIST}")
    return {
        patient: "test"
        if part == "test"
        else ("val" if draw(patient, config.split_seed) < VAL_OF_TRAIN_VAL else "train")
        for patient, part in parts.items()
    }


def file_splits(labels: pd.DataFrame, place: Location) -> dict[str, str]:
    """One's own split: a CSV with the columns ``split`` and ``patient`` or ``image``."""
    if not place.is_file():
        raise UserError(f"--split-file {place}: there is no such file")
    rows = list(csv.DictReader(io.StringIO(place.read_bytes().decode("utf-8-sig"))))
    key = next((name for name in ("patient", "image") if rows and name in rows[0]), None)
    if key is None or "split" not in rows[0]:
        raise UserError(f"--split-file {place} must have rows under patient (or image) and split")
    listed = {}
    for line, row in enumerate(rows, start=2):
        name, split = (row[key] or "").strip(), (row["split"] or "").strip()
        if split not in SPLITS:
            raise UserError(
                f"--split-file {place}, line {line}: {split!r} is not one of {', '.join(SPLITS)}"
            )
        if listed.setdefault(name, split) != split:
            raise UserError(
                f"--split-file {place}, line {line}: {key} {name} is in {listed[name]} and in {split}"
            )
    if key == "image":
        return one_per_patient(labels, listed, str(place))
    missing = sorted(set(labels["patient_id"]) - set(listed))
    if missing:
        raise UserError(
            f"--split-file {place} lacks {len(missing)} patients, the first {missing[0]}"
        )
    return {patient: listed[patient] for patient in labels["patient_id"].unique()}


def one_per_patient(labels: pd.DataFrame, listed: dict[str, str], where: str) -> dict[str, str]:
    """From splits of images to splits of patients. Raises UserError when they do not agree."""
    found = labels["image_index"].map(listed)
    if found.isna().any():
        first = labels["image_index"][found.isna()].iloc[0]
        raise UserError(f"{where} lack {found.isna().sum()} labelled images, the first {first}")
    splits = found.groupby(labels["patient_id"]).agg(["nunique", "first"])
    crossing = splits.index[splits["nunique"] > 1]
    if len(crossing):
        raise UserError(
            f"{where}: {len(crossing)} patients are in two splits, the first {crossing[0]}"
        )
    return splits["first"].to_dict()


def split_hash(splits: dict[str, str]) -> str:
    """SHA-256 of who is where; the same split gives the same, whatever the order."""
    lines = "".join(f"{patient}\t{split}\n" for patient, split in sorted(splits.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
