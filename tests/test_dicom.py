"""DICOM pixels against arithmetic written out from DICOM PS3.3, not from what decodes them here."""

import io
import os
import re
import struct
import sys
import zlib

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from chexspark.ingestion import dicom as reading
from chexspark.ingestion import dicom_colours
from chexspark.ingestion.images import BadImageError, decode, prepare
from chexspark.ingestion.kinds import HEAD, kind_of
from chexspark.ingestion.sources import SourceFile
from chexspark.ingestion.task import Known, Label, WriteTask, write_task
from chexspark.preparation import Preparation

ROWS, COLUMNS = 24, 20
STORED = np.linspace(300, 3360, ROWS * COLUMNS).astype(int).reshape(ROWS, COLUMNS)  # of 12 bits
WINDOW = {"WindowCenter": 1800, "WindowWidth": 2000}
DATA = pydicom.data.__path__[0]


def dicom(pixels=STORED, syntax=ExplicitVRLittleEndian, **more) -> bytes:
    """A file of one gray frame of 12 bits, or of what `more` says; None leaves an element out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    facts = {
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
    }  # fmt: skip
    if isinstance(pixels, np.ndarray):
        facts["Rows"], facts["Columns"] = pixels.shape[:2]
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        width = more.get("BitsAllocated", 16) // 8
        values = pixels.astype(np.int64) & ((1 << (8 * width)) - 1)
        pixels = values.astype(f"{order}u{width}").tobytes()
    for name, value in (facts | more).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def empty(keyword: str) -> pydicom.DataElement:
    return pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(keyword), None)


def shown(content: bytes) -> np.ndarray:
    return decode(content, "chest.dcm")[0].astype(int)


def linear(values, center, width):
    """PS3.3, C.11.2.1.2.1, with an output of 0 to 255."""
    gray = np.empty(values.shape)
    for place, x in np.ndenumerate(values):
        if x <= center - 0.5 - (width - 1) / 2:
            gray[place] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            gray[place] = 255
        else:
            gray[place] = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return gray


def stretched(values):
    """The image's own range."""
    return (values - values.min()) / (values.max() - values.min()) * 255


def check(content: bytes, expected: np.ndarray) -> None:
    np.testing.assert_allclose(shown(content), expected, atol=0.51)


# --- modality ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, values",
    [
        ({}, STORED),
        ({"RescaleSlope": None, "RescaleIntercept": -500}, STORED - 500),
        ({"RescaleSlope": 2}, STORED * 2),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, STORED),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, 4095 - STORED),
        ({"RescaleSlope": 0.5, "RescaleIntercept": -100}, STORED * 0.5 - 100),
    ],
    ids=["neither", "intercept", "slope", "empty", "negative", "both"],
)
def test_each_part_of_a_rescale_is_optional(more, values):
    check(dicom(**WINDOW, **more), linear(values, 1800, 2000))
    check(dicom(**more), stretched(values))


