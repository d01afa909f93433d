"""Recipes: files of settings of training, one experiment each, and what it expects. Runs on the driver.

In: the name of one of chexspark's own, or a path. Out: its settings, and what else the experiment was begun with
(`Expected`), of which settings say nothing: the size of the images, the weights to start from, the findings.

    expects:
      image_size: 224
      weights: imagenet  # or run: one of an earlier training
      findings: [Mass, Edema]

An ensemble is a recipe of several trainings, ``members``, each with settings of its own, or over another recipe's; one of
them is called ``RECIPE/MEMBER``:

    members:
      densenet121: {recipe: official-best}
      convnext: {recipe: official-best, model: convnext_tiny}
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexspark.config import TrainConfig
from chexspark.errors import UserError, closest
from chexspark.findings import names_fault
from chexspark.settings import check_value, value_type
from chexspark.storage import Location, locate
from chexspark.text_files import read_yaml

RECIPES = Path(__file__).with_name("recipes")
EXPECTS, MEMBERS = "expects", "members"
WEIGHTS = ("imagenet", "run")
NOT_HERE = ("data", "run", "recipe")  # settings that a recipe does not have


@dataclass(frozen=True)
class Expected:
    """What an experiment was begun with; None or nothing where the recipe does not say it."""

    image_size: int | None = None
    weights: str | None = None  # of WEIGHTS
    findings: tuple[str, ...] = ()


def recipe_names() -> list[str]:
    """The recipes that come with chexspark, one experiment each."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def members_of(uri: str) -> list[str]:
    """The trainings of an ensemble, ``RECIPE/MEMBER`` each; of another recipe itself. Raises UserError as `read_recipe`."""
    values = read_yaml(find_recipe(uri), f"--recipe={uri}")
    members = values.get(MEMBERS)
    if members is None:
        return [uri]
    if not isinstance(members, dict) or len(members) < 2 or set(values) != {MEMBERS}:
        raise UserError(
            f"--recipe={uri}: an ensemble has {MEMBERS}, two or more, and nothing beside them"
        )
    return [f"{uri}/{name}" for name in members]


def values_of(uri: str) -> dict[str, Any]:
    """What a recipe's file says, of a member over what the recipe that it names says. Raises UserError."""
    whole, _, member = uri.rpartition("/")
    if whole and (whole in recipe_names() or locate(whole).is_file()):
        names = members_of(whole)
        if uri not in names:
            raise UserError(
                f"--recipe={uri}: {whole} has no member {member!r}{closest(uri, names)} ({', '.join(names)})"
            )
        values = read_yaml(find_recipe(whole), f"--recipe={whole}")[MEMBERS][member]
        if not isinstance(values, dict):
            raise UserError(f"--recipe={uri} must hold lines of name: value")
        below = values.pop("recipe", None)
        if below is None:
            return values
        under = read_yaml(find_recipe(str(below)), f"--recipe={below}")
        if MEMBERS in under:
            raise UserError(f"--recipe={uri}: its recipe, {below}, is an ensemble itself")
        return under | values
    names = members_of(uri)
    if names != [uri]:
        raise UserError(
            f"--recipe={uri} is an ensemble, of a training each: {', '.join(names)} "
            "(chexspark reproduce trains them all)"
        )
    return read_yaml(find_recipe(uri), f"--recipe={uri}")


def find_recipe(given: str) -> Location:
    """The file of a recipe: `given` is the name of one of `recipe_names`, or a path.

    Raises UserError when there is neither.
    """
    if given in recipe_names():
        return locate(str(RECIPES / f"{given}.yaml"))
    place = locate(given)
    if not place.is_file():
        raise UserError(
            f"--recipe={given}: there is no such file, and no recipe of that name"
            f"{closest(given, recipe_names())} (recipes: {', '.join(recipe_names())})"
        )
    return place


def read_recipe(uri: str) -> dict[str, Any]:
    """Read a YAML recipe, by name or path: settings of `TrainConfig`, but not where data and run are.

    Raises UserError for one that is not there, or a setting that is none.
    """
    values = values_of(uri)
    expected_of(uri, values.pop(EXPECTS, None))
    fields = {f.name: f for f in dataclasses.fields(TrainConfig) if f.name not in NOT_HERE}
    for name in values:
        if name not in fields:
            raise UserError(
                f"--recipe={uri}: unknown setting {name!r}{closest(str(name), fields)} "
                f"(valid: {', '.join(fields)}, {EXPECTS})"
            )
    # YAML takes 1e-3, without a point, for a text.
    values = {n: as_number(v) if value_type(fields[n]) is float else v for n, v in values.items()}
    for name, value in values.items():
        check_value(fields[name], value, f"--recipe={uri}: {name}")
    return values


def read_expected(uri: str) -> Expected:
    """What a recipe expects. Raises UserError as `read_recipe` does."""
    return expected_of(uri, values_of(uri).get(EXPECTS))


def expected_of(uri: str, values: Any) -> Expected:
    """The `expects` of a recipe. Raises UserError for what is none."""
    name = f"--recipe={uri}: {EXPECTS}"
    if values is None:
        return Expected()
    valid = [field.name for field in dataclasses.fields(Expected)]
    if not isinstance(values, dict) or not set(values) <= set(valid):
        raise UserError(f"{name} must hold lines of {', '.join(valid)}")
    size, weights = values.get("image_size"), values.get("weights")
    if size is not None and (type(size) is not int or size < 1):
        raise UserError(f"{name}: image_size is {size!r}, and not a number of pixels")
    if weights is not None and weights not in WEIGHTS:
        raise UserError(f"{name}: weights is {weights!r}, but must be one of {', '.join(WEIGHTS)}")
    findings = values.get("findings")
    fault = "is no list" if not isinstance(findings, list) else names_fault(findings)
    if findings is not None and fault:
        raise UserError(f"{name}: findings {fault}")
    return Expected(size, weights, tuple(findings or ()))


def as_number(value: Any) -> Any:
    """The float that a text spells, or the value itself."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
