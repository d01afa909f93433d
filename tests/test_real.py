"""The real NIH images, where CHEXSPARK_REAL_DATA names their folder."""

import os
from pathlib import Path

import pandas as pd
import pytest

from chexspark import ingest
from chexspark.findings import FINDINGS
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.labels import read_labels
from chexspark.storage import locate

FOLDER = os.environ.get("CHEXSPARK_REAL_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="CHEXSPARK_REAL_DATA is not set")


@pytest.mark.parametrize("images, count, size", [("images64", 800, 64), ("images", 150, 256)])
def test_real_images_are_ingested_with_their_labels(spark, tmp_path, images, count, size):
    csv = Path(FOLDER) / "Data_Entry_2017_v2020.csv"
    manifest = ingest(
        spark, images=f"{FOLDER}/{images}", labels=str(csv), boxes=f"{FOLDER}/BBox_List_2017.csv",
        out=str(tmp_path / "store"), size=size,
    )  # fmt: skip
    assert sum(split.images for split in manifest.splits.values()) == count
    assert manifest.quarantined == {}
    names = {path.name for path in (Path(FOLDER) / images).iterdir()}
    truth = pd.read_csv(csv, index_col=False, usecols=["Image Index", "Finding Labels"])
    truth = truth[truth["Image Index"].isin(names)]["Finding Labels"].str.split("|").explode()
    for finding in FINDINGS:
        found = sum(split.positives[finding] for split in manifest.splits.values())
        assert found == (truth == finding).sum()


def test_all_labels_and_boxes_are_read():
    labels, _, problems, *_ = read_labels(locate(f"{FOLDER}/Data_Entry_2017_v2020.csv"))
    assert not problems
    assert len(labels) == 112_120 and labels.patient_id.nunique() == 30_805
    assert labels.age.between(0, 120).mean() > 0.999
    assert len(read_boxes(locate(f"{FOLDER}/BBox_List_2017.csv"), FINDINGS).rows) == 984
