"""Which patient belongs to which split. Runs on the driver.

In: the labels, and how to split. Out: ``train``, ``val`` or ``test`` for each labelled image; a
patient's images are all in one.
"""

import hashlib
import logging
import unicodedata

import pandas as pd

from chexspark.config import IngestConfig
from chexspark.errors import UserError
from chexspark.ingestion.image_names import label_name
from chexspark.ingestion.split_by import by_date, check_known, patients_of_values, values_for_test
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS
from chexspark.text_files import read_csv_rows, read_text

log = logging.getLogger(__name__)

SHARES = (0.7, 0.1, 0.2)  # CheXNet's shares of the patients: train, val, test
VAL_OF_TRAIN_VAL = SHARES[1] / (SHARES[0] + SHARES[1])
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"


def patient_fraction(patient_id: str, seed: int) -> float:
    """A number of 0–1 from a hash of the patient: it does not change when others are added."""
    digest = hashlib.sha256(f"{seed}/{patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def random_split(patient_id: str, seed: int) -> str:
    """One of the three splits, 70/10/20."""
    fraction = patient_fraction(patient_id, seed)
    if fraction < SHARES[0]:
        return SPLITS[0]
    return SPLITS[1] if fraction < SHARES[0] + SHARES[1] else SPLITS[2]


def assign_splits(labels: pd.DataFrame, config: IngestConfig) -> dict[str, str]:
    """Return the split of each labelled image, by name; without those that a given split does not name.

    A label may lack a split as long as its image is not there. Raises UserError for a patient in
    two splits, and for files that cannot be read.
    """
    if config.split_file:
        return file_splits(labels, locate(config.split_file))
    if config.split == "official":
        return official_splits(labels, config)
    if config.split_by != "patient":
        splits = splits_by(labels, config)
        return dict(zip(labels["image_index"], labels["patient_id"].map(splits), strict=True))
    splits = {p: random_split(p, config.split_seed) for p in labels["patient_id"].unique()}
    return dict(zip(labels["image_index"], labels["patient_id"].map(splits), strict=True))


def splits_by(labels: pd.DataFrame, config: IngestConfig) -> dict[str, str]:
    """The split of each patient after `--split-by`: test is of others, or later. Raises UserError."""
    check_known(labels, config.split_by, config.append)
    if config.split_by == "date":
        return by_date(labels, SHARES)
    values = values_for_test(labels, config.split_by, SHARES[2], config.split_seed)
    test = patients_of_values(labels, config.split_by, values)
    log.info(f"test is of the {config.split_by} {', '.join(values)}: {len(test):,} patients")
    return {
        patient: "test" if patient in test else train_or_val(patient, config.split_seed)
        for patient in labels["patient_id"].unique()
    }


def train_or_val(patient_id: str, seed: int) -> str:
    """One patient in eight of those that are not for test is for validation."""
    return "val" if patient_fraction(patient_id, seed) < VAL_OF_TRAIN_VAL else "train"


def split_source(config: IngestConfig) -> str:
    """What says which image is in which split, for a message."""
    if config.split_file:
        return f"--split-file={config.split_file}"
    lists = list_folder(config)
    return f"{lists / TRAIN_VAL_LIST} and {TEST_LIST}"


def list_folder(config: IngestConfig) -> Location:
    """Where NIH's two lists are: beside the labels, unless said otherwise."""
    return locate(config.split_lists or locate(config.labels[0]).uri.rpartition("/")[0] or ".")


def official_splits(labels: pd.DataFrame, config: IngestConfig) -> dict[str, str]:
    """The split that the label file has a column of; else NIH's two lists.

    Of a column without val, one patient in eight of train is for validation.
    NIH's test list is the test split; of its other list, one patient in eight is for validation. Raises
    UserError where a list is missing, or an image or a patient is in both.
    """
    own = labels.set_index("image_index")["split"].dropna().to_dict() if "split" in labels else {}
    patients = labels.set_index("image_index")["patient_id"]
    if own:
        where = f"--split=official of --labels={' '.join(config.labels)}"
        splits = one_per_patient(labels, own, where)
        if "val" not in splits.values():  # a set of train and test only
            splits = {
                image: train_or_val(patients[image], config.split_seed)
                if split == "train"
                else split
                for image, split in splits.items()
            }
        return splits
    folder = list_folder(config)
    listed: dict[str, str] = {}
    labels_of = set(labels["image_index"])
    for name in (TRAIN_VAL_LIST, TEST_LIST):
        if not (folder / name).is_file():
            raise UserError(
                f"--split=official needs {folder / name}: put NIH's list there, or give --split-lists"
            )
        text = read_text(folder / name, f"--split=official: {folder / name}")
        for image in filter(None, map(str.strip, text.splitlines())):
            image = label_name(image, labels_of) or image
            if listed.setdefault(image, name) != name:
                raise UserError(f"{split_source(config)}: {image} is in both: keep it in one")
    lists = one_per_patient(labels, listed, split_source(config))
    return {
        image: "test" if name == TEST_LIST else train_or_val(patients[image], config.split_seed)
        for image, name in lists.items()
    }


def file_splits(labels: pd.DataFrame, place: Location) -> dict[str, str]:
    """A given split: a CSV with the columns ``split`` and ``patient`` or ``image``.

    Raises UserError naming the line, or for a patient in two splits.
    """
    where = f"--split-file={place}"
    rows = list(read_csv_rows(place, where))
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    key = next((name for name in ("patient", "image") if name in header), None)
    if key is None or "split" not in header or len(rows) < 2:
        raise UserError(f"{where} must have rows under patient (or image) and split")
    for name in (key, "split"):
        if header.count(name) > 1:
            raise UserError(f"{where} has {header.count(name)} columns of {name}: keep one")
    listed: dict[str, str] = {}
    images = set(labels["image_index"])
    for line, row in rows[1:]:
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        name, split = cells.get(key, ""), cells.get("split", "")
        if key == "image":
            name = label_name(name, images) or name
        name = unicodedata.normalize("NFC", name)
        if split not in SPLITS:
            raise UserError(f"{where}, line {line}: {split!r} is not one of {', '.join(SPLITS)}")
        if listed.setdefault(name, split) != split:
            raise UserError(
                f"{where}, line {line}: this {key} is in {listed[name]}, and here in {split}"
            )
    if key == "image":
        return one_per_patient(labels, listed, where)
    splits = labels.set_index("image_index")["patient_id"].map(listed)
    return splits.dropna().to_dict()


def one_per_patient(labels: pd.DataFrame, listed: dict[str, str], where: str) -> dict[str, str]:
    """What is listed of the labelled images. Raises UserError where a patient is in two splits."""
    found = labels["image_index"].map(listed)
    numbers = found.groupby(labels["patient_id"]).nunique()
    crossing = numbers.index[numbers > 1]
    if len(crossing):
        first = labels["image_index"][(labels["patient_id"] == crossing[0]) & found.notna()].iloc[0]
        raise UserError(
            f"{where}: {len(crossing)} patients are in two splits, the first that of {first}"
        )
    return found.set_axis(labels["image_index"]).dropna().to_dict()


def split_hash(splits: dict[str, str]) -> str:
    """SHA-256 of who is where; the same split gives the same, whatever the order."""
    lines = "".join(f"{patient}\t{split}\n" for patient, split in sorted(splits.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
