"""From the bytes of an image file to stored pixels. Pure functions; runs in Spark tasks.

In: bytes of a PNG, JPEG or DICOM file and its name. Out: uint8 (size, size) with what was
measured, or BadImageError with the reason.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.ingestion.duplicates import HASH_SIDE
from chexspark.ingestion.fitting import fitted, picture_in
from chexspark.ingestion.image_errors import BadImageError
from chexspark.ingestion.kinds import DICOM, EXTENSIONS, JPEG, PNG, kind_of
from chexspark.ingestion.png_files import unpacked_png
from chexspark.phantom import SYNTHETIC
from chexspark.preparation import Preparation

MAX_PIXELS = 100_000_000  # a 10,000 × 10,000 image; the largest detectors make a fifth of it
MAX_BYTES = (
    200_000_000  # of decoded pixels, 2 of each: with all copies of them, a task stays below 1 GB
)
MIN_SIDE, MAX_SIDE = 10, 65_535  # DICOM has no room for more
BLANK_DEVIATION = 1.0  # of 255; noise alone is above it on every detector
JPEG_END, JPEG_TAIL = b"\xff\xd9", 64  # the mark of its end, after which some writers leave bytes
PNG_DEPTH = 24  # the byte that says how many bits a sample has
DEPTHS = (8, 10, 12, 14, 16)  # bits of a detector, whatever the file has room for
ORIENTATION = 0x0112  # EXIF's tag
EXIF_TEXTS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks


@dataclass(frozen=True)
class StoredImage:
    """Pixels as stored, with what was measured on the way."""

    pixels: np.ndarray  # uint8 (size, size)
    original_width: int
    original_height: int
    original_mode: str  # as `decode` tells it
    pixel_mean: float  # of `pixels` without padding, 0–255
    pixel_std: float
    inverted: bool  # it looks like a negative: a hint, nothing is changed
    perceptual_hash: str  # 256 bits in hex; near images differ in few
    synthetic: bool  # the file says so
    burned_in: bool  # the file says that annotations are drawn in its pixels


def check_dimensions(width: int, height: int, pixel_bytes: int) -> None:
    """Raise BadImageError for a size that no X-ray has. `pixel_bytes`: of each pixel when it is decoded."""
    sides = sorted((width, height))
    if width * height > MAX_PIXELS or sides[0] < MIN_SIDE or sides[1] > MAX_SIDE:
        raise BadImageError(f"absurd dimensions: {width}x{height}")
    if width * height * pixel_bytes > MAX_BYTES:
        raise BadImageError(
            f"absurd dimensions: {width}x{height} with {pixel_bytes} bytes a pixel, more than "
            f"{MAX_BYTES // 1_000_000} MB"
        )


def decode(content: bytes, name: str = "", bit_depth: int | None = None) -> tuple[np.ndarray, str]:
    """Decode to 8-bit grayscale, uint8 (height, width), upright, and tell the original mode.

    That is Pillow's name, L for 8-bit gray, or DICOM's photometric interpretation; where 16-bit samples
    have fewer bits in use, with those. RGB, RGBA and palettes become gray, 16 bits become 8.
    Dimensions are checked before any pixel is decoded. `name` is the file's, to compare with the
    content; `bit_depth` that of 16-bit PNGs, where it is known. Raises BadImageError, and nothing else,
    whatever a decoder raises.
    """
    if not content:
        raise BadImageError("empty file")
    kind = kind_of(content)
    expected = next((k for end, k in EXTENSIONS.items() if name.lower().endswith(end)), kind)
    if kind is None:
        raise BadImageError("not a PNG, JPEG or DICOM file")
    if kind != expected:
        raise BadImageError(f"extension and content disagree: named {expected}, is {kind}")
    try:
        if kind == DICOM:
            return decode_dicom(content)
        return decode_picture(content, kind, bit_depth)
    except BadImageError:
        raise
    except UserError as error:  # of a package that is not installed
        raise BadImageError(error.text) from error
    except UnidentifiedImageError as error:
        raise BadImageError("cannot be decoded: no valid header") from error
    except Image.DecompressionBombError as error:
        raise BadImageError("absurd dimensions") from error
    except Exception as error:  # whatever a decoder raises, it is about this file
        if kind == JPEG and JPEG_END not in content[-JPEG_TAIL:]:
            raise BadImageError("truncated: the image breaks off") from error
        raise BadImageError(f"cannot be decoded: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """The first line of what a decoder raises, with its type where that is not for people."""
    text = next(iter(str(error).splitlines()), "")
    plain = (ValueError, OSError, SyntaxError, NotImplementedError)
    return (
        text
        if text and isinstance(error, plain)
        else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def decode_dicom(content: bytes) -> tuple[np.ndarray, str]:
    """See `decode`, of a DICOM file: uint8 (height, width). Raises what a decoder raises."""
    check_extra("dicom", "a DICOM file")  # in an archive; the driver saw loose files
    from chexspark.ingestion.dicom import dicom_pixels, dicom_size, pixel_bytes, read_dicom

    dataset = read_dicom(content)
    check_dimensions(*dicom_size(dataset), pixel_bytes(dataset))
    return dicom_pixels(dataset, content)


def decode_picture(content: bytes, kind: str, bit_depth: int | None) -> tuple[np.ndarray, str]:
    """See `decode`, of a PNG or JPEG: uint8 (height, width). Raises BadImageError, or what Pillow raises."""
    image = Image.open(io.BytesIO(content), formats=(kind,))
    mode, (width, height) = image.mode, image.size
    # Of colours, Pillow would drop the lower 8 bits.
    deep = kind == PNG and content[PNG_DEPTH] == 16
    # Pillow has four bytes for a pixel of whatever is not gray, OpenCV eight.
    check_dimensions(width, height, 1 if mode == "L" else 2 if mode == "I;16" else 8 if deep else 4)
    chunks: set[bytes] = set()
    if kind == PNG:
        content, chunks = unpacked_png(content)
        image = Image.open(io.BytesIO(content), formats=(kind,))
    if deep or (kind == PNG and mode == "L"):  # nearly all of NIH's: faster than Pillow
        flag = cv2.IMREAD_UNCHANGED if deep else cv2.IMREAD_GRAYSCALE
        read = np.frombuffer(content, np.uint8)
        pixels = cv2.imdecode(read, flag | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise BadImageError("cannot be decoded: the PNG's pixels are damaged")
        if deep:
            bits = depth_of(pixels, bit_depth)
            pixels, mode = (
                eight_bits(pixels, bits),
                mode if bits == 16 else f"{mode} of {bits} bits",
            )
    elif mode == "L":
        pixels = np.asarray(image)
    else:
        pixels = np.asarray(image.convert("RGB").convert("L"))
    if kind == JPEG or b"eXIf" in chunks or image.info.keys() & EXIF_TEXTS:
        pixels = upright(pixels, image.getexif().get(ORIENTATION))
    return pixels, mode


def upright(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Turn or mirror uint8 (height, width) as EXIF's orientation says, 1 to 8; others say nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def depth_of(values: np.ndarray, declared: int | None) -> int:
    """The bits of uint16 (height, width) or (height, width, BGR or BGRA): as declared, else those in use.

    A detector of 12 bits fills a sixteenth of a 16-bit PNG. In use are the fewest of `DEPTHS` that hold
    all values. Raises BadImageError for values beyond what is declared.
    """
    most = int(values.max() if values.ndim == 2 else values[..., :3].max())
    if declared is None:
        return next(bits for bits in DEPTHS if most < 2**bits)
    if most >= 2**declared:
        raise BadImageError(
            f"beyond the bit depth: a 16-bit PNG with values up to {most}, and {declared} bits end at "
            f"{2**declared - 1}"
        )
    return declared


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Bring `bits` to the nearest of 8: uint16 (height, width), or (height, width, BGR or BGRA).

    0 stays 0, the largest value of so many bits becomes 255. Returns uint8 (height, width); alpha is
    left out.
    """
    gray = values if values.ndim == 2 else cv2.cvtColor(values[..., :3], cv2.COLOR_BGR2GRAY)
    most = 2**bits - 1
    table = (np.arange(most + 1, dtype=np.uint32) * 510 + most) // (2 * most)
    return through_table(gray, table.astype(np.uint8))


