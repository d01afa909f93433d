"""Weights to start from, and a trained model filled with its own. Driver and ranks; Spark tasks.

In: a path. It leads to weights of Keras applications (ImageNet's, say), to a whole model that Keras saved,
to a DenseNet-121 of PyTorch (`torch_densenet`), or to a model that chexspark trained: a run, whose best model is
taken, or a ``.keras`` file. All are read as data (`model_files`, `torch_files`): layers by their names, in either
spelling of Keras, and their shapes. Out: a model with these weights, and one line that says what was taken.

The first layers must fit: those that start fresh are the network's last. The logits are taken by finding,
from a file that says its findings (or lies in a run that does), or from the last dense layer of another, where
the user says which they are (CheXNet-Keras's, say). The images are to be normalised as the network does it
(`normalisation`): DenseNet-121 by ImageNet's mean and deviation, as CheXNet-Keras too.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chexspark.errors import RunFailedError, UserError, listed
from chexspark.findings import find
from chexspark.models import LOGITS
from chexspark.models.imagenet import IMAGENET, RANDOM, imagenet_place, keep, words_of
from chexspark.models.model_files import (
    DAMAGE,
    HDF5_MARK,
    ZIP_MARK,
    Arrays,
    LambdaError,
    check_weights_file,
    drawing_of,
    drawn,
    opened_arrays,
    plain_name,
    shapes_of,
    values_of,
    weights_of,
)
from chexspark.models.torch_densenet import NETWORK as DENSENET
from chexspark.models.torch_densenet import densenet_arrays
from chexspark.models.torch_files import (
    LEGACY_MARK,
    SAFETENSORS,
    Tensors,
    is_torch_file,
    opened_tensors,
)
from chexspark.run.best import model_findings
from chexspark.run.folder import RunFolder, run_of_model
from chexspark.run.lineage import read_lineage
from chexspark.storage import Location, locate

Shapes = list[tuple[int, ...]]
Layers = Sequence[
    tuple[str, Sequence[Sequence[int]]]
]  # a network's, with the shapes of their weights


class Plan(NamedTuple):
    """Which layers of a file go into which of a network."""

    layers: dict[str, str]  # of the trunk → in the file
    head: str  # the file's layer of logits; empty: none are taken
    findings: tuple[str, ...] | None  # of `head`, in order; None: not known


class Source(NamedTuple):
    """What a file has, while it is open."""

    arrays: Arrays
    kind: str = ""  # what is to be said of it


def start_of(name: str, weights: str | None, run: RunFolder | None = None) -> str | None:
    """The path of what ``--weights`` means for network `name` in a `run`; None for random weights.

    Raises UserError where ImageNet's are meant, and not here.
    """
    if weights == IMAGENET:
        return str(imagenet_place(name, run))
    return None if weights == RANDOM else weights


def check_weights(name: str, uri: str) -> None:
    """Raise UserError unless network `name` may start from `uri`, as far as this is cheap to know.

    ImageNet's weights are kept for the next time.
    """
    place = find_weights(name, uri)
    with reading(place, name):
        pass
    findings_of(place)
    keep(name, place)


def check_fits(name: str, uri: str, layers: Layers, given: Sequence[str] = ()) -> None:
    """Raise UserError unless the file at `uri` fits the layers of network `name`. `given`: as for `plan_of`."""
    place = find_weights(name, uri)
    with reading(place, name) as source:
        plan_of(place, name, layers, shapes_of(source.arrays), given)


def find_weights(name: str, uri: str) -> Location:
    """The file that `uri` means. Raises UserError when there is none, or when it is of no known kind."""
    place = locate(uri)
    if place.is_directory():
        run, place = place, RunFolder(place).best_model
        if not place.is_file():
            raise UserError(f"--weights={run}: this folder is not a run with a best/model.keras")
    if not place.is_file():
        raise UserError(f"--weights={place}: there is no such file or run{imagenet_of(name)}")
    marks = (HDF5_MARK, ZIP_MARK, LEGACY_MARK)
    if not place.read_bytes(max(map(len, marks))).startswith(marks) and not is_safe(place):
        raise UserError(
            f"--weights={place} is not an HDF5 file of Keras weights, and no .keras file either, nor one of PyTorch "
            "(.pth, .pt, .safetensors)"
        )
    return place


def is_safe(place: Location) -> bool:
    """Whether a file is called as safetensors are, which have no mark."""
    return place.path.endswith(SAFETENSORS)


def imagenet_of(name: str) -> str:
    """Where a network's ImageNet weights are, to end a message with; nothing where there are none."""
    words = words_of(name)
    return f"; {name}'s ImageNet weights are {words}" if words else ""


