"""Where the time of a training goes."""

import time

from chexspark.cluster import timings
from chexspark.cluster.timings import Timings
from chexspark.training.events import Alive, Epoch, Starting, Step, Validating


def test_each_stage_has_the_seconds_until_the_next_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timings.time, "monotonic", lambda: now[0])
    found = Timings()

    def later(seconds, event):
        now[0] += seconds
        found.take(event)

    def step(epoch):
        return Step(epoch, 3, 1, 2, 0.1, 0.1, 1.0, 1.0)

    def over(epoch):
        return Epoch(epoch, 0.1, 0.1, None, 0.1, 1.0, 1.0, False)

    now[0] += 1
    found.end("Spark")
    for seconds, event in [
        (2, Starting("TensorFlow")), (3, Starting("the model")), (4, Starting("the first step")),
        (5, step(0)), (6, step(0)), (1, Alive()), (6, Validating(0)), (7, over(0)),
        (8, step(1)), (9, Validating(1)), (1, over(1)), (8, step(2)), (9, Validating(2)), (1, over(2)),
    ]:  # fmt: skip
        later(seconds, event)
    now[0] += 0.5
    found.end("the last checkpoint")
    assert found.seconds == {
        "Spark": 1, "ranks started": 2, "TensorFlow": 3, "the model": 4, "the first step": 5,
        "epoch 1": 13, "epoch 1: statistics, validation": 7, "further epochs": 34,
        "further epochs: statistics, validation": 2, "the last checkpoint": 0.5,
    }  # fmt: skip
    whole = sum(found.seconds.values())
    assert str(found).splitlines()[-1].split()[:3] == ["in", "all", f"{whole:.1f}"]
    assert "further epochs                             34.0 s" in str(found)


def test_a_command_counts_from_the_start_of_its_process():
    found = Timings()
    found.since_start_of_process()
    assert found.seconds["Python and packages"] > 0.1
    assert found.begun < time.monotonic() - 0.1
