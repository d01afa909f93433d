"""Files of Keras models, read as data: which arrays each layer has. Anywhere; no Keras, no TensorFlow.

In: a ``.keras`` file of Keras 3 or of its version 3 format before (tf_keras), or an HDF5 file: a whole model
or its weights alone. Out: arrays by the layer's name. Keras's own loaders are not asked: they build what
the file names, and import it, in their safe mode too. Nothing here follows a link out of the file, and
sizes are bounded before anything is read.

A name has ``_`` for ``/``: ``conv1/conv`` of Keras 2 is ``conv1_conv`` of Keras 3. Layers of a model within
the model count as its own.
"""

import contextlib
import io
import json
import lzma
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import h5py
import numpy as np

from chexspark.run.best import CONFIG

HDF5_MARK, ZIP_MARK = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
WEIGHTS = "model.weights.h5"  # of a .keras file, as CONFIG is
MOST_BYTES = 2 << 30  # of all arrays of a model
MOST_CONFIG = 32 << 20  # bytes
MOST_DEPTH = 4  # models within models
MOST_GROUPS = 30  # of HDF5, within each other
UNDRAWN = ("dtype", "build_config", "compile_config", "registered_name", "module")
# What HDF5, JSON, pickles and ZIP raise for damage.
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError,
          MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)  # fmt: skip


class Array(Protocol):
    """An array in a file: a dataset of HDF5, a tensor of PyTorch; numpy reads it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Known before it is read."""

    def __array__(self, dtype: Any = None) -> np.ndarray:
        """The numbers, of `shape`."""


Arrays = Mapping[str, Sequence[Array]]  # a layer's plain name → its arrays, in Keras's order


class LambdaError(ValueError):
    """The model has a layer that carries code; the message names it."""


def plain_name(name: str) -> str:
    """A layer's name with ``_`` for ``/``."""
    return name.strip("/").replace("/", "_")


@contextlib.contextmanager
def opened_arrays(file: IO[bytes]) -> Iterator[Arrays]:
    """The arrays of a model's file, to be read while it is open. Raises LambdaError, or one of `DAMAGE`."""
    mark = file.read(len(HDF5_MARK))
    file.seek(0)
    if not mark.startswith(ZIP_MARK):
        with h5py.File(file, "r") as hdf:
            yield checked(arrays_of(hdf, {}))
        return
    with zipfile.ZipFile(file) as archive:
        names = layer_names(json.loads(member(archive, CONFIG, MOST_CONFIG)))
        with h5py.File(io.BytesIO(member(archive, WEIGHTS, MOST_BYTES)), "r") as hdf:
            yield checked(arrays_of(hdf, names))


def check_weights_file(content: bytes) -> None:
    """Look through the arrays of a ``.keras`` file, for Keras to read. Raises one of `DAMAGE`.

    For a network of the user's own, whose layers may file their arrays as they like: they are numbers, finite,
    in this file, and not too many.
    """
    hdf_content = weights_of(content)
    total = 0

    def check(group: h5py.Group, depth: int) -> None:
        nonlocal total
        if depth > MOST_GROUPS:
            raise ValueError("groups within groups without end")
        for name in group:
            found = inside(group, name)
            if isinstance(found, h5py.Group):
                check(found, depth + 1)
                continue
            checked({name: [found]})
            total += found.size * found.dtype.itemsize
            if total > MOST_BYTES:
                raise ValueError(f"its arrays have more than {MOST_BYTES >> 20} MiB")
            values_of([found])

    with h5py.File(io.BytesIO(hdf_content), "r") as hdf:
        check(hdf, 0)


def weights_of(content: bytes) -> bytes:
    """The HDF5 file in a ``.keras`` file. Raises one of `DAMAGE`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return member(archive, WEIGHTS, MOST_BYTES)


def drawing_of(content: bytes) -> Any:
    """What a ``.keras`` file says of its layers and how they follow each other, as data; see `drawn`.

    Raises one of `DAMAGE`.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return drawn(json.loads(member(archive, CONFIG, MOST_CONFIG)))


def has_own_code(content: bytes) -> bool:
    """Whether a ``.keras`` file names layers that are not Keras's own, or are functions: what those do is not in it.

    Raises one of `DAMAGE`.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        left = [json.loads(member(archive, CONFIG, MOST_CONFIG))]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            foreign = not str(part.get("module")).startswith(("keras.", "tf_keras."))
            if part.get("class_name") == "Lambda" or (part.get("registered_name") and foreign):
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def drawn(config: Any) -> Any:
    """A model's config without what does not change its figures: precision, and what is only for loading."""
    if isinstance(config, dict):
        return {name: drawn(value) for name, value in config.items() if name not in UNDRAWN}
    return [drawn(value) for value in config] if isinstance(config, list) else config


