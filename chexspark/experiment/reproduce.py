"""NIH's folder in, a page and a JSON file with every figure out. Runs on the driver.

The recipes are trained over several seeds on NIH's official lists, evaluated and reported, each alone and all trainings
of a recipe as an ensemble. What is there already is kept: the same command goes on where an earlier one ended.
"""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.cluster.job import train
from chexspark.config import ReproduceConfig
from chexspark.errors import UserError
from chexspark.evaluation.job import evaluate
from chexspark.evaluation.published_aurocs import OFFICIAL_IMAGES
from chexspark.evaluation.report import report
from chexspark.evaluation.tables import read_evaluation
from chexspark.experiment.figures import check_training, figures_of, is_scored, none_if_nan
from chexspark.experiment.nih_release import Release, find_release, part_of
from chexspark.experiment.reproduce_page import reproduce_page
from chexspark.experiment.stages import Stages
from chexspark.ingestion.job import ingest
from chexspark.lock import Lock
from chexspark.models import MINIMUM_SIZE
from chexspark.models.imagenet import RANDOM
from chexspark.recipe_files import members_of, read_expected
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.history import best_epoch, read_history, typical_rate
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import read_settings
from chexspark.session import start_session
from chexspark.storage import Location, locate
from chexspark.store.manifest import Manifest, read_manifest

log = logging.getLogger(__name__)

QUICK_EPOCHS, QUICK_SIZE = 2, 64  # of a try-out
SEEDS, QUICK_SEEDS = 3, 2
# Of settings: paths, and what seeds differ in.
NOT_TOLD = ("data", "run", "weights", "seed", "size")


@dataclass(frozen=True)
class Trained:
    """A recipe, or a member of one, trained with one seed."""

    recipe: str
    seed: int
    run: RunFolder
    size: int  # of the images that its network takes, pixels

    @property
    def stage(self) -> str:
        """What its training is called."""
        return f"{self.recipe}, seed {self.seed}"


