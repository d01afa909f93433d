"""Jobs whose executors are processes of their own, in folders of their own: relative paths."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

JOBS = Path(__file__).parent.parent / "jobs"
MASTER = "local-cluster[2,1,2048]"  # two executors of one core


def submit(folder: Path, job: str, *flags: str) -> str:
    """Run a job from `folder`; return what it said."""
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    spark_submit = Path(sys.executable).with_name("spark-submit")
    command = [str(spark_submit), "--master", MASTER, str(JOBS / f"{job}.py"), *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def test_every_job_takes_relative_paths(tmp_path):
    code = ["-m", "chexspark.phantom", "--out", "nih", "--images", "48", "--size", "32"]
    subprocess.run([sys.executable, *code], cwd=tmp_path, check=True)
    submit(tmp_path, "ingest", "--images", "nih/images", "--labels", "nih/Data_Entry_2017.csv",
           "--boxes", "nih/BBox_List_2017.csv", "--out", "store", "--size", "32",
           "--rows-per-group", "8")  # fmt: skip
    submit(tmp_path, "train", "--data", "store", "--run", "./runs/../run", "--epochs", "1",
           "--model", "vgg16", "--batch-size", "4", "--num-proc", "2", "--threads", "1")  # fmt: skip
    submit(tmp_path, "evaluate", "--data", "store", "--run", "run", "--bootstrap", "100")
    submit(tmp_path, "report", "--run", "run")
    submit(tmp_path, "predict", "--images", "nih/images/*_000.png", "nih/images", "--run", "run",
           "--out", "scores")  # fmt: skip
    submit(
        tmp_path, "explain", "--run", "run", "--images", *first_images(tmp_path), "--out", "maps"
    )
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert pq.read_table(tmp_path / "scores").num_rows == 48
    assert list((tmp_path / "maps").glob("*.png"))
    lineage = (tmp_path / "run" / "lineage.json").read_text()
    assert str(tmp_path / "store") in lineage


def first_images(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "nih" / "images").iterdir())[
        :2
    ]
