"""What compressed DICOM pixels would take, before they are decoded. Pure functions; runs in Spark tasks.

In: the first fragment of a frame. Out: what it says of its pixels, or ValueError where that is not what the
data set around it says: a decoder believes the stream, so that a small file may ask for any amount of memory.

Source: JPEG, ITU-T T.81, B.1.1 and B.2.2; JPEG-LS, T.87, C.1.1; JPEG 2000, T.800, A.5.1; RLE, DICOM PS3.5, G.
"""

import struct
from typing import NamedTuple

JPEG_START, J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
J2K_DEPTH, J2K_SIGN = 42, 0x80  # where the first component's depth stands, and its bit for a sign
JP2_START = b"\0\0\0\x0cjP"
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame: of JPEG, and JPEG-LS
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
RLE_HEADER = 64  # bytes: the number of segments, and where each begins


class Stream(NamedTuple):
    """What a compressed stream says of its pixels."""

    width: int
    height: int
    samples: int  # of a pixel
    signed: bool | None  # values may be negative; None where a stream of its kind cannot say it


def stream_facts(stream: bytes) -> Stream | None:
    """What a JPEG, JPEG-LS or JPEG 2000 stream says; None where it does not say it."""
    if stream.startswith(JP2_START):  # boxes around the stream, against PS3.5
        stream = stream[max(0, stream.find(J2K_START)) :]
    if stream.startswith(J2K_START) and len(stream) > J2K_DEPTH:
        right, lower, left, upper = struct.unpack_from(">4I", stream, 8)
        (samples,) = struct.unpack_from(">H", stream, J2K_DEPTH - 2)
        return Stream(right - left, lower - upper, samples, bool(stream[J2K_DEPTH] & J2K_SIGN))
    place = 2 if stream.startswith(JPEG_START) else len(stream)
    while place + 10 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", stream, place + 5)
            return Stream(width, height, stream[place + 9], None)
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        place += 1 if marker == 0xFF else 2 if marker in ALONE else 2 + length
    return None


def check_stream(stream: bytes, width: int, height: int, samples: int) -> None:
    """Raise ValueError where a compressed stream has another size or number of colours than the data set says."""
    found = stream_facts(stream)
    if found is None:
        return
    if found[:2] != (width, height):
        raise ValueError(
            f"the compressed pixels are {found.width}x{found.height}, not {width}x{height}"
        )
    if found.samples != samples:  # a decoder would give them one after the other
        values = "value" if found.samples == 1 else "values"
        raise ValueError(
            f"each compressed pixel has {found.samples} {values}, and SamplesPerPixel is {samples}"
        )


def check_rle(frame: bytes, most: int) -> None:
    """Raise ValueError where the segments of an RLE frame unpack to more than `most` bytes.

    A byte beyond, with which segments are made even, is allowed to each.
    """
    count, *begins = struct.unpack_from("<16I", frame.ljust(RLE_HEADER, b"\0"))
    begins = begins[: min(count, 15)]
    total = 0
    for begin, end in zip(begins, [*begins[1:], len(frame)], strict=True):
        place = begin
        while place < end - 1:
            head = frame[place]
            total += head + 1 if head < 128 else 257 - head if head > 128 else 0
            place += head + 2 if head < 128 else 2 if head > 128 else 1
            if total > most + len(begins):
                raise ValueError(f"the compressed pixels unpack to more than {most:,} bytes")
