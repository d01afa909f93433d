"""Networks of the user's own, named ``package.module:function``: found on the driver, built on ranks and in tasks.

In: a name, whose code is found without running it. Out: `Code`; and where the network is needed, a Keras model
of logits, which the function returns for an input size and a number of findings.
"""

import os
from collections.abc import Iterable
from typing import Any

from chexspark.errors import UserError, closest
from chexspark.models import LOGITS, MODELS
from chexspark.user_code import Code, find_code, load_function, told

SETTING = "--model"
BEGIN = "begin with chexspark.models.input_output.gray_input(size, TORCH), or keras.Input((size, size, 1))"


def is_custom(name: str) -> bool:
    """Whether a name is of a network of the user's own."""
    return ":" in name


def find_network(name: str) -> Code | None:
    """The code of a network; None for one of `MODELS`. Raises UserError for a name that is none, as `find_code`
    does for code that is not there."""
    if name in MODELS:
        return None
    if not is_custom(name):
        raise UserError(
            f"{SETTING}={name!r} is unknown{closest(name, MODELS)} (valid: {', '.join(MODELS)}, or "
            "package.module:function of your own)"
        )
    return find_code(SETTING, name)


def find_networks(names: Iterable[str]) -> dict[str, Code]:
    """The code of networks that the user names, for runs of theirs. Raises UserError as `find_network` does."""
    found = {name: find_network(name) for name in names}
    return {name: code for name, code in found.items() if code}


def build_custom(code: Code, size: int, findings: int) -> Any:
    """Call a network's function, and check that it can be trained here: a Keras model of logits.

    Its last layer, if it is a dense one, is called `LOGITS`. Raises UserError.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # for `tensorflow.keras`
    function = load_function(code, SETTING)
    try:
        model = function(size, findings)
    except Exception as error:  # of any kind: it is the user's code
        raise UserError(
            f"--model={code.name} ({size}, {findings}) failed: {told(error)}"
        ) from error
    if fault := fault_of(model, size, findings):
        raise UserError(f"--model={code.name} ({size}, {findings}) {fault}")
    import tf_keras as keras

    last = model.output.node.layer
    if isinstance(last, keras.layers.Dense) and LOGITS not in [la.name for la in model.layers]:
        last._name = LOGITS
    return keras.Model(
        model.input, model.output, name=model.name
    )  # which knows the layers by their names


def fault_of(model: Any, size: int, findings: int) -> str | None:
    """Why what a function returned cannot be trained here; None: it can."""
    import tf_keras as keras

    if not isinstance(model, keras.Model):
        if type(model).__module__.startswith("keras."):
            return "returned a model of Keras 3: import tf_keras as keras"
        return f"returned {type(model).__name__}, and no Keras model"
    if not getattr(model, "_is_graph_network", False):
        return f"returned a model whose layers are not known before it runs: a functional or sequential one is needed ({BEGIN})"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs: one of each is needed"
    if tuple(model.input_shape) != (None, size, size, 1):
        return f"takes {model.input_shape[1:]}, but images are gray, 0 to 255, {(size, size, 1)}: {BEGIN}"
    if tuple(model.output_shape) != (None, findings):
        return f"returns {model.output_shape[1:]}, but a logit for each of {findings} findings is needed"
    if not model.output.dtype.is_floating:
        return f"returns {model.output.dtype.name}, and no logits"
    last = model.output.node.layer
    activation = getattr(last, "activation", keras.activations.linear)
    if activation is not keras.activations.linear:
        name = getattr(activation, "__name__", "another activation")
        return f"ends in {name}: logits are needed, which chexspark makes probabilities of; leave it out"
    if model.losses:
        return (
            "has losses of its own (a regularizer, say), which would be left out: --loss and --weight-decay are "
            "what training knows"
        )
    if not model.trainable_variables:
        return "has nothing that can be trained"
    return None
