"""A network of a user's own that trains in seconds: its text, to be written where Python finds it."""

TEXT = """
import tf_keras as keras
from chexspark.models.input_output import TORCH, gray_input

def build(size, findings):
    inputs, features = gray_input(size, TORCH)
    features = keras.layers.Conv2D(8, 3, 2, activation="relu")(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(inputs, keras.layers.Dense(findings, name="logits")(features))
"""


def written(folder, monkeypatch) -> str:
    """Write it into a folder, to be imported from there; its name for ``--model``."""
    (folder / "small_net.py").write_text(TEXT)
    monkeypatch.syspath_prepend(str(folder))
    return "small_net:build"
