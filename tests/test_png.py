"""PNG files that are checked: all kinds come through with their pixels, and what decoders forgive does not."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from chexspark.ingestion import png
from chexspark.ingestion.images import decode, prepare
from chexspark.ingestion.kinds import PNG_MARK, BadImageError
from chexspark.ingestion.png import Header, checked_png, chunk
from chexspark.preparation import Preparation

KINDS = [(colour, depth) for colour, depths in
         ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
         for depth in depths]  # fmt: skip
SIZE = 27, 21  # width, height: no pass of Adam7 is like another


def made(colour=0, depth=8, interlaced=False, size=SIZE, rows=None, stream=None, split=1, more=b""):
    """A PNG of random rows and filters; or of other `rows`, or another zlib `stream`."""
    header = Header(*size, depth, colour, interlaced)
    ihdr = b"".join(n.to_bytes(4, "big") for n in size) + bytes([depth, colour, 0, 0, interlaced])
    if rows is None:
        rows = random_rows(header)
    stream = zlib.compress(rows) if stream is None else stream
    step = -(-len(stream) // split)
    parts = [chunk(b"IDAT", stream[i : i + step]) for i in range(0, len(stream), step)]
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 and depth == 8 else b""
    palette = chunk(b"PLTE", bytes(range(3 * 2**depth))) if colour == 3 and depth < 8 else palette
    return PNG_MARK + chunk(b"IHDR", ihdr) + palette + more + b"".join(parts) + chunk(b"IEND", b"")


def random_rows(header):
    random, rows = np.random.default_rng(1), b""
    for width, number in header.passes():
        block = random.integers(0, 256, (number, width), np.uint8)
        block[:, 0] = random.integers(0, 5, number)
        rows += block.tobytes()
    return rows


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("quick", [True, False], ids=["uncompressed", "as it was"])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour, depth", KINDS)
def test_every_kind_comes_through_with_its_pixels(monkeypatch, colour, depth, interlaced, quick):
    if not quick:
        monkeypatch.setattr(png, "QUICK_BYTES", 0)
    content = made(colour, depth, interlaced, split=3, more=chunk(b"tEXt", b"a\0b"))
    checked, names = checked_png(content, Header.of(content))
    assert names == {b"IHDR", b"tEXt", b"IDAT", b"IEND"} | ({b"PLTE"} if colour == 3 else set())
    assert (checked == content) != quick
    np.testing.assert_array_equal(pixels_of(checked), pixels_of(content))
    gray, _ = decode(content, bit_depth=16 if depth == 16 else None)
    assert gray.shape == SIZE[::-1]
    if (colour, depth) == (0, 8):
        np.testing.assert_array_equal(gray, pixels_of(content))


ROWS = random_rows(Header(*SIZE, 8, 0, False))
STREAM = zlib.compress(ROWS)
WRONG_FILTER = bytes([5]) + ROWS[1:]


@pytest.mark.parametrize(
    "content, reason",
    [
        (made(rows=ROWS[:-28]), "corrupt: the PNG has fewer pixels than its header says"),
        (made(rows=ROWS[:-1]), "corrupt: the PNG has fewer pixels than its header says"),
        (made(rows=b""), "corrupt: the PNG has fewer pixels than its header says"),
        (made(rows=ROWS + bytes(1)), "corrupt: the PNG has more pixels than its header says"),
        (made(rows=ROWS + bytes(10**7)), "corrupt: the PNG has more pixels than its header says"),
        (made(stream=STREAM[:-1] + bytes([STREAM[-1] ^ 1])), "corrupt: the PNG's pixels are damaged .*[Cc]hecksum"),
        (made(stream=STREAM[:-4]), "truncated: the PNG's pixels break off"),
        (made(stream=STREAM[:200]), "truncated: the PNG's pixels break off"),
        (made(stream=b"x" + STREAM), "corrupt: the PNG's pixels are damaged"),
        (made(rows=WRONG_FILTER), "corrupt: a row of the PNG has no known filter"),
        (made(interlaced=True, rows=ROWS), "corrupt: the PNG has (fewer|more) pixels"),
        (made().replace(chunk(b"IDAT", STREAM), b""), "corrupt: the PNG has no pixels, or in two places"),
        (made(split=2).replace(chunk(b"IEND", b""), chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")),
         "corrupt: the PNG has no pixels, or in two places"),
        (made()[:-12], "truncated: the PNG breaks off"),
        (made()[:-1], "truncated: the PNG breaks off"),
        (made()[:60] + b"\xff" + made()[61:], "corrupt: a PNG chunk does not fit its checksum"),
        (made()[:20], "corrupt: the PNG does not begin with its header"),
        (PNG_MARK + chunk(b"tEXt", b"a\0b") + made()[8:], "corrupt: the PNG does not begin with its header"),
        (PNG_MARK + chunk(b"IHDR", made()[16:24] + bytes([3, 0, 0, 0, 0])) + made()[33:], "header is of no known kind"),
        (PNG_MARK + chunk(b"IHDR", made()[16:24] + bytes([8, 5, 0, 0, 0])) + made()[33:], "header is of no known kind"),
    ],
)  # fmt: skip
def test_what_decoders_forgive_is_refused(content, reason):
    with pytest.raises(BadImageError, match=reason):
        prepare(content, Preparation(16), "a.png")


def test_what_comes_after_the_pixels_stream_is_no_damage():
    np.testing.assert_array_equal(decode(made(stream=STREAM + b"padding"))[0], pixels_of(made()))


def test_a_bomb_costs_no_more_than_its_header_says():
    """A gigabyte of zeros in a megabyte, in an image of 567 pixels."""
    bomb = made(stream=zlib.compress(bytes(1 << 28)))
    with pytest.raises(BadImageError, match="more pixels"):
        decode(bomb)


@pytest.mark.parametrize(
    "header, said",
    [
        ((10_000, 10_000, 16, 6), "10000x10000 of 8 bytes a pixel, more than 256 MiB"),
        ((10_000, 10_000, 8, 2), "10000x10000 of 3 bytes a pixel"),
        ((10_001, 10_000, 8, 0), "10001x10000$"),
    ],
)
def test_dimensions_are_bounded_by_what_decoding_takes(header, said):
    width, height, depth, colour = header
    content = made(colour, depth, size=(width, height), rows=b"")
    with pytest.raises(BadImageError, match=f"absurd dimensions: {said}"):
        decode(content)
