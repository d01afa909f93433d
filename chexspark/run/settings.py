"""The settings that a run began with: ``RUN/config.yaml``. Runs on the driver.

In: the run and the config asked for. Out: the settings that the run began with, or UserError. In the
file ``num_proc`` is how many ranks it began with, whatever was asked for. Settings of an older layout
are read under the names of today.
"""

import dataclasses
from typing import Any

import yaml

from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.lock import is_lock
from chexspark.run.checkpoint import Checkpoint, latest
from chexspark.run.folder import LAYOUT_VERSION, RunFolder, check_layout, check_model
from chexspark.run.lineage import read_lineage
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.store.manifest import Manifest
from chexspark.text_files import read_yaml
from chexspark.user_code import Code

# What may change from one start to the next: nothing that the weights depend on, but for rounding.
FREE = {"data", "run", "num_proc", "threads", "cache_mb", "fusion_mb", "autotune", "dry_run",
        "checkpoint_steps", "max_restarts", "min_proc", "stall_seconds", "wait_seconds", "private", "callbacks",
        "on_epoch", "registered_model", "timings", "trace", "at", "recipe"}  # fmt: skip
VERSION = "layout_version"
RENAMED = {1: {"plan": "dry_run"}}  # by layout version: old name → new name


def write_settings(run: RunFolder, settings: ResolvedTraining) -> None:
    """Write the effective settings, with the layout version first."""
    values = {VERSION: LAYOUT_VERSION} | effective_settings(settings)
    run.settings.write_text(yaml.safe_dump(values, sort_keys=False))


def effective_settings(settings: ResolvedTraining) -> dict[str, Any]:
    """The settings that the file has; of a function there is nothing to write."""
    values = dataclasses.asdict(settings.config) | {"num_proc": settings.began_with}
    del values["on_epoch"]
    return values


def read_settings(run: RunFolder) -> tuple[int, dict[str, Any]]:
    """The layout version and the settings by today's names; 1 and none where there is no file.

    Raises UserError for a damaged file, or a layout that is not known here.
    """
    if not run.settings.is_file():
        return 1, {}
    values = read_yaml(run.settings, str(run.settings), "copy the run again")
    version = check_layout(run, values.pop(VERSION, 1))
    names = RENAMED.get(version, {})
    return version, {names.get(name, name): value for name, value in values.items()}


def check_run(run: RunFolder) -> None:
    """Raise UserError unless the folder is a run of a layout known here, with a best model."""
    check_model(run)
    read_settings(run)


def earlier_settings(run: RunFolder) -> ResolvedTraining | None:
    """The settings of the run that is in this folder; none for a new or empty folder.

    How many ranks were asked for then is not known, and None. Raises UserError when there are files, but no run, or a run that cannot be resumed here.
    """
    if not run.place.exists():
        return None
    if not run.place.is_directory():
        raise UserError(f"--run={run} is a file: give a folder")
    if run.settings.is_file():
        version, values = read_settings(run)
        if version != LAYOUT_VERSION:
            raise UserError(
                f"--run={run} has layout version {version}, and only runs of version "
                f"{LAYOUT_VERSION} are resumed: give a new folder (evaluate, predict and report take "
                "this one as it is)"
            )
        try:
            config = build(TrainConfig, values)
            if config.num_proc is None:
                raise UserError("num_proc is missing")
        except UserError as error:
            raise UserError(f"{run.settings} is damaged: {error}") from error
        return ResolvedTraining(dataclasses.replace(config, num_proc=None), config.num_proc)
    # A doctor that was killed may have left a mark, a training a lock.
    names = [file.base_name for file in run.place.list_files()]
    if any(not name.startswith(".") and not is_lock(name) for name in names):
        raise UserError(f"--run={run} has files in it, but no run: give a new folder")
    return None


def check_same(run: RunFolder, config: TrainConfig, earlier: ResolvedTraining) -> None:
    """Raise UserError that lists what differs, where the weights would depend on it."""
    changed = [
        f"{name} was {was!r}, now {getattr(config, name)!r}"
        for name, was in dataclasses.asdict(earlier.config).items()
        if name not in FREE and was != getattr(config, name)
    ]
    if changed:
        raise UserError(
            f"--run={run} was begun with other settings: {'; '.join(changed)}; give these again to "
            "resume it, or a new folder"
        )


def check_same_store(run: RunFolder, manifest: Manifest) -> None:
    """Raise UserError when the run was begun on other images, or on other findings."""
    if not run.lineage.is_file():
        return
    lineage = read_lineage(run)
    if tuple(lineage["findings"]) != manifest.findings:
        began, now = (", ".join(names) for names in (lineage["findings"], manifest.findings))
        raise UserError(
            f"--run={run} was begun on other findings ({began}; now {now}): give the store that it "
            "was begun on, or a new folder"
        )
    if lineage["store_fingerprint"] != manifest.fingerprint:
        raise UserError(f"--run={run} was begun on another store: give that, or a new folder")


def check_same_code(run: RunFolder, code: Code | None) -> None:
    """Raise UserError when the code of a run's network has changed. `code`: None for one of chexspark's own."""
    if code is None or not run.lineage.is_file():
        return
    if read_lineage(run).get("network_sha256") != code.digest:
        raise UserError(
            f"--run={run} was begun with other code of --model={code.name}: give it as it was then, or a new folder"
        )


def last_checkpoint(run: RunFolder) -> Checkpoint | None:
    """The last checkpoint, as far as its state tells."""
    return latest(run.checkpoints, thorough=False)