def member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most so many bytes, whatever the directory says. Raises one of `DAMAGE`."""
    with archive.open(name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {most >> 20} MiB")
    return content


def layer_names(config: Any, depth: int = 0) -> dict[str, Any]:
    """The names of a model's layers, by the key under which their arrays are filed: class and count.

    A model within the model has a dict of its own. Raises LambdaError, or one of `DAMAGE`.
    """
    if depth > MOST_DEPTH:
        raise ValueError("models within models without end")
    times: dict[str, int] = {}
    names: dict[str, Any] = {}
    for layer in config["config"]["layers"]:
        kind, inner = str(layer["class_name"]), layer.get("config", {})
        name = str(layer.get("name") or inner["name"])
        if kind == "Lambda":
            raise LambdaError(f"layer {name} is a Lambda, which carries code")
        key = kind.lower()
        number = times[key] = times.get(key, -1) + 1
        filed = f"{key}_{number}" if number else key
        names[filed] = layer_names(layer, depth + 1) if "layers" in inner else name
    return names


def arrays_of(hdf: h5py.File, names: Mapping[str, Any]) -> dict[str, list[h5py.Dataset]]:
    """The arrays of each layer, by the layout that the file has. `names`: of `layer_names`, if it has any."""
    found: dict[str, list[h5py.Dataset]] = {}
    if "layers" in hdf:
        add_layers(inside(hdf, "layers"), names, found)
        return found
    top = inside(hdf, "model_weights") if "model_weights" in hdf else hdf
    for layer in texts(top, "layer_names"):
        group = inside(top, layer)
        paths = texts(group, "weight_names")
        arrays = [inside(group, path) for path in paths]
        few = len(paths) <= len(("gamma", "beta", "mean", "variance"))
        if few and len(set(map(posixpath.dirname, paths))) <= 1:
            add(found, layer, arrays)
            continue
        for path, array in zip(
            paths, arrays, strict=True
        ):  # a model within: its layers by their arrays
            add(found, posixpath.dirname(path), [array], several=True)
    return found


def add_layers(group: h5py.Group, names: Mapping[str, Any], found: dict[str, list]) -> None:
    """Add the layers of a group of Keras's version 3 format, and of models within it."""
    plain = {
        re.sub("_(?!\\d+$)", "", key): key for key in group
    }  # batch_normalization_3 → its class in one
    for key, filed in plain.items():
        layer = inside(group, filed)
        known = names.get(key)
        if "layers" in layer:
            add_layers(inside(layer, "layers"), known if isinstance(known, dict) else {}, found)
        if "vars" not in layer or not len(inside(layer, "vars")):
            continue
        values = inside(layer, "vars")
        name = values.attrs.get("name", known)
        if not isinstance(name, str):
            raise ValueError(f"layer {filed} has no name: save the whole model")
        add(found, name, [inside(values, str(i)) for i in range(len(values))])


def add(found: dict[str, list], name: str, arrays: list, several: bool = False) -> None:
    """Add arrays of a layer. Raises ValueError for a second layer of that name."""
    name = plain_name(name)
    if name in found and not several:
        raise ValueError(f"two layers are called {name}")
    found.setdefault(name, []).extend(arrays)


def texts(group: h5py.Group, name: str) -> list[str]:
    """A list of texts among a group's attributes, which Keras cuts into ``name0``, ``name1`` … where it is long."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs and name not in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    if not parts:
        raise ValueError(f"no {name}: these are no weights of Keras")
    return [t.decode() if isinstance(t, bytes) else str(t) for part in parts for t in part]


def inside(group: h5py.Group, path: str) -> Any:
    """What is at a path below a group, in this file. Raises ValueError for a link that leads elsewhere."""
    here: Any = group
    for part in filter(None, path.split("/")):
        if not isinstance(here.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{path} is a link")
        here = here[part]
    return here


def checked(found: dict[str, list[h5py.Dataset]]) -> Arrays:
    """The arrays, if they are numbers in this file, and not too many. Raises ValueError."""
    total = 0
    for name, arrays in found.items():
        for array in arrays:
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu":
                raise ValueError(f"layer {name} has something that is no array of numbers")
            if array.is_virtual or array.external:
                raise ValueError(f"layer {name} has an array in another file")
            total += array.size * array.dtype.itemsize
    if total > MOST_BYTES:
        raise ValueError(f"its arrays have more than {MOST_BYTES >> 20} MiB")
    return found


def shapes_of(arrays: Arrays) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each layer's arrays, of the layers that have any."""
    return {name: [array.shape for array in each] for name, each in arrays.items() if each}


def values_of(arrays: Sequence[Array]) -> list[np.ndarray]:
    """The arrays of a layer, read: each of the shape that `shapes_of` tells. Raises ValueError for one with
    what is no number."""
    values = [np.asarray(array) for array in arrays]
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError("an array holds what is no number")
    return values
