"""Archives of every kind, sound, damaged and hostile; made here by the standard library and by hand."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import chexspark.ingestion.archives
from chexspark.ingestion.archives import LARGEST_MEMBER, archive_members, is_archive_name
from chexspark.ingestion.image_errors import BadImageError, NoImageError
from chexspark.ingestion.sources import find_sources, read_source_images
from chexspark.ingestion.tar_files import tar_members
from chexspark.storage import locate

PACKED_BY = {".tar": None, ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2",
             ".tar.xz": "xz", ".txz": "xz"}  # fmt: skip
KINDS = [*PACKED_BY, ".tar.zst", ".zip"]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PICTURES = {f"images/röntgen {i}.png": picture(i) for i in range(8)}
OTHERS = {"__MACOSX/images/._a.png": b"\0\5\x16\7", "images/._b.png": b"\0\5\x16\7",
          "images/.DS_Store": b"Bud1", "Thumbs.db": b"\xd0\xcf", "README": b"text"}  # fmt: skip


def tar_of(members, mode="w", **more):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **more) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zip_of(members, **more):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **more) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def archive_of(members, kind):
    if kind == ".zip":
        return zip_of(members)
    if kind != ".tar.zst":
        return tar_of(members, f"w:{PACKED_BY[kind] or ''}")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(tar_of(members))
    return sink.getvalue().to_pybytes()


def read(folder, content, name="a.tar"):
    """Path → content, or the reason, of an archive of these bytes."""
    (folder / name).write_bytes(content)
    found = list(archive_members(str(folder / name)))
    assert len({m.path for m in found}) == len(found)
    return {m.path: str(m.content) if isinstance(m.content, BadImageError) else m.content for m in found}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_archives_of_every_kind_are_read_in_place(tmp_path, kind):
    (tmp_path / f"A{kind.upper()}").write_bytes(archive_of(PICTURES | OTHERS, kind))
    files, archives, passed_over = find_sources((str(tmp_path),))
    assert [len(files), len(archives), len(passed_over)] == [0, 1, 0]
    found = {image.path.partition("!")[2]: image.content for image in read_source_images(archives)}
    assert found.keys() == PICTURES.keys() | OTHERS.keys()
    assert {name: found[name] for name in PICTURES} == PICTURES
    assert all(isinstance(found[name], NoImageError) for name in OTHERS)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != ".zip"])
def test_of_an_archive_that_breaks_off_what_is_sound_is_read(tmp_path, kind):
    big = {f"{i}.png": picture(i) * 100 for i in range(8)}  # several blocks of any packer
    whole = archive_of(big, kind)
    found = read(tmp_path, whole[: len(whole) * 3 // 4])
    reason = found.pop("")
    assert reason.startswith("damaged archive: ")
    assert 1 <= len(found) < 8 and found == {name: big[name] for name in found}


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"no archive" * 100, b"\x1f\x8b" + b"x" * 600, b"\xfd7zXZ\0" + b"x" * 600,
                b"\x28\xb5\x2f\xfd" + b"x" * 600]
)  # fmt: skip
def test_what_is_no_archive_is_said_to_be_damaged(tmp_path, content):
    found = read(tmp_path, content)
    assert list(found) == [""] and found[""].startswith("damaged archive: ")


def test_a_damaged_header_in_the_middle_does_not_end_the_archive_without_a_word(tmp_path):
    content = bytearray(tar_of({"a.png": picture(1), "b.png": picture(2)}))
    content[content.index(b"b.png")] = ord("c")
    found = read(tmp_path, bytes(content))
    assert found == {"a.png": picture(1), "": "damaged archive: a header is damaged"}


def test_several_streams_one_after_the_other_are_one(tmp_path):
    whole = tar_of(PICTURES)
    for name, pack in (("a.txz", lzma.compress), ("a.tgz", gzip.compress)):
        halves = pack(whole[:7000]) + pack(whole[7000:])
        assert read(tmp_path, halves + b"\0" * 8 * (name == "a.txz"), name) == PICTURES


def header(name, kind, size=0, **fields):
    """A header by hand, for what tarfile does not write."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_headers_take_no_memory_and_what_is_after_them_is_read(tmp_path):
    image, long = picture(1), b"x" * (2 << 20)
    tail = {"sound.png": image}
    good = header("a.png", b"0", len(image)) + image + b"\0" * (-len(image) % 512)
    for kind in (b"L", b"x"):
        found = read(tmp_path, header("././@", kind, len(long)) + long + good + tar_of(tail))
        assert found == {
            "a.png": "unsafe archive member: a header of 2,097,152 bytes before it", "sound.png": image
        }  # fmt: skip

    class Endless:
        """Headers that promise much, and zeros after."""

        most, content = 0, io.BytesIO(header("././@", b"x", 600 << 20))

        def read(self, size):
            self.most = max(self.most, size)
            return self.content.read(size) or b"\0" * size

    stream = Endless()
    assert list(tar_members(stream)) == [] and stream.most <= 1 << 20


