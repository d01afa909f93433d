"""Each label form the whole way: a made set of that form, ingested, counted with pandas, and trained on.

The sets have the oddities of the real ones: names that repeat, ages with a unit, blanks, uncertain labels,
several rows of an image, further columns.
"""

import ast
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark import evaluate, ingest, train
from chexspark.findings import FINDINGS
from chexspark.phantom import draw_anatomy, draw_phantom, generator, png

SIZE, PATIENTS = 32, 40
CHEXPERT = ["Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
            "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
            "Pleural Other", "Fracture", "Support Devices"]  # fmt: skip


def draw(place: Path, number: int) -> None:
    """A phantom of its own at `place`, a 16-bit PNG of 12 bits where the name says deep."""
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels, _ = draw_phantom(SIZE, ("Mass",) * (number % 2), generator(5, number), draw_anatomy(generator(6, number)))  # fmt: skip
    if place.suffix == ".jpg":
        cv2.imwrite(str(place), pixels)
    elif "deep" in place.name:
        cv2.imwrite(str(place), pixels.astype(np.uint16) * 16)
    else:
        place.write_bytes(png(pixels))


def counted(table: pd.DataFrame, columns: dict, blank=-1, uncertain=None) -> dict:
    """Finding → positive, negative, unknown of a table's cells of 1, 0, −1 and nothing."""
    found = {}
    for finding, column in columns.items():
        cells = table[column].fillna(-9)
        of = {1: 1, 0: 0, -9: blank, -1: (uncertain or {}).get(finding, -1)}
        found[finding] = tuple(int((cells.map(of) == value).sum()) for value in (1, 0, -1))
    return found


def cells(rng, number):
    return rng.choice(["", "0.0", "1.0", "-1.0"], (PATIENTS * 2, number), p=[0.4, 0.25, 0.25, 0.1])


