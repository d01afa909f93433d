"""The model of the best epoch: ``RUN/best``. Runs on rank 0; `settle` on the driver too.

In: a model and its row of the history. Out: ``model.keras`` and ``best.json``. They wait aside until
a checkpoint knows of their epoch, so that ``RUN/best`` is always of the history that goes on.
"""

import json
import tempfile
from pathlib import Path

from chexspark.storage import Location

MODEL, FIGURES = "model.keras", "best.json"


def waiting(run: Location) -> Location:
    """Where a model is until a checkpoint knows of it."""
    return run / "best-unfinished"


def save_best(model, run: Location, figures: dict) -> None:
    """Write the whole Keras model aside, then the figures of its epoch."""
    place = waiting(run)
    place.make_directory()
    with tempfile.TemporaryDirectory(prefix="chexspark-") as folder:
        path = Path(folder) / MODEL
        model.save(path)
        (place / MODEL).write_bytes(path.read_bytes())
    (place / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")


def promote(run: Location) -> None:
    """Put the model that waits, if there is one, into ``RUN/best``."""
    aside, place = waiting(run), run / "best"
    if (aside / FIGURES).is_file():
        place.make_directory()
        for name in (MODEL, FIGURES):  # the model may be there already, after a death in between
            if (aside / name).is_file():
                (aside / name).move_to(place / name)
        aside.delete_directory()


def settle(run: Location, history: list[dict]) -> None:
    """After a death: promote the model that waits if it is of this history, or delete it."""
    figures = waiting(run) / FIGURES
    if figures.is_file():
        epoch = json.loads(figures.read_text())["epoch"]
        if any(row["epoch"] == epoch for row in history):
            promote(run)
    waiting(run).delete_directory()
