"""One row per epoch: ``RUN/history``. Written on rank 0, read on the driver."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa

from chexspark.errors import UserError
from chexspark.findings import column_name
from chexspark.run.folder import RunFolder
from chexspark.store.schema import DAMAGE

AUROC = "val_auroc_"  # and a finding's column name
Row = dict[str, int | float | bool | None]  # an epoch's, by column: see `history_schema`


class History(pd.DataFrame):
    """The history of a run as what it is, a table, which knows its `run` and is drawn in a notebook.

    What is made of it, a column or some rows, is a plain table.
    """

    _metadata = ("run",)
    run: str  # the folder

    @property
    def _constructor(self) -> Callable:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        """For a notebook: curves by epoch above the table."""
        table = pd.DataFrame(self)._repr_html_()
        if self.empty or find_spec("matplotlib") is None:
            return table
        from chexspark.drawing import in_notebook
        from chexspark.run.history_charts import training

        return in_notebook(training(self)) + table


def history_of(run: RunFolder, table: pd.DataFrame) -> History:
    """A table as the history of a run."""
    found = History(table)
    found.run = str(run)
    return found


def history_schema(findings: Sequence[str]) -> pa.Schema:
    """The columns, of a run on these findings; epochs are counted from 0, shares are of an epoch's time on rank 0."""
    doubles = ["learning_rate", "train_loss", "seconds", "images_per_second", "input_share",
               "compute_share", "allreduce_share", "val_loss", "val_auroc",
               *(AUROC + column_name(name) for name in findings)]  # fmt: skip
    return pa.schema(
        [("epoch", pa.int32()), ("steps", pa.int32()), *((n, pa.float64()) for n in doubles),
         ("best", pa.bool_())]
    )  # fmt: skip


def write_history(run: RunFolder, rows: list[Row], findings: Sequence[str]) -> None:
    """Write all epochs so far, in place of those that were there."""
    run.history.write_table(pa.Table.from_pylist(rows, history_schema(findings)))


def has_history(run: RunFolder) -> bool:
    """Whether a run has a history."""
    return run.history.is_directory()


def read_history(run: RunFolder) -> History:
    """All epochs in order. Raises UserError where there are none, or where they are damaged."""
    if not has_history(run):
        raise UserError(f"--run={run} has no history: give a folder that chexspark train wrote")
    try:
        table = checked(run.history.read_table()).to_pandas()
        return history_of(run, table.sort_values("epoch", ignore_index=True))
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.history} is damaged ({reason}): copy the run again") from error


def checked(table: pa.Table) -> pa.Table:
    """The table with its columns in their types. Raises one of `DAMAGE` for what is no history."""
    known = history_schema(())
    fields = [
        known.field(name) if name in known.names else pa.field(name, pa.float64())
        for name in table.column_names
        if name in known.names or name.startswith(AUROC)
    ]
    table = table.select([field.name for field in fields]).cast(pa.schema(fields))
    if not len(table):
        raise ValueError("it has no epoch")
    for name in ("epoch", "best", "learning_rate"):
        if table[name].null_count:
            raise ValueError(f"an epoch has no {name}")
    for field in fields:
        values = table[field.name].to_numpy()
        if field.name.startswith("val_auroc") and (np.abs(values.astype(float)) > 1).any():
            raise ValueError(f"{field.name} is above 1")
    if not np.isfinite(table["learning_rate"].to_numpy()).all():
        raise ValueError("an epoch's learning_rate is no number")
    _ = table["val_auroc"]  # raises where it is not there
    return table


def typical_rate(history: pd.DataFrame) -> float | None:
    """Images per second of the median epoch but the first, which compiles; of the first, where no other is known.

    An epoch that was resumed after its last step has none. None: no epoch has one.
    """
    rates = history["images_per_second"]
    later = rates.iloc[1:].dropna()
    known = later if len(later) else rates.dropna()
    return float(known.median()) if len(known) else None


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """The row of the best epoch, whose model is ``RUN/best``. Raises UserError where there is none."""
    if not history["best"].any():
        raise UserError("the run's history has no best epoch: copy the run again")
    return history[history["best"]].iloc[0]
