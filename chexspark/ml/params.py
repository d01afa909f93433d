"""Spark ML's Params, made from the settings of ``chexspark.config``. Runs on the driver.

In: the settings of training and of a store of a DataFrame. Out: a Param per setting, with its default, help and
rules, `set` and `get` methods, and the settings again. A setting is written down once, in `config`; a Param is
called as it is, in camelCase, but for the few of `RENAMED`.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame

from chexspark.config import FrameConfig, TrainConfig
from chexspark.errors import SETTING, ChexsparkError, UserError, closest
from chexspark.findings import column_name
from chexspark.settings import REQUIRED, check_value, is_several, setting

# Settings that have another name as a Param: columns, and what a method of Spark ML is called.
RENAMED = {
    "image": "imageCol", "labels": "labelCols", "patient": "patientCol", "name": "nameCol",
    "validation": "validationIndicatorCol", "size": "imageSize", "fit": "imageFit",
}  # fmt: skip
PLACES = ("data", "run", "out", "dry_run", "at")  # that an Estimator finds by itself
ITS_OWN: dict[type, tuple[str, ...]] = {
    TrainConfig: ("size",)
}  # left out: the images of a frame are made of the size that is trained on
FINDINGS_OF = (
    "findings"  # in the metadata of a Model's column of probabilities: their names, in order
)
Values = dict[str, Any]


def param_name(name: str) -> str:
    """The Param of a setting: ``learningRate`` of ``learning_rate``."""
    first, *others = name.split("_")
    return RENAMED.get(name, first + "".join(part.capitalize() for part in others))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The columns that a Model adds, and what it does about images that it cannot use."""

    label: str | None = setting(
        "column of the labels, where it is one: a finding's, or an array or vector of all",
        "input",
        None,
    )
    probability: str = setting(
        "column of the probabilities, a vector in the order of the findings",
        "output",
        "probability",
        empty=True,
    )
    prefix: str = setting(
        "what the columns of the findings' probabilities begin with; if it is empty they are left out, as any "
        "column without a name", "output", "prob_", empty=True)  # fmt: skip
    prediction: str = setting(
        "column of 1 or 0 per finding: whether the probability reaches the threshold of the validation split",
        "output", "prediction", empty=True)  # fmt: skip
    reason: str = setting(
        "column of why an image could not be used", "output", "reason", empty=True
    )
    seen: str = setting(
        "column of whether the model has seen the patient: trained on, or validated on",
        "output",
        "patient_seen",
        empty=True,
    )
    invalid: str = setting(
        "an image that cannot be used: keep: nulls and the reason; skip: its row is left out; error: the job ends",
        "output", "keep", choices=("keep", "skip", "error"))  # fmt: skip


