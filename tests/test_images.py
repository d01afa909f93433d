import io
import struct
import zlib
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from chexspark.ingestion.duplicates import NEAR_BITS
from chexspark.ingestion.images import (
    BadImageError,
    decode,
    looks_inverted,
    perceptual_hash,
    prepare,
)
from chexspark.phantom import draw_phantom, write_release
from chexspark.preparation import Preparation

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


def nearest(values, bits):
    """The nearest of 8 bits, by fractions."""
    most = 2**bits - 1
    flat = [round(Fraction(int(v) * 255, most)) for v in values.ravel()]
    return np.array(flat).reshape(values.shape)


@pytest.mark.parametrize(
    "values",
    [SIXTEEN, np.dstack([SIXTEEN] * 3), np.dstack([*[SIXTEEN] * 3, SIXTEEN[::-1]])],
    ids=["gray", "RGB", "RGBA"],
)
def test_sixteen_bits_become_the_nearest_of_eight(values):
    pixels, mode = decode(cv2.imencode(".png", values)[1].tobytes())
    np.testing.assert_array_equal(pixels, nearest(SIXTEEN, 16))
    assert "bits" not in mode
    assert abs((pixels - SIXTEEN / 257).mean()) < 1e-12 and (pixels[0, 0], pixels[-1, -1]) == (
        0,
        255,
    )


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("planes", [1, 3, 4])
def test_sixteen_bits_of_which_fewer_are_in_use(bits, planes):
    values = SIXTEEN >> (16 - bits)
    painted = np.dstack([values] * planes)
    if planes == 4:
        painted[..., 3] = 65535  # alpha is always whole
    pixels, mode = decode(cv2.imencode(".png", painted)[1].tobytes())
    np.testing.assert_array_equal(pixels, nearest(values, bits))
    assert mode.endswith(f" of {bits} bits")
    brighter = painted.copy()
    brighter[0, 0] = 2**bits  # a value more than they hold
    assert f" of {bits} bits" not in decode(cv2.imencode(".png", brighter)[1].tobytes())[1]


@pytest.mark.parametrize("planes", [1, 3, 4])
def test_sixteen_bits_of_a_depth_that_is_declared(planes):
    values = SIXTEEN >> 7  # 0 to 511, 9 bits
    painted = np.dstack([values] * planes)
    if planes == 4:
        painted[..., 3] = 65535
    content = cv2.imencode(".png", painted)[1].tobytes()
    for bits in (9, 11, 12, 16):
        pixels, mode = decode(content, bit_depth=bits)
        np.testing.assert_array_equal(pixels, nearest(values, bits))
        assert mode.endswith(f" of {bits} bits") == (bits < 16)
    with pytest.raises(
        BadImageError, match=r"^beyond the bit depth: .* up to 511, and 8 bits end at 255$"
    ):
        decode(content, bit_depth=8)


def test_what_has_eight_bits_knows_no_other_depth():
    for content in (encoded(Image.fromarray(RAMP)), encoded(Image.fromarray(RAMP).convert("RGB"))):
        np.testing.assert_array_equal(decode(content, bit_depth=12)[0], RAMP)


def scanlines(samples, depth):
    """Rows of samples (height, width, channels) of `depth` bits, each after a filter of none."""
    height, width, channels = samples.shape
    bits = np.unpackbits(
        samples.astype(">u2").view(np.uint8).reshape(height, width * channels, 2), axis=2
    )
    lines = np.packbits(bits[..., 16 - depth :].reshape(height, -1), axis=1)
    return b"".join(b"\0" + line.tobytes() for line in lines)


def png(
    samples, depth, colour, palette=b"", transparent=b"", interlaced=False, spoil=None, end=b""
):
    """A PNG by its specification: samples (height, width, channels) of `depth` bits, unfiltered.

    `spoil` changes the rows before they are packed; `end`: bytes after the packed ones.
    """
    height, width, _ = samples.shape
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]  # fmt: skip
    passes = [samples[y::down, x::across] for y, x, down, across in starts]
    rows = b"".join(scanlines(part, depth) for part in passes if part.size)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    packed = zlib.compress(spoil(rows) if spoil else rows) + end
    parts = [
        (b"IHDR", head),
        (b"PLTE", palette),
        (b"tRNS", transparent),
        (b"IDAT", packed),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
        if data or kind == b"IEND"
    )


FORMS = [(depth, colour) for colour, depths in
         ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
         for depth in depths]  # fmt: skip


