"""Archives, globs, splits of three kinds, appending, duplicate pictures, dead and live runs."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexspark import ingest
from chexspark.errors import UserError
from chexspark.ingestion import archives as archives_module
from chexspark.ingestion.archives import archive_members
from chexspark.ingestion.duplicates import duplicate_pairs
from chexspark.ingestion.image_errors import BadImageError, NoImageError
from chexspark.ingestion.sources import (
    SourceFile,
    find_sources,
    passed_over_words,
    read_source_images,
)
from chexspark.ingestion.task import Known, Label, WriteTask, write_task
from chexspark.lock import Lock
from chexspark.preparation import Preparation
from chexspark.storage import Location, locate
from chexspark.store.manifest import SPLITS, read_manifest

JOBS = Path(__file__).parent.parent / "jobs"


def settings(release, out, **more):
    return {
        "images": str(release / "images"), "labels": str(release / "Data_Entry_2017.csv"),
        "out": str(out), "size": 32, "rows_per_group": 10, **more,
    }  # fmt: skip


def names_in(spark, store, split):
    frame = spark.read.parquet((store / split).spark_uri)
    return sorted(row.image_index for row in frame.select("image_index").collect())


@pytest.fixture(scope="module")
def archives(release, tmp_path_factory):
    """The release's images in three archives, as NIH packs them."""
    folder = tmp_path_factory.mktemp("archives")
    images = sorted((release / "images").iterdir())
    for number, suffix in enumerate((".tar.gz", ".tgz", ".tar")):
        mode = "w" if suffix == ".tar" else "w:gz"
        with tarfile.open(folder / f"images_{number:03}{suffix}", mode) as tar:
            for path in images[number::3]:
                tar.add(path, f"images/{path.name}")
    return folder


def test_archives_give_the_same_store_as_a_folder(spark, release, archives, store, tmp_path):
    out = locate(str(tmp_path / "store"))
    boxes = str(release / "BBox_List_2017.csv")
    manifest = ingest(spark, **settings(release, out.path, images=str(archives), boxes=boxes))
    expected = read_manifest(store)
    assert manifest.fingerprint == expected.fingerprint
    assert manifest.split_hash == expected.split_hash and manifest.boxes == expected.boxes
    for split in SPLITS:
        assert names_in(spark, out, split) == names_in(spark, store, split)
        assert manifest.splits[split].positives == expected.splits[split].positives
    again = settings(release, out.path, images=str(archives), boxes=boxes)
    assert ingest(spark, **again) == manifest


