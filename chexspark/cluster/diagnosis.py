"""The faults that keep ranks from starting, and their remedies. Pure functions; runs on the driver.

In: what tasks found (`probe.PlaceFacts`), one per rank; what the network costs (`models.cost.NetworkCost`).
Out: lines of text.
"""

from collections import Counter

from chexspark.cluster.place import PlaceFacts
from chexspark.models.cost import NetworkCost

PROCESS_BYTES = 700 << 20  # resident memory of a rank with TensorFlow and Horovod, without a model
CHECKPOINT_BYTES = 85 << 20  # DenseNet-121's weights and Adam's two values for each, float32
CHECKPOINTS = 4  # the last two, the best, and one in the writing
SAME_ENVIRONMENT = (
    "give spark-submit --archives what ./build.sh pack makes of this checkout, or run ./build.sh setup of it on "
    "every host"
)
OF_THE_CLUSTER = "run ./build.sh setup --spark 3.5, or 4, on every host, as the cluster's Spark is"
# NVIDIA's driver, at least, for code of a CUDA release: CUDA's release notes, table 2 ("CUDA Toolkit and
# Minimum Required Driver Version for CUDA Minor Version Compatibility").
LEAST_DRIVER = {"12": 525, "13": 580}
GPU_SETTINGS = "--conf spark.executor.resource.gpu.amount=N --conf spark.task.resource.gpu.amount=1"


def diagnose(
    ranks: list[PlaceFacts],
    num_proc: int,
    driver_versions: dict[str, str | None],
    store: str,
    run: str | None,
    cost: NetworkCost | None = None,
) -> list[str]:
    """All faults of places, one line each. `cost`: of the network, where that is known."""
    return [
        *silent_ranks(ranks, num_proc),
        *package_faults(ranks, driver_versions),
        *gpu_faults(ranks),
        *driver_faults(ranks),
        *memory_faults(ranks, cost),
        *disk_faults(ranks, cost),
        *network_faults(ranks),
        *storage_faults(ranks, store, run),
    ]


def data_faults(images: int, num_proc: int) -> list[str]:
    """More ranks than training images."""
    if num_proc <= images:
        return []
    return [f"{images} training images are fewer than {num_proc} ranks: lower --num-proc"]


def data_warnings(images: int, row_groups: int, num_proc: int, batch_size: int) -> list[str]:
    """What runs, but not as well as it could. `batch_size`: images per rank and step."""
    found = []
    if row_groups < num_proc <= images:
        found.append(
            f"{row_groups} row groups to train on are fewer than {num_proc} ranks, so that several "
            "read the same ones: ingest with a lower --rows-per-group"
        )
    if batch_size * num_proc > images:
        found.append(
            f"a step of {num_proc} ranks x --batch-size={batch_size} is larger than the {images} "
            "training images: an epoch is one step; lower --batch-size or --num-proc"
        )
    return found


def container_warnings(
    ranks: list[PlaceFacts], overhead_bytes: int | None, cost: NetworkCost | None = None
) -> list[str]:
    """Executors whose containers leave too little beside the JVM, where YARN or Kubernetes limits it."""
    if overhead_bytes is None or not ranks:
        return []
    most = max(Counter((r["host"], r["executor"]) for r in ranks).values())
    needed = most * rank_bytes(ranks[0], cost)
    if needed <= overhead_bytes:
        return []
    return [
        f"an executor's container has {size(overhead_bytes)} beside the JVM, but its {most} ranks need "
        f"{size(needed)}: --conf spark.executor.memoryOverhead={-(-needed >> 20)}m"
    ]


def silent_ranks(ranks: list[PlaceFacts], num_proc: int) -> list[str]:
    """Ranks whose tasks have started, but of which nothing was heard."""
    missing = sorted(set(range(num_proc)) - {r["rank"] for r in ranks})
    if not missing:
        return []
    names = ", ".join(map(str, missing))
    return [
        f"the task{'s' * (len(missing) != 1)} of rank{'s' * (len(missing) != 1)} {names} started, but "
        "did not answer: see in Spark's log what became of the executor"
    ]


