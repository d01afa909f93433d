"""What compressed DICOM pixels would take, before they are decoded. Pure functions; runs in Spark tasks.

In: the first fragment of a frame. Out: nothing, or ValueError: a decoder believes the stream and not the
data set around it, so that a small file may ask for any amount of memory.

Source: JPEG, ITU-T T.81, B.1.1 and B.2.2; JPEG-LS, T.87, C.1.1; JPEG 2000, T.800, A.5.1; RLE, DICOM PS3.5, G.
"""

import struct

JPEG_START, J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
JP2_START = b"\0\0\0\x0cjP"
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame: of JPEG, and JPEG-LS
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
RLE_HEADER = 64  # bytes: the number of segments, and where each begins


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG, JPEG-LS or JPEG 2000 stream says; None where it does not say them."""
    if stream.startswith(JP2_START):  # boxes around the stream, against PS3.5
        stream = stream[max(0, stream.find(J2K_START)) :]
    if stream.startswith(J2K_START) and len(stream) >= 24:
        right, lower, left, upper = struct.unpack_from(">4I", stream, 8)
        return right - left, lower - upper
    place = 2 if stream.startswith(JPEG_START) else len(stream)
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", stream, place + 5)
            return width, height
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        place += 1 if marker == 0xFF else 2 if marker in ALONE else 2 + length
    return None


def check_stream_size(stream: bytes, width: int, height: int) -> None:
    """Raise ValueError where a compressed stream has other dimensions than the data set says."""
    found = stream_size(stream)
    if found not in (None, (width, height)):
        raise ValueError(f"the compressed pixels are {found[0]}x{found[1]}, not {width}x{height}")


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