def test_what_an_archive_must_not_do(tmp_path):
    content = b"\x89PNG"

    def member(name, **more):
        info = tarfile.TarInfo(name)
        for key, value in more.items():
            setattr(info, key, value)
        info.size = len(content) if info.isfile() else 0
        tar.addfile(info, io.BytesIO(content) if info.isfile() else None)

    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member("images/good.png")
        member("/etc/passwd.png")
        member("../climbs.png")
        member("linked.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        member("hard.png", type=tarfile.LNKTYPE, linkname="images/good.png")
        member("README.txt")
    found = {name: content for name, _, content in archive_members(str(tmp_path / "a.tar.gz"))}
    reasons = {name: str(c) for name, c in found.items() if isinstance(c, BadImageError)}
    assert reasons == {
        "/etc/passwd.png": "unsafe archive member: an absolute name",
        "../climbs.png": "unsafe archive member: a name that climbs out",
        "linked.png": "unsafe archive member: a link",
        "hard.png": "unsafe archive member: a link",
        "README.txt": "passed over: not a PNG, JPEG or DICOM file",
    }
    assert found["images/good.png"] == content and len(found) == 6


def test_an_archive_that_breaks_off_is_set_aside_by_name(spark, release, archives, tmp_path):
    shutil.copytree(archives, tmp_path / "archives")
    broken = tmp_path / "archives" / "images_000.tar.gz"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    out = locate(str(tmp_path / "store"))
    ingest(spark, **settings(release, out.path, images=str(tmp_path / "archives"), max_bad=0.2))
    refused = spark.read.parquet((out / "quarantine").spark_uri).collect()
    assert [row.path for row in refused] == [str(broken)]
    assert refused[0].reason.startswith("damaged archive")


def test_the_same_image_in_two_archives_is_refused(spark, release, archives, tmp_path):
    shutil.copytree(archives, tmp_path / "archives")
    shutil.copy(archives / "images_000.tar.gz", tmp_path / "archives" / "images_009.tar.gz")
    with pytest.raises(UserError, match="32 images are in more than one archive"):
        ingest(spark, **settings(release, tmp_path / "store", images=str(tmp_path / "archives")))
    assert not (tmp_path / "store" / "train").exists()


def test_globs_and_several_sources(release, archives):
    names = sorted(path.name for path in (release / "images").iterdir())
    files, *_ = find_sources((f"{release}/*/00000001_*.png",))
    assert [f.name for f in files] == [n for n in names if n.startswith("00000001_")] != []
    files, found, _ = find_sources(
        (f"{release}/images", f"{archives}/*.tar.gz", f"{archives}/images_002.tar")
    )
    assert [f.name for f in files] == names
    assert [f.name for f in found] == ["images_000.tar.gz", "images_002.tar"]
    with pytest.raises(UserError, match="has no file that ends with"):
        find_sources((f"{release}/*/nothing*",))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder whose names do not say what is in them, and the same in an archive."""
    folder = tmp_path_factory.mktemp("mixed")
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    image.save(folder / "IM000001", "PNG")
    image.save(folder / "photo.jfif", "JPEG")
    image.save(folder / "1.2.840.77", "PNG")
    image.save(folder / "scan.tif")
    (folder / "bare").write_bytes(b"\x08\x00\x16\x00UI\x1a\x00" + b"1.2.840.10008.5.1.4.1.1.1\0")
    for name in ("vindr.dicom", "SIEMENS.IMA", "upper.DCM", "notes.txt", "empty", "LICENSE"):
        (folder / name).write_bytes(b"" if name == "empty" else b"text")
    with tarfile.open(folder / "all.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            if path.name != "all.tar":
                tar.add(path, f"images/{path.name}")
    return folder


KNOWN = {"IM000001", "photo.jfif", "1.2.840.77", "bare", "vindr.dicom", "SIEMENS.IMA", "upper.DCM"}
OTHERS = {"scan.tif", "notes.txt", "empty", "LICENSE"}


def test_files_are_known_by_name_or_by_content(mixed):
    found = find_sources((str(mixed),))
    assert {file.name for file in found.files} == KNOWN
    assert [file.name for file in found.archives] == ["all.tar"]
    assert {file.name for file in found.passed_over} == OTHERS
    assert passed_over_words([f.name for f in found.passed_over]) == (
        "passed over, as no images: 4 (2 without extension, 1 .txt, 1 .tif): LICENSE, empty, notes.txt, …"
    )
    members = {path: content for path, _, content in archive_members(str(mixed / "all.tar"))}
    for name in KNOWN:
        assert members[f"images/{name}"] == (mixed / name).read_bytes()
    assert {
        n.removeprefix("images/") for n, c in members.items() if isinstance(c, NoImageError)
    } == OTHERS
    assert len(members) == len(KNOWN | OTHERS)
    with pytest.raises(
        UserError, match=r"has no file that ends with .*, or that is an image by its"
    ):
        find_sources((str(mixed / "notes.txt"),))


def test_a_task_refuses_passes_over_and_goes_on(mixed, tmp_path, monkeypatch):
    """Whatever an image or a file system does; by a task alone, without Spark."""
    (archive,) = find_sources((str(mixed / "all.tar"),)).archives
    gone = SourceFile(str(tmp_path / "gone.png"), "gone.png", 7, "")
    label = Label("1", "train", bytes([1]), (None,) * 11)
    labels = dict.fromkeys([*KNOWN, *OTHERS, "gone.png"], label)
    done = write_task(
        WriteTask(str(tmp_path), 0, Preparation(32), 4, (gone, archive)),
        Known(labels, {}, frozenset()),
    )
    assert {kept.name for kept in done.kept} == {"IM000001", "photo.jfif", "1.2.840.77"}
    assert {path.rsplit("/", 1)[1] for path in done.passed_over} == OTHERS
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason, _ in done.quarantined}
    assert reasons.keys() == {"gone.png", "bare", "vindr.dicom", "SIEMENS.IMA", "upper.DCM"}
    assert reasons["gone.png"].startswith("cannot be read: ")
    assert reasons["bare"] == "cannot be decoded: DICOM without PixelData"
    monkeypatch.setattr(Location, "read_bytes", lambda place, most=None: 1 / 0)
    done = write_task(
        WriteTask(str(tmp_path), 1, Preparation(32), 4, (gone,)),
        Known(labels, {}, frozenset()),
    )
    assert [row[1] for row in done.quarantined] == ["cannot be read: division by zero"]


@pytest.mark.parametrize("error", [MemoryError(), KeyError("x"), ValueError("x"), zlib.error("x")])
def test_whatever_an_archive_raises_it_is_set_aside(mixed, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(archives_module, "tar_members", fail)
    ((name, _, content),) = archive_members(str(mixed / "all.tar"))
    assert name == "" and str(content).startswith("damaged archive: ")


def test_the_official_split_keeps_nih_s_test_list(spark, release, tmp_path):
    out = locate(str(tmp_path / "store"))
    manifest = ingest(spark, **settings(release, out.path, split="official"))
    assert names_in(spark, out, "test") == sorted((release / "test_list.txt").read_text().split())
    both = names_in(spark, out, "train") + names_in(spark, out, "val")
    assert sorted(both) == sorted((release / "train_val_list.txt").read_text().split())
    assert manifest.settings["split"] == "official"


def test_a_split_of_one_s_own(spark, release, tmp_path):
    patients = sorted({path.name[:8] for path in (release / "images").iterdir()})
    own = {p: SPLITS[i % 3] for i, p in enumerate(patients)}
    lines = [f"{int(p)},{split}" for p, split in own.items()]
    (tmp_path / "own.csv").write_text("\n".join(["patient,split", *lines]))
    out = locate(str(tmp_path / "store"))
    ingest(spark, **settings(release, out.path, split_file=str(tmp_path / "own.csv")))
    for split in SPLITS:
        assert {own[name[:8]] for name in names_in(spark, out, split)} == {split}


@pytest.mark.parametrize(
    "text, message",
    [
        ("patient,split\n1,train\n1,test\n", "this patient is in train, and here in test"),
        ("patient,split\n1,training\n", "'training' is not one of train, val, test"),
        ("patient,split\n1,train\n", "93 of 96 images have no split there, the first 00000002"),
        ("image,split\n00000001_000.png,train\n", "95 of 96 images have no split there"),
        ("who,where\n1,train\n", "must have rows under patient"),
        ("patient,split,split\n1,train,test\n", "has 2 columns of split: keep one"),
        ("image,image,split\n1,2,train\n", "has 2 columns of image: keep one"),
    ],
)
def test_a_wrong_split_file_is_one_clear_line(release, tmp_path, text, message):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        ingest(None, **settings(release, tmp_path / "out", split_file=str(tmp_path / "own.csv")))


@pytest.fixture
def some(release, tmp_path):
    """A folder of the first 60 images, and a split of their patients alone."""
    (tmp_path / "some").mkdir()
    images = sorted((release / "images").iterdir())[:60]
    for path in images:
        shutil.copy(path, tmp_path / "some")
    patients = sorted({int(path.name[:8]) for path in images})
    lines = [f"{patient},{SPLITS[i % 3]}" for i, patient in enumerate(patients)]
    (tmp_path / "split.csv").write_text("\n".join(["patient,split", *lines]))
    return tmp_path / "some"


def test_labels_without_an_image_need_no_split(spark, release, some, tmp_path):
    split = str(tmp_path / "split.csv")
    given = settings(release, tmp_path / "a", images=str(some), split_file=split)
    manifest = ingest(spark, **given)
    assert sum(part.images for part in manifest.splits.values()) == 60
    assert manifest.unmatched == {"label without an image": 36}
    names = sorted(path.name for path in some.iterdir())
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:-5]))
    (tmp_path / "test_list.txt").write_text("\n".join(n for n in names[-5:]))
    for path in some.iterdir():  # a patient must not be in both lists
        if path.name not in names[-5:] and path.name[:8] in {n[:8] for n in names[-5:]}:
            (tmp_path / "train_val_list.txt").write_text(
                (tmp_path / "train_val_list.txt").read_text().replace(path.name, "")
            )
            path.unlink()
    lists = settings(release, tmp_path / "b", images=str(some), split="official", split_lists=str(tmp_path))  # fmt: skip
    assert ingest(spark, **lists).splits["test"].images == 5


def test_an_image_in_an_archive_whose_label_has_no_split_is_set_aside(
    spark, release, some, tmp_path
):
    lines = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "split.csv").write_text("\n".join(lines[:-1]))
    lacking = lines[-1].partition(",")[0]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(some.iterdir()):
            tar.add(path, path.name)
    given = settings(release, tmp_path / "store", images=str(tmp_path / "all.tar"),
                     split_file=str(tmp_path / "split.csv"), max_bad=0.5)  # fmt: skip
    manifest = ingest(spark, **given)
    refused = spark.read.parquet(str(tmp_path / "store" / "quarantine")).collect()
    names = {path.name for path in some.iterdir() if int(path.name[:8]) == int(lacking)}
    assert {row.path.rpartition("!")[2] for row in refused} == names
    assert {row.reason for row in refused} == {
        "no split: the given one does not name it or its patient"
    }
    assert manifest.quarantined == {"no split": len(names)}
    assert sum(part.images for part in manifest.splits.values()) == 60 - len(names)
    with pytest.raises(UserError, match=f"{len(names)} of 60 images have no split there, the first .*: add them or their patients"):  # fmt: skip
        ingest(None, **given | {"images": str(some), "out": str(tmp_path / "other")})


def test_members_that_an_archive_has_twice_are_refused(release, tmp_path):
    image = sorted((release / "images").iterdir())[0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.add(image, "images/a.png")
    files, archives, _ = find_sources((str(image), str(tmp_path / "a.tar")))
    found = [(f.name, f.path, str(f.content)[:10]) for f in read_source_images(files + archives)]
    whole, member = str(image.read_bytes())[:10], f"{tmp_path}/a.tar!images/a.png"
    assert found == [
        (image.name, str(image), whole), ("a.png", member, whole), ("a.png", member, "duplicate:"),
    ]  # fmt: skip


def test_a_patient_in_both_official_lists_is_an_error(release, tmp_path):
    names = sorted(path.name for path in (release / "images").iterdir())
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[1:]))
    (tmp_path / "test_list.txt").write_text(names[0])
    with pytest.raises(UserError, match="1 patients are in two splits, the first that of 00000001"):
        ingest(
            None, **settings(release, tmp_path / "out", split="official", split_lists=str(tmp_path))
        )
    with pytest.raises(UserError, match=r"needs .*train_val_list.txt"):
        ingest(
            None, **settings(release, tmp_path / "out", split="official", split_lists="/nowhere")
        )


def test_appending_adds_what_is_new_and_moves_no_patient(spark, release, store, tmp_path):
    out = locate(str(tmp_path / "store"))
    (tmp_path / "first").mkdir()
    for path in sorted((release / "images").iterdir())[:70]:
        shutil.copy(path, tmp_path / "first")
    first = ingest(spark, **settings(release, out.path, images=str(tmp_path / "first")))
    with pytest.raises(UserError, match="--append to add what is new"):
        ingest(spark, **settings(release, out.path))
    (out / "train" / "part-00099-000.parquet").write_bytes(b"left by a run that died")
    whole = ingest(spark, **settings(release, out.path, append=True))
    expected = read_manifest(store)
    assert (whole.fingerprint, whole.split_hash) == (expected.fingerprint, expected.split_hash)
    assert (first.synthetic, whole.synthetic, expected.synthetic) == (70, 96, 96)
    for split in SPLITS:
        assert whole.splits[split].positives == expected.splits[split].positives
        assert (
            whole.splits[split].files[: len(first.splits[split].files)] == first.splits[split].files
        )
        assert names_in(spark, out, split) == names_in(spark, store, split)
    assert ingest(spark, **settings(release, out.path, append=True)) == whole
    with pytest.raises(UserError, match=r"in the store's .* split, but would now be in"):
        flip = tmp_path / "flip.csv"
        other = {"train": "test", "test": "train", "val": "val"}
        rows = [f"{row.patient_id},{other[s]}" for s in SPLITS
                for row in spark.read.parquet((out / s).spark_uri).select("patient_id").distinct().collect()]  # fmt: skip
        flip.write_text("\n".join(["patient,split", *rows]))
        ingest(spark, **settings(release, out.path, append=True, split_file=str(flip)))


def test_too_many_bad_images_fail_with_the_reasons_by_count(spark, release, tmp_path):
    shutil.copytree(release / "images", tmp_path / "images")
    for path in sorted((tmp_path / "images").iterdir())[:6]:
        path.write_bytes(b"")
    bad = settings(release, tmp_path / "store", images=str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"6 of 96 images were refused \(6 empty file\), more than"):
        ingest(spark, **bad, max_bad=0.05)
    assert spark.read.parquet(str(tmp_path / "store" / "quarantine")).count() == 6
    assert not (tmp_path / "store" / "dataset.json").exists()
    assert ingest(spark, **bad, max_bad=0.1).quarantined == {"empty file": 6}


def test_unknown_labels_stay_unknown(spark, release, tmp_path):
    names = sorted(path.name for path in (release / "images").iterdir())
    rows = [f"{name},{name[:8]},{i % 2},{'' if i % 3 else 1}" for i, name in enumerate(names)]
    (tmp_path / "own.csv").write_text("\n".join(["image,patient,Mass,Edema", *rows]))
    manifest = ingest(
        spark, **settings(release, tmp_path / "store", labels=str(tmp_path / "own.csv"))
    )
    total = {k: sum(getattr(manifest.splits[s], k)["Edema"] for s in SPLITS)
             for k in ("positives", "negatives", "unknown")}  # fmt: skip
    assert total == {"positives": 32, "negatives": 0, "unknown": 64}
    assert sum(manifest.splits[s].unknown["Hernia"] for s in SPLITS) == 96
    assert sum(manifest.splits[s].unknown["Mass"] for s in SPLITS) == 0


def test_pictures_alike_in_different_patients_are_paired():
    a = np.random.default_rng(0).integers(0, 2, 256)
    b, c = flipped(a, 15), flipped(a, 25)
    hashes = [as_hash(bits) for bits in (a, b, c, 1 - a, a)]
    pairs = duplicate_pairs(list("abcde"), ["1", "2", "3", "4", "1"], [9, 8, 7, 6, 9], hashes)
    assert [tuple(pair.values()) for pair in pairs] == [
        ("a", "b", "near"), ("b", "c", "near"), ("b", "e", "near"),
    ]  # fmt: skip
    pairs = duplicate_pairs(list("ab"), ["1", "2"], [5, 5], hashes[::4])
    assert [tuple(pair.values()) for pair in pairs] == [("a", "b", "exact")]
    assert duplicate_pairs([], [], [], []) == []


def flipped(bits, number):
    """Other bits in `number` places, spread over the hash."""
    changed = bits.copy()
    changed[np.arange(number) * 10] ^= 1
    return changed


def as_hash(bits):
    return np.packbits(bits).tobytes().hex()


def test_every_pair_of_up_to_15_bits_is_found_and_nearly_all_of_24():
    random = np.random.default_rng(1)
    for bits, expected in ((15, 300), (24, 280), (25, 0)):
        one = random.integers(0, 2, (300, 256))
        other = one.copy()
        for row in other:
            row[random.permutation(256)[:bits]] ^= 1
        names = [f"{copy}{i:03}" for copy in "ab" for i in range(300)]
        hashes = [as_hash(row) for row in (*one, *other)]
        pairs = duplicate_pairs(names, names, list(range(600)), hashes)
        assert {pair["image"][1:] for pair in pairs} == {pair["other"][1:] for pair in pairs}
        assert expected <= len(pairs) <= (300 if expected else 0)


@pytest.mark.slow
def test_another_living_ingest_is_not_touched(spark, release, store, tmp_path):
    out = tmp_path / "store"
    out.mkdir()
    with Lock(locate(str(out)), "--out", "ingest"), pytest.raises(UserError, match=r"another ingest is writing there .host"):  # fmt: skip
        ingest(spark, **settings(release, out))
    assert not (out / "_unfinished").exists()
    ingest(spark, **settings(release, out))
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("_lock")) == []


def test_a_store_that_was_written_before_the_lock_was_had_is_left_alone(
    spark, release, store, tmp_path, monkeypatch
):
    """Of two that see an empty folder, the second one comes when the first has ended."""
    out, take = tmp_path / "store", Lock.take

    def take_later(lock):
        monkeypatch.setattr(Lock, "take", take)
        ingest(spark, **settings(release, out))
        take(lock)

    monkeypatch.setattr(Lock, "take", take_later)
    with pytest.raises(UserError, match="another ingest has written there meanwhile: run it again"):
        ingest(spark, **settings(release, out))
    assert read_manifest(locate(str(out))).fingerprint == read_manifest(store).fingerprint


KILLED = """
import json, os, signal, sys
from chexspark.ingestion import job
group, step, write = os.getpgid(0), sys.argv[1], job.write_task

def die(*_, **__):
    os.killpg(group, signal.SIGKILL)

def write_or_die(task, *shared):
    return die() if task.number == 2 else write(task, *shared)

setattr(job, step, write_or_die if step == "write_task" else die)
job.ingest(None, **json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("plan_tasks", marks=pytest.mark.slow), "write_task",
        pytest.param("write_petastorm_metadata", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_killed_run_leaves_no_dataset_and_the_next_one_makes_it_whole(
    spark, release, store, tmp_path, step
):
    """Killed with all its processes before its tasks, in one of them, and with its files in place."""
    given = settings(release, tmp_path / "store")
    command = [sys.executable, "-c", KILLED, step, json.dumps(given)]
    killed = subprocess.run(command, start_new_session=True, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "store" / "_lock-0001").exists()
    assert not (tmp_path / "store" / "dataset.json").exists()
    assert ingest(spark, **given).fingerprint == read_manifest(store).fingerprint
    assert not list((tmp_path / "store").glob("_[ul]*"))
    found = [name for split in SPLITS for name in names_in(spark, locate(given["out"]), split)]
    assert sorted(found) == sorted(path.name for path in (release / "images").iterdir())


def test_rows_of_a_store_are_checked_by_their_digest(spark, store):
    row = spark.read.parquet((store / "train").spark_uri).first()
    pixels = bytes(row.image)[-32 * 32 :]
    expected = int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big", signed=True)
    assert row.pixel_digest == expected
    assert abs(np.frombuffer(pixels, np.uint8).mean() - row.pixel_mean) < 1e-3


def spoiled_in_ten_ways(paths):
    """Spoil ten PNG files in place; return name → how the reason begins."""

    def encoded(image, form="PNG"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        return buffer.getvalue()

    def flip(content, place):
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

    def with_width(content, width):
        head = content[12:16] + width.to_bytes(4, "big") + content[20:29]
        return content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:]

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    ways = [
        (lambda content: b"", "empty file"),
        (lambda content: b"not an image at all", "not a PNG, JPEG or DICOM file"),
        (lambda content: content[:-40], "truncated"),
        (lambda content: content[:8], "cannot be decoded"),
        (lambda content: flip(content, len(content) // 2), "corrupt"),
        (lambda content: flip(content, 3), "not a PNG, JPEG or DICOM file"),
        (lambda content: encoded(Image.new("L", (64, 64), 9)), "blank"),
        (lambda content: with_width(content, 50_000_000), "absurd dimensions"),
        (lambda content: encoded(noise, "JPEG"), "extension and content disagree"),
        (lambda content: encoded(noise.resize((8, 8))), "absurd dimensions"),
    ]
    expected = {}
    for path, (spoil, reason) in zip(paths, ways, strict=True):
        path.write_bytes(spoil(path.read_bytes()))
        expected[path.name] = reason
    return expected


def test_files_spoiled_in_ten_ways_are_in_quarantine_and_the_rest_is_untouched(
    spark, release, store, tmp_path
):
    shutil.copytree(release / "images", tmp_path / "images")
    expected = spoiled_in_ten_ways(sorted((tmp_path / "images").iterdir())[3::9][:10])
    # Converted, and not refused: 16 bits and RGBA, with the same gray values.
    fine = [p for p in sorted((tmp_path / "images").iterdir()) if p.name not in expected][:2]
    pixels = [np.asarray(Image.open(path)) for path in fine]
    Image.fromarray(pixels[0].astype(np.uint16) * 257).save(fine[0])
    Image.fromarray(pixels[1]).convert("RGBA").save(fine[1])
    out = locate(str(tmp_path / "store"))
    images = str(tmp_path / "images")
    manifest = ingest(spark, **settings(release, out.path, images=images, max_bad=0.2))
    refused = spark.read.parquet((out / "quarantine").spark_uri).collect()
    found = {Path(row.path).name: row.reason for row in refused}
    assert found.keys() == expected.keys()
    assert [n for n, reason in found.items() if not reason.startswith(expected[n])] == []
    assert manifest.original_modes == {"L": 84, "I;16": 1, "RGBA": 1}
    for split in SPLITS:
        clean, now = (
            {
                row.image_index: bytes(row.image)
                for row in spark.read.parquet((s / split).spark_uri).collect()
            }
            for s in (store, out)
        )
        assert now == {name: image for name, image in clean.items() if name not in expected}
