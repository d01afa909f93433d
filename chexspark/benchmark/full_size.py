"""The full-size files of a benchmark's images, with their labels by name. Runs anywhere.

In: the folder with ``source/`` and ``store/``. Out: its ``full-size/``, and what is in it.
"""

from pathlib import Path

import numpy as np

from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.store.row_groups import checked_split
from chexspark.store.schema import LABELS, labels_of


def stored_labels(folder: Path) -> dict[str, np.ndarray]:
    """Name of each image to train on → its labels, int8 (findings,), in the order of the names."""
    store = locate(str(folder / "store"))
    manifest = read_manifest(store)
    table = checked_split(store, manifest, "train", ("image_index", LABELS))
    labels = labels_of(table[LABELS].combine_chunks(), len(manifest.findings))
    return dict(sorted(zip(table["image_index"].to_pylist(), labels, strict=True)))


def keep_full_size(folder: Path, most: int) -> None:
    """Move the files of the first so many images that the store has to ``full-size/``."""
    (folder / "full-size").mkdir()
    for name in list(stored_labels(folder))[:most]:
        (folder / "source" / name).rename(folder / "full-size" / name)


def full_size_images(folder: Path) -> tuple[list[Path], np.ndarray]:
    """The files, and their labels, int8 (files, findings)."""
    labels = stored_labels(folder)
    files = sorted((folder / "full-size").iterdir())
    return files, np.stack([labels[file.name] for file in files])