def nih(folder, rng):
    rows, names = [], []
    for i in range(PATIENTS * 2):
        words = [f for f in FINDINGS if rng.random() < 0.2]
        name = f"{i // 2:08}_{i % 2:03}.png"
        rows.append([name, "|".join(words) or "No Finding", i % 2, i // 2, ["058Y", "411Y", "003M"][i % 3], "MF"[i % 2], "PA"])  # fmt: skip
        names.append(f"images_{i % 3:03}/images/{name}")
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"]  # fmt: skip
    table = pd.DataFrame(rows, columns=header)
    table.to_csv(folder / "l.csv", index=False)
    split = table["Finding Labels"].str.split("|")
    has = {f: int(split.map(lambda words, f=f: f in words).sum()) for f in FINDINGS}
    return ["l.csv"], names, {f: (n, len(table) - n, 0) for f, n in has.items()}, {}


def plain(folder, rng):
    names = [f"p{i // 2}/scan.png" for i in range(0, PATIENTS * 2, 2)]
    table = pd.DataFrame({"image": [f"./{n}" for n in names], "patient": range(PATIENTS),
                          "Mass": rng.choice([1.0, 0.0, np.nan], PATIENTS),
                          "Lung Opacity": rng.choice([1, 0], PATIENTS),
                          "study_date": "20140915", "remarks": "none"})  # fmt: skip
    table.to_csv(folder / "l.csv", index=False, sep=";", encoding="utf-16")
    return ["l.csv"], names, counted(table, {"Mass": "Mass", "Lung Opacity": "Lung Opacity"}), {
        "findings": ["Mass", "Lung Opacity"]}  # fmt: skip


def chexpert(folder, rng):
    names, said = [], cells(rng, 13)
    lines = {"train": [], "valid": []}
    for i in range(PATIENTS * 2):
        split = "valid" if i // 2 % 5 == 0 else "train"
        name = f"CheXpert-v1.0-small/{split}/patient{i // 2:05}/study{1 + i % 2}/view1_frontal.jpg"
        lines[split].append([name, "Female", 90 if i % 2 else 0, "Frontal", "AP", "", *said[i]])
        names.append(name)
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *CHEXPERT]
    for split, rows in lines.items():
        pd.DataFrame(rows, columns=header).to_csv(folder / f"{split}.csv", index=False)
    table = pd.concat([pd.read_csv(folder / f"{split}.csv") for split in lines])
    expected = counted(table, {f: f for f in CHEXPERT}, 0, {"Atelectasis": 1, "Edema": 1})
    return ["train.csv", "valid.csv"], names, expected, {"split": "official", "views": "frontal"}


def mimic(folder, rng):
    said, names = cells(rng, 14), []
    studies = [[100 + i // 2, 500 + i, *said[i]] for i in range(PATIENTS * 2)]
    findings = sorted([*CHEXPERT, "No Finding"])
    labels = pd.DataFrame(studies, columns=["subject_id", "study_id", *findings])
    labels["No Finding"] = ""
    labels.to_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    meta, split = [], []
    for i in range(PATIENTS * 2):
        for view in ("PA", "LATERAL")[: 1 + i % 2]:
            name = f"{i:04x}-{view.lower()}"
            meta.append([name, 100 + i // 2, 500 + i, view, 20140915 + i % 10])
            split.append([name, 500 + i, 100 + i // 2, ["train", "train", "validate", "test"][i // 2 % 4]])  # fmt: skip
            names.append(f"files/p{i // 2}/s{500 + i}/{name}.jpg")
    meta = pd.DataFrame(meta, columns=["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"])  # fmt: skip
    meta.to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    pd.DataFrame(split, columns=["dicom_id", "study_id", "subject_id", "split"]).to_csv(
        folder / "mimic-cxr-2.0.0-split.csv.gz", index=False)  # fmt: skip
    read = pd.read_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz")
    table = meta.merge(read, on="study_id")
    expected = counted(table, {f: f for f in CHEXPERT}, 0, {"Atelectasis": 1, "Edema": 1})
    return ["mimic-cxr-2.0.0-chexpert.csv.gz"], names, expected, {"split": "official"}


def padchest(folder, rng):
    words = {"laminar atelectasis": "Atelectasis", "pleural effusion": "Effusion", "mass": "Mass",
             "scoliosis": None, "hiatal hernia": "Hernia"}  # fmt: skip
    rows, names = [], []
    for i in range(PATIENTS * 2):
        has = [w for w in words if rng.random() < 0.3] or ["normal"]
        has += ["unchanged"] * (i % 20 == 0)
        name = f"{i}_deep.png"
        rows.append([i, name, i % 3, 20100101 + i % 20, f"s{i}", f"p{i // 2}", 1950.0 if i % 7 else 2050.0, "MF"[i % 2], ["PA", "L"][i % 2], str(has)])  # fmt: skip
        names.append(f"{i % 3}/{name}")
    header = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels"]  # fmt: skip
    table = pd.DataFrame(rows, columns=header)
    table.to_csv(folder / "l.csv", index=False)
    expected = {}
    for finding in FINDINGS:
        has = table["Labels"].map(
            lambda t, f=finding: any(words.get(w) == f for w in ast.literal_eval(t))
        )
        doubtful = table["Labels"].str.contains("unchanged") & ~has
        expected[finding] = (int(has.sum()), int((~has & ~doubtful).sum()), int(doubtful.sum()))
    return ["l.csv"], names, expected, {}


def rsna(folder, rng):
    rows, names = [], []
    for i in range(PATIENTS * 2):
        names.append(f"{i:04}-a.png")
        boxes = [[2, 3, 10, 12], [15, 4, 9, 20]][: i % 3]
        rows += [[f"{i:04}-a", *box, 1] for box in boxes] or [[f"{i:04}-a", *[""] * 4, 0]]
    table = pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height", "Target"])
    table.to_csv(folder / "l.csv", index=False)
    by_image = table.groupby("patientId")["Target"].max()
    return ["l.csv"], names, {"Pneumonia": (int(by_image.sum()), int((by_image == 0).sum()), 0)}, {}


def vindr(folder, rng):
    rows = []
    for i in range(PATIENTS * 2):
        for reader in ("R1", "R2", "R3"):
            seen = [f for f in ("Cardiomegaly", "Nodule/Mass") if rng.random() < 0.5]
            for f in seen or ["No finding"]:
                box = [1, 2, 20, 25] if seen else [""] * 4
                rows += [[f"im{i}", f, 0, reader, *box]] * (1 + (f == "Nodule/Mass"))
    header = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    table = pd.DataFrame(rows, columns=header)
    table.to_csv(folder / "l.csv", index=False)
    votes = table.drop_duplicates(["image_id", "class_name", "rad_id"])
    votes = votes.groupby(["image_id", "class_name"]).size().unstack(fill_value=0)
    has = {f: int((votes[f] > 1.5).sum()) for f in ("Cardiomegaly", "Nodule/Mass")}
    names = [f"im{i}.png" for i in range(PATIENTS * 2)]
    expected = {f: (n, len(names) - n, 0) for f, n in has.items()}
    return ["l.csv"], names, expected, {"findings": list(has)}


def vindr_labels(folder, rng):
    columns = ["Aortic enlargement", "Clavicle fracture", "Nodule/Mass", "Tuberculosis"]
    rows = [[f"im{i}", r, *rng.integers(0, 2, 4), 0] for i in range(PATIENTS * 2) for r in "abc"]
    table = pd.DataFrame(rows, columns=["image_id", "rad_ID", *columns, "No finding"])
    table.to_csv(folder / "l.csv", index=False)
    most = (table.groupby("image_id")[columns].sum() > 1.5).sum()
    names = [f"im{i}.png" for i in range(PATIENTS * 2)]
    return ["l.csv"], names, {f: (int(most[f]), len(names) - int(most[f]), 0) for f in columns}, {
        "findings": columns}  # fmt: skip


def openi(folder, rng):
    rows, files, names = [], [], []
    for i in range(PATIENTS * 2):
        words = [
            w for w in ("Cardiomegaly", "Pulmonary Atelectasis", "Scoliosis") if rng.random() < 0.3
        ]
        words = words or (["normal"] if i % 10 else ["No Indexing"])
        rows.append([i, "x", ";".join(words), "", "", "", "", ""])
        files.append([i, f"{i}_IM-0001.dcm.png", "Frontal"])
        names.append(f"normalized/{i}_IM-0001.dcm.png")
    header = [
        "uid",
        "MeSH",
        "Problems",
        "image",
        "indication",
        "comparison",
        "findings",
        "impression",
    ]
    table = pd.DataFrame(rows, columns=header)
    table.to_csv(folder / "indiana_reports.csv", index=False)
    pd.DataFrame(files, columns=["uid", "filename", "projection"]).to_csv(
        folder / "indiana_projections.csv", index=False)  # fmt: skip
    silent = int((table["Problems"] == "No Indexing").sum())
    expected = {}
    for finding in ("Cardiomegaly", "Atelectasis"):
        number = int(table["Problems"].str.contains(finding).sum())
        expected[finding] = (number, len(table) - number - silent, silent)
    return ["indiana_reports.csv"], names, expected, {"findings": list(expected)}


SETS = {"nih": nih, "plain": plain, "chexpert": chexpert, "mimic-cxr-jpg": mimic, "padchest": padchest,
        "rsna-pneumonia": rsna, "vindr-cxr": vindr, "vindr-cxr-image-labels": vindr_labels,
        "openi": openi}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", SETS)
def test_a_set_of_each_form_goes_the_whole_way(spark, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    labels, names, expected, settings = SETS[form](tmp_path, np.random.default_rng(1))
    for number, name in enumerate(names):
        draw(tmp_path / "images" / name, number)
    manifest = ingest(spark, images="images", labels=labels, out="store", size=SIZE, **settings)
    splits = manifest.splits.values()
    assert sum(split.images for split in splits) == len(names) and not manifest.quarantined
    found = {
        finding: tuple(
            sum(getattr(split, kind)[finding] for split in splits)
            for kind in ("positives", "negatives", "unknown")
        )
        for finding in manifest.findings
    }
    assert found == expected
    train(
        spark, data="store", run="run", model="vgg16", epochs=1, batch_size=8, num_proc=1, threads=1
    )
    of_studies = (
        {"by": "study", "aggregate": "max"} if form in ("chexpert", "mimic-cxr-jpg") else {}
    )
    predictions, metrics = evaluate(spark, data="store", run="run", bootstrap=100, **of_studies)
    assert predictions.count() == manifest.splits["test"].images
    rows = [row.finding for row in metrics.collect()]
    means = ["mean", "mean of CheXpert's five"] if of_studies else ["mean"]
    assert rows == [*manifest.findings, *means]


def test_every_form_has_a_set():
    from chexspark.ingestion.label_form_file import form_names

    assert sorted(SETS) == form_names()
