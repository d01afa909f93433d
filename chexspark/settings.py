"""How a setting is declared and checked: once, for flags, recipes and notebooks. Runs anywhere.

In: plain values. Out: a checked, frozen dataclass, or UserError.
"""

import dataclasses
import typing
from typing import Any, Protocol, TypeVar, cast

from chexspark.errors import UserError, closest
from chexspark.storage import absolute

REQUIRED = dataclasses.MISSING
Config = TypeVar("Config")


class Frame(Protocol):
    """A DataFrame of Spark or pandas."""

    columns: Any


def setting(help: str, group: str, default: Any = REQUIRED, **rules: Any) -> Any:
    """Declare a field.

    `rules`: empty (a text may be, or one of several); function (and so no flag); minimum, maximum, above (exclusive); choices; frame (or a DataFrame); path (made absolute); words (that are no paths);
    listed (several may stand in one text, with commas between them);
    formerly (its old name, which is answered with the new one); only_with (another setting → the values
    of it under which this one has an effect); not_with (other settings that contradict it).
    """
    return dataclasses.field(
        default=default,
        compare=not rules.get("frame"),  # frames have no truth value to compare by
        metadata={"help": help, "group": group, **rules},
    )


def same_setting(config_class: type, name: str, help: str | None = None) -> Any:
    """Declare a field as another config has it; `help`: in other words."""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_class))}
    there = fields[name].metadata
    words = {"help": help or there["help"]}
    return dataclasses.field(default=fields[name].default, metadata={**there, **words})


def flag(name: str) -> str:
    """``--rows-per-group`` of ``rows_per_group``."""
    return "--" + name.replace("_", "-")


def given_as(name: str, value: Any) -> str:
    """``--size=224``; ``--dry-run`` or ``--no-dry-run`` of what is true or false."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)}={value}"


def value_type(field: dataclasses.Field) -> type:
    """The type of a field's value: ``int`` for ``int``, ``int | None`` and ``tuple[int, ...]``."""
    arguments = [t for t in typing.get_args(field.type) if t not in (type(None), ...)]
    return cast(type, arguments[0] if arguments else field.type)


def is_several(field: dataclasses.Field) -> bool:
    """Whether a field takes several values: ``--images A B``."""
    return typing.get_origin(field.type) is tuple


