"""Hyper-parameter search: spaces, what Optuna is told, trials that are killed, searches that are resumed."""

import _thread
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml

from chexspark import search, train
from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.storage import locate
from chexspark.tuning import job
from chexspark.tuning.children import Children, Ended, environment, escaped, last_words
from chexspark.tuning.records import SearchFolder, read_records
from chexspark.tuning.space import Choice, Range, read_space
from chexspark.tuning.study import Study

SPACE = """
recipe: chexnet
weights: none
epochs: 3
model: vgg16
learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
batch_size: {low: 8, high: 32, step: 8}
optimizer: [adam, sgd]
momentum: {low: 0.5, high: 0.9}
"""


@pytest.fixture
def space_file(tmp_path):
    """A function from a YAML text to the path of its file."""

    def write(text=SPACE):
        (tmp_path / "space.yaml").write_text(text)
        return str(tmp_path / "space.yaml")

    return write


# Spaces


def test_a_space_has_choices_ranges_and_what_all_trials_have(space_file):
    space = read_space(space_file())
    assert space.searched == {
        "learning_rate": Range(1e-4, 1e-2, True, None, False), "batch_size": Range(8, 32, False, 8, True),
        "optimizer": Choice(("adam", "sgd")), "momentum": Range(0.5, 0.9, False, None, False),
    }  # fmt: skip
    assert space.fixed["epochs"] == 3 and space.fixed["flip"]  # the latter of the recipe
    assert not set(space.fixed) & set(space.searched)


def test_what_has_no_effect_beside_the_others_is_left_out(space_file):
    space = read_space(space_file())
    chosen = {"learning_rate": 1e-3, "batch_size": 8, "optimizer": "adam", "momentum": 0.7}
    given = {"data": "store", "run": "run"}
    assert "momentum" not in space.settings(chosen, given) | space.of_effect(chosen)
    assert space.settings(chosen | {"optimizer": "sgd"}, given)["momentum"] == 0.7
    odd = read_space(space_file("accumulate: [1, 3]\nweights: null\nweights_findings: [Mass]"))
    assert odd.fixed["weights_findings"] == [
        "Mass"
    ]  # a list is the value of a setting that takes several


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs: 3", "has nothing to search"),
        ("learning_rat: [1, 2]", "no setting 'learning_rat'; did you mean learning_rate"),
        ("learning_rate: [0.1]", "learning_rate needs two different values"),
        ("learning_rate: {low: 0.1}", "learning_rate has no high"),
        ("learning_rate: {low: 0.1, high: 0.01}", "low must be less than high"),
        ("learning_rate: {low: 1e-3, high: 0.01}", "is the text '1e-3': YAML's numbers have a point"),
        ("learning_rate: {low: 0.1, high: 0.2, steps: 3}", "has 'steps'; did you mean step"),
        ("learning_rate: {low: 0.1, high: 0.2, log: true, step: 0.1}", "with log must begin above 0, and has no step"),
        ("learning_rate: {low: -1, high: 0.2}", "learning_rate is -1, but must be more than 0"),
        ("batch_size: {low: 1, high: 9, step: 20}", "has step 20"),
        ("batch_size: [8, big]", "batch_size is 'big', but must be of type int"),
        ("optimizer: {low: 1, high: 2}", "optimizer is no number"),
        ("optimizer: [adam, adamm]", "'adamm', but must be one of"),
        ("run: [a, b]", "run is not searched"),
        ("recipe: [a, b]", "recipe is .*, and not a name"),
        ("recipe: chexnett\nepochs: [1, 2]", "no recipe of that name; did you mean chexnet"),
    ],
)  # fmt: skip
def test_a_space_that_is_none_is_refused_in_one_line(space_file, text, message):
    with pytest.raises(UserError, match=message) as raised:
        read_space(space_file(text))
    assert "\n" not in str(raised.value)


