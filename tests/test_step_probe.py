"""What is measured of a step: in this process, with a ring of one; and on ranks."""

import socket

import pytest

from chexspark import train
from chexspark.config import TrainConfig
from chexspark.data.plan import RankFacts
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.training.events import Alive
from chexspark.training.ring import Alone


class Driver:
    def __init__(self):
        self.seen = []

    def send(self, event):
        self.seen.append(event)


def test_a_rank_times_its_step_and_each_message(store, manifest, tmp_path, monkeypatch):
    from chexspark.training import step_probe

    monkeypatch.setattr(step_probe, "MOST_STEPS", 4)
    given = {"data": store.path, "run": str(tmp_path), "model": "vgg16", "batch_size": 4}
    settings = ResolvedTraining(build(TrainConfig, given), 1)
    driver = Driver()
    with socket.create_server(("127.0.0.1", 0)) as here:
        probe = step_probe.StepProbe(settings, RankFacts(0, 1), Alone(), driver, here)
        found = probe.measure()
    model = probe.make_steps().model
    values = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert sum(found.messages) == 4 * values and len(found.messages) == len(found.ready) > 2
    assert len(found.alone) == len(found.half) == len(found.together) == 4
    assert min(*found.ready, *found.alone, *found.half, *found.together) > 0
    assert [each.bytes for each in found.exchange] == list(step_probe.MESSAGES)
    assert found.rows == 4 and found.latency > 0 and found.input > 0 and found.score > 0
    assert any(isinstance(event, Alive) for event in driver.seen)


def test_half_precision_is_half_of_the_bytes(store, manifest, tmp_path):
    from chexspark.training import step_probe

    def sent(compression):
        given = {"data": store.path, "run": str(tmp_path), "model": "vgg16"}
        config = build(TrainConfig, given | {"compression": compression})
        probe = step_probe.StepProbe(
            ResolvedTraining(config, 1), RankFacts(0, 1), Alone(), Driver(), None
        )
        return sum(step_probe.TimedRing(probe.make_steps()).bytes)

    assert sent("none") == 2 * sent("fp16")


def test_a_neighbour_that_cannot_be_reached_has_no_latency(store, tmp_path, monkeypatch):
    from chexspark.training import step_probe

    def refused(place):
        raise ConnectionRefusedError

    monkeypatch.setattr(step_probe, "ping", refused)
    given = {"data": store.path, "run": str(tmp_path)}
    settings = ResolvedTraining(build(TrainConfig, given), 1)
    with socket.create_server(("127.0.0.1", 0)) as here:
        probe = step_probe.StepProbe(settings, RankFacts(0, 1), Alone(), Driver(), here)
        assert probe.latency() == 0.0


def test_messages_of_a_gpu_are_spread_over_the_backward_pass():
    from chexspark.training.step_probe import evenly

    assert evenly(2, 3.0) == pytest.approx((2.0, 3.0))


@pytest.mark.slow
def test_a_dry_run_forecasts_and_writes_nothing(spark, store, tmp_path, caplog):
    caplog.set_level("INFO")
    found = train(
        spark, data=store.path, run=str(tmp_path / "run"), model="vgg16", batch_size=4, threads=1,
        num_proc=2, dry_run=True, at=[2, 4],
    )  # fmt: skip
    assert found["ranks"].tolist() == [2, 4] and found["global_batch"].tolist() == [8, 16]
    assert (found["images_per_second"] > 0).all() and (found["epoch_seconds"] > 0).all()
    assert not (tmp_path / "run").exists()
    assert (
        "measured on 2 ranks, 1 host" in caplog.text and "all ranks were on one host" in caplog.text
    )
