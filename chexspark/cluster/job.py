"""A store in, a trained run out. Runs on the driver, which never loads TensorFlow."""

import contextlib
import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Sequence

import pandas as pd
from pyspark.sql import SparkSession

from chexspark import errors
from chexspark.arguments import takes
from chexspark.cluster.advisor import advise, check_measurable
from chexspark.cluster.callbacks import Callback, Callbacks, callbacks_of
from chexspark.cluster.diagnosis import data_faults
from chexspark.cluster.doctor import Examination, examine, show
from chexspark.cluster.launch import RanksLost, run_ranks
from chexspark.cluster.precision import AUTO, precision_warnings, settle_precision
from chexspark.cluster.recipe_check import check_start, differences
from chexspark.cluster.slots import check_ranks, slots_again
from chexspark.cluster.timings import END, GIVEN, PLACES, SPARK, Timings
from chexspark.cluster.turn import turn
from chexspark.cluster.view import EpochTable, auroc_text, describe, plan_text, ranks_text
from chexspark.config import TrainConfig
from chexspark.errors import RunFailedError, StoppedError, UserError, spoken
from chexspark.lock import Lock
from chexspark.models import LOGITS, MINIMUM_SIZE
from chexspark.models.cost import NetworkCost, ToCount, counted_in_background
from chexspark.models.custom import find_network
from chexspark.models.imagenet import IMAGENET, RANDOM, put_into, take_out
from chexspark.models.weights import check_fits, check_weights, start_of
from chexspark.progress import ProgressLine
from chexspark.run.best import best_learning_rate, settle
from chexspark.run.checkpoint import moment_of
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.history import History, best_epoch, history_of, read_history
from chexspark.run.mlflow_server import check_registered, find_server
from chexspark.run.moment import Moment
from chexspark.run.resolved import ResolvedTraining
from chexspark.run.settings import (
    check_same,
    check_same_code,
    check_same_store,
    earlier_settings,
    last_checkpoint,
    write_settings,
)
from chexspark.run.tracking import TrainingLog, tell_finished
from chexspark.session import replace_executors, start_session
from chexspark.storage import locate
from chexspark.store.check import check_files
from chexspark.store.manifest import Manifest, read_manifest
from chexspark.training.events import Epoch as EpochOver
from chexspark.training.events import Event
from chexspark.training.rank import run_rank
from chexspark.training.schedule import make_schedule
from chexspark.user_code import Code

log = logging.getLogger(__name__)

# Or Spark waits two minutes at its end for hosts that are gone.
SETTINGS = {"spark.cleaner.referenceTracking.blocking": "false"}
START_UP = re.compile(r"WARNING: All log messages before absl|[EWI]0000 ")
SAME_PLACE_TIMES = 3  # that a run may fall in one place before it is taken for a bug


