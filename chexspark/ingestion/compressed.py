"""An archive's bytes, unpacked as they are read. Runs in Spark tasks.

In: a file. Out: a stream of what was packed, known by its first bytes and not by its name: gzip, bzip2,
xz, Zstandard, or the file as it is. Memory is bounded whatever the file's headers ask for.
"""

import contextlib
import lzma
from collections.abc import Iterator
from typing import Protocol

from chexspark.storage import Location

MARKS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
# A tar archive's first bytes are a name: of bzip2, those of its first block belong to the mark.
MARKS |= {b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)}
MARK = max(map(len, MARKS))  # bytes that tell
BUFFER = 1 << 20  # bytes that are read, and unpacked, at a time
XZ_MEMORY = 256 << 20  # bytes; xz -9 takes 65 MiB, a header may ask for 4 GiB


class Stream(Protocol):
    """What is read once, from the beginning to the end."""

    def read(self, size: int) -> bytes:
        """The next bytes: as many as asked for, fewer only at the end."""


@contextlib.contextmanager
def unpacked(place: Location) -> Iterator[Stream]:
    """Open a file and unpack it. Raises OSError, here or when it is read, for one that is damaged."""
    head = place.read_bytes(MARK)
    packed = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    by_pyarrow = None if packed == "xz" else packed
    with place.filesystem.open_input_stream(
        place.path, compression=by_pyarrow, buffer_size=BUFFER
    ) as stream:
        yield XzStream(stream) if packed == "xz" else stream


class XzStream:
    """The content of xz, of one stream or of several one after the other."""

    def __init__(self, packed: Stream) -> None:
        self.packed, self.decoder = packed, new_decoder()
        self.left = b""  # packed bytes that come after the end of a stream

    def read(self, size: int) -> bytes:
        """See `Stream`. Raises OSError for what is damaged or breaks off."""
        parts = []
        while size > 0:
            try:
                part = self.some(size)
            except lzma.LZMAError as error:
                raise OSError(f"xz: {error}") from error
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def some(self, size: int) -> bytes:
        """At most `size` of the next bytes; none only at the end."""
        while True:
            if self.decoder.eof:
                # Between streams and at the end there may be zeros.
                self.left = (self.decoder.unused_data or self.packed.read(BUFFER)).lstrip(b"\0")
                if not self.left and not (left := self.packed.read(BUFFER).lstrip(b"\0")):
                    return b""
                self.left = self.left or left
                self.decoder = new_decoder()
            if self.decoder.needs_input and not self.left:
                self.left = self.packed.read(BUFFER)
                if not self.left:
                    raise OSError("xz: it breaks off")
            found = self.decoder.decompress(self.left, size)
            self.left = b""
            if found:
                return found


def new_decoder() -> lzma.LZMADecompressor:
    """What unpacks one stream of xz."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
