"""Label forms as YAML files: those that come with chexspark, and a user's own. Runs on the driver.

In: the name or the path of a form, or the header of a label file, by which chexspark's own are told. Out:
a checked `LabelForm`. README tells the keys.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chexspark.errors import UserError, closest, listed
from chexspark.findings import UNKNOWN, names_fault, plain_spelling, word_spelling
from chexspark.ingestion.label_form import (
    ANY,
    DEFAULT,
    DEFAULT_VALUES,
    DESCRIBED,
    FACTS,
    MAJORITY,
    UNCERTAIN,
    Fact,
    Join,
    LabelForm,
)
from chexspark.storage import Location, locate
from chexspark.text_files import read_yaml

FORMS = Path(__file__).with_name("label_forms")
VALUES = {"1": 1, "0": 0, "unknown": UNKNOWN, "uncertain": UNCERTAIN}  # what a text may stand for
BLANKS = {"unknown": UNKNOWN, "negative": 0}  # the first is the default
UNCERTAINS = {"ignore": UNKNOWN, "zeros": 0, "ones": 1}
CORNERS = (("x", "y", "width", "height"), ("x_min", "y_min", "x_max", "y_max"))
NO_PATIENT = "none"
KEYS = {
    "name": "what the set of images is called",
    "extends": "the name of a form whose other keys hold",
    "header": "columns by which the form is told",
    "image": "the column of the image's name or path",
    "patient": f"the column of the patient, or {NO_PATIENT}",
    **dict.fromkeys(DESCRIBED, "a column"),
    "split": "a column of train, val and test",
    "findings": "names of findings, or finding: column",
    "words": "column and separator of findings as words",
    "no_finding": "the word or column that says that nothing was found",
    "unknown_words": "words after which the other findings are unknown",
    "other_findings": f"words that are findings and not taken by default, or {ANY}",
    "synonyms": "finding: [words]",
    "values": "text: 1, 0, unknown or uncertain",
    "blank": "negative or unknown", "uncertain": "ignore, zeros or ones",
    "readers": "column and votes of who read the image",
    "boxes": "columns of x, y, width, height, or of x_min, y_min, x_max, y_max",
    "means": "name: [findings], whose mean stands beside that of all",
    "joins": "files beside the labels, each with file and key",
}  # fmt: skip


def form_names() -> list[str]:
    """The forms that come with chexspark, by name."""
    return sorted(path.stem for path in FORMS.glob("*.yaml"))


def find_form(given: str) -> LabelForm:
    """The form `given` by the name of one of `form_names`, or by the path of a YAML file. Raises UserError."""
    return checked_form(form_values(given), f"--label-form={given}")


def form_values(given: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a form, with those of the form that it extends; without those that it empties. Raises UserError."""
    where = f"--label-form={given}"
    values = read_yaml(form_place(given), where)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or base in seen or base not in form_names():
        raise UserError(
            f"{where}: extends is {base!r}, but must be one of {', '.join(form_names())}"
        )
    merged = form_values(base, (*seen, base)) | values
    return {key: value for key, value in merged.items() if value is not None}


def form_place(given: str) -> Location:
    """The file of a form. Raises UserError where there is none."""
    if given in form_names():
        return locate(str(FORMS / f"{given}.yaml"))
    if not locate(given).is_file():
        raise UserError(
            f"--label-form={given}: there is no such file, and no form of that name"
            f"{closest(given, form_names())} (forms: {', '.join(form_names())})"
        )
    return locate(given)


def form_of_header(header: list[str]) -> LabelForm | None:
    """The form of chexspark's own whose columns a header has; of several, the one with most of them."""
    spelled = {plain_spelling(cell) for cell in header}
    forms = [find_form(name) for name in form_names()]
    fitting = [f for f in forms if f.header and spelled >= set(map(plain_spelling, f.header))]
    return max(fitting, key=lambda form: len(form.header), default=None)


def told_by_header(header: list[str], where: str) -> LabelForm:
    """The form that the header of a label file tells. Raises UserError where it tells none."""
    form = form_of_header(header)
    if form is None:
        raise UserError(
            f"{where} is of no form that is known (it has the columns {listed(header)}): name its columns "
            f"as one of {', '.join(form_names())} has them, or declare them in a file, --label-form=FILE"
        )
    return form


