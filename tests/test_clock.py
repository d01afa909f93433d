"""Where an epoch's time went, with times that are given."""

import math
from types import SimpleNamespace

import pytest

from chexspark.training import clock
from chexspark.training.clock import EVENT_SECONDS, Clock


@pytest.fixture
def now(monkeypatch):
    """A list whose one value is what the clock reads."""
    value = [100.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: value[0]))
    return value


def steps(given, now, *times):
    """Take a step for each loss, seconds of input and seconds of work; 1 s of each is allreduce."""
    for loss, wait, work in times:
        given.asks()
        now[0] += wait
        given.gets()
        now[0] += work
        given.stepped(SimpleNamespace(loss=loss, allreduce_seconds=1.0))


def test_the_first_step_which_compiles_is_no_part_of_the_rate(now):
    given = Clock(images=20, first=0, losses=0.0)
    steps(given, now, (0.5, 1, 39))
    assert given.rate == 20 / 40, "until there is a second"
    steps(given, now, (0.5, 1, 4), (0.5, 1, 4))
    assert given.rate == 2 * 20 / 10


def test_an_epoch_in_figures(now):
    given = Clock(images=20, first=0, losses=0.0)
    steps(given, now, (3.0, 1, 3), (1.0, 1, 3))
    now[0] += 2
    assert given.figures() == pytest.approx(
        {"train_loss": 2.0, "seconds": 10.0, "images_per_second": 4.0, "input_share": 0.2,
         "allreduce_share": 0.2, "compute_share": 0.6}
    )  # fmt: skip


def test_an_epoch_that_resumes_counts_the_losses_before(now):
    given = Clock(images=20, first=2, losses=5.0)
    steps(given, now, (1.0, 1, 1))
    assert given.mean_loss == 2.0 and given.losses == 6.0
    assert given.figures()["images_per_second"] == 10.0, "of the steps that were taken here"


def test_an_epoch_whose_steps_are_all_done_has_no_rate(now):
    given = Clock(images=20, first=4, losses=8.0)
    now[0] += 1
    figures = given.figures()
    assert figures["train_loss"] == 2.0 and math.isnan(figures["images_per_second"])


def test_the_driver_is_told_now_and_then(now):
    given = Clock(images=20, first=0, losses=0.0)
    half = EVENT_SECONDS / 2
    told = []
    for _ in range(4):
        steps(given, now, (1.0, 0, half))
        told.append(given.is_time_to_tell())
    assert told == [False, True, False, True]