def package_faults(ranks: list[PlaceFacts], driver_versions: dict[str, str | None]) -> list[str]:
    """Packages that a host lacks, or that differ from the driver's."""
    found = []
    for package in driver_versions:
        # Driver code loads no TensorFlow, and a driver need not have it: then the first rank rules.
        expected, whose = driver_versions[package], "the driver's"
        if expected is None:
            expected = next((v for r in ranks if (v := r["versions"][package])), None)
            whose = "another host's"
        for host, version in dict.fromkeys((r["host"], r["versions"][package]) for r in ranks):
            if version is None:
                found.append(f"{package} is missing on {host}: {SAME_ENVIRONMENT}")
            elif version != expected:
                remedy = OF_THE_CLUSTER if package == "pyspark" else SAME_ENVIRONMENT
                found.append(f"{package} on {host} is {version}, {whose} is {expected}: {remedy}")
    unbuilt = [r for r in ranks if r["versions"]["horovod"] and not r["horovod_library"]]
    for host in dict.fromkeys(r["host"] for r in unbuilt):
        found.append(
            f"horovod on {host} was built without TensorFlow: install it after TensorFlow, "
            "with HOROVOD_WITH_TENSORFLOW=1, as ./build.sh setup does"
        )
    return found


def spark_faults(pyspark: str | None, session: str) -> list[str]:
    """A Spark that is not the environment's: of ``SPARK_HOME``, say. `session`: the version that runs."""
    if pyspark is None or pyspark == session:
        return []
    return [f"Spark here is {session}, but pyspark of this Python is {pyspark}: {OF_THE_CLUSTER}"]


def gpu_faults(ranks: list[PlaceFacts]) -> list[str]:
    """Ranks that would share a GPU, or go without while others have one."""
    found = []
    shared = Counter((r["host"], r["gpus"][0]) for r in ranks if r["gpus"])
    for (host, gpu), number in shared.items():
        if number > 1:
            found.append(
                f"Spark gives GPU {gpu} of {host} to {number} ranks: set spark.task.resource.gpu.amount "
                "to 1, and let every worker of a host announce GPUs of its own"
            )
    for host, number in Counter(r["host"] for r in ranks if not r["gpus"]).items():
        gpus = next(r["visible_gpus"] for r in ranks if r["host"] == host and not r["gpus"])
        if 0 < len(gpus) < number:
            found.append(
                f"{host} has {number} ranks, but {len(gpus)} GPU{'s' * (len(gpus) != 1)}, and one is "
                f"for one rank: lower --num-proc, or let Spark deal them out ({GPU_SETTINGS})"
            )
    without = dict.fromkeys(r["host"] for r in ranks if not (r["gpus"] or r["visible_gpus"]))
    having = dict.fromkeys(r["host"] for r in ranks if r["gpus"] or r["visible_gpus"])
    if having and without:
        found.append(
            f"ranks on {', '.join(without)} have no GPU, those on {', '.join(having)} have: keep to "
            f"executors that have GPUs ({GPU_SETTINGS})"
        )
    return found


def driver_faults(ranks: list[PlaceFacts]) -> list[str]:
    """GPUs that Spark deals out and the system does not have; drivers too old for Horovod's code."""
    found = []
    for r in {r["host"]: r for r in ranks if r["gpus"] and not r["visible_gpus"]}.values():
        found.append(
            f"Spark gives GPU {r['gpus'][0]} of {r['host']} to a rank, but the system shows no GPU there: "
            "check Spark's GPU discovery script, the driver, and what the container is given"
        )
    for r in {r["host"]: r for r in ranks}.values():
        nvcc, driver = r["horovod_nvcc"], r["nvidia_driver"]
        least = LEAST_DRIVER.get(nvcc.split(".")[0], 0) if nvcc else 0
        if driver and int(driver.split(".")[0]) < least:
            found.append(
                f"NVIDIA's driver on {r['host']} is {driver}, and Horovod was built by nvcc {nvcc}, whose "
                f"code needs {least} or later: update the driver, or run ./build.sh setup --gpu where a "
                "CUDA toolkit of the driver's age is on PATH"
            )
    return found


