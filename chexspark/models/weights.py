"""Weights to start from. `check_weights` runs on the driver, the rest on ranks.

In: a path. It leads to ImageNet weights in the layout of Keras applications (HDF5, without the
top), or to a model that chexspark trained: a run, whose best model is taken, or a ``.keras`` file.
Out: a model with these weights, and one line that says what was taken.

A ``.keras`` file is read as data, a list of layers and their arrays. Keras's own loader is not
asked: it imports whatever the file names, in its safe mode too.

Of a trained model the trunk is taken layer by layer, and of the logits those of findings that both
models have, by name: whatever their number and order. A model says its findings in the file, or in the
lineage of the run that it is in; of one that does not say, the trunk alone is taken.
"""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from chexspark.errors import UserError, listed
from chexspark.findings import find
from chexspark.models import LOGITS, MODELS
from chexspark.run.best import model_findings
from chexspark.run.folder import RunFolder, run_of_model
from chexspark.run.lineage import read_lineage
from chexspark.storage import Location, locate

HDF5_MARK, ZIP_MARK = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


def check_weights(name: str, uri: str) -> None:
    """Raise UserError unless network `name` may start from `uri`, as far as this is cheap to know."""
    place, mark = find_weights(name, uri)
    if mark == HDF5_MARK:
        if MODELS[name].weights is None:
            raise UserError(
                f"--weights={place}: {name} has no ImageNet weights in an HDF5 file; give a run, or "
                "a .keras file, of an earlier training"
            )
        return
    try:
        with place.filesystem.open_input_file(place.path) as file, zipfile.ZipFile(file) as archive:
            layers_of(archive, place)
            archive.getinfo("model.weights.h5")
    except DAMAGE as error:
        raise unreadable(place, error) from error
    findings_of(place)


def find_weights(name: str, uri: str) -> tuple[Location, bytes]:
    """The file that `uri` means, and by which mark it begins.

    Raises UserError when there is none, or when it is of no known kind.
    """
    place = locate(uri)
    if place.is_directory():
        run, place = place, RunFolder(place).best_model
        if not place.is_file():
            raise UserError(f"--weights={run}: this folder is not a run with a best/model.keras")
    if not place.is_file():
        imagenet = MODELS[name].weights
        remedy = f"; {name}'s ImageNet weights are {imagenet}" if imagenet else ""
        raise UserError(f"--weights={place}: there is no such file or run{remedy}")
    with place.filesystem.open_input_file(place.path) as file:
        start = file.read(len(HDF5_MARK))
    for mark in (HDF5_MARK, ZIP_MARK):
        if start.startswith(mark):
            return place, mark
    raise UserError(
        f"--weights={place} is not an HDF5 file of Keras weights, and no .keras file either"
    )


def findings_of(place: Location) -> tuple[str, ...] | None:
    """The findings of a trained model's outputs, in order; None where neither it nor a run says them.

    Raises UserError for a damaged file or lineage.
    """
    if found := model_findings(place):
        return found
    run = run_of_model(place)
    return tuple(read_lineage(run)["findings"]) if run and run.lineage.is_file() else None


