"""Functions of the user's own that are called after every epoch. Runs on the driver.

In: the functions, and the events of the ranks. Out: a call for each epoch, in a thread of its own, so that a slow
one holds no rank up; and the wish to stop, if one has it. A function that fails is told of, and training goes on.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.run.folder import RunFolder
from chexspark.run.history import read_history
from chexspark.user_code import import_function, told

AFTER_STOP = 5.0  # seconds that a training which is stopped waits for callbacks


@dataclass(frozen=True)
class EpochEnd:
    """What a callback is given."""

    run: str  # the run's folder
    epochs: int  # that it is to have
    row: dict[
        str, Any
    ]  # of its history: epoch (from 0), train_loss, val_auroc, val_auroc_<Finding>, …
    wishes: list[str] = field(default_factory=list, repr=False)

    @property
    def number(self) -> int:
        """Of the epoch, from 1."""
        return int(self.row["epoch"]) + 1

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End the training after the step that it is in, with a checkpoint; the same command resumes it."""
        self.wishes.append(reason)


Callback = Callable[[EpochEnd], Any]


def callbacks_of(config: TrainConfig) -> list[Callback]:
    """The functions that the settings name. Raises UserError for one that cannot be imported."""
    found = [import_function("--callbacks", name) for name in config.callbacks]
    return [*found, config.on_epoch] if config.on_epoch else found


class Callbacks:
    """Calls functions for the epochs of a run, one after the other. `say`: takes what is to be told."""

    def __init__(
        self, functions: Sequence[Callback], run: RunFolder, epochs: int, say: Callable[[str], None]
    ) -> None:
        self.functions, self.run, self.epochs, self.say = functions, run, epochs, say
        self.stop_asked = threading.Event()
        self.reason = ""  # of the stop
        self.waiting: queue.Queue[int | None] = queue.Queue()  # epochs, from 0; None: no more come

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside, they are called; at the end, those that are left: a training that is stopped waits not long."""
        thread = threading.Thread(target=self.work, daemon=True)
        thread.start()
        seconds: float | None = AFTER_STOP
        try:
            yield
            seconds = None
        finally:
            self.waiting.put(None)
            thread.join(seconds)

    def take(self, epoch: int) -> None:
        """Note an epoch, from 0, that is over."""
        if self.functions:
            self.waiting.put(epoch)

    def work(self) -> None:
        """Call the functions for what is noted, until no more comes."""
        while (epoch := self.waiting.get()) is not None:
            try:
                row = self.row_of(epoch)
            except UserError as error:
                self.say(f"note: callbacks were not called for epoch {epoch + 1}: {error}")
                continue
            for function in self.functions:
                given = EpochEnd(str(self.run), self.epochs, dict(row))
                try:
                    function(given)
                except Exception as error:  # of any kind: it is the user's code
                    name = getattr(function, "__name__", type(function).__name__)
                    self.say(f"note: {name} failed after epoch {epoch + 1}: {told(error)}")
                if given.wishes and not self.stop_asked.is_set():
                    self.reason = given.wishes[0]
                    self.stop_asked.set()

    def row_of(self, epoch: int) -> dict[str, Any]:
        """The row of an epoch in the run's history, which its ranks have written. Raises UserError."""
        history = read_history(self.run)
        rows = history[history["epoch"] == epoch].to_dict("records")
        if not rows:
            raise UserError(f"{self.run.history} has no epoch {epoch + 1}")
        return {str(name): value for name, value in rows[0].items()}
