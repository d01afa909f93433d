"""TensorFlow imported without Keras 3, which it loads unasked. Runs on ranks and in tasks.

chexspark's Keras is 2 (``tf_keras``). Keras 3 brings scikit-learn and matplotlib, and takes two of the five seconds
that TensorFlow needs.
"""

import gc
import os
import sys

LEGACY = "TF_USE_LEGACY_KERAS"


def import_tensorflow() -> None:
    """Import TensorFlow and its Keras 2, where they are not there yet.

    What ``tf.keras`` is to other code of this process stays as that has it: TensorFlow looks at the variable again.
    """
    if "tensorflow" in sys.modules:
        return
    before, collects = os.environ.get(LEGACY), gc.isenabled()
    os.environ[LEGACY] = "1"
    gc.disable()  # hundreds of thousands of objects come, and none goes
    try:
        import tensorflow  # noqa: F401
        import tf_keras  # noqa: F401
    finally:
        if collects:
            gc.enable()
        if before is None:
            del os.environ[LEGACY]
        else:
            os.environ[LEGACY] = before
