"""Two ranks on Spark and one allreduce: the proof that the set-up works. Runs on the driver.

spark-submit --master 'local[2]' chexspark/cluster/smoke_test.py
"""

import sys

from chexspark.cluster.launch import run_ranks
from chexspark.session import start_session
from chexspark.training.events import EventAddress

RANKS = 2


def sum_of_ranks(events: EventAddress) -> float:
    """Add up rank + 1 over all ranks, by allreduce."""
    from chexspark.training.horovod_ring import HorovodRing, join

    facts = join()
    return float(HorovodRing().sum([facts.rank + 1.0], "proof")[0])


if __name__ == "__main__":
    found = run_ranks(
        start_session(None, "smoke test"), sum_of_ranks, (), RANKS, lambda event: None
    )
    expected = [sum(range(1, RANKS + 1))] * RANKS
    if found != expected:
        sys.exit(f"the allreduce gave {found}, expected {expected}")
    print(f"{RANKS} ranks agree: {found[0]:g}")
