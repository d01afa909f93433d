"""A PNG file, checked: chunks, checksums, and as many rows as its header says. Pure functions; in Spark tasks.

In: the bytes of a file. Out: a PNG of the same chunks and pixels that is quicker to decode, or BadImageError
with the reason. Decoders forgive a stream of too few or too many rows, and do not look at its checksum.
Source: Portable Network Graphics, third edition, 5 to 10.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from isal import igzip_lib, isal_zlib

from chexspark.ingestion.kinds import PNG_MARK, BadImageError

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # fmt: skip
LAST_FILTER = 4
HEADER = 13  # bytes of IHDR
QUICK_BYTES = 1 << 26  # of rows that are handed on uncompressed; more would cost too much memory


@dataclass(frozen=True)
class Header:
    """IHDR. Width and height in pixels."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour: int
    interlaced: bool

    @classmethod
    def of(cls, content: bytes) -> "Header":
        """Read it. Raises BadImageError where it is not the first chunk or not of PNG's kinds."""
        place = len(PNG_MARK) + 8
        values = content[place : place + HEADER]
        if (
            content[place - 8 : place] != HEADER.to_bytes(4, "big") + b"IHDR"
            or len(values) < HEADER
        ):
            raise BadImageError("corrupt: the PNG does not begin with its header")
        width, height = (int.from_bytes(values[i : i + 4], "big") for i in (0, 4))
        depth, colour, compression, filters, interlace = values[8:]
        if (
            colour not in CHANNELS
            or depth not in (1, 2, 4, 8, 16)
            or compression
            or filters
            or interlace > 1
        ):
            raise BadImageError("corrupt: the PNG's header is of no known kind")
        return cls(width, height, depth, colour, bool(interlace))

    @property
    def pixel_bits(self) -> int:
        """Of all channels of a pixel."""
        return CHANNELS[self.colour] * self.depth

    def passes(self) -> list[tuple[int, int]]:
        """Bytes of a row, its filter's byte among them, and number of rows, of each pass."""
        sizes = [(self.width, self.height)]
        if self.interlaced:
            sizes = [
                (-(-(self.width - x) // across), -(-(self.height - y) // down))
                for x, y, across, down in ADAM7
            ]
        return [(1 + -(-w * self.pixel_bits // 8), h) for w, h in sizes if w > 0 and h > 0]


def checked_png(content: bytes, header: Header) -> tuple[bytes, set[bytes]]:
    """Check all of a file that can be checked; return it for a decoder, and the names of its chunks.

    Raises BadImageError for a file that breaks off, a chunk that is not its checksum's, pixels that are not,
    or that are too few or too many.
    """
    chunks = chunks_of(content)
    parts = [i for i, (name, _) in enumerate(chunks) if name == b"IDAT"]
    if parts != list(range(parts[0], parts[0] + len(parts))) if parts else True:
        raise BadImageError("corrupt: the PNG has no pixels, or in two places")
    rows = inflated(b"".join(whole[8:-4] for _, whole in chunks[parts[0] : parts[-1] + 1]), header)
    names = {name for name, _ in chunks}
    if len(rows) > QUICK_BYTES:
        return content, names
    others = [bytes(whole) for _, whole in chunks]
    others[parts[0] : parts[-1] + 1] = [chunk(b"IDAT", zlib.compress(rows, 0))]
    return PNG_MARK + b"".join(others), names


def chunks_of(content: bytes) -> list[tuple[bytes, memoryview]]:
    """Name and whole of each chunk up to the last, their CRC-32 checked. Raises BadImageError."""
    found = []
    place, view = len(PNG_MARK), memoryview(content)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if end > len(content):
            break
        if isal_zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise BadImageError("corrupt: a PNG chunk does not fit its checksum")
        found.append((content[place + 4 : place + 8], view[place:end]))
        if found[-1][0] == b"IEND":
            return found
        place = end
    raise BadImageError("truncated: the PNG breaks off")


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return b"".join(
        [
            len(data).to_bytes(4, "big"),
            name,
            data,
            zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big"),
        ]
    )


def inflated(compressed: bytes, header: Header) -> bytes:
    """The filtered rows, as many as there are to be, and their Adler-32 checked. Raises BadImageError."""
    passes = header.passes()
    expected = sum(width * rows for width, rows in passes)
    stream = isal_zlib.decompressobj()
    try:
        rows = stream.decompress(compressed, expected + 1)
    except igzip_lib.IsalError as error:
        raise BadImageError(f"corrupt: the PNG's pixels are damaged ({error})") from error
    if len(rows) > expected:
        raise BadImageError("corrupt: the PNG has more pixels than its header says")
    if not stream.eof:
        raise BadImageError("truncated: the PNG's pixels break off")
    if len(rows) < expected:
        raise BadImageError("corrupt: the PNG has fewer pixels than its header says")
    values, place = np.frombuffer(rows, np.uint8), 0
    for width, number in passes:
        if values[place : place + width * number : width].max() > LAST_FILTER:
            raise BadImageError("corrupt: a row of the PNG has no known filter")
        place += width * number
    return rows