def test_mistakes_are_told_before_any_trial(store, space_file, tmp_path):
    given = {"data": store.path, "space": space_file(), "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="--parallel 2 needs --num-proc"):
        search(None, **given, parallel=2)
    with pytest.raises(UserError, match="no module nowhere"):
        search(None, **given | {"space": space_file(SPACE.replace("vgg16", "nowhere:build"))})
    with pytest.raises(UserError, match="clip_norm is -1"):
        search(None, **given | {"space": space_file(SPACE + "clip_norm: -1\n")})
    assert not (tmp_path / "out").exists()
    (tmp_path / "out/other").mkdir(parents=True)
    with pytest.raises(UserError, match="has other in it, but no search"):
        search(None, **given | {"space": space_file()})


# What Optuna is told


def epochs_of(aurocs):
    """As a run tells them: each is the best so far, or not."""
    known = [a or 0 for a in aurocs]
    return [{"epoch": i + 1, "val_auroc": a, "val_loss": 0.1, "best": known[i] > max([-1, *known[:i]])}
            for i, a in enumerate(aurocs)]  # fmt: skip


def record(number, chosen, aurocs, state="done"):
    epochs = epochs_of(aurocs)
    return {"number": number, "state": state, "chosen": chosen, "epochs": epochs, "attempts": [], "reason": "",
            "seconds": 1.0}  # fmt: skip


def test_the_study_is_the_same_from_records(space_file):
    space = read_space(space_file("learning_rate: {low: 0.1, high: 0.9}"))
    before = [record(i, {"learning_rate": i / 10}, [0.6, 0.7], state) for i, state in
              enumerate(("done", "pruned", "failed", "refused", "done"), 1)]  # fmt: skip
    before.append(record(6, {"learning_rate": 0.6}, [None]))
    study = Study(space, before, seed=0, parallel=1, prune=True).study
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE", "FAIL"]  # fmt: skip
    assert study.best_value == 0.7 and study.trials[1].intermediate_values == {1: 0.6, 2: 0.7}
    fresh = [Study(space, before[:n], 0, 1, True).begin().params for n in (0, 1)]
    assert fresh[0] != fresh[1]  # a search that is resumed does not choose again what it chose
    assert Study(space, [], 0, 1, True).begin({"learning_rate": 0.5}).params == {"learning_rate": 0.5}  # fmt: skip


def test_a_trial_below_the_median_is_pruned_but_not_after_its_first_epoch(space_file):
    space = read_space(space_file("learning_rate: {low: 0.1, high: 0.9}"))
    before = [record(i, {"learning_rate": i / 10}, [0.7, 0.8]) for i in range(1, 6)]
    study = Study(space, before, seed=0, parallel=1, prune=True)
    trial = study.begin()
    assert [study.is_to_end(trial, epoch, 0.5) for epoch in (1, 2)] == [False, True]
    good = study.begin()
    assert not study.is_to_end(good, 2, 0.9) and not study.is_to_end(good, 3, None)
    never = Study(space, before, seed=0, parallel=1, prune=False)
    assert not never.is_to_end(never.begin(), 2, 0.1)


# Trials, without their processes


INTERRUPTED = "Ctrl-C"


class Trials(Children):
    """Stands in for the processes: `scripts` are, per attempt, the AUROCs of a trial and how it ends."""

    def __init__(self, scripts):
        super().__init__({})
        self.scripts, self.settings = list(scripts), []
        self.interrupted = threading.Event()  # that is never set: to wait by

    def run(self, settings, on_epoch):
        with self.lock:
            self.settings.append(settings)
            aurocs, ended = self.scripts.pop(0)
        epochs = epochs_of(aurocs)
        for i, epoch in enumerate(epochs, 1):
            if on_epoch(epoch):
                epochs = epochs[:i]
                break
        if ended == INTERRUPTED:
            _thread.interrupt_main()
            while not self.stopping:
                self.interrupted.wait(0.01)
            return Ended(130, "stopped")
        if isinstance(ended, BaseException):
            raise ended
        return Ended(ended, "last words", None if ended else epochs)


@pytest.fixture
def run_search(store, space_file, tmp_path, monkeypatch):
    """A function that runs a search whose trials go by scripts; returns its table, and the trials."""

    def run(scripts, space=SPACE, **given):
        trials = Trials(scripts)
        monkeypatch.setattr(job, "Children", lambda variables: trials)
        usual = {"data": store.path, "space": space_file(space), "out": str(tmp_path / "out")}
        return search(None, **usual | given), trials

    return run


def test_trials_and_their_table_recipe_and_page(run_search, tmp_path):
    scripts = [([0.6, 0.7], 0), ([0.5, 0.9, 0.8], 0), ([None, None], 0), ([0.7], 2)]
    table, trials = run_search(scripts, trials=4, num_proc=2)
    assert table["state"].tolist() == ["done", "done", "failed", "refused"]
    assert table["val_auroc"].tolist()[:2] == [0.7, 0.9] and table["epoch"].tolist()[:2] == [2, 2]
    assert "no AUROC" in table["reason"][2] and table["reason"][3] == "last words"
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "out/trials"), check_dtype=False)  # fmt: skip
    assert [s["run"][-9:] for s in trials.settings] == [f"trial-00{i}" for i in range(1, 5)]
    assert {s["num_proc"] for s in trials.settings} == {2}
    recipe = yaml.safe_load((tmp_path / "out/best.yaml").read_text())
    best = trials.settings[1]
    assert recipe == {
        n: v for n, v in best.items() if n not in ("data", "run", "private", "recipe")
    }
    page = (tmp_path / "out/search.html").read_text()
    assert "0.900" in page and page.count("<svg") == 3 and "trial 2, the best" in page
    chosen = {n: best[n] for n in ("learning_rate", "batch_size", "optimizer")}
    assert all(table.loc[1, n] == value for n, value in chosen.items())
    assert table.loc[table["optimizer"] == "adam", "momentum"].isna().all()


