"""How Spark's task slots are waited for, and what is said where they are too few."""

import dataclasses
from types import SimpleNamespace

import pytest

from chexspark.cluster import slots
from chexspark.cluster.doctor import examine
from chexspark.cluster.slots import UNBOUNDED, Supply, busy, most_slots, shortage
from chexspark.errors import RunFailedError, StoppedError, UserError

STANDALONE = Supply(2, 2, UNBOUNDED, "spark://m:7077")


@pytest.fixture
def growing(monkeypatch):
    """A function that lets Spark have the given slots, one after the other; returns the sleeps.

    Time is what has been slept.
    """

    def give(*numbers, **others):
        left, now = list(numbers), [0.0]

        def sleep(seconds):
            now[0] += seconds
            if len(left) > 1:
                left.pop(0)

        supply = dataclasses.replace(STANDALONE, **others)
        monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
        monkeypatch.setattr(
            slots, "supply", lambda spark: dataclasses.replace(supply, slots=left[0])
        )
        return now

    return give


def test_slots_asked_for_are_waited_for(growing):
    now = growing(*[0] * 700, 1, 2)
    assert slots.check_ranks(None, 2) == 2
    assert now[0] > 100, "no matter how long it takes the first to come"


def test_without_a_number_it_waits_until_no_more_come(growing):
    now = growing(*[0] * 100, *[1] * 20, 2)
    assert slots.check_ranks(None, None) == 2
    assert now[0] == pytest.approx(20 + 4 + slots.SETTLED_SECONDS, abs=1)


def test_the_time_to_wait_is_the_user_s(growing):
    now = growing(1)
    with pytest.raises(
        UserError, match="--num-proc is 2, but Spark has 1 task slot after 7 seconds"
    ):
        slots.check_ranks(None, 2, wait_seconds=7)
    assert now[0] == pytest.approx(7, abs=0.5)


def test_what_settings_do_not_allow_is_refused_at_once(growing):
    now = growing(0, most=2)
    with pytest.raises(UserError, match="--num-proc is 3, but Spark has 2 task slots at most"):
        slots.check_ranks(None, 3)
    assert now[0] == 0


def test_slots_that_were_lost_are_waited_for_as_long(growing):
    now = growing(*[1] * 400, 2)
    assert slots.slots_again(None, 2, 2, 2) == 2
    assert now[0] > 60, "a network that is cut for a minute ends no run"


def test_with_fewer_ranks_allowed_a_run_resumes_sooner(growing):
    now = growing(1)
    assert slots.slots_again(None, 2, 1, 2) == 1
    assert now[0] == pytest.approx(slots.RETURN_SECONDS, abs=0.5)


def test_slots_that_do_not_come_back_end_a_run(growing):
    growing(1)
    with pytest.raises(
        RunFailedError, match=r"1 task slot is left after 9 seconds, but .* 2 ranks or more"
    ):
        slots.slots_again(None, 2, 2, 2, wait_seconds=9)


def test_waiting_ends_with_spark_s_application():
    ended = SimpleNamespace(sparkContext=SimpleNamespace(_jsc=None, master="spark://m:7077"))
    for wait in (slots.check_ranks, lambda spark, n: slots.slots_again(spark, n, n, n)):
        with pytest.raises(StoppedError, match="was ended on the cluster"):
            wait(ended, 2)


@pytest.mark.parametrize(
    "master, conf, most",
    [
        ("local[4]", {}, 0),
        ("local-cluster[2,3,1024]", {"spark.task.cpus": "2"}, 2),
        ("local-cluster[2,3,1024]", {"spark.cores.max": "4"}, 4),
        ("yarn", {"spark.executor.instances": "3", "spark.executor.cores": "4"}, 12),
        ("k8s://h", {}, 2),
        ("yarn", {"spark.dynamicAllocation.enabled": "true"}, UNBOUNDED),
        ("spark://m:7077", {}, UNBOUNDED),
        ("spark://m:7077", {"spark.cores.max": "8", "spark.task.cpus": "4"}, 2),
    ],
)
def test_the_most_slots_that_settings_allow(master, conf, most):
    assert most_slots(master, conf) == most


SHORT = {
    "a local session": (
        Supply(2, 0, 2, "local[2]"), 3, "Spark has 2 task slots: lower --num-proc, or give Spark more "
        "(--master local[3])"),
    "a local cluster": (
        Supply(0, 0, 2, "local-cluster[2,1,2048]"), 4,
        "Spark has 2 task slots at most: lower --num-proc, or give Spark more "
        "(--master 'local-cluster[4,1,2048]')"),
    "no executor on YARN": (Supply(0, 0, 8, "yarn"), 1, "in 300 seconds: see the application in YARN"),
    "no executor of a master": (
        dataclasses.replace(STANDALONE, slots=0, executors=0), 1, "see whether a worker"),
    "executors that are too small": (
        dataclasses.replace(STANDALONE, slots=0, task_cpus=4), 1,
        "none of Spark's 2 executors has the 4 cores that a task takes"),
    "fewer than asked for": (STANDALONE, 3, "2 task slots after 300 seconds: lower --num-proc, or give"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_the_remedy_fits_what_was_seen(name):
    supply, num_proc, text = SHORT[name]
    line = shortage(supply, num_proc, 300.0)
    assert text in line and len(line.splitlines()) == 1
    assert num_proc > 1 or "lower --num-proc" not in line


def test_tasks_that_do_not_start_are_told_with_what_was_seen():
    assert busy(STANDALONE, 0, 1, 300.0) == (
        "the rank's task has not started in 300 seconds: other work holds the slots of these "
        "executors; wait for it to end, or give a longer --wait-seconds"
    )
    assert "lower --num-proc" in busy(STANDALONE, 1, 2, 300.0)
    none = dataclasses.replace(STANDALONE, slots=0, executors=0)
    assert "no executor has registered in 300 seconds: see whether" in busy(none, 0, 1, 300.0)
    assert "and Spark has 1 task slot left" in busy(
        dataclasses.replace(STANDALONE, slots=1), 1, 2, 9.0
    )


def test_a_local_session_has_what_it_has(spark):
    found = slots.supply(spark)
    assert (found.slots, found.most, found.executors) == (2, 2, 0)
    with pytest.raises(UserError, match=r"Spark has 2 task slots: lower .* local\[3\]\)"):
        slots.check_ranks(spark, 3)


def test_an_examination_ends_when_its_job_is_cancelled(spark, store, manifest, monkeypatch):
    from chexspark.cluster import probe_job

    def cancel(jobs):
        jobs.cancel()
        return 0, 0

    monkeypatch.setattr(probe_job.JobGroup, "task_counts", cancel)
    found = examine(spark, 3, store, None, manifest, 16, wait_seconds=600.0)
    assert found.ranks == () and len(found.faults) == 1
