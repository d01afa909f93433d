import inspect
from pathlib import Path

import pytest

from chexspark import ingest, train
from chexspark.arguments import parse_command_line, read_recipe, recipe_names
from chexspark.config import IngestConfig, ReportConfig, TrainConfig
from chexspark.errors import UserError
from chexspark.models import MODELS
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
        build(TrainConfig, {"data": "d", "run": "r"} | read_recipe(name))


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
    values = read_recipe(str(path))
    assert values["model"] in MODELS
    assert values["batch_size"] % values.get("accumulate", 1) == 0
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Source:" in line for line in head) and any("Expected:" in line for line in head)


def test_the_recipes_are_those_of_the_papers():
    assert {path.stem for path in RECIPES} == {
        "aidoc-poc", "chexnet", "dell-gpu", "large-batch", "large-batch-lamb", "large-image",
        "surfsara-cyclic",
    }  # fmt: skip
