"""What a label file says of a patient and a view: texts in, numbers and plain words out.

Pure functions; runs on the driver. What cannot be read is unknown, and counted with examples: NIH's
ages of 411, a date where a number should be.
"""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EMPTY = ("", "nan", "na", "n/a", "<na>", "none", "null")  # how tables write that there is nothing
OLDEST = 120  # years; above it an age is a slip, or hides a number that may not be known
LARGEST_COUNT = 2**15 - 1  # follow-ups are stored as int16
LONGEST_TEXT = 40  # characters of a number; above it, it is none
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
NO_SEX = ("u", "unknown", "o", "other")
SHOWN = 3  # examples
# Of a year, or of a date that begins with one: 1950, 1950.0, 20140915, 2014-09-15 …
YEAR = re.compile(r"((?:1[89]|20)[0-9]{2})(?:[.,]0*|[-/.]?[01]?[0-9][-/.]?[0-3]?[0-9](?:[T ].*)?)?")

# 20140915, also as 20140915.0; 2014-09-15, 2014/9/15, also with a time after it; 15.09.2014; 2014.
DATES = [
    re.compile(r"(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})(?:[.,]0*)?"),
    re.compile(
        r"(?P<year>[0-9]{4})([-/.])(?P<month>[0-9]{1,2})\2(?P<day>[0-9]{1,2})(?:[T ][0-9:.,+Z -]*)?"
    ),
    re.compile(r"(?P<day>[0-9]{1,2})\.(?P<month>[0-9]{1,2})\.(?P<year>[0-9]{4})"),
]
SHORTENED = re.compile(r"[0-9](?:[.,][0-9]+)?[Ee]\+[0-9]+")
WHOLE = re.compile(r"([0-9]+)\.0+")
ONLY_YEAR = re.compile(r"([0-9]{4})(?:[.,]0*)?")


def is_empty(text: str) -> bool:
    """Whether a cell says nothing."""
    return text.strip().casefold() in EMPTY


def parse_age(text: str) -> int | None:
    """Years from ``58``, ``58.0``, ``058Y``, ``011M`` (months) or ``003D`` (days); None for what is none.

    An age above `OLDEST` is none.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:[.,][0-9]*)?([YMWD]?)", short(text).upper())
    if not match:
        return None
    years = int(int(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]])
    return years if years <= OLDEST else None


def parse_count(text: str) -> int | None:
    """A whole number of 0 or more, also as ``1.0``; None for what is none, or is larger than is stored."""
    match = re.fullmatch(r"([0-9]{1,9})(?:[.,]0*)?", short(text))
    return int(match[1]) if match and int(match[1]) <= LARGEST_COUNT else None


def parse_name(text: str) -> str:
    """The name of an image, a patient or a study; a whole number that a table has made ``12.0`` is 12.

    Raises ValueError for a number that a table has shortened, and which may be many: ``1.2E+10``.
    """
    if SHORTENED.fullmatch(text):
        raise ValueError("a number that a table program has shortened, as 1.2E+10: save it as text")
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def parse_sex(text: str) -> str | None:
    """``M`` or ``F`` of the usual words; None where it is not known; another word as it is."""
    word = text.strip().casefold()
    return None if word in NO_SEX else SEXES.get(word, text.strip())


def parse_date(text: str) -> str | None:
    """``2014-09-15`` of a date with the year first, or last after points; ``2014`` of a year; None for others.

    Which of two numbers with strokes is the month is not known, so such a date is none.
    """
    text = short(text)
    if year := ONLY_YEAR.fullmatch(text):
        return year[1]
    match = next(filter(None, (pattern.fullmatch(text) for pattern in DATES)), None)
    try:
        return (
            match and datetime.date(*(int(match[n]) for n in ("year", "month", "day"))).isoformat()
        )
    except ValueError:
        return None


def parse_text(text: str) -> str | None:
    """The text without blanks around it."""
    return text.strip() or None


def years_between(birth: str, date: str) -> int | None:
    """The age on a date: of two full dates the years that are over, else the difference of their years.

    ``1950.0`` and ``20140915``, ``22.01.1940`` and ``07.01.2019``; None for what is none.
    """
    born, then = (parse_date(text) or year_of(text) for text in (birth, date))
    if not born or not then:
        return None
    age = int(then[:4]) - int(born[:4])
    if "-" in born and "-" in then and then[4:] < born[4:]:
        age -= 1  # the birthday is still to come
    return age if 0 <= age <= OLDEST else None


def year_of(text: str) -> str | None:
    """The year of a text that begins with one; None for what does not."""
    match = YEAR.fullmatch(short(text))
    return match[1] if match else None


def short(text: str) -> str:
    """A text without blanks around it; of one that is far too long for a number, nothing."""
    text = text.strip()
    return text if len(text) <= LONGEST_TEXT else ""


@dataclass
class Unreadable:
    """Counts what could not be read, by fact, with the first examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def read(self, fact: str, text: str, at: str, parse: Callable[[str], Any]) -> Any:
        """What `parse` makes of a cell; an empty one is None, and one that it cannot read is counted.

        `at`: the line or file that it is in.
        """
        if is_empty(text):
            return None
        value = parse(text)
        if value is None and not (fact == "sex" and text.strip().casefold() in NO_SEX):
            self.count(fact, text, at)
        return value

    def count(self, fact: str, text: str, at: str) -> None:
        """Count one that could not be read, in the line or file `at`."""
        self.counts[fact] = self.counts.get(fact, 0) + 1
        shown = self.examples.setdefault(fact, [])
        if len(shown) < SHOWN:
            text = text.strip()
            shown.append(f"{text[:LONGEST_TEXT]!r}{'…' * (len(text) > LONGEST_TEXT)} in {at}")

    def notes(self) -> list[str]:
        """A line for each fact."""
        return [
            f"{number:,} {'cell' if number == 1 else 'cells'} of {fact} cannot be read, taken for unknown: "
            + ", ".join(self.examples[fact])
            + ", …" * (number > len(self.examples[fact]))
            for fact, number in self.counts.items()
        ]
