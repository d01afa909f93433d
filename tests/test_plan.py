import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexspark.data.plan import (
    FILLER,
    RankFacts,
    canonical_shards,
    fixed_plan,
    shown_rows,
    training_plan,
    with_filler,
)

ROW_GROUPS = [10, 3, 10, 10, 7, 1, 10, 10, 10, 9]  # 80 rows, uneven

row_groups = st.lists(st.integers(1, 40), min_size=1, max_size=30)
world_sizes = st.integers(1, 16)
batches = st.integers(1, 200)
numbers = st.integers(0, 2**31)
quick = settings(max_examples=150)


def plans(world_size, batch, seed=0, epoch=0, row_groups=ROW_GROUPS):
    """All ranks' plans, (world_size, steps, rows of a rank)."""
    facts = [RankFacts(rank, world_size) for rank in range(world_size)]
    return np.stack([training_plan(row_groups, batch, f, seed, epoch) for f in facts])


def global_batches(ranks):
    return [sorted(step[step != FILLER].tolist()) for step in ranks.transpose(1, 0, 2)]


@quick
@given(row_groups, world_sizes, batches, numbers, st.integers(0, 1000))
def test_every_row_once_in_equal_steps_of_full_batches(groups, world_size, batch, seed, epoch):
    ranks = plans(world_size, batch, seed, epoch, groups)
    steps = global_batches(ranks)
    assert sorted(row for step in steps for row in step) == list(range(sum(groups)))
    assert all(len(step) == batch for step in steps[:-1])
    shares = (ranks != FILLER).sum(axis=2)
    assert (shares.max(axis=0) - shares.min(axis=0)).max() <= 1


@quick
@given(row_groups, world_sizes, batches, numbers)
def test_a_global_batch_has_the_same_rows_at_every_world_size(groups, world_size, batch, seed):
    alone = global_batches(plans(1, batch, seed, row_groups=groups))
    assert global_batches(plans(world_size, batch, seed, row_groups=groups)) == alone


@quick
@given(row_groups, world_sizes, batches, numbers)
def test_the_same_seed_gives_the_same_order(groups, world_size, batch, seed):
    again = [plans(world_size, batch, seed, 3, groups) for _ in range(2)]
    np.testing.assert_array_equal(*again)


@quick
@given(st.lists(st.integers(10, 40), min_size=6, max_size=30), world_sizes, numbers)
def test_another_epoch_or_seed_gives_another_order(groups, world_size, seed):
    first = plans(world_size, 16, seed, 0, groups)
    for other in (
        plans(world_size, 16, seed, 1, groups),
        plans(world_size, 16, seed + 1, 0, groups),
    ):
        assert (first != other)[first != FILLER].mean() > 0.5


@quick
@given(row_groups, world_sizes, batches)
def test_validation_is_in_fixed_order_and_padded(groups, world_size, batch):
    ranks = [fixed_plan(groups, batch, RankFacts(rank, world_size)) for rank in range(world_size)]
    assert len({plan.shape for plan in ranks}) == 1
    rows = np.concatenate([plan[plan != FILLER] for plan in ranks])
    np.testing.assert_array_equal(rows, np.arange(sum(groups)))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_ranks_that_divide_the_shards_share_no_row_group_but_at_the_edges(world_size):
    groups = np.repeat(np.arange(320), 16)
    assert canonical_shards(128) == 16
    read = [set(groups[plan.ravel()]) for plan in plans(world_size, 128, row_groups=[16] * 320)]
    assert sum(map(len, read)) <= 320 + world_size - 1


def test_a_rank_needs_few_row_groups_at_a_time():
    groups = np.repeat(np.arange(400), 16)
    plan = training_plan([16] * 400, 64, RankFacts(0, 1), 0, 0)
    steps = {}
    for step, rows in enumerate(groups[plan]):
        for group in rows:
            first, _ = steps.get(group, (step, step))
            steps[group] = first, step
    held = [sum(first <= s <= last for first, last in steps.values()) for s in range(len(plan))]
    assert max(held) <= canonical_shards(64) * 6 < 400


def test_a_batch_mixes_row_groups_from_everywhere():
    groups = np.repeat(np.arange(100), 16)
    plan = training_plan([16] * 100, 16, RankFacts(0, 1), 0, 0)
    assert np.mean([len(set(groups[step])) for step in plan]) > 14
    first_row_of_all = np.argsort(plan.ravel())[::16]
    assert abs(np.corrcoef(first_row_of_all, np.arange(100))[0, 1]) < 0.3


def test_filler_shows_the_latest_rows_of_before_each_once_as_far_as_they_go():
    plan = np.array([[7, 3, -1], [5, 1, -1], [-1, 4, -1], [-1, -1, -1]])
    shown = shown_rows(with_filler(plan))
    assert shown.tolist() == [[7, 3, 5], [5, 1, 3], [1, 4, 5], [4, 1, 5]]
    assert (with_filler(plan) < FILLER).tolist() == (plan == FILLER).tolist()
    assert shown_rows(with_filler(np.array([[-1, -1], [2, -1]]))).tolist() == [[2, 2], [2, 2]]
    assert with_filler(np.array([[-1, -1]])).tolist() == [[-1, -1]]
    many = with_filler(np.array([[1, 2], [3, -1], [-1, -1]]))
    assert shown_rows(many).tolist() == [[1, 2], [3, 2], [3, 2]]


@quick
@given(row_groups, world_sizes, batches, numbers)
def test_filler_changes_no_row_and_a_step_of_one_row_has_others_beside_it(
    groups, world_size, batch, seed
):
    for plan in plans(world_size, batch, seed, 0, groups):
        filled, real = with_filler(plan), plan != FILLER
        assert (filled[real] == plan[real]).all()
        own = plan[real]
        if len(own):
            assert set(shown_rows(filled).ravel()) == set(own)
            for step in shown_rows(filled):
                assert len(set(step)) == min(len(own), len(step))
