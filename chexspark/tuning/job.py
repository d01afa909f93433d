"""A store and a space of settings in, trials and the best settings out. Runs on the driver, which starts no Spark
application of its own: each trial does, in a process of its own."""

import logging
import threading
import time
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.cluster.recipe_check import check_start
from chexspark.config import SearchConfig, TrainConfig
from chexspark.errors import RunFailedError, StoppedError, UserError, listed
from chexspark.lock import Lock, is_lock
from chexspark.models.custom import find_network
from chexspark.progress import ProgressLine
from chexspark.recipe_files import NOT_HERE as OF_RECIPE
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.manifest import Manifest, read_manifest
from chexspark.tuning.children import STOP_SECONDS, Children, Ended, environment, spark_settings
from chexspark.tuning.page import write_page
from chexspark.tuning.records import (
    EpochFigures,
    SearchFolder,
    SearchRecord,
    TrialRecord,
    best_of,
    best_trial,
    read_records,
    write_records,
)
from chexspark.tuning.space import FIELDS, Choice, Space, read_space
from chexspark.tuning.study import Study, values_of

log = logging.getLogger(__name__)

ATTEMPTS = 2  # of a trial that ends early
LOOK_SECONDS = 0.5


@takes(SearchConfig)
def search(spark: SparkSession | None, config: SearchConfig) -> pd.DataFrame:
    """Train with settings out of a space, and write which are best; return a row per trial.

    Columns: trial, state, val_auroc and epoch (of that whose model its run keeps), epochs, the settings that are
    searched, minutes, attempts, reason, run. A search that was interrupted is resumed. Only patients for training and validation are read.
    Raises UserError for what the user can mend, before any trial.
    """
    space, manifest = check_inputs(config)
    folder = SearchFolder(locate(config.out))
    folder.place.make_directory(config.private)
    with Lock(folder.place, "--out", "search") as lock:
        record = begun(folder, config, manifest)
        with environment(own_settings(spark_settings(spark), config)) as variables:
            Search(config, space, folder, record, Children(variables), lock).run()
        table = results(folder, record, space)
        folder.table.write_table(pa.Table.from_pandas(table, preserve_index=False))
        write_page(folder, record, space, table)
        tell(folder, record, space, config.num_proc)
    return table


def check_inputs(config: SearchConfig) -> tuple[Space, Manifest]:
    """The space and the store. Raises UserError for what can be known without Spark."""
    space, store = read_space(config.space), locate(config.data)
    manifest = read_manifest(store)
    check_files(store, manifest, ("train", "val"))
    if config.parallel > 1 and config.num_proc is None:
        raise UserError(
            f"--parallel={config.parallel} needs --num-proc: the ranks of a trial, of which all would take the same slots"
        )
    models = space.searched.get("model", Choice((space.fixed.get("model", TrainConfig.model),)))
    for name in models.values if isinstance(models, Choice) else ():
        find_network(name)
    training = build(TrainConfig, with_effect(space) | {"data": "store", "run": "run"})
    if not {"model", "weights"} & set(space.searched):
        check_start(training)
    return space, manifest


def with_effect(space: Space) -> dict[str, Any]:
    """The settings that all trials have, but for those whose effect depends on what is searched."""
    return {
        name: value
        for name, value in space.fixed.items()
        if not any(other in space.searched for other in FIELDS[name].metadata.get("only_with", ()))
    }


def own_settings(given: dict[str, str], config: SearchConfig) -> dict[str, str]:
    """Spark's settings for a trial: of a cluster that gives an application all its cores, its share."""
    if config.num_proc and given.get("spark.master", "").startswith("spark://"):
        cores = config.num_proc * int(given.get("spark.task.cpus", "1"))
        return {"spark.cores.max": str(cores)} | given
    return given


def begun(folder: SearchFolder, config: SearchConfig, manifest: Manifest) -> SearchRecord:
    """What is known of the search in a folder. Raises UserError where it is another one, or none."""
    text = locate(config.space).read_text()
    record = read_records(folder)
    if record is None:
        there = folder.place.list_folders() + [file.base_name for file in folder.place.list_files()]
        others = [name for name in there if not name.startswith(".") and not is_lock(name)]
        if others:
            raise UserError(f"--out={folder} has {listed(others, 3)} in it, but no search: give a new folder")  # fmt: skip
        return {"space": text, "store": config.data, "store_fingerprint": manifest.fingerprint, "trials": []}  # fmt: skip
    if record["store_fingerprint"] != manifest.fingerprint:
        raise UserError(f"--out={folder} is of another store: give that, or a new folder")
    if yaml.safe_load(record["space"]) != yaml.safe_load(text):
        raise UserError(f"--out={folder} was begun with another --space: give that as it was, or a new folder")  # fmt: skip
    return record