@takes(TrainConfig)
def train(spark: SparkSession | None, config: TrainConfig) -> History:
    """Train on the store `data`, write the run, return its history: one row per epoch.

    A run that was interrupted is resumed from its last checkpoint; one that is finished says so. With `dry_run` nothing
    is trained: there are no rows, or with `at` one per number of ranks (`forecast.Forecast`).
    Raises UserError for what the user can mend, before ranks are started.
    """
    timings = Timings()
    if errors.at_command_line:
        timings.since_start_of_process()
    functions, server = callbacks_of(config), find_server()
    check_registered(config.registered_model, server)
    config, manifest, earlier, code = check_inputs(dataclasses.replace(config, on_epoch=None))
    run = run_folder(config.run)
    before = last_checkpoint(run) if earlier else None
    if before and before.state["finished"]:
        settle(run, before.state["history"])
        if server and earlier and not config.dry_run:
            resolved = ResolvedTraining(config, earlier.began_with, code)
            tell_finished(TrainingLog(server, run, resolved, manifest, earlier.began_with))
        log.info("%s is finished: %d epochs", run, len(before.state["history"]))
        return tell_best(run)
    lock = Lock(run.place, "--run", "training")
    with (
        contextlib.nullcontext() if config.dry_run else lock,
        counted_in_background(what_to_count(config, manifest, earlier, code)) as cost,
    ):
        if code:  # before Spark is asked: it may not be one that can be trained
            check_custom(config, cost())
        if earlier_settings(run) != earlier:
            raise UserError(
                f"--run={run} was begun by another training meanwhile: give a new folder, or the "
                "same command again to resume it"
            )
        asked, session = config.num_proc or (earlier.began_with if earlier else None), None
        if config.dry_run and config.num_proc and not config.at:
            num_proc = config.num_proc
        else:
            timings.end(GIVEN)
            session = start_session(spark, "train", SETTINGS)
            num_proc = check_ranks(session, asked, config.wait_seconds)
            if config.at:
                check_measurable(num_proc)
            timings.end(SPARK)
        # A run keeps the global batch that it began with, whatever the number of ranks.
        settings = ResolvedTraining(config, earlier.began_with if earlier else num_proc, code)
        images = manifest.splits["train"].images
        check_number(num_proc, config.min_proc, images)
        schedule = make_schedule(settings, settings.steps_per_epoch(images))
        at = moment_of(before.state) if before else None
        log.info(describe(settings, manifest, num_proc, at))
        if start := start_of(config.model, config.weights, run):
            check_fits(config.model, start, cost()["layers"], config.weights_findings)
        if config.dry_run or session is None:
            log.info(plan_text(settings, manifest, schedule, cost()))
            if not config.at or session is None:
                return history_of(run, pd.DataFrame())
        with turn(session):  # another training's ranks hold the slots
            found = examine(
                session, num_proc, locate(config.data), None if config.dry_run else run.place, manifest,
                config.batch_size, cost, config.wait_seconds,
            )  # fmt: skip
            show(found)
            found.raise_for_faults()
            settings = settled(settings, found)
            if config.at:
                environment = horovod_settings(config.fusion_mb, config.autotune, False)
                fresh = dataclasses.replace(settings.config, weights=None)
                measured = dataclasses.replace(settings, config=fresh)
                rows = advise(session, measured, manifest, num_proc, config.at, environment)
                return history_of(run, pd.DataFrame(map(dataclasses.asdict, rows)))
            write_settings(run, settings)
            if config.weights == IMAGENET:
                put_into(run, config.model)
            timings.end(PLACES)
            if server is None:
                run_to_the_end(session, settings, num_proc, lock, timings, functions)
            else:
                tracking = TrainingLog(server, run, settings, manifest, num_proc)
                with tracking.working():
                    told = [lambda epoch: tracking.take(epoch.row), *functions]
                    run_to_the_end(session, settings, num_proc, lock, timings, told)
    if (last := last_checkpoint(run)) and last.state["finished"]:
        take_out(run)
    if config.timings:
        log.info(str(timings))
    return tell_best(run)


def settled(settings: ResolvedTraining, found: Examination) -> ResolvedTraining:
    """The settings with what depends on the hosts decided, for this run's whole life."""
    config = settings.config
    for warning in precision_warnings(config.precision, found.ranks):
        log.warning("note: %s", spoken(warning))
    precision, why = settle_precision(config.precision, found.ranks, settings.code is not None)
    if why:
        log.info(why)
    return dataclasses.replace(settings, config=dataclasses.replace(config, precision=precision))


def check_number(num_proc: int, least: int | None, images: int) -> None:
    """Raise UserError for a number of ranks that the run's settings or images contradict."""
    if least and least > num_proc:
        raise UserError(f"--min-proc={least} is more than the {num_proc} ranks: lower it")
    for fault in data_faults(images, num_proc):
        raise UserError(fault)


