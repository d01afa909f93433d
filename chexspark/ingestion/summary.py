"""What an ingest comes to: counts, tables and the words for people. Runs on the driver.

In: the results of all tasks, and what the store held before. Out: the manifest, the small tables
beside the splits, and the text at the end of the job.
"""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from chexspark.config import IngestConfig
from chexspark.errors import UserError, spoken
from chexspark.ingestion.boxes import cut_away
from chexspark.ingestion.duplicates import duplicate_pairs
from chexspark.ingestion.inputs import (
    PASSED_OVER,
    IngestInputs,
    check_matches,
    check_splits,
    layout_settings,
)
from chexspark.ingestion.splits import split_hash
from chexspark.ingestion.task import (
    FINGERPRINT_MODULUS,
    Kept,
    Label,
    TaskResult,
    in_store,
    label_counts,
)
from chexspark.preparation import CROP, FITTED, STRETCH
from chexspark.progress import duration
from chexspark.storage import Location
from chexspark.store.manifest import (
    BOXES,
    DUPLICATES,
    QUARANTINE,
    SCHEMA_VERSION,
    SPLITS,
    UNMATCHED,
    Manifest,
    SplitSummary,
    StoreFile,
    boxes_table,
    class_weights,
)
from chexspark.store.schema import columns_checksum

OUTSIDE = "box outside its image"
CUT_AWAY = "box outside the middle that a crop keeps"
ROUNDING = 1.0  # pixels that a box may go beyond its image
QUARANTINE_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("bytes", pa.int64())]
)
UNMATCHED_SCHEMA = pa.schema([("name", pa.string()), ("kind", pa.string())])
DUPLICATES_SCHEMA = pa.schema(
    [("image", pa.string()), ("other", pa.string()), ("kind", pa.string())]
)


def summarise(
    inputs: IngestInputs,
    config: IngestConfig,
    results: list[TaskResult],
    stored: list[Kept],
    before: Manifest | None,
    out: Location,
) -> tuple[Manifest, dict[str, pa.Table | None]]:
    """Return the manifest, and the small tables beside the splits by name. Writes nothing.

    Raises UserError for duplicate names, missing partners or an empty split.
    """
    new = [kept for result in results for kept in result.kept]
    check_once(new)
    everything = stored + new
    refused = refused_images(results)
    all_refused = refused + stored_table(out, QUARANTINE, QUARANTINE_SCHEMA, before)
    present = names_present(inputs, stored, results)
    unmatched = inputs.unmatched + check_matches(inputs, present, config)
    unmatched += [(path, PASSED_OVER) for result in results for path in result.passed_over]
    check_splits(patients_of(everything), inputs.needed)
    pairs = duplicate_pairs(
        [k.name for k in everything], [k.patient_id for k in everything],
        [k.pixel_digest for k in everything], [k.perceptual_hash for k in everything],
    )  # fmt: skip
    sizes = {k.name: k.original for k in everything}
    boxes, outside = boxes_of(renamed_boxes(inputs, results), sizes, out, before)
    unmatched += [(name, OUTSIDE) for name in outside]
    if boxes is not None and config.fit == CROP:
        unmatched += [(n, CUT_AWAY) for n in cut_away(boxes.to_pandas(), sizes, config.size)]
    splits = {
        split: summary_of(
            [k for k in everything if k.split == split],
            inputs.findings,
            files_of(split, results, before),
        )
        for split in SPLITS
    }
    total = int(before.fingerprint, 16) if before else 0
    sets_before = before.sources["sets"] if before else {}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=config.size,
        findings=inputs.findings,
        splits=splits,
        class_weights=class_weights(inputs.findings, splits["train"]),
        quarantined=dict(Counter(kind(reason) for _, reason, _ in all_refused)),
        unmatched=dict(Counter(kind for _, kind in unmatched)),
        original_modes=dict(Counter(k.mode for k in everything)),
        inverted=sum(k.inverted for k in everything),
        duplicates=dict(Counter(pair["kind"] for pair in pairs)),
        boxes=0 if boxes is None else boxes.num_rows,
        boxes_checksum=None if boxes is None else columns_checksum(boxes),
        split_hash=split_hash({k.patient_id: k.split for k in everything}),
        fingerprint=f"{(total + sum(r.fingerprint for r in results)) % FINGERPRINT_MODULUS:064x}",
        sources={
            "images": list(config.images),
            "labels": list(config.labels),
            "label_form": inputs.label_form,
            "sets": sets_before | {inputs.image_set.name: inputs.image_set.prefix},
            "digests": [*(before.sources["digests"] if before else []), inputs.digest],
        },
        settings=layout_settings(config),
        seconds=0.0,
        means=(before.means if before else {}) | {n: list(f) for n, f in inputs.means.items()},
        synthetic=(before.synthetic if before else 0) + sum(r.synthetic for r in results),
        fit=config.fit or STRETCH,
        bit_depth=config.bit_depth,
        not_square=sum(width != height for width, height in sizes.values()),
        burned_in=(before.burned_in if before else 0) + sum(r.burned_in for r in results),
    )
    tables = {
        QUARANTINE: table_of(all_refused, QUARANTINE_SCHEMA),
        UNMATCHED: table_of(unmatched, UNMATCHED_SCHEMA),
        DUPLICATES: pa.Table.from_pylist(pairs, DUPLICATES_SCHEMA),
        BOXES: boxes,
    }
    return manifest, tables


