"""Whether a run is new, may go on, or is finished. Runs on the driver.

In: the run's folder and the config asked for. Out: the config to run with, or UserError.
"""

import dataclasses
import json

import yaml

from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.run.checkpoint import Checkpoint, latest
from chexspark.settings import build
from chexspark.storage import Location
from chexspark.store.manifest import Manifest

# What may change from one start to the next: nothing that the weights depend on, but for rounding.
FREE = {"data", "run", "num_proc", "threads", "cache_mb", "fusion_mb", "autotune", "plan",
        "checkpoint_steps", "max_restarts", "min_proc", "stall_seconds",
        "wait_seconds"}  # fmt: skip


def earlier_config(run: Location) -> TrainConfig | None:
    """The config of the run that is in this folder; none for a new or empty folder.

    Raises UserError when there are files, but no run.
    """
    if not run.exists():
        return None
    if not run.is_directory():
        raise UserError(f"--run {run} is a file: give a folder")
    place = run / "config.yaml"
    if place.is_file():
        return build(TrainConfig, yaml.safe_load(place.read_text()))
    # A doctor that was killed may have left a mark.
    if any(not file.base_name.startswith(".") for file in run.list_files()):
        raise UserError(f"--run {run} has files in it, but no run: give a new folder")
    return None


def check_same(run: Location, config: TrainConfig, earlier: TrainConfig) -> None:
    """Raise UserError that lists what differs, where the weights would depend on it."""
    changed = [
        f"{name} was {was!r}, now {getattr(config, name)!r}"
        for name, was in dataclasses.asdict(earlier).items()
        if name not in FREE and was != getattr(config, name)
    ]
    if changed:
        raise UserError(
            f"--run {run} was begun with other settings: {'; '.join(changed)}; give these again to "
            "go on, or a new folder"
        )


def check_store(run: Location, manifest: Manifest) -> None:
    """Raise UserError when the run was begun on other images."""
    lineage = run / "lineage.json"
    if lineage.is_file():
        known = json.loads(lineage.read_text())["store_fingerprint"]
        if known != manifest.fingerprint:
            raise UserError(f"--run {run} was begun on another store: give that, or a new folder")


def standing(run: Location) -> Checkpoint | None:
    """The last checkpoint, as far as its state tells."""
    return latest(run / "checkpoints", thorough=False)
