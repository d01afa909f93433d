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

# NIH's box file says Infiltrate where its label file says Infiltration.
ALIASES = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}


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
        if column_name(name).lower() == MEAN:
            return f"has {name!r}, which is what the tables call their last row"
        if findings.count(name) > 1:
            return f"has {name} twice"
        # Spark takes Mass and mass for one column.
        other = columns.setdefault(column_name(name).lower(), name)
        if other != name:
            return f"has {other} and {name}, which would be one column, {column_name(name)}"
    return None


def find(name: str, findings: Sequence[str]) -> int | None:
    """The position of a finding by its name, or by another spelling of NIH's (`ALIASES`); None without."""
    name = name.strip()
    if name in findings:
        return findings.index(name)
    spelled = [ALIASES.get(finding, finding) for finding in findings]
    return spelled.index(ALIASES.get(name, name)) if ALIASES.get(name, name) in spelled else None


def plain_spelling(name: str) -> str:
    """A name without case, spaces and signs: two that agree in it are likely one, misspelled."""
    return re.sub(r"[^0-9a-z]", "", name.casefold())


def shared(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The findings that all lists have, by name, in the order of the first."""
    first, *others = lists
    return tuple(name for name in first if all(name in other for other in others))


def of_file(content: Mapping[str, Any]) -> Any:
    """The `findings` that a JSON file of a run names; one from before files named them is of NIH's 14."""
    return content.get("findings", list(FINDINGS))
