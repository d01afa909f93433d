"""What a search may choose: a YAML file like a recipe, with choices and ranges for values. Runs on the driver.

    recipe: chexnet
    epochs: 5
    learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
    batch_size: [8, 16, 32]

In: the file. Out: a `Space`, and the settings of a trial for what was chosen.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chexspark.config import TrainConfig
from chexspark.errors import UserError, closest
from chexspark.recipe_files import read_recipe
from chexspark.settings import build, check_value, is_several, value_type
from chexspark.storage import locate
from chexspark.text_files import read_yaml

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
# What the search itself gives, or what is not of a trial.
NOT_HERE = ("data", "run", "dry_run", "at", "on_epoch", "private")
RANGE = ("low", "high", "log", "step")
Values = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`: whole, if the setting is; its logarithm is even with `log`."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool


Dimension = Choice | Range


@dataclass(frozen=True)
class Space:
    """The settings that all trials have, and those that are searched."""

    fixed: Values
    searched: Mapping[str, Dimension]

    def settings(self, chosen: Values, given: Values) -> Values:
        """The settings of a trial: `chosen` of those that are searched, `given` by the search itself.

        Those that have no effect beside the others (momentum with adam, say) are left out. Raises UserError
        for those that contradict each other.
        """
        values = {**self.fixed, **chosen, **given}
        kept = {name: value for name, value in values.items() if has_effect(name, values)}
        build(TrainConfig, kept)
        return kept

    def of_effect(self, chosen: Values) -> Values:
        """Those of the `chosen` settings that have an effect beside the others."""
        values = {**self.fixed, **chosen}
        return {name: value for name, value in chosen.items() if has_effect(name, values)}


def has_effect(name: str, values: Values) -> bool:
    """Whether a setting has one beside the others."""
    only_with = FIELDS[name].metadata.get("only_with", {})
    return all(
        values.get(other, FIELDS[other].default) in kept for other, kept in only_with.items()
    )


def read_space(uri: str) -> Space:
    """The space in a file. Raises UserError for what is none."""
    place = locate(uri)
    name = f"--space={place}"
    if not place.is_file():
        raise UserError(f"{name}: there is no such file")
    found = dict(read_yaml(place, name))
    recipe = found.pop("recipe", None)
    if recipe is not None and not isinstance(recipe, str):
        raise UserError(f"{name}: recipe is {recipe!r}, and not a name or a path")
    fixed, searched = (read_recipe(recipe) | {"recipe": recipe} if recipe else {}), {}
    for key, value in found.items():
        if key not in FIELDS:
            raise UserError(f"{name}: there is no setting {key!r}{closest(str(key), FIELDS)}")
        if key in NOT_HERE:
            raise UserError(f"{name}: {key} is not searched: leave it out")
        if isinstance(value, dict) or (isinstance(value, list) and not is_several(FIELDS[key])):
            searched[key] = dimension(name, key, value)
            fixed.pop(key, None)
        else:
            check(name, key, value)
            fixed[key] = value
    if not searched:
        raise UserError(
            f"{name} has nothing to search: give a setting a list of values, or {{low: …, high: …}}"
        )
    return Space(fixed, searched)


def dimension(name: str, key: str, value: Any) -> Dimension:
    """A list as a choice, a mapping as a range. Raises UserError."""
    if isinstance(value, list):
        for one in value:
            check(name, key, one)
        if len(set(map(str, value))) < max(2, len(value)):
            raise UserError(f"{name}: {key} needs two different values or more, and has {value}")
        return Choice(tuple(value))
    kind = value_type(FIELDS[key])
    unknown = [part for part in value if part not in RANGE]
    if unknown:
        raise UserError(
            f"{name}: {key} has {unknown[0]!r}{closest(str(unknown[0]), RANGE)} ({', '.join(RANGE)})"
        )
    if kind not in (int, float):
        raise UserError(f"{name}: {key} is no number: give a list of values")
    for part in ("low", "high"):
        if part not in value:
            raise UserError(f"{name}: {key} has no {part}")
        check(name, key, value[part])
    low, high, step = value["low"], value["high"], value.get("step")
    log = value.get("log", False)
    if not low < high:
        raise UserError(f"{name}: {key} goes from {low} to {high}: low must be less than high")
    if not isinstance(log, bool):
        raise UserError(f"{name}: {key} has log: {log!r}, which must be true or false")
    if log and (low <= 0 or step is not None):
        raise UserError(f"{name}: {key} with log must begin above 0, and has no step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, (int, kind)) or not 0 < step <= high - low):  # fmt: skip
        raise UserError(f"{name}: {key} has step {step!r}: it must be above 0, and within its range")  # fmt: skip
    return Range(low, high, log, step, kind is int)


def check(name: str, key: str, value: Any) -> None:
    """Raise UserError, about the file, for a value that a setting cannot have."""
    if isinstance(value, str) and value_type(FIELDS[key]) in (int, float) and is_number(value):
        raise UserError(f"{name}: {key} is the text {value!r}: YAML's numbers have a point, 1.0e-3")
    check_value(FIELDS[key], value, f"{name}: {key}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {key} is {value}")


def is_number(text: str) -> bool:
    """Whether Python would read a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
