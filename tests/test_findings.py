"""A store's own findings: names, the columns of a label file, words of NIH's form, boxes."""

import numpy as np
import pytest

from chexspark import ingest, read_store
from chexspark.errors import UserError, listed
from chexspark.findings import FINDINGS, column_name, find, names_fault, shared
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.label_findings import COLUMNS
from chexspark.ingestion.label_table import label_findings
from chexspark.ingestion.labels import read_labels
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.store.row_groups import read_row_group, row_groups

PLAIN = (
    "image,patient,Lung Opacity,Mass,Line/Tube,age,Site\n"
    "a.png,1,1,0,,50,A\nb.png,2,0,1,1,60,B\nc.png,3,-1,0,0,70,A\n"
)
NIH = (
    "Image Index,Finding Labels,Patient ID\n"
    "a.png,Mass|Pacemaker,1\nb.png,No Finding,2\nc.png,Infiltrate|Scoliosis,3\n"
)


def write(folder, text):
    (folder / "labels.csv").write_text(text)
    return locate(str(folder / "labels.csv"))


def test_columns_are_named_as_spark_can_take_them():
    assert column_name("Lung Opacity") == "Lung_Opacity"
    assert column_name("Erguß, links") == "Ergu___links"
    assert column_name("Pleural_Thickening") == "Pleural_Thickening"


@pytest.mark.parametrize(
    "findings, fault",
    [
        (FINDINGS, None),
        (("One",), None),
        (tuple(f"F{i}" for i in range(200)), None),
        ((), "has 0 findings, but must have 1 to 200"),
        (tuple(f"F{i}" for i in range(201)), "has 201 findings"),
        (("Mass", "Mass"), "has Mass twice"),
        (("Lung Opacity", "Lung-Opacity"), "would be one column, Lung_Opacity"),
        (("Mass", "mass"), "has Mass and mass, which would be one column"),
        (("",), "is no name"),
        ((" Mass",), "is no name"),
        ((3,), "is no name"),
        (("a\nb",), "printable"),
        (("x" * 101,), "at most 100"),
        (("Mass", "mean"), "what the tables call the rows of means"),
        (("Mass", "Mean of all"), "what the tables call the rows of means"),
    ],
)
def test_what_a_list_of_findings_must_be(findings, fault):
    found = names_fault(findings)
    assert found is None if fault is None else fault in found


def test_findings_are_found_by_name_or_by_nih_s_other_spelling():
    assert find("Mass", ("Nodule", "Mass")) == 1
    assert find(" Infiltrate ", FINDINGS) == FINDINGS.index("Infiltration")
    assert find("Infiltration", ("Infiltrate",)) == 0
    assert find("Infiltrate", ("Infiltration", "Infiltrate")) == 1, "its own name goes first"
    assert find("mass", ("Mass",)) == 0 and find("MASS ", ("Nodule", "Mass")) == 1
    assert find("Pleural_thickening", FINDINGS) == FINDINGS.index("Pleural_Thickening")
    assert find("pleural effusion", FINDINGS) == FINDINGS.index("Effusion")
    assert find("Effusion", ("Mass", "Pleural Effusion")) == 1
    assert find("pleural effusion", ("Effusion", "Pleural Effusion")) == 1, (
        "its spelling goes first"
    )
    assert find("Masss", ("Mass",)) is None and find("++", ("Mass",)) is None
    assert find("grade 1", ("Grade 1+", "Grade 1-")) is None, "one of two"
    assert find("größe", ("Gräße", "Größe")) == 1


def test_shared_findings_keep_the_order_of_the_first():
    assert shared([("C", "A", "B"), ("A", "B", "C", "D"), ("B", "A")]) == ("A", "B")
    assert shared([("A",), ("B",)]) == ()


def test_a_plain_file_s_own_findings(tmp_path):
    place = write(tmp_path, PLAIN)
    found = read_labels(place, ("Mass", "Lung Opacity"))
    assert found.findings == ("Mass", "Lung Opacity")
    assert [labels.tolist() for labels in found.rows["labels"]] == [[0, 1], [1, 0], [0, -1]]
    assert (found.left_alone, found.problems, found.lacking) == (("Line/Tube", "Site"), [], ())
    assert label_findings(place) == ("Lung Opacity", "Mass", "Line/Tube", "Site")


def test_all_columns_of_a_plain_file(tmp_path):
    found = read_labels(write(tmp_path, PLAIN.replace(",Site", "").replace(",A", "")
                              .replace(",B", "")), COLUMNS)  # fmt: skip
    assert found.findings == ("Lung Opacity", "Mass", "Line/Tube")
    assert found.rows["labels"][0].tolist() == [1, 0, -1] and found.rows["age"].tolist() == [50, 60, 70]  # fmt: skip


@pytest.mark.parametrize(
    "text, asked, message",
    [
        (PLAIN, ("Lung opacities",), "--findings Lung opacities.* did you mean Lung Opacity"),
        (PLAIN, ("Edema",), "has no column Edema .columns: Lung Opacity, Mass"),
        (PLAIN, COLUMNS, "line 2: Site is 'A', but must be 1, 0, -1, or empty"),
        (PLAIN.replace("Site", "mass"), COLUMNS, "Mass and mass, which would be one column"),
        (PLAIN.replace("Site", "Mass"), ("Mass",), "two columns of Mass, Mass and Mass: keep one"),
        (PLAIN.replace("Site", "MASS"), (), "two columns of Mass, Mass and MASS"),
        (PLAIN.replace("Mass", "Fracture"), (), "no column of NIH's 14 findings"),
        (NIH, COLUMNS, "has one column of findings and not one for each"),
        (NIH, ("Mass", "Pacemakers"), "no image of .* has it; did you mean Pacemaker"),
    ],
)  # fmt: skip
def test_a_finding_that_is_not_there_is_one_clear_line(tmp_path, text, asked, message):
    with pytest.raises(UserError, match=message):
        read_labels(write(tmp_path, text), asked)