def checked_form(values: dict[str, Any], where: str) -> LabelForm:
    """A form of the values that its file has. Raises UserError naming the key, the rule and the remedy."""
    check_keys(values, KEYS, where)
    for needed in ("name", "image", "patient"):
        if needed not in values:
            raise UserError(f"{where} lacks {needed}: {KEYS[needed]}")
    facts = {
        key: fact_of(values[key], f"{where}: {key}", key)
        for key in FACTS
        if key in values and not (key == "patient" and values[key] == NO_PATIENT)
    }
    words = part(values, "words", ("column", "separator"), where)
    readers = part(values, "readers", ("column", "votes"), where)
    if readers and readers.get("votes", MAJORITY) not in (ANY, MAJORITY):
        raise UserError(f"{where}: votes is {readers['votes']!r}, but must be {ANY} or {MAJORITY}")
    others = values.get("other_findings", [])
    findings = findings_of(values, where)
    columns, corners = box_columns(values, where)
    if words and findings is None:
        raise UserError(f"{where} has words, and lacks findings: those that its words can say")
    return LabelForm(
        name=text_of(values["name"], f"{where}: name"),
        facts=facts,
        header=texts_of(values.get("header", []), f"{where}: header"),
        findings=findings,
        words=words.get("column", ""),
        separator=words.get("separator", "|"),
        no_finding=texts_of(values.get("no_finding", "No Finding"), f"{where}: no_finding"),
        unknown_words=texts_of(values.get("unknown_words", []), f"{where}: unknown_words"),
        other_findings=() if others == ANY else texts_of(others, f"{where}: other_findings"),
        any_words=others == ANY,
        synonyms=synonyms_of(values, where),
        values=values_of(values, where),
        blank=policy_of(values.get("blank", "unknown"), BLANKS, f"{where}: blank"),
        uncertain=policy_of(values.get("uncertain", "ignore"), UNCERTAINS, f"{where}: uncertain"),
        readers=readers.get("column", ""),
        votes=readers.get("votes", MAJORITY),
        boxes=columns,
        corners=corners,
        joins=tuple(joins_of(values, where)),
        means=means_of(values, where),
    )


def check_keys(values: Mapping[Any, Any], valid: Iterable[str], where: str) -> None:
    """Raise UserError for a key that is none."""
    for key in values:
        if key not in list(valid):
            raise UserError(
                f"{where}: unknown key {key!r}{closest(str(key), valid)} (valid: {', '.join(valid)})"
            )


def text_of(value: Any, where: str) -> str:
    """A text that is not empty. Raises UserError."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} is {value!r}, but must be a text")
    return value


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """One text or several. Raises UserError."""
    return tuple(text_of(v, where) for v in (value if isinstance(value, list) else [value]))


def part(values: Mapping[str, Any], key: str, valid: tuple[str, ...], where: str) -> dict[str, str]:
    """A part of the form with a column of its own: the column's name, or a mapping. Raises UserError."""
    if key not in values:
        return {}
    given = values[key] if isinstance(values[key], dict) else {"column": values[key]}
    check_keys(given, valid, f"{where}: {key}")
    if "column" not in given:
        raise UserError(f"{where}: {key} lacks column: {KEYS[key]}")
    return {name: text_of(value, f"{where}: {key}: {name}") for name, value in given.items()}


def fact_of(given: Any, where: str, key: str) -> Fact:
    """A fact from a column's name, a list of names, or a mapping. Raises UserError."""
    if not isinstance(given, dict):
        return Fact(texts_of(given, where))
    if key == "age" and {"birth", "date"} & given.keys():
        check_keys(given, ("birth", "date"), where)
        if len(given) < 2:
            raise UserError(f"{where} needs both birth and date, or column")
        return Fact((text_of(given["date"], where),), birth=text_of(given["birth"], where))
    check_keys(given, ("column", "pattern", "values", *["in_image"] * (key == "patient")), where)
    if "column" not in given:
        raise UserError(f"{where} lacks column")
    pattern, in_image = (pattern_of(given, name, where) for name in ("pattern", "in_image"))
    if in_image and in_image.groups != 1:
        raise UserError(f"{where}: in_image must have the number in one pair of brackets")
    values = given.get("values", {})
    if not isinstance(values, dict):
        raise UserError(f"{where}: values is {values!r}, but must be lines of text: meaning")
    plain = {text: str(value) for name, value in values.items() for text in cell_texts(name)}
    return Fact(texts_of(given["column"], where), pattern, plain, in_image)


