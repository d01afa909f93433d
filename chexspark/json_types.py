"""Whether values out of a JSON file are of the types that are expected. Pure; runs anywhere."""

import types
import typing
from collections.abc import Mapping
from typing import Any

LARGEST = 2**63  # a whole number that a table can hold is below it


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: one of JSON's, `Any`, or a list, tuple, dict, TypedDict or union of such."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inside)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(each, inside[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inside[0]) and fits(v, inside[1]) for k, v in value.items())  # fmt: skip
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return isinstance(value, dict) and all(n in value and fits(value[n], k) for n, k in hints.items())  # fmt: skip
    if isinstance(value, bool) or kind is bool:  # Python takes True for 1
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int) and kind in (int, float):
        return abs(value) < LARGEST
    return isinstance(value, kind)


def misfit(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> str | None:
    """What is wrong with the first of the values that is not of its type, in words; None for none."""
    for name, kind in kinds.items():
        if name in values and not fits(values[name], kind):
            return f"{name} is {values[name]!r:.60}"
    return None
