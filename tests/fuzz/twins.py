"""Clean images and archives, small, with the gray values that they must be stored with."""

import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from test_dicom import DATA, STORED, WINDOW, arithmetic, dicom, linear
from test_images import png

SIDE = 48
EIGHT = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}


class Twin(NamedTuple):
    """A clean file. `gray`: (height, width), as it must be decoded, but for `off` of 255."""

    content: bytes
    gray: np.ndarray
    off: float = 0.51


def smooth() -> np.ndarray:
    """A picture with noise, uint8 (SIDE, SIDE)."""
    waves = np.sin(np.arange(SIDE) / 7)[:, None] * 60 + np.cos(np.arange(SIDE) / 5) * 50 + 128
    return np.clip(waves + np.random.default_rng(3).integers(0, 9, (SIDE, SIDE)), 0, 255).astype(
        np.uint8
    )


def saved(pixels: np.ndarray, form: str, **more: object) -> bytes:
    """What Pillow writes of uint8 (height, width) or (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **more)
    return buffer.getvalue()


def pictures() -> dict[str, Twin]:
    """PNG and JPEG, by kind."""
    gray = smooth()
    colours = np.dstack([gray] * 3)
    deep = gray.astype(np.uint16) * 257
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1).tobytes()
    return {
        "PNG gray 8": Twin(saved(gray, "PNG"), gray),
        "PNG gray 16": Twin(cv2.imencode(".png", deep)[1].tobytes(), gray),
        "PNG RGB": Twin(saved(colours, "PNG"), gray),
        "PNG palette": Twin(png(gray[..., None], 8, 3, palette), gray),
        "PNG interlaced": Twin(png(gray[..., None], 8, 0, interlaced=True), gray),
        "JPEG baseline": Twin(saved(gray, "JPEG"), gray, 20),
        "JPEG progressive": Twin(saved(colours, "JPEG", progressive=True), gray, 20),
    }


def dicoms() -> dict[str, Twin]:
    """DICOM of several transfer syntaxes, by kind."""
    shown, gray = linear(STORED, 1800, 2000), smooth()
    rows = {"Rows": SIDE, "Columns": SIDE}
    found = {
        f"DICOM {name}": Twin(dicom(STORED, syntax, **WINDOW), shown)
        for name, syntax in (
            ("explicit", ExplicitVRLittleEndian), ("implicit", ImplicitVRLittleEndian),
            ("big endian", ExplicitVRBigEndian), ("deflated", DeflatedExplicitVRLittleEndian),
        )
    }  # fmt: skip
    packed = pydicom.dcmread(io.BytesIO(found["DICOM explicit"].content))
    packed.compress(RLELossless)
    buffer = io.BytesIO()
    packed.save_as(buffer)
    found["DICOM RLE"] = Twin(buffer.getvalue(), shown)
    j2k = saved(gray, "JPEG2000", no_jp2=True)
    found["DICOM JPEG 2000"] = Twin(
        dicom(encapsulate([j2k]), JPEG2000Lossless, **EIGHT | rows), gray, 1
    )
    jpeg = saved(gray, "JPEG")
    found["DICOM JPEG"] = Twin(
        dicom(encapsulate([jpeg]), JPEGBaseline8Bit, **EIGHT | rows), gray, 20
    )
    plain = arithmetic(pydicom.dcmread(os.path.join(DATA, "test_files", "MR_small.dcm")))
    with open(os.path.join(DATA, "test_files", "MR_small_jpeg_ls_lossless.dcm"), "rb") as file:
        found["DICOM JPEG-LS"] = Twin(file.read(), plain, 1)
    return found


def tarred(files: dict[str, bytes]) -> bytes:
    """A tar archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], method: int) -> bytes:
    """A zip archive of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archives(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files in every form of archive that is read, by the end of its name."""
    import bz2
    import gzip

    tar = tarred(files)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes,
        "tar.gz": gzip.compress,
        "tar.bz2": bz2.compress,
        "tar.xz": lzma.compress,
        "tar.zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    }
    return {end: pack(tar) for end, pack in packers.items()} | {
        "stored.zip": zipped(files, zipfile.ZIP_STORED),
        "deflated.zip": zipped(files, zipfile.ZIP_DEFLATED),
    }


def chunks_of(content: bytes) -> list[list[bytes]]:
    """The chunks of a PNG that is whole, as kind and data."""
    chunks, place = [], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : end - 4]])
        place = end
    return chunks


def png_of(chunks: list[list[bytes]]) -> bytes:
    """A PNG of chunks, with fitting checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )
