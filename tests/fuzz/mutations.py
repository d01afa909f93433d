"""Ways to spoil a file, by random numbers from a seed.

Each takes bytes and a generator and returns bytes. `CONSISTENT` are those after which all checksums of a
PNG fit again: what comes out is legitimately another image.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pydicom
from twins import chunks_of, png_of

Random = np.random.Generator
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def place_in(content: bytes, random: Random) -> int:
    """A place in bytes, which may be none; the first 200 are as probable as the others."""
    return int(random.integers(0, max(1, min(len(content), random.choice([200, len(content)])))))


def flip(content: bytes, random: Random) -> bytes:
    """Some bits."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9)) if changed else 0):
        changed[place_in(content, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(content: bytes, random: Random) -> bytes:
    """The beginning alone."""
    return content[: place_in(content, random)]


def insert(content: bytes, random: Random) -> bytes:
    """Some bytes more, anywhere."""
    place = place_in(content, random)
    return content[:place] + random.bytes(int(random.integers(1, 300))) + content[place:]


def delete(content: bytes, random: Random) -> bytes:
    """Some bytes less."""
    place = place_in(content, random)
    return content[:place] + content[place + int(random.integers(1, 300)) :]


def double(content: bytes, random: Random) -> bytes:
    """A part of it twice."""
    place = place_in(content, random)
    return content[: place + int(random.integers(1, 300))] + content[place:]


def extreme(content: bytes, random: Random) -> bytes:
    """A field of 2 or 4 bytes, in either order, at an extreme."""
    place, size = place_in(content, random), int(random.choice([2, 4]))
    value = int(random.choice(EXTREMES)) & ((1 << (8 * size)) - 1)
    order = "big" if random.random() < 0.5 else "little"
    return content[:place] + value.to_bytes(size, order) + content[place + size :]


ANY = (flip, truncate, insert, delete, double, extreme)


def png_length(content: bytes, random: Random) -> bytes:
    """The length of a chunk at an extreme."""
    chunks = chunks_of(content)
    place = 8
    for _, data in chunks[: int(random.integers(len(chunks)))]:
        place += 12 + len(data)
    return content[:place] + int(random.choice(EXTREMES)).to_bytes(4, "big") + content[place + 4 :]


def packed_pixels(content: bytes, random: Random) -> bytes:
    """The packed pixels are spoiled; the chunk's CRC-32 is mended, the Adler-32 is not."""
    chunks = chunks_of(content)
    spoil = ANY[int(random.integers(len(ANY)))]
    changed = [[kind, spoil(data, random) if kind == b"IDAT" else data] for kind, data in chunks]
    return png_of(changed)


def png_chunk(content: bytes, random: Random) -> bytes:
    """A chunk that has no pixels is spoiled, left out, or moved; its CRC-32 is mended."""
    chunks = chunks_of(content)
    others = [i for i, (kind, _) in enumerate(chunks) if kind != b"IDAT"]
    at = int(random.choice(others))
    way = int(random.integers(4))
    if way == 0:
        del chunks[at]
    elif way == 1:
        chunks.insert(int(random.integers(len(chunks))), chunks.pop(at))
    else:
        chunks[at][1] = ANY[int(random.integers(len(ANY)))](chunks[at][1], random)
    return png_of(chunks)


def repacked_pixels(content: bytes, random: Random) -> bytes:
    """The rows are spoiled and packed anew: every checksum fits."""
    chunks = chunks_of(content)
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    rows = ANY[int(random.integers(len(ANY)))](zlib.decompress(packed), random)
    at = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return png_of([*rest[:at], [b"IDAT", zlib.compress(rows)], *rest[at:]])


TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation",
    "PixelPaddingValue", "SmallestImagePixelValue", "PlanarConfiguration",
)  # fmt: skip
TEXTS = ("NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
WORDS = ("MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "X", "")


def dicom_value(content: bytes, random: Random) -> bytes:
    """An attribute has another value, or is not there. What pydicom cannot write is spoiled otherwise."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    way = int(random.integers(5))
    tag = str(random.choice(TAGS))
    try:
        if way == 0 and tag in dataset:
            delattr(dataset, tag)
        elif way == 1:
            value = random.choice(
                ["0", "-1", "1e300", "1e-300", "NaN", "65535", "2147483647", "", "a"]
            )
            setattr(dataset, str(random.choice(TEXTS)), str(value))
        elif way == 2:
            dataset.PhotometricInterpretation = str(random.choice(WORDS))
        elif way == 3:
            syntax = random.choice(
                ["1.2", "1.2.1", "1.2.2", "1.2.4.50", "1.2.4.70", "1.2.4.80", "1.2.4.90", "1.2.5"]
            )
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008." + str(syntax)
        else:
            setattr(
                dataset,
                tag,
                int(random.choice([0, 1, 7, 8, 12, 16, 17, 32, 64, 4096, 9999, 65535])),
            )
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=False)
    except Exception:
        return flip(content, random)
    return buffer.getvalue()


PNG_ONLY = (png_length, packed_pixels, png_chunk, repacked_pixels)
CONSISTENT = (png_chunk, repacked_pixels)


def mutations(kind: str) -> tuple[Callable[[bytes, Random], bytes], ...]:
    """The ways to spoil a file of some kind."""
    if kind.startswith("PNG"):
        return (*ANY, *PNG_ONLY)
    return (*ANY, dicom_value, dicom_value, dicom_value) if kind.startswith("DICOM") else ANY
