"""Scores and labels that others wrote, as one table: no Spark."""

import codecs

import numpy as np
import pandas as pd
import pytest

from chexspark.errors import UserError
from chexspark.evaluation.scores import (
    as_float,
    join_labels,
    numbers,
    read_scores,
    score_columns,
    with_labels,
)
from chexspark.findings import FINDINGS

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
    found = read_scores(str(tmp_path / "scores.csv"), "--predictions")
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
        read_scores(str(tmp_path / "scores.csv"), "--predictions")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_parquet_file_and_a_folder_of_several(tmp_path):
    table = scores()
    table.to_parquet(tmp_path / "one")
    (tmp_path / "several").mkdir()
    table[:1].to_parquet(tmp_path / "several" / "a.parquet")
    table[1:].to_parquet(tmp_path / "several" / "b.parquet")
    for name in ("one", "several"):
        pd.testing.assert_frame_equal(read_scores(str(tmp_path / name), "--predictions"), table)
    with pytest.raises(UserError, match="none: there is no such file"):
        read_scores(str(tmp_path / "none"), "--predictions")


def test_a_column_with_a_prefix_goes_before_one_without():
    table = scores(Mass=[1, 0])
    assert score_columns(table, "it")["Mass"] == "prob_Mass"
    assert score_columns(scores(prefix=""), "it")["Mass"] == "Mass"
    spaced = scores().rename(columns={"prob_Mass": " prob_Mass "})
    assert score_columns(spaced, "it")["Mass"] == " prob_Mass "
    with pytest.raises(
        UserError, match="it has no scores of Mass: give a column prob_Mass or Mass"
    ):
        score_columns(scores().drop(columns="prob_Mass"), "it")


def test_keys_that_are_missing_or_there_twice():
    with pytest.raises(UserError, match=r"1 images are there more than once, the first a\.png"):
        read_scores(scores(image_index=["a.png", " a.png"]), "predictions")
    with pytest.raises(UserError, match="1 rows have no image_index"):
        read_scores(scores(image_index=["a.png", " "]), "predictions")
    with pytest.raises(
        UserError, match="the DataFrame given as predictions has no column image_ind"
    ):
        read_scores(scores().drop(columns="image_index"), "predictions")


def test_scores_are_numbers():
    keys = pd.Series(["a", "b"])
    assert numbers(pd.Series(["0.5", "1e-3"]), keys, "it").tolist() == [0.5, 1e-3]
    with pytest.raises(UserError, match="it: 1 scores are not numbers, the first '0,5' of b"):
        numbers(pd.Series(["0.5", "0,5"]), keys, "it")
    assert as_float("x") != as_float("x") and as_float("2") == 2.0


def test_labels_are_joined_by_name(labels):
    table = join_labels(scores(), labels, "it")
    assert table["patient_id"].tolist() == ["P1", "P2"]
    assert table["label_Mass"].tolist() == [0, 1] and table["label_Edema"].tolist() == [1, -1]
    assert table["age"].tolist() == [None, 61] and "follow_up" not in table
    kept = with_labels(scores(extra=[1, 2]), labels, "it")
    assert kept.columns[:4].tolist() == ["image_index", "patient_id", "sex", "age"]
    assert "extra" not in kept


def test_labels_that_do_not_fit(labels, tmp_path):
    with pytest.raises(UserError, match="1 of 2 images have no label in"):
        join_labels(scores(image_index=["a.png", "c.png"]), labels, "it")
    (tmp_path / "twice.csv").write_text(LABELS + "a.png,P1,1,1,,\n")
    with pytest.raises(UserError, match=r"1 images have two rows, the first a\.png"):
        join_labels(scores(), str(tmp_path / "twice.csv"), "it")
    with pytest.raises(UserError, match="it has no label_Atelectasis: give --labels CSV"):
        with_labels(scores(), None, "it")


def test_a_table_s_own_labels():
    own = {f"label_{finding}": ["1", "-1"] for finding in FINDINGS}
    table = with_labels(scores(**own), None, "it")
    assert table["label_Mass"].tolist() == [1, -1] and table["label_Mass"].dtype == np.int8
    assert table["patient_id"].tolist() == ["a.png", "b.png"], "every image is its own patient"
    with pytest.raises(UserError, match="a label must be 1, 0 or -1"):
        with_labels(scores(**own | {"label_Mass": ["2", "0"]}), None, "it")
