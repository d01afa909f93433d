"""What the largest images that are accepted cost a task."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from test_dicom import dicom

from chexspark.ingestion.images import MAX_BYTES, eight_bits

MOST = 1_000_000  # kB
CODE = """
import io, resource, sys
import numpy as np
from PIL import Image
from chexspark.ingestion import dicom
from chexspark.ingestion.images import prepare
from chexspark.preparation import Preparation
small = io.BytesIO()
Image.fromarray(np.arange(4096).reshape(64, 64).astype(np.uint8)).save(small, "PNG")
prepare(small.getvalue(), Preparation(32))  # what libraries take at their first use
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
with open(sys.argv[1], "rb") as file:
    print(prepare(file.read(), Preparation(32)).original_width)
print(peak() - before)
"""


def large(side: int) -> np.ndarray:
    """Uint16 (side, side) of 12 bits."""
    steps = np.arange(side, dtype=np.uint16)
    return (steps[:, None] * 3 + steps * 2) % 4096


def raw_dicom(words: np.ndarray, **more: object) -> bytes:
    """A file of uint16 (height, width), which is not copied into wider numbers as `dicom` does."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(**more)))
    dataset.Rows, dataset.Columns = words.shape
    dataset.PixelData = words.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def colours(side: int, form: str, **more: object) -> bytes:
    """A picture of four bytes a pixel."""
    buffer = io.BytesIO()
    gray = (large(side) >> 4).astype(np.uint8)
    Image.fromarray(np.dstack([gray] * 3)).save(buffer, form, **more)
    return buffer.getvalue()


LARGE = {
    "DICOM": lambda: raw_dicom(large(10_000), PixelPaddingValue=0, PixelPaddingRangeLimit=200),
    "PNG 16": lambda: cv2.imencode(".png", large(10_000), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
    "PNG RGB": lambda: colours(int((MAX_BYTES // 4) ** 0.5), "PNG", compress_level=1),
    "JPEG": lambda: colours(int((MAX_BYTES // 4) ** 0.5), "JPEG", progressive=True, subsampling=0),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_images_take_less_than_a_gigabyte(name, tmp_path):
    (tmp_path / "large").write_bytes(LARGE[name]())
    words = [sys.executable, "-c", CODE, str(tmp_path / "large")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    side, kilobytes = (int(line) for line in done.stdout.splitlines())
    assert side > 7000 and kilobytes < MOST


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_eight_bits_row_by_row_are_those_of_the_whole(bits):
    values = np.random.default_rng(bits).integers(0, 1 << bits, (70, 33)).astype(np.uint16)
    most = 2**bits - 1
    whole = (values.astype(np.uint32) * 510 + most) // (2 * most)
    np.testing.assert_array_equal(eight_bits(values, bits), whole)
