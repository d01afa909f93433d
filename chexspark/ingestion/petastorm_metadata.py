"""What makes a folder of Parquet files a Petastorm dataset. Runs on the driver.

In: the files of a split. Out: ``_common_metadata`` beside them, with the two entries that
Petastorm looks for. Petastorm's own writer asks a Spark job for the number of row groups, which
we know, and knows only pyarrow's retired file systems.
"""

import json
import pickle
import posixpath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexspark.petastorm_imports import petastorm_imports
from chexspark.storage import Location
from chexspark.store.manifest import StoreFile
from chexspark.store.schema import IMAGE, LABELS, parquet_schema

with petastorm_imports():
    from petastorm.codecs import NdarrayCodec
    from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY
    from petastorm.unischema import Unischema, UnischemaField


def unischema(size: int, findings: int) -> Unischema:
    """The schema of a store of so many findings as Petastorm knows it."""
    arrays = {
        IMAGE: (np.uint8, (size, size), NdarrayCodec()),
        LABELS: (np.int8, (findings,), None),
    }
    fields = []
    for column in parquet_schema(size):
        text = pa.types.is_string(column.type)
        dtype, shape, codec = arrays.get(column.name) or (
            np.str_ if text else np.dtype(column.type.to_pandas_dtype()).type, (), None
        )  # fmt: skip
        fields.append(UnischemaField(column.name, dtype, shape, codec, column.nullable))
    return Unischema("ChestXray", fields)


def write_petastorm_metadata(
    folder: Location, files: tuple[StoreFile, ...], size: int, findings: int
) -> None:
    """Write ``folder/_common_metadata``, after Petastorm 0.13's materialize_dataset."""
    row_groups = {posixpath.basename(file.path): len(file.row_groups) for file in files}
    schema = parquet_schema(size).with_metadata(
        {
            UNISCHEMA_KEY: pickle.dumps(unischema(size, findings)),
            ROW_GROUPS_PER_FILE_KEY: json.dumps(row_groups).encode(),
        }
    )
    pq.write_metadata(schema, (folder / "_common_metadata").path, filesystem=folder.filesystem)
