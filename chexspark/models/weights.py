"""Weights to start from. `check_weights` runs on the driver, the rest on ranks.

In: a path. It leads to ImageNet weights in the layout of Keras applications (HDF5, without the
top), or to a model that chexspark trained: a run, whose best model is taken, or a ``.keras`` file.
Out: a model with these weights, and one line that says what was taken.

A ``.keras`` file is read as data, a list of layers and their arrays. Keras's own loader is not
asked: it imports whatever the file names, in its safe mode too.
"""

import io
import json
import re
import zipfile

import h5py
import numpy as np

from chexspark.errors import UserError
from chexspark.models import LOGITS, MODELS
from chexspark.run.folder import RunFolder
from chexspark.storage import Location, locate

HDF5_MARK, ZIP_MARK = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


def check_weights(name: str, uri: str) -> None:
    """Raise UserError unless network `name` may start from `uri`, as far as this is cheap to know."""
    place, mark = find_weights(name, uri)
    if mark == HDF5_MARK:
        if MODELS[name].weights is None:
            raise UserError(
                f"--weights {place}: {name} has no ImageNet weights in an HDF5 file; give a run, or "
                "a .keras file, of an earlier training"
            )
        return
    try:
        with place.filesystem.open_input_file(place.path) as file, zipfile.ZipFile(file) as archive:
            layers_of(archive, place)
            archive.getinfo("model.weights.h5")
    except DAMAGE as error:
        raise unreadable(place, error) from error


def find_weights(name: str, uri: str) -> tuple[Location, bytes]:
    """The file that `uri` means, and by which mark it begins.

    Raises UserError when there is none, or when it is of no known kind.
    """
    place = locate(uri)
    if place.is_directory():
        run, place = place, RunFolder(place).best_model
        if not place.is_file():
            raise UserError(f"--weights {run}: this folder is not a run with a best/model.keras")
    if not place.is_file():
        imagenet = MODELS[name].weights
        remedy = f"; {name}'s ImageNet weights are {imagenet}" if imagenet else ""
        raise UserError(f"--weights {place}: there is no such file or run{remedy}")
    with place.filesystem.open_input_file(place.path) as file:
        start = file.read(len(HDF5_MARK))
    for mark in (HDF5_MARK, ZIP_MARK):
        if start.startswith(mark):
            return place, mark
    raise UserError(
        f"--weights {place} is not an HDF5 file of Keras weights, and no .keras file either"
    )


def load_weights(model, name: str, uri: str) -> str:
    """Give `model`, which is network `name`, the weights at `uri`; say in a line what was taken.

    Of ImageNet weights all but the logits; of a trained model each layer of the same name and shapes.
    Raises UserError when the file is damaged, or of another network.
    """
    place, mark = find_weights(name, uri)
    with place.local_copy() as path:
        if mark == HDF5_MARK:
            return load_imagenet(model, name, place, str(path))
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = read_arrays(archive, place)
        except DAMAGE as error:
            raise unreadable(place, error) from error
    return take_layers(model, arrays, place)


def load_imagenet(model, name: str, place: Location, path: str) -> str:
    """Load a file of Keras applications into all layers but the logits."""
    import tf_keras as keras

    trunk = keras.Model(model.inputs, model.get_layer(LOGITS).input)
    try:
        trunk.load_weights(path)
    except DAMAGE as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--weights {place}: not {name}'s ImageNet weights without the top ({reason}); take "
            f"{MODELS[name].weights}"
        ) from error
    return f"all layers but {LOGITS} start from {place}"


def layers_of(archive: zipfile.ZipFile, place: Location) -> list[tuple[str, str]]:
    """The class and the name of each layer of a ``.keras`` file, in the order of the model.

    Raises UserError for a Lambda layer: it carries code, which no model of ours does.
    """
    config = json.loads(archive.read("config.json"))
    layers = [(layer["class_name"], layer["name"]) for layer in config["config"]["layers"]]
    for kind, name in layers:
        if kind == "Lambda":
            raise UserError(
                f"--weights {place}: layer {name} is a Lambda, which carries code; "
                "only models without are taken"
            )
    return layers


def read_arrays(archive: zipfile.ZipFile, place: Location) -> dict[str, list[np.ndarray]]:
    """The arrays of each layer of a ``.keras`` file, by the layer's name.

    Keras files them by class and count, ``layers/conv2d_3/vars/0``, so the names, which stand in
    the config, are counted off per class.
    """
    names = {}
    for kind, name in layers_of(archive, place):
        names.setdefault(kind.lower(), []).append(name)
    arrays = {}
    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        for key, group in file["layers"].items():
            kind, number = re.fullmatch(r"(.+?)(?:_(\d+))?", key).groups()
            values = group["vars"]
            name = names[kind.replace("_", "")][int(number or 0)]
            arrays[name] = [np.asarray(values[str(i)]) for i in range(len(values))]
    return arrays


def take_layers(model, arrays: dict[str, list[np.ndarray]], place) -> str:
    """Give each layer of `model` the arrays of its name, where all shapes are the same."""
    with_weights = [layer for layer in model.layers if layer.weights]
    taken, left = [], []
    for layer in with_weights:
        found = [array.shape for array in arrays.get(layer.name, [])]
        (taken if found == [tuple(w.shape) for w in layer.weights] else left).append(layer)
    if not taken:
        raise UserError(
            f"--weights {place}: no layer has the name and shapes of one of {model.name}'s; this is "
            "of another network"
        )
    for layer in taken:
        layer.set_weights(arrays[layer.name])
    line = f"{len(taken)} of {len(with_weights)} layers start from {place}"
    names = ", ".join(layer.name for layer in left[:5]) + ", …" * (len(left) > 5)
    return f"{line}; fresh: {names}" if left else line


def unreadable(place: Location, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"--weights {place} is damaged, or not a Keras model ({reason})")


def trunk_layers(model) -> list:
    """All layers but the logits."""
    return [layer for layer in model.layers if layer.name != LOGITS]


def train_trunk(model, trainable: bool) -> None:
    """Freeze the trunk, or set it free again; the logits are always trained.

    A frozen normalisation uses its statistics and leaves them alone, as Keras defines it. Steps
    that were compiled before know nothing of the change: compile them anew, with the variables
    that are trainable then.
    """
    for layer in trunk_layers(model):
        layer.trainable = trainable
