import io
import zlib
from fractions import Fraction

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from chexspark.ingestion.dicom import window_range
from chexspark.ingestion.duplicates import NEAR_BITS
from chexspark.ingestion.images import (
    BadImageError,
    decode,
    looks_inverted,
    perceptual_hash,
    prepare,
    shrink,
)
from chexspark.phantom import draw_phantom, write_release

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))


def encoded(image: Image.Image, form="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_gray_values_survive_every_mode(mode):
    image = Image.fromarray(RAMP).convert(mode)
    pixels, found = decode(encoded(image))
    np.testing.assert_array_equal(pixels, RAMP)
    assert found == mode


SIXTEEN = np.arange(65536, dtype=np.uint16).reshape(256, 256)
NEAREST = np.array([round(Fraction(v * 255, 65535)) for v in range(65536)]).reshape(256, 256)


@pytest.mark.parametrize(
    "values",
    [SIXTEEN, np.dstack([SIXTEEN] * 3), np.dstack([*[SIXTEEN] * 3, SIXTEEN[::-1]])],
    ids=["gray", "RGB", "RGBA"],
)
def test_sixteen_bits_become_the_nearest_of_eight(values):
    pixels, _ = decode(cv2.imencode(".png", values)[1].tobytes())
    np.testing.assert_array_equal(pixels, NEAREST)
    assert abs((pixels - SIXTEEN / 257).mean()) < 1e-12 and (pixels[0, 0], pixels[-1, -1]) == (
        0,
        255,
    )


def test_a_sixteen_bit_dicom_becomes_the_nearest_of_eight():
    content = dicom(SIXTEEN, BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(decode(content, "chest.dcm")[0], NEAREST)
    windowed = dicom(SIXTEEN, BitsStored=16, HighBit=15, WindowCenter=32768, WindowWidth=65536)
    np.testing.assert_array_equal(decode(windowed, "chest.dcm")[0], NEAREST)


def test_shrinking_by_area_is_the_mean_of_each_block():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    np.testing.assert_allclose(shrink(checks.astype(np.uint8), 32), 127.5, atol=0.5)


def test_an_image_of_the_right_size_is_kept_as_it_is():
    stored = prepare(encoded(Image.fromarray(RAMP)), 64)
    np.testing.assert_array_equal(stored.pixels, RAMP)
    assert (stored.original_width, stored.original_height) == (64, 64)
    assert stored.pixel_mean == RAMP.mean()


def flipped(content):
    return content[:70] + bytes([content[70] ^ 1]) + content[71:]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file"),
        (b"this is no image", "not a PNG, JPEG or DICOM"),
        (encoded(Image.fromarray(RAMP))[:60], "truncated"),
        (encoded(Image.fromarray(RAMP), "JPEG")[:-300], "truncated"),
        (flipped(encoded(Image.fromarray(RAMP))), "corrupt"),
        (encoded(Image.fromarray(RAMP[:8])), "absurd dimensions: 64x8"),
        (encoded(Image.new("L", (64, 64), 7)), "blank"),
        (encoded(Image.fromarray(RAMP), "GIF"), "not a PNG, JPEG or DICOM"),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "truncated JPEG",
        "flipped",
        "small",
        "blank",
        "another format",
    ],
)
def test_a_bad_image_is_refused_with_its_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        prepare(content, 32)


def test_absurd_dimensions_are_refused_by_the_header_alone():
    header = bytearray(encoded(Image.fromarray(RAMP)))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(BadImageError, match=r"absurd dimensions|exceeds limit"):
        prepare(bytes(header), 32)


def test_a_name_that_disagrees_with_the_content():
    with pytest.raises(BadImageError, match="extension and content disagree: named PNG, is JPEG"):
        prepare(encoded(Image.fromarray(RAMP), "JPEG"), 32, "chest.png")


def dicom(pixels, **more) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_without_a_window_uses_the_range_of_its_values():
    pixels, mode = decode(dicom(RAMP.astype(np.uint16) * 10 + 100), "chest.dcm")
    np.testing.assert_allclose(pixels, RAMP * (255 / 252), atol=0.51)
    assert mode == "MONOCHROME2"


