"""Whether a store's files are those of its manifest. Runs on driver and ranks.

In: the store and its manifest. Out: nothing, or UserError before a run has begun. Sizes and
Parquet footers are looked at; the images' bytes are checked by the reader, as it reads them.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from chexspark.errors import UserError
from chexspark.storage import Location
from chexspark.store.manifest import Manifest, StoreFile
from chexspark.store.schema import DAMAGE, parquet_schema
from chexspark.text_files import one_line

THREADS = 8  # on an object store a footer is a matter of waiting


def check_files(store: Location, manifest: Manifest, splits: Iterable[str]) -> None:
    """Raise UserError that names the first file which is missing or not what ingest wrote."""
    schema = parquet_schema(manifest.image_size, manifest.schema_version)
    files = [file for split in splits for file in manifest.splits[split].files]
    with ThreadPoolExecutor(THREADS) as pool:
        for fault in pool.map(lambda file: fault_of(store, file, schema), files):
            if fault:
                raise UserError(f"--data={store}: {fault}; ingest again")


def fault_of(store: Location, file: StoreFile, schema: pa.Schema) -> str | None:
    """What is wrong with one file, in words."""
    place = store / file.path
    info = place.filesystem.get_file_info(place.path)
    if not info.is_file:
        return f"{file.path} is missing"
    if info.size != file.bytes:
        return f"{file.path} has {info.size:,} bytes, but ingest wrote {file.bytes:,}"
    try:
        with place.filesystem.open_input_file(place.path) as source:
            footer = pq.ParquetFile(source).metadata
            columns = footer.schema.to_arrow_schema()
    except DAMAGE as error:
        return f"{file.path} is not readable as Parquet ({one_line(error)})"
    rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if rows != file.row_groups or columns != schema:
        return f"{file.path} has other row groups or columns than ingest wrote"
    return None
