"""Scores and labels that others wrote, as one table: no Spark."""

import codecs

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from chexspark.errors import UserError
from chexspark.evaluation.scores import (
    as_float,
    numbers,
    read_given,
    read_scores,
    read_table,
    score_columns,
    similar_column,
)
from chexspark.findings import FINDINGS
from chexspark.spark_tables import PartWriter, finish
from chexspark.storage import locate

LABELS = "image,patient,Mass,Edema,age,sex\nb.png,P2,1,,061Y,F\na.png,P1,0,1,,\n"


def scores(prefix="prob_", **more):
    columns = {f"{prefix}{finding}": [0.25, 0.75] for finding in FINDINGS}
    return pd.DataFrame({"image_index": ["a.png", "b.png"]} | columns | more)


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "labels.csv").write_text(LABELS)
    return str(tmp_path / "labels.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_a_csv_of_every_editor(tmp_path, encoding, end):
    table = scores(image_index=["ä.png", "b.png"])
    text = end.join(table.to_csv(index=False).splitlines())
    (tmp_path / "scores.csv").write_bytes(text.encode(encoding))
    found = read_scores(str(tmp_path / "scores.csv"), "--predictions", FINDINGS).table
    assert found["image_index"].tolist() == ["ä.png", "b.png"]
    assert found["prob_Hernia"].tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    "content, message",
    [
        ("image_index\nä.png".encode("latin-1"), "is neither Parquet nor a CSV in UTF-8: line 2 has the byte 0xE4"),
        (b"image_index\na\0.png\n", "line 2 holds a NUL byte"),
        (codecs.BOM_UTF8, "is empty"),
        (b"image_index\n", "has no rows"),
        (b"a,b\n1\n1,2,3\n", "is neither Parquet nor a CSV in UTF-8: Error tokenizing data"),
        (b"PAR1 and no more", "is neither Parquet nor a CSV"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content, message):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_scores(str(tmp_path / "scores.csv"), "--predictions", FINDINGS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_parquet_file_and_a_folder_of_several(tmp_path):
    table = scores()
    table.to_parquet(tmp_path / "one")
    (tmp_path / "several").mkdir()
    table[:1].to_parquet(tmp_path / "several" / "a.parquet")
    table[1:].to_parquet(tmp_path / "several" / "b.parquet")
    for name in ("one", "several"):
        found = read_scores(str(tmp_path / name), "--predictions", FINDINGS)
        pd.testing.assert_frame_equal(found.table, table)
    with pytest.raises(UserError, match="none: there is no such file"):
        read_scores(str(tmp_path / "none"), "--predictions", FINDINGS)


def test_scores_that_were_never_finished_are_refused(tmp_path):
    schema = pa.schema([("image_index", pa.string()), ("Mass", pa.float64())])
    place = locate(str(tmp_path))
    with PartWriter(place, schema, 3) as writer:
        writer.write(pa.RecordBatch.from_pylist([{"image_index": "a.png", "Mass": 0.5}], schema))
    with pytest.raises(UserError, match="scores: what writes there has not finished, or was ended"):
        read_table(place, "scores")
    finish(place, schema, "image_index")
    assert read_table(place, "scores")["Mass"].to_list() == [0.5]


def test_columns_with_a_prefix_are_the_scores_where_there_are_any():
    table = scores(Mass=[1, 0])
    assert score_columns(table, FINDINGS, "it").columns["Mass"] == "prob_Mass"
    assert score_columns(scores(prefix=""), FINDINGS, "it").columns["Mass"] == "Mass"
    spaced = scores().rename(columns={"prob_Mass": " prob_Mass "})
    assert score_columns(spaced, FINDINGS, "it").columns["Mass"] == " prob_Mass "
    labelled = score_columns(table.drop(columns="prob_Mass"), FINDINGS, "it")
    assert labelled.lacking == ("Mass",), "a bare column beside others with prob_ is a label"
    with pytest.raises(
        UserError, match="it has no scores of Mass: give a column prob_Mass or Mass"
    ):
        score_columns(scores().drop(columns="prob_Mass"), ["Mass"], "it")


def test_a_finding_of_any_name_goes_by_the_name_of_its_column():
    names = ("Lung Opacity", "Pleural Thickening", "Infiltrate", "5-mm nodule")
    table = pd.DataFrame(0.5, index=[0], columns=["prob_Lung_Opacity", "prob_Pleural_Thickening",
                                                  "prob_Infiltration", "prob_5_mm_nodule"])  # fmt: skip
    found = score_columns(table, names, "it")
    assert found == (dict(zip(names, table.columns, strict=True)), (), ())
    bare = table.rename(columns=lambda c: c.removeprefix("prob_")).assign(age=[61], Other=[0.5])
    assert score_columns(bare, names, "it").others == ("Other",), "age is a fact"
    one = score_columns(table.assign(prob_Mass=0.5, text="x"), ["Lung Opacity"], "it")
    assert one.others == (*table.columns[1:], "prob_Mass")


@pytest.mark.parametrize(
    "column, finding, is_similar",
    [("prob_Pnuemonia", "Pneumonia", True), ("prob_Pneumothorax", "Pneumonia", False),
     ("mass", "Mass", True), ("prob_lung-opacity", "Lung Opacity", True), ("Mas", "Mass", True),
     ("prob_Edema", "Mass", False), ("prob_Effusions", "Effusion", True),
     ("prob_Pleural_Thickening", "Pleural Other", False)],
)  # fmt: skip
def test_a_misspelled_column_is_named_and_never_dropped(column, finding, is_similar):
    assert (similar_column(finding, [column]) == column) == is_similar
    table = pd.DataFrame({"prob_Hernia": [0.5], column: [0.5]})
    if column.startswith("prob_") and not is_similar:
        assert score_columns(table, ["Hernia", finding], "it").others == (column,)
    elif column.startswith("prob_"):
        with pytest.raises(
            UserError, match=f"no scores of {finding}, but a column {column}: call it"
        ):
            score_columns(table, ["Hernia", finding], "it")


def test_keys_that_are_missing_or_there_twice():
    with pytest.raises(UserError, match=r"1 images are there more than once, the first a\.png"):
        read_scores(scores(image_index=["a.png", " a.png"]), "predictions", FINDINGS)
    with pytest.raises(UserError, match="1 rows have no image_index"):
        read_scores(scores(image_index=["a.png", " "]), "predictions", FINDINGS)
    with pytest.raises(
        UserError, match="the DataFrame given as predictions has no column image_ind"
    ):
        read_scores(scores().drop(columns="image_index"), "predictions", FINDINGS)


@pytest.mark.parametrize(
    "text, message",
    [
        ("image_index,prob_Mass,prob_Mass\na.png,0.9,0.1\n", "has 2 columns prob_Mass: keep one"),
        ("image_index,prob_Effusion,prob_Pleural_Effusion\na.png,0.9,0.1\n", "two columns of Effusion"),
        ("image_index,Image Index,prob_Mass\na.png,b.png,0.9\n", "two columns of an image's name"),
        ("image_index,prob_Mass,label_Mass\na.png,0.9,1,\n", "rows have more cells than its header"),
    ],
)  # fmt: skip
def test_which_of_two_columns_holds_is_not_guessed(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_scores(str(tmp_path / "s.csv"), "--scores", ("Mass", "Effusion"))


def test_scores_are_numbers():
    keys = pd.Series(["a", "b"])
    assert numbers(pd.Series(["0.5", "1e-3"]), keys, "it").tolist() == [0.5, 1e-3]
    with pytest.raises(UserError, match="it: 1 scores are not numbers, the first '0,5' of b"):
        numbers(pd.Series(["0.5", "0,5"]), keys, "it")
    assert as_float("x") != as_float("x") and as_float("2") == 2.0


def test_labels_are_joined_by_name(labels):
    given = read_given(scores(extra=[1, 2]), "--predictions", labels)
    table = given.table
    assert given.findings == ("Mass", "Edema"), "in the order of the labels"
    assert table["patient_id"].tolist() == ["P1", "P2"]
    assert table["label_Mass"].tolist() == [0, 1] and table["label_Edema"].tolist() == [1, -1]
    assert table["age"].tolist() == [None, 61] and "follow_up" not in table
    assert table.columns.tolist() == ["image_index", "patient_id", "sex", "age", "prob_Mass",
                                      "prob_Edema", "label_Mass", "label_Edema"]  # fmt: skip
    assert "2 findings: there are no labels for prob_Atelectasis, prob_Cardio" in given.left_out
    assert given.left_out.endswith("prob_Hernia")


def test_labels_of_other_findings_than_nih_s(tmp_path):
    (tmp_path / "own.csv").write_text("image,patient,Lung Opacity,Rib\na.png,1,1,0\nb.png,2,0,\n")
    table = pd.DataFrame({"image_index": ["b.png", "a.png"], "Lung Opacity": ["0.1", "0.9"]})
    given = read_given(table, "--predictions", str(tmp_path / "own.csv"))
    assert given.findings == ("Lung Opacity",) and "no scores of Rib" in given.left_out
    assert given.table["prob_Lung_Opacity"].tolist() == [0.1, 0.9]
    assert given.table["label_Lung_Opacity"].tolist() == [0, 1]
    whole = read_given(table.assign(Rib=[0.5, 0.5]), "--predictions", str(tmp_path / "own.csv"))
    assert whole.findings == ("Lung Opacity", "Rib") and whole.left_out is None
    assert whole.table["label_Rib"].tolist() == [-1, 0]
    with pytest.raises(
        UserError, match="has no scores of Lung Opacity, Rib: give a column prob_Lung"
    ):
        read_given(scores(), "--predictions", str(tmp_path / "own.csv"))


def test_labels_that_do_not_fit(labels, tmp_path):
    with pytest.raises(UserError, match="1 of 2 images have no label in"):
        read_given(scores(image_index=["a.png", "c.png"]), "--predictions", labels)
    (tmp_path / "twice.csv").write_text(LABELS + "a.png,P1,1,1,,\n")
    with pytest.raises(UserError, match=r"1 images have two rows, the first a\.png"):
        read_given(scores(), "--predictions", str(tmp_path / "twice.csv"))
    with pytest.raises(UserError, match="has no label_ columns: give --labels CSV"):
        read_given(scores(), "--predictions", None)


def test_a_table_s_own_labels():
    given = read_given(scores(label_Mass=["1", "-1"], label_Rib=["0", "0"]), "--predictions", None)
    table = given.table
    assert given.findings == ("Mass",) and "no scores of Rib" in given.left_out
    assert table["label_Mass"].tolist() == [1, -1] and table["label_Mass"].dtype == np.int8
    assert table["patient_id"].tolist() == ["a.png", "b.png"], "every image is its own patient"
    assert given.notes == (
        "the DataFrame given as --predictions has no patient_id: intervals take every image for a patient "
        "of its own",
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"column label_Mass: a label must be 1, 0, or .* there is '2'"
    ):
        read_given(scores(label_Mass=["2", "0"]), "--predictions", None)


@pytest.mark.parametrize("empty", [None, np.nan, pd.NA, "", " "])
def test_an_empty_label_is_unknown(empty):
    given = read_given(scores(label_Mass=[1, empty]), "--predictions", None)
    assert given.table["label_Mass"].tolist() == [1, -1]


def test_two_labels_that_would_be_one_column():
    with pytest.raises(UserError, match="Mass and mass, which would be one column"):
        read_given(scores(label_Mass=[1, 0], label_mass=[1, 0], prob_mass=[0.1, 0.2]), "it", None)


def test_labels_of_a_form_and_paths_that_end_alike(tmp_path):
    """Scores name the whole path, labels a part of it; the form is one's own."""
    (tmp_path / "form.yaml").write_text(
        "name: x\nimage: file\npatient: {column: file, pattern: 'p[0-9]+'}\nfindings: {Mass: tumour}\n"
    )
    (tmp_path / "l.csv").write_text("file,tumour\nset/p1/v.png,1\nset/p2/v.png,0\n")
    table = pd.DataFrame({"image_index": ["/d/p2/v.png", "/d/p1/v.png"], "Mass": ["0.1", "0.9"]})
    labels, form = str(tmp_path / "l.csv"), str(tmp_path / "form.yaml")
    found = read_given(table, "--predictions", labels, form).table
    assert found[["image_index", "patient_id", "label_Mass"]].to_numpy().tolist() == [
        ["p2/v.png", "p2", 0],
        ["p1/v.png", "p1", 1],
    ]
    again = pd.concat([table, table.assign(image_index=["/e/p2/v.png", "/e/p3/v.png"])])
    with pytest.raises(UserError, match=r"two images have the label of p2/v.png"):
        read_given(again.iloc[:3], "--predictions", labels, form)