@pytest.mark.parametrize("depth, colour", FORMS)
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_form_of_png(depth, colour, transparent, interlaced):
    most = 2**depth - 1
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    samples = np.random.default_rng(depth).integers(0, most + 1, (33, 27, channels))
    samples[0, 0] = most
    palette = np.random.default_rng(1).integers(0, 256, (2**depth if colour == 3 else 0, 3))
    clear = {0: b"\0\1", 2: b"\0\1" * 3, 3: b"\x80\0"}.get(colour, b"") if transparent else b""
    painted = palette[samples[..., 0]] if colour == 3 else samples * 255 / most
    weights = (0.299, 0.587, 0.114)
    expected = painted[..., 0] if colour in (0, 4) else painted[..., :3] @ weights
    facts = (depth, colour, palette.astype(np.uint8).tobytes(), clear, interlaced)
    pixels, _ = decode(png(samples, *facts))
    np.testing.assert_allclose(pixels, expected, atol=1)
    for spoil, reason in SPOILS:
        with pytest.raises(BadImageError, match=reason):
            decode(png(samples, *facts, spoil))


SPOILS = [
    (lambda rows: rows[:-1], "corrupt: the PNG has fewer pixels than its header says"),
    (lambda rows: rows[: len(rows) // 2], "corrupt: the PNG has fewer pixels"),
    (lambda rows: rows + b"\0", "corrupt: the PNG has more pixels than its header says"),
    (lambda rows: rows * 2, "corrupt: the PNG has more pixels"),
    (lambda rows: b"\5" + rows[1:], "corrupt: a PNG row of filter 5"),
]


def with_chunks(content, change):
    """A PNG whose list of chunks, [kind, data], is changed, with fitting checksums."""
    chunks, place = [], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : end - 4]])
        place = end
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in change(chunks)
    )


def with_pixels(change):
    """A change of chunks: the packed pixels, which are one chunk, become several others."""

    def changed(chunks):
        at = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
        return [*chunks[:at], *change(chunks[at][1]), *chunks[at + 1 :]]

    return changed


