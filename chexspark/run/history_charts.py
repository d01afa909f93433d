"""Pictures of a training, by epoch. Pure functions over the history; runs on the driver.

In: a history, a row per epoch. Out: SVG elements, as `drawing` makes them.
"""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chexspark.drawing import ACCENT, FAINT, SECOND, STYLE, THIRD, plain_numbers, svg_of


def training(history: pd.DataFrame) -> str:
    """Losses, validation AUROC and learning rate over the epochs; a row of `history` each."""
    epochs = history["epoch"] + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3))
        loss, auroc, rate = figure.subplots(1, 3)
        for name, colour, text in (("train_loss", ACCENT, "training"), ("val_loss", SECOND, "validation")):  # fmt: skip
            loss.plot(epochs, history[name], "o-", ms=3, color=colour, label=text)
        loss.set_title("Loss", loc="left")
        loss.legend(frameon=False, fontsize=8)
        auroc.plot(epochs, history["val_auroc"].astype(float), "o-", ms=3, color=SECOND)
        best = history[history["best"]].iloc[0]
        auroc.plot(best["epoch"] + 1, best["val_auroc"], "o", ms=8, mfc="none", color=SECOND)
        auroc.set_title("Mean validation AUROC", loc="left")
        rate.step(epochs, history["learning_rate"], "o-", where="mid", ms=3, color=THIRD)
        rate.set_yscale("log")
        plain_numbers(rate.yaxis)
        rate.set_title("Learning rate", loc="left")
        for axes in (loss, auroc, rate):
            whole_numbers(axes, epochs)
        figure.tight_layout()
        return svg_of(figure, "loss, validation AUROC and learning rate by epoch")


def whole_numbers(axes: Axes, epochs: pd.Series) -> None:
    """Label the axis of epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)


def throughput(history: pd.DataFrame, shares: Mapping[str, str]) -> str:
    """Images per second of each epoch, and how its time was spent: `shares` maps columns to names."""
    epochs = history["epoch"] + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3))
        rate, parts = figure.subplots(1, 2)
        rate.bar(epochs, history["images_per_second"], color=ACCENT, width=0.7)
        rate.set_title("Images per second, all ranks", loc="left")
        bottom = np.zeros(len(history))
        for (column, name), colour in zip(shares.items(), (SECOND, ACCENT, THIRD, FAINT), strict=False):  # fmt: skip
            values = 100 * history[column].fillna(0).to_numpy()
            parts.bar(epochs, values, 0.7, bottom, color=colour, label=name)
            bottom += values
        parts.set_title("Share of the step time, %", loc="left")
        parts.set_ylim(0, 100)
        parts.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        for axes in (rate, parts):
            whole_numbers(axes, epochs)
        figure.tight_layout()
        return svg_of(figure, "throughput, and time by input, compute and allreduce")
