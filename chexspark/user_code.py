"""Code of the user's own, named ``package.module:function``: found, sent along, imported. Runs anywhere.

In: a name, on the driver, which finds the code without running it. Out: `Code`, plain text that goes to ranks,
tasks and child processes, and the function there. Nothing is imported because a file says so: only what the
user has named in a call.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import zipimport
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from chexspark.errors import UserError, closest, listed

MOST_CODE = 16 << 20  # bytes of a network's code
MOST_FILES = 5000


class Code(NamedTuple):
    """The Python files of a network: of the module, or of the whole package that it is in."""

    name: str  # package.module:function
    files: tuple[tuple[str, str], ...]  # path below the package's parent → source, in order

    @property
    def digest(self) -> str:
        """SHA-256 of paths and sources."""
        found = hashlib.sha256()
        for path, source in self.files:
            found.update(f"{len(path)} {path} {len(source)} {source}".encode())
        return found.hexdigest()

    @property
    def module(self) -> str:
        """``package.module``."""
        return self.name.partition(":")[0]

    @property
    def top(self) -> str:
        """``package``."""
        return self.module.partition(".")[0]


def find_code(setting: str, name: str) -> Code:
    """The code of a function; nothing of it is run. `setting`: the flag that names it, for messages.

    It is looked for where Python looks for modules, and then in the working directory. Raises UserError for a
    name that is none, and for code that is not there or cannot be sent.
    """
    module, _, function = name.partition(":")
    said = f"{setting}={name}"
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise UserError(f"{said} is no package.module:function")
    top = module.partition(".")[0]
    if top == "__main__":
        raise UserError(
            f"{said}: put the function into a file of its own, mine.py say, and name it mine:{function}: other "
            "processes cannot import what is typed in here"
        )
    code = Code(name, tuple(sorted(read_files(said, spec_of(said, top)))))
    paths = [path for path, _ in code.files]
    place = module.replace(".", "/")
    if not {f"{place}.py", f"{place}/__init__.py"} & set(paths):
        raise UserError(f"{said}: {top} has no module {module} ({listed(paths)})")
    return code


def spec_of(said: str, top: str) -> importlib.machinery.ModuleSpec:
    """Where a top-level module or package is. Raises UserError where there is none."""
    importlib.invalidate_caches()
    # Neither what has been imported nor what was sent here: the file may be another by now.
    finders = [finder for finder in sys.meta_path if not isinstance(finder, SentCode)]
    specs = (finder.find_spec(top, None) for finder in finders)
    found = next(filter(None, specs), None)
    found = found or importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
    if found is None:
        raise UserError(
            f"{said}: there is no module {top} where Python looks for it, nor in {os.getcwd()}: "
            "name it as it is imported, and set PYTHONPATH, or give it to spark-submit by --py-files"
        )
    return found


def read_files(said: str, spec: importlib.machinery.ModuleSpec) -> Iterator[tuple[str, str]]:
    """The Python files of a module or package: path and source. Raises UserError for what cannot be sent."""
    if isinstance(spec.loader, zipimport.zipimporter):
        found = zipped(spec.loader, spec.name)
    elif spec.submodule_search_locations:
        found = below(spec.name, [Path(place) for place in spec.submodule_search_locations])
    elif spec.origin and spec.origin.endswith(".py"):
        found = iter([(f"{spec.name}.py", Path(spec.origin).read_bytes())])
    else:
        raise UserError(f"{said}: {spec.name} is no Python file ({spec.origin})")
    total = number = 0
    for path, content in found:
        total, number = total + len(content), number + 1
        if total > MOST_CODE or number > MOST_FILES:
            raise UserError(
                f"{said}: the package {spec.name} has more than {MOST_CODE >> 20} MiB or {MOST_FILES:,} "
                "files of Python, too much to send to ranks: put the network into a package of its own"
            )
        try:
            yield path, importlib.util.decode_source(content)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise UserError(f"{said}: {path} is no Python: {error}") from error


def below(top: str, places: list[Path]) -> Iterator[tuple[str, bytes]]:
    """The Python files of a package's folders, without hidden ones."""
    for place in places:
        for folder, inside, files in os.walk(place):
            inside[:] = sorted(name for name in inside if name.isidentifier())
            for file in sorted(files):
                if file.endswith(".py") and not file.startswith("."):
                    path = Path(folder) / file
                    yield str(Path(top) / path.relative_to(place)), path.read_bytes()


def zipped(loader: zipimport.zipimporter, top: str) -> Iterator[tuple[str, bytes]]:
    """The Python files of a module or package in a ZIP archive, as ``--py-files`` takes them."""
    prefix = loader.prefix.replace(os.sep, "/")
    for entry in loader._files.values():  # type: ignore[attr-defined]  # which is how zipimport lists them
        path = entry[0].removeprefix(loader.archive).strip(os.sep).replace(os.sep, "/")
        inner = path.removeprefix(prefix)
        if inner.endswith(".py") and (inner == f"{top}.py" or inner.startswith(f"{top}/")):
            yield inner, loader.get_data(path)


class SentCode(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules out of a `Code`."""

    def __init__(self, code: Code) -> None:
        self.code, self.files = code, dict(code.files)

    def place_of(self, name: str) -> str | None:
        """The path of a module."""
        place = name.replace(".", "/")
        return next((p for p in (f"{place}/__init__.py", f"{place}.py") if p in self.files), None)

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What Python asks for a module."""
        if place := self.place_of(name):
            return importlib.util.spec_from_loader(name, self, origin=place)
        if any(path.startswith(name.replace(".", "/") + "/") for path in self.files):
            return importlib.machinery.ModuleSpec(name, None, is_package=True)
        return None

    def is_package(self, name: str) -> bool:
        """Whether a module has others in it."""
        return (self.place_of(name) or "").endswith("/__init__.py")

    def get_source(self, name: str) -> str:
        """The text of a module."""
        return self.files[self.place_of(name) or ""]


def load_function(code: Code, setting: str) -> Any:
    """Import a function, in place of an earlier version of its package. Runs its code.

    Raises UserError for what its modules raise, and where it is not there.
    """
    for finder in [each for each in sys.meta_path if isinstance(each, SentCode)]:
        if finder.code.top == code.top and finder.code.files != code.files:
            sys.meta_path.remove(finder)
            forget(code.top)
    if not any(isinstance(each, SentCode) and each.code.top == code.top for each in sys.meta_path):
        forget(code.top)  # what was imported from elsewhere
        sys.meta_path.insert(0, SentCode(code))
    return function_of(code, setting)


def import_function(setting: str, name: str) -> Any:
    """Import a function for this process, as Python does, also from the working directory. Runs its code.

    Raises UserError as `find_code` and `load_function` do.
    """
    code = find_code(setting, name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return function_of(code, setting)


def function_of(code: Code, setting: str) -> Any:
    """See `load_function`, which raises the same."""
    try:
        module = importlib.import_module(code.module)
    except Exception as error:  # of any kind: it is the user's code
        raise UserError(f"{setting}={code.name} cannot be imported: {told(error)}") from error
    wanted = code.name.partition(":")[2]
    function = getattr(module, wanted, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{setting}={code.name}: {code.module} has no function {wanted}{closest(wanted, names)}"
        )
    return function


def forget(top: str) -> None:
    """Have Python import a package anew."""
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]


def told(error: BaseException) -> str:
    """An exception of the user's code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