def what_to_count(
    config: TrainConfig, manifest: Manifest, earlier: ResolvedTraining | None, code: Code | None
) -> ToCount:
    """A rank of this run, as far as it is known before Spark is asked."""
    rows = config.batch_size
    if earlier and config.num_proc:
        rows = -(-rows * earlier.began_with // config.num_proc)
    slots = 1 if config.optimizer in ("sgd", "lars") else 2
    slots += 1 if config.ema else 0
    return ToCount(
        config.model, config.size or manifest.image_size, len(manifest.findings), -(-rows // config.accumulate),
        slots, config.policy, code,
    )  # fmt: skip


def run_to_the_end(
    spark: SparkSession, settings: ResolvedTraining, num_proc: int, lock: Lock, timings: Timings,
    functions: Sequence[Callback] = (),
) -> None:  # fmt: skip
    """Run the ranks; where some are lost, resume from the last checkpoint with those there are.

    `functions`: called after every epoch; one of them may end the training.
    """
    config, run = settings.config, run_folder(settings.config.run)
    least, most = config.min_proc or num_proc, num_proc
    fell_at: list[Moment] = []
    with stop_told(run), ProgressLine() as line, contextlib.ExitStack() as stack:
        view = EpochTable(line, config.epochs)
        callbacks = Callbacks(functions, run, config.epochs, lambda text: line.say(spoken(text)))
        stack.enter_context(callbacks.working())

        def take(event: Event) -> None:
            view.take(event)
            timings.take(event)
            if isinstance(event, EpochOver):
                callbacks.take(event.epoch)

        while True:
            view.at = resumes_at(run)
            try:
                run_ranks(
                    spark, run_rank, (settings,), num_proc, take,
                    horovod_settings(config.fusion_mb, config.autotune, config.deterministic),
                    config.stall_seconds, config.wait_seconds, lock.lost, callbacks.stop_asked,
                )  # fmt: skip
                timings.end(END)
                return
            except StoppedError:
                if not callbacks.stop_asked.is_set():
                    raise
                line.say(
                    f"stopped: {callbacks.reason}; the same command resumes at {resumes_at(run)}"
                )
                return
            except RanksLost as error:
                lock.check_held()
                view.lost = view.lost or time.monotonic()
                for text in last_words(run, error.rank):
                    line.say(f"  {text}")
                check_restart(error, fell_at, view.at, config.max_restarts)
                fell_at.append(view.at)
                if error.silent_host:
                    replace_executors(spark, error.silent_host)
                line.say(
                    f"{error}, in {view.at}; restart {len(fell_at)} of {config.max_restarts} at "
                    f"{resumes_at(run)}"
                )
                before = num_proc
                num_proc = slots_again(spark, num_proc, least, most, config.wait_seconds)
                if num_proc < before:
                    line.say(f"there are no more slots: resuming with {ranks_text(num_proc)}")
                elif num_proc > before:
                    line.say(f"there are more slots again: resuming with {ranks_text(num_proc)}")


def check_restart(error: RanksLost, fell_at: list[Moment], at: Moment, allowed: int) -> None:
    """Raise RunFailedError where a run is not begun again; `fell_at`: the losses before this one, `at`."""
    if len(fell_at) == allowed:
        raise RunFailedError(f"{error}; {len(fell_at)} restarts were allowed") from error
    if [*fell_at, at][-SAME_PLACE_TIMES:] == [at] * SAME_PLACE_TIMES:
        raise RunFailedError(
            f"{error}; it was the same {SAME_PLACE_TIMES} times, always at {at}: this does not look "
            "like chance"
        ) from error


@contextlib.contextmanager
def stop_told(run: RunFolder) -> Iterator[None]:
    """Say of a run that is stopped inside where it would be resumed. Raises StoppedError."""
    try:
        yield
    except (StoppedError, KeyboardInterrupt) as error:
        at = resumes_at(run)
        reason = str(error) or "stopped"
        raise StoppedError(f"{reason}; the same command resumes at {at}: {run}") from None


def last_words(run: RunFolder, rank: int | None, lines: int = 5) -> list[str]:
    """The end of a rank's log, without what TensorFlow says at its start."""
    try:
        content = run.log_of(rank).read_bytes()
    except OSError:
        return []
    said = content.decode(errors="replace").splitlines()
    return [text for text in said if not START_UP.match(text)][-lines:]


def resumes_at(run: RunFolder) -> Moment:
    """Where a run would be resumed."""
    found = last_checkpoint(run)
    return moment_of(found.state) if found else Moment()


def tell_best(run: RunFolder) -> History:
    """Say which epoch was best; return the history."""
    history = read_history(run)
    best = best_epoch(history)
    auroc = auroc_text(best["val_auroc"])
    log.info(
        "best epoch %d of %d, validation AUROC %s, loss %.4f: %s",
        best["epoch"] + 1,
        len(history),
        auroc,
        best["val_loss"],
        run.best,
    )
    return history


def check_custom(config: TrainConfig, cost: NetworkCost) -> None:
    """Raise UserError for a network of the user's own that cannot be trained as the settings say."""
    has_head = LOGITS in [name for name, _ in cost["layers"]]
    if config.freeze_epochs and not has_head:
        raise UserError(
            f"--freeze-epochs: --model={config.model} does not end in a dense layer, which would be trained alone"
        )
    if config.head_rate != 1 and not has_head:
        raise UserError(
            f"--head-rate: --model={config.model} does not end in a dense layer, whose learning rate it would be"
        )


def check_sizes(config: TrainConfig, stored: int) -> None:
    """Raise UserError for sizes of images and batches that do not go together. `stored`: of the store's images, pixels."""
    if stored < MINIMUM_SIZE:
        raise UserError(
            f"--data={config.data}: networks take images of {MINIMUM_SIZE} pixels or more"
        )
    if config.size and config.size > stored:
        raise UserError(
            f"--size={config.size} is more than the {stored} pixels of the images in --data={config.data}: "
            f"give at most that, or ingest with --size={config.size}"
        )
    if config.batch_size % config.accumulate:
        raise UserError(
            f"--batch-size={config.batch_size} cannot be worked through in equal parts: "
            f"--accumulate={config.accumulate} does not divide it"
        )


def check_inputs(
    config: TrainConfig,
) -> tuple[TrainConfig, Manifest, ResolvedTraining | None, Code | None]:
    """Everything about a run that can be known without Spark. Raises UserError.

    Returns the config, the manifest, the settings of the run that is there already, if any, and the code of a
    network of the user's own.
    """
    code = find_network(config.model)
    store, run = locate(config.data), run_folder(config.run)
    manifest = read_manifest(store)
    check_files(store, manifest, ("train", "val"))
    check_sizes(config, manifest.image_size)
    if config.size == manifest.image_size:
        config = dataclasses.replace(config, size=None)
    size = config.size or manifest.image_size
    earlier = earlier_settings(run)
    if not earlier:
        check_start(config)
        for text in differences(config, size, manifest.findings, manifest.image_size):
            log.warning("note: %s", spoken(text))
    if config.weights == RANDOM:
        config = dataclasses.replace(config, weights=None)
    if start := start_of(config.model, config.weights, run):
        check_weights(config.model, start)
    elif config.weights_findings:
        raise UserError("--weights-findings are of the outputs of --weights, which is missing")
    if config.learning_rate_from_weights:
        if config.learning_rate != TrainConfig.learning_rate:
            raise UserError(
                "--learning-rate-from-weights contradicts --learning-rate: leave one of them out"
            )
        config = dataclasses.replace(config, learning_rate=learning_rate_of(config.weights))
    if earlier:
        if config.precision == AUTO:
            config = dataclasses.replace(config, precision=earlier.config.precision)
        check_same(run, config, earlier)
        check_same_store(run, manifest)
        check_same_code(run, code)
    if not config.dry_run:
        run.place.make_directory(config.private)
        run.logs.make_directory()
    return config, manifest, earlier, code


def learning_rate_of(weights: str | None) -> float:
    """The learning rate of the best epoch of an earlier run. Raises UserError if it is not one."""
    rate = best_learning_rate(run_folder(weights)) if weights else None
    if rate is None:
        raise UserError("--learning-rate-from-weights needs --weights to name a run")
    return rate


def horovod_settings(fusion_mb: int | None, autotune: bool, deterministic: bool) -> dict[str, str]:
    """Environment variables that Horovod reads when a rank starts, for the settings of these names."""
    found = {"HOROVOD_AUTOTUNE": "1"} if autotune else {}
    if deterministic or not (autotune or fusion_mb):
        # Gradients come in messages that are large enough. Which would travel together depends on time, and the
        # order of a sum on their places.
        found["HOROVOD_FUSION_THRESHOLD"] = "0"
    elif fusion_mb:
        found["HOROVOD_FUSION_THRESHOLD"] = str(fusion_mb << 20)
    return found