class Search:
    """The trials of a search, some at once. `record` is what is known of them, and written after every change."""

    def __init__(
        self, config: SearchConfig, space: Space, folder: SearchFolder, record: SearchRecord,
        children: Children, lock: Lock,
    ) -> None:  # fmt: skip
        self.config, self.space, self.folder, self.children = config, space, folder, children
        self.record, self.trials = record, record["trials"]
        self.left = [trial for trial in self.trials if trial["state"] == "running"]
        ended = [trial for trial in self.trials if trial["state"] != "running"]
        self.study = Study(space, ended, config.seed, config.parallel, config.prune)
        self.folder_lock, self.lock = lock, threading.Lock()
        self.showing: dict[int, str] = {}  # trial → how far it is
        self.failure: BaseException | None = None
        self.line = ProgressLine()

    def run(self) -> None:
        """Run trials until there are as many as asked for. Raises StoppedError when the user stops them."""
        threads = [threading.Thread(target=self.work) for _ in range(self.config.parallel)]
        with self.line:
            try:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    self.line.show(self.progress())
                    time.sleep(LOOK_SECONDS)
            except KeyboardInterrupt:
                self.stop(threads)
                raise StoppedError(
                    f"stopped; the same command resumes the search: {self.folder}"
                ) from None
        if self.failure:
            raise self.failure

    def stop(self, threads: list[threading.Thread]) -> None:
        """End all trials, with a checkpoint where the time allows it."""
        self.line.say("stopping the trials")
        self.children.stop()
        until = time.monotonic() + STOP_SECONDS
        for thread in threads:
            if thread.ident:
                thread.join(max(0.0, until - time.monotonic()))
        self.children.kill()

    def progress(self) -> str:
        """How far the search is, in one line."""
        ended = sum(trial["state"] != "running" for trial in self.trials)
        parts = [f"{ended} of {self.config.trials} trials"]
        parts += [f"trial {number}: {text}" for number, text in sorted(self.showing.items())]
        return "; ".join(parts)

    def work(self) -> None:
        """Run one trial after the other."""
        try:
            while (trial := self.next_trial()) is not None:
                self.run_trial(*trial)
        except BaseException as error:  # the main thread raises it
            self.failure = self.failure or error
            self.children.stop()

    def next_trial(self) -> tuple[TrialRecord, Any] | None:
        """The next trial, as a record and as Optuna has it: one that was interrupted, or a new one."""
        with self.lock:
            if self.children.stopping:
                return None
            if self.left:
                record = self.left.pop(0)
                return record, self.study.begin(record["chosen"])
            if len(self.trials) >= self.config.trials:
                return None
            asked = self.study.begin()
            record = {
                "number": len(self.trials) + 1, "state": "running", "chosen": dict(asked.params),
                "epochs": [], "attempts": [], "reason": "", "seconds": 0.0,
            }  # fmt: skip
            self.trials.append(record)
            self.write()
            return record, asked

    def write(self) -> None:
        """Write what is known. Called with the lock. Raises RunFailedError when another search has the folder."""
        self.folder_lock.check_held()
        write_records(self.folder, self.record)

    def run_trial(self, record: TrialRecord, asked: Any) -> None:
        """Train with a trial's settings; once more, from its checkpoint, where that ends early.

        Raises :class:`UserError` where a mistake ends it before any trial has a result.
        """
        number = record["number"]
        try:
            settings = self.settings_of(record)
        except UserError as error:
            self.close(record, asked, "refused", str(error))
            return
        for epoch, auroc in values_of(record).items():
            self.study.is_to_end(asked, epoch, auroc)
        while True:
            self.showing[number] = "starting"
            started, pruned = time.monotonic(), False

            def on_epoch(figures: EpochFigures) -> bool:
                nonlocal pruned
                with self.lock:
                    add_epoch(record, figures)
                    self.write()
                shown = "–" if figures["val_auroc"] is None else f"{figures['val_auroc']:.4f}"
                self.showing[number] = f"epoch {figures['epoch']}, AUROC {shown}"
                pruned = self.study.is_to_end(asked, figures["epoch"], figures["val_auroc"])
                return pruned

            ended = self.children.run(settings, on_epoch)
            self.showing.pop(number, None)
            self.note(record, ended, time.monotonic() - started)
            if self.children.stopping and ended.code:
                return  # the record says that it runs: it is resumed
            if ended.code == 0:
                state, reason = ended_well(record, pruned)
                self.close(record, asked, state, reason)
                return
            words = ended_words(ended)
            if ended.code == 2 and not self.has_result():
                raise UserError(
                    f"trial {number}: {words}"
                )  # as all others would be: it stays to be run
            if ended.code == 2 or len(record["attempts"]) + 1 >= ATTEMPTS:
                self.close(record, asked, "refused" if ended.code == 2 else "failed", words)
                return
            with self.lock:
                record["attempts"].append(words)
                self.write()
            self.line.say(f"trial {number} {words}; once more, from its last checkpoint")

    def has_result(self) -> bool:
        """Whether any trial has come to an end of its own."""
        return any(trial["state"] in ("done", "pruned") for trial in self.trials)

    def settings_of(self, record: TrialRecord) -> dict[str, Any]:
        """The settings of a trial. Raises UserError for those that contradict each other."""
        given: dict[str, Any] = {
            "data": self.config.data, "run": str(self.folder.run_of(record["number"])),
            "private": self.config.private,
        }  # fmt: skip
        if self.config.num_proc:
            given["num_proc"] = self.config.num_proc
        return self.space.settings(record["chosen"], given)

    def note(self, record: TrialRecord, ended: Ended, seconds: float) -> None:
        """Keep what a trial's process said."""
        with self.lock:
            record["seconds"] += seconds
            if ended.history is not None:
                record["epochs"] = ended.history
            self.write()
        self.folder.output.make_directory()
        self.folder.output_of(record["number"]).write_text(ended.output)

    def close(self, record: TrialRecord, asked: Any, state: str, reason: str) -> None:
        """Note how a trial ended, and say so."""
        with self.lock:
            record["state"], record["reason"] = state, reason
            self.write()
        self.study.end(asked, record)
        self.line.say(trial_text(record, self.space))


