"""The device on which a Spark task runs a model. Runs in Spark tasks.

In: the GPU that Spark assigned to the task. Out: TensorFlow's name of it. A Python worker serves one task
after the other, which may come with different GPUs: all of a host stay visible, and each task works on
its own.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence

from chexspark.errors import RunFailedError
from chexspark.tensorflow_import import import_tensorflow


def task_device() -> str:
    """``GPU:1``, or ``CPU:0`` where there is no GPU. Loads TensorFlow. Raises RunFailedError.

    Without Spark's scheduling of GPUs the tasks of a host take them in turn, by their partition.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    resources = context.resources() if context else {}
    assigned = list(resources["gpu"].addresses) if "gpu" in resources else []
    visible = load_tensorflow(context.cpus() if context else 1)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shown = [name.strip() for name in names.split(",") if name.strip()]
    number = gpu_of_task(assigned, shown, visible, context.partitionId() if context else 0)
    return "CPU:0" if number is None else f"GPU:{number}"


@functools.lru_cache(maxsize=1)
def load_tensorflow(threads: int) -> int:
    """Load TensorFlow, once in a process; return how many GPUs it sees, each of which takes memory as needed.

    `threads`: a task that took more than its cores would take them from its neighbours.
    """
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # the workers of a host share its GPUs
    # Spark's discovery numbers GPUs as nvidia-smi does, in the order of the bus; CUDA by itself has the
    # fastest first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    with quiet_errors():
        import_tensorflow()
        import tensorflow as tf

        return len(tf.config.list_physical_devices("GPU"))


def gpu_of_task(
    assigned: Sequence[str], shown: Sequence[str], visible: int, partition: int
) -> int | None:
    """The number, in TensorFlow, of a task's GPU; None where there are none.

    `assigned`: the addresses that Spark gave to the task; `shown`: those in ``CUDA_VISIBLE_DEVICES``, if
    it is set; `visible`: how many TensorFlow sees; `partition`: the task's. Raises RunFailedError where
    TensorFlow does not see the assigned one.
    """
    if not assigned:
        return partition % visible if visible else None
    names = list(shown) or [str(number) for number in range(visible)]
    if assigned[0] not in names[:visible]:
        raise RunFailedError(
            f"Spark gave GPU {assigned[0]} to a task, but TensorFlow sees "
            f"{', '.join(names[:visible]) or 'none'} there: check Spark's GPU discovery script, the driver "
            "and the CUDA libraries"
        )
    return names.index(assigned[0])


@contextlib.contextmanager
def quiet_errors() -> Iterator[None]:
    """Keep what C++ libraries write to standard error while they load off the driver's screen."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