def build(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Make a config from plain values. Raises UserError for a key, type or value out of rule."""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_class))}
    for name in values:
        if name not in fields:
            check_renamed(config_class, name, f"setting {name!r}")
            raise UserError(
                f"unknown setting {name!r}{closest(name, fields)} (valid: {', '.join(fields)})"
            )
    for name, field in fields.items():
        if name in values:
            check_value(field, values[name])
        elif field.default is REQUIRED:
            raise UserError(f"{flag(name)} is missing: {field.metadata['help']}")
    config = config_class(**{name: whole(fields[name], value) for name, value in values.items()})
    check_together(config, changed(config))
    return config


def changed(config: Any) -> list[dataclasses.Field]:
    """The fields that have another value than their default."""
    return [f for f in dataclasses.fields(config) if not is_default(f, getattr(config, f.name))]


def is_default(field: dataclasses.Field, value: Any) -> bool:
    """Whether a field's value is its default. A DataFrame has no truth value to compare by."""
    return not hasattr(value, "columns") and value == field.default


def check_together(config: Any, given: list[dataclasses.Field]) -> None:
    """Raise UserError for settings that have no effect beside others, or contradict them."""
    names = {field.name for field in given}
    for field in given:
        for other, values in field.metadata.get("only_with", {}).items():
            if getattr(config, other) not in values:
                value = values[0] if len(values) == 1 else " or ".join(map(str, values))
                raise UserError(
                    f"{flag(field.name)} has no effect with {given_as(other, getattr(config, other))}: "
                    f"leave it out, or give {given_as(other, value)}"
                )
        for other in field.metadata.get("not_with", ()):
            if other in names:
                raise UserError(
                    f"{flag(field.name)} contradicts {flag(other)}: leave one of them out"
                )


def without_effect(config_class: type, values: dict[str, Any], over: dict[str, Any]) -> set[str]:
    """Those of `values` that lose their effect, or are contradicted, where `over` goes before them."""
    whole = values | over
    lost: set[str] = set()
    for field in dataclasses.fields(config_class):
        if field.name in values and field.name not in over:
            rules = field.metadata
            if any(
                other in over and whole[other] not in kept
                for other, kept in rules.get("only_with", {}).items()
            ) or any(other in over for other in rules.get("not_with", ())):
                lost.add(field.name)
    return lost


def check_renamed(config_class: type, name: str, what: str) -> None:
    """Raise UserError that tells the new name where `name` is a setting's old one."""
    for field in dataclasses.fields(config_class):
        if field.metadata.get("formerly") == name:
            raise UserError(f"{what} is now called {flag(field.name)}")


def whole(field: dataclasses.Field, value: Any) -> Any:
    """The value as the config keeps it: a number as float, one text among several as a tuple, a path
    absolute, since ranks and tasks work in other folders than the driver."""
    if value_type(field) is float and value is not None:
        return float(value)
    if is_several(field):
        value = several(field, value)
    if not field.metadata.get("path"):
        return value
    if isinstance(value, tuple):
        return tuple(map(absolute, value))
    is_path = isinstance(value, str) and value not in field.metadata.get("words", ())
    return absolute(value) if is_path else value


def as_integer(text: str) -> int | str:
    """The number that a text spells, or the text itself."""
    return int(text) if text.isdecimal() and text.isascii() else text


def several(field: dataclasses.Field, value: Any) -> tuple:
    """The values of a field that takes several: a list as it is, of one text what it lists."""
    if not isinstance(value, str):
        return tuple(value)
    if field.metadata.get("listed"):
        parts = tuple(part.strip() for part in value.split(","))
        return tuple(map(as_integer, parts)) if value_type(field) is int else parts
    return (value,)


def check_value(field: dataclasses.Field, value: Any, name: str | None = None) -> None:
    """Raise UserError, about `name` or the flag, unless `value` has the field's type and rules."""
    name, rules, kind = name or flag(field.name), field.metadata, value_type(field)
    if value is None:
        if field.default is None:
            return
        raise UserError(f"{name} has no value: {rules['help']}")
    if rules.get("frame") and hasattr(value, "columns"):
        return
    if is_several(field) and isinstance(value, (list, tuple, str)):
        value = several(field, value)
        if not value and field.default != ():
            raise UserError(f"{name} is empty: {rules['help']}")
        for one in value:
            blank = one == "" and not rules.get("empty")
            if not isinstance(one, kind) or isinstance(one, bool) or blank:
                raise UserError(f"{name} has {one!r}: {rules['help']}")
            if "minimum" in rules and not one >= rules["minimum"]:
                raise UserError(f"{name} has {one}, but must be at least {rules['minimum']}")
            if "choices" in rules and one not in rules["choices"]:
                raise UserError(f"{name} has {one!r}, but must be of {', '.join(rules['choices'])}")
        return
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} is {value!r}, but must be of type {kind.__name__}")
    if value == "" and not rules.get("empty"):
        raise UserError(f"{name} is empty: {rules['help']}")
    if "choices" in rules and value not in rules["choices"]:
        raise UserError(f"{name} is {value!r}, but must be one of {', '.join(rules['choices'])}")
    if "minimum" in rules and not value >= rules["minimum"]:
        raise UserError(f"{name} is {value}, but must be at least {rules['minimum']}")
    if "maximum" in rules and not value <= rules["maximum"]:
        raise UserError(f"{name} is {value}, but must be at most {rules['maximum']}")
    if "above" in rules and not value > rules["above"]:
        raise UserError(f"{name} is {value}, but must be more than {rules['above']}")
