"""TensorFlow imported without Keras 3; each in a process of its own."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import gc, os, sys
from chexspark.tensorflow_import import import_tensorflow
import_tensorflow()
import tensorflow as tf, tf_keras
print(gc.isenabled(), os.environ.get("TF_USE_LEGACY_KERAS"), "keras" in sys.modules)
print(tf.keras.Model is tf_keras.Model)
"""


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "True None False\nFalse\n"),
        ("0", "True 0 False\nFalse\n"),
        ("1", "True 1 False\nTrue\n"),
    ],
)
def test_keras_3_is_not_loaded_and_other_code_has_the_keras_that_it_asks_for(given, said):
    variables = dict(os.environ)
    variables.pop("TF_USE_LEGACY_KERAS", None)
    variables |= {"TF_USE_LEGACY_KERAS": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True
    )
    assert done.stdout == said, done.stderr
