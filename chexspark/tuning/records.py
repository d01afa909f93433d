"""What is known of a search's trials: ``OUT/trials.json``, from which it is resumed. Runs on the driver.

In: the folder of a search. Out: its places, and a record per trial. The file is written whole after every change.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_type_hints

from chexspark.errors import UserError
from chexspark.json_types import misfit
from chexspark.storage import Location
from chexspark.text_files import is_whole, read_json, with_checksum

State = Literal["running", "done", "pruned", "failed", "refused"]
STATES = ("running", "done", "pruned", "failed", "refused")


class EpochFigures(TypedDict):
    """An epoch of a trial, counted from 1."""

    epoch: int
    val_auroc: float | None
    val_loss: float | None
    best: bool  # so far, by what the settings say makes an epoch the best


class TrialRecord(TypedDict):
    """A trial. `refused`: its settings contradict each other; `failed`: it ended early, twice."""

    number: int  # from 1
    state: str  # of STATES
    chosen: dict[str, Any]  # of the settings that are searched
    epochs: list[EpochFigures]
    attempts: list[str]  # how those ended that were begun again, in words
    reason: str  # why it is pruned, failed or refused; empty for others
    seconds: float


class SearchRecord(TypedDict):
    """The file's content."""

    space: str  # its YAML, as it was read
    store: str
    store_fingerprint: str
    trials: list[TrialRecord]
    checksum: NotRequired[str]


@dataclass(frozen=True)
class SearchFolder:
    """The folder of a search, and what is in it."""

    place: Location

    def __str__(self) -> str:
        return str(self.place)

    @property
    def records(self) -> Location:
        """A record per trial, JSON."""
        return self.place / "trials.json"

    @property
    def table(self) -> Location:
        """The same as a table, Parquet."""
        return self.place / "trials"

    @property
    def recipe(self) -> Location:
        """The settings of the best trial."""
        return self.place / "best.yaml"

    @property
    def page(self) -> Location:
        """The results, one HTML file."""
        return self.place / "search.html"

    def run_of(self, number: int) -> Location:
        """The run of a trial."""
        return self.place / "runs" / f"trial-{number:03}"

    @property
    def output(self) -> Location:
        """The folder of what trials' drivers said."""
        return self.place / "output"

    def output_of(self, number: int) -> Location:
        """What a trial's driver said, text."""
        return self.output / f"trial-{number:03}.txt"


def write_records(folder: SearchFolder, record: SearchRecord) -> None:
    """Write the file."""
    folder.records.write_text(json.dumps(with_checksum(record), indent=1) + "\n")


def read_records(folder: SearchFolder) -> SearchRecord | None:
    """What the file says; None where there is none. Raises UserError for damage."""
    if not folder.records.is_file():
        return None
    found = read_json(folder.records, str(folder.records))
    hints = get_type_hints(SearchRecord)
    fault = misfit(found, hints)
    missing = [name for name in hints if name not in found and name != "checksum"]
    if missing:
        fault = f"{missing[0]} is missing"
    if not fault and not is_whole(found):
        fault = "its checksum does not fit"
    if fault or any(trial["state"] not in STATES for trial in found["trials"]):
        raise UserError(f"{folder.records} is damaged: {fault or 'a state that is none'}; give a new folder")  # fmt: skip
    return found  # type: ignore[return-value]


def best_of(trial: TrialRecord) -> EpochFigures | None:
    """The epoch of a trial whose model its run keeps; None where there is none, or where it has no AUROC."""
    kept = [epoch for epoch in trial["epochs"] if epoch["best"]]
    return kept[-1] if kept and kept[-1]["val_auroc"] is not None else None


def best_trial(trials: list[TrialRecord]) -> TrialRecord | None:
    """The trial that was trained to its end with the highest validation AUROC."""
    done = [(best["val_auroc"] or 0.0, trial) for trial in trials
            if trial["state"] == "done" and (best := best_of(trial))]  # fmt: skip
    return max(done, key=lambda pair: pair[0])[1] if done else None
