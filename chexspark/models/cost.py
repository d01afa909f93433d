"""What a network costs, known without training it. Anywhere, but for `count`, which is of a child.

In: a network's name, the size of the images, the number of findings, the batch of one rank. Out: its
`NetworkCost`, or that as JSON:

    python -m chexspark.models.cost densenet121 224 14 16 [--slots 2] [--precision mixed_float16]

A network of the user's own comes as text on standard input; it is also saved and read again, so that training
does not end with a model that cannot be evaluated. What was counted of others is kept in the user's cache folder.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast, get_type_hints

from chexspark.errors import RunFailedError, UserError
from chexspark.json_types import misfit
from chexspark.tensorflow_import import import_tensorflow
from chexspark.user_code import Code, told


class NetworkCost(TypedDict):
    """What `count` finds; parameters are numbers of values."""

    parameters: int
    trainable: int
    forward_flops: int  # per image
    activations_bytes: int
    checkpoint_bytes: int
    memory_bytes: int
    layers: list[tuple[str, list[list[int]]]]  # those with weights, and their shapes


class ToCount(NamedTuple):
    """A network, and how one rank trains it."""

    name: str
    size: int  # height and width of the images, pixels
    findings: int
    batch: int  # images at a time
    # Values that are kept per parameter beside the weight: by the optimizer (adam, adamw, lamb, rmsprop: 2;
    # sgd and lars: 1), and for an average of the weights (1).
    slots: int = 2
    precision: str = "float32"  # Keras's policy
    code: Code | None = None  # of a network of the user's own


MISTAKE = 3  # of a child that met a mistake of the user: its last line is the text, as JSON

KNOWN: dict[ToCount, NetworkCost] = {}  # what has been counted


@contextlib.contextmanager
def counted_in_background(given: ToCount) -> Iterator[Callable[[], NetworkCost]]:
    """Yield a function that returns what `count` says of a network, once that is known.

    A child process counts meanwhile, so that TensorFlow is not loaded here; it takes some seconds, and
    is ended where they are not needed. The function raises RunFailedError when the child fails, UserError for
    a network of the user's own that cannot be trained.
    """
    if given not in KNOWN and (kept := kept_cost(given)):
        KNOWN[given] = kept
    if given in KNOWN:
        yield lambda: KNOWN[given]
        return
    command = [sys.executable, "-m", "chexspark.models.cost"]
    command += map(str, (given.name, given.size, given.findings, given.batch))
    command += ["--slots", str(given.slots), "--precision", given.precision]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    if given.code:
        command.append("--custom")
    child = subprocess.Popen(command, env=quiet, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def cost() -> NetworkCost:
        if given in KNOWN:
            return KNOWN[given]
        said, errors = child.communicate(json.dumps(given.code) if given.code else None)
        if child.returncode == MISTAKE:
            raise UserError(json.loads(said.splitlines()[-1]))
        if child.returncode != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise RunFailedError(
                f"{given.name} at {given.size}x{given.size} could not be built to be measured: {last}"
            )
        KNOWN[given] = json.loads(said.splitlines()[-1])
        keep_cost(given, KNOWN[given])
        return KNOWN[given]

    with child:
        try:
            yield cost
        finally:
            child.kill()


def place_of(given: ToCount) -> Path | None:
    """The file that keeps what was counted, by all that it depends on; None for a network of the user's own."""
    if given.code:
        return None
    digest = hashlib.sha256(repr(given).encode())
    try:
        digest.update(importlib.metadata.version("tf-keras").encode())
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except (OSError, RuntimeError, importlib.metadata.PackageNotFoundError):  # there is no home
        return None
    return Path(cache) / "chexspark" / "networks" / f"{digest.hexdigest()}.json"


def kept_cost(given: ToCount) -> NetworkCost | None:
    """What was counted before; None where it was not, or is not whole."""
    place = place_of(given)
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(place.read_text()) if place else None
        kinds = get_type_hints(NetworkCost) | {"layers": list}
        if isinstance(found, dict) and set(found) == set(kinds) and not misfit(found, kinds):
            return cast(NetworkCost, found)
    return None


def keep_cost(given: ToCount, cost: NetworkCost) -> None:
    """Keep what was counted, where there is a place for it."""
    place = place_of(given)
    with contextlib.suppress(OSError):
        if place:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as aside:
                json.dump(cost, aside)
            os.replace(aside.name, place)


