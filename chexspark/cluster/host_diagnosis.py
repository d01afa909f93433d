"""Hosts whose clock, limits or C library do not suit ranks. Pure functions; runs on the driver.

In: what tasks found (`probe.PlaceFacts`), one per rank. Out: lines of text.
"""

from chexspark.cluster.place import PlaceFacts

CLOCK_SECONDS = 60.0  # that a host's clock may differ from the driver's
# Open files of a rank: Python, TensorFlow and the reader's; and Gloo's to each other rank, measured.
FILES_OF_ITS_OWN, FILES_PER_RANK = 256, 4
PACK_ON_OLDEST = "run ./build.sh pack on the oldest Linux distribution of the cluster"


def clock_warnings(ranks: list[PlaceFacts]) -> list[str]:
    """Hosts whose clock is wrong, or the driver's is: as far as that is certain, however long tasks took to answer."""
    off: dict[str, float] = {}
    for r in ranks:
        if "clock" in r and "driver_clock" in r:
            before, after = r["driver_clock"]
            ahead = max(0.0, r["clock"] - after) or min(0.0, r["clock"] - before)
            off[r["host"]] = max(off.get(r["host"], 0.0), ahead, key=abs)
    return [
        f"the clock of {host} is {abs(ahead):.0f} s or more {'ahead of' if ahead > 0 else 'behind'} the driver's, "
        "and tokens and certificates are valid by the clock: set both by NTP (timedatectl set-ntp true)"
        for host, ahead in off.items()
        if abs(ahead) > CLOCK_SECONDS
    ]


def open_files_warnings(ranks: list[PlaceFacts], num_proc: int) -> list[str]:
    """Hosts where a process may not open as many files and connections as a rank does."""
    needed = FILES_OF_ITS_OWN + FILES_PER_RANK * num_proc
    limits = {r["host"]: limit for r in ranks if (limit := r.get("open_files")) is not None}
    return [
        f"a process on {host} may have {limit} files open, but a rank of {num_proc} needs {needed}: start Spark's "
        f"worker there after ulimit -n {needed}, or raise its LimitNOFILE"
        for host, limit in limits.items()
        if limit < needed
    ]


def glibc_faults(ranks: list[PlaceFacts]) -> list[str]:
    """Hosts whose C library is older than the one that the packed environment was built with."""
    pairs = {r["host"]: (r.get("glibc"), r.get("glibc_needed")) for r in ranks}
    return [
        f"glibc on {host} is {has}, the packed environment needs {needed}: {PACK_ON_OLDEST}"
        for host, (has, needed) in pairs.items()
        if has and needed and numbers(has) < numbers(needed)
    ]


def numbers(version: str) -> tuple[int, ...]:
    """``2.28`` as (2, 28), which is more than ``2.9``."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
