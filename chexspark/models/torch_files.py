"""Files of PyTorch's tensors, read as data: by name, whoever saved them. Anywhere; no PyTorch.

In: what ``torch.save`` writes, a ZIP archive or, before PyTorch 1.6, pickles with numbers behind them; or a
``.safetensors`` file. It may hold a state, one within a checkpoint, or a whole module. Out: tensors by where they
stand: ``state_dict.module.features.conv0.weight``. Pickles are read by `pickles`, which does nothing that they
say; a module is told by the dicts that each has, ``_parameters``, ``_buffers`` and ``_modules``. All that is read
lies in the file, as long as the file says before anything is read, and no tensor is larger than its numbers.
"""

import contextlib
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, deserialize

from chexspark.models.model_files import MOST_BYTES, ZIP_MARK, member
from chexspark.models.pickles import Made, Name, Stored, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of before PyTorch 1.6
LEGACY_MARK = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")
PROTOCOL = 1001  # the second
SAFETENSORS = ".safetensors"  # which have no mark
PICKLE = "data.pkl"  # the member of a ZIP archive, in a folder that may have any name
MOST_PICKLE = 64 << 20  # bytes; a module's has its source code too
LONGEST_NAME, MOST_AXES = 300, 8
BFLOAT16 = "bfloat16"  # not of numpy's types
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": BFLOAT16, "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1",
    "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
}  # fmt: skip
SAFE_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": BFLOAT16, "I64": "i8", "I32": "i4"}
TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
WITH_TYPE = "torch._tensor._rebuild_from_type_v2"
MOST_WRAPPERS = 4  # around a tensor
OF_MODULE = ("_parameters", "_buffers", "_modules")  # dicts in the state of a module
COUNT_BYTES = 8  # before the numbers of a storage


@dataclass(frozen=True)
class Tensor:
    """Numbers that are read when they are asked for: float64 (`shape`) or another type of numbers."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, of `shape`. Raises ValueError and others for damage."""
        return np.asarray(self.read(), dtype)

    def changed(
        self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
    ) -> "Tensor":
        """This one after a `change` that makes it of `shape`."""
        return Tensor(shape, lambda: change(self.read()))


Tensors = Mapping[str, Tensor]
Bytes = Callable[[str, int], bytes]  # a storage's key and length → its content


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, as a persistent id names them; `first`: of a view, in numbers."""

    key: str
    kind: str  # of numpy, or BFLOAT16
    count: int
    first: int = 0

    @property
    def length(self) -> int:
        """In bytes."""
        return self.count * item_size(self.kind)


def is_torch_file(file: IO[bytes], name: str) -> bool:
    """Whether a file is one of those read here, by its first bytes and members; it is left at its beginning.

    `name`: its last part is looked at, since safetensors have no mark. Raises zipfile.BadZipFile, or OSError.
    """
    begin = file.read(len(LEGACY_MARK))
    file.seek(0)
    if begin.startswith(ZIP_MARK):
        with zipfile.ZipFile(file) as archive:
            found = any(is_pickle(member) for member in archive.namelist())
        file.seek(0)
        return found
    return begin == LEGACY_MARK or name.endswith(SAFETENSORS)


def is_pickle(name: str) -> bool:
    """Whether a member of a ZIP archive is where PyTorch writes its pickle."""
    return name.rpartition("/")[2] == PICKLE


@contextlib.contextmanager
def opened_tensors(file: IO[bytes]) -> Iterator[Tensors]:
    """The tensors of a file, to be read while it is open. Raises one of `model_files.DAMAGE`."""
    begin = file.read(len(LEGACY_MARK))
    file.seek(0)
    if begin.startswith(ZIP_MARK):
        with zipfile.ZipFile(file) as archive:
            yield zip_tensors(archive)
    elif begin == LEGACY_MARK:
        yield legacy_tensors(file)
    else:
        yield safe_tensors(file)


def safe_tensors(file: IO[bytes]) -> Tensors:
    """The tensors of a ``.safetensors`` file. Raises ValueError for damage."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        parts = deserialize(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return {
        name: Tensor(
            tuple(part["shape"]),
            functools.partial(
                lambda kind, part: numbers(part["data"], kind).reshape(part["shape"]),
                SAFE_TYPES[part["dtype"]],
                part,
            ),
        )
        for name, part in parts
        if part["dtype"] in SAFE_TYPES
    }


def zip_tensors(archive: zipfile.ZipFile) -> Tensors:
    """The tensors of the ZIP archive that PyTorch writes from 1.6 on. Raises one of `model_files.DAMAGE`."""
    pickles = [name for name in archive.namelist() if is_pickle(name)]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} members {PICKLE}")
    folder = pickles[0].removesuffix(PICKLE)
    order = "<"
    if f"{folder}byteorder" in archive.namelist():
        order = ">" if member(archive, f"{folder}byteorder", 16) == b"big" else "<"

    def content_of(key: str, length: int) -> bytes:
        info = archive.getinfo(f"{folder}data/{key}")
        # Whatever takes less room in the file than in memory was not written by PyTorch.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < length:
            raise ValueError(f"storage {key} is not as long as the pickle says, or is compressed")
        with archive.open(info) as file:
            return file.read(length)

    root, _ = read_pickle(io.BytesIO(member(archive, pickles[0], MOST_PICKLE)))
    return named_tensors(root, content_of, order)