def table(values, first=0, bits=16, kind="<u2"):
    """A sequence of one LUT."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) % 65536, first % 65536, bits])
    item.add_new("LUTData", "OW", np.asarray(values).astype(kind).tobytes())
    return Sequence([item])


def test_a_modality_lut_comes_before_the_window():
    curve = (np.arange(4096) ** 2) // 256
    wide = {"WindowCenter": 20000, "WindowWidth": 30000}
    content = dicom(ModalityLUTSequence=table(curve), RescaleSlope=7, **wide)
    check(content, linear(curve[STORED], 20000, 30000))
    check(dicom(ModalityLUTSequence=table(curve)), stretched(curve[STORED]))


def test_a_table_goes_on_at_its_ends_and_begins_below_zero():
    signed = STORED - 2000
    curve = np.arange(1000, 2000)
    content = dicom(signed, PixelRepresentation=1, ModalityLUTSequence=table(curve, first=-500))
    check(content, stretched(curve[np.clip(signed + 500, 0, 999)]))


def test_a_table_of_eight_bits_is_packed_or_not():
    eight = STORED // 16
    curve = 255 - np.arange(256)
    facts = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    for kind in ("u1", "<u2"):
        check(dicom(eight, VOILUTSequence=table(curve, bits=8, kind=kind), **facts), curve[eight])


# --- window --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 1800},
        {"WindowWidth": 2000},
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 1800, "WindowWidth": -5},
        {"WindowCenter": 1800, "WindowWidth": 0.5},
        {"VOILUTSequence": Sequence()},
        {"VOILUTFunction": "SIGMOID"},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [12, 16])
def test_where_no_window_applies_the_range_is_the_image_s_own(more, bits):
    check(dicom(BitsStored=bits, HighBit=bits - 1, **more), stretched(STORED))


@pytest.mark.parametrize(
    "function, expected",
    [
        ("LINEAR", linear(STORED, 1800, 2000)),
        ("", linear(STORED, 1800, 2000)),
        ("LINEAR_EXACT", np.clip((STORED - 1800) / 2000 * 255 + 127.5, 0, 255)),
        ("SIGMOID", 255 / (1 + np.exp(-4 * (STORED - 1800) / 2000))),
    ],
)
def test_the_function_of_a_window(function, expected):
    check(dicom(VOILUTFunction=function, **WINDOW), expected)


def test_a_window_of_width_one_is_a_step_and_of_several_the_first_usable_counts():
    step = dicom(WindowCenter=1800, WindowWidth=1)
    check(step, linear(STORED, 1800, 1))
    assert set(np.unique(shown(step))) == {0, 255}
    check(dicom(WindowCenter=[0, 1800, 5], WindowWidth=[0, 2000, 7]), linear(STORED, 1800, 2000))


def test_an_image_that_does_not_fill_its_window_stays_as_it_is():
    content = dicom(BitsStored=16, HighBit=15, WindowCenter=32768, WindowWidth=65536)
    check(content, STORED / 65535 * 255)
    assert shown(content).max() == 13


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_voi_lut_has_an_output_range_of_its_own(bits):
    curve = np.arange(4096) * 2**bits // 5000
    expected = curve[STORED] / (2**bits - 1) * 255
    check(dicom(VOILUTSequence=table(curve, bits=bits)), expected)
    check(dicom(VOILUTSequence=table(curve, bits=bits), **WINDOW), expected)  # before a window
    inverted = dicom(VOILUTSequence=table(curve, bits=bits), PresentationLUTShape="INVERSE")
    check(inverted, 255 - expected)


def test_a_voi_lut_of_all_sixteen_bits_takes_what_the_rescale_gives():
    curve = np.arange(65536) // 2
    more = {"RescaleSlope": 1, "RescaleIntercept": -2000}
    content = dicom(VOILUTSequence=table(curve, first=-32768), **more)
    check(content, curve[STORED - 2000 + 32768] / 65535 * 255)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_tables_in_other_encodings(syntax):
    curve = np.arange(4096) * 10
    kind = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    more = {"ModalityLUTSequence": table(curve, kind=kind), "PixelPaddingValue": 300}
    expected = stretched(np.where(STORED == 300, STORED[0, 1], STORED))
    check(dicom(STORED, syntax, **more), np.where(STORED == 300, 0, expected))


def test_what_an_enhanced_file_says_in_its_groups():
    transformed, window, groups = Dataset(), Dataset(), Dataset()
    transformed.RescaleSlope, transformed.RescaleIntercept = 3, -70
    window.WindowCenter, window.WindowWidth = 4000, 5000
    groups.PixelValueTransformationSequence = Sequence([transformed])
    shared = Dataset()
    shared.FrameVOILUTSequence = Sequence([window])
    content = dicom(
        PerFrameFunctionalGroupsSequence=Sequence([groups]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    check(content, linear(STORED * 3 - 70, 4000, 5000))


# --- stored values and padding ---------------------------------------------------------------


@pytest.mark.parametrize(
    "more, pad",
    [
        ({"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 65535}, 65535),
        ({"PixelPaddingValue": 65535}, 65535),  # in bits that hold no value
        ({"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 40000,
          "PixelPaddingRangeLimit": 65535}, 50000),
        ({"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 65535,
          "PixelPaddingRangeLimit": 40000}, 50000),
        ({"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15,
          "PixelPaddingValue": -32768}, -32768),
        ({"PixelRepresentation": 1, "PixelPaddingValue": -2000}, -2000),
        ({"PixelRepresentation": 1, "PixelPaddingValue": -2000}, 0x830),  # the same in 12 bits
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 200}, 77),
    ],
    ids=str,
)  # fmt: skip
def test_padding_is_left_out_of_the_range_and_black(more, pad):
    values = STORED // 2  # below the largest of 12 bits with a sign
    padded = values.copy()
    padded[:6] = pad
    expected = stretched(values[6:])
    for inverse, rest in (({}, expected), ({"PresentationLUTShape": "INVERSE"}, 255 - expected)):
        found = shown(dicom(padded, **more, **inverse))
        np.testing.assert_allclose(found[6:], rest, atol=0.51)
        assert not found[:6].any()
    windowed = shown(dicom(padded, **more, WindowCenter=900, WindowWidth=1000))
    np.testing.assert_allclose(windowed[6:], linear(values[6:], 900, 1000), atol=0.51)
    assert not windowed[:6].any()


def test_an_image_of_padding_alone_is_refused():
    with pytest.raises(BadImageError, match="all pixels are padding"):
        decode(dicom(STORED * 0 + 7, PixelPaddingValue=7))


def test_bits_beyond_the_stored_ones_are_no_values():
    values = STORED // 2 - 1000
    dirty = (values & 0xFFF) | 0x5000
    check(dicom(dirty, PixelRepresentation=1), stretched(values))
    check(dicom((STORED & 0xFFF) | 0xA000), stretched(STORED))


def test_words_of_32_bits():
    values = STORED * 100_000
    facts = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    check(dicom(values, **facts), stretched(values))
    padded = np.where(STORED < 1000, 2**32 - 1, values)
    found = shown(
        dicom(padded, PixelPaddingValue=None, PhotometricInterpretation="MONOCHROME1", **facts)
    )
    np.testing.assert_allclose(found, 255 - stretched(padded), atol=0.51)


@pytest.mark.parametrize(
    "more, inverted",
    [
        ({}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "IDENTITY", "PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": ""}, False),
    ],
    ids=str,
)
def test_it_is_inverted_once_and_after_the_window(more, inverted):
    expected = linear(STORED, 1800, 2000)
    check(dicom(**WINDOW, **more), 255 - expected if inverted else expected)


# --- colours ---------------------------------------------------------------------------------

PAINTED = np.stack([STORED // 16, 255 - STORED // 32, STORED // 20], axis=-1)
LUMA = PAINTED @ (0.299, 0.587, 0.114)
COLOUR = {
    "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
    "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
}  # fmt: skip


def test_colours_become_gray_as_those_of_a_png():
    check(dicom(PAINTED, **COLOUR), LUMA)
    planes = np.moveaxis(PAINTED, -1, 0)
    content = dicom(planes, **COLOUR | {"PlanarConfiguration": 1, "Rows": ROWS, "Columns": COLUMNS})
    assert decode(content)[1] == "RGB"
    deep = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    check(dicom(PAINTED * 16, **COLOUR | deep), LUMA * 16 / 4095 * 255)
    # Bits beyond the stored ones are no values, here too.
    check(dicom(PAINTED * 16 + 0xA000, **COLOUR | deep), LUMA * 16 / 4095 * 255)


def test_luma_and_chroma_become_the_luma():
    full = np.stack([STORED // 16, STORED * 0 + 128, STORED * 0 + 128], axis=-1)
    check(dicom(full, **COLOUR | {"PhotometricInterpretation": "YBR_FULL"}), STORED // 16)


@pytest.mark.parametrize("bits, words", [(8, 1), (16, 2), (8, 2), (16, "2 of 8 bits")])
def test_palettes(bits, words):
    eight = STORED // 16
    levels = np.arange(256) * (257 if words == 2 and bits == 16 else 1)
    curves = [levels[::-1], levels, levels // 2]
    more = {
        "PhotometricInterpretation": "PALETTE COLOR",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
    }
    for colour, curve in zip(("Red", "Green", "Blue"), curves, strict=True):
        more[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        more[f"{colour}PaletteColorLookupTableData"] = curve.astype("u1" if words == 1 else "<u2").tobytes()  # fmt: skip
    expected = sum(w * c[eight] for w, c in zip((0.299, 0.587, 0.114), curves, strict=True))
    # PS3.3, C.7.6.3.1.6: entries of 8 bits are found in words of 16.
    check(dicom(eight, **more), expected * 255 / levels[-1])
    assert decode(dicom(eight, **more))[1] == "PALETTE COLOR"


# --- files -----------------------------------------------------------------------------------


def test_files_without_preamble_or_meta():
    expected = linear(STORED, 1800, 2000)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        whole = dicom(STORED, syntax, **WINDOW)
        bare = whole[144 + int.from_bytes(whole[140:144], "little") :]
        for content in (whole, whole[128:], whole[132:], bare):
            assert kind_of(content[:HEAD]) == "DICOM"
            check(content, expected)
        if syntax == ImplicitVRLittleEndian:  # an empty SpecificCharacterSet comes first
            check(struct.pack("<HHI", 8, 5, 0) + bare, expected)
    check(dicom(STORED, DeflatedExplicitVRLittleEndian, **WINDOW), expected)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x00", b"image,patient\n1,2\n", b"\x08\x00\x08\x00" + b"\xff" * 40, bytes(200),
     b"\x08" + bytes(100), b"II*\x00\x08\x00\x00\x00" + bytes(100), b"BM" + bytes(100)],
    ids=["empty", "short", "text", "length", "zeros", "an eight", "TIFF", "BMP"],
)  # fmt: skip
def test_what_is_no_dicom(content):
    assert kind_of(content) is None


def test_a_dicomdir_is_no_image():
    folder = dicom()
    whole = pydicom.dcmread(io.BytesIO(folder))
    whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    buffer = io.BytesIO()
    whole.save_as(buffer)
    assert kind_of(buffer.getvalue()) is None and kind_of(folder) == "DICOM"


@pytest.mark.parametrize(
    "content, reason",
    [
        (dicom(PhotometricInterpretation="XYZ"), "photometric interpretation XYZ"),
        (dicom(PhotometricInterpretation=None), "photometric interpretation unknown"),
        (dicom(NumberOfFrames=2), "2 frames"),
        (dicom()[:-400], "cannot be decoded: .* less than expected"),
        (dicom(Rows=60_000, Columns=60_000), "absurd dimensions: 60000x60000"),
        (dicom(Rows=None), "DICOM without Rows"),
        (dicom(Columns=[20, 20]), "Columns has 2 values"),
        (dicom(BitsStored=None), "DICOM without BitsStored"),
        (dicom(PixelRepresentation=None), "DICOM without PixelRepresentation"),
        (dicom(HighBit=15), "HighBit is 15 and BitsStored 12: retired"),
        (dicom(SamplesPerPixel=3), "SamplesPerPixel is 3, but it is MONOCHROME2"),
        (dicom(RescaleSlope="nan"), "RescaleSlope is nan"),
        (dicom(RescaleSlope=[1, 2]), "RescaleSlope has 2 values"),
        (dicom(RescaleSlope=0), "RescaleSlope is 0"),
        (dicom(VOILUTFunction="LOG", **WINDOW), "VOILUTFunction is LOG"),
        (dicom(PresentationLUTShape="LIN OD"), "PresentationLUTShape is LIN OD"),
        (dicom(VOILUTSequence=table([1, 2, 70000 % 65536], bits=2)), "a LUT that does not hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_dicom_is_refused_with_its_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        prepare(content, Preparation(32), "chest.dcm")


def test_a_file_that_inflates_beyond_bounds_is_not_inflated(monkeypatch):
    content = dicom(np.zeros((2000, 1500), int), DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(reading, "MOST_INFLATED", 1 << 21)
    monkeypatch.setattr(pydicom, "dcmread", pytest.fail)
    with pytest.raises(BadImageError, match="inflates to more than 2 MiB"):
        decode(content)


def test_sequences_without_end_are_refused():
    item = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    whole = dicom()
    start = 144 + int.from_bytes(whole[140:144], "little")
    with pytest.raises(BadImageError, match="cannot be decoded: RecursionError"):
        decode(whole[:start] + item * 3000 + whole[start:])


@pytest.mark.parametrize(
    "error",
    [TypeError("x"), AttributeError("x"), KeyError("x"), IndexError("x"), ValueError(), OSError("x"),
     RuntimeError("x"), NotImplementedError("x"), AssertionError(), EOFError(), ZeroDivisionError("x"),
     OverflowError("x"), MemoryError(), RecursionError("x"), struct.error("x"), zlib.error("x"),
     UnicodeDecodeError("ascii", b"x", 0, 1, "x"), SyntaxError("x"), StopIteration(), Warning("x")],
    ids=repr,
)  # fmt: skip
def test_whatever_a_decoder_raises_the_file_is_refused(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(reading, "read_dicom", fail)
    with pytest.raises(BadImageError, match=r"^cannot be decoded: ."):
        prepare(dicom(), Preparation(32), "chest.dcm")


def test_a_decoder_that_is_missing_is_named(monkeypatch):
    with pytest.raises(BadImageError, match=r"needs pylibjpeg-openjpeg, not installed here"):
        decode(dicom(encapsulate([b"\xff\x4f\xff\x51"]), HTJ2KLossless, Rows=ROWS, Columns=COLUMNS))
    jpeg = encapsulate([b"\xff\xd8\xff\xd9"])
    monkeypatch.setitem(sys.modules, "gdcm", None)
    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",), "pylibjpeg": ("x",)})
    for syntax in (JPEGExtended12Bit, JPEGLSLossless):
        with pytest.raises(BadImageError, match="needs python-gdcm, not installed here"):
            decode(dicom(jpeg, syntax, Rows=ROWS, Columns=COLUMNS))


# --- files that come with pydicom --------------------------------------------------------------


def pydicom_files() -> dict[str, bytes]:
    found = {}
    for folder, _, names in os.walk(DATA):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            if kind_of(content):
                found[os.path.relpath(os.path.join(folder, name), DATA)] = content
    return found


def arithmetic(dataset: Dataset) -> np.ndarray | None:
    """The gray of an uncompressed file without padding, tables and groups; None of another."""
    if dataset.file_meta.get("TransferSyntaxUID") not in (
        ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    ) or dataset.BitsAllocated == 1 or "PixelPaddingValue" in dataset:  # fmt: skip
        return None
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    kind = f"{order}{'ui'[dataset.PixelRepresentation]}{dataset.BitsAllocated // 8}"
    number = dataset.Rows * dataset.Columns
    stored = np.frombuffer(dataset.PixelData, kind, number).reshape(dataset.Rows, dataset.Columns)
    values = stored * float(dataset.get("RescaleSlope", 1)) + float(
        dataset.get("RescaleIntercept", 0)
    )
    if "WindowWidth" in dataset:
        pair = [dataset.WindowCenter, dataset.WindowWidth]
        return linear(values, *(float(v[0] if hasattr(v, "__len__") else v) for v in pair))
    return stretched(values)


def test_pydicom_s_own_files_are_read_or_refused_for_a_true_reason():
    read, refused, compared = {}, {}, 0
    for name, content in pydicom_files().items():
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        gray = (
            "PixelData" in dataset
            and str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
            and str(dataset.get("NumberOfFrames") or 1) == "1"
        )
        try:
            pixels, mode = decode(content)
        except BadImageError as error:
            refused[name] = (gray, str(error))
            continue
        read[os.path.basename(name)] = pixels.astype(int)
        expected = arithmetic(dataset) if gray else None
        if expected is not None:
            inverse = mode == "MONOCHROME1"
            np.testing.assert_allclose(
                pixels, 255 - expected if inverse else expected, atol=1, err_msg=name
            )
            compared += 1
    reasons = (
        r"DICOM without PixelData", r"DICOM of \d+ frames", r"absurd dimensions: 3x3", r"less than expected",
        r"DICOM without Columns", r"NumberOfFrames is '1A'", r"Unable to decode as exceptions were raised",
        r"the compressed pixels are \d+x1024, not 256x1024",
    )  # fmt: skip
    assert not [r for _, r in refused.values() if not re.search("|".join(reasons), r)]
    bad = sorted(os.path.basename(name) for name, (gray, _) in refused.items() if gray)
    assert bad == ["JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm"]
    grays = len(bad) + sum(1 for name in read if not name.startswith(("SC_", "examples_")))
    assert len(bad) <= 0.05 * grays and compared > 20
    for name in (
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
        "MR_small_bigendian",
    ):
        np.testing.assert_array_equal(read[f"{name}.dcm"], read["MR_small.dcm"], err_msg=name)
    np.testing.assert_array_equal(read["JPGExtended.dcm"], read["JPEG-lossy.dcm"])
    twelve = read["JPGExtended.dcm"]  # pydicom's tests have 244 and 95 for these two
    assert (
        abs(int(twelve[420, 140]) - 244 / 264 * 255) < 1
        and abs(twelve[230, 120] - 95 / 264 * 255) < 1
    )


def test_decoders_of_jpeg_2000_agree():
    name = os.path.join(DATA, "test_files", "JPEG2000.dcm")
    dataset = pydicom.dcmread(name)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    arrays = [decoder.as_array(dataset, decoding_plugin=p)[0] for p in ("gdcm", "pillow")]
    np.testing.assert_allclose(arrays[0].astype(int), arrays[1], atol=1)


@pytest.mark.parametrize(
    "said, burned_in", [("YES", True), ("yes ", True), ("NO", False), ("", False), (None, False)]
)
def test_a_file_that_says_that_annotations_are_burned_in(said, burned_in):
    for content in (dicom(BurnedInAnnotation=said), dicom(BurnedInAnnotation=said)[128:]):
        assert prepare(content, Preparation(32), "chest.dcm").burned_in is burned_in


def test_an_element_of_annotations_that_cannot_be_read_ends_nothing():
    whole = dicom(BurnedInAnnotation="YES")
    tag = b"\x28\x00\x01\x03"
    for kind in (b"XX", b"FL", b"FD"):  # no type, and two whose values have more bytes
        content = whole.replace(tag + b"CS\x04\x00YES ", tag + kind + b"\x02\x00YE")
        assert len(content) == len(whole) - 2
        assert prepare(content, Preparation(32), "chest.dcm").burned_in is False


def test_other_files_say_nothing_of_annotations():
    png = cv2.imencode(".png", np.arange(4096, dtype=np.uint8).reshape(64, 64))[1].tobytes()
    assert prepare(png, Preparation(32)).burned_in is False


def test_a_task_counts_kept_files_with_annotations_burned_in(tmp_path):
    files = {"a.dcm": dicom(BurnedInAnnotation="YES"), "b.dcm": dicom(STORED[::-1], BurnedInAnnotation="NO"),
             "c.dcm": dicom(STORED * 0 + 9, BurnedInAnnotation="YES")}  # fmt: skip
    sources = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        sources.append(SourceFile(str(tmp_path / name), name, len(content), ""))
    label = Label("1", "train", bytes([1]), (None,) * 11)
    task = WriteTask(str(tmp_path / "out"), 0, Preparation(32), 4, tuple(sources))
    done = write_task(task, Known(dict.fromkeys(files, label), {}, frozenset()))
    assert [kept.name for kept in done.kept] == ["a.dcm", "b.dcm"], "the third is blank"
    assert done.burned_in == 1


# --- memory ------------------------------------------------------------------------------------


def test_a_stream_larger_than_its_data_set_says_is_not_decoded():
    large = cv2.imencode(".jp2", np.zeros((300, 200), np.uint8))[1].tobytes()
    jpeg = cv2.imencode(".jpg", np.zeros((300, 200), np.uint8))[1].tobytes()
    facts = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": ROWS, "Columns": COLUMNS}
    for stream, syntax in ((large, JPEG2000Lossless), (jpeg, JPEGBaseline8Bit)):
        with pytest.raises(BadImageError, match=r"the compressed pixels are 200x300, not 20x24"):
            decode(dicom(encapsulate([stream]), syntax, **facts))


def test_a_stream_of_other_colours_than_its_data_set_says_is_refused():
    painted = PAINTED.astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    gray = cv2.imencode(".jpg", painted[..., 0])[1].tobytes()
    size = {"Rows": 4 * ROWS, "Columns": 4 * COLUMNS}
    facts = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7} | size
    for end, syntax in ((".jpg", JPEGBaseline8Bit), (".jp2", JPEG2000Lossless)):
        stream = cv2.imencode(end, painted)[1].tobytes()
        with pytest.raises(BadImageError, match="pixel has 3 values, and SamplesPerPixel is 1"):
            decode(dicom(encapsulate([stream]), syntax, **facts))
    colour = COLOUR | size | {"PhotometricInterpretation": "YBR_FULL"}
    with pytest.raises(BadImageError, match="pixel has 1 value, and SamplesPerPixel is 3"):
        decode(dicom(encapsulate([gray]), JPEGBaseline8Bit, **colour))


@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("first", [0, -2048])
def test_whether_values_are_signed_is_what_a_jpeg_2000_stream_says(tmp_path, first, said):
    values = STORED + first
    place = str(tmp_path / "x.dcm")
    (tmp_path / "x.dcm").write_bytes(dicom(values, PixelRepresentation=int(first < 0)))
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    writer = gdcm.ImageWriter()
    reader.SetFileName(place)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(place)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    dataset = pydicom.dcmread(place)
    dataset.PixelRepresentation = said
    dataset.save_as(place)
    check((tmp_path / "x.dcm").read_bytes(), stretched(values))


def test_runs_that_unpack_to_more_than_the_image_are_not_unpacked():
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": ROWS, "Columns": COLUMNS}
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    row = bytes([COLUMNS - 1, *range(0, 200, 10)])  # literally, every row alike
    ramp = np.tile(np.arange(0, 200, 10), (ROWS, 1))
    check(dicom(encapsulate([header + row * ROWS]), RLELossless, **eight), stretched(ramp))
    with pytest.raises(BadImageError, match="the compressed pixels unpack to more than 480 bytes"):
        decode(dicom(encapsulate([header + b"\x81\0" * 5000]), RLELossless, **eight))


def test_pixels_of_more_bytes_than_a_task_has_are_not_decoded():
    facts = COLOUR | {"Rows": 9_000, "Columns": 9_000}
    with pytest.raises(BadImageError, match="absurd dimensions: 9000x9000 with 3 bytes a pixel"):
        decode(dicom(b"\0\0", **facts))


def test_colours_by_strips_are_those_of_the_whole():
    random = np.random.default_rng(0)
    words = random.integers(0, 256, (2 * dicom_colours.STRIP + 7, 33, 3)).astype(np.uint8)
    whole = convert_color_space(words, "YBR_FULL", "RGB")
    expected = dicom_colours.gray_of_colours(whole, 255)
    more = COLOUR | {"PhotometricInterpretation": "YBR_FULL"}
    np.testing.assert_array_equal(shown(dicom(words, **more)), expected)