def test_a_killed_trial_is_recorded_and_repeated_once(run_search, capfd):
    scripts = [([0.6], -9), ([0.6, 0.7], 0), ([0.5], 1), ([0.5], -9), ([0.8], 0)]
    table, trials = run_search(scripts, trials=3)
    assert table["state"].tolist() == ["done", "failed", "done"]
    assert table["attempts"].tolist() == [2, 2, 1]
    assert table["reason"][1] == "was killed by signal 9"
    assert trials.settings[0] == trials.settings[1]  # the same run, and so from its checkpoint
    assert "trial 1 was killed by signal 9; once more" in capfd.readouterr().err


def test_a_search_that_was_interrupted_is_resumed(run_search, tmp_path, store):
    with pytest.raises(StoppedError, match="the same command resumes the search"):
        run_search([([0.6, 0.7], 0), ([0.5], INTERRUPTED)], trials=3)
    folder = SearchFolder(locate(str(tmp_path / "out")))
    before = read_records(folder)
    assert [trial["state"] for trial in before["trials"]] == ["done", "running"]
    table, trials = run_search([([0.5, 0.9], 0), ([0.4, 0.4], 0)], trials=3)
    assert table["val_auroc"].tolist() == [0.7, 0.9, 0.4] and table["trial"].tolist() == [1, 2, 3]
    chosen = before["trials"][1]["chosen"]
    assert trials.settings[0]["learning_rate"] == chosen["learning_rate"]
    again, trials = run_search([], trials=3)  # there is nothing left
    pd.testing.assert_frame_equal(table, again)
    more, _ = run_search([([0.95], 0)], trials=4)
    assert len(more) == 4
    with pytest.raises(UserError, match="was begun with another --space"):
        run_search([], trials=5, space=SPACE + "flip: [true, false]\n")
    folder.records.write_text(folder.records.read_text().replace('"done"', '"dome"'))
    with pytest.raises(UserError, match=r"trials.json is damaged"):
        run_search([], trials=4)


