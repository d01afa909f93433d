"""This rank's device and threads, set before TensorFlow uses one. Runs on ranks."""

import os

import tensorflow as tf

from chexspark.errors import UserError


def assigned_gpus() -> list[str]:
    """The addresses of the GPUs that Spark gave to this rank's task; none without its scheduling.

    A rank is a child of the task's Python process and has no task context of its own: Horovod's
    launcher asks the task and keeps the answer.
    """
    from horovod.spark.task import get_available_devices

    return [str(address) for address in get_available_devices()]


def claim_device(local_rank: int, local_size: int, threads: int | None) -> tuple[str, int]:
    """Take one GPU where there are GPUs, and this rank's share of the host's cores.

    The GPU is the first that Spark assigned to the task; where Spark assigns none, the visible one
    whose number is `local_rank`. Returns the device's name (``GPU:0``, ``CPU``) and the number of
    threads. Raises UserError when a host has GPUs but fewer than ranks, or not the assigned one.
    """
    threads = threads or max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # A single one would compute the gradients of weights last, all of them: none could travel meanwhile. Over 1 Gbit/s that
    # cost two ranks of one thread a fifth of their rate.
    tf.config.threading.set_inter_op_parallelism_threads(2)
    assigned = assigned_gpus()
    if assigned:
        # CUDA reads these when it starts, that is below. Spark's discovery numbers GPUs as
        # nvidia-smi does, in the order of the bus; CUDA by itself has the fastest first.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = assigned[0]
    gpus = tf.config.list_physical_devices("GPU")
    number = choose_gpu(assigned, len(gpus), local_rank, local_size)
    if number is None:
        return "CPU", threads
    tf.config.set_visible_devices(gpus[number], "GPU")
    tf.config.experimental.set_memory_growth(gpus[number], True)
    return f"GPU:{assigned[0] if assigned else number}", threads


def choose_gpu(assigned: list[str], visible: int, local_rank: int, local_size: int) -> int | None:
    """Which of the `visible` GPUs is this rank's; None where there are none. Raises UserError."""
    if assigned and not visible:
        raise UserError(
            f"Spark gave GPU {assigned[0]} to a rank, but TensorFlow finds no such GPU there: check "
            "Spark's GPU discovery script, the driver and the CUDA libraries"
        )
    if assigned:
        return 0
    if not visible:
        return None
    if local_size > visible:
        raise UserError(
            f"{local_size} ranks on a host with {visible} GPUs, and one is for one rank: lower "
            "--num-proc, or give Spark the GPUs to deal out (spark.task.resource.gpu.amount=1)"
        )
    return local_rank