def pattern_of(given: Mapping[str, Any], name: str, where: str) -> re.Pattern[str] | None:
    """The regular expression under a key, if there is one. Raises UserError."""
    try:
        return re.compile(str(given[name])) if name in given else None
    except re.error as error:
        raise UserError(f"{where}: {name} is no regular expression: {error}") from error


def cell_texts(name: Any) -> tuple[str, ...]:
    """What a key of YAML stands for in a cell, in lower case: YAML takes yes, on and true for one."""
    if isinstance(name, bool):
        return ("yes", "true", "on") if name else ("no", "false", "off")
    return (str(name).strip().casefold(),)


def findings_of(values: Mapping[str, Any], where: str) -> dict[str, str] | None:
    """Finding → column, from a list or a mapping. Raises UserError for names that cannot be."""
    given = values.get("findings")
    if given is None:
        return None
    if not isinstance(given, dict):
        given = {name: name for name in texts_of(given, f"{where}: findings")}
    fault = names_fault(list(given))
    if fault:
        raise UserError(f"{where} {fault}")
    return {name: text_of(column, f"{where}: findings: {name}") for name, column in given.items()}


def synonyms_of(values: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """Word in `word_spelling` → the findings that it stands for. Raises UserError."""
    given = values.get("synonyms", {})
    if not isinstance(given, dict):
        raise UserError(f"{where}: synonyms must be lines of finding: [words]")
    found: dict[str, tuple[str, ...]] = {}
    for finding, words in given.items():
        for word in texts_of(words, f"{where}: synonyms: {finding}"):
            spelling = word_spelling(word)
            found[spelling] = (*found.get(spelling, ()), text_of(finding, f"{where}: synonyms"))
    return found


def values_of(values: Mapping[str, Any], where: str) -> dict[str, int]:
    """Text in lower case → 1, 0, `UNKNOWN` or `UNCERTAIN`. Raises UserError."""
    if "values" not in values:
        return dict(DEFAULT_VALUES)
    given = values["values"]
    found: dict[str, int] = {}
    for name, meaning in (given if isinstance(given, dict) else {"": given}).items():
        if str(meaning) not in VALUES or isinstance(meaning, bool):
            raise UserError(f"{where}: values has {name}: {meaning}, but a text may stand for 1, 0, unknown or uncertain")  # fmt: skip
        found |= {text: VALUES[str(meaning)] for text in cell_texts(name)}
    return found


def policy_of(given: Any, valid: Mapping[str, int], where: str) -> dict[str, int]:
    """Finding, or `DEFAULT`, → what it is taken for; one word is for all. Raises UserError."""
    words = given if isinstance(given, dict) else {DEFAULT: given}
    for name, word in words.items():
        if not isinstance(word, str) or word not in valid:
            raise UserError(f"{where} is {word!r} for {name}, but must be {', '.join(valid)}")
    return {DEFAULT: next(iter(valid.values()))} | {n: valid[w] for n, w in words.items()}


def means_of(values: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """Name → findings. Raises UserError."""
    given = values.get("means", {})
    if not isinstance(given, dict):
        raise UserError(f"{where}: means is {given!r}, but must be lines of {KEYS['means']}")
    return {text_of(n, f"{where}: means"): texts_of(f, f"{where}: means: {n}") for n, f in given.items()}  # fmt: skip


def box_columns(values: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], bool]:
    """The four columns of a box, and whether they are two corners. Raises UserError."""
    given = values.get("boxes")
    if given is None:
        return (), False
    for names in CORNERS:
        if isinstance(given, dict) and set(given) == set(names):
            return tuple(text_of(given[n], f"{where}: boxes: {n}") for n in names), names == CORNERS[1]  # fmt: skip
    raise UserError(f"{where}: boxes is {given!r}, but must have {KEYS['boxes']}")


def joins_of(values: Mapping[str, Any], where: str) -> Iterable[Join]:
    """The files that are joined. Raises UserError."""
    given = values.get("joins", [])
    for join in given if isinstance(given, list) else [given]:
        if not isinstance(join, dict) or set(join) != {"file", "key"}:
            raise UserError(f"{where}: joins has {join!r}, but each must have file and key")
        yield Join(
            text_of(join["file"], f"{where}: joins: file"),
            texts_of(join["key"], f"{where}: joins: key"),
        )