@contextlib.contextmanager
def reading(place: Location, name: str) -> Iterator[Source]:
    """What a file has for network `name`, while it is open. Raises UserError for damage, and for a layer with code."""
    what = "a Keras model"
    try:
        with place.filesystem.open_input_file(place.path) as file:
            if is_torch_file(file, place.path):
                what = f"a file of PyTorch with a {DENSENET}"
                with opened_tensors(file) as tensors:
                    yield torch_source(place, name, tensors)
            else:
                with opened_arrays(file) as arrays:
                    yield Source(arrays)
    except LambdaError as error:
        raise UserError(f"--weights={place}: {error}; only models without are taken") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--weights={place} is damaged, or not {what} ({reason}){imagenet_of(name)}"
        ) from error


def torch_source(place: Location, name: str, tensors: Tensors) -> Source:
    """The layers in a file of PyTorch. Raises UserError for another network, and ValueError for damage."""
    if name != DENSENET:
        raise UserError(f"--weights={place}: of PyTorch {DENSENET} is taken, and no {name}")
    return Source(*densenet_arrays(tensors))


def findings_of(place: Location) -> tuple[str, ...] | None:
    """The findings of a trained model's outputs, in order; None where neither it nor a run says them.

    Raises UserError for a damaged file or lineage.
    """
    if place.read_bytes(len(ZIP_MARK)) != ZIP_MARK:
        return None
    if found := model_findings(place):
        return found
    run = run_of_model(place)
    return tuple(read_lineage(run)["findings"]) if run and run.lineage.is_file() else None


def plan_of(
    place: Location, name: str, layers: Layers, found: Mapping[str, Shapes], given: Sequence[str]
) -> Plan:
    """What of a file is taken into a network.

    `layers`: of the network, those with weights; `found`: the shapes in the file, by plain name; `given`: the
    findings of the file's outputs, where it does not say them. Layers go by name; where none fits by its
    name, in order, if all of the trunk fit so (weights that were saved by other names). Sides of 1 may stand
    elsewhere: a convolution of each channel by itself has them in one place or another. Raises UserError
    where nothing fits, or where a layer does not that is before one that does, and for findings that the
    file contradicts.
    """
    trunk = [(n, without_ones(shapes)) for n, shapes in layers if n != LOGITS]
    there = {n: without_ones(shapes) for n, shapes in found.items()}
    fitting = {n: plain_name(n) for n, shapes in trunk if there.get(plain_name(n)) == shapes}
    if not fitting and [*there.values()][: len(trunk)] == [shapes for _, shapes in trunk]:
        fitting = dict(zip((n for n, _ in trunk), found, strict=False))
    if not fitting:
        raise UserError(
            f"--weights={place}: no layer has the name and shapes of one of {name}'s; this is of another "
            f"network{imagenet_of(name)}"
        )
    names = [n for n, _ in trunk]
    first = next((n for n in names if n not in fitting), None)
    if first is not None and any(n in fitting for n in names[names.index(first) :]):
        raise UserError(
            f"--weights={place}: {len(fitting)} of {len(names)} layers of {name}'s trunk fit, but {first} does "
            f"not, which comes before some of them: this is of another network{imagenet_of(name)}"
        )
    channels = next((shapes[0][0] for n, shapes in layers if n == LOGITS), None)
    said = findings_of(place)
    if said and given and tuple(given) != said:
        raise UserError(
            f"--weights-findings: {place} says itself that its findings are {listed(said)}: leave it out"
        )
    known = said or tuple(given) or None
    dense = [n for n, shapes in found.items() if known and shapes == [(channels, len(known)), (len(known),)]]  # fmt: skip
    head = LOGITS if LOGITS in dense else (dense[-1] if dense and given else "")
    if given and not head:
        raise UserError(
            f"--weights-findings names {len(given)} findings, but {place} has no last layer of {channels} "
            f"channels and {len(given)} outputs"
        )
    return Plan(fitting, head, known)


def without_ones(shapes: Sequence[Sequence[int]]) -> Shapes:
    """Shapes without their sides of 1, in whose place the numbers are the same."""
    return [tuple(side for side in shape if side != 1) for shape in shapes]


def load_weights(
    model: Any, name: str, uri: str, findings: Sequence[str], given: Sequence[str] = ()
) -> str:
    """Give `model`, which is network `name`, the weights at `uri`; say in a line what was taken.

    `findings`: of the model's outputs, in order; `given`: as for `plan_of`. Raises UserError when the file is
    damaged, or of another network.
    """
    place = find_weights(name, uri)
    with reading(place, name) as source:
        plan = plan_of(place, name, layers_of(model), shapes_of(source.arrays), given)
        own = named_layers(model)
        for layer, there in plan.layers.items():
            values = zip(values_of(source.arrays[there]), own[layer].weights, strict=True)
            own[layer].set_weights([value.reshape(weight.shape) for value, weight in values])
        taken = take_logits(model, source.arrays, findings, plan) if plan.head else []
    fresh = [n for n, _ in layers_of(model) if n != LOGITS and n not in plan.layers]
    where = f"{place} ({source.kind})" if source.kind else str(place)
    return what_was_taken(model, where, fresh, findings, taken, plan.findings is not None)


