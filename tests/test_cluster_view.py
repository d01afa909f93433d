"""What `train` shows of a run, and what Horovod is told of its settings."""

import pytest

from chexspark.cluster.job import horovod_settings
from chexspark.cluster.view import EpochTable, auroc_text, describe, waiting_text
from chexspark.config import TrainConfig
from chexspark.progress import ProgressLine
from chexspark.run.moment import Moment
from chexspark.settings import build


def config(**settings):
    return build(TrainConfig, {"data": "/d", "run": "/r", "num_proc": 2} | settings)


@pytest.mark.parametrize(
    "settings, variables",
    [
        ({}, {}),
        ({"fusion_mb": 8}, {"HOROVOD_FUSION_THRESHOLD": str(8 << 20)}),
        ({"autotune": True}, {"HOROVOD_AUTOTUNE": "1"}),
        ({"deterministic": True}, {"HOROVOD_DISABLE_GROUP_FUSION": "1"}),
    ],
)
def test_settings_become_horovod_s_variables(settings, variables):
    assert horovod_settings(config(**settings)) == variables


def test_what_is_about_to_run(manifest):
    text = describe(config(batch_size=8), manifest, 1, None)
    assert "from random weights" in text and "\n1 rank, 16 images per step" in text
    at = Moment(1, 3, 9)
    assert f"from its checkpoint at {at}" in describe(config(), manifest, 3, at)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"slots": 1}, "waiting for executors: 1 of 2 task slots, 0:07"),
        ({"tasks": 1}, "waiting for Spark: 1 of 2 tasks have started, 0:07"),
        ({}, "starting ranks: 1 of 2, 0:07"),
    ],
)
def test_what_ranks_wait_for(changes, text):
    event = {"slots": 2, "tasks": 2, "started": 1, "ranks": 2, "seconds": 7.0}
    assert waiting_text(event | changes) == text


def test_an_auroc_that_is_none():
    assert [auroc_text(value) for value in (None, float("nan"), 0.84213)] == [
        "none",
        "none",
        "0.8421",
    ]


def test_a_problem_that_several_ranks_have_is_told_once(capsys):
    with ProgressLine() as line:
        view = EpochTable(line, 1)
        for rank in (0, 1):
            view.take({"event": "problem", "rank": rank, "host": "a", "text": "low on disk"})
    assert capsys.readouterr().err == "rank 0 on a: low on disk\n"