DAMAGED = {
    "Adler-32": (lambda z: [[b"IDAT", z[:-1] + bytes([z[-1] ^ 1])]], "corrupt: the PNG's pixels cannot be inflated"),
    "no Adler-32": (lambda z: [[b"IDAT", z[:-4]]], "truncated: the PNG's pixels break off"),
    "half": (lambda z: [[b"IDAT", z[: len(z) // 2]]], "truncated: the PNG's pixels break off"),
    "tail": (lambda z: [[b"IDAT", z + b"x"]], "corrupt: the PNG has bytes after the end"),
    "tail in a chunk": (lambda z: [[b"IDAT", z], [b"IDAT", z]], "corrupt: the PNG has bytes after the end"),
    "no stream": (lambda z: [[b"IDAT", b"x" * 99]], "corrupt: the PNG's pixels cannot be inflated"),
    "none": (lambda z: [], "corrupt: the PNG's pixels are not in one place"),
    "two places": (lambda z: [[b"IDAT", z[:9]], [b"tEXt", b"a\0b"], [b"IDAT", z[9:]]],
                   "corrupt: the PNG's pixels are not in one place"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_a_png_whose_pixels_are_not_whole_is_refused(name, mode):
    image = Image.fromarray(RAMP)
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    clean = encoded(image)
    change, reason = DAMAGED[name]
    with pytest.raises(BadImageError, match=reason):
        decode(with_chunks(clean, with_pixels(change)))
    split = with_chunks(clean, with_pixels(lambda z: [[b"IDAT", z[:9]], [b"IDAT", z[9:]]]))
    for content in (clean, split):
        np.testing.assert_array_equal(decode(content)[0], RAMP)


@pytest.mark.parametrize("depth, colour", [(4, 2), (16, 3), (8, 5), (0, 0)])
def test_a_png_of_no_kind_that_there_is(depth, colour):
    def change(chunks):
        head = chunks[0][1]
        return [[b"IHDR", head[:8] + bytes([depth, colour]) + head[10:]], *chunks[1:]]

    with pytest.raises(BadImageError, match=r"corrupt: there is no PNG of|cannot be decoded"):
        decode(with_chunks(encoded(Image.fromarray(RAMP)), change))


MARKED = np.zeros((48, 64), np.uint8)
MARKED[:16, :16], MARKED[:16, 48:], MARKED[32:, :16] = 255, 160, 80  # three of the corners
AS_SHOWN = {  # EXIF 2.32, 4.6.4: where row 0 and column 0 of the file are on the screen
    1: MARKED, 2: np.fliplr(MARKED), 3: np.rot90(MARKED, 2), 4: np.flipud(MARKED), 5: MARKED.T,
    6: np.rot90(MARKED, -1), 7: np.rot90(MARKED.T, 2), 8: np.rot90(MARKED, 1), 0: MARKED, 9: MARKED,
}  # fmt: skip


@pytest.mark.parametrize("orientation", AS_SHOWN)
@pytest.mark.parametrize("form, mode", [("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"),
                                        ("JPEG", "L"), ("JPEG", "RGB")])  # fmt: skip
def test_the_orientation_is_applied_once(orientation, form, mode):
    image = Image.fromarray(MARKED)
    image = (
        Image.fromarray(MARKED.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    pixels, _ = decode(buffer.getvalue())
    expected = AS_SHOWN[orientation]
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels, expected.astype(int), atol=0 if form == "PNG" else 20)
    stored = prepare(buffer.getvalue(), Preparation(32))
    assert (stored.original_height, stored.original_width) == expected.shape


def test_an_orientation_that_a_png_has_after_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(MARKED).save(buffer, "PNG", exif=exif)
    chunks, place = [], 8
    whole = buffer.getvalue()
    while place < len(whole):
        end = place + 12 + int.from_bytes(whole[place : place + 4], "big")
        chunks.append(whole[place:end])
        place = end
    late = sorted(chunks, key=lambda chunk: [b"IHDR", b"IDAT", b"eXIf", b"IEND"].index(chunk[4:8]))
    assert late != chunks
    pixels, _ = decode(whole[:8] + b"".join(late))
    np.testing.assert_array_equal(pixels, AS_SHOWN[6])


def test_an_image_of_the_right_size_is_kept_as_it_is():
    stored = prepare(encoded(Image.fromarray(RAMP)), Preparation(64))
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
        (encoded(Image.new("L", (70_000, 16))), "absurd dimensions: 70000x16"),
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
        "long",
        "blank",
        "another format",
    ],
)
def test_a_bad_image_is_refused_with_its_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        prepare(content, Preparation(32))


def test_absurd_dimensions_are_refused_by_the_header_alone():
    header = bytearray(encoded(Image.fromarray(RAMP)))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(BadImageError, match=r"absurd dimensions|exceeds limit"):
        prepare(bytes(header), Preparation(32))


def test_a_name_that_disagrees_with_the_content():
    with pytest.raises(BadImageError, match="extension and content disagree: named PNG, is JPEG"):
        prepare(encoded(Image.fromarray(RAMP), "JPEG"), Preparation(32), "chest.png")


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
    assert (
        prepare(drawn, Preparation(32), "real.png").synthetic
        and not prepare(copied, Preparation(32)).synthetic
    )
    np.testing.assert_array_equal(
        prepare(drawn, Preparation(32)).pixels, prepare(copied, Preparation(32)).pixels
    )
    assert not prepare(encoded(Image.fromarray(RAMP), "JPEG"), Preparation(32)).synthetic


def test_a_negative_looks_inverted():
    chest = phantom(64, 0)
    assert not looks_inverted(chest) and looks_inverted(255 - chest)
    for row in (chest[:1], chest[:, :1], chest[:3]):  # what padding leaves of a strip
        looks_inverted(row)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("height", [192, 320])
def test_what_is_measured_is_that_of_the_picture_however_it_is_fitted(fit, height):
    def stored(pixels):
        return prepare(encoded(Image.fromarray(pixels)), Preparation(64, fit))

    one, other = (cv2.resize(phantom(256, seed), (256, height)) for seed in (0, 1))
    first, negative, second = stored(one), stored(255 - one), stored(other)
    assert negative.inverted and not first.inverted and not second.inverted
    assert (
        abs(first.pixel_mean - one.mean()) < 1 and abs(negative.pixel_mean - 255 + one.mean()) < 1
    )

    def differ(a, b):
        return (int(a, 16) ^ int(b, 16)).bit_count()

    assert differ(first.perceptual_hash, second.perceptual_hash) > NEAR_BITS
    assert differ(first.perceptual_hash, perceptual_hash(one)) <= NEAR_BITS
    with pytest.raises(BadImageError, match="blank"):
        stored(one * 0 + 200)


def test_an_animated_png_is_refused_by_name():
    frames = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match="several frames: an animated PNG"):
        decode(buffer.getvalue())
