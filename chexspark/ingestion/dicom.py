"""DICOM files to gray values. Pure functions; runs in Spark tasks.

In: the bytes of a DICOM file. Out: uint8 (height, width), bright where the X-ray was absorbed, and the
photometric interpretation. What a stored value means is in `dicom_display`.
"""

import io
import zlib

import numpy as np
import pydicom
from pydicom.encaps import generate_fragments, get_frame
from pydicom.pixels import apply_color_lut, convert_color_space, get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from chexspark.ingestion.apart import Apart, EndedError
from chexspark.ingestion.dicom_colours import painted, palette_bits
from chexspark.ingestion.dicom_display import Display, Values, integer
from chexspark.ingestion.dicom_streams import check_rle, check_stream, stream_facts
from chexspark.ingestion.image_errors import BadImageError

GRAY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
CHROMA = ("YBR_FULL", "YBR_FULL_422")  # what a decoder may leave as it is
COLOURS = ("RGB", *CHROMA, "YBR_ICT", "YBR_RCT")
PREAMBLE, MARK = bytes(128), b"DICM"
META_LENGTH = slice(140, 144)  # the value of (0002,0000): bytes of file meta after it
MOST_INFLATED = 1 << 28  # bytes; the largest image has fewer
BURNED_IN = "BurnedInAnnotation"  # PS3.3, C.7.6.1: YES or NO, where it is said
PACKAGES = {"gdcm": "python-gdcm", "pylibjpeg": "pylibjpeg-openjpeg"}  # decoder → what has it


def read_dicom(content: bytes) -> pydicom.Dataset:
    """Parse a file, also one without preamble or file meta.

    Raises BadImageError for one of several frames, ValueError for one without pixels, or that inflates
    beyond all bounds, and what pydicom raises.
    """
    if content.startswith(MARK):
        content = PREAMBLE + content
    check_inflated(content)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if "PixelData" not in dataset:
        raise ValueError("DICOM without PixelData")
    frames = integer(dataset, "NumberOfFrames", 1) or 1  # 0 is written for one
    if frames != 1:
        raise BadImageError(f"several frames: DICOM of {frames} frames")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = guessed_syntax(dataset)
    return dataset


def says_burned_in(content: bytes) -> bool:
    """Whether a file says that annotations are drawn in its pixels, where that can be read."""
    if content.startswith(MARK):
        content = PREAMBLE + content
    try:
        said = pydicom.dcmread(
            io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=[BURNED_IN]
        )
        return str(said.get(BURNED_IN) or "").strip().upper() == "YES"
    except Exception:  # whatever pydicom raises, it is about this element alone
        return False


def check_inflated(content: bytes) -> None:
    """Raise ValueError for a deflated file that inflates to more than `MOST_INFLATED`."""
    meta = 144 + int.from_bytes(content[META_LENGTH], "little")
    if f"{DeflatedExplicitVRLittleEndian}".encode() not in content[144 : min(meta, 4096)]:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = content[meta:]
    total = 0
    while left and not inflater.eof:
        total += len(inflater.decompress(left, 1 << 20))
        left = inflater.unconsumed_tail
        if total > MOST_INFLATED:
            raise ValueError(f"inflates to more than {MOST_INFLATED >> 20} MiB")


