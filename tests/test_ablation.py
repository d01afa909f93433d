"""What each lever of training does: the file of levers, the paired intervals, the page, a whole small ablation."""

import json

import numpy as np
import pandas as pd
import pytest
import small_network
from scipy.stats import ttest_rel

from chexspark.config import AblateConfig
from chexspark.errors import UserError
from chexspark.experiment.ablation import ablate, effect, paired, settings_of, without_paths
from chexspark.experiment.ablation_page import ablation_page, ablation_text, verdict
from chexspark.experiment.levers import read_levers
from chexspark.storage import locate


def levers_in(tmp_path, text):
    place = tmp_path / "levers.yaml"
    place.write_text(text)
    return read_levers(str(place))


def test_chexspark_s_own_levers_are_whole_and_each_changes_something():
    own = read_levers(None)
    names = [lever.name for lever in own.levers]
    assert {
        "mirror",
        "random resized crop",
        "moving average",
        "asymmetric loss",
        "tta crops",
    } <= set(names)
    config = AblateConfig(out="out")
    place = locate("/nowhere")
    base = settings_of(config, own, None, 3, place, place)
    assert base["seed"] == 3 and base["run"].endswith("runs/base-seed-3")
    for lever in own.levers:
        given = settings_of(config, own, lever, 3, place, place)
        changed = {key for key in given if given[key] != base.get(key)} - {"run"}
        assert bool(changed) != bool(lever.tta), lever.name


def test_a_lever_takes_away_what_has_no_effect_beside_it(tmp_path):
    levers = levers_in(
        tmp_path,
        "base: {optimizer: sgd, momentum: 0.8, learning_rate: 1e-2}\nlevers:\n  Adam: {optimizer: adam}\n",
    )
    assert levers.settings(None) == {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.01}
    assert levers.settings(levers.levers[0]) == {"optimizer": "adam", "learning_rate": 0.01}


