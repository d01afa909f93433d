"""The model of the best epoch: ``RUN/best``. Runs on rank 0; `settle` on the driver too.

In: a model and its row of the history. Out: ``model.keras`` and ``best.json``. They wait aside until
a checkpoint knows of their epoch, so that ``RUN/best`` is always of the history that is continued.
"""

import json
import tempfile
from pathlib import Path

from chexspark.errors import UserError
from chexspark.run.folder import RunFolder
from chexspark.text_files import read_json


def save_best(model, run: RunFolder, figures: dict) -> None:
    """Write the whole Keras model aside, then the figures of its epoch (its row of the history)."""
    run.waiting.make_directory()
    with tempfile.TemporaryDirectory(prefix="chexspark-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        run.waiting_model.write_bytes(path.read_bytes())
    run.waiting_figures.write_text(json.dumps(figures, indent=1) + "\n")


def promote(run: RunFolder) -> None:
    """Put the model that waits, if there is one, into ``RUN/best``."""
    if run.waiting_figures.is_file():
        run.best.make_directory()
        # The model may be there already, after a death in between.
        if run.waiting_model.is_file():
            run.waiting_model.move_to(run.best_model)
        run.waiting_figures.move_to(run.best_figures)
        run.waiting.delete_directory()


def settle(run: RunFolder, history: list[dict]) -> None:
    """After a death: promote the model that waits if it is of this history, or delete it."""
    if run.waiting_figures.is_file():
        epoch = read_json(run.waiting_figures, str(run.waiting_figures))["epoch"]
        if any(row["epoch"] == epoch for row in history):
            promote(run)
    run.waiting.delete_directory()


def best_learning_rate(run: RunFolder) -> float | None:
    """The learning rate of the best epoch; None where there is none. Raises UserError for damage."""
    if not run.best_figures.is_file():
        return None
    figures = read_json(run.best_figures, str(run.best_figures))
    try:
        return float(figures["learning_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.best_figures} is damaged: it has no learning_rate") from error
