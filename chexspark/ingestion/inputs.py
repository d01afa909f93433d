"""What the driver knows before Spark starts. Runs on the driver.

In: the config. Out: labels with their splits, image files and archives, boxes; what does not match.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from chexspark.config import IngestConfig
from chexspark.errors import UserError, listed
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.boxes import Boxes
from chexspark.ingestion.dicom_headers import Key, Texts, asked_facts, filled
from chexspark.ingestion.image_names import common_parts, label_name, label_names, plain_path
from chexspark.ingestion.labels import UNJOINED, Labels, read_labels
from chexspark.ingestion.sets import ImageSet, image_set, set_note
from chexspark.ingestion.sources import (
    SourceFile,
    Sources,
    find_sources,
    passed_over_words,
    same_file,
)
from chexspark.ingestion.splits import assign_splits, split_source
from chexspark.ingestion.task import Label
from chexspark.ingestion.views import of_views
from chexspark.storage import locate
from chexspark.store.manifest import SPLITS, Manifest
from chexspark.store.schema import FACTS

NO_LABEL, NO_IMAGE, DUPLICATE_IMAGE, OTHER_VIEW, PASSED_OVER = (
    "image without a label",
    "label without an image",
    "duplicate image",
    "image of another view, or of none that is known",
    "file that is no image",
)
SHOWN = 3  # examples of what is refused
LISTED = 30  # names of what is left alone


@dataclass(frozen=True)
class IngestInputs:
    """All that goes in. `unmatched`: (name, kind) of what the labels and the images do not share."""

    labels: dict[str, Label]  # by image name, without the prefix of its set
    left_out: frozenset[str]  # names of labels that are not asked for
    findings: tuple[str, ...]  # in the order of each label
    files: list[SourceFile]  # one per name
    archives: list[SourceFile]
    unreadable: list[SourceFile]  # files without a label that cannot be read
    boxes: pa.Table | None
    notes: list[str]  # what was left alone, or could not be read, a line each
    table: str  # how many images have each finding, for people
    label_form: str  # the name of the set whose form the labels have
    image_set: ImageSet
    means: dict[str, tuple[str, ...]]  # name → findings whose mean stands beside that of all
    unmatched: list[tuple[str, str]]
    digest: str  # of names, sizes, times, labels, splits and boxes: the same input gives the same
    needed: tuple[str, ...] = SPLITS  # those that may not be empty


def read_inputs(
    config: IngestConfig,
    findings: tuple[str, ...],
    before: Manifest | None,
    read_headers: Callable[[Sources], dict[Key, Texts]],
) -> IngestInputs:
    """Read labels, splits and boxes, find the images. Raises UserError for what does not fit.

    `findings`: those to take, as `read_labels` has them. `before`: the store that is added to.
    `read_headers`: what DICOM files say, asked if any of it is wanted.
    """
    added_to = before if config.append else None
    found = read_labels(list(map(locate, config.labels)), findings, config.label_form,
                        partial=added_to is not None and not config.findings)  # fmt: skip
    table, unmatched = found.rows, found.problems
    refuse(
        [p for p in unmatched if p[1] != UNJOINED],
        config.allow_missing == "all",
        labels_flag(config),
    )
    refuse([p for p in unmatched if p[1] == UNJOINED], config.allow_missing in ("images", "all"), labels_flag(config))  # fmt: skip
    boxes = found.boxes
    if config.boxes:
        boxes = read_boxes(locate(config.boxes), found.findings, set(table["image_index"]))
    notes: list[str] = []
    files, archives, passed_over = find_sources(config.images)
    files = named_as_labels(files, dict(zip(table["image_index"], table["path"], strict=True)))
    known = set(table["image_index"])
    unreadable = [f for f in files if f.fault and f.name not in known]
    files = [f for f in files if not f.fault or f.name in known]
    by_name: dict[str, SourceFile] = {}
    again = [f.name for f in files if not same_file(by_name.setdefault(f.name, f), f)]
    duplicates = [(name, DUPLICATE_IMAGE) for name in again]
    refuse(duplicates, config.allow_missing == "all", f"--images={' '.join(config.images)}")
    if facts := asked_facts(config.dicom_columns):
        headers = read_headers(Sources(list(by_name.values()), archives, []))
        table, notes = filled(table, headers, {f.uri: f.name for f in files}, facts)
    left_out: frozenset[str] = frozenset()
    if config.views:
        fitting = of_views(table, config.views)
        left_out, table = frozenset(table.loc[~fitting, "image_index"]), table[fitting]
        by_name = {name: file for name, file in by_name.items() if name not in left_out}
    this = image_set(config.source, found.form.name, added_to)
    labels = labels_of(table, assign_splits(table, config), this)
    check_have_splits(by_name, labels, config)
    box_rows = None if boxes is None else in_set(boxes.rows, this)
    return IngestInputs(
        labels,
        left_out,
        found.findings,
        list(by_name.values()),
        archives,
        unreadable,
        None if box_rows is None else pa.Table.from_pandas(box_rows, preserve_index=False),
        [
            *left_alone_notes(config, found, boxes),
            *passed_over_notes([f.name for f in passed_over]),
            *notes,
            *set_note(this, added_to),
        ],
        found.table(len(table) if config.views else None),
        found.form.name,
        this,
        found.means(),
        [
            *unmatched,
            *duplicates,
            *((name, OTHER_VIEW) for name in sorted(left_out)),
            *((f.name, PASSED_OVER) for f in passed_over),
        ],
        digest_of(labels, list(by_name.values()) + archives, box_rows),
    )


def labels_flag(config: IngestConfig) -> str:
    """``--labels=train.csv valid.csv``."""
    return f"--labels={' '.join(config.labels)}"


def labels_of(rows: pd.DataFrame, splits: dict[str, str], this: ImageSet) -> dict[str, Label]:
    """What is stored of each image beside its pixels, by name."""
    facts = rows.assign(source=this.name)[list(FACTS)].itertuples(index=False, name=None)
    columns = (rows[name] for name in ("image_index", "path", "patient_id", "labels"))
    return {
        name: Label(
            this.prefix + patient, splits.get(name), labels.tobytes(), described, plain_path(path)
        )
        for name, path, patient, labels, described in zip(*columns, facts, strict=True)
    }


def in_set(boxes: pd.DataFrame, this: ImageSet) -> pd.DataFrame:
    """Boxes with the names that images of the set have in the store."""
    return boxes.assign(image_index=this.prefix + boxes["image_index"].astype(str))


def named_as_labels(files: list[SourceFile], labels: dict[str, str]) -> list[SourceFile]:
    """Image files with the names of their labels, those without one by a name that is no label's.

    `labels`: path in the label file, by name. Where several files end in a label's name, and one has
    more of its path than all others, the others have no label.
    """
    fitting: dict[str, list[SourceFile]] = {}
    for file in files:
        fitting.setdefault(label_name(file.uri, labels) or "", []).append(file)
    others, named = fitting.pop("", []), []
    for name, found in fitting.items():
        parts = [common_parts(file.uri, labels[name]) for file in found]
        best = [file for file, number in zip(found, parts, strict=True) if number == max(parts)]
        named += [dataclasses.replace(file, name=name) for file in best]
        others += [file for file in found if file not in best]
    names = label_names(file.uri for file in others)
    # A name that a label has is another image's: the whole path is none's.
    named += [dataclasses.replace(f, name=f.uri if label_name(f.uri, labels) else names[f.uri]) for f in others]  # fmt: skip
    return sorted(named, key=lambda file: (file.name, file.uri))


def left_alone_notes(config: IngestConfig, labels: Labels, boxes: Boxes | None) -> list[str]:
    """A line for each kind of thing that was not asked for, or is not there."""
    notes = []
    if labels.left_alone:
        notes.append(f"{labels_flag(config)}: not asked for and left alone: "
                     f"{listed(labels.left_alone, LISTED)}")  # fmt: skip
    if labels.lacking:
        notes.append(f"{labels_flag(config)} has no column of {listed(labels.lacking, LISTED)}: unknown "
                     "in all images (name the findings that it has: --findings=A,B,…)")  # fmt: skip
    notes += [f"{labels_flag(config)}: {note}" for note in labels.notes]
    if boxes is not None and boxes.left_alone:
        number = sum(boxes.left_alone.values())
        where = f"--boxes={config.boxes}" if config.boxes else labels_flag(config)
        notes.append(f"{where}: {number:,} boxes are of findings or images that the store does not have, "
                     "and are left alone: "
                     + listed((f"{n:,} {what}" for what, n in boxes.left_alone.items()), LISTED))  # fmt: skip
    return notes


def passed_over_notes(names: list[str]) -> list[str]:
    """A line about the files of --images that are no images, if there are any."""
    return [f"--images: {passed_over_words(names)}"] if names else []


def refuse(found: list[tuple[str, str]], allowed: bool, where: str) -> None:
    """Raise UserError with number, kind and examples of what is not allowed."""
    if not found or allowed:
        return
    kinds = sorted({kind for _, kind in found})
    counted = [f"{sum(k == kind for _, k in found):,} x {kind}" for kind in kinds]
    examples = ", ".join(name for name, _ in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
    option = {NO_LABEL: "labels", NO_IMAGE: "images", UNJOINED: "images"}.get(kinds[0], "all")
    raise UserError(
        f"{where}: {', '.join(counted)} ({examples}); mend that, or give --allow-missing={option}"
    )


def check_matches(
    inputs: IngestInputs, seen: set[str], config: IngestConfig
) -> list[tuple[str, str]]:
    """Compare the images that are there, by name, with the labels. Returns what has no partner.

    Raises UserError when nothing fits, or when something is missing that may not be.
    """
    if not seen & inputs.labels.keys():
        raise UserError(
            f"none of the {len(seen):,} images has a label in {' '.join(config.labels)}: the first image is "
            f"{min(seen, default='none')}, the first label {min(inputs.labels)}"
        )
    no_label = [(name, NO_LABEL) for name in sorted(seen - inputs.labels.keys())]
    no_image = [(name, NO_IMAGE) for name in sorted(inputs.labels.keys() - seen)]
    where = f"--images={' '.join(config.images)}"
    refuse(no_label, config.allow_missing in ("labels", "all"), where)
    refuse(no_image, config.allow_missing in ("images", "all"), labels_flag(config))
    return no_label + no_image


def check_have_splits(
    names: Collection[str], labels: dict[str, Label], config: IngestConfig
) -> None:
    """Raise UserError for images whose label has no split. Labels without an image need none.

    Names in archives are known only to Spark's tasks, which set such an image aside.
    """
    lacking = sorted(n for n in names if n in labels and labels[n].split is None)
    if lacking:
        raise UserError(
            f"{split_source(config)}: {len(lacking):,} of {len(names):,} images have no split there, the "
            f"first {lacking[0]}: add them or their patients, or leave them out"
        )


def check_splits(patients: dict[str, set[str]], needed: Iterable[str] = SPLITS) -> None:
    """Raise UserError when one of the splits that are needed has no patient."""
    total = len(set().union(*patients.values()))
    for split in needed:
        if not patients[split]:
            raise UserError(
                f"the {split} split is empty: {total:,} patients are too few for this split; "
                "give more, or another --split-seed"
            )


def digest_of(
    labels: dict[str, Label], sources: list[SourceFile], boxes: pd.DataFrame | None
) -> str:
    """SHA-256 of what goes in: names, sizes and times of files, labels, splits and boxes."""
    digest = hashlib.sha256()
    for name in sorted(labels):
        label = labels[name]
        facts = (name, label.patient_id, label.split, label.labels.hex(), *label.facts)
        digest.update(json.dumps(facts).encode())
    for source in sorted(sources, key=lambda s: s.name):
        digest.update(json.dumps((source.name, source.bytes, source.modified)).encode())
    digest.update(json.dumps([] if boxes is None else boxes.to_dict("records")).encode())
    return digest.hexdigest()


def layout_settings(config: IngestConfig) -> dict[str, Any]:
    """The settings that decide what is in the store."""
    names = ("size", "fit", "bit_depth", "rows_per_group", "split", "split_by", "split_seed")
    return {name: getattr(config, name) for name in names}
