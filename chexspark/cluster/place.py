"""What a process finds out by itself about the place where a rank is to run. Runs in Spark tasks.

In: the rank, and the GPUs that Spark assigned. Out: `PlaceFacts`, a dict of plain values. The functions are
sent by value, so that they also run where chexspark is missing: at the top the module imports the standard
library alone.
"""

from __future__ import annotations  # so that the types are not sent along

import contextlib
import glob
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

PACKAGES = (
    "tensorflow",
    "tf-keras",
    "tensorboard",
    "horovod",
    "petastorm",
    "numpy",
    "pyarrow",
    "psutil",
)
DRIVER_VERSION = "/sys/module/nvidia/version"
PROCESSORS = "/proc/cpuinfo"
IN_HARDWARE = {"avx512_bf16", "amx_bf16"}  # flags of x86 processors with instructions for bfloat16
# The compute capability from which on NVIDIA's GPUs multiply in bfloat16: CUDA C++ Programming Guide, table of
# arithmetic throughput.
WITH_BFLOAT16 = 8.0
ASK_SECONDS = 10.0  # that nvidia-smi may take
PACKED = "chexspark-env.json"  # in an environment that ``./build.sh pack`` made: what it needs
LIMITS = (  # of a container's memory: the most, what is taken, and where it says what of that is cache
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


class PlaceFacts(TypedDict, total=False):
    """What a task found of the place where a rank is to run; sizes in bytes."""

    rank: int
    host: str
    executor: str  # Spark's number, or "driver"
    gpus: list[str]  # that Spark assigned
    visible_gpus: list[str]  # that CUDA would show
    cores: int
    memory_bytes: int | None  # free; None where that cannot be known
    temp_disk: dict[str, int]  # folder → free
    run_disk: dict[str, int]  # the same of the run, where that is a local folder
    run_kept: int  # checkpoints that are in the run already
    versions: dict[str, str | None]  # package → version; None where it is missing
    horovod_library: bool  # Horovod was built for TensorFlow
    horovod_nvcc: str | None  # the CUDA compiler's version, where Horovod was built for GPUs
    nvidia_driver: str | None  # its version; None where no driver is loaded
    bfloat16: bool  # the processor that the rank would compute on has it in hardware
    open_files: int | None  # that a process may have; None: any number
    glibc: str | None  # its version; None where the C library is another one
    glibc_needed: str | None  # by the packed environment; None where it is none
    met: bool  # the task ran at the same time as the others
    clock: float  # the host's, when all had met: seconds
    driver_clock: tuple[float, float]  # the driver's, before that and after; the driver adds it
    driver: str | None  # why the driver was not reached, at which address
    address: str  # of the interface that leads to the driver, over which ranks reach each other
    reached: (
        dict[int, list[int]] | str
    )  # other rank → its ports that were not; or why none was reached
    store: str | None  # why the store cannot be read
    run: str | None  # why the run cannot be written


def look_around(rank: int, gpus: list[str]) -> PlaceFacts:
    """What the process sees by itself; `gpus`: the addresses that Spark assigned."""
    folder = tempfile.gettempdir()
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "executor": executor(),
        "gpus": gpus,
        "visible_gpus": visible_gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": free_memory(),
        "temp_disk": {folder: shutil.disk_usage(folder).free},
        "versions": versions(),
        "horovod_library": horovod_library(),
        "horovod_nvcc": horovod_nvcc(),
        "nvidia_driver": nvidia_driver(),
        "bfloat16": has_bfloat16(gpus or visible_gpus()),
        "open_files": open_files(),
        "glibc": glibc(),
        "glibc_needed": glibc_needed(),
    }


def executor() -> str:
    """Spark's number of the executor: it stands in the command line of the JVM above us."""
    with contextlib.suppress(ImportError, OSError):
        import psutil

        for process in psutil.Process().parents():
            command = process.cmdline()
            if "--executor-id" in command[:-1]:
                return command[command.index("--executor-id") + 1]
    return "driver"


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show to a process of this task, whatever Spark has assigned."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    nodes = glob.glob("/dev/nvidia[0-9]*")
    return sorted((node.removeprefix("/dev/nvidia") for node in nodes), key=int)


def free_memory() -> int | None:
    """Bytes that new processes may take: of the host, or of the container where that is less."""
    try:
        import psutil
    except ImportError:
        return None
    free = psutil.virtual_memory().available
    for most, taken, cache in LIMITS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such limit
            root = Path("/sys/fs/cgroup")
            pairs = (root / taken).with_name("memory.stat").read_text().split()
            kept = int(dict(zip(pairs[::2], pairs[1::2], strict=True))[cache])
            left = int((root / most).read_text()) - int((root / taken).read_text()) + kept
            free = min(free, left)
    return max(0, free)


def versions() -> dict[str, str | None]:
    """Package → version; None where it is missing. TensorFlow and Horovod are not imported."""
    import pyspark  # which may come with Spark itself, then without metadata

    found: dict[str, str | None] = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "pyspark": pyspark.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    try:
        chexspark = importlib.import_module("chexspark")
        found["chexspark"] = f"{chexspark.__version__}+{code_digest(chexspark.__path__[0])}"
    except ImportError:
        found["chexspark"] = None
    return found


def code_digest(folder: str) -> str:
    """Eight digits that differ where a package's files do: a version says little of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.py"), recursive=True)):
        digest.update(os.path.relpath(path, folder).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:8]


def horovod_library() -> bool:
    """Whether Horovod was built for TensorFlow; its library would take seconds to load."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        folder = importlib.metadata.distribution("horovod").locate_file("horovod/tensorflow")
        return bool(glob.glob(os.path.join(str(folder), "mpi_lib*.so")))
    return False


def horovod_nvcc() -> str | None:
    """The version of nvcc that Horovod's code for GPUs is of, which ``build.sh`` has noted; or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        noted = importlib.metadata.distribution("horovod").locate_file("horovod/nvcc.py")
        found = re.search(r'VERSION = "([\d.]+)"', Path(str(noted)).read_text())
        return found[1] if found else None
    return None


def nvidia_driver() -> str | None:
    """The version of the driver that is loaded, as its kernel module says."""
    with contextlib.suppress(OSError):
        return Path(DRIVER_VERSION).read_text().strip()
    return None


def has_bfloat16(gpus: list[str]) -> bool:
    """Whether GPUs, or the CPU where there are none, compute in bfloat16 by themselves."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        if gpus:
            ask = [
                "nvidia-smi",
                "--query-gpu=compute_cap",
                "--format=csv,noheader",
                "-i",
                ",".join(gpus),
            ]
            said = subprocess.run(
                ask, capture_output=True, text=True, check=True, timeout=ASK_SECONDS
            )
            found = [float(line) for line in said.stdout.split()]
            return len(found) == len(gpus) and min(found) >= WITH_BFLOAT16
        processors = Path(PROCESSORS).read_text()
        flags = [
            set(found.split())
            for found in re.findall(r"^flags\s*: (.*)$", processors, re.MULTILINE)
        ]
        return bool(flags) and all(IN_HARDWARE & each for each in flags)
    return False


def open_files() -> int | None:
    """How many files and connections a process of this task may have open; None: any number."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def glibc() -> str | None:
    """The version of the C library; None where it is another one."""
    with contextlib.suppress(OSError, ValueError):  # a name that it does not know
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ") or None
    return None


def glibc_needed() -> str | None:
    """The oldest glibc that this Python's environment runs with, as far as ``./build.sh pack`` has noted it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((Path(sys.prefix) / PACKED).read_text()).get("glibc")
    return None
