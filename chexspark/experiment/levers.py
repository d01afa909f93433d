"""Levers of training: a YAML file of a base and what each lever changes of it. Runs on the driver.

    base:
      recipe: official-best
    levers:
      no crop: {crop: 1.0}
      mirror images at the end: {tta: flip}

In: the file. Out: `Levers`. A lever of settings of training is a training of its own; one of ``tta`` alone scores the
base's models otherwise.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexspark.arguments import without_effect
from chexspark.config import VIEWS, TrainConfig
from chexspark.errors import UserError, closest
from chexspark.recipe_files import as_number, read_recipe
from chexspark.settings import check_value, value_type
from chexspark.storage import Location, locate
from chexspark.text_files import read_yaml

OWN = Path(__file__).with_name("levers.yaml")
BASE = "base"
TTA = "tta"
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
NOT_HERE = (
    "data",
    "run",
    "seed",
    "num_proc",
    "private",
    "dry_run",
    "at",
    "on_epoch",
)  # the ablation gives them, or none
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,49}")
Values = dict[str, Any]


@dataclass(frozen=True)
class Lever:
    """What one changes: settings of training, or of evaluation."""

    name: str
    settings: Values
    tta: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Its name in paths."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Levers:
    """The settings of all trainings, with the name of their recipe if they have one, and the levers."""

    base: Values
    levers: tuple[Lever, ...]

    def settings(self, lever: Lever | None) -> Values:
        """Of the training with a lever, or of the base."""
        changed = lever.settings if lever else {}
        lost = without_effect(TrainConfig, self.base, changed)
        return {name: value for name, value in self.base.items() if name not in lost} | changed


def read_levers(uri: str | None) -> Levers:
    """The levers in a file; without one, chexspark's own. Raises UserError for what are none."""
    place = locate(uri or str(OWN))
    name = f"--levers={place}"
    if not place.is_file():
        raise UserError(f"{name}: there is no such file")
    found = read_yaml(place, name)
    for key in found:
        if key not in (BASE, "levers"):
            raise UserError(f"{name}: {key!r} is neither {BASE} nor levers")
    base, levers = (found.get(key) or {} for key in (BASE, "levers"))
    if not isinstance(base, dict) or not isinstance(levers, dict):
        raise UserError(f"{name}: base and levers must hold lines of name: value")
    if not levers:
        raise UserError(f"{name} has no levers: give each a name, and the settings that it changes")
    recipe = base.get("recipe")
    if recipe is not None and not isinstance(recipe, str):
        raise UserError(f"{name}: recipe is {recipe!r}, and not a name or a path")
    if recipe:
        read_recipe(recipe)
    checked = settings_of(place, BASE, base)
    several = tuple(lever_of(place, str(key), value) for key, value in levers.items())
    folders = [BASE, *(lever.folder.lower() for lever in several)]
    if len(set(folders)) < len(folders):
        raise UserError(f"{name}: two levers have one name, or one is called {BASE}")
    return Levers(checked, several)


def lever_of(place: Location, key: str, value: Any) -> Lever:
    """One lever. Raises UserError for what is none."""
    name = f"--levers={place}: {key}"
    if not NAME.fullmatch(key):
        raise UserError(
            f"{name} is no name of a lever: up to 50 letters, digits, spaces, _, - and ."
        )
    if not isinstance(value, dict) or not value:
        raise UserError(f"{name} changes nothing: give it settings, {{crop: 0.6}}, say")
    if TTA not in value:
        return Lever(key, settings_of(place, key, value))
    if len(value) > 1:
        raise UserError(f"{name}: {TTA} is a lever of evaluation, and stands alone")
    views = tuple(part.strip() for part in str(value[TTA]).split(","))
    for view in views:
        if view not in VIEWS:
            raise UserError(f"{name}: {TTA} is {view!r}, but must be of {', '.join(VIEWS)}")
    return Lever(key, {}, views)


def settings_of(place: Location, key: str, values: Mapping[Any, Any]) -> Values:
    """Settings of training, checked one by one. Raises UserError."""
    found = {}
    for setting, value in values.items():
        name = f"--levers={place}: {key}"
        if setting not in FIELDS:
            raise UserError(
                f"{name} has {setting!r}, which is no setting{closest(str(setting), FIELDS)}"
            )
        if setting in NOT_HERE or (setting == "recipe" and key != BASE):
            raise UserError(f"{name} has {setting}, which is not a lever's: leave it out")
        if value_type(FIELDS[setting]) is float:
            value = as_number(value)
        check_value(FIELDS[setting], value, f"{name}: {setting}")
        found[setting] = value
    return found
