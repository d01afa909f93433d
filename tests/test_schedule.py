import pickle

import pytest

from chexspark.errors import UserError
from chexspark.training.schedule import Plateau, Schedule, rate_chart


def rates(schedule, *steps):
    return [schedule.at(step) for step in steps]


def test_divided_by_ten_each_time_validation_loss_stalls():
    plateau = Plateau(1e-3, 0.1, patience=1)
    rates = [plateau.after_epoch(loss) for loss in (0.5, 0.4, 0.45, 0.39, 0.39)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_patience_counts_epochs_in_a_row():
    plateau = Plateau(1.0, 0.5, patience=2)
    assert [plateau.after_epoch(loss) for loss in (3, 4, 2, 3, 3)] == [1, 1, 1, 1, 0.5]


def test_goyal_s_imagenet_run_warms_up_from_one_worker_s_rate_to_that_of_32():
    # Batch 8,192 in 32 workers of 256: η = 0.1, kη = 3.2, reached after 5 epochs of 156 steps.
    run = Schedule(base=0.1, scaling="linear", world_size=32, warmup_steps=780, total_steps=14040)
    assert rates(run, 0, 390, 780, 14039) == pytest.approx([0.1, 1.65, 3.2, 3.2])
    assert run.at(1) - run.at(0) == pytest.approx(3.1 / 780), "the same amount each step"


def test_scaling_by_the_root_of_the_ranks():
    run = Schedule(base=0.1, scaling="sqrt", world_size=16, warmup_steps=3, total_steps=9)
    assert rates(run, 0, 1, 2, 3) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_one_rank_has_nothing_to_warm_up_to_and_no_scaling_warms_up_from_a_step_s_share():
    alone = Schedule(base=0.1, scaling="linear", world_size=1, warmup_steps=4, total_steps=9)
    assert rates(alone, 0, 2, 8) == pytest.approx([0.1, 0.1, 0.1])
    unscaled = Schedule(base=0.4, world_size=8, warmup_steps=4, total_steps=9)
    assert rates(unscaled, 0, 1, 2, 3, 4, 8) == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4, 0.4])


def test_cosine_falls_from_the_full_rate_after_the_warm_up_to_nothing_at_the_end():
    # He et al. 2019, section 3.1: η_t = ½ (1 + cos(t π / T)) η, the warm-up not counted.
    # cos of 0, 60, 90, 120 degrees: 1, ½, 0, −½.
    run = Schedule(kind="cosine", base=0.1, scaling="linear", world_size=4, warmup_steps=6,
                   total_steps=18)  # fmt: skip
    assert rates(run, 0, 3, 6, 10, 12, 14) == pytest.approx([0.1, 0.25, 0.4, 0.3, 0.2, 0.1])
    assert 0 < run.at(17) < 0.01 and run.at(99) == run.at(17)


def test_each_cycle_s_inflections_are_half_of_the_former_s():
    run = Schedule(kind="cyclic", base=0.8, cycle_steps=8, trough=0.25, total_steps=25)
    # Up from 0.8 / 4 to 0.8, down to half of where it began; again from there; and again.
    assert rates(run, 0, 2, 4, 6, 8) == pytest.approx([0.2, 0.5, 0.8, 0.45, 0.1])
    assert rates(run, 8, 12, 16, 20, 24) == pytest.approx([0.1, 0.4, 0.05, 0.2, 0.025])


def test_a_warm_up_ends_where_the_first_cycle_begins():
    run = Schedule(kind="cyclic", base=0.1, scaling="linear", world_size=8, warmup_steps=4,
                   cycle_steps=4, trough=0.25, total_steps=12)  # fmt: skip
    assert rates(run, 0, 4, 6, 8, 10) == pytest.approx([0.025, 0.2, 0.8, 0.1, 0.4])


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(UserError, match="warm-up takes 10 of 10 steps"):
        Schedule(base=1, total_steps=10, warmup_steps=10)
    with pytest.raises(UserError, match="needs the length of a cycle"):
        Schedule(kind="cyclic", base=1, total_steps=10)
    with pytest.raises(UserError, match="'cosin' is unknown"):
        Schedule(kind="cosin", base=1, total_steps=10)
    with pytest.raises(UserError, match="'root' is unknown"):
        Schedule(scaling="root", base=1, total_steps=10)


def test_a_schedule_travels_to_the_ranks():
    run = Schedule(kind="cosine", base=0.1, total_steps=10)
    assert pickle.loads(pickle.dumps(run)) == run


def test_drawn_as_a_chart():
    run = Schedule(kind="cyclic", base=0.8, cycle_steps=4, trough=0, total_steps=8)
    # Rates 0, .4, .8, .4, 0, .2, .4, .2; a mark stands for more than half of its row of .4.
    assert rate_chart(run, width=8, height=2).splitlines() == [
        " 8.00e-01 ┤  █",
        " 4.00e-01 ┤ ███  █",
        "     step 0       8",
    ]


def test_a_peak_of_one_step_is_seen_in_a_narrow_chart():
    run = Schedule(kind="cyclic", base=1.0, cycle_steps=1000, trough=0, total_steps=1000)
    top = rate_chart(run, width=7, height=4).splitlines()[0]
    assert top.startswith(" 1.00e+00 ┤") and "█" in top