def check_once(new: list[Kept]) -> None:
    """Raise UserError when an image came from more than one archive or folder."""
    again = [name for name, times in Counter(k.name for k in new).items() if times > 1]
    if again:
        raise UserError(
            f"{len(again):,} images are in more than one archive or folder, the first "
            f"{min(again)}: give each once"
        )


def names_present(inputs: IngestInputs, stored: list[Kept], results: list[TaskResult]) -> set[str]:
    """The names, of labels where they have one, of all images that are there, usable or not.

    Those that the store had need no label now, and their labels no image. What was refused without a label
    (an archive, say) is in quarantine and needs no partner.
    """
    this = inputs.image_set
    there = {k.name.removeprefix(this.prefix): 0 for k in stored if k.source == this.name}
    present = {f.name for f in inputs.files}
    present |= {name for result in results for name in (*result.unlabelled, *result.labelled)}
    return present | {name for name, label in inputs.labels.items() if in_store(label.path, there)}


def renamed_boxes(inputs: IngestInputs, results: list[TaskResult]) -> pa.Table | None:
    """The new boxes, with the names that their images have in the store."""
    prefix = inputs.image_set.prefix
    names = {prefix + n: prefix + own for r in results for n, own in r.renamed.items()}
    if inputs.boxes is None or not names:
        return inputs.boxes
    column = [names.get(name, name) for name in inputs.boxes["image_index"].to_pylist()]
    place = inputs.boxes.schema.get_field_index("image_index")
    return inputs.boxes.set_column(place, "image_index", pa.array(column, pa.string()))


def files_of(
    split: str, results: list[TaskResult], before: Manifest | None
) -> tuple[StoreFile, ...]:
    """The files of a split: those that were there, then the new ones by path."""
    new = [file for result in results for name, file in result.files if name == split]
    there = before.splits[split].files if before else ()
    return there + tuple(sorted(new, key=lambda file: file.path))


def refused_images(results: list[TaskResult]) -> list[tuple[str, str, int]]:
    """Path, reason and bytes of the images that were refused, sorted."""
    return sorted(row for result in results for row in result.quarantined)


def too_many_refused(results: list[TaskResult], max_bad: float) -> str | None:
    """What is wrong when a larger share than `max_bad` was refused, else None."""
    refused = refused_images(results)
    images = len(refused) + sum(len(result.kept) + result.stored_before for result in results)
    if len(refused) / max(1, images) <= max_bad:
        return None
    return (
        f"{len(refused):,} of {images:,} images were refused ({reasons(refused)}), more than "
        f"--max-bad={max_bad}"
    )


