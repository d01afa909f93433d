"""What each lever of training does to AUROC, by itself: every one trained beside the base, seed by seed. Runs on the
driver.

In: a store and levers. Out: of each lever the mean difference over the seeds, with a 95 % interval of paired differences;
a page, JSON, and Parquet. What is there already is kept: the same command goes on where an earlier one ended.
"""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import SparkSession
from scipy.stats import t as student

from chexspark.arguments import takes
from chexspark.cluster.job import check_sizes, train
from chexspark.config import AblateConfig
from chexspark.errors import UserError
from chexspark.evaluation.job import evaluate
from chexspark.experiment.ablation_page import ablation_page, ablation_text
from chexspark.experiment.figures import check_training, figures_of, is_scored
from chexspark.experiment.levers import BASE, Lever, Levers, read_levers
from chexspark.experiment.stages import Stages
from chexspark.ingestion.job import ingest
from chexspark.lock import Lock
from chexspark.models.imagenet import IMAGENET, RANDOM
from chexspark.phantom import write_release
from chexspark.recipe_files import recipe_names
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.session import start_session
from chexspark.storage import Location, locate
from chexspark.store.manifest import read_manifest

log = logging.getLogger(__name__)

IMAGES, SIZE, NOISE = 1500, 64, 0.1  # of the synthetic X-rays
Finding = dict[str, Any]


@takes(AblateConfig)
def ablate(spark: SparkSession | None, config: AblateConfig) -> Finding:
    """Train and score the base and each lever over the seeds, write ``OUT/ablation.html``, ``.json`` and ``.parquet``;
    return what the JSON holds.

    Raises UserError for what the user can mend, before anything is trained.
    """
    out, levers = locate(config.out), read_levers(config.levers)
    store = locate(config.data) if config.data else out / "store"
    manifest = read_manifest(store) if config.data else None
    for lever in (None, *levers.levers):
        given = check_training(settings_of(config, levers, lever, 0, store, out))
        check_sizes(given, manifest.image_size if manifest else SIZE)
    if manifest and not manifest.splits[config.split].images:
        raise UserError(f"--split={config.split} of {store} has no images")
    out.make_directory(config.private)
    with Lock(out, "--out", "ablation"):
        stages = Stages(out / "stages.json")
        spark = start_session(spark, "ablate")
        if not config.data:
            make_synthetic(spark, stages, out, store, config)
        scored: dict[str, list[RunFolder]] = {
            BASE: [],
            **{lever.name: [] for lever in levers.levers},
        }
        for seed in range(config.seeds):
            scored[BASE].append(trained(spark, config, stages, levers, None, seed, store, out))
            for lever in levers.levers:
                scored[lever.name].append(
                    scored_otherwise(spark, config, stages, levers, lever, seed, store, out) if lever.tta
                    else trained(spark, config, stages, levers, lever, seed, store, out)
                )  # fmt: skip
        found = summary(config, levers, scored, store, stages.seconds)
        (out / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "ablation.parquet").write_table(
            pa.Table.from_pandas(table_of(found), preserve_index=False)
        )
        (out / "ablation.html").write_text(ablation_page(found))
    log.info(ablation_text(found))
    log.info("written: %s", out / "ablation.html")
    return found


def folder_of(out: Location, lever: Lever | None, seed: int) -> RunFolder:
    """Where a run, or its scores, are."""
    return run_folder(str(out / "runs" / f"{lever.folder if lever else BASE}-seed-{seed}"))


def settings_of(
    config: AblateConfig, levers: Levers, lever: Lever | None, seed: int, store: Location, out: Location
) -> dict[str, Any]:  # fmt: skip
    """The settings of a training."""
    given = levers.settings(lever) | {
        "data": str(store), "run": str(folder_of(out, lever, seed)), "seed": seed, "private": config.private,
    }  # fmt: skip
    return given | ({"num_proc": config.num_proc} if config.num_proc else {})


def make_synthetic(
    spark: SparkSession, stages: Stages, out: Location, store: Location, config: AblateConfig
) -> None:
    """A store of synthetic X-rays with label noise, and lookalikes on the other side; the test list has true labels."""
    release = out / "release"
    if not (release / "test_list.txt").is_file():
        release.delete_directory()
        write_release(
            out=str(release), images=IMAGES, size=SIZE, label_noise=NOISE, lookalikes=True
        )
    stages.run(
        "ingest",
        lambda: ingest(
            spark, images=(str(release / "images"),), labels=(str(release / "Data_Entry_2017.csv"),),
            split_lists=str(release), split="official", size=SIZE, out=str(store), private=config.private,
        ),
    )  # fmt: skip