def test_members_that_may_not_be_read_come_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(chexspark.ingestion.archives, "LARGEST_MEMBER", 1 << 20)
    image = picture(1)
    padded = image + b"\0" * (-len(image) % 512)
    sparse = header("sparse.png", b"S", len(image)) + padded
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, keys in (("pax.png", {"GNU.sparse.major": "1"}), ("size.png", {"size": "many"})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(image), keys
            tar.addfile(info, io.BytesIO(image))
        folder = tarfile.TarInfo("dir/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    latin = header("latin.png", b"0", len(image)).replace(b"latin", b"l\xe4tin")
    total = sum(latin[:148]) + 8 * 32 + sum(latin[156:])
    latin = latin[:148] + b"%06o\0 " % total + latin[156:] + padded
    large = header("large.png", b"0", (1 << 20) + 1) + b"\0" * ((1 << 20) + 512)
    found = read(tmp_path, sparse + latin + large + stream.getvalue())
    assert found == {
        "sparse.png": "unsafe archive member: a sparse file",
        "l\\xe4tin.png": "unsafe archive member: a name that is not UTF-8",
        "large.png": "unsafe archive member: larger than 1 MiB",
        "pax.png": "unsafe archive member: a sparse file",
        "size.png": "unsafe archive member: a damaged header before it",
    }


def with_flag(content, name, bit):
    """A zip whose directory and member have a flag that zipfile does not set."""
    content = bytearray(content)
    for mark, flags, length, start in ((b"PK\1\2", 8, 28, 46), (b"PK\3\4", 6, 26, 30)):
        place = content.find(mark)
        while place >= 0:
            (size,) = struct.unpack_from("<H", content, place + length)
            if content[place + start : place + start + size] == name:
                content[place + flags] |= bit
            place = content.find(mark, place + 1)
    return bytes(content)


def test_members_of_a_zip_that_may_not_be_read_do_not_keep_others(tmp_path):
    image = picture(1)
    names = ("/etc/absolute.png", "../climbs.png", "locked.png", "link.png", "slow.png", "bad.png", "a.png")  # fmt: skip
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "link.png" else 0o100644) << 16
            way = zipfile.ZIP_LZMA if name == "slow.png" else zipfile.ZIP_STORED
            content = picture(2) if name == "bad.png" else image
            archive.writestr(info, content, way)
    whole = with_flag(stream.getvalue(), b"locked.png", 1)
    whole = whole.replace(picture(2)[:-9], picture(2)[:-10] + b"!")
    assert read(tmp_path, whole, "a.zip") == {
        "/etc/absolute.png": "unsafe archive member: an absolute name",
        "../climbs.png": "unsafe archive member: a name that climbs out",
        "locked.png": "unsafe archive member: encrypted",
        "link.png": "unsafe archive member: a link",
        "slow.png": "unsafe archive member: packed by method 14, and only 0 (stored) and 8 (deflate) are read",
        "bad.png": "damaged archive member: Bad CRC-32 for file 'bad.png'",
        "a.png": image,
    }


def test_a_zip_is_bounded_by_what_is_unpacked_not_by_what_it_says(tmp_path):
    bomb = picture(1) + b"\0" * (8 << 20)
    content = bytearray(zip_of({"bomb.png": bomb, "a.png": picture(2)}))
    place = content.index(b"PK\1\2")
    assert struct.unpack_from("<L", content, place + 24)[0] == len(bomb)
    struct.pack_into("<L", content, place + 24, 5000)  # a lie: it unpacks to 8 MiB
    found = read(tmp_path, bytes(content), "a.zip")
    assert found["a.png"] == picture(2)
    assert found["bomb.png"].startswith("damaged archive member: ")
    struct.pack_into("<L", content, place + 24, LARGEST_MEMBER + 1)
    found = read(tmp_path, bytes(content), "a.zip")
    assert found["bomb.png"] == "unsafe archive member: larger than 256 MiB"


def test_members_of_a_zip_that_share_their_bytes_are_refused(tmp_path):
    """As in a zip bomb of 46 MB that unpacks to 4.5 PB."""
    content = bytearray(zip_of({"a.png": picture(1), "b.png": picture(2)}))
    first = content.index(b"PK\1\2")
    struct.pack_into("<L", content, content.index(b"PK\1\2", first + 1) + 42, 0)
    found = read(tmp_path, bytes(content), "a.zip")
    assert set(found.values()) == {"unsafe archive member: its bytes are another's too"}


def test_names_of_zips_made_by_windows_and_macos(tmp_path):
    """Backslashes, and UTF-8 without the flag that says so."""
    content = zip_of({"images/a.png": picture(1), "r..ntgen.png": picture(2)})
    content = content.replace(b"images/a", b"images\\a").replace(b"r..ntgen", "röntgen".encode())
    # zipfile writes create_system 3, Unix; 0 is DOS
    content = bytearray(content)
    content[content.index(b"PK\1\2") + 5] = 0
    assert read(tmp_path, bytes(content), "a.zip").keys() == {"images/a.png", "röntgen.png"}


def test_which_names_are_archives():
    assert all(
        is_archive_name(f"X{kind}") and is_archive_name(f"x{kind.upper()}") for kind in KINDS
    )
    assert not any(map(is_archive_name, ("._a.zip", "a.png", "zip", "a.gz", "a.zip.png")))


def test_an_archive_within_a_name_with_an_exclamation_mark(tmp_path):
    (tmp_path / "wow!").mkdir()
    (tmp_path / "wow!" / "a!b.zip").write_bytes(zip_of({"c!d.png": picture(1)}))
    (archive,) = find_sources((str(tmp_path),)).archives
    (image,) = read_source_images([archive])
    assert image.path == f"{locate(str(tmp_path)).uri}/wow!/a!b.zip!c!d.png"
    assert image.name == "c!d.png" and image.content == picture(1)