def legacy_tensors(file: IO[bytes]) -> Tensors:
    """The tensors of a file of before PyTorch 1.6. Raises one of `model_files.DAMAGE`.

    Five pickles: the magic number, the protocol, the machine, the object, the keys of its storages; then of each
    storage the count, int64, and its numbers.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    pickles = io.BytesIO(file.read(MOST_PICKLE))
    if (read_pickle(pickles)[0], read_pickle(pickles)[0]) != (MAGIC, PROTOCOL):
        raise ValueError("it is of another protocol")
    read_pickle(pickles)
    root, stored = read_pickle(pickles)
    keys, _ = read_pickle(pickles)
    lengths = {s.key: s.length for s in map(storage_of, stored) if s is not None}
    place, places = pickles.tell(), {}
    for key in keys:
        if key not in lengths:
            raise ValueError("it has a storage of no known type")
        place += COUNT_BYTES
        places[key] = place
        place += lengths[key]
    if place > size:
        raise ValueError(f"its storages end at byte {place:,}, and the file at {size:,}")

    def content_of(key: str, length: int) -> bytes:
        file.seek(places[key])
        return file.read(length)

    return named_tensors(root, content_of, "<")


def named_tensors(root: Any, content_of: Bytes, order: str) -> dict[str, Tensor]:
    """All tensors in a value of `pickles`, by where they stand, in its order. Raises ValueError.

    `order`: of the bytes, as numpy has it. What stands in two places is taken from the first.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", root)]
    while left:
        name, value = left.pop()
        if (tensor := tensor_of(value, content_of, order)) is not None:
            found.setdefault(name, tensor)
        elif id(value) not in seen and len(name) < LONGEST_NAME:
            seen.add(id(value))
            parts = [(f"{name}.{key}" if name else key, part) for key, part in parts_of(value)]
            left += reversed(parts)
    return found


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """What stands in a value of `pickles`, by text: the items of a dict, the members of a list, what a module has."""
    if isinstance(value, (list, tuple)):
        return [(str(i), part) for i, part in enumerate(value)]
    parts = items_of(value)
    state = value.state if isinstance(value, Made) and isinstance(value.state, dict) else {}
    for own in OF_MODULE:
        parts += items_of(state.get(own))
    return parts


def items_of(value: Any) -> list[tuple[str, Any]]:
    """The items of a dict, and of what is made as one is: of items, or of a list of pairs. Keys are texts."""
    if isinstance(value, dict):
        pairs: list[Any] = list(value.items())
    elif isinstance(value, Made):
        arguments = value.arguments if isinstance(value.arguments, tuple) else ()
        pairs = list(arguments[0]) if arguments and isinstance(arguments[0], list) else []
        pairs += value.items.items()
    else:
        return []
    pairs = [pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [(key, part) for key, part in pairs if isinstance(key, str)]


def tensor_of(value: Any, content_of: Bytes, order: str) -> Tensor | None:
    """The tensor that a value of `pickles` would make; None for another value, or of no type of numbers.

    Raises ValueError for one that is not within its storage.
    """
    for _ in range(MOST_WRAPPERS):
        if not isinstance(value, Made) or not isinstance(value.what, Name):
            return None
        if not isinstance(value.arguments, tuple):
            return None
        path, arguments = value.what.path, value.arguments
        if path in TENSOR:
            return strided(storage_of(arguments[0]), arguments[1:4], content_of, order)
        if path in PARAMETER:
            value = arguments[0]
        elif path == WITH_TYPE:
            value = Made(arguments[0], arguments[2])
    return None


def storage_of(value: Any) -> Storage | None:
    """The storage that a persistent id names; None where it is of another type. Raises ValueError for damage."""
    said = value.said if isinstance(value, Stored) else None
    if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage":
        return None
    _, kind, key, _, count, *view = said
    first = view[0][1] if view and isinstance(view[0], tuple) else 0
    name = kind.path.rpartition(".")[2] if isinstance(kind, Name) else ""
    if name not in STORAGES:
        return None
    if not isinstance(key, str) or not are_counts(count, first):
        raise ValueError("a storage has no key, or no length")
    if count * item_size(STORAGES[name]) > MOST_BYTES:
        raise ValueError(f"storage {key} has more than {MOST_BYTES >> 20} MiB")
    return Storage(key, STORAGES[name], count, first)


def strided(storage: Storage | None, layout: tuple, content_of: Bytes, order: str) -> Tensor | None:
    """The tensor that lies in a storage by a `layout` of offset, size and stride, all in numbers.

    Raises ValueError where it does not lie in it, or has more numbers than it.
    """
    if storage is None:
        return None
    offset, size, stride = layout
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        raise ValueError(f"a tensor in storage {storage.key} has no size, or no stride")
    if len(size) > MOST_AXES or not are_counts(offset, *size, *stride):
        raise ValueError(f"a tensor in storage {storage.key} has a size that is none")
    first, count = storage.first + offset, math.prod(size)
    end = first + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.count or (count and end > storage.count):
        raise ValueError(f"a tensor is not within its storage, {storage.key}")

    def read() -> np.ndarray:
        content = content_of(storage.key, storage.length)
        if len(content) != storage.length:
            raise ValueError(f"storage {storage.key} breaks off")
        values = numbers(content, storage.kind, order)[first:]
        steps = [step * values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(values, size, steps, writeable=False)

    return Tensor(size, read if count else lambda: np.zeros(size))


def are_counts(*values: Any) -> bool:
    """Whether all are whole numbers that can count numbers in a file."""
    return all(type(value) is int and 0 <= value <= MOST_BYTES for value in values)


def item_size(kind: str) -> int:
    """Bytes of a number."""
    return 2 if kind == BFLOAT16 else np.dtype(kind).itemsize


def numbers(content: bytes, kind: str, order: str = "<") -> np.ndarray:
    """The numbers in some bytes, (count,); bfloat16 as the float32 that it is the upper half of."""
    if kind != BFLOAT16:
        return np.frombuffer(content, order + kind)
    halves = np.frombuffer(content, order + "u2")
    return (halves.astype(np.uint32) << 16).view(np.float32)
