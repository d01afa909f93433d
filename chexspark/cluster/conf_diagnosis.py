"""What Spark's settings do to ranks, and the settings to give. Pure functions; runs on the driver.

In: settings of a session. Out: lines of text.
"""

IDLE_SECONDS = (
    60.0  # Spark's own; between the look at the ranks' places and their start no task runs
)


def settings_warnings(conf: dict[str, str], idle_seconds: float | None) -> list[str]:
    """Settings of a cluster that do not suit ranks.

    `idle_seconds`: after which dynamic allocation gives back an executor without a task; None where there is none.
    """
    found = []
    if conf.get("spark.speculation", "false").lower() == "true":
        found.append(
            "spark.speculation is on, by which Spark starts a second copy of a slow task, and so of a rank: "
            "--conf spark.speculation=false"
        )
    if idle_seconds is not None and idle_seconds < IDLE_SECONDS:
        found.append(
            f"executors are given back after {idle_seconds:g} s without a task, and before ranks start there is "
            "none: --conf spark.dynamicAllocation.executorIdleTimeout=60s, or "
            "spark.dynamicAllocation.enabled=false"
        )
    if limit := conf.get("spark.executor.pyspark.memory"):
        found.append(
            f"spark.executor.pyspark.memory={limit} limits the address space of ranks, of which TensorFlow "
            "reserves more than it uses: leave it out, and give spark.executor.memoryOverhead"
        )
    return found


def overhead_mebibytes(
    master: str, heap: int, conf: dict[str, str], overhead: int | None, least: int
) -> int:
    """Memory of an executor's container beside the JVM's heap, as YARN or Kubernetes computes it.

    `heap`, `overhead`, `least`: spark.executor.memory, .memoryOverhead if it is set, and .minMemoryOverhead, in MiB.
    """
    if overhead is not None:
        return overhead
    share = conf.get("spark.executor.memoryOverheadFactor")
    if share is None and master.startswith("k8s"):
        # Spark sets it to 0.4 for the executors of a driver that is itself in a pod.
        share = conf.get("spark.kubernetes.memoryOverheadFactor")
    return max(least, int(heap * float(share or 0.1)))
