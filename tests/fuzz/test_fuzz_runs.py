"""Run folders with hostile files: each command refuses them in one line, or works; nothing of theirs is run."""

import json
import math
import shutil
import zipfile

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from spoiling import LONGEST, Tally

from chexspark import evaluate, explain, export, predict, report
from chexspark.errors import RunFailedError, UserError
from chexspark.evaluation.report import read_evaluated, read_trained
from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.run.folder import METRICS, PREDICTIONS, SUBGROUPS, RunFolder
from chexspark.run.history import history_schema, write_history
from chexspark.run.settings import check_run
from chexspark.storage import locate

TINY = "layout_version: 2\nmodel: vgg16\n"
CANARY = "canary"
DEEP = "[" * 100_000 + "]" * 100_000
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
SETTINGS = {
    "python object": "model: !!python/object/apply:os.system ['touch CANARY']\n",
    "python name": "model: !!python/name:os.system\n",
    "python module": "!!python/object/new:os.system [touch CANARY]\n",
    "aliases": ALIASES, "merge": "a: &a {<<: *a}\n",
    "deep": "model: " + "[" * 10_000 + "]" * 10_000, "deep mappings": "{a: " * 10_000 + "}" * 10_000,
    "bytes": b"\xff\xfe\x00model", "NUL": "model: a\0b\n", "list": "- a\n", "huge": f"layout_version: {'9' * 5000}\n",
    "version": "layout_version: [1]\nmodel: vgg16\n", "version of truth": "layout_version: true\nmodel: vgg16\n",
    "model list": "layout_version: 2\nmodel: [vgg16]\n", "model mapping": "layout_version: 2\nmodel: {a: b}\n",
    "keys": "? [a, b]\n: 1\nmodel: vgg16\n", "path": "layout_version: 2\nmodel: ../../x\n",
    "date": "layout_version: 2999-99-99\nmodel: vgg16\n",
}  # fmt: skip
JSONS = {
    "deep": DEEP, "deep value": f'{{"findings": {DEEP}}}', "list": "[]", "number": "1", "NaN": "NaN",
    "empty": "", "cut": "{", "huge": '{"image_size": ' + "9" * 5000 + "}", "bytes": b"\xff\xff",
}  # fmt: skip
HUGE = 10**400


@pytest.fixture(scope="module")
def run(tmp_path_factory, spark, store):
    """A run of a small model, with history and an evaluation."""
    import tf_keras as keras

    folder = tmp_path_factory.mktemp("hostile") / "run"
    rng = np.random.default_rng(0)
    rows = {
        "image_index": [f"{i}.png" for i in range(40)],
        "patient_id": [f"p{i}" for i in range(40)],
    }
    rows |= {f"prob_{f}": rng.random(40) for f in FINDINGS}
    rows |= {f"label_{f}": rng.integers(0, 2, 40) for f in FINDINGS}
    evaluate(spark, predictions=pd.DataFrame(rows), out=str(folder), bootstrap=100)
    run = RunFolder(locate(str(folder)))
    logits = keras.layers.Dense(len(FINDINGS), name="logits")
    run.best.make_directory()
    keras.Sequential([keras.layers.Input((8,)), logits]).save(run.best_model.path)
    run.best_figures.write_text("{}")
    run.settings.write_text(TINY)
    lineage = {"store_fingerprint": "0", "image_size": 32, "findings": list(FINDINGS), "store": "x",
               "packages": {}, "ranks": [], "chexspark": "1", "python": "3"}  # fmt: skip
    run.lineage.write_text(json.dumps(lineage))
    schema = history_schema(FINDINGS)
    row = {name: 0.5 for name in schema.names} | {"epoch": 0, "steps": 3, "best": True}
    write_history(run, [row], FINDINGS)
    return run


@pytest.fixture
def commands(spark, store, release, tmp_path):
    """Name → a function that gives a run to a command."""
    images = sorted((release / "images").iterdir())[0]
    out = str(tmp_path / "out")
    return {
        "evaluate": lambda run: evaluate(spark, data=store.path, run=run, out=out),
        "predict": lambda run: predict(spark, images=str(images), run=run, out=out + ".parquet"),
        "explain": lambda run: explain(
            spark, run=run, data=store.path, images=images.name, out=out
        ),
        "export": lambda run: export(run=run),
        "report": lambda run: report(run=run),
    }


def read_all(run):
    """What the commands read of a run before they do anything with it."""
    run = RunFolder(locate(run))
    read_trained(run)
    read_evaluated(run, None)
    check_run(run)
    best_model(run)


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["readers", "commands"]
)
def takers(request):
    """What hostile runs are given to: the readers of a run, or all commands, which is slow."""
    return request.getfixturevalue("commands") if request.param else {"readers": read_all}


def campaign(name, run, commands, tmp_path, hostile):
    """Give each hostile run to each command. `hostile`: kind → a function that spoils a copy of the run."""
    tally = Tally(name)
    for kind, spoil in hostile.items():
        for command, call in commands.items():
            folder = tmp_path / "run"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(run.place.path, folder)
            spoil(folder)
            tally.attempt(
                f"{kind}: {command}", lambda call=call, folder=folder: call(str(folder)),
                lambda _: ("works", ""), (UserError, RunFailedError), note=kind,
                longest=LONGEST if command == "readers" else math.inf,  # or it loads TensorFlow anew
            )  # fmt: skip
    assert not list(tmp_path.rglob(CANARY))
    tally.finish()


