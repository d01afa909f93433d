"""What a label form declares: which columns of a label file say what. Runs on the driver.

`label_form_file` makes one of a YAML file; `labels` reads label files by it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from chexspark.errors import UserError
from chexspark.findings import UNKNOWN, plain_spelling

BLANK, UNCERTAIN = -2, -3  # what a cell says, before it is taken for 1, 0 or `UNKNOWN`
DEFAULT_VALUES = {"1": 1, "0": 0, "-1": UNCERTAIN}
ANY, MAJORITY = "any", "majority"
DEFAULT = "default"  # of a policy: what holds for the findings that it does not name
DESCRIBED = ("sex", "age", "view", "follow_up", "study", "series", "institution", "manufacturer", "device",
             "date")  # fmt: skip
FACTS = ("image", "patient", *DESCRIBED, "split")


@dataclass(frozen=True)
class Fact:
    """Where a fact stands: the first of `columns` that is filled, and of its text what fits `pattern`."""

    columns: tuple[str, ...]
    pattern: re.Pattern[str] | None = None
    values: Mapping[str, str] | None = None  # text in lower case → what it is taken for
    in_image: re.Pattern[str] | None = None  # patient only: the same number in the image's name
    birth: str = (
        ""  # age only: the column of a date of birth, with `columns` as the date of the image
    )

    def contradicts(self, text: str, image: str) -> bool:
        """Whether the image's name has a number in this place, and it is another than the fact's."""
        found = self.in_image.search(image) if self.in_image else None
        return found is not None and found[1].lstrip("0") != text.lstrip("0")

    def text(self, cells: Iterable[str]) -> str:
        """The text of the fact, from the cells of `columns`; nothing where the pattern does not fit."""
        text = next((cell.strip() for cell in cells if cell.strip()), "")
        if self.pattern:
            found = self.pattern.search(text)
            text = (found[1] if found.re.groups else found[0]) if found else ""
        return (self.values or {}).get(text.casefold(), text)


@dataclass(frozen=True)
class Join:
    """A further file beside the labels, and the columns by which its rows belong to theirs."""

    file: str  # its name; * stands for anything
    key: tuple[str, ...]


@dataclass(frozen=True)
class LabelForm:
    """Which columns of a label file say what."""

    name: str  # of the set of images
    facts: Mapping[str, Fact]  # of `FACTS`; image always, patient unless the set has none
    header: tuple[str, ...] = ()  # columns that only a file of this form has all of
    findings: Mapping[str, str] | None = None  # those taken by default → column; none: NIH's 14
    words: str = ""  # the column of findings as words; nothing: a column per finding
    separator: str = ""  # between the words
    no_finding: tuple[str, ...] = ("No Finding",)  # a word or a column: nothing was found
    unknown_words: tuple[str, ...] = ()  # words after which nothing is known of the other findings
    other_findings: tuple[str, ...] = ()  # words that are findings, and are not taken by default
    any_words: bool = False  # whether every other word is a finding too
    synonyms: Mapping[str, tuple[str, ...]] | None = None  # word in `word_spelling` → findings
    values: Mapping[str, int] | None = None  # text → 1, 0, `UNKNOWN`, `UNCERTAIN`
    # Finding or `DEFAULT` → 0 or `UNKNOWN`; 1, 0 or `UNKNOWN`.
    blank: Mapping[str, int] = field(default_factory=lambda: {DEFAULT: UNKNOWN})
    uncertain: Mapping[str, int] = field(default_factory=lambda: {DEFAULT: UNKNOWN})
    readers: str = ""  # the column of who read the image, where each has rows of their own
    votes: str = MAJORITY
    boxes: tuple[str, ...] = ()  # columns of a box: x, y and width, height or the other corner
    corners: bool = False  # whether a box is given by its other corner
    joins: tuple[Join, ...] = ()
    # Name → findings whose mean stands beside that of all.
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def several_rows(self) -> bool:
        """Whether an image may have several rows."""
        return bool(self.readers or self.boxes)


def column_finder(header: list[str], where: str) -> Callable[[str], int | None]:
    """A function from a column's name to its position, whatever its case and signs; None without one.

    It raises UserError where two columns have the name.
    """
    spelled: dict[str, list[int]] = {}
    for position, cell in enumerate(header):
        spelled.setdefault(plain_spelling(cell), []).append(position)

    def position_of(name: str) -> int | None:
        found = [i for i, cell in enumerate(header) if cell == name]
        found = found or spelled.get(plain_spelling(name), [])
        if len(found) > 1:
            shown = " and ".join(header[i] for i in found)
            raise UserError(f"{where} has {len(found)} columns of {name}, {shown}: keep one")
        return found[0] if found else None

    return position_of