def load_weights(model: Any, name: str, uri: str, findings: Sequence[str]) -> str:
    """Give `model`, which is network `name`, the weights at `uri`; say in a line what was taken.

    `findings`: of the model's outputs, in order. Of ImageNet weights all but the logits are taken; of a
    trained model each layer of the trunk of the same name and shapes, and the logits by their finding.
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
    fresh, known = take_trunk(model, arrays, place), findings_of(place)
    taken = take_logits(model, arrays.get(LOGITS, []), findings, known) if known else []
    return what_was_taken(model, place, fresh, findings, taken, known is not None)


def load_imagenet(model: Any, name: str, place: Location, path: str) -> str:
    """Load a file of Keras applications into all layers but the logits. Raises UserError where it does not fit."""
    import tf_keras as keras

    trunk = keras.Model(model.inputs, model.get_layer(LOGITS).input)
    try:
        trunk.load_weights(path)
    except DAMAGE as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--weights={place}: not {name}'s ImageNet weights without the top ({reason}); take "
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
                f"--weights={place}: layer {name} is a Lambda, which carries code; "
                "only models without are taken"
            )
    return layers


def read_arrays(archive: zipfile.ZipFile, place: Location) -> dict[str, list[np.ndarray]]:
    """The arrays of each layer of a ``.keras`` file, by the layer's name.

    Keras files them by class and count, ``layers/conv2d_3/vars/0``, so the names, which stand in
    the config, are counted off per class.
    """
    names: dict[str, list[str]] = {}
    for kind, name in layers_of(archive, place):
        names.setdefault(kind.lower(), []).append(name)
    arrays = {}
    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        for key, group in file["layers"].items():
            kind, number = re.findall(r"^(.+?)(?:_(\d+))?$", key)[0]
            values = group["vars"]
            name = names[kind.replace("_", "")][int(number or 0)]
            arrays[name] = [np.asarray(values[str(i)]) for i in range(len(values))]
    return arrays


def take_trunk(model: Any, arrays: dict[str, list[np.ndarray]], place: Location) -> list[str]:
    """Give each layer but the logits the arrays of its name (`read_arrays`), where all shapes are the same.

    Returns the names of the layers that have none. Raises UserError where no layer has any.
    """
    layers = [layer for layer in trunk_layers(model) if layer.weights]
    taken = [
        layer for layer in layers
        if [array.shape for array in arrays.get(layer.name, [])]
        == [tuple(w.shape) for w in layer.weights]
    ]  # fmt: skip
    if not taken:
        raise UserError(
            f"--weights={place}: no layer has the name and shapes of one of {model.name}'s; this is "
            "of another network"
        )
    for layer in taken:
        layer.set_weights(arrays[layer.name])
    return [layer.name for layer in layers if layer not in taken]


def take_logits(
    model: Any, found: list[np.ndarray], findings: Sequence[str], known: Sequence[str]
) -> list[str]:
    """Give the logits of `findings` the weights of the same among `known`; return which have them.

    `found`: kernel (channels, known) and bias (known,) of the source; of other shapes none are taken.
    """
    kernel, bias = model.get_layer(LOGITS).get_weights()
    if [array.shape for array in found] != [(len(kernel), len(known)), (len(known),)]:
        return []
    sources = {name: source for name in findings if (source := find(name, known)) is not None}
    for number, name in enumerate(findings):
        if name in sources:
            kernel[:, number], bias[number] = found[0][:, sources[name]], found[1][sources[name]]
    model.get_layer(LOGITS).set_weights([kernel, bias])
    return list(sources)


def what_was_taken(
    model: Any,
    place: Location,
    fresh: list[str],
    findings: Sequence[str],
    taken: list[str],
    named_there: bool,
) -> str:
    """One line. `fresh`: layers of the trunk that are; `taken`: those of `findings` whose logits are not;
    `named_there`: whether the source says its findings."""
    layers = sum(1 for layer in model.layers if layer.weights)
    left = [name for name in findings if name not in taken]
    line = f"{layers - len(fresh) - bool(left)} of {layers} layers start from {place}"
    if taken:
        of_all = f"all {len(taken)} findings" if not left and len(taken) > 1 else listed(taken)
        line += f"; {LOGITS} of {of_all} taken by name"
    if left and taken:
        fresh = [f"{LOGITS} of {listed(left)}", *fresh]
    elif left:
        why = "" if named_there else " (the file does not say its findings)"
        fresh = [LOGITS + why, *fresh]
    return f"{line}; fresh: {listed(fresh)}" if fresh else line


def unreadable(place: Location, error: Exception) -> UserError:
    """The error of a file that cannot be read, with the reason."""
    reason = " ".join(str(error).split())
    return UserError(f"--weights={place} is damaged, or not a Keras model ({reason})")


def trunk_layers(model: Any) -> list:
    """All layers but the logits."""
    return [layer for layer in model.layers if layer.name != LOGITS]


def train_trunk(model: Any, trainable: bool) -> None:
    """Freeze the trunk, or set it free again; the logits are always trained.

    A frozen normalisation uses its statistics and leaves them alone, as Keras defines it. Steps
    that were compiled before know nothing of the change: compile them anew, with the variables
    that are trainable then.
    """
    for layer in trunk_layers(model):
        layer.trainable = trainable
