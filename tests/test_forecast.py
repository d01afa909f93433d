"""How a training would go at other numbers of ranks."""

import dataclasses

import pytest

from chexspark.arguments import parse_command_line
from chexspark.cluster.advisor import check_measurable
from chexspark.cluster.forecast import (
    COMPUTE,
    DATA,
    INPUT,
    NETWORK,
    SLOWEST,
    Measured,
    Recipe,
    Sizes,
    advice,
    forecast,
    measured_text,
    merged,
    modelled,
    share,
    slowest,
    table,
)
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.training.step_facts import Exchange, StepFacts

# A step of 1 s whose two messages of 100 bytes are ready after 0.5 and 0.9 s, and take 0.3 s each between two ranks.
TWO = Measured(
    ranks=2, hosts=2, rows=16, messages=(100, 100), ready=(0.5, 0.9), alone=(1.0, 1.0), half=(0.5, 0.5),
    together=1.45, byte=0.003, wait=0.05, latency=0.0, input=0.01, score=0.25,
)  # fmt: skip
SIZES = Sizes(train_images=3200, val_images=320, epochs=10)
RECIPE = Recipe("linear", 1e-3, "none", None, 0, False)


def but(**values):
    return dataclasses.replace(TWO, **values)


def test_the_slowest_of_many_is_expected_from_the_spread():
    assert slowest([2.0, 1.0], 1) == 1.5
    assert slowest([2.0, 1.0], 2) == 1.75  # one of four pairs is 1, 1
    assert slowest([1.0, 1.0, 1.0], 64) == pytest.approx(1.0)
    assert slowest([1.0, 2.0, 3.0], 1000) == pytest.approx(3.0)


def test_messages_travel_while_others_are_computed_one_after_the_other():
    assert [share(ranks) for ranks in (1, 2, 4)] == [0, 1, 1.5]
    assert modelled(TWO, 1).whole == 1.0
    # 0.55–0.85, 0.95–1.25, and 0.1 s of the step that follows the last gradient.
    assert modelled(TWO, 2).whole == pytest.approx(1.35)
    # 0.55–1.0, and the second one waits for the first: 1.0–1.45.
    assert modelled(TWO, 4).whole == pytest.approx(1.55)
    assert modelled(TWO, 4, wire=0.5).whole == pytest.approx(0.95 + 0.225 + 0.1)
    assert modelled(but(wait=0.0, byte=0.0), 64).whole == pytest.approx(1.0)
    # Both are ready when the first may start, and travel as one: 0.95 s and 0.45 s for each.
    late = but(wait=0.45)
    assert modelled(late, 4, fusion=200).whole == pytest.approx(0.95 + 0.9 + 0.1)
    assert modelled(late, 4, fusion=199).whole == pytest.approx(max(0.95 + 0.45, 1.35) + 0.45 + 0.1)
    # Four turns more of 0.01 s each, as of the wait, so of each message.
    assert modelled(but(latency=0.01), 4).whole == pytest.approx(0.59 + 2 * (0.45 + 0.04) + 0.1)


def test_the_measured_number_of_ranks_is_forecast_as_it_was_measured():
    found = forecast(TWO, 2, SIZES)
    assert found.step_seconds == pytest.approx(1.45)
    assert found.images_per_second == pytest.approx(32 / 1.45)
    assert found.efficiency == pytest.approx(1 / 1.45)
    assert (found.ranks, found.global_batch, found.steps_per_epoch) == (2, 32, 100)
    assert found.epoch_seconds == pytest.approx(145 + 10 * 0.25)
    assert found.train_seconds == pytest.approx(1475)
    assert found.exchange_seconds == pytest.approx(0.45) and found.limit == NETWORK


def test_what_talking_costs_beside_the_wire_is_the_same_at_other_numbers():
    assert forecast(TWO, 4, SIZES).step_seconds == pytest.approx(1.55 + 0.1)
    assert forecast(TWO, 1, SIZES).step_seconds == 1.0
    assert forecast(but(together=1.2), 2, SIZES).step_seconds == pytest.approx(1.35), "never less"


def test_what_keeps_a_training_back_is_named():
    fast = but(byte=0.0, wait=0.0, together=1.0)
    assert forecast(fast, 4, SIZES).limit == COMPUTE
    assert forecast(but(input=2.0), 4, SIZES).limit == INPUT
    assert forecast(but(input=2.0), 4, SIZES).step_seconds == 2.0
    assert forecast(fast, 64, SIZES).limit == DATA
    uneven = but(byte=0.0, wait=0.0, together=1.0, alone=(1.0,) * 9 + (2.0,))
    assert forecast(uneven, 8, SIZES).limit == SLOWEST


