"""What `train` shows of a run, and what Horovod is told of its settings."""

import dataclasses

import pytest

from chexspark.cluster.job import horovod_settings
from chexspark.cluster.view import EpochTable, auroc_text, describe, waiting_text
from chexspark.config import TrainConfig
from chexspark.progress import ProgressLine
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.training.events import Epoch, Problem, Step, Validating, Waiting


def resolved(**settings):
    return ResolvedTraining(build(TrainConfig, {"data": "/d", "run": "/r"} | settings), 2)


@pytest.mark.parametrize(
    "settings, variables",
    [
        ({}, {"HOROVOD_FUSION_THRESHOLD": "0"}),
        ({"fusion_mb": 8}, {"HOROVOD_FUSION_THRESHOLD": str(8 << 20)}),
        ({"autotune": True}, {"HOROVOD_AUTOTUNE": "1"}),
        ({"deterministic": True}, {"HOROVOD_FUSION_THRESHOLD": "0"}),
        ({"deterministic": True, "fusion_mb": 8}, {"HOROVOD_FUSION_THRESHOLD": "0"}),
    ],
)
def test_settings_become_horovod_s_variables(settings, variables):
    plain = {"fusion_mb": None, "autotune": False, "deterministic": False}
    assert horovod_settings(**plain | settings) == variables


def test_what_is_about_to_run(manifest):
    text = describe(resolved(batch_size=8), manifest, 1, None)
    assert "from random weights" in text and "\n1 rank, 16 images per step" in text
    at = Moment(1, 3, 9)
    assert text.endswith("adam at 0.001")
    faster = describe(resolved(head_rate=10.0), manifest, 1, None)
    assert faster.endswith("adam at 0.001, the last layer at 10 times that")
    assert f"from its checkpoint at {at}" in describe(resolved(), manifest, 3, at)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"slots": 1}, "waiting for executors: 1 of 2 task slots, 0:07"),
        ({"tasks": 1}, "waiting for Spark: 1 of 2 tasks have started, 0:07"),
        ({}, "starting ranks: 1 of 2, 0:07"),
    ],
)
def test_what_ranks_wait_for(changes, text):
    event = Waiting(slots=2, tasks=2, started=1, ranks=2, seconds=7.0)
    assert waiting_text(dataclasses.replace(event, **changes)) == text


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
            view.take(Problem(rank, "a", "low on disk"))
    assert capsys.readouterr().err == "rank 0 on a: low on disk\n"


def test_an_epoch_is_a_line_of_the_table_and_where_the_run_is_is_known(capsys):
    with ProgressLine() as line:
        view = EpochTable(line, 3)
        view.take(
            Step(0, 3, 2, 9, loss=0.5, learning_rate=0.1, images_per_second=7.0, seconds_left=3.0)
        )
        assert view.at == Moment(0, 2)
        view.take(Validating(0))
        view.take(Epoch(0, 0.5, 0.25, None, 0.001, 7.0, 61.0, best=True))
        view.take(Epoch(1, 0.4, 0.35, 0.75, 0.001, 7.0, 61.0, best=False))
        assert view.at == Moment(2, 0)
    assert capsys.readouterr().err.splitlines() == [
        EpochTable.HEAD,
        "      1   0.5000    0.2500       none    1e-03       7.0    1:01  best so far",
        "      2   0.4000    0.3500     0.7500    1e-03       7.0    1:01",
    ]
