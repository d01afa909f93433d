"""The arithmetic of a run that leaves it to its hosts. Pure functions; runs on the driver.

In: what was asked for, what tasks found (`probe.PlaceFacts`), one per rank. Out: a precision of Keras, and why.
"""

from chexspark.cluster.place import PlaceFacts

AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "mixed_bfloat16"


def settle_precision(
    asked: str, ranks: tuple[PlaceFacts, ...], own_network: bool
) -> tuple[str, str]:
    """The precision that a run has from its start to its end, and a line that says so; empty where it was asked for.

    bfloat16 where the processors of all ranks compute in it, float32 else: emulated it would be slower than that.
    `own_network`: it is the user's, whose layers need not take mixed types.
    """
    if asked != AUTO:
        return asked, ""
    if own_network:
        return FLOAT32, f"precision {FLOAT32}: the network is your own, and may not take {BFLOAT16}"
    if lacking := without_bfloat16(ranks):
        return FLOAT32, f"precision {FLOAT32}: {hosts_text(lacking)} no bfloat16 in hardware"
    return BFLOAT16, f"precision {BFLOAT16}: the processors of all ranks have it in hardware"


def precision_warnings(precision: str, ranks: tuple[PlaceFacts, ...]) -> list[str]:
    """Hosts that have to emulate a run's bfloat16."""
    lacking = without_bfloat16(ranks) if precision == BFLOAT16 else []
    if not lacking:
        return []
    return [
        f"{hosts_text(lacking)} no bfloat16 in hardware, which --precision={precision} computes in: steps take longer "
        "there than in float32"
    ]


def without_bfloat16(ranks: tuple[PlaceFacts, ...]) -> list[str]:
    """The hosts where a rank's processor does not compute in bfloat16 itself."""
    return list(dict.fromkeys(rank["host"] for rank in ranks if not rank["bfloat16"]))


def hosts_text(hosts: list[str]) -> str:
    """``a has``, ``a, b have``."""
    return f"{', '.join(hosts)} {'has' if len(hosts) == 1 else 'have'}"
