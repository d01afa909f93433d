"""Which packages serve at run time, and their files, for the environment that executors unpack.

Read from the metadata of the environment that is set up (``importlib.metadata``): what chexspark with
its extras asks for, and what that asks for in turn. Tests, lint and notebooks need more, which stays out.
"""

import re
import shutil
from collections.abc import Iterable
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WANTED = "chexspark[train,report,export,dicom,mlflow,search]"

# TensorFlow asks for libclang, which none of its modules imports.
NEVER_IMPORTED = {"libclang"}

# Folders that nothing reads at run time: the cluster has a Spark of its own, and nothing is compiled.
LEFT_OUT = tuple(
    f"{folder}/"
    for folder in (
        "tensorflow/include",
        *(f"pyspark/{name}" for name in (
            "bin", "conf", "data", "examples", "jars", "licenses", "python", "sbin",
        )),
    )
)  # fmt: skip

# Of these packages the tests are large, and none of their modules outside of tests imports them.
WITHOUT_TESTS = {"matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn"}


def requirements(found: Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What an installed package asks for on this machine, with these of its extras."""
    asked = [Requirement(text) for text in found.requires or ()]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [
        r for r in asked
        if r.marker is None or any(map(r.marker.evaluate, environments))
    ]  # fmt: skip


def closure(wanted: Iterable[str], find=distribution) -> list[str]:
    """Names of the packages that requirements need, themselves included, in order.

    :param find: returns the distribution of a name. Raises PackageNotFoundError where one is lacking.
    """
    todo = [Requirement(text) for text in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen or key[0] in NEVER_IMPORTED:
            continue
        seen.add(key)
        todo += requirements(find(key[0]), requirement.extras)
    return sorted({name for name, _ in seen})


def locked_names(lock: Path) -> list[str]:
    """The names of the packages in a lock."""
    return re.findall(r"^([\w.-]+)==", lock.read_text(), flags=re.MULTILINE)


def is_packed(file: str) -> bool:
    """Whether a file of a package, named from the folder of packages, serves at run time."""
    path = Path(file)
    if path.parts[0] == ".." or "__pycache__" in path.parts or path.name == "direct_url.json":
        return False
    if path.parts[0] in WITHOUT_TESTS and "tests" in path.parts[:-1]:
        return False
    return not file.startswith(LEFT_OUT)


def copy_package(name: str, to: Path) -> None:
    """Copy an installed package into the folder of packages ``to``, its record shortened likewise."""
    found = distribution(name)
    for file in filter(lambda file: is_packed(str(file)), found.files or ()):
        target = to / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "RECORD" and file.parent.suffix == ".dist-info":
            target.write_text(shortened(file))
        else:
            shutil.copy(found.locate_file(file), target)


def shortened(record: PackagePath) -> str:
    """A package's RECORD without the files that are not packed."""
    lines = record.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if is_packed(line.strip('"')))