def through_table(words: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The uint8 entries of a table (n,) for words (height, width), unsigned and below n."""
    found = np.empty(words.shape, np.uint8)
    for row, out in zip(
        words, found, strict=True
    ):  # by rows: places in a table take eight bytes each
        out[:] = table[row]
    return found


def is_burned_in(content: bytes) -> bool:
    """Whether a DICOM file that can be read says that annotations are drawn in its pixels."""
    if kind_of(content) != DICOM:
        return False
    from chexspark.ingestion.dicom import says_burned_in

    return says_burned_in(content)


def is_synthetic(content: bytes) -> bool:
    """Whether an image file says of itself that it is a phantom, whatever it is called.

    Raises what Pillow raises for a damaged PNG.
    """
    if kind_of(content) != PNG:
        return False
    keyword, text = SYNTHETIC
    return Image.open(io.BytesIO(content), formats=(PNG,)).info.get(keyword) == text


def perceptual_hash(pixels: np.ndarray) -> str:
    """Signs of the 16 × 16 lowest frequencies against their median, 256 bits as 64 digits in hex.

    `pixels`: uint8 (height, width). The 8 × 8 of its source (pHash; Zauner 2010) do not tell chests
    apart.
    """
    side = 4 * HASH_SIDE
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:HASH_SIDE, :HASH_SIDE].ravel()
    return np.packbits(low > np.median(low[1:])).tobytes().hex()


def looks_inverted(pixels: np.ndarray) -> bool:
    """Whether the spine is darker than the lungs beside it, and the corners brighter than the middle.

    `pixels`: uint8 (height, width), without padding. A hint: of 950 NIH images at 64 pixels it names none,
    and of their negatives 96 in 100.
    """

    def between(side: int, first: float, last: float) -> slice:
        start = int(first * side)
        return slice(start, max(start + 1, int(last * side)))

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        rows, columns = (
            between(pixels.shape[0], top, bottom),
            between(pixels.shape[1], left, right),
        )
        return cv2.mean(pixels[rows, columns])[0]

    lungs = (mean(0.3, 0.7, 0.2, 0.35) + mean(0.3, 0.7, 0.65, 0.8)) / 2
    ends = ((0, 0.06), (0.94, 1))
    corners = np.mean([mean(*rows, *columns) for rows in ends for columns in ends])
    negative = mean(0.3, 0.7, 0.45, 0.55) < lungs - 10 and corners > mean(0.25, 0.75, 0.25, 0.75)
    return bool(negative)


def prepare(content: bytes, how: Preparation, name: str = "") -> StoredImage:
    """Decode, check and fit one image file. Raises BadImageError."""
    original, mode = decode(content, name, how.bit_depth)
    return prepared(original, mode, how, is_synthetic(content), is_burned_in(content))


def prepared(
    original: np.ndarray,
    mode: str,
    how: Preparation,
    synthetic: bool = False,
    burned_in: bool = False,
) -> StoredImage:
    """Check and fit decoded pixels, uint8 (height, width). Raises BadImageError.

    What is measured is measured without padding, which would make images alike and dark.
    """
    height, width = original.shape
    where = how.placing(width, height)
    pixels = fitted(original, where)
    picture = picture_in(pixels, where)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(picture))
    if deviation < BLANK_DEVIATION:
        raise BadImageError("blank: all pixels are nearly equal")
    return StoredImage(
        pixels,
        width,
        height,
        mode,
        mean,
        deviation,
        looks_inverted(picture),
        perceptual_hash(picture),
        synthetic,
        burned_in,
    )