def table_of(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    """Rows of values in the schema's order as a table."""
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def stored_table(
    out: Location, name: str, schema: pa.Schema, before: Manifest | None
) -> list[tuple]:
    """The rows of a small table that a store already has."""
    if not before or not (out / name).exists():
        return []
    rows = (out / name).read_table().to_pylist()
    return [tuple(row[column] for column in schema.names) for row in rows]


def boxes_of(
    new: pa.Table | None,
    sizes: dict[str, tuple[int, int]],
    out: Location,
    before: Manifest | None,
) -> tuple[pa.Table | None, list[str]]:
    """The boxes of images that are in the store, and the images of those that go beyond their image.

    Those of before and the new ones, each once. `sizes`: name → width and height of the original image.
    """
    tables = [new] if new is not None else []
    if before and before.boxes:
        tables.append(boxes_table(out, before))
    if not tables:
        return None, []
    frame = pa.concat_tables(tables, promote_options="default").to_pandas().drop_duplicates()
    frame = frame[frame["image_index"].isin(sizes)]
    widths, heights = (
        frame["image_index"].map(lambda n, i=i: sizes[n][i]).astype(float) for i in (0, 1)
    )
    inside = (frame["x"] + frame["width"] <= widths + ROUNDING) & (
        frame["y"] + frame["height"] <= heights + ROUNDING
    )
    outside = frame.loc[~inside, "image_index"].tolist()
    return pa.Table.from_pandas(frame[inside], preserve_index=False), outside


def summary_of(
    kept: list[Kept], findings: tuple[str, ...], files: tuple[StoreFile, ...]
) -> SplitSummary:
    """What a split of these images and files holds."""
    counts = label_counts(kept, len(findings))
    column = {"negatives": 0, "positives": 1, "unknown": 2}
    return SplitSummary(
        images=len(kept),
        patients=len({k.patient_id for k in kept}),
        files=files,
        **{
            name: {finding: int(counts[i, c]) for i, finding in enumerate(findings)}
            for name, c in column.items()
        },
    )


def kind(reason: str) -> str:
    """``truncated`` of ``truncated: the PNG breaks off``."""
    return reason.partition(":")[0]


def reasons(refused: list[tuple[str, str, int]]) -> str:
    """``3 blank, 2 empty file``: how many were refused for what."""
    counts = Counter(kind(reason) for _, reason, _ in refused)
    return ", ".join(f"{number:,} {name}" for name, number in counts.most_common())


def summary_text(manifest: Manifest, out: Location, results: list[TaskResult]) -> str:
    """The counts, what was refused or left out, and how long it took."""
    lines = [str(manifest), ""]
    lines += [
        f"{number:,} x {name}: {out / UNMATCHED}" for name, number in manifest.unmatched.items()
    ]
    if manifest.quarantined:
        listed = ", ".join(f"{number:,} {name}" for name, number in manifest.quarantined.items())
        lines.append(f"refused: {listed}: {out / QUARANTINE}")
    converted = {m: n for m, n in manifest.original_modes.items() if m not in ("L", "MONOCHROME2")}
    if converted:
        lines.append(
            "converted to 8-bit gray: " + ", ".join(f"{n:,} {m}" for m, n in converted.items())
        )
    if manifest.not_square:
        how = f"{FITTED[manifest.fit]} ({spoken(f'--fit={manifest.fit}')})"
        lines.append(f"{manifest.not_square:,} images are not square: {how}")
    if manifest.burned_in:
        lines.append(
            f"{manifest.burned_in:,} DICOM files say that annotations are burned into them"
        )
    if manifest.synthetic:
        images = sum(split.images for split in manifest.splits.values())
        lines.append(
            f"{manifest.synthetic:,} of {images:,} images are synthetic: what is learned and measured "
            "on them says nothing about patients"
        )
    if manifest.inverted:
        lines.append(f"{manifest.inverted:,} images look inverted (column `inverted`)")
    if manifest.duplicates:
        listed = ", ".join(f"{number:,} {name}" for name, number in manifest.duplicates.items())
        lines.append(f"pairs of images alike in different patients: {listed}: {out / DUPLICATES}")
    before = sum(result.stored_before for result in results)
    if before:
        lines.append(f"{before:,} images were in the store already, and stay as they are")
    added = sum(len(result.kept) for result in results)
    lines.append(f"{added:,} images in {duration(manifest.seconds)}: {out}")
    return "\n".join(lines)


def patients_of(labels: Iterable[Label | Kept]) -> dict[str, set[str]]:
    """The patients of each split, of labels or of stored images."""
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for label in labels:
        patients[label.split or ""].add(label.patient_id)
    return patients
