"""What TensorBoard shows of a run. Runs on rank 0.

In: figures by step and epoch, a batch of images. Out: event files in ``RUN/tensorboard``.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import tensorflow as tf
from pyarrow.fs import LocalFileSystem

from chexspark.run.history import Row
from chexspark.storage import Location

GRID = 16  # augmented images shown


class TensorBoard:
    """A context manager around the event files.

    TensorFlow writes to local paths; for another file system the files are copied there after
    each epoch.
    """

    def __init__(self, place: Location) -> None:
        self.place, self.stack = place, contextlib.ExitStack()
        if isinstance(place.filesystem, LocalFileSystem):
            self.folder = Path(place.path)
        else:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.writer = tf.summary.create_file_writer(str(self.folder))
        self.stack.callback(self.writer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def step(self, step: int, **figures: float) -> None:
        """Write figures of a training step."""
        with self.writer.as_default(step):
            for name, value in figures.items():
                tf.summary.scalar(f"step/{name}", value)

    def epoch(self, row: Row) -> None:
        """Write a row of the history, and bring the files to where they belong."""
        with self.writer.as_default(row["epoch"]):
            for name, value in row.items():
                if isinstance(value, float):
                    tf.summary.scalar(f"{group_of(name)}/{name}", value)
        self.writer.flush()
        if self.folder != Path(self.place.path):
            for file in self.folder.iterdir():
                (self.place / file.name).write_bytes(file.read_bytes())

    def images(self, images: tf.Tensor, labels: tf.Tensor, findings: Sequence[str]) -> None:
        """Write the first images of a batch, uint8 (batch, size, size, 1), as the network sees them.

        `labels`: int8 (batch, findings), in the order of `findings`.
        """
        names = [
            ", ".join(f for f, label in zip(findings, row, strict=True) if label == 1) or "none"
            for row in labels.numpy()[:GRID]
        ]
        with self.writer.as_default(0):
            tf.summary.image("augmented", images[:GRID], max_outputs=GRID)
            tf.summary.text(
                "augmented/findings", "\n".join(f"{i}. {n}" for i, n in enumerate(names))
            )


def group_of(name: str) -> str:
    """Under which heading TensorBoard shows a figure."""
    return "auroc" if "auroc" in name else "loss" if "loss" in name else "epoch"
