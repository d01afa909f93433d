"""Petastorm is imported on today's pyarrow and numpy, and nothing else notices."""

import importlib.metadata
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa

from chexspark.petastorm_imports import MODULES, NUMPY_NAMES, petastorm_imports


def test_others_see_pyarrow_and_numpy_as_they_are():
    def seen():
        return [m for m in MODULES if m in sys.modules], [n for n in NUMPY_NAMES if hasattr(np, n)]

    assert seen() == ([], [])
    with petastorm_imports():
        with petastorm_imports():
            import petastorm.tf_utils
        assert seen() == (list(MODULES), list(NUMPY_NAMES))
    assert seen() == ([], [])
    assert not hasattr(pa, "localfs") and not hasattr(pa.parquet, "ParquetDatasetPiece")
    theirs = petastorm.tf_utils.np
    assert theirs.unicode_ is np.str_ and theirs.uint8 is np.uint8
    assert pickle.loads(pickle.dumps(theirs)) is np


def test_petastorm_still_needs_it():
    """Fails with the release that needs nothing of it: then petastorm_imports and this can go."""
    import_it = "import petastorm.tf_utils, petastorm.etl.dataset_metadata"
    done = subprocess.run([sys.executable, "-c", import_it], capture_output=True, text=True)
    assert "No module named 'pyarrow." in done.stderr, importlib.metadata.version("petastorm")