def text(name, content, tmp_path):
    """A function that puts a text, in which CANARY is a path, in place of a file."""

    def spoil(folder):
        there = (
            content
            if isinstance(content, bytes)
            else content.replace("CANARY", str(tmp_path / CANARY)).encode()
        )
        (folder / name).write_bytes(there)

    return spoil


def test_hostile_settings(run, takers, tmp_path):
    hostile = {kind: text("config.yaml", content, tmp_path) for kind, content in SETTINGS.items()}
    campaign("config.yaml", run, takers, tmp_path, hostile)


def test_hostile_json(run, takers, tmp_path):
    names = ["lineage.json", "evaluation.json", "best/best.json"]
    hostile = {f"{name} {kind}": text(name, content, tmp_path)
               for name in names for kind, content in JSONS.items()}  # fmt: skip
    campaign("JSON", run, takers, tmp_path, hostile)


@pytest.mark.parametrize("name", ["lineage.json", "evaluation.json"])
def test_json_of_wrong_types(run, takers, tmp_path, name):
    """Each value of a file, at the top or of its one split, in turn of other types."""
    whole = json.loads((locate(run.place.path) / name).read_text())
    split = name == "evaluation.json"
    hostile = {}
    for key in whole["given"] if split else whole:
        for kind, value in {"text": "<b>x", "list": [[]], "dict": {"a": [1]}, "none": None, "number": -1,
                            "huge": HUGE, "NaN": float("nan"), "truth": True}.items():  # fmt: skip
            values = json.loads(json.dumps(whole))
            (values["given"] if split else values)[key] = value
            hostile[f"{key} {kind}"] = text(name, json.dumps(values), tmp_path)
    only = {name: takers[name] for name in takers if name in ("readers", "report", "export")}
    campaign(f"types in {name}", run, only, tmp_path, hostile)


def member_changed(change):
    """A function that changes the config of a model's file by `change`."""

    def spoil(folder):
        path = folder / "best" / "model.keras"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(members["config.json"])
        members["config.json"] = json.dumps(change(config)).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return spoil


def test_hostile_models(run, takers, tmp_path):
    code = f"import os; os.system('touch {tmp_path / CANARY}')"

    def with_layer(layer):
        def change(config):
            config["config"]["layers"].append(layer)
            return config

        return member_changed(change)

    def linked(folder):
        with h5py.File(folder / "best" / "model.keras", "w") as file:
            file.attrs["layer_names"] = ["logits"]
            group = file.create_group("logits")
            group.attrs["weight_names"] = ["kernel", "bias"]
            group["kernel"] = h5py.ExternalLink("/etc/passwd", "/x")
            group["bias"] = h5py.SoftLink("/nowhere")

    function = {
        "class_name": "function",
        "config": "system",
        "module": "os",
        "registered_name": "system",
    }
    hostile = {
        "lambda": with_layer({"class_name": "Lambda", "config": {"name": "l", "function": ["gASV", None, None]}}),
        "function": with_layer({"class_name": "Dense", "config": {"name": "d", "activation": function}}),
        "module": with_layer({"class_name": "Popen", "module": "subprocess", "registered_name": "Popen",
                              "config": {"name": "p", "args": ["touch", str(tmp_path / CANARY)]}}),
        "code": with_layer({"class_name": "Dense", "config": {"name": code, "kernel_initializer": code}}),
        "no layers": member_changed(lambda config: {"config": []}),
        "deep": text("best/model.keras", DEEP, tmp_path), "links": linked,
        "no file": lambda folder: (folder / "best" / "model.keras").unlink(),
    }  # fmt: skip
    campaign("models", run, takers, tmp_path, hostile)


def test_hostile_tables(run, takers, tmp_path):
    markup = "<script>alert(1)</script>|\n# x"

    def table_of(place, change):
        def spoil(folder):
            here = locate(str(folder / place))
            here.write_table(change(here.read_table()))

        return spoil

    def set_column(name, values):
        def change(table):
            column = pa.array(values(len(table)))
            return table.set_column(table.schema.get_field_index(name), name, column)

        return change

    hostile = {}
    for place, columns in {
        "history": ["epoch", "best", "val_auroc", "learning_rate", "val_auroc_Mass"],
        f"{METRICS}/split=given": ["finding", "auroc"],
        f"{SUBGROUPS}/split=given": ["subgroup", "finding"],
        f"{PREDICTIONS}/split=given": ["image_index", "patient_id", "prob_Mass", "label_Mass"],
    }.items():
        for name in columns:
            for kind, values in {
                "markup": lambda n: [markup] * n, "none": lambda n: pa.nulls(n, pa.string()),
                "lists": lambda n: [[1, 2]] * n, "huge": lambda n: [1e308] * n, "NaN": lambda n: [float("nan")] * n,
                "bytes": lambda n: [b"\xff\x00"] * n, "structs": lambda n: [{"a": 1}] * n,
                "dates": lambda n: pa.array([2**50] * n, pa.timestamp("ms")),
            }.items():  # fmt: skip
                hostile[f"{place} {name} {kind}"] = table_of(place, set_column(name, values))
            hostile[f"{place} {name} dropped"] = table_of(
                place, lambda t, name=name: t.drop([name])
            )
        hostile[f"{place} no rows"] = table_of(place, lambda table: table.slice(0, 0))
        hostile[f"{place} no Parquet"] = text(f"{place}/part-00000.parquet", "x", tmp_path)
    only = {name: takers[name] for name in takers if name in ("readers", "report")}
    campaign("tables", run, only, tmp_path, hostile)
