"""Where a run comes from: ``RUN/lineage.json``. Written on rank 0, read on the driver."""

import json
from typing import NotRequired, TypedDict, cast, get_type_hints

from chexspark.errors import UserError
from chexspark.findings import names_fault, of_file
from chexspark.json_types import misfit
from chexspark.preparation import STRETCH, Preparation
from chexspark.run.folder import RunFolder
from chexspark.text_files import read_json


class Placed(TypedDict):
    """Where one rank ran."""

    rank: int
    host: str
    device: str  # GPU:0, CPU
    threads: int


class Lineage(TypedDict):
    """The file's content. A run from before they were recorded lacks `trained_patients`, `patient_salt`,
    `findings`, which then are NIH's 14, `fit` (stretch) and `bit_depth`; `read_lineage` puts these three in."""

    store: str  # path or URI
    store_fingerprint: str
    split_hash: str
    trained_patients: str  # SHA-256 of the table of seen patients
    patient_salt: str  # of the hashes in it, hexadecimal
    image_size: int  # pixels
    fit: str  # how images that are not square were fitted into a square
    bit_depth: int | None  # of 16-bit PNGs; None: found per file
    findings: list[str]  # in the order of the model's outputs
    chexspark: str
    python: str
    packages: dict[str, str]  # name → version
    ranks: list[Placed]
    network_size: NotRequired[
        int
    ]  # that images are reduced to before the network; without it, none is
    network: NotRequired[str]  # package.module:function of the user's own; never imported from here
    network_sha256: NotRequired[str]  # of its code


NEEDED = {"image_size": int, "store_fingerprint": str}  # by those who read a run
# Types of what is believed where it is there; the rest has checks of its own.
OTHERS = {
    name: kind
    for name, kind in get_type_hints(Lineage).items()
    if name
    not in ("image_size", "store_fingerprint", "fit", "bit_depth", "findings", "patient_salt")
}


def write_lineage(run: RunFolder, lineage: Lineage) -> None:
    """Write the file."""
    run.lineage.write_text(json.dumps(lineage, indent=1) + "\n")


def read_lineage(run: RunFolder) -> Lineage:
    """Read and check the file. Raises UserError where there is none, or where it is damaged."""
    if not run.lineage.is_file():
        raise UserError(
            f"--run={run} has no lineage.json: give a folder that chexspark train wrote"
        )
    found = read_json(run.lineage, str(run.lineage), "copy the run again")
    for name, kind in NEEDED.items():
        if not isinstance(found.get(name), kind):
            raise UserError(
                f"{run.lineage} is damaged: {name} is {found.get(name)!r}; copy the run again"
            )
    found = {"fit": STRETCH, "bit_depth": None} | found | {"findings": of_file(found)}
    if fault := misfit(found, OTHERS):
        raise UserError(f"{run.lineage} is damaged: {fault}; copy the run again")
    try:
        preparation = preparation_of(cast(Lineage, found))
        check_network_size(found.get("network_size", preparation.size), preparation)
    except ValueError as error:
        raise UserError(f"{run.lineage} is damaged: {error}; copy the run again") from error
    fault = names_fault(found["findings"]) if isinstance(found["findings"], list) else "is no list"
    if fault:
        raise UserError(f"{run.lineage} is damaged: findings {fault}; copy the run again")
    return cast(Lineage, found)


def network_size_of(lineage: Lineage) -> int:
    """Height and width of the images that the network takes, pixels."""
    return lineage.get("network_size", lineage["image_size"])


def check_network_size(size: object, preparation: Preparation) -> None:
    """Raise ValueError for what is no size that images of a store can be reduced to."""
    if type(size) is not int or not 1 <= size <= preparation.size:
        raise ValueError(f"network_size is {size!r}, of images of {preparation.size} pixels")


def preparation_of(lineage: Lineage) -> Preparation:
    """How the images that the run was trained on were made. Raises ValueError for what cannot be."""
    return Preparation(lineage["image_size"], lineage["fit"], lineage["bit_depth"])