RENAMED |= {
    "label": "labelCol", "probability": "probabilityCol", "prefix": "outputPrefix",
    "prediction": "predictionCol", "reason": "reasonCol", "seen": "seenPatientCol", "invalid": "handleInvalid",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """Where an Estimator works."""

    work_dir: str | None = setting(
        "folder of the stores and runs of this Estimator, which all hosts reach; by default, on a local master, "
        "one that goes with this process", "work", None)  # fmt: skip
    keep_store: bool = setting(
        "keep the store of a DataFrame, for the next fit of it", "work", True
    )


def settings_of(config_class: type) -> dict[str, dataclasses.Field]:
    """The settings of a config that are Params, by name."""
    fields = dataclasses.fields(config_class)
    return {
        field.name: field
        for field in fields
        if field.name not in (*PLACES, *ITS_OWN.get(config_class, ()))
    }


FRAME, TRAINING = settings_of(FrameConfig), settings_of(TrainConfig)
OUTPUT, WORK = settings_of(OutputSettings), settings_of(WorkSettings)
COLUMNS = {name: FRAME[name] for name in ("image", "labels", "patient", "name", "findings")}


def converter(field: dataclasses.Field) -> Callable[[Any], Any]:
    """What checks and keeps a Param's value: as the setting's own rules have it, in types of JSON."""

    def convert(value: Any) -> Any:
        if hasattr(value, "tolist"):  # numpy's numbers and arrays, an Index of pandas
            value = value.tolist()
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is None and field.default is REQUIRED:  # as long as nothing is fitted
            return None
        check_value(field, value, param_name(field.name))
        if is_several(field):
            return list(value) if not isinstance(value, str) else [value]
        return float(value) if field.type is float else value

    return convert


def with_params(*groups: Mapping[str, dataclasses.Field]) -> Callable[[type], type]:
    """Give a class of Spark ML a Param per setting of the groups, with its ``set`` and ``get``.

    The class takes them by name and has a signature for editors.
    """
    fields = {param_name(name): field for group in groups for name, field in group.items()}

    def decorate(cls: Any) -> type:
        for name, field in fields.items():
            param: Param = Param(Params._dummy(), name, explained(field), converter(field))
            capital = name[0].upper() + name[1:]
            setattr(cls, name, param)
            setattr(cls, f"set{capital}", setter(name, param.doc))
            setattr(cls, f"get{capital}", getter(name, param.doc))
        cls.fields = fields
        kind = inspect.Parameter.KEYWORD_ONLY
        cls.__signature__ = inspect.Signature(
            [
                inspect.Parameter(n, kind, default=default_of(f), annotation=f.type)
                for n, f in fields.items()
            ]
        )
        return cls

    return decorate


def explained(field: dataclasses.Field) -> str:
    """What a Param is, with what it may be."""
    choices = ", ".join(field.metadata.get("choices", ()))
    return as_params(field.metadata["help"]) + f" ({choices})" * bool(choices)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a setting as a Param has it; None where a value must be given."""
    if field.default is REQUIRED:
        return None
    return list(field.default) if is_several(field) else field.default


def setter(name: str, doc: str) -> Callable:
    """The method that sets a Param and returns its owner."""

    def set_param(self: Any, value: Any) -> Any:
        return self.setParams(**{name: value})

    set_param.__name__, set_param.__doc__ = (
        f"set{name[0].upper()}{name[1:]}",
        f"Set `{name}`: {doc}.",
    )
    return set_param


def getter(name: str, doc: str) -> Callable:
    """The method that returns a Param's value."""

    def get_param(self: Any) -> Any:
        return self.getOrDefault(name)

    get_param.__name__, get_param.__doc__ = f"get{name[0].upper()}{name[1:]}", f"`{name}`: {doc}."
    return get_param


class SettingParams(Params):
    """What has Params of `with_params`. Keywords only; a Param without a value has its setting's default."""

    fields: ClassVar[dict[str, dataclasses.Field]]

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self._setDefault(**{name: default_of(field) for name, field in self.fields.items()})
        self.setParams(**values)

    def setParams(self, **values: Any) -> Any:
        """Set several Params by name. Raises UserError for a name that is none, or a value out of rule."""
        for name in values:
            if name not in self.fields:
                raise UserError(
                    f"{type(self).__name__} has no Param {name}{closest(name, self.fields)}"
                )
        for name, value in values.items():
            try:
                self.set(self.getParam(name), value)
            except TypeError as error:  # Spark's own words around the rule's
                raise UserError(str(error)) from error
        return self

    def given(self, group: Mapping[str, dataclasses.Field]) -> Values:
        """The settings of a group that were set, by the settings' own names."""
        return {
            name: self.getOrDefault(param_name(name))
            for name in group
            if self.isSet(param_name(name))
        }

    def value(self, name: str) -> Any:
        """The value of a setting, by its own name."""
        return self.getOrDefault(param_name(name))

    def output_columns(self, dataset: DataFrame, findings: Sequence[str]) -> list[str]:
        """The names of the columns that a Model of these findings adds to a DataFrame.

        Raises UserError where two are one, or the DataFrame has one already.
        """
        names = {name: self.value(name) for name in ("probability", "prediction", "reason", "seen")}
        added = {value: param_name(name) for name, value in names.items() if value}
        if len({name.lower() for name in added}) < sum(map(bool, names.values())):
            again = [v for v in names.values() if v and [*names.values()].count(v) > 1]
            raise UserError(
                f"two columns are to be called {(again or [*added])[0]}: give them other names"
            )
        if self.value("prefix"):
            added |= {
                self.value("prefix") + column_name(finding): "outputPrefix" for finding in findings
            }
        there = {name.lower() for name in dataset.columns}
        for name, param in added.items():
            if name.lower() in there:
                raise UserError(
                    f"the DataFrame has a column {name} already: drop it, or give another {param}"
                )
        return list(added)

    def label_columns(self) -> list[str]:
        """The columns of labels, of which none need be there. Raises UserError where both are given."""
        one, several = self.value("label"), self.value("labels")
        if one and several:
            raise UserError("labelCol contradicts labelCols: leave one of them out")
        return [one] if one else list(several or [])


def check_frame(dataset: Any, what: str, streaming: bool = False) -> None:
    """Raise UserError unless `dataset` is a DataFrame of Spark; one that streams only where that is taken."""
    if not hasattr(dataset, "sparkSession"):
        hint = " (fitOnStore takes the path of a store)" if isinstance(dataset, str) else ""
        raise UserError(
            f"{what} takes a Spark DataFrame, and was given a {type(dataset).__name__}{hint}"
        )
    if dataset.isStreaming and not streaming:
        raise UserError(
            f"{what} needs all rows, and this DataFrame is a stream: only transform takes one"
        )


@contextlib.contextmanager
def spoken_as_params() -> Iterator[None]:
    """Inside, errors speak of Params where they would speak of settings."""
    try:
        yield
    except ChexsparkError as error:
        error.args = (as_params(error.text), *error.args[1:])
        raise


def as_params(text: str) -> str:
    """A text about settings as who has an Estimator knows them."""

    def name(found: re.Match[str]) -> str:
        setting_name = found[2].replace("-", "_")
        if not any(setting_name in group for group in (FRAME, TRAINING, OUTPUT, WORK)):
            return found[0]
        return param_name(setting_name) + found[3]

    return SETTING.sub(name, text)


def in_params(function: Callable) -> Callable:
    """A function inside `spoken_as_params`."""

    @functools.wraps(function)
    def call(*arguments: Any, **values: Any) -> Any:
        with spoken_as_params():
            return function(*arguments, **values)

    return call
