"""Which settings the next trial has, and whether one is pruned: Optuna's choice. Runs on the driver.

In: the space, and the records of the trials before. Out: chosen settings; a word on each epoch. Optuna's study is
in memory, and made anew of the records when a search is resumed: they may be on any storage.
"""

import threading
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial, TrialState

from chexspark.tuning.records import TrialRecord, best_of
from chexspark.tuning.space import Choice, Dimension, Space

STARTUP_TRIALS = 4  # that are trained to their end, for others to be held against
FIRST_EPOCH = 2  # after which a trial may be pruned
STATES = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "refused": TrialState.FAIL,
}


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna calls a dimension."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        low, high = int(dimension.low), int(dimension.high)
        return IntDistribution(low, high, log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


class Study:
    """Asks Optuna, from any thread. `parallel`: how many trials run at once; `before`: records that have ended."""

    def __init__(
        self, space: Space, before: list[TrialRecord], seed: int, parallel: int, prune: bool
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.lock = threading.Lock()
        self.reported: set[tuple[int, int]] = set()  # number of a trial, and epoch
        self.distributions = {n: distribution(d) for n, d in space.searched.items()}
        # Another seed than before, or a search that is resumed would choose what it has chosen.
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(before), constant_liar=parallel > 1, n_startup_trials=max(5, 2 * parallel)
        )  # fmt: skip
        pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, FIRST_EPOCH)
        self.study = optuna.create_study(
            direction="maximize", sampler=sampler, pruner=pruner if prune else optuna.pruners.NopPruner()
        )  # fmt: skip
        for record in before:
            self.study.add_trial(self.told(record))

    def told(self, record: TrialRecord) -> Any:
        """A record as Optuna keeps it."""
        best, values = best_of(record), values_of(record)
        state = STATES[record["state"]]
        if state is TrialState.COMPLETE and best is None:
            state = TrialState.FAIL
        value = best["val_auroc"] if best and state is TrialState.COMPLETE else None
        return optuna.trial.create_trial(
            state=state, value=value, params=record["chosen"], distributions=self.distributions,
            intermediate_values=values,
        )  # fmt: skip

    def begin(self, chosen: dict[str, Any] | None = None) -> Trial:
        """The next trial; with what was `chosen` before, that again."""
        with self.lock:
            if chosen is not None:
                self.study.enqueue_trial(chosen)
            return self.study.ask(self.distributions)

    def is_to_end(self, trial: Trial, epoch: int, auroc: float | None) -> bool:
        """Note a trial's validation AUROC after an epoch (from 1); whether it is to be pruned."""
        if auroc is None:
            return False
        with self.lock:
            key = trial.number, epoch
            if key not in self.reported:  # of an epoch that is repeated Optuna knows
                self.reported.add(key)
                trial.report(auroc, epoch)
            return trial.should_prune()

    def end(self, trial: Trial, record: TrialRecord) -> None:
        """Tell how a trial ended."""
        with self.lock:
            told = self.told(record)
            self.study.tell(trial, told.value, state=told.state)


def values_of(record: TrialRecord) -> dict[int, float]:
    """Validation AUROC by epoch, from 1, where there is one."""
    return {e["epoch"]: e["val_auroc"] for e in record["epochs"] if e["val_auroc"] is not None}