def add_epoch(record: TrialRecord, figures: EpochFigures) -> None:
    """Note an epoch; one that is repeated after a loss takes the place of the former."""
    record["epochs"] = [e for e in record["epochs"] if e["epoch"] < figures["epoch"]] + [figures]


def ended_well(record: TrialRecord, pruned: bool) -> tuple[str, str]:
    """State and reason of a trial whose training came to an end."""
    if pruned:
        return "pruned", "below the median of the trials before"
    if best_of(record) is None:
        return "failed", "the validation split has no AUROC: no finding has both classes there"
    return "done", ""


def ended_words(ended: Ended) -> str:
    """How a trial ended early, in words."""
    if ended.code < 0:
        return f"was killed by signal {-ended.code}"
    return ended.words if ended.code == 2 else f"ended with exit code {ended.code}: {ended.words}"


def trial_text(record: TrialRecord, space: Space) -> str:
    """A trial in one line."""
    best = best_of(record)
    auroc = f"AUROC {best['val_auroc']:.4f} after epoch {best['epoch']}" if best else "no AUROC"
    chosen = ", ".join(
        f"{name} {shown(value)}" for name, value in space.of_effect(record["chosen"]).items()
    )
    reason = f" ({record['reason']})" if record["reason"] else ""
    return f"trial {record['number']}: {record['state']}, {auroc}; {chosen}{reason}"


def shown(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def results(folder: SearchFolder, record: SearchRecord, space: Space) -> pd.DataFrame:
    """A row per trial, in their order."""
    rows = []
    for trial in record["trials"]:
        best, chosen = best_of(trial), space.of_effect(trial["chosen"])
        rows.append({
            "trial": trial["number"], "state": trial["state"], "val_auroc": best["val_auroc"] if best else None,
            "epoch": best["epoch"] if best else None, "epochs": len(trial["epochs"]),
            **{name: chosen.get(name) for name in space.searched},
            "minutes": round(trial["seconds"] / 60, 2), "attempts": len(trial["attempts"]) + 1,
            "reason": trial["reason"], "run": str(folder.run_of(trial["number"])),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.astype({"val_auroc": "float64", "epoch": "Int64"})


def tell(folder: SearchFolder, record: SearchRecord, space: Space, num_proc: int | None) -> None:
    """Write the settings of the best trial as a recipe, and say which it is. Raises RunFailedError for none."""
    best = best_trial(record["trials"])
    if best is None:
        raise RunFailedError(f"no trial was trained to its end: see {folder.page}")
    given = {"data": "store", "run": "run"} | ({"num_proc": num_proc} if num_proc else {})
    settings = space.settings(best["chosen"], given)
    recipe = {name: value for name, value in settings.items() if name not in OF_RECIPE}
    recipe = {name: list(v) if isinstance(v, tuple) else v for name, v in recipe.items()}
    head = (
        f"# {trial_text(best, space)}\n# The best of {len(record['trials'])} trials, chosen by the validation split of "
        f"{record['store']}:\n# measure it on patients of the test split.\n"
    )
    folder.recipe.write_text(head + yaml.safe_dump(recipe, sort_keys=False))
    log.info(
        "best: %s\nas a recipe: %s\nall trials: %s",
        trial_text(best, space),
        folder.recipe,
        folder.page,
    )
