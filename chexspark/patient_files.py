"""S3 whose reads are tried again. Runs on driver, in tasks and on ranks.

In: pyarrow's file system of S3. Out: the same, through which a read that fails is tried again. Amazon's client, which pyarrow has, tries
requests again by itself, but not a read of so few bytes that a refusal (``SlowDown`` and its explanation) is longer than
they are: it says ``Failed to flush response stream`` then.
"""

import io
import time
from typing import Any

import pyarrow as pa
from pyarrow import fs

PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds, before each further attempt


class PatientFile:
    """A file that is read, as Python's are. Raises OSError for a read that fails again and again."""

    closed = False

    def __init__(self, file: pa.NativeFile) -> None:
        self.file, self.position = file, 0
        self.length = file.size()

    def read(self, size: int | None = None) -> bytes:
        """The next bytes, or all that are left."""
        left = max(0, self.length - self.position)
        wanted = left if size is None or size < 0 else min(size, left)
        content = self.read_patiently(wanted) if wanted else b""
        self.position += len(content)
        return content

    def read_patiently(self, size: int) -> bytes:
        """So many bytes from where the file stands."""
        for pause in PAUSES:
            try:
                return self.file.read_at(size, self.position)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(pause)
        return self.file.read_at(size, self.position)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, and return where that is."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        """Where the file stands."""
        return self.position

    def close(self) -> None:
        """Read no more."""
        self.closed = True
        self.file.close()


class PatientHandler(fs.FileSystemHandler):
    """For ``fs.PyFileSystem``: `base` does all, and files that are read are `PatientFile`."""

    def __init__(self, base: fs.FileSystem) -> None:
        self.base = base

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PatientHandler) and self.base.equals(other.base)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(type(self))

    def open_input_file(self, path: str) -> pa.NativeFile:
        """See pyarrow's file systems, as for all that follow."""
        return pa.PythonFile(PatientFile(self.base.open_input_file(path)), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """A file too."""
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """As `base` has it."""
        return self.base.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """As `base` has it."""
        return self.base.open_append_stream(path, metadata=metadata)

    def get_type_name(self) -> str:
        """As `base` has it."""
        return self.base.type_name

    def normalize_path(self, path: str) -> str:
        """As `base` has it."""
        return self.base.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """As `base` has it."""
        return self.base.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """As `base` has it."""
        return self.base.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        """As `base` has it."""
        self.base.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """As `base` has it."""
        self.base.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """As `base` has it."""
        self.base.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Never: all buckets would be emptied."""
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        """As `base` has it."""
        self.base.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """As `base` has it."""
        self.base.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """As `base` has it."""
        self.base.copy_file(src, dest)
