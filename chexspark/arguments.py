"""The ways to fill a config: flags, a recipe, keyword arguments. Runs on the driver.

Order: default < recipe < flag.
"""

import argparse
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from chexspark.config import TrainConfig
from chexspark.errors import UserError, closest
from chexspark.output import show_output
from chexspark.recipe_files import read_recipe, recipe_names
from chexspark.settings import (
    REQUIRED,
    build,
    changed,
    check_renamed,
    flag,
    is_several,
    several,
    value_type,
    without_effect,
)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are a UserError, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of ending the process."""
        raise UserError(f"{message} (see --help)")


def parse_command_line(
    config_class: type, description: str, arguments: list[str], program: str | None = None
) -> Any:
    """Parse flags into a config.

    `program`: what --help calls the command. Raises UserError for a flag that is none, or its value.
    """
    parser = OneLineParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_settings(parser, config_class)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        check_renamed(config_class, unknown[0].lstrip("-").replace("-", "_"), unknown[0])
        valid = [flag(f.name) for f in dataclasses.fields(config_class)]
        raise UserError(f"unknown option {unknown[0]}{closest(unknown[0], valid)} (see --help)")
    values = vars(parsed)
    for field in dataclasses.fields(config_class):
        if field.metadata.get("listed") and field.name in values:
            values[field.name] = [n for text in values[field.name] for n in several(field, text)]
    return build(config_class, under(config_class, values))


def add_settings(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add a flag for each setting, in the settings' groups."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.metadata.get("function"):
            continue
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        help_text, required = field.metadata["help"], field.default is REQUIRED
        if not required and field.default not in (None, ()):
            default: Any = field.default
            default = " ".join(map(str, default)) if is_several(field) else default
            help_text += f" (default: {default})"
        if field.name == "recipe":
            help_text += f" ({', '.join(recipe_names())})"
        # Not argparse's `required`: a misspelled flag is to be named before a missing one.
        options = {"help": help_text + " (required)" * required}
        if value_type(field) is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = str if field.metadata.get("listed") else value_type(field)
            # Of several with commas between them each is looked at later.
            options["choices"] = (
                None if field.metadata.get("listed") else field.metadata.get("choices")
            )
            options["metavar"] = None if options["choices"] else METAVARS[value_type(field)]
            options["nargs"] = "+" if is_several(field) else None
        groups[name].add_argument(flag(field.name), **options)


def under(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` over those of their recipe, if they name one, but for what has no effect in it any more."""
    recipe = values.get("recipe") if config_class is TrainConfig else None
    below = read_recipe(recipe) if recipe and isinstance(recipe, str) else {}
    lost = without_effect(TrainConfig, below, values)
    return {name: value for name, value in below.items() if name not in lost} | values


METAVARS = {str: "TEXT", int: "N", float: "X"}


def takes(
    config_class: type, spark: bool = True, frame: bool = False, connect: bool = False
) -> Callable[[Callable], Callable]:
    """Let ``function(spark, config)`` be called as ``function(spark, images=…, size=…)``.

    `spark`: whether it takes a session; without, ``function(config)`` is called as ``function(run=…)``.
    `frame`: it takes a DataFrame in the session's place. `connect`: it works through Spark Connect too.
    The signature and the docstring list the settings, for a notebook's completion and help. A ready
    config in place of settings is taken as it is, without its recipe's settings.
    A call raises UserError for a setting that is none, or its value.
    """

    def decorate(function: Callable) -> Callable:
        def configured(config: Any, values: dict[str, Any]) -> Any:
            show_output()
            if config is None:
                return build(config_class, under(config_class, values))
            given = {f.name: getattr(config, f.name) for f in changed(config)}
            return build(config_class, given)

        def checked(config: Any) -> Any:
            if config is None or isinstance(config, config_class):
                return config
            takes_what = (
                "a Spark session and settings" if spark else "settings and no Spark session"
            )
            raise UserError(
                f"{function.__name__} takes {takes_what} by name, and was given a {type(config).__name__}"
            )

        @functools.wraps(function)
        def call_with_session(spark: Any = None, config: Any = None, **values: Any) -> Any:
            config = configured(checked(config), values)
            from chexspark.session import (  # now: --help waits for no Spark
                check_classic,
                java_loss_told,
            )

            if spark is not None and not connect:
                check_classic(spark, function.__name__)
            with java_loss_told():
                return function(spark, config)

        @functools.wraps(function)
        def call_with_frame(frame: Any, config: Any = None, **values: Any) -> Any:
            if not hasattr(frame, "sparkSession"):
                raise UserError(
                    f"{function.__name__} takes a Spark DataFrame and settings by name, and was given a "
                    f"{type(frame).__name__}"
                )
            return call_with_session(frame, config, **values)

        @functools.wraps(function)
        def call_alone(config: Any = None, **values: Any) -> Any:
            return function(configured(checked(config), values))

        call: Any = call_with_frame if frame else call_with_session if spark else call_alone

        fields = dataclasses.fields(config_class)
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(
                f.name, kind, annotation=f.type,
                default=inspect.Parameter.empty if f.default is REQUIRED else f.default,
            )
            for f in fields
        ]  # fmt: skip
        if frame:
            parameters.insert(
                0, inspect.Parameter("frame", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            )
        elif spark:
            session = inspect.Parameter("spark", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)  # fmt: skip
            parameters.insert(0, session)
        call.config_class = config_class
        call.__signature__ = inspect.Signature(parameters)
        call.takes_spark = spark
        lines = [f"    {f.name}: {f.metadata['help'].replace('%%', '%')}" for f in fields]
        text = inspect.cleandoc(function.__doc__ or "")
        call.__doc__ = "\n".join([text, "", "Settings:", *lines])
        return call

    return decorate