def test_dicom_slope_intercept_and_window():
    raw = RAMP.astype(np.uint16) * 16  # 0–4032
    shown = decode(
        dicom(raw, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=2000)
    )[0]
    values = raw * 2.0 - 1000
    expected = np.clip(((values - 2999.5) / 1999 + 0.5) * 255, 0, 255)  # DICOM PS3.3, C.11.2.1.2
    np.testing.assert_allclose(shown, expected, atol=1)


def test_dicom_monochrome1_is_inverted():
    raw = RAMP.astype(np.uint16) * 10
    plain = decode(dicom(raw))[0]
    other, mode = decode(dicom(raw, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(other, 255 - plain)
    assert mode == "MONOCHROME1"


@pytest.mark.parametrize(
    "content, reason",
    [
        (dicom(RAMP, PhotometricInterpretation="RGB"), "photometric interpretation RGB"),
        (dicom(RAMP, NumberOfFrames=2), "2 frames"),
        (dicom(RAMP)[:-4000], "cannot be decoded"),
        (dicom(RAMP, Rows=60_000, Columns=60_000), "absurd dimensions: 60000x60000"),
    ],
    ids=["colour", "frames", "truncated", "absurd"],
)
def test_a_bad_dicom_is_refused_with_its_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        prepare(content, 32, "chest.dcm")


def phantom(size, seed):
    return draw_phantom(size, [], np.random.Generator(np.random.PCG64(seed)))[0]


def again(pixels, change):
    """An X-ray as somebody else's copy of it may be."""
    size = len(pixels)
    if change == "JPEG":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=70)
        return np.asarray(Image.open(buffer))
    if change == "smaller":
        return np.asarray(Image.fromarray(pixels).resize((size // 2, size // 2), Image.BILINEAR))
    return np.clip(pixels * 1.1 - 20, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", ["JPEG", "smaller", "contrast"])
def test_the_perceptual_hash_knows_a_copy_and_tells_patients_apart(change):
    def differ(a, b):
        return (int(perceptual_hash(a), 16) ^ int(perceptual_hash(b), 16)).bit_count()

    one, other = phantom(256, 0), phantom(256, 1)
    assert differ(one, again(one, change)) <= NEAR_BITS < differ(one, other)
    assert len(perceptual_hash(one)) == 64


def test_a_phantom_says_that_it_is_one_whatever_it_is_called(tmp_path):
    write_release(out=str(tmp_path), images=1, size=32)
    (drawn,) = (path.read_bytes() for path in (tmp_path / "images").iterdir())
    copied = encoded(Image.open(io.BytesIO(drawn)))  # by an editor that drops what a file says
    assert prepare(drawn, 32, "real.png").synthetic and not prepare(copied, 32).synthetic
    np.testing.assert_array_equal(prepare(drawn, 32).pixels, prepare(copied, 32).pixels)
    assert not prepare(encoded(Image.fromarray(RAMP), "JPEG"), 32).synthetic


def test_a_negative_looks_inverted():
    chest = phantom(64, 0)
    assert not looks_inverted(chest) and looks_inverted(255 - chest)


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, (0, 4095)),
        ({"RescaleSlope": 2, "RescaleIntercept": -1000}, (-1000, 7190)),
        ({"PixelRepresentation": 1}, (-2048, 2047)),
        ({"RescaleSlope": -1, "RescaleIntercept": 10}, (-4085, 10)),
        ({"BitsStored": 8}, (0, 255)),
        ({"VOILUTSequence": []}, (3.0, 7.0)),
    ],
    ids=["12 bits", "rescaled", "signed", "negative slope", "8 bits", "a table"],
)
def test_the_range_that_a_window_is_mapped_to(more, expected):
    dataset = pydicom.Dataset()
    dataset.BitsStored = 12
    for name, value in more.items():
        setattr(dataset, name, value)
    assert window_range(dataset, 3.0, 7.0) == expected
