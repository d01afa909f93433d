"""Petastorm on today's pyarrow and numpy. Runs on the driver.

Petastorm 0.13.1 stands on what pyarrow gave up long since: the modules ``pyarrow.filesystem`` and
``pyarrow.hdfs``, ``pyarrow.localfs``, and a ParquetDataset of pieces; and on two names that numpy 2
no longer has. Its modules get their own view of pyarrow and numpy, with what they need:

    with petastorm_imports():
        from petastorm import make_reader

The modules and names are there while Petastorm is imported, then gone again: others never see them.
Readers work as before for local files and for what fsspec opens; ``hdfs://`` does not, nor
do Hive's partitions and ``filters``. ``materialize_dataset`` needs
``filesystem_factory=LocalFileSystem``, as Spark's tasks import pyarrow anew.
``tests/test_petastorm.py`` tells when a release needs none of it.

In: nothing. Out: Petastorm's modules, imported; pyarrow, numpy and all others as they were.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem


class ParquetDatasetPiece(NamedTuple):
    """A file of Parquet, or one row group of it: pyarrow's class of that name, as far as it is used."""

    path: str
    open_file_func: Callable[[str], BinaryIO]
    row_group: int | None = None
    partition_keys: tuple = ()

    def get_metadata(self) -> pq.FileMetaData:
        """The file's footer."""
        with self.open_file_func(self.path) as file:
            return pq.read_metadata(file)

    def read(self, columns: Iterable[str], partitions: None = None) -> pa.Table:
        """The row group's columns."""
        with self.open_file_func(self.path) as file:
            return pq.ParquetFile(file).read_row_group(self.row_group, columns=list(columns))


class ParquetDataset:
    """Parquet files as pieces: pyarrow's old class of that name, as far as Petastorm uses it."""

    partitions = None

    def __init__(
        self,
        path_or_paths: str | list[str],
        filesystem: Any = None,
        validate_schema: bool = False,
        metadata_nthreads: int = 1,
        filters: None = None,
    ) -> None:
        if validate_schema or filters is not None:
            raise NotImplementedError("neither validate_schema nor filters is kept")
        self.fs = LocalFileSystem() if filesystem is None else filesystem
        self.paths = path_or_paths
        if isinstance(path_or_paths, str) and self.fs.isdir(path_or_paths):
            files = sorted(p for p in self.fs.find(path_or_paths) if named_as_data(p))
        else:
            files = [path_or_paths] if isinstance(path_or_paths, str) else path_or_paths
        self.pieces = [ParquetDatasetPiece(path, self.fs.open) for path in files]
        self.metadata_path = f"{path_or_paths}/_metadata"
        self.metadata = self.footer("_metadata")
        self.common_metadata = self.footer("_common_metadata")

    def footer(self, name: str) -> pq.FileMetaData | None:
        """What a file of that name beside the data says, where there is one."""
        place = f"{self.paths}/{name}"
        if not isinstance(self.paths, str) or not self.fs.exists(place):
            return None
        return ParquetDatasetPiece(place, self.fs.open).get_metadata()


def named_as_data(path: str) -> bool:
    """Whether a file of a dataset is data, by its name."""
    return not path.rsplit("/", 1)[-1].startswith(("_", "."))


class View(ModuleType):
    """A module with some further names."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __reduce__(self) -> tuple:
        return import_module, (self.__name__,)  # in a Spark task it is the module itself


def module(name: str, **names: Any) -> ModuleType:
    """A new module with these names."""
    made = ModuleType(name)
    made.__dict__.update(names)
    return made


NUMPY_NAMES = {"unicode_": np.str_, "string_": np.bytes_}
MODULES = {
    "pyarrow.filesystem": module("pyarrow.filesystem", LocalFileSystem=LocalFileSystem),
    "pyarrow.hdfs": module("pyarrow.hdfs", HadoopFileSystem=type("HadoopFileSystem", (), {})),
}
PARQUET = View(pq, ParquetDataset=ParquetDataset, ParquetDatasetPiece=ParquetDatasetPiece)
VIEWS = (PARQUET, View(pa, localfs=LocalFileSystem(), parquet=PARQUET), View(np, **NUMPY_NAMES))


@contextmanager
def petastorm_imports() -> Iterator[None]:
    """Imports of Petastorm work in this block."""
    modules = {name: made for name, made in MODULES.items() if name not in sys.modules}
    names = {name: kind for name, kind in NUMPY_NAMES.items() if not hasattr(np, name)}
    sys.modules.update(modules)
    vars(np).update(names)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        for name in names:
            delattr(np, name)
        views = {id(view._module): view for view in VIEWS}
        for name, imported in list(sys.modules.items()):
            if name.partition(".")[0] == "petastorm":
                for key, value in list(vars(imported).items()):
                    if id(value) in views:
                        setattr(imported, key, views[id(value)])
