"""Some steps recorded: TensorFlow's profile and Horovod's timeline. Runs on rank 0.

In: how many steps. Out: ``RUN/trace``, which TensorBoard's profile plugin shows, and in it ``horovod.json``, which
Perfetto and chrome://tracing show.
"""

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Self

import tensorflow as tf

from chexspark.storage import Location
from chexspark.training.ring import Ring

log = logging.getLogger(__name__)

FIRST = 3  # step of a process that is recorded: those before compile, and take memory for the first time
TIMELINE = "horovod.json"


class Trace:
    """A context manager around the steps of a process, of which it records `steps`, once."""

    def __init__(self, steps: int, place: Location, ring: Ring) -> None:
        self.steps, self.place, self.ring = steps, place, ring
        self.done = 0  # steps of the process
        self.recording: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        if self.done < FIRST:
            log.warning(
                "--trace: %d steps were taken, recorded are those from the third on", self.done
            )

    def before_step(self) -> None:
        """A step begins."""
        self.done += 1
        if self.done == FIRST:
            self.recording = contextlib.ExitStack()
            folder = self.recording.enter_context(tempfile.TemporaryDirectory())
            self.recording.callback(self.keep, Path(folder))
            tf.profiler.experimental.start(folder)
            self.recording.callback(tf.profiler.experimental.stop)
            self.recording.enter_context(self.ring.timeline(os.path.join(folder, TIMELINE)))

    def after_step(self) -> None:
        """A step is done."""
        if self.done == FIRST + self.steps - 1:
            self.end()

    def end(self) -> None:
        """Stop recording, and bring the files to where they belong."""
        recording, self.recording = self.recording, None
        if recording:
            recording.close()

    def keep(self, folder: Path) -> None:
        """Copy what was recorded into the run."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            (self.place / name.parent.as_posix()).make_directory()
            (self.place / name.as_posix()).write_bytes(file.read_bytes())