def facts(**values):
    given = {
        "host": "a", "rows": 16, "messages": (4, 8), "ready": (0.5, 0.7), "alone": (1.0, 1.2), "half": (),
        "together": (2.0, 3.0), "latency": 1e-4, "input": 0.1, "score": 0.2,
        "exchange": tuple(Exchange(n, 0.002 + n * 1e-8) for n in (1 << 16, 1 << 20, 1 << 22, 1 << 24)),
    }  # fmt: skip
    return StepFacts(**given | values)


def test_what_ranks_have_measured_becomes_one():
    found = merged(
        [facts(), facts(host="b", alone=(3.0, 1.0), together=(4.0, 1.0), ready=(0.7, 0.9))]
    )
    assert (found.ranks, found.hosts, found.messages) == (2, 2, (4, 8))
    assert found.alone == (1.0, 1.2, 3.0, 1.0) and found.computed == pytest.approx(1.55)
    assert found.together == 3.5, "a step lasts as long as its slowest rank"
    assert found.ready == pytest.approx((0.6, 0.8))
    assert found.byte == pytest.approx(1e-8) and found.wait == pytest.approx(0.002)
    assert "0.80 Gbit/s between neighbours" in measured_text(found)
    with pytest.raises(ValueError, match="different sizes"):
        merged([facts(), facts(messages=(12,))])


def said(found, numbers, recipe=RECIPE, sizes=SIZES):
    return advice(found, [forecast(found, n, sizes) for n in numbers], sizes, recipe)


def test_advice_says_what_would_help_and_nothing_else():
    good = but(byte=0.0, wait=0.0, together=1.0)
    assert said(good, (2, 4)) == []
    (line,) = said(dataclasses.replace(good, hosts=1), (2, 4))
    assert line.startswith("all ranks were on one host")
    line, more, *_ = said(good, (2, 4, 64))
    assert line == "4 ranks are worth their while; beyond, few steps per epoch keeps it back"
    assert more.startswith("from 64 ranks on an epoch has fewer than 20 steps")
    (line,) = said(good, (2, 4), dataclasses.replace(RECIPE, scaling="none"))
    assert "has up to 64 images: --scale-learning-rate linear" in line
    assert any("--compression fp16 would halve" in line for line in said(TWO, (2, 4)))
    fp16 = dataclasses.replace(RECIPE, compression="fp16")
    assert not any("--compression" in line for line in said(TWO, (2, 4), fp16))
    synchronised = dataclasses.replace(RECIPE, sync_batch_norm=True)
    (line,) = said(good, (2, 4), synchronised)
    assert line.startswith("what --sync-batch-norm sends")
    far = dataclasses.replace(TWO, ready=(0.5, 0.6), byte=0.0001, latency=0.1)
    assert any("--fusion-mb=64 would" in line for line in said(far, (16,)))
    given = dataclasses.replace(RECIPE, fusion_mb=8)
    assert not any("--fusion-mb" in line for line in said(far, (16,), given))
    slow_input = dataclasses.replace(good, input=1.5)
    assert any("--cache-mb" in line for line in said(slow_input, (2, 4)))
    small = dataclasses.replace(good, half=(0.7, 0.7))
    (line,) = said(small, (2, 4))
    assert line.startswith("an image takes 1.40 times as long in batches of 8")
    assert any("make twice the steps" in line for line in said(good, (8,)))


def test_the_table_has_a_line_for_each_number():
    lines = table([forecast(TWO, n, SIZES) for n in (2, 16)]).splitlines()
    assert lines[1].split() == ["2", "32", "22.1", "69%", "100", "2:28", "24:35", "network"]
    assert [line.split()[0] for line in lines] == ["ranks", "2", "16"]


def parsed(*flags):
    return parse_command_line(TrainConfig, "", ["--data", "d", "--run", "r", *flags])


def test_numbers_of_ranks_stand_in_one_text_or_in_several():
    for flags in (["--at", "16,64,256"], ["--at", "16", "64,256"]):
        assert parsed("--dry-run", *flags).at == (16, 64, 256)


@pytest.mark.parametrize(
    "flags, message",
    [(["--at", "16"], "--at has no effect with --no-dry-run: leave it out, or give --dry-run$"),
     (["--dry-run", "--at", "16,many"], "--at has 'many'"),
     (["--dry-run", "--at", "16,-2"], "--at has '-2'"),
     (["--dry-run", "--at", "0"], "--at has 0, but must be at least 1")],
)  # fmt: skip
def test_what_is_no_number_of_ranks_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parsed(*flags)


def test_one_rank_has_no_exchange_to_measure():
    check_measurable(2)
    with pytest.raises(UserError, match="give Spark two task slots"):
        check_measurable(1)
