"""Edited manifests: what contradicts the store's own files is refused, with a mended checksum too."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from spoiling import Tally, mutants

from chexspark.evaluation.store_split import StoreSplit
from chexspark.findings import FINDINGS
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.manifest import SPLITS, read_boxes, read_manifest
from chexspark.store.row_groups import read_row_group
from chexspark.text_files import with_checksum


def a_file(values, rng, split=None):
    """One of the files of a split, and the split."""
    split = split or str(rng.choice(SPLITS))
    return values["splits"][split], values["splits"][split]["files"][0], split


def test_file_also_in_train(values, rng):
    file = values["splits"]["test"]["files"][0]
    train = values["splits"]["train"]
    train["files"].append(file)
    train["images"] += sum(file["row_groups"])
    for name in ("positives", "negatives", "unknown"):
        for finding in FINDINGS:
            train[name][finding] += values["splits"]["test"][name][finding]


def path_in_other_split(values, rng):
    one, two = rng.choice(SPLITS, 2, replace=False)
    _, file, _ = a_file(values, rng, one)
    file["path"] = values["splits"][two]["files"][0]["path"]


def splits_exchanged(values, rng):
    one, two = rng.choice(SPLITS, 2, replace=False)
    values["splits"][one], values["splits"][two] = values["splits"][two], values["splits"][one]


def checksums_exchanged(values, rng):
    _, file, _ = a_file(values, rng, "train")
    name = str(rng.choice(["checksums", "column_checksums"]))
    file[name] = [*file[name][1:], "0" * len(file[name][0])]


def false_count(values, rng):
    split, _, _ = a_file(values, rng)
    split[str(rng.choice(["images", "patients"]))] += int(rng.choice([-1, 1]))


def false_label_counts(values, rng):
    split, _, _ = a_file(values, rng, str(rng.choice(["val", "test"])))
    finding = str(rng.choice(FINDINGS))
    step = 1 if split["negatives"][finding] else -1
    split["positives"][finding] += step
    split["negatives"][finding] -= step


def findings_exchanged(values, rng):
    i, j = rng.choice(len(FINDINGS), 2, replace=False)
    names = values["findings"]
    names[i], names[j] = names[j], names[i]


def row_groups_of_another_length(values, rng):
    _, file, _ = a_file(values, rng, "train")
    file["row_groups"][0] += 1


def file_left_out(values, rng):
    split, _, _ = a_file(values, rng, "train")
    split["files"].pop()


def outside_path(values, rng):
    _, file, split = a_file(values, rng)
    file["path"] = str(rng.choice(["../other/part-00000-000.parquet", "/etc/passwd", f"{split}/../../x",
                                   f"{split}/part-00000-000.parquet\n", "file:///etc/passwd", ""]))  # fmt: skip


def image_size(values, rng):
    values["image_size"] = rng.choice([1, 31, 33, 64, 10**9, 2**40]).item()


def places(values, found=(), depth=0):
    """Each place in nested values, as keys."""
    if isinstance(values, dict) and depth < 6:
        for key, value in values.items():
            yield (*found, key)
            yield from places(value, (*found, key), depth + 1)
    elif isinstance(values, list) and depth < 6:
        for i, value in enumerate(values):
            yield (*found, i)
            yield from places(value, (*found, i), depth + 1)


def at_random(values, rng):
    """The holder of a place and its key; keys at the top are as likely as all below."""
    every = list(places(values))
    every += [keys for keys in every if len(keys) == 1] * 20
    keys = every[int(rng.integers(len(every)))]
    holder = values
    for key in keys[:-1]:
        holder = holder[key]
    return holder, keys[-1]


def set_to(*choices):
    def edit(values, rng):
        holder, key = at_random(values, rng)
        holder[key] = choices[int(rng.integers(len(choices)))]

    return edit


def key_deleted(values, rng):
    holder, key = at_random(values, rng)
    del holder[key]


def key_doubled(values, rng):
    holder, key = at_random(values, rng)
    if isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[f"{key}2"] = holder[key]


def nested(depth):
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


EDITS = {
    "test file also in train": test_file_also_in_train, "path in another split": path_in_other_split,
    "splits exchanged": splits_exchanged, "checksums": checksums_exchanged, "false count": false_count,
    "false label counts": false_label_counts, "findings exchanged": findings_exchanged,
    "row groups": row_groups_of_another_length, "file left out": file_left_out,
    "path outside": outside_path, "image size": image_size,
    "wrong type": set_to("x", None, [], {}, True, 1.5, "1"),
    "huge number": set_to(10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf")),
    "deep nesting": set_to(nested(500)), "key deleted": key_deleted, "key doubled": key_doubled,
}  # fmt: skip
test_file_also_in_train.__test__ = False


@pytest.fixture(scope="module")
def spoiled(store, tmp_path_factory):
    place = tmp_path_factory.mktemp("manifests") / "store"
    shutil.copytree(store.path, place)
    return locate(str(place))


def everything(store):
    """All that training, evaluation and an ingest take from a store: by split its patients and images."""
    manifest = read_manifest(store)
    check_files(store, manifest, SPLITS)
    found = {}
    for name in SPLITS:
        split = StoreSplit(store, manifest, name)
        patients = split.patients()
        reads = [
            read_row_group(g, manifest.image_size, ("image_index",)) for g in split.row_groups()
        ]
        labels = np.concatenate([read.labels for read in reads])
        found[name] = (sorted(patients), split.images, labels.tolist(),
                       [i for read in reads for i in read.others["image_index"].to_pylist()])  # fmt: skip
    read_boxes(store, manifest)
    str(manifest)
    return manifest, found


def contradiction(found) -> str:
    """What a manifest says that the files do not; nothing where they agree."""
    manifest, splits = found
    names = [name for split in splits.values() for name in split[3]]
    if len(set(names)) < len(names):
        return "an image is there twice"
    for name, (patients, images, labels, _) in splits.items():
        said = manifest.splits[name]
        if (said.images, said.patients) != (images, len(patients)):
            return f"counts of {name}"
        positives = (np.array(labels) == 1).sum(0).tolist()
        if [said.positives[finding] for finding in manifest.findings] != positives:
            return f"label counts of {name}"
    return ""


@pytest.mark.parametrize("mended", [False, True], ids=["plain", "mended"])
def test_edited_manifests(store, spoiled, mended):
    rng = np.random.default_rng(6)
    tally = Tally("manifests, checksum mended" if mended else "manifests")
    place = Path((spoiled / "dataset.json").path)
    whole = Path((store / "dataset.json").path).read_text()
    clean = everything(store)

    def judge(found) -> tuple[str, str]:
        if found == clean:
            return "clean values", ""
        if not mended:
            return "believed", "an edit that the checksum does not tell"
        fault = contradiction(found)
        return ("believed", fault) if fault else ("not to be known", "")

    for number in range(mutants(64)):
        kind = list(EDITS)[number % len(EDITS)]
        values = json.loads(whole)
        EDITS[kind](values, rng)
        values = with_checksum(values) if mended else values
        place.write_text(json.dumps(values))
        tally.attempt(kind, lambda: everything(spoiled), judge, note=f"number {number}")
    place.write_text(whole)
    tally.finish()