def trained(
    spark: SparkSession, config: AblateConfig, stages: Stages, levers: Levers, lever: Lever | None,
    seed: int, store: Location, out: Location,
) -> RunFolder:  # fmt: skip
    """The base or a lever trained with a seed and scored, as far as that is not done."""
    run = folder_of(out, lever, seed)
    name = f"{lever.name if lever else BASE}, seed {seed}"
    given = settings_of(config, levers, lever, seed, store, out)
    stages.run(f"train {name}", lambda: train(spark, **given))
    if not is_scored(run, [run], config.split):
        stages.run(
            f"evaluate {name}",
            lambda: evaluate(
                spark, data=str(store), run=(str(run),), split=config.split, private=config.private,
                model=own_network(given),
            ),
        )  # fmt: skip
    return run


def scored_otherwise(
    spark: SparkSession, config: AblateConfig, stages: Stages, levers: Levers, lever: Lever, seed: int,
    store: Location, out: Location,
) -> RunFolder:  # fmt: skip
    """The base's model of a seed, scored with a lever of evaluation."""
    place, base = folder_of(out, lever, seed), folder_of(out, None, seed)
    if not is_scored(place, [base], config.split):
        stages.run(
            f"evaluate {lever.name}, seed {seed}",
            lambda: evaluate(
                spark, data=str(store), run=(str(base),), out=str(place), split=config.split, tta=lever.tta,
                private=config.private, model=own_network(levers.base),
            ),
        )  # fmt: skip
    return place


def own_network(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The network of the user's own that a training names, for its evaluation."""
    name = str(given.get("model", ""))
    return (name,) if ":" in name else ()


def summary(
    config: AblateConfig, levers: Levers, scored: Mapping[str, Sequence[RunFolder]], store: Location,
    seconds: Mapping[str, float],
) -> Finding:  # fmt: skip
    """What the JSON file holds: no name of a host, a path or a patient."""
    manifest, first = read_manifest(store), read_lineage(scored[BASE][0])
    figures = {
        name: [figures_of(place, config.split) for place in places]
        for name, places in scored.items()
    }
    base = figures[BASE]
    return {
        "split": config.split, "synthetic": manifest.synthetic > 0, "label_noise": 0.0 if config.data else NOISE,
        "store_fingerprint": manifest.fingerprint, "size": manifest.image_size,
        "images": {name: split.images for name, split in manifest.splits.items()},
        "seeds": config.seeds, "ranks": len(first["ranks"]),
        "base": {
            "settings": without_paths(levers.base),
            "aurocs": [each["auroc"] for each in base], "mean": mean_of([each["auroc"] for each in base]),
        },
        "levers": {
            lever.name: {"changes": without_paths(lever.settings) or {"tta": ",".join(lever.tta)}} | effect(figures[lever.name], base)
            for lever in levers.levers
        },
        "seconds": sum(seconds.values()),
        "versions": {"chexspark": first["chexspark"], "python": first["python"], **first["packages"]},
    }  # fmt: skip


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they may be shown to others: a file is called one, and not by its path."""
    known = {"weights": (IMAGENET, RANDOM), "recipe": recipe_names()}
    return {
        name: "a file"
        if name in known and str(value).partition("/")[0] not in known[name]
        else value
        for name, value in settings.items()
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def effect(on: Sequence[Finding], off: Sequence[Finding]) -> Finding:
    """What a lever does, from figures with and without it, seed by seed."""
    low, difference, high = paired([each["auroc"] for each in on], [each["auroc"] for each in off])
    return {
        "aurocs": [each["auroc"] for each in on], "mean": mean_of([each["auroc"] for each in on]),
        "difference": difference, "low": low, "high": high,
        "findings": {
            name: paired([each["findings"].get(name) for each in on], [each["findings"][name] for each in off])[1]
            for name in off[0]["findings"]
        },
    }  # fmt: skip


def paired(
    on: Sequence[float | None], off: Sequence[float | None]
) -> tuple[float | None, float | None, float | None]:
    """The mean of paired differences, `on` − `off`, between the ends of its 95 % interval, by Student's t.

    None of what is not known: pairs of which one is missing do not count, and an interval needs two.
    """
    differences = [a - b for a, b in zip(on, off, strict=True) if a is not None and b is not None]
    if not differences:
        return None, None, None
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return None, mean, None
    half = float(student.ppf(0.975, len(differences) - 1))
    half *= statistics.stdev(differences) / len(differences) ** 0.5
    return mean - half, mean, mean + half


def table_of(found: Finding) -> pd.DataFrame:
    """A row per lever."""
    kept = ("mean", "difference", "low", "high")
    return pd.DataFrame(
        [
            {"lever": name, "changes": json.dumps(lever["changes"]), "seeds": found["seeds"],
             **{key: lever[key] for key in kept}}
            for name, lever in found["levers"].items()
        ]
    )  # fmt: skip
