"""Runs as the evaluation needs them, checked before Spark is asked for anything. Runs on the driver.

In: runs and what is to be scored. Out: their models and findings, or a UserError. What is worth a
note is returned, and said by who asked.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from chexspark.errors import UserError, listed
from chexspark.evaluation import seen_patients_check
from chexspark.evaluation.inference import Model
from chexspark.evaluation.store_split import StoreSplit
from chexspark.findings import shared
from chexspark.models import LOGITS, MODELS
from chexspark.models.custom import find_networks, is_custom
from chexspark.models.model_files import DAMAGE, has_own_code, opened_arrays, shapes_of
from chexspark.preparation import Preparation
from chexspark.run.best import best_digest, model_findings, model_preparation
from chexspark.run.folder import RunFolder, model_and_digest, run_folder
from chexspark.run.lineage import network_size_of, preparation_of, read_lineage
from chexspark.run.seen_patients import read_seen_patients
from chexspark.run.settings import check_run, read_settings
from chexspark.storage import Location
from chexspark.store.manifest import Manifest

NOT_CHECKED = "--predictions is not checked against training patients"
PROMOTION_SECONDS = 1.0  # in which a training has replaced both files of its best epoch
NAMES = {
    "size": "image size",
    "fit": "fit",
    "bit_depth": "bit depth",
}  # of a preparation, for people


class Shared(NamedTuple):
    """Findings that all have, and what to say of the others."""

    findings: tuple[str, ...]
    note: str | None  # which of the findings who lacks; None where all have the same


def different_runs(names: Sequence[str]) -> list[RunFolder]:
    """The runs of an ensemble. Raises UserError where one is named twice."""
    runs = [run_folder(name) for name in names]
    if len({str(run) for run in runs}) < len(runs):
        raise UserError("--run names a run twice: an ensemble needs different ones")
    return runs


def best_model(run: RunFolder, networks: Iterable[str] = ()) -> Model:
    """The run's best model, with its digest and the findings of its outputs.

    `networks`: of the user's own, those that the user names. Raises UserError where the run is of another one,
    and where the model itself says other findings, or other images: one of the two is not this run's.
    """
    uri, digest = recorded_model(run)
    lineage = read_lineage(run)
    findings, said = tuple(lineage["findings"]), model_findings(run.best_model)
    if said not in (None, findings):
        raise UserError(
            f"--run={run}: its lineage names the findings {listed(findings)}, and its best model "
            f"{listed(said)}: one of the two was changed; copy the run again"
        )
    made, size = preparation_of(lineage), network_size_of(lineage)
    taken = model_preparation(run.best_model)
    if taken not in (None, (made, size)):
        told = [
            f"{how.words()}, reduced to {of}" * (of != how.size) or how.words()
            for how, of in ((made, size), taken)
        ]
        raise UserError(
            f"--run={run}: its lineage tells of images of {told[0]}, and its best model of "
            f"{told[1]}: one of the two was changed; copy the run again"
        )
    name = network_of(run)
    if not is_custom(name):
        check_own_outputs(run, len(findings))
        return Model(uri, digest, findings, name, size)
    code = find_networks(networks).get(name)
    if code is None:
        raise UserError(
            f"--run={run} was trained with {name}, a network of its user's own, whose code is not run because a "
            f"file names it: name it again, --model={name}"
        )
    same = lineage.get("network_sha256") == code.digest
    check_own_code(run, name, same)
    return Model(uri, digest, findings, name, size, code, same)


def best_models(runs: Sequence[RunFolder], networks: Sequence[str]) -> tuple[Model, ...]:
    """The best models of runs, as of `best_model`. Raises UserError for a network that none of them has, too."""
    models = tuple(best_model(run, networks) for run in runs)
    unused = [name for name in networks if name not in [model.network for model in models]]
    if unused:
        which = listed(dict.fromkeys(model.network for model in models))
        raise UserError(f"--model={unused[0]}: --run was trained with {which}: leave it out")
    return models


def recorded_model(run: RunFolder) -> tuple[str, str]:
    """The URI and SHA-256 of the best model. Raises UserError where best.json tells of another.

    A training that goes on replaces both, one after the other: it is looked twice.
    """
    for seconds in (0, PROMOTION_SECONDS):
        time.sleep(seconds)
        uri, digest = model_and_digest(run)
        recorded = best_digest(run)
        if recorded in (None, digest):
            return uri, digest
    raise UserError(
        f"--run={run}: best/model.keras is not the file that training wrote (its SHA-256 is "
        f"{digest[:12]}…, and best.json tells of {str(recorded)[:12]}…): copy the run again"
    )


def network_of(run: RunFolder) -> str:
    """The network that a run was trained with. Raises UserError for one that has no name of a network."""
    if not run.settings.is_file():
        raise UserError(
            f"--run={run} has no config.yaml, which says what network it is: copy the run again"
        )
    name = read_settings(run)[1].get("model")
    if not isinstance(name, str) or not (name in MODELS or is_custom(name)):
        raise UserError(
            f"--run={run}: its config.yaml names the network {name!r}, which is none of "
            f"{', '.join(MODELS)}: its model cannot be built here"
        )
    return name


def check_own_code(run: RunFolder, network: str, same: bool) -> None:
    """Raise UserError for a damaged model of a network of the user's own, or one whose layers are now other code.

    `same`: whether its code is what the run was trained with. Layers of Keras's own are compared when it is loaded.
    """
    place = run.best_model
    try:
        own = has_own_code(place.read_bytes())
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{place} is damaged ({reason}): copy the run again") from error
    if own and not same:
        raise UserError(
            f"--model={network}: its code has changed since --run={run} was trained, and the network has layers of "
            "its own, which may do something else now: give it as it was then"
        )


def check_own_outputs(run: RunFolder, number: int) -> None:
    """Raise UserError for a best model that is damaged, or has another number of outputs than findings."""
    place = run.best_model
    try:
        with place.filesystem.open_input_file(place.path) as file, opened_arrays(file) as arrays:
            outputs = shapes_of(arrays).get(LOGITS, [()])[-1]
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{place} is damaged ({reason}): copy the run again") from error
    if outputs != (number,):
        raise UserError(
            f"{place} has {outputs[0] if outputs else 'no'} outputs, but the lineage of its run names "
            f"{number} findings: one of the two was changed; copy the run again"
        )


def one_preparation(runs: Iterable[RunFolder], bit_depth: int | None = None) -> Preparation:
    """How images are made for all the runs; with `bit_depth`, of that.

    Raises UserError where the runs differ in it, or have no model.
    """
    made = {}
    for run in runs:
        check_run(run)
        found = preparation_of(read_lineage(run))
        made[dataclasses.replace(found, bit_depth=bit_depth or found.bit_depth)] = run
    for name, remedy in (("size", ""), ("fit", ""), ("bit_depth", "; give --bit-depth")):
        values = {getattr(how, name): run for how, run in made.items()}
        if len(values) > 1:
            told = ", ".join(f"{run} has {'none' if value is None else value}" for value, run in values.items())  # fmt: skip
            raise UserError(f"--run: an ensemble needs one {NAMES[name]}, but {told}{remedy}")
    return next(iter(made))


def shared_findings(holders: Mapping[str, Sequence[str]]) -> Shared:
    """The findings that all have, by name, in the order of the first.

    `holders`: what a message calls the store or the run → its findings. Raises UserError where they
    share none.
    """
    findings = shared(holders.values())
    if not findings:
        having = "; ".join(f"{name} has {listed(has)}" for name, has in holders.items())
        raise UserError(f"no finding is shared by all, and they go by name: {having}")
    anywhere = dict.fromkeys(f for has in holders.values() for f in has)
    lacking = {name: [f for f in anywhere if f not in has] for name, has in holders.items()}
    parts = [f"{name} lacks {listed(lacks)}" for name, lacks in lacking.items() if lacks]
    if not parts:
        return Shared(findings, None)
    number = f"{len(findings)} finding{'s' if len(findings) > 1 else ''} that all have"
    return Shared(findings, f"scored on the {number}: {'; '.join(parts)}")


def check_fit(store: Location, run: RunFolder, manifest: Manifest) -> None:
    """Raise UserError unless the run has a model of images as the store has: of their size, and of their
    fit where that makes a difference."""
    check_run(run)
    how = preparation_of(read_lineage(run))
    if how.size != manifest.image_size:
        raise UserError(
            f"--data={store} has images of {manifest.image_size} pixels, but --run={run} was trained "
            f"at {how.size}: ingest with --size={how.size}"
        )
    if how.fit != manifest.fit and manifest.not_square != 0:
        number = "" if manifest.not_square is None else f"{manifest.not_square:,} "
        raise UserError(
            f"--data={store} has {number}images that were not square and made so by --fit={manifest.fit}, but "
            f"--run={run} was trained with --fit={how.fit}: ingest with --fit={how.fit}"
        )


def check_seen(runs: Iterable[RunFolder], split: StoreSplit) -> None:
    """Raise UserError when a run has seen patients of the split, or the split has none."""
    if not split.images:
        raise UserError(f"--split={split.name} of {split.store} has no images")
    patients = split.patients()
    for run in runs:
        seen_patients_check.check_split(run, split, patients)


def validation_fault(runs: Iterable[RunFolder], val: StoreSplit) -> str | None:
    """Why thresholds and scaling cannot be fitted on the validation split; None: they can."""
    if not val.images:
        return f"the val split of {val.store} has no images"
    patients = val.patients()
    try:
        for run in runs:
            seen_patients_check.check_split(run, val, patients)
    except UserError as error:
        return str(error)
    return None


def check_scored_by(runs: Sequence[RunFolder], table: pd.DataFrame) -> str | None:
    """Raise UserError when a run whose scores are given was trained or selected on patients of theirs.

    `runs`: as the user names them; what a ``run`` column says is not opened. Returns what to say where the
    check was not made, or not for all that the column names.
    """
    for run in runs:
        seen = read_seen_patients(run, read_lineage(run))
        if seen is None:
            raise UserError(f"--run={run} does not say which patients it has seen: leave it out")
        patients = set(table["patient_id"])
        seen_patients_check.check_patients(run, seen, patients, "--predictions", selected_may=False)
    column = table.get("run", pd.Series(dtype=str)).dropna().unique()
    named = {name for names in column for name in str(names).split(" + ")}
    others = sorted(named - {str(run) for run in runs})
    if runs and not others:
        return None
    which = f" (they say that they are of {listed(others, 3)}: give --run)" if others else ""
    return f"{NOT_CHECKED}{which}"
