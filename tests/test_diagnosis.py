"""What tasks found is judged: every fault is one line that names host, value and remedy."""

import pytest

from chexspark.cluster import conf_diagnosis, diagnosis, host_diagnosis
from chexspark.cluster.doctor import Examination, container_overhead
from chexspark.errors import UserError

VERSIONS = {"python": "3.11", "tensorflow": "2.18.1", "horovod": "0.28.1", "pyarrow": "14.0.2",
            "chexspark": "0.1.0+aa"}  # fmt: skip
ROOM = 64 << 30


def facts(rank, host="a", **changes):
    """What a healthy task finds, one of two on two hosts unless told otherwise."""
    return {
        "rank": rank, "host": host, "executor": str(rank), "gpus": [],
        "visible_gpus": changes.get("gpus", []), "horovod_nvcc": None, "nvidia_driver": None, "bfloat16": True,
        "memory_bytes": ROOM, "temp_disk": {"/tmp": ROOM}, "run_disk": {}, "run_kept": 0, "versions": VERSIONS,
        "horovod_library": True, "driver": None,
        "address": f"10.0.0.{rank}", "reached": {1 - rank: []},
        "store": None, "run": None, "clock": 1000.0, "driver_clock": (999.5, 1001.5), "open_files": 1024,
        "glibc": "2.36", "glibc_needed": None,
    } | changes  # fmt: skip


def without(package):
    return VERSIONS | {package: None}