def count(model: Any, batch: int, slots: int) -> NetworkCost:
    """Count a built Keras model; `batch` and `slots` as in `ToCount`.

    forward_flops: two for a multiplication and its addition, in convolutions and dense layers.
    activations_bytes: what a step keeps of its
    forward pass for the gradient, that is what goes into convolutions, dense layers, normalisations, products
    and max pools, what comes out of max pools and ReLUs, and what swish and gelu keep, each tensor once. memory_bytes: these,
    one tensor of the largest size in passing, and 4 bytes for each parameter, its gradient and each
    of the `slots`. checkpoint_bytes: the parameters and the slots. Not counted: the process, which TensorFlow makes 0.7 GB, Horovod's and the
    reader's buffers, and what oneDNN or cuDNN take to work in.

    Measured against the peak of resident memory of two steps with Adam on a CPU, less 0.7 GB:
    1 % too low for VGG-16 (224, batch 12), 3 % for AmoebaNet-D 4, 256 (192, batch 8), 4 % for
    ResNet-59 (256, batch 12), 19 % for DenseNet-121 (224, batch 16), 24 % for ResNet-50 (224,
    batch 16; 1 % without oneDNN), about 15 % for
    ConvNeXt-T and 18 % for EfficientNetV2-S (224, batch 8).
    """
    import numpy as np
    import tf_keras as keras

    from chexspark.models.weights import flat_layers, layers_of

    layers = keras.layers
    kept: dict[int, int] = {}
    largest, flops = 0, 0
    for layer in flat_layers(model):
        for output in tensors_of(layer.output):
            values = int(np.prod(output.shape[1:]))
            largest = max(largest, values * output.dtype.size)
            if isinstance(layer, layers.DepthwiseConv2D):
                flops += 2 * values * int(np.prod(layer.depthwise_kernel.shape[:2]))
            elif isinstance(layer, (layers.Conv2D, layers.Dense)):
                flops += 2 * values * int(np.prod(layer.kernel.shape[:-1]))
        for tensor, times in kept_by(layer):
            size = int(np.prod(tensor.shape[1:])) * tensor.dtype.size
            kept[id(tensor)] = max(kept.get(id(tensor), 0), times * size)
    parameters = model.count_params()
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    activations = batch * sum(kept.values())
    return {
        "parameters": parameters,
        "trainable": trainable,
        "forward_flops": flops,
        "activations_bytes": activations,
        "checkpoint_bytes": 4 * (parameters + slots * trainable),
        "memory_bytes": activations + 4 * (parameters + (1 + slots) * trainable) + batch * largest,
        "layers": [(n, [list(s) for s in shapes]) for n, shapes in layers_of(model)],
    }


def tensors_of(value: Any) -> list:
    """What a layer takes or gives: one tensor, or several, of known shapes."""
    import tensorflow as tf

    return [t for t in tf.nest.flatten(value) if None not in t.shape[1:]]


def kept_by(layer: Any) -> list[tuple[Any, int]]:
    """The tensors that the gradient of a layer needs of its forward pass, and how many of that size."""
    import tf_keras as keras

    layers, activations = keras.layers, keras.activations
    of_input = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.BatchNormalization,
                layers.LayerNormalization, layers.MaxPooling2D, layers.Multiply)  # fmt: skip
    keeps = [(t, 1) for t in tensors_of(layer.input)] if isinstance(layer, of_input) else []
    activation = getattr(layer, "activation", activations.linear)
    # Swish keeps its input; gelu the parts of its product, ½ x and erfc(−x / √2), and −x / √2.
    inside = {activations.swish: 1, activations.gelu: 3}.get(activation)
    if inside:
        keeps += [(t, inside) for t in tensors_of(layer.input)]
    elif activation is not activations.linear or isinstance(
        layer, (layers.ReLU, layers.MaxPooling2D)
    ):
        keeps += [(t, 1) for t in tensors_of(layer.output)]
    return keeps


def main(arguments: list[str]) -> None:
    """Count the network that the arguments name, and print the counts as JSON."""
    parser = argparse.ArgumentParser(prog="python -m chexspark.models.cost")
    parser.add_argument("name")
    parser.add_argument("size", type=int)
    parser.add_argument("findings", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--custom", action="store_true")
    given = parser.parse_args(arguments)
    code = None
    if given.custom:
        name, files = json.load(sys.stdin)
        code = Code(name, tuple((path, source) for path, source in files))

    import_tensorflow()
    import tf_keras as keras

    from chexspark.models import build_model

    keras.mixed_precision.set_global_policy(given.precision)
    try:
        model = build_model(given.name, given.size, given.findings, code)
        if code:
            check_restores(model, build_model(given.name, given.size, given.findings, code), code)
    except UserError as error:
        print(json.dumps(error.text))
        sys.exit(MISTAKE)
    print(json.dumps(count(model, given.batch, given.slots)))


def check_restores(model: Any, twin: Any, code: Code) -> None:
    """Raise UserError unless a model that is saved gives its weights to its twin."""
    import numpy as np

    from chexspark.models.weights import fill_custom

    try:
        with tempfile.TemporaryDirectory(prefix="chexspark-") as folder:
            place = Path(folder) / "saved.keras"
            model.save(place)
            content = place.read_bytes()
        fill_custom(twin, content, hashlib.sha256(content).hexdigest(), "it", code.name, True)
    except Exception as error:  # of any kind: layers of the user's own save themselves
        raise UserError(
            f"--model={code.name}: the model cannot be saved and read again: {told(error)}"
        ) from error
    images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:])).astype(np.uint8)
    mine, other = (each(images, training=False).numpy() for each in (model, twin))
    if not np.allclose(mine, other, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"--model={code.name}: a saved model gives other logits when it is read again: do its layers keep all "
            "of their variables, as attributes, and nothing that is drawn anew?"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