def gpu_warnings(ranks: list[PlaceFacts]) -> list[str]:
    """GPUs that are not used as well as they could be, or not at all."""
    found = []
    hosts = {r["host"]: r for r in ranks}.values()
    unseen = [r["host"] for r in hosts if r["horovod_nvcc"] and not r["visible_gpus"]]
    if unseen and not any(r["gpus"] for r in ranks):
        found.append(
            f"Horovod was built for GPUs, but none is seen on {', '.join(unseen)}: ranks train on the CPU "
            "there (nvidia-smi, in a task, tells more)"
        )
    slow = [r["host"] for r in hosts if r["visible_gpus"] and not r["horovod_nvcc"]]
    if slow and len(ranks) > 1:
        found.append(
            f"Horovod on {', '.join(slow)} was built without NCCL: gradients go from GPU to GPU by way of "
            "the CPU; run ./build.sh setup --gpu"
        )
    return found


def rank_bytes(rank: PlaceFacts, cost: NetworkCost | None) -> int:
    """Memory that a rank takes of its host; on a GPU the network is not there."""
    on_gpu = rank["gpus"] or rank["visible_gpus"]
    return PROCESS_BYTES + (cost["memory_bytes"] if cost and not on_gpu else 0)


def memory_faults(ranks: list[PlaceFacts], cost: NetworkCost | None = None) -> list[str]:
    """Hosts whose free memory does not hold their ranks."""
    found = []
    for host in dict.fromkeys(r["host"] for r in ranks):
        frees = {
            r["rank"]: free
            for r in ranks
            if r["host"] == host and (free := r["memory_bytes"]) is not None
        }
        needed = sum(rank_bytes(r, cost) for r in ranks if r["rank"] in frees)
        least = min(frees.values(), default=0)
        if needed > least:
            found.append(
                f"{host} has {size(least)} of free memory, but its {len(frees)} ranks need "
                f"{size(needed)}: lower --batch-size, or give fewer ranks to a host"
            )
    return found


def disk_faults(ranks: list[PlaceFacts], cost: NetworkCost | None = None) -> list[str]:
    """Folders on disks that do not hold the checkpoints of a run."""
    checkpoint = cost["checkpoint_bytes"] if cost else CHECKPOINT_BYTES
    disks = {
        (r["host"], folder): (free, CHECKPOINTS - (r["run_kept"] if folder in r["run_disk"] else 0))
        for r in ranks
        for folder, free in (r["temp_disk"] | r["run_disk"]).items()
    }
    return [
        f"{folder} on {host} has {size(free)} free, but {more} checkpoints need "
        f"{size(more * checkpoint)}: free some, or use another disk"
        for (host, folder), (free, more) in disks.items()
        if free < more * checkpoint
    ]


def network_faults(ranks: list[PlaceFacts]) -> list[str]:
    """Ranks that do not reach the driver or each other."""
    names = {r["rank"]: f"rank {r['rank']} on {r['host']}" for r in ranks}
    addresses = {r["rank"]: r["address"] or "an address that is not known" for r in ranks}
    found = [
        f"{names[r['rank']]} does not reach the driver at {r['driver']}: open the way for it, or set "
        "spark.driver.host to an address that executors reach"
        for r in ranks
        if r["driver"]
    ]
    pairs = {
        (r["rank"], int(other)): ports
        for r in ranks
        if isinstance(reached := r["reached"], dict)
        for other, ports in reached.items()
    }
    for (rank, other), ports in pairs.items():
        if ports:
            found.append(
                f"{names[rank]} does not reach {names[other]} at {addresses[other]}, by which that one "
                f"speaks with the driver, at port {' and '.join(map(str, ports))}: let executors connect to each "
                "other there, on spark.chexspark.ports and on the system's ports (net.ipv4.ip_local_port_range)"
            )
    found += [
        f"{names[r['rank']]} could not try to reach the others ({r['reached']}): see to its network"
        for r in ranks
        if not isinstance(r["reached"], dict)
    ]
    return found


def storage_faults(ranks: list[PlaceFacts], store: str, run: str | None) -> list[str]:
    """Hosts that do not read the store, or do not write the run."""
    # What keeps chexspark or a package from loading is said already.
    told = [r for r in ranks if r["versions"]["chexspark"] and r["versions"]["pyarrow"]]
    found = [(f"--data={store}", "read", r["host"], r["store"]) for r in told]
    found += [(f"--run={run}", "written", r["host"], r["run"]) for r in told]
    return [
        f"{place} cannot be {verb} on {host} ({fault}): put it where every host has it "
        "(a shared folder, hdfs://, s3://) and the user of Spark may use it"
        for place, verb, host, fault in dict.fromkeys(found)
        if fault
    ]


def size(number: float) -> str:
    """Bytes as people say them."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