def test_trials_at_once_are_as_many_as_asked_for(run_search, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    plain = Trials.run

    def run(self, settings, on_epoch):
        both.wait()  # broken where only one is there
        return plain(self, settings, on_epoch)

    monkeypatch.setattr(Trials, "run", run)
    table, _ = run_search([([0.6], 0)] * 4, trials=4, parallel=2, num_proc=1)
    assert table["state"].tolist() == ["done"] * 4


def test_settings_that_contradict_each_other_are_refused_and_the_search_goes_on(run_search):
    space = "epochs: 1\nmodel: vgg16\nearly_stop: null\nautotune: [true, false]\nfusion_mb: {low: 1, high: 9}\n"  # fmt: skip
    table, _ = run_search([([0.6], 0)] * 3, space=space, trials=3)
    assert table["state"].tolist() == ["done"] * 3  # with autotune the buffer has no effect
    assert table.loc[table["autotune"], "fusion_mb"].isna().all()


def test_without_a_trial_that_ends_well_the_page_says_so(run_search, tmp_path):
    with pytest.raises(RunFailedError, match="no trial was trained to its end"):
        run_search([([None], 0)], trials=1)
    assert "No trial was trained to its end" in (tmp_path / "out/search.html").read_text()


def test_a_mistake_that_the_first_trial_meets_ends_the_search_and_is_mended(run_search):
    with pytest.raises(UserError, match=r"^trial 1: last words"):
        run_search([([], 2)], trials=3)
    table, trials = run_search([([0.6], 0)] * 3, trials=3)  # nothing is lost by it
    assert table["state"].tolist() == ["done"] * 3 and len(trials.settings) == 3


def test_a_fault_of_the_search_itself_ends_it(run_search):
    with pytest.raises(OSError, match="disk"):
        run_search([([0.1], OSError("disk"))], trials=2)


# Processes


def test_spark_s_settings_go_to_trials_in_a_file_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    values = {"spark.master": "local[2]", "spark.a": "b = c \\ d", "spark.e": "ü"}
    with environment(values) as found:
        words = found["PYSPARK_SUBMIT_ARGS"].split()
        assert words[0] == "--properties-file" and "PYSPARK_GATEWAY_PORT" not in found
        assert os.stat(words[1]).st_mode & 0o077 == 0
        code = "from pyspark import SparkConf, SparkContext; SparkContext._ensure_initialized(); print([SparkConf().get(n) for n in ('spark.master', 'spark.a', 'spark.e')])"  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env=found, capture_output=True, text=True)  # fmt: skip
        assert done.stdout.strip() == str(list(values.values())), done.stderr[-1000:]
    assert not Path(words[1]).exists()
    assert escaped("a\nb") == "a\\nb" and last_words("x\nchexspark: why\ny\n") == "why"


def test_a_process_that_dies_at_once_or_within_a_line_is_an_end(monkeypatch, tmp_path):
    def ended(script):
        (tmp_path / "python").write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        return Children(dict(os.environ)).run({"run": "x" * 200_000}, lambda figures: False)

    assert ended("echo no such module; exit 1") == Ended(1, "no such module", None, "no such module\n")  # fmt: skip
    killed = ended('read all; printf \'{"epoch": 1, "val\' >&$3; kill -9 $$')
    assert (killed.code, killed.history) == (-9, None)


NETWORK = """
    import tf_keras as keras

    def build(size, findings):
        layers = [keras.layers.Conv2D(4, 3, strides=4), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(findings)]
        return keras.Sequential([keras.Input((size, size, 1)), *layers])
"""


@pytest.mark.slow
def test_a_trial_and_the_search_are_killed_and_the_table_is_whole(
    store, tmp_path, wait_for, monkeypatch
):
    """Two at once; the store has no test split any more, since no trial looks at it."""
    copy = tmp_path / "store"
    shutil.copytree(store.path, copy)
    shutil.rmtree(copy / "test")
    (tmp_path / "net.py").write_text(textwrap.dedent(NETWORK))
    (tmp_path / "space.yaml").write_text("model: net:build\nepochs: 60\nthreads: 1\nlearning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n")  # fmt: skip
    command = [sys.executable, "-m", "chexspark", "search", "--data", "store", "--space", "space.yaml", "--out", "out",
               "--trials", "4", "--parallel", "2", "--num-proc", "1", "--no-prune"]  # fmt: skip

    def epochs():
        place = tmp_path / "out/trials.json"
        found = json.loads(place.read_text())["trials"] if place.is_file() else []
        return {t["number"]: (t["state"], len(t["epochs"])) for t in found}

    def start():
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def children(process):
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)  # fmt: skip
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "tuning.trial" in line]  # fmt: skip

    first = start()
    wait_for(lambda: any(number >= 1 for _, number in epochs().values()), 200)
    os.kill(children(first)[0], signal.SIGKILL)
    wait_for(lambda: "done" in [state for state, _ in epochs().values()], 200)
    left = children(first)
    first.kill()
    first.communicate()
    second = start()
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said[-3000:]
    assert all(not Path(f"/proc/{pid}").exists() for pid in left)
    table = pd.read_parquet(tmp_path / "out/trials")
    assert table["trial"].tolist() == [1, 2, 3, 4] and set(table["state"]) == {"done"}
    assert table["epochs"].tolist() == [60] * 4 and table["val_auroc"].notna().all()
    assert table["attempts"].max() == 2
    monkeypatch.chdir(tmp_path)
    history = train(None, data=str(copy), run=str(tmp_path / "best"), recipe=str(tmp_path / "out/best.yaml"), num_proc=1,
                    dry_run=True)  # fmt: skip
    assert history.empty