def test_words_of_nih_s_form(tmp_path):
    place = write(tmp_path, NIH)
    assert label_findings(place) == (*FINDINGS, "Pacemaker", "Scoliosis")
    found = read_labels(place, ("Pacemaker", "Infiltration", "Hernia"))
    # Of Scoliosis nobody knows whether it is a finding, or one of these by another word.
    assert [labels.tolist() for labels in found.rows["labels"]] == [
        [1, 0, 0],
        [0, 0, 0],
        [-1, 1, -1],
    ]
    assert (found.left_alone, found.problems) == (("Mass",), [("Scoliosis", "unknown finding")])
    # By default a word that is none of NIH's may be one that is misspelled.
    assert [name for name, _ in read_labels(place).problems] == ["Pacemaker", "Scoliosis"]
    wrong = read_labels(write(tmp_path, NIH + "d.png,Masss,4\n"), ("Mass", "Hernia"))
    assert ("Masss", "unknown finding") in wrong.problems
    assert wrong.rows["labels"].iloc[-1].tolist() == [-1, -1], "never negative"


def test_boxes_of_other_findings_are_left_alone(tmp_path):
    text = "Image Index,Finding Label,Bbox\na.png,Mass,1,2,3,4\nb.png,Nodule,1,2,3,4\n"
    found = read_boxes(write(tmp_path, text), ("Mass", "Lung Opacity"))
    assert found.rows["finding"].tolist() == ["Mass"] and found.left_alone == {"Nodule": 1}
    with pytest.raises(UserError, match="line 3: 'lung opacityy' is no finding"):
        read_boxes(write(tmp_path, text.replace("Nodule", "lung opacityy")), ("Lung Opacity",))


def test_many_names_are_not_all_said():
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1500)), 2) == "0, 1, … (1,500 in all)"


@pytest.fixture(scope="module")
def own_release(release, tmp_path_factory):
    """A plain label file with findings of its own for the phantoms of `release`."""
    labels = read_labels(locate(str(release / "Data_Entry_2017.csv"))).rows
    lines = ["image,patient,Lung Opacity,Mass,Line/Tube,age"]
    for row in labels.itertuples():
        has = dict(zip(FINDINGS, row.labels, strict=True))
        unknown = "" if has["Edema"] else has["Hernia"]
        lines.append(
            f"{row.image_index},{row.patient_id},{has['Infiltration']},{has['Mass']},{unknown},40"
        )
    place = tmp_path_factory.mktemp("own") / "labels.csv"
    place.write_text("\n".join(lines) + "\n")
    return release, place, labels


@pytest.fixture(scope="module")
def own_store(spark, own_release, tmp_path_factory):
    release, labels, _ = own_release
    out = tmp_path_factory.mktemp("own") / "store"
    manifest = ingest(
        spark, images=str(release / "images"), labels=str(labels), out=str(out), size=32,
        findings=["Mass", "Line/Tube", "Lung Opacity"],
    )  # fmt: skip
    return locate(str(out)), manifest


def test_a_store_of_its_own_findings(own_store, own_release):
    store, written = own_store
    truth = own_release[2].set_index("image_index")["labels"]
    manifest = read_manifest(store)
    assert manifest.findings == written.findings == ("Mass", "Line/Tube", "Lung Opacity")
    positions = [FINDINGS.index(name) for name in ("Mass", "Hernia", "Infiltration")]
    seen = 0
    for split, summary in manifest.splits.items():
        assert set(summary.positives) == set(manifest.class_weights) == set(manifest.findings)
        for group in row_groups(store, manifest, split):
            piece = read_row_group(group, manifest.image_size, ("image_index",))
            for name, labels in zip(
                piece.others["image_index"].to_pylist(), piece.labels, strict=True
            ):
                expected = truth[name][positions]
                edema = truth[name][FINDINGS.index("Edema")]
                assert labels.tolist() == [expected[0], -1 if edema else expected[1], expected[2]]
                seen += 1
    assert seen == len(truth)


def test_a_store_as_a_dataframe(spark, own_store):
    store, manifest = own_store
    table = read_store(spark, str(store), "train")
    assert table.filter("label_Mass = 1").count() == manifest.splits["train"].positives["Mass"]
    assert table.filter("label_Line_Tube is null").count() == manifest.splits["train"].unknown["Line/Tube"]  # fmt: skip
    row = table.first()
    pixels = np.frombuffer(row["image"], np.uint8).reshape(row["height"], row["width"])
    assert pixels.mean() == pytest.approx(row["pixel_mean"], abs=1e-3)
    every = read_store(spark, str(store))
    assert {r["split"]: r["count"] for r in every.groupBy("split").count().collect()} == {
        name: summary.images for name, summary in manifest.splits.items()
    }
    with pytest.raises(UserError, match="'tset', but must be train, val, test; did you mean test"):
        read_store(spark, str(store), "tset")


def test_adding_to_a_store_keeps_its_findings(spark, own_release, own_store):
    release, labels, _ = own_release
    store, manifest = own_store
    given = {
        "images": str(release / "images"),
        "labels": str(labels),
        "out": str(store),
        "size": 32,
    }
    assert ingest(spark, **given, append=True).findings == manifest.findings
    with pytest.raises(
        UserError, match=r"a store of other findings .Mass, Line/Tube, Lung Opacity there"
    ):
        ingest(spark, **given, findings="Mass")
    with pytest.raises(UserError, match="--findings has Mass twice"):
        ingest(spark, **given, findings="Mass, Mass")
