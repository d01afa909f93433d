"""What TensorBoard finds in a run."""

import numpy as np
import pytest

from chexspark.findings import FINDINGS
from chexspark.storage import Location, locate


def events_in(folder):
    """{(tag, step): tensor} of the event files of a local folder."""
    import tensorflow as tf

    found = {}
    for file in sorted(folder.iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found[value.tag, event.step] = tf.make_ndarray(value.tensor)
    return found


def test_figures_by_step_and_epoch_and_what_the_network_sees(tmp_path):
    import tensorflow as tf

    from chexspark.training.tensorboard import GRID, TensorBoard

    row = {"epoch": 1, "steps": 7, "val_loss": 0.5, "val_auroc": 0.75, "seconds": 9.0,
           "val_auroc_Mass": None, "best": True}  # fmt: skip
    images = np.zeros((GRID + 2, 4, 4, 1), np.uint8)
    labels = np.zeros((GRID + 2, 14), np.int8)
    labels[0, [1, 4]], labels[1, 2] = 1, -1
    with TensorBoard(locate(str(tmp_path))) as board:
        board.step(30, loss=0.25)
        board.images(tf.constant(images), tf.constant(labels), FINDINGS)
        board.epoch(row)
    found = events_in(tmp_path)
    scalars = {key: float(value) for key, value in found.items() if value.ndim == 0 and
               value.dtype != object}  # fmt: skip
    assert scalars == {("step/loss", 30): 0.25, ("loss/val_loss", 1): 0.5,
                       ("auroc/val_auroc", 1): 0.75, ("epoch/seconds", 1): 9.0}  # fmt: skip
    pictures = found["augmented", 0]
    assert pictures[:2].tolist() == [b"4", b"4"] and len(pictures) == 2 + GRID
    names = found["augmented/findings", 0].item().decode().splitlines()
    assert names[:2] == ["0. Cardiomegaly, Mass", "1. none"], "unknown is not found"
    assert len(names) == GRID


def test_files_come_to_where_tensorflow_cannot_write(tmp_path):
    from chexspark.training.tensorboard import TensorBoard

    class Remote:
        def __init__(self, plain):
            self.plain = plain

        def __getattr__(self, name):
            return getattr(self.plain, name)

    local = locate(str(tmp_path))
    place = Location(Remote(local.filesystem), local.path, "s3://bucket/tensorboard")
    with TensorBoard(place) as board:
        board.epoch({"epoch": 0, "val_loss": 0.5})
        aside = board.folder
        assert aside != tmp_path
        assert events_in(tmp_path) == {("loss/val_loss", 0): pytest.approx(0.5)}
        board.epoch({"epoch": 1, "val_loss": 0.25})
    assert {key: float(value) for key, value in events_in(tmp_path).items()} == {
        ("loss/val_loss", 0): 0.5, ("loss/val_loss", 1): 0.25,
    }  # fmt: skip
    assert not aside.exists()
