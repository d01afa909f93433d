"""One trial: a training in a driver process of its own, since a process has one Horovod job. Runs as a child.

    python -m chexspark.tuning.trial

In: on standard input its settings, and after each epoch a word, ``go on`` or ``prune``; lines of JSON. When it
ends, the search is gone, and the training stops with a checkpoint. Out: a line of JSON per epoch, and at the end
one of all epochs, through the pipe whose number is the argument; the exit code of a command.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

from chexspark.cluster.callbacks import EpochEnd
from chexspark.cluster.job import train
from chexspark.command_line import exit_code_of
from chexspark.config import TrainConfig
from chexspark.lock import Lock
from chexspark.run.folder import run_folder
from chexspark.settings import build
from chexspark.tuning.records import EpochFigures

PRUNE, GO_ON = "prune", "go on"
STOPPING_SECONDS = 40  # that a trial of a search which was killed may need to stop


class Link:
    """The child's end of the pipes to the search."""

    def __init__(self, descriptor: int) -> None:
        self.out = os.fdopen(descriptor, "w")
        self.settings: dict[str, Any] = json.loads(sys.stdin.readline())
        self.words: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Hear what the search says, until it is gone."""
        for line in sys.stdin:
            self.words.put(json.loads(line))
        self.words.put(PRUNE)
        os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch(self, epoch: EpochEnd) -> None:
        """Tell the search of an epoch, and stop if it says so."""
        self.tell(figures_of(epoch.row))
        if self.words.get() == PRUNE:
            epoch.stop("pruned")

    def tell(self, what: Any) -> None:
        """Say something to the search."""
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()


def figures_of(row: dict[str, Any]) -> EpochFigures:
    """Of a row of a history what the search keeps."""
    figures = {name: number(row[name]) for name in ("val_auroc", "val_loss")}
    return {"epoch": int(row["epoch"]) + 1, "best": bool(row["best"]), **figures}  # type: ignore[typeddict-item]


def number(value: Any) -> float | None:
    """A figure of the history as JSON has it."""
    return None if value is None or value != value else float(value)


def wait_for_folder(run: str) -> None:
    """Return when no training writes a run any more: that of a search before may be ending.

    Raises UserError where one goes on.
    """
    place, until = run_folder(run).place, time.monotonic() + STOPPING_SECONDS
    while place.is_directory():
        try:
            with Lock(place, "--run", "training"):
                return
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def main() -> int:
    """Train, and return the exit code."""
    link = Link(int(sys.argv[1]))

    def call() -> None:
        wait_for_folder(link.settings["run"])
        history = train(None, build(TrainConfig, link.settings | {"on_epoch": link.on_epoch}))
        link.tell([figures_of(row) for row in history.to_dict("records")])

    return exit_code_of(call)


if __name__ == "__main__":
    sys.exit(main())