def layers_of(model: Any) -> list[tuple[str, Shapes]]:
    """The layers of a model that have weights, with their shapes, in its order."""
    return [
        (name, [tuple(w.shape) for w in la.weights]) for name, la in named_layers(model).items()
    ]


def flat_layers(model: Any) -> Iterator[Any]:
    """The layers of a model, in its order; those of models within it as its own."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from flat_layers(layer)
        else:
            yield layer


def named_layers(model: Any) -> dict[str, Any]:
    """The layers of a model that have weights, by name, in its order."""
    return {layer.name: layer for layer in flat_layers(model) if layer.weights}


def take_logits(model: Any, arrays: Arrays, findings: Sequence[str], plan: Plan) -> list[str]:
    """Give the logits of `findings` the weights of the same in the file; return which have them."""
    found, known = values_of(arrays[plan.head]), plan.findings or ()
    kernel, bias = model.get_layer(LOGITS).get_weights()
    sources = {name: source for name in findings if (source := find(name, known)) is not None}
    for number, name in enumerate(findings):
        if name in sources:
            kernel[:, number], bias[number] = found[0][:, sources[name]], found[1][sources[name]]
    model.get_layer(LOGITS).set_weights([kernel, bias])
    return list(sources)


def what_was_taken(
    model: Any,
    place: str,
    fresh: list[str],
    findings: Sequence[str],
    taken: list[str],
    named_there: bool,
) -> str:
    """One line. `fresh`: layers of the trunk that are; `taken`: those of `findings` whose logits are not;
    `named_there`: whether the source's findings are known."""
    layers = len(layers_of(model))
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


def fill(model: Any, content: bytes, digest: str, name: str) -> None:
    """Give every layer of a model built from our own networks the arrays of a ``.keras`` file.

    `digest`: the file's SHA-256, as it was when the driver looked; `name`: what a message calls it. Raises
    RunFailedError where the file is another by now, is damaged, or does not fit in all layers.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise RunFailedError(f"{name} has changed since this job began: start it again")
    try:
        with opened_arrays(io.BytesIO(content)) as arrays:
            shapes = shapes_of(arrays)
            for layer, wanted in layers_of(model):
                if shapes.get(plain_name(layer)) != wanted:
                    raise ValueError(f"layer {layer} is not there with the shapes {wanted}")
                model.get_layer(layer).set_weights(values_of(arrays[plain_name(layer)]))
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailedError(f"{name} is damaged ({reason}): copy the run again") from error


def fill_custom(
    model: Any, content: bytes, digest: str, name: str, network: str, same_code: bool
) -> None:
    """Give a network of the user's own the arrays of a ``.keras`` file; as `fill`, but by Keras's own reader.

    `network`: its name; `same_code`: whether it is what the run was trained with. Where it is not, its layers, which
    then are all Keras's own, must be the run's. Raises RunFailedError.
    """
    from tf_keras.src.saving import saving_lib, serialization_lib

    if hashlib.sha256(content).hexdigest() != digest:
        raise RunFailedError(f"{name} has changed since this job began: start it again")
    try:
        check_weights_file(content)
        if not same_code:
            mine = json.loads(json.dumps(serialization_lib.serialize_keras_object(model)))
            if drawn(mine) != drawing_of(content):
                raise RunFailedError(
                    f"the code of {network} has changed since {name} was trained, and builds another network: "
                    "give it as it was then"
                )
        with tempfile.NamedTemporaryFile(suffix=".weights.h5") as file:
            file.write(weights_of(content))
            file.flush()
            saving_lib.load_weights_only(model, file.name)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailedError(f"{name} does not fit the network of {network} ({reason})") from error


def trunk_layers(model: Any) -> list:
    """All layers but the logits."""
    return [layer for layer in model.layers if layer.name != LOGITS]


def head_variables(model: Any) -> list:
    """The variables of the logits that are trained; none where a network of the user's own has no such layer."""
    head = [layer for layer in model.layers if layer.name == LOGITS]
    return [variable for layer in head for variable in layer.trainable_variables]


def train_trunk(model: Any, trainable: bool) -> None:
    """Freeze the trunk, or set it free again; the logits are always trained.

    A frozen normalisation uses its statistics and leaves them alone, as Keras defines it. Steps
    that were compiled before know nothing of the change: compile them anew, with the variables
    that are trainable then.
    """
    for layer in trunk_layers(model):
        layer.trainable = trainable