@pytest.mark.parametrize("text, told", [
    ("levers: {}", "has no levers"),
    ("leavers: {a: {crop: 0.5}}", "'leavers' is neither base nor levers"),
    ("base: 3\nlevers: {a: {crop: 0.5}}", "must hold lines"),
    ("levers: {a: {cropp: 0.5}}", "a has 'cropp', which is no setting.*crop"),
    ("levers: {a: {crop: 7}}", "a: crop"),
    ("levers: {a: {seed: 7}}", "a has seed, which is not a lever's"),
    ("levers: {a: {recipe: chexnet}}", "a has recipe, which is not a lever's"),
    ("levers: {a: {}}", "a changes nothing"),
    ("levers: {a/b: {crop: 0.5}}", "a/b is no name of a lever"),
    ("levers: {a b: {crop: 0.5}, a-b: {crop: 0.6}}", "two levers have one name"),
    ("levers: {Base: {crop: 0.5}}", "or one is called base"),
    ("levers: {a: {tta: flips}}", "tta is 'flips', but must be of flip, crops, scales"),
    ("levers: {a: {tta: flip, crop: 0.5}}", "stands alone"),
    ("base: {recipe: nobody}\nlevers: {a: {crop: 0.5}}", "no recipe of that name"),
])  # fmt: skip
def test_what_are_no_levers_is_told_in_a_line(tmp_path, text, told):
    with pytest.raises(UserError, match=told) as raised:
        levers_in(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_paired_intervals_are_those_of_scipy():
    random = np.random.default_rng(5)
    off = random.normal(0.8, 0.02, 5)
    on = off + random.normal(0.01, 0.004, 5)
    low, mean, high = paired(list(on), list(off))
    whole = ttest_rel(on, off).confidence_interval(0.95)
    assert (low, high) == pytest.approx((whole.low, whole.high))
    assert mean == pytest.approx((on - off).mean())
    # 0.01, 0.02, 0.03: mean 0.02, standard error 0.01 / √3, t of two degrees of freedom 4.3027.
    assert paired([0.51, 0.62, 0.73], [0.5, 0.6, 0.7]) == pytest.approx(
        (-0.004841, 0.02, 0.044841), abs=1e-6
    )


def test_pairs_of_which_one_is_missing_do_not_count():
    assert paired([0.6, None], [0.5, 0.5]) == (None, pytest.approx(0.1), None)
    assert paired([None], [0.5]) == (None, None, None)


def found():
    def seeds(*values):
        return [{"auroc": value, "findings": {"Mass": value - 0.1}} for value in values]

    off = seeds(0.80, 0.81, 0.79)
    levers = {
        "crop": seeds(0.83, 0.84, 0.825),
        "mirror": seeds(0.77, 0.785, 0.76),
        "tone": seeds(0.81, 0.8, 0.79),
    }
    return {
        "split": "test", "synthetic": True, "label_noise": 0.1, "store_fingerprint": "f00", "size": 64,
        "images": {"train": 10, "val": 2, "test": 3}, "seeds": 3, "ranks": 1, "seconds": 61.0,
        "base": {"settings": {"epochs": 2}, "aurocs": [0.80, 0.81, 0.79], "mean": 0.8},
        "levers": {name: {"changes": {name: 1}} | effect(on, off) for name, on in levers.items()},
        "versions": {"python": "3.11"},
    }  # fmt: skip


def test_page_and_table_tell_help_harm_and_nothing():
    figures = found()
    assert [verdict(lever) for lever in figures["levers"].values()] == [
        "higher",
        "lower",
        "no difference seen",
    ]
    assert figures["levers"]["crop"]["findings"]["Mass"] == pytest.approx(0.0317, abs=1e-4)
    page, text = ablation_page(figures), ablation_text(figures)
    for shown in (page, text):
        assert "+0.0317" in shown and "−0.0283" in shown and "no difference seen" in shown
    assert "<b>1 of 3</b>" in page and "0.2 would seem to" in page and page.count("<svg") == 1
    assert "chosen on the test split" in page and "10 % of the labels" in page
    assert "chosen on the test split" not in ablation_page(figures | {"split": "val"})


def test_no_path_is_shown():
    given = {"recipe": "/home/me/r.yaml", "weights": "/home/me/w.h5", "epochs": 3}
    assert without_paths(given) == {"recipe": "a file", "weights": "a file", "epochs": 3}
    known = {"recipe": "official-ensemble/densenet121-224", "weights": "imagenet"}
    assert without_paths(known) == known


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    place = tmp_path / "levers.yaml"
    place.write_text("base: {recipe: chexnet}\nlevers: {a: {flip: false}}\n")
    with pytest.raises(UserError, match="starts from ImageNet's weights"):
        ablate(None, out=str(tmp_path / "out"), levers=str(place))
    place.write_text("base: {model: nobody:build}\nlevers: {a: {flip: true}}\n")
    with pytest.raises(UserError, match="nobody"):
        ablate(None, out=str(tmp_path / "out"), levers=str(place))
    place.write_text("base: {batch_size: 16}\nlevers: {a: {accumulate: 3}}\n")
    with pytest.raises(UserError, match="--accumulate 3 does not divide it"):
        ablate(None, out=str(tmp_path / "out"), levers=str(place))
    place.write_text("base: {batch_size: 16}\nlevers: {a: {size: 100}}\n")
    with pytest.raises(UserError, match="--size 100 is more than the 64 pixels"):
        ablate(None, out=str(tmp_path / "out"), levers=str(place))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_ablation_is_measured_once_and_its_figures_are_those_of_its_runs(
    spark, tmp_path, monkeypatch
):
    monkeypatch.setattr("chexspark.experiment.ablation.IMAGES", 150)
    monkeypatch.setattr("chexspark.experiment.ablation.SIZE", 32)
    place, out = tmp_path / "levers.yaml", tmp_path / "out"
    network = small_network.written(tmp_path, monkeypatch)
    place.write_text(
        f"base: {{model: {network}, epochs: 1, batch_size: 16, threads: 1}}\n"
        "levers:\n  mirror: {flip: true}\n  tta: {tta: 'flip,crops'}\n"
    )
    given = {"out": str(out), "levers": str(place), "seeds": 2, "num_proc": 1}
    figures = ablate(spark, **given)
    assert list(figures["levers"]) == ["mirror", "tta"] and figures["images"]["test"] > 10
    for name in ("mirror", "tta"):
        of_runs = [
            pd.read_parquet(next((out / "runs" / f"{name}-seed-{seed}").glob("metrics/*test"))).set_index("finding").auroc["mean"]
            for seed in range(2)
        ]  # fmt: skip
        assert figures["levers"][name]["aurocs"] == pytest.approx(of_runs, abs=1e-12)
    assert figures["levers"]["tta"]["aurocs"] != figures["base"]["aurocs"]
    assert json.loads((out / "ablation.json").read_text())["levers"] == figures["levers"]
    assert len(pd.read_parquet(out / "ablation.parquet")) == 2
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    again = ablate(spark, **given)
    assert again["levers"] == figures["levers"]
    assert {
        path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()
    } == runs