def guessed_syntax(dataset: pydicom.Dataset) -> str:
    """The transfer syntax of a file that does not say it. Raises ValueError where it cannot be known."""
    if dataset["PixelData"].is_undefined_length:
        raise ValueError("compressed, but no TransferSyntaxUID says how")
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def dicom_size(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Width and height in pixels. Raises ValueError where the file does not say them."""
    return integer(dataset, "Columns"), integer(dataset, "Rows")


def pixel_bytes(dataset: pydicom.Dataset) -> int:
    """The bytes of a pixel when it is decoded. Raises ValueError where the file does not say them.

    Of what is decoded in a process of its own, they are there twice.
    """
    once = integer(dataset, "SamplesPerPixel", 1) * -(-integer(dataset, "BitsAllocated") // 8)
    return 2 * once if is_decoded_apart(dataset) else once


def is_decoded_apart(dataset: pydicom.Dataset) -> bool:
    """Whether it is compressed by anything but runs, which Python itself unpacks."""
    syntax = dataset.file_meta.TransferSyntaxUID
    return syntax.is_transfer_syntax and syntax.is_encapsulated and syntax != RLELossless


def dicom_pixels(dataset: pydicom.Dataset, content: bytes) -> tuple[np.ndarray, str]:
    """Gray values as DICOM means them to be shown, and the photometric interpretation.

    `content`: the file that the data set is of.
    Returns uint8 (height, width); colours become gray. Source: DICOM PS3.3, C.7.6.3.1, C.11.1, C.11.2.
    Raises ValueError with the reason when that cannot be known, and what pydicom raises.
    """
    interpretation = str(dataset.get("PhotometricInterpretation") or "").strip()
    if interpretation not in (*GRAY, PALETTE, *COLOURS):
        raise ValueError(f"DICOM of photometric interpretation {interpretation or 'unknown'}")
    colours = interpretation in COLOURS
    if integer(dataset, "SamplesPerPixel", 1) != (3 if colours else 1):
        raise ValueError(
            f"SamplesPerPixel is {dataset.SamplesPerPixel}, but it is {interpretation}"
        )
    allocated, stored = (integer(dataset, name) for name in ("BitsAllocated", "BitsStored"))
    high = integer(dataset, "HighBit", stored - 1)
    if high != stored - 1:
        raise ValueError(
            f"HighBit is {high} and BitsStored {stored}: retired, where the values lie is not sure"
        )
    signed = is_signed(dataset)
    words, shown = decoded_words(dataset, content, stored)
    if colours:
        if shown in CHROMA:
            return painted(
                words, lambda strip: convert_color_space(strip, shown, "RGB"), stored
            ), interpretation
        if shown != "RGB":
            raise ValueError(f"DICOM of photometric interpretation {shown}")
        return painted(words, lambda strip: strip & (2**stored - 1), stored), interpretation
    if interpretation == PALETTE:

        def looked_up(strip: np.ndarray) -> np.ndarray:
            return apply_color_lut(strip & (2**stored - 1), dataset)[..., :3]

        return painted(words, looked_up, palette_bits(looked_up, stored)), interpretation
    syntax = dataset.file_meta.TransferSyntaxUID
    whole = syntax in JPEG2000TransferSyntaxes or syntax in JPEGLSTransferSyntaxes
    values = Values(8 * words.itemsize if whole else stored, allocated, signed)
    return Display.of(dataset, values).gray(words), interpretation


def decoded_words(dataset: pydicom.Dataset, content: bytes, stored: int) -> tuple[np.ndarray, str]:
    """The pixel cells of the one frame: (height, width) or (height, width, 3), and what they are then.

    That is the photometric interpretation after decoding. Bits beyond the `stored` are as the file has
    them. Raises BadImageError that names the package when the decoder for it is not installed.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        names = [text.partition(" ")[0] for text in decoder.missing_dependencies]
        needed = [PACKAGES[name] for name in PACKAGES if name in names] or names
        raise BadImageError(f"needs {needed[0]}, not installed here: compressed as {syntax.name}")
    if decoder.is_encapsulated:
        check_compressed(dataset)
    if not is_decoded_apart(dataset):
        return words_of(dataset)
    if is_twelve_bit_jpeg(dataset, stored) and not has_gdcm():
        raise BadImageError("needs python-gdcm, not installed here: 12-bit JPEG")
    try:
        return decode_apart(content, stored)
    except EndedError as error:
        raise ValueError("the compressed pixels are damaged: they end the decoder") from error


def words_in_file(content: bytes, stored: int) -> tuple[np.ndarray, str]:
    """See `decoded_words`, of a file. Raises BadImageError, or ValueError with the reason."""
    try:
        dataset = read_dicom(content)
        if is_twelve_bit_jpeg(dataset, stored):
            return twelve_bit_jpeg(dataset, stored), str(dataset.PhotometricInterpretation)
        return words_of(dataset)
    except (BadImageError, ValueError):
        raise
    except Exception as error:  # another cannot always be sent from process to process
        raise ValueError(f"{type(error).__name__}: {error}") from error


decode_apart = Apart(words_in_file)


def words_of(dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """See `decoded_words`, by pydicom. Raises ValueError, and what pydicom raises."""
    dataset.SamplesPerPixel = integer(dataset, "SamplesPerPixel", 1)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    options = {} if decoder.is_encapsulated else {"allow_excess_frames": False}
    try:
        words, facts = decoder.as_array(
            dataset, index=0, correct_unused_bits=False, as_rgb=False, **options
        )
    except RuntimeError as error:  # a line for each decoder that was tried
        raise ValueError(" ".join(str(error).split())) from error
    return words, str(facts["photometric_interpretation"])


def is_twelve_bit_jpeg(dataset: pydicom.Dataset, stored: int) -> bool:
    """Whether it is what pydicom leaves out and GDCM decodes."""
    return dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and stored > 8


def has_gdcm() -> bool:
    """Whether python-gdcm is installed."""
    try:
        import gdcm  # noqa: F401
    except ImportError:
        return False
    return True


def twelve_bit_jpeg(dataset: pydicom.Dataset, stored: int) -> np.ndarray:
    """Gray of JPEG Extended with more than 8 bits, which pydicom leaves out: uint16 (height, width).

    Raises ValueError where python-gdcm cannot decode it.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(get_frame(dataset.PixelData, 0, number_of_frames=1))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    kind = gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))
    image.SetTransferSyntax(gdcm.TransferSyntax(kind))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, 0))
    buffer = image.GetBuffer()
    if not buffer:
        raise ValueError("12-bit JPEG that python-gdcm cannot decode")
    words = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), "<u2")
    return words.reshape(dataset.Rows, dataset.Columns)


def check_compressed(dataset: pydicom.Dataset) -> None:
    """Raise ValueError where the compressed pixels would take more memory than the data set says."""
    width, height = dicom_size(dataset)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        check_rle(frame, width * height * pixel_bytes(dataset))
        return
    samples = integer(dataset, "SamplesPerPixel", 1)
    check_stream(first_fragment(dataset), width, height, samples)


def first_fragment(dataset: pydicom.Dataset) -> bytes:
    """The first fragment of compressed pixels; of none, nothing."""
    fragments = generate_fragments(dataset.PixelData)
    next(fragments, b"")  # the offset table
    return next(fragments, b"")


def is_signed(dataset: pydicom.Dataset) -> bool:
    """Whether stored values may be negative: of JPEG 2000 the stream says it (PS3.5, 8.2.4), else the data set.

    Raises ValueError where neither does.
    """
    said = bool(integer(dataset, "PixelRepresentation"))
    if dataset.file_meta.TransferSyntaxUID not in JPEG2000TransferSyntaxes:
        return said
    stream = stream_facts(first_fragment(dataset))
    return said if stream is None or stream.signed is None else stream.signed
