"""Where an epoch's time went, with times that are given."""

import math
from types import SimpleNamespace

import pytest

from chexspark.run.moment import Moment
from chexspark.training import clock
from chexspark.training.clock import EVENT_SECONDS, Clock


@pytest.fixture
def now(monkeypatch):
    """A list whose one value is what the clock reads."""
    value = [100.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: value[0]))
    return value


def steps(given, now, *times):
    """Take a step for each pair of seconds of input and of work; 1 s of each is allreduce."""
    for wait, work in times:
        given.asks()
        now[0] += wait
        given.gets()
        now[0] += work
        given.stepped(1.0)


def test_the_first_step_which_compiles_is_no_part_of_the_rate(now):
    given = Clock(images=20)
    steps(given, now, (1, 39))
    assert given.rate == 20 / 40, "until there is a second"
    steps(given, now, (1, 4), (1, 4))
    assert given.rate == 2 * 20 / 10


def test_an_epoch_in_figures(now):
    given = Clock(images=20)
    steps(given, now, (1, 3), (1, 3))
    now[0] += 2
    assert given.figures() == pytest.approx(
        {"seconds": 10.0, "images_per_second": 4.0, "input_share": 0.2,
         "allreduce_share": 0.2, "compute_share": 0.6}
    )  # fmt: skip


def test_an_epoch_that_resumes_counts_the_losses_before():
    at = Moment(3, 2, 4, losses=5.0).after_step(1.0)
    assert at.mean_loss == 2.0 and at.losses == 6.0 and at == Moment(3, 3)
    assert str(at) == "epoch 4, step 4" and str(at.after_step(0.5)) == "epoch 4, validation"
    assert (
        at.next_epoch() == Moment(4) and at.next_epoch().losses == 0 and at.next_epoch().steps == 4
    )


def test_an_epoch_whose_steps_are_all_done_has_no_rate(now):
    given = Clock(images=20)
    now[0] += 1
    assert math.isnan(given.figures()["images_per_second"])


def test_the_driver_is_told_now_and_then(now):
    given = Clock(images=20)
    half = EVENT_SECONDS / 2
    told = []
    for _ in range(4):
        steps(given, now, (0, half))
        told.append(given.is_time_to_tell())
        assert given.is_time_to_tell() == told[-1], "to ask changes nothing"
        if told[-1]:
            given.tells()
    assert told == [False, True, False, True]
