"""Splits by what is known of patients: their hospital, their device, when they came. Pure; runs on the driver.

In: a row per image with patient and fact. Out: the split of each patient. Patients are never divided.
By institution, manufacturer or device the test split is of others than the training split; by date it is
later. Both tell how a network does where, or when, it was not trained.
"""

import hashlib

import numpy as np
import pandas as pd

from chexspark.errors import UserError

COLUMNS = {"institution": "institution", "manufacturer": "manufacturer", "device": "device",
           "date": "study_date"}  # fmt: skip
UNKNOWN_VALUE = "unknown"


def check_known(rows: pd.DataFrame, by: str, append: bool = False) -> None:
    """Raise UserError where the fact of `by` is known of no image, or has one value only.

    `append`: the images are to be added to others.
    """
    values = rows[COLUMNS[by]].dropna().nunique()
    if values == 0:
        raise UserError(
            f"--split-by={by}: it is known of no image: the label file needs a column of it, or, of DICOM "
            f"files, give --dicom-columns={by}"
        )
    if values == 1:
        raise UserError(
            f"--split-by={by}: all images have the same, {rows[COLUMNS[by]].dropna().iloc[0]}"
            + f": a store that is split by {by} takes no more, so ingest all into a new folder"
            * append
        )


def values_for_test(rows: pd.DataFrame, by: str, share: float, seed: int) -> list[str]:
    """The values of a fact that are for the test split: so many that it has about `share` of the patients.

    They are taken in the order of a hash, `seed` with it. Images of unknown value are never among them.
    """
    patients = rows.groupby(rows[COLUMNS[by]].fillna(UNKNOWN_VALUE))["patient_id"].nunique()
    known = [str(value) for value in patients.index if value != UNKNOWN_VALUE]
    aim, taken, total = share * rows["patient_id"].nunique(), list[str](), 0
    for value in sorted(known, key=lambda v: hashlib.sha256(f"{seed}/{v}".encode()).digest()):
        number = int(patients[value])
        if abs(total + number - aim) < abs(total - aim) and len(taken) + 1 < len(patients):
            taken.append(value)
            total += number
    return taken or [min(known, key=lambda value: (patients[value], value))]


def patients_of_values(rows: pd.DataFrame, by: str, values: list[str]) -> set[str]:
    """The patients with an image of one of the values."""
    return set(rows.loc[rows[COLUMNS[by]].isin(values), "patient_id"])


def by_date(rows: pd.DataFrame, shares: tuple[float, float, float]) -> dict[str, str]:
    """Patient → split, by the date of their last image: the earliest are train, then val, the latest test.

    `shares`: of the patients, about; patients of one date are not divided. Those of whom no date is known
    are in train.
    """
    last = rows.groupby("patient_id")["study_date"].agg(
        lambda dates: max(dates.dropna(), default="")
    )
    known = last[last != ""].sort_values()
    dates, first = np.unique(known.to_numpy(str), return_index=True)

    def border(share: float) -> str:
        """The date whose first patient is nearest to `share` of them."""
        return str(dates[np.abs(first - share * len(known)).argmin()])

    borders = border(shares[0]), border(shares[0] + shares[1])
    return {
        patient: "train" if date < borders[0] else "val" if date < borders[1] else "test"
        for patient, date in last.items()
    }