WELL = facts(0)
CASES = {
    "a task of which nothing was heard": (
        [facts(0)], r"the task of rank 1 started, but did not answer: see in Spark's log"),
    "a missing package": (
        [WELL, facts(1, "b", versions=without("tensorflow"))], r"tensorflow is missing on b: give spark-submit --archives "),
    "a missing chexspark": (
        [WELL, facts(1, "b", versions=without("chexspark"), store="ModuleNotFoundError: ")],
        r"chexspark is missing on b: give spark-submit --archives "),
    "another version": (
        [WELL, facts(1, "b", versions=VERSIONS | {"tensorflow": "2.17.0"})],
        r"tensorflow on b is 2.17.0, the driver's is 2.18.1: give spark-submit --archives "),
    "another code of the same version": (
        [WELL, facts(1, "b", versions=VERSIONS | {"chexspark": "0.1.0+bb"})],
        r"chexspark on b is 0.1.0\+bb, the driver's is 0.1.0\+aa: give spark-submit --archives "),
    "another Python": (
        [WELL, facts(1, "b", versions=VERSIONS | {"python": "3.10"})],
        r"python on b is 3.10, the driver's is 3.11: give spark-submit --archives "),
    "a Horovod without TensorFlow": (
        [WELL, facts(1, "b", horovod_library=False)],
        r"horovod on b was built without TensorFlow: install it after TensorFlow"),
    "a GPU given twice": (
        [facts(0, gpus=["3"]), facts(1, gpus=["3"])],
        r"Spark gives GPU 3 of a to 2 ranks: set spark.task.resource.gpu.amount to 1"),
    "fewer GPUs than ranks": (
        [facts(0, visible_gpus=["0"]), facts(1, visible_gpus=["0"])],
        r"a has 2 ranks, but 1 GPU, and one is for one rank: lower --num-proc"),
    "GPUs for some": (
        [facts(0, gpus=["0"]), facts(1, "b")],
        r"ranks on b have no GPU, those on a have: keep to executors that have GPUs"),
    "a GPU that is not there": (
        [facts(0, gpus=["7"], visible_gpus=[]), facts(1, gpus=["8"], visible_gpus=[])],
        r"Spark gives GPU \d of a to a rank, but the system shows no GPU there: check Spark's GPU"),
    "a driver that is too old": (
        [facts(0, visible_gpus=["0"], horovod_nvcc="13.0", nvidia_driver="570.86.15"),
         facts(1, "b", visible_gpus=["0"], horovod_nvcc="13.0", nvidia_driver="580.65.06")],
        r"driver on a is 570.86.15, and Horovod was built by nvcc 13.0, whose code needs 580 or later"),
    "too little memory": (
        [facts(0, memory_bytes=1 << 30), facts(1, memory_bytes=1 << 30)],
        r"a has 1.0 GiB of free memory, but its 2 ranks need 1.4 GiB: lower --batch-size"),
    "too little disk for the run": (
        [WELL, facts(1, "b", run_disk={"/run": 1 << 20})],
        r"/run on b has 1 MiB free, but 4 checkpoints need 340 MiB: free some"),
    "too little disk for temporary files": (
        [WELL, facts(1, "b", temp_disk={"/tmp": 0})], r"/tmp on b has 0 MiB free, but 4 "),
    "no way to the driver": (
        [WELL, facts(1, "b", driver="h:1 (refused)", reached={})],
        r"rank 1 on b does not reach the driver at h:1 \(refused\): open the way .* spark.driver.host"),
    "no way to another rank": (
        [WELL, facts(1, "b", reached={0: [20003, 45555]})],
        r"rank 1 on b does not reach rank 0 on a at 10\.0\.0\.0, by which that one speaks with the driver, at port 20003 and 45555: let"),
    "a network that swallows all": (
        [WELL, facts(1, "b", reached="no answer within 8 s")],
        r"rank 1 on b could not try to reach the others \(no answer within 8 s\)"),
    "a store out of reach": (
        [WELL, facts(1, "b", store="FileNotFoundError: dataset.json")],
        r"--data /store cannot be read on b \(FileNotFoundError: .*\): put it where every host"),
    "a run out of reach": (
        [WELL, facts(1, "b", run="it is not the folder that the driver sees")],
        r"--run /run cannot be written on b \(it is not the folder .*\): put it where every host"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_one_line(name):
    ranks, message = CASES[name]
    with pytest.raises(UserError, match=message) as caught:
        found = diagnosis.diagnose(ranks, 2, VERSIONS, "/store", "/run")
        Examination(2, tuple(ranks), tuple(found), ()).raise_for_faults()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "ranks",
    [
        [WELL, facts(1, "b")],
        [facts(0, gpus=["0"]), facts(1, gpus=["1"])],
        [facts(0, gpus=["0"]), facts(1, "b", gpus=["0"])],
        [facts(0, visible_gpus=["0", "1"]), facts(1, visible_gpus=["0", "1"])],
    ],
)
def test_what_is_well_is_no_fault(ranks):
    assert diagnosis.diagnose(ranks, 2, VERSIONS, "/store", "/run") == []


def test_gpus_that_are_not_used_well_are_told_and_no_fault():
    on_gpu = {"visible_gpus": ["0"], "nvidia_driver": "535.54.03"}
    well = [facts(0, **on_gpu, horovod_nvcc="12.4"), facts(1, "b", **on_gpu, horovod_nvcc="12.4")]
    assert diagnosis.driver_faults(well) == diagnosis.gpu_warnings(well) == []
    assert diagnosis.gpu_warnings([WELL, facts(1, "b")]) == []
    unseen = [facts(0, horovod_nvcc="13.0"), facts(1, "b", horovod_nvcc="13.0")]
    (warning,) = diagnosis.gpu_warnings(unseen)
    assert "built for GPUs, but none is seen on a, b: ranks train on the CPU" in warning
    (warning,) = diagnosis.gpu_warnings([facts(0, **on_gpu), facts(1, "b", **on_gpu)])
    assert "Horovod on a, b was built without NCCL" in warning
    assert diagnosis.gpu_warnings([facts(0, **on_gpu)]) == [], "one rank has nobody to talk to"


def test_checkpoints_that_are_there_make_room_for_others():
    rank = facts(0, run_disk={"/run": 200 << 20})
    (fault,) = diagnosis.disk_faults([rank])
    assert "4 checkpoints need 340 MiB" in fault
    assert diagnosis.disk_faults([rank | {"run_kept": 2}]) == []
    large = {"checkpoint_bytes": 100 << 20}
    (fault,) = diagnosis.disk_faults([rank | {"run_kept": 1}], large)
    assert "3 checkpoints need 300 MiB" in fault


def test_a_driver_need_not_have_tensorflow():
    driver = without("tensorflow")
    assert diagnosis.package_faults([WELL, facts(1, "b")], driver) == []
    other = facts(1, "b", versions=VERSIONS | {"tensorflow": "2.17.0"})
    (fault,) = diagnosis.package_faults([WELL, other], driver)
    assert "tensorflow on b is 2.17.0, another host's is 2.18.1" in fault


def test_the_network_counts_where_it_is_computed():
    model = {"memory_bytes": 8 << 30, "parameters": 7_000_000}
    ranks = [facts(rank, memory_bytes=12 << 30) for rank in (0, 1)]
    (fault,) = diagnosis.memory_faults(ranks, model)
    assert "a has 12.0 GiB of free memory, but its 2 ranks need 17.4 GiB" in fault
    on_gpus = [rank | {"gpus": [str(rank["rank"])]} for rank in ranks]
    assert diagnosis.memory_faults(on_gpus, model) == []


def test_rows_and_row_groups_against_ranks():
    assert diagnosis.data_faults(2, 2) == []
    (fault,) = diagnosis.data_faults(2, 3)
    assert fault == "2 training images are fewer than 3 ranks: lower --num-proc"
    assert diagnosis.data_warnings(100, 4, 4, 25) == []
    assert "3 row groups to train on are fewer than 4" in diagnosis.data_warnings(100, 3, 4, 5)[0]
    assert "4 ranks x --batch-size=26" in diagnosis.data_warnings(100, 4, 4, 26)[0]


def test_a_container_that_would_be_killed(spark, monkeypatch):
    assert container_overhead(spark) is None
    monkeypatch.setattr(spark.sparkContext, "master", "yarn")
    overhead = container_overhead(spark)
    assert overhead == 384 << 20, "Spark's least, beside a heap of 1 GiB"
    together = [facts(0, executor="1"), facts(1, executor="1")]
    (warning,) = diagnosis.container_warnings(together, overhead)
    assert "its 2 ranks need 1.4 GiB" in warning and "memoryOverhead=1400m" in warning
    assert diagnosis.container_warnings(together, 2 << 30) == []


@pytest.mark.parametrize(
    "master, heap, conf, overhead, expected",
    [
        ("yarn", 8192, {}, None, 819),
        ("yarn", 1024, {}, None, 384),
        ("yarn", 8192, {"spark.executor.memoryOverheadFactor": "0.5"}, None, 4096),
        ("yarn", 8192, {"spark.executor.memoryOverheadFactor": "0.5"}, 6144, 6144),
        ("yarn", 8192, {"spark.kubernetes.memoryOverheadFactor": "0.4"}, None, 819),
        ("k8s://a:6443", 8192, {}, None, 819),
        ("k8s://a:6443", 8192, {"spark.kubernetes.memoryOverheadFactor": "0.4"}, None, 3276),
    ],
)
def test_a_container_s_memory_is_counted_as_its_manager_counts(
    master, heap, conf, overhead, expected
):
    found = conf_diagnosis.overhead_mebibytes(master, heap, conf, overhead, 384)
    assert found == expected


def test_python_s_own_memory_is_part_of_a_container(spark, monkeypatch):
    scala = spark.sparkContext._jsc.sc().conf()
    for name, value in (("pyspark.memory", "1g"), ("minMemoryOverhead", "512m")):
        scala.set(f"spark.executor.{name}", value)
    try:
        for master, expected in (("yarn", 1536), ("k8s://https://a:6443", 512)):
            monkeypatch.setattr(spark.sparkContext, "master", master)
            assert container_overhead(spark) == expected << 20
    finally:
        for name in ("pyspark.memory", "minMemoryOverhead"):
            scala.remove(f"spark.executor.{name}")


def test_settings_that_do_not_suit_ranks():
    assert conf_diagnosis.settings_warnings({"spark.speculation": "false"}, None) == []
    assert conf_diagnosis.settings_warnings({}, 60.0) == []
    given = {"spark.speculation": "true", "spark.executor.pyspark.memory": "2g"}
    first, second, third = conf_diagnosis.settings_warnings(given, 10.0)
    assert first.endswith("--conf spark.speculation=false")
    assert second.startswith("executors are given back after 10 s without a task")
    assert third.startswith("spark.executor.pyspark.memory=2g limits the address space of ranks")


@pytest.mark.parametrize(
    "clock, said",
    [
        (1000.0, None),
        (939.6, None),  # one minute before the earliest moment at which it can have been read
        (939.4, "the clock of b is 60 s or more behind the driver's"),
        (1061.4, None),
        (1121.5, "the clock of b is 120 s or more ahead of the driver's"),
    ],
)
def test_a_clock_counts_as_wrong_only_where_that_is_certain(clock, said):
    found = host_diagnosis.clock_warnings([WELL, facts(1, "b", clock=clock), facts(2, "b")])
    assert [line.partition(",")[0] for line in found] == ([said] if said else [])
    assert all("set both by NTP" in line for line in found)


def test_a_task_that_met_nobody_has_read_no_clock():
    lonely = {k: v for k, v in facts(1, "b").items() if k not in ("clock", "driver_clock")}
    assert host_diagnosis.clock_warnings([WELL, lonely]) == []


def test_a_rank_has_a_connection_to_every_other_one():
    two = [facts(0, open_files=1024), facts(1, "b", open_files=None)]
    assert host_diagnosis.open_files_warnings(two, 192) == []
    (warning,) = host_diagnosis.open_files_warnings(two, 200)
    assert warning.startswith(
        "a process on a may have 1024 files open, but a rank of 200 needs 1056"
    )
    assert "ulimit -n 1056" in warning


def test_a_packed_environment_needs_a_glibc_that_is_not_older():
    well = [
        facts(0, glibc="2.28", glibc_needed="2.28"),
        facts(1, "b", glibc="2.36", glibc_needed="2.9"),
    ]
    assert host_diagnosis.glibc_faults([*well, facts(2, "c"), facts(3, "d", glibc=None)]) == []
    (fault,) = host_diagnosis.glibc_faults([WELL, facts(1, "b", glibc="2.9", glibc_needed="2.28")])
    assert fault == (
        "glibc on b is 2.9, the packed environment needs 2.28: run ./build.sh pack on the oldest Linux "
        "distribution of the cluster"
    )


def test_a_spark_that_is_not_the_environment_s():
    assert diagnosis.spark_faults("4.3.0", "4.3.0") == []
    (fault,) = diagnosis.spark_faults("4.3.0", "3.5.9")
    assert fault.startswith(
        "Spark here is 3.5.9, but pyspark of this Python is 4.3.0: run ./build.sh"
    )
    newer = facts(0, versions=VERSIONS | {"pyspark": "4.3.0"})
    older = facts(1, "b", versions=VERSIONS | {"pyspark": "3.5.9"})
    (fault,) = diagnosis.package_faults([newer, older], newer["versions"])
    assert "setup --spark 3.5, or 4" in fault
