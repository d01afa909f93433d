"""The names of findings: the rules for them, and NIH's 14. Runs anywhere.

The findings of a store stand in its manifest, those of a run in its lineage. Every array of labels or
probabilities in chexspark has its last axis in the order of one of the two.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# NIH ChestX-ray14, in the order of the papers (Wang et al. 2017; Rajpurkar et al. 2017, table 1): the
# default where nobody names findings.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
NO_FINDING = "No Finding"
PROBABILITY, LABEL = "prob_", "label_"  # before `column_name` in the names of columns
MEAN = "mean"  # the row of a table that is no finding's
UNKNOWN = -1
MOST = 200
LONGEST = 100  # characters of a name

DOUBT = re.compile(r"[?¿~±]|\+\s*/?\s*[-−–—]")
DENIAL = re.compile(r"[¬≠]|^\W*[-−–—!]|[-−–—]\W*$")  # a dash inside a word is none

# Another name → NIH's, for the same finding; case, spaces and signs need no entry. Infiltrate is of NIH's
# box file, the others are of CheXpert, VinDr-CXR, PadChest and the headings of MeSH.
ALIASES = {
    "Infiltrate": "Infiltration", "Infiltrates": "Infiltration",
    "Pleural Thickening": "Pleural_Thickening",
    "Pleural Effusion": "Effusion", "Pleural Effusions": "Effusion",
    "Pulmonary Atelectasis": "Atelectasis", "Atelectases": "Atelectasis",
    "Pulmonary Edema": "Edema", "Pulmonary Oedema": "Edema", "Oedema": "Edema",
    "Pulmonary Emphysema": "Emphysema",
    "Pulmonary Fibrosis": "Fibrosis",
    "Pulmonary Mass": "Mass", "Lung Mass": "Mass",
    "Pulmonary Nodule": "Nodule", "Lung Nodule": "Nodule",
    "Hiatal Hernia": "Hernia", "Hernia, Hiatal": "Hernia",
}  # fmt: skip


def column_name(finding: str) -> str:
    """What follows `PROBABILITY` and `LABEL` in a column: the name with ``[^0-9A-Za-z_]`` as ``_``."""
    return re.sub(r"[^0-9A-Za-z_]", "_", finding)


def names_fault(findings: Sequence[str]) -> str | None:
    """What is wrong with a list of findings, in words that follow its name; None where nothing is."""
    if not 1 <= len(findings) <= MOST:
        return f"has {len(findings):,} findings, but must have 1 to {MOST}"
    columns: dict[str, str] = {}
    for name in findings:
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            return f"has {name!r}, which is no name"
        if len(name) > LONGEST or not name.isprintable():
            return f"has {name[:LONGEST]!r}, but a name has at most {LONGEST} printable characters"
        if is_mean(name.lower()) or column_name(name).lower() == MEAN:
            return f"has {name!r}, which is what the tables call the rows of means"
        if findings.count(name) > 1:
            return f"has {name} twice"
        # Spark takes Mass and mass for one column.
        other = columns.setdefault(column_name(name).lower(), name)
        if other != name:
            return f"has {other} and {name}, which would be one column, {column_name(name)}"
    return None


def is_mean(name: str) -> bool:
    """Whether a row of a table is no finding's: the mean of all, or ``mean of`` some."""
    return name == MEAN or name.startswith(f"{MEAN} of ")


def find(name: str, findings: Sequence[str]) -> int | None:
    """The position of a finding by its name, by another spelling of it, or by another name (`ALIASES`).

    None where no finding has it, or where two have and neither is written as the name is.
    """
    name = name.strip()
    if name in findings:
        return findings.index(name)
    for form in (plain_spelling, same_name):
        found = [i for i, finding in enumerate(findings) if form(finding) == form(name)]
        if found and form(name):
            return found[0] if len(found) == 1 else None
    return None


def plain_spelling(name: str) -> str:
    """A name without case, spaces and signs: two that agree in it are one, spelled in two ways."""
    return re.sub(r"[\W_]", "", name.casefold())


def word_spelling(word: str) -> str:
    """The plain spelling of a word that says what was found, with a sign where it says doubt, or that it was not.

    ``effusion?`` of ``Effusion (?)``, ``effusion-`` of ``¬Effusion`` and ``Effusion (-)``.
    """
    doubt = "?" * (DOUBT.search(word) is not None)
    return plain_spelling(word) + doubt + "-" * (DENIAL.search(word) is not None)


def is_plain_word(word: str) -> bool:
    """Whether a word has no sign of doubt or denial."""
    return word_spelling(word) == plain_spelling(word)


def same_name(name: str) -> str:
    """The plain spelling of NIH's name of a finding; of one that NIH does not have, of its own."""
    spelling = plain_spelling(name)
    return SPELLINGS.get(spelling, spelling)


SPELLINGS = {plain_spelling(alias): plain_spelling(name) for alias, name in ALIASES.items()}


def shared(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The findings that all lists have, by name, in the order of the first."""
    first, *others = lists
    return tuple(name for name in first if all(name in other for other in others))


def of_file(content: Mapping[str, Any]) -> Any:
    """The `findings` that a JSON file of a run names; one from before files named them is of NIH's 14."""
    return content.get("findings", list(FINDINGS))
