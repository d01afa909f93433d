import dataclasses
import inspect
from pathlib import Path

import pytest

from chexspark import ingest, train
from chexspark.arguments import parse_command_line
from chexspark.commands import COMMANDS
from chexspark.config import (
    ExplainConfig,
    IngestConfig,
    PhantomConfig,
    ReportConfig,
    TrainConfig,
)
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.models import MODELS
from chexspark.recipe_files import Expected, members_of, read_expected, read_recipe, recipe_names
from chexspark.settings import build

NEEDED = ["--data", "d", "--run", "r"]


def test_default_then_recipe_then_flag(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 3\nbatch_size: 64\n")
    flags = [*NEEDED, "--recipe", str(recipe), "--epochs", "5"]
    config = parse_command_line(TrainConfig, "", flags)
    assert (config.epochs, config.batch_size, config.learning_rate) == (5, 64, 1e-3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("epoch: 3", "unknown setting 'epoch'; did you mean epochs"),
        ("data: elsewhere", "unknown setting 'data'"),
        ("- 3", "lines of the form"),
        ("a: [", "is not YAML"),
        ("epochs: many", "recipe.yaml: epochs is 'many', but must be of type int"),
        ("epochs: true", "epochs is True, but must be of type int"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        parse_command_line(TrainConfig, "", [*NEEDED, "--recipe", str(recipe)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "d"], "--run is missing: folder of this run"),
        (["--dat", "d"], "unknown option --dat; did you mean --data"),
        (["--data", "d", "--run", ""], "--run is empty"),
        ([*NEEDED, "--epochs", "0"], "--epochs is 0, but must be at least 1"),
        ([*NEEDED, "--epochs", "x"], "invalid int value: 'x'"),
        ([*NEEDED, "--learning-rate", "0"], "must be more than 0"),
        ([*NEEDED, "--plateau-factor", "2"], "must be at most 1"),
        ([*NEEDED, "--epoch", "2"], "unknown option --epoch; did you mean --epochs"),
        ([*NEEDED, "--recipe", "/nowhere.yaml"], "there is no such file"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(flags, message):
    with pytest.raises(UserError, match=message):
        parse_command_line(TrainConfig, "", flags)


@pytest.mark.parametrize(
    "config_class, values, message",
    [
        (TrainConfig, {"focal_gamma": 1.0}, "--focal-gamma has no effect with --loss cross_entropy"),
        (TrainConfig, {"clip": 0.1, "loss": "focal"}, "--clip has no effect with --loss focal"),
        (TrainConfig, {"cycle_epochs": 1.0}, "--cycle-epochs has no effect with --schedule plateau"),
        (TrainConfig, {"plateau_patience": 2, "schedule": "cosine"}, "--plateau-patience has no"),
        (TrainConfig, {"momentum": 0.5}, "with --optimizer adam: leave it out, or give --optimizer sgd"),
        (TrainConfig, {"fusion_mb": 8, "autotune": True}, "--fusion-mb has no effect with --autotune"),
        (IngestConfig, {"split": "official", "split_file": "f"}, "--split-file contradicts --split:"),
        (IngestConfig, {"split_lists": "f"}, "--split-lists has no effect with --split random"),
        (IngestConfig, {"split_file": "f", "split_seed": 1}, "--split-file contradicts --split-seed"),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_or_contradict_are_refused(config_class, values, message):
    needed = {"data": "d", "run": "r"}
    if config_class is IngestConfig:
        needed = {"images": "i", "labels": "l", "out": "o"}
    with pytest.raises(UserError, match=message):
        build(config_class, needed | values)


def test_a_flag_over_a_recipe_takes_what_loses_its_effect_along(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("schedule: cyclic\ncycle_epochs: 4\nepochs: 3\n")
    flags = [*NEEDED, "--recipe", str(recipe)]
    assert parse_command_line(TrainConfig, "", flags).cycle_epochs == 4
    config = parse_command_line(TrainConfig, "", [*flags, "--schedule", "cosine"])
    assert (config.schedule, config.cycle_epochs, config.epochs) == ("cosine", 2.0, 3)
    with pytest.raises(UserError, match="--cycle-epochs has no effect"):
        parse_command_line(TrainConfig, "", [*flags, "--schedule", "cosine", "--cycle-epochs", "3"])


def test_an_old_name_is_answered_with_the_new_one():
    with pytest.raises(UserError, match="--plan is now called --dry-run"):
        parse_command_line(TrainConfig, "", [*NEEDED, "--plan"])
    with pytest.raises(UserError, match="'plan' is now called --dry-run"):
        build(TrainConfig, {"data": "d", "run": "r", "plan": True})


def test_every_path_is_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    given = {"images": ["a", "b/*.png", "s3://bucket/c"], "labels": "~/l.csv", "out": "file:///x/y"}
    config = build(IngestConfig, given)
    assert config.images == (f"{tmp_path}/a", f"{tmp_path}/b/*.png", "s3://bucket/c")
    assert (config.labels, config.out, config.boxes) == (("/home/somebody/l.csv",), "/x/y", None)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_setting_that_is_a_path_is_forgotten(command):
    """Names that mean places in one command are places in all, but for names of images in a store."""
    places = {"data", "space", "run", "out", "images", "labels", "boxes", "weights", "against", "predictions",
              "validation_predictions", "split_lists", "split_file", "nih", "levers"}  # fmt: skip
    for field in dataclasses.fields(command.config):
        other = field.name == "images" and command.config in (ExplainConfig, PhantomConfig)
        assert bool(field.metadata.get("path")) == (field.name in places and not other), field.name


def test_keywords_are_checked_like_flags():
    with pytest.raises(UserError, match="unknown setting 'sizes'; did you mean size"):
        build(IngestConfig, {"images": "i", "labels": "l", "out": "o", "sizes": 3})
    with pytest.raises(UserError, match="--run is missing"):
        build(ReportConfig, {})


def test_notebook_functions_show_their_settings():
    assert "split_seed" in inspect.signature(ingest).parameters
    assert inspect.signature(train).parameters["epochs"].default == 10
    assert "validation loss stalls" in train.__doc__


def test_every_recipe_is_valid():
    assert recipe_names() == sorted(path.stem for path in RECIPES)
    for name in recipe_names():
        for training in members_of(name):
            build(TrainConfig, {"data": "d", "run": "r"} | read_recipe(training))


def test_an_ensemble_is_trained_member_by_member(tmp_path):
    name = "official-ensemble"
    with pytest.raises(
        UserError, match=f"{name} is an ensemble, of a training each: {name}/densenet121-224, "
    ):
        read_recipe(name)
    best = read_recipe("official-best")
    assert read_recipe(f"{name}/densenet121-320") == best
    other = read_recipe(f"{name}/convnext_tiny-384")
    assert other == best | {"model": "convnext_tiny", "learning_rate": 5e-5, "weight_decay": 1e-5}
    assert read_expected(f"{name}/densenet121-224").image_size == 224
    assert read_expected(f"{name}/densenet121-320") == read_expected("official-best")
    with pytest.raises(
        UserError,
        match="has no member 'densenet121-22'; did you mean official-ensemble/densenet121-224",
    ):
        read_recipe(f"{name}/densenet121-22")
    place = tmp_path / "mine.yaml"
    for text, told in (
        ("members: {a: {epochs: 3}}", "an ensemble has members, two or more, and nothing beside them"),
        ("members: {a: {epochs: 3}, b: {}}\nepochs: 4", "an ensemble has members, two or more, and nothing"),
        ("members: {a: 3, b: {}}", "a must hold lines"),
        ("members: {a: {recipe: official-ensemble}, b: {}}", "its recipe, official-ensemble, is an ensemble itself"),
        ("members: {a: {recipe: MINE/b}, b: {}}", "there is no such file"),
        ("members: {a: {epoch: 3}, b: {}}", "unknown setting 'epoch'"),
    ):  # fmt: skip
        place.write_text(text.replace("MINE", str(place)))
        with pytest.raises(UserError, match=told):
            read_recipe(f"{place}/a")
    place.write_text("members: {a: {epochs: 3}, b: {}}")
    assert read_recipe(f"{place}/a") == {"epochs": 3}


def test_a_recipe_goes_by_its_name_or_by_a_path(tmp_path, monkeypatch):
    (tmp_path / "chexnet.yaml").write_text("epochs: 3")
    (tmp_path / "chexnet").write_text("epochs: 4")
    monkeypatch.chdir(tmp_path)
    assert read_recipe("chexnet")["epochs"] == 10
    assert read_recipe("chexnet.yaml")["epochs"] == 3
    assert read_recipe("./chexnet")["epochs"] == 4
    with pytest.raises(
        UserError, match=r"did you mean chexnet\? \(recipes: aidoc-poc, chexnet, "
    ) as e:
        read_recipe("chexnett")
    assert "\n" not in str(e.value)


def test_a_number_that_yaml_takes_for_text_is_a_number_all_the_same(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1e-4")
    flags = [*NEEDED, "--recipe", str(tmp_path / "recipe.yaml")]
    assert parse_command_line(TrainConfig, "", flags).learning_rate == 1e-4


def test_a_recipe_that_is_not_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="is not YAML"):
        read_recipe(str(tmp_path / "recipe.yaml"))


RECIPES = sorted((Path(__file__).parent.parent / "chexspark" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_where_it_comes_from_and_what_to_expect(path):
    for training in members_of(str(path)):
        values = read_recipe(training)
        assert values["model"] in MODELS
        assert values["batch_size"] % values.get("accumulate", 1) == 0
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Source:" in line for line in head) and any("Expected:" in line for line in head)


def test_the_recipes_are_those_of_the_papers():
    assert {path.stem for path in RECIPES} == {
        "aidoc-poc", "chexnet", "chexpert", "dell-gpu", "large-batch", "large-batch-lamb", "large-image",
        "official-best", "official-ensemble", "surfsara-cyclic",
    }  # fmt: skip


def test_a_recipe_says_what_it_expects(tmp_path):
    assert read_expected("chexnet") == Expected(224, "imagenet", FINDINGS)
    assert read_expected("surfsara-cyclic").weights == "run"
    assert read_expected("large-batch") == Expected()
    assert "expects" not in read_recipe("chexnet")
    for text, message in (
        ("[1]", r"expects must hold lines of image_size, weights, findings"),
        ("{size: 3}", r"expects must hold lines of image_size, weights, findings"),
        ("{image_size: big}", "image_size is 'big', and not a number of pixels"),
        ("{weights: /x.h5}", "weights is '/x.h5', but must be one of imagenet, run"),
        ("{findings: Mass}", "findings is no list"),
        ("{findings: [Mass, Mass]}", "findings has Mass twice"),
    ):
        (tmp_path / "recipe.yaml").write_text(f"epochs: 3\nexpects: {text}\n")
        for read in (read_recipe, read_expected):
            with pytest.raises(UserError, match=message):
                read(str(tmp_path / "recipe.yaml"))
