"""PNG files, checked to the last byte before they are decoded. Pure functions; runs in Spark tasks.

In: the bytes of a PNG. Out: the same PNG with its pixels unpacked, or BadImageError. Decoders forgive
much: rows that are missing or too many, a wrong Adler-32, a filter that there is not. Here none of it
passes. What comes out needs no second inflation, and ISA-L's is more than twice as fast as zlib's: all in
all a file is decoded faster than by a decoder alone.

Source: PNG specification, third edition, 5.3 to 5.6, 7.2, 8.1, 9.2, 10.1, 11.2.1.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from chexspark.ingestion.image_errors import BadImageError
from chexspark.ingestion.kinds import PNG_MARK

HEADER, PIXELS, END = b"IHDR", b"IDAT", b"IEND"
ANIMATED = b"acTL"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type → samples of a pixel
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # fmt: skip
MOST_FILTER = 4
STORED = b"\x78\x01"  # how a zlib stream begins, of the least compression
LONGEST_BLOCK = 65_535  # bytes of a block that is not compressed


class Chunk(NamedTuple):
    """A part of a PNG."""

    kind: bytes
    begin: int  # where it stands in the file, with length and checksum
    end: int


class Header(NamedTuple):
    """What IHDR says."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour: int
    interlaced: bool

    def row_bytes(self, width: int) -> int:
        """The bytes of a row of so many pixels, with the one that names its filter."""
        return 1 + (width * CHANNELS[self.colour] * self.depth + 7) // 8

    def passes(self) -> list[tuple[int, int]]:
        """Rows, and bytes of each, of one pass after the other: one, or the seven of Adam7 with pixels."""
        if not self.interlaced:
            return [(self.height, self.row_bytes(self.width))]
        sizes = [
            (-((y - self.height) // down), -((x - self.width) // across))
            for x, y, across, down in ADAM7
        ]
        return [(rows, self.row_bytes(columns)) for rows, columns in sizes if rows and columns]


def unpacked_png(content: bytes) -> tuple[bytes, set[bytes]]:
    """The same PNG, its pixels as they are between inflation and filters, in one chunk; and the chunks it has.

    Raises BadImageError for one that is animated, breaks off, or has anything but the rows that its header
    promises, whole and once.
    """
    chunks = chunks_of(content)
    if any(chunk.kind == ANIMATED for chunk in chunks):
        raise BadImageError("several frames: an animated PNG")
    header = header_of(content, chunks[0])
    places = [i for i, chunk in enumerate(chunks) if chunk.kind == PIXELS]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise BadImageError("corrupt: the PNG's pixels are not in one place")
    found = [chunks[i] for i in places]
    packed = b"".join([memoryview(content)[c.begin + 8 : c.end - 4] for c in found])
    rows = inflated(packed, header)
    check_filters(rows, header)
    stored = stored_stream(rows, packed[-4:])
    checksum = zlib.crc32(PIXELS)
    for part in stored:
        checksum = zlib.crc32(part, checksum)
    view = memoryview(content)
    whole = b"".join([
        view[: found[0].begin], struct.pack(">I", sum(map(len, stored))), PIXELS, *stored,
        struct.pack(">I", checksum), view[found[-1].end :],
    ])  # fmt: skip
    return whole, {chunk.kind for chunk in chunks}


def chunks_of(content: bytes) -> list[Chunk]:
    """Walk the chunks to the end of the image and check their CRC-32.

    Raises BadImageError for a truncated file or a flipped bit.
    """
    chunks = []
    place, view = len(PNG_MARK), memoryview(content)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if end > len(content):
            break
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise BadImageError("corrupt: a PNG chunk does not fit its checksum")
        chunks.append(Chunk(content[place + 4 : place + 8], place, end))
        if chunks[-1].kind == END:
            return chunks
        place = end
    raise BadImageError("truncated: the PNG breaks off")


def header_of(content: bytes, chunk: Chunk) -> Header:
    """What the first chunk says. Raises BadImageError for what is no header, or of no kind of PNG."""
    if chunk.kind != HEADER or chunk.end - chunk.begin != 25:
        raise BadImageError("corrupt: the PNG does not begin with its header")
    width, height, depth, colour, packing, filters, interlace = struct.unpack_from(
        ">IIBBBBB", content, chunk.begin + 8
    )
    if depth not in DEPTHS.get(colour, ()) or packing or filters or interlace > 1:
        raise BadImageError(f"corrupt: there is no PNG of colour type {colour} with {depth} bits")
    return Header(width, height, depth, colour, bool(interlace))


def inflated(packed: bytes, header: Header) -> bytes:
    """The rows of all passes, each with its filter before it. Raises BadImageError for fewer or more.

    No more is unpacked than the header promises, and a byte.
    """
    expected = sum(rows * width for rows, width in header.passes())
    inflater = isal_zlib.decompressobj()
    try:
        rows = inflater.decompress(packed, expected + 1)
    except isal_zlib.IsalError as error:
        raise BadImageError(f"corrupt: the PNG's pixels cannot be inflated: {error}") from error
    if len(rows) > expected:
        raise BadImageError("corrupt: the PNG has more pixels than its header says")
    if not inflater.eof:
        raise BadImageError("truncated: the PNG's pixels break off")
    if len(rows) < expected:
        raise BadImageError("corrupt: the PNG has fewer pixels than its header says")
    if inflater.unused_data:
        raise BadImageError("corrupt: the PNG has bytes after the end of its pixels")
    return rows


def check_filters(rows: bytes, header: Header) -> None:
    """Raise BadImageError for a row whose filter is none of the five. `rows`: as `inflated` gives them."""
    place = 0
    for number, width in header.passes():
        table = np.frombuffer(rows, np.uint8, number * width, place).reshape(number, width)
        if table[:, 0].max() > MOST_FILTER:
            raise BadImageError(f"corrupt: a PNG row of filter {table[:, 0].max()}")
        place += number * width


def stored_stream(rows: bytes, adler: bytes) -> list[bytes | memoryview]:
    """A zlib stream of blocks that are not compressed, in parts. `adler`: the checksum of `rows`."""
    parts: list[bytes | memoryview] = [STORED]
    for place in range(0, len(rows), LONGEST_BLOCK):
        block = memoryview(rows)[place : place + LONGEST_BLOCK]
        last = place + len(block) == len(rows)
        parts += [struct.pack("<BHH", last, len(block), LONGEST_BLOCK - len(block)), block]
    return [*parts, adler]