@takes(ReproduceConfig)
def reproduce(spark: SparkSession | None, config: ReproduceConfig) -> dict[str, Any]:
    """Train, evaluate and report the recipes, write ``OUT/reproduction.html`` and ``.json``; return what the latter holds.

    Raises UserError for what the user can mend, before anything is trained.
    """
    out, release = locate(config.out), find_release(config.nih)
    if config.quick:
        out = out / "quick"  # the whole experiment may follow in the same folder
    members = {recipe: members_of(recipe) for recipe in dict.fromkeys(config.recipes)}
    sizes = sizes_of([name for names in members.values() for name in names], config.quick)
    for name in sizes:
        check_training(settings_of(config, name, 0, "store", "run", sizes))
    out.make_directory(config.private)
    with Lock(out, "--out", "reproduction"):
        stages = Stages(out / "stages.json")
        if config.quick:
            (out / "part").make_directory()
            release = part_of(release, out / "part")
        spark = start_session(spark, "reproduce")
        store = ingested(spark, stages, release, out, max(sizes.values()), config)
        trained = [
            train_and_score(spark, config, stages, out, store, name, seed, sizes)
            for seed in range(seeds_of(config))
            for name in sizes
        ]
        together = {
            recipe: [each for each in trained if each.recipe in names]
            for recipe, names in members.items()
        }
        ensembles = {
            recipe: score_together(spark, config, stages, out, store, recipe, runs)
            for recipe, runs in together.items()
        }
        found = summary(config, read_manifest(store), together, ensembles, stages.seconds)
        (out / "reproduction.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "reproduction.html").write_text(reproduce_page(found))
    log.info("written: %s, %s", out / "reproduction.html", out / "reproduction.json")
    return found


def settings_of(
    config: ReproduceConfig, name: str, seed: int, store: str, run: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The settings of a training, beside its recipe's. `sizes`: as `sizes_of` returns them."""
    given: dict[str, Any] = {
        "recipe": name,
        "data": store,
        "run": run,
        "seed": seed,
        "private": config.private,
    }
    if sizes[name] < max(sizes.values()):  # which the store has
        given["size"] = sizes[name]
    if config.num_proc:
        given["num_proc"] = config.num_proc
    if config.weights or config.quick:
        given["weights"] = config.weights or RANDOM
    return given | ({"epochs": QUICK_EPOCHS} if config.quick else {})


def sizes_of(names: Sequence[str], quick: bool) -> dict[str, int]:
    """The size of the images that the network of each recipe takes, pixels; small ones in a try-out.

    Raises UserError for one that does not say it.
    """
    sizes = {}
    for name in names:
        size = read_expected(name).image_size
        if size is None:
            raise UserError(f"--recipe={name} does not say what size its images have")
        sizes[name] = size
    if not quick:
        return sizes
    largest = max(sizes.values())
    return {name: max(MINIMUM_SIZE, QUICK_SIZE * size // largest) for name, size in sizes.items()}


def seeds_of(config: ReproduceConfig) -> int:
    """How many trainings of each recipe."""
    return config.seeds or (QUICK_SEEDS if config.quick else SEEDS)


def ingested(
    spark: SparkSession,
    stages: Stages,
    release: Release,
    out: Location,
    size: int,
    config: ReproduceConfig,
) -> Location:
    """The store of images of a size; one that is there from the same input is left as it is."""
    store = out / f"store-{size}"
    stages.run(
        f"ingest, {size} pixels",
        lambda: ingest(
            spark, images=release.images, labels=(release.labels,), boxes=release.boxes, split_lists=release.lists,
            out=str(store), size=size, split="official", allow_missing="all" if config.quick else "images",
            private=config.private,
        ),
    )  # fmt: skip
    return store


def train_and_score(
    spark: SparkSession, config: ReproduceConfig, stages: Stages, out: Location, store: Location,
    name: str, seed: int, sizes: Mapping[str, int],
) -> Trained:  # fmt: skip
    """A recipe trained with a seed, evaluated on the test list and reported, as far as that is not done."""
    run = run_folder(str(out / "runs" / f"{folder_name(name)}-seed-{seed}"))
    trained = Trained(name, seed, run, sizes[name])
    given = settings_of(config, name, seed, str(store), str(run), sizes)
    stages.run(f"train {trained.stage}", lambda: train(spark, **given))
    if not (is_scored(run, [run]) and run.report.is_file()):
        stages.run(
            f"evaluate {trained.stage}",
            lambda: evaluate(spark, data=str(store), run=(str(run),), private=config.private),
        )
        report(run=(str(run),))
    return trained


def folder_name(recipe: str) -> str:
    """What a folder of a recipe, or a member of one, is called."""
    return recipe.replace("/", "-")


def score_together(
    spark: SparkSession, config: ReproduceConfig, stages: Stages, out: Location, store: Location,
    recipe: str, trained: Sequence[Trained],
) -> RunFolder | None:  # fmt: skip
    """All trainings of a recipe as an ensemble, weighed where its members differ; None for a single one."""
    if len(trained) < 2:
        return None
    together, runs = run_folder(str(out / "ensembles" / recipe)), [each.run for each in trained]
    if not (is_scored(together, runs) and together.report.is_file()):
        stages.run(
            f"evaluate {recipe}, all together",
            lambda: evaluate(
                spark, data=str(store), run=tuple(map(str, runs)), out=str(together), private=config.private,
                fit_weights=len({each.recipe for each in trained}) > 1,
            ),
        )  # fmt: skip
        report(run=(str(together), str(runs[0])))
    return together


def summary(
    config: ReproduceConfig, manifest: Manifest, trained: dict[str, list[Trained]],
    ensembles: dict[str, RunFolder | None], seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """What the JSON file holds: no name of a host, a path or a patient."""
    first = read_lineage(next(iter(trained.values()))[0].run)
    test = manifest.splits["test"]
    return {
        "quick": config.quick,
        "images": {name: split.images for name, split in manifest.splits.items()},
        "patients": {name: split.patients for name, split in manifest.splits.items()},
        "official": test.images == OFFICIAL_IMAGES and not manifest.synthetic,
        "synthetic": manifest.synthetic > 0,
        "store_fingerprint": manifest.fingerprint,
        "refused": manifest.quarantined,
        "recipes": {
            name: recipe_figures(runs, ensembles[name], seconds) for name, runs in trained.items()
        },
        "seconds": seconds,
        "versions": {
            "chexspark": first["chexspark"],
            "python": first["python"],
            **first["packages"],
        },
    }


def recipe_figures(
    runs: Sequence[Trained], ensemble: RunFolder | None, seconds: dict[str, float]
) -> dict[str, Any]:
    """Of one recipe: each seed's figures, their mean and spread, and the ensemble's."""
    seeds = [seed_figures(each, seconds) for each in runs]
    aurocs = [each["auroc"] for each in seeds if each["auroc"] is not None]
    members = {each.recipe: member_facts(each) for each in runs}
    ranks = read_lineage(runs[0].run)["ranks"]
    return {
        "members": members,
        "random_start": any(member["random_start"] for member in members.values()),
        "ranks": len(ranks), "hosts": len({rank["host"] for rank in ranks}),
        "devices": sorted({rank["device"] for rank in ranks}),
        "seeds": seeds,
        "mean": statistics.mean(aurocs) if aurocs else None,
        "deviation": statistics.stdev(aurocs) if len(aurocs) > 1 else None,
        "ensemble": None if ensemble is None else figures_of(ensemble),
        "weights": [] if ensemble is None else read_evaluation(ensemble)["test"].get("weights", []),
        "rank_hours": sum(each["train_seconds"] for each in seeds) * len(ranks) / 3600,
    }  # fmt: skip


def member_facts(trained: Trained) -> dict[str, Any]:
    """How one of a recipe's trainings was made, whatever its seed."""
    _, settings = read_settings(trained.run)
    return {
        "size": trained.size,
        "settings": {key: value for key, value in settings.items() if key not in NOT_TOLD},
        "random_start": settings.get("weights") in (None, RANDOM),
    }


def seed_figures(trained: Trained, seconds: dict[str, float]) -> dict[str, Any]:
    """Of one training."""
    history = read_history(trained.run)
    best = best_epoch(history)
    return {
        "recipe": trained.recipe, "seed": trained.seed, "epochs": len(history), "best_epoch": int(best["epoch"]) + 1,
        "val_auroc": none_if_nan(best["val_auroc"]),
        "images_per_second": typical_rate(history),
        "train_seconds": seconds[f"train {trained.stage}"],
        **figures_of(trained.run),
    }  # fmt: skip
