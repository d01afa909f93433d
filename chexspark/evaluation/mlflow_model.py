"""A model that training logged to MLflow, as MLflow's pyfunc. Runs where MLflow loads it: in Spark tasks, in servers.

In: the files that `run.tracking.copy_for_scoring` wrote; then tables with a column of images, the bytes of PNG, JPEG
or DICOM files. Out: a column of probabilities per finding, as ``predict`` has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chexspark.errors import UserError
from chexspark.evaluation.inference import Model, Scorer, probabilities_of
from chexspark.evaluation.predictions import probability_column
from chexspark.evaluation.runs import best_model, network_of
from chexspark.ingestion.images import BadImageError, prepare
from chexspark.models.custom import is_custom
from chexspark.preparation import Preparation
from chexspark.run.folder import run_folder
from chexspark.run.lineage import preparation_of, read_lineage
from chexspark.run.tracking import NETWORK

IMAGES = 64  # that are decoded and then scored together
BATCH = 32  # images per step of inference


class ImageScorer:
    """What ``mlflow.pyfunc`` calls. TensorFlow is loaded when the first image is scored."""

    def __init__(self, model: Model, preparation: Preparation) -> None:
        self.scorer = Scorer((model,), model.findings, tta=(), batch_size=BATCH)
        self.preparation = preparation

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row of probabilities per image, ``prob_<Finding>``, in their order; NaN for one that cannot be used.

        `images`: a Series of bytes, or a DataFrame whose first column it is.
        """
        column = images.iloc[:, 0] if isinstance(images, pd.DataFrame) else pd.Series(images)
        contents = list(column)
        parts = [self.scored(contents[at : at + IMAGES]) for at in range(0, len(contents), IMAGES)]
        names = [probability_column(finding) for finding in self.scorer.findings]
        rows = np.concatenate([np.empty((0, len(names))), *parts])
        return pd.DataFrame(rows, column.index, names)

    def scored(self, contents: Sequence[Any]) -> np.ndarray:
        """The probabilities of images, float64 (images, findings); NaN for one that cannot be used."""
        found = np.full((len(contents), len(self.scorer.findings)), np.nan)
        pixels = {}
        for place, content in enumerate(contents):
            if isinstance(content, bytes | bytearray | memoryview):
                try:
                    pixels[place] = prepare(bytes(content), self.preparation, "").pixels
                except BadImageError:
                    continue
        if pixels:
            found[list(pixels)] = probabilities_of(np.stack(list(pixels.values())), self.scorer)
        return found


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ImageScorer:
    """What MLflow calls, with the folder of the model's files and the user's ``model_config``.

    Raises UserError for damage, and for a network of the user's own that they have not named.
    """
    run = run_folder(path)
    name, network = network_of(run), (model_config or {}).get(NETWORK)
    if is_custom(name) and network != name:
        raise UserError(
            f"the model is of {name}, a network of its user's own, whose code is not run because a file names it: "
            f'load it with model_config={{"{NETWORK}": "{name}"}}, or set '
            f'MLFLOW_PYFUNC_INFERENCE_CONFIG to {{"{NETWORK}": "{name}"}} where it is loaded'
        )
    model = best_model(run, [network] if network else [])
    return ImageScorer(model, preparation_of(read_lineage(run)))
