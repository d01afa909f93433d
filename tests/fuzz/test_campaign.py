"""Spoiled files end no job. `CHEXSPARK_FUZZ=16000` says how many images; of archives there are 300 then."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from campaign import NEVER

PART = 500  # mutants of a process: what takes memory is found, and a crash ends no more than these
ASKED = int(os.environ.get("CHEXSPARK_FUZZ", "0"))
PATIENCE = 10 * PART  # seconds
COLUMNS = ("mutants", "refused", "as its twin", "another image", "images", *NEVER)


def campaign(what: str, number: int) -> dict[str, Counter]:
    """Counts by kind of so many mutants. A process that dies counts as an ended job."""
    total: dict[str, Counter] = defaultdict(Counter)
    script = os.path.join(os.path.dirname(__file__), "campaign.py")
    for first in range(0, number, PART):
        words = [sys.executable, script, what, str(first), str(min(PART, number - first))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        told = [line for line in done.stderr.splitlines() if line.startswith(NEVER)]
        print("\n".join(told))
        if done.returncode:
            print(done.stderr[-3000:])
            total[f"process at {first}"]["ended"] += 1
            continue
        for kind, counts in json.loads(done.stdout.splitlines()[-1]).items():
            total[kind].update(counts)
    return total


def table(counts: dict[str, Counter]) -> str:
    """Counts for people, a line per kind and one of their sums."""
    lines = [" " * 17 + "".join(f"{column:>15}" for column in COLUMNS)]
    for kind, own in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        lines.append(f"{kind:17}" + "".join(f"{own[column]:15,}" for column in COLUMNS))
    return "\n".join(lines)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("what, quick, large", [("images", 450, ASKED), ("archives", 42, 300)])
def test_spoiled_files_end_no_job_and_are_not_believed(what, quick, large, capsys):
    counts = campaign(what, large if ASKED else quick)
    if ASKED:
        with capsys.disabled():
            print(f"\n{table(counts)}")
    whole = sum(counts.values(), Counter())
    assert not {fault: whole[fault] for fault in NEVER if whole[fault]}, table(counts)
    assert whole["mutants"] == (large if ASKED else quick)
