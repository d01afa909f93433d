"""Archives of all kinds, sound, damaged and hostile; folders and names as file systems have them."""

import bz2
import gzip
import io
import lzma
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from chexspark.ingestion.archives import LARGEST_MEMBER, archive_members
from chexspark.ingestion.images import BadImageError, NoImageError
from chexspark.ingestion.listing import DANGLING, NOT_UTF8, files_below
from chexspark.ingestion.sources import find_sources, read_source_images
from chexspark.phantom import png
from chexspark.storage import locate

PICTURE = png(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))


def tar_bytes(members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


MEMBERS = {"./a.png": PICTURE, "archive/images_001/ä " + "long/" * 40 + "b.png": PICTURE,
           "archive/._a.png": b"\0\5\x16\7mac", "__MACOSX/._b.png": b"\0\5\x16\7", "notes.txt": b"x"}  # fmt: skip
PACKED = {
    "x.tar": lambda b: b, "x.tar.gz": gzip.compress, "x.tgz": gzip.compress,
    "x.tar.bz2": bz2.compress, "x.tar.xz": lzma.compress,
    "x.tar.zst": lambda b: pa.compress(b, "zstd", asbytes=True),
    "twice.tar.gz": lambda b: gzip.compress(b[:700]) + gzip.compress(b[700:]),
    "twice.tar.xz": lambda b: lzma.compress(b[:700]) + bytes(4) + lzma.compress(b[700:]),
    "named wrongly.tar.gz": bz2.compress,
}  # fmt: skip


def read(path):
    return list(archive_members(str(path)))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", PACKED)
def test_tar_however_it_is_packed(tmp_path, name, form):
    (tmp_path / name).write_bytes(PACKED[name](tar_bytes(MEMBERS, form)))
    found = read(tmp_path / name)
    good = {m.path: m.content for m in found if isinstance(m.content, bytes)}
    assert list(good) == ["a.png", list(MEMBERS)[1]] and set(good.values()) == {PICTURE}
    assert sum(isinstance(m.content, NoImageError) for m in found) == 3
    assert len(found) == len(MEMBERS)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("folder/", b"")
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    found = read(tmp_path / "x.zip")
    good = {m.path: m.content for m in found if isinstance(m.content, bytes)}
    assert list(good) == ["a.png", list(MEMBERS)[1]] and set(good.values()) == {PICTURE}
    assert sum(isinstance(m.content, NoImageError) for m in found) == 3


def test_what_a_zip_must_not_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        for name in (
            "/absolute.png",
            "../climbs.png",
            "c\\..\\..\\climbs.png",
            "damaged.png",
            "good.png",
        ):
            archive.writestr(name, PICTURE)
        archive.writestr("lzma.png", PICTURE, zipfile.ZIP_LZMA)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    place = content.index(b"damaged.png") + len(b"damaged.png") + 20
    content[place : place + 8] = bytes(8)
    (tmp_path / "x.zip").write_bytes(content)
    found = {m.path: m.content for m in read(tmp_path / "x.zip")}
    assert found.pop("good.png") == PICTURE
    reasons = {name: str(error) for name, error in found.items()}
    assert reasons["link.png"] == "unsafe archive member: a link"
    assert reasons["/absolute.png"] == "unsafe archive member: an absolute name"
    assert reasons["../climbs.png"] == "unsafe archive member: a name that climbs out"
    assert reasons["c\\..\\..\\climbs.png"] == "unsafe archive member: a name that climbs out"
    assert "packed by method 14" in reasons["lzma.png"]
    assert reasons["damaged.png"].startswith("damaged archive member: ")


def test_an_encrypted_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", PICTURE)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    (member,) = read(tmp_path / "x.zip")
    assert str(member.content) == "unsafe archive member: encrypted"


def test_of_a_damaged_tar_what_is_sound_is_read(tmp_path):
    whole = tar_bytes({"a.png": PICTURE, "b.png": PICTURE, "c.png": PICTURE}, tarfile.USTAR_FORMAT)
    second = whole.index(b"b.png")
    for name, content in (
        ("header.tar", whole[:second] + b"X" + whole[second + 1 :]),
        ("short.tar", whole[: second + 600]),
        ("short.tar.gz", gzip.compress(whole)[:-200]),
        ("no.tar", PICTURE * 3), ("empty.tar", b""), ("no.zip", b"PK\5\6" + bytes(3)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        *sound, last = read(tmp_path / name)
        assert last.path == "" and str(last.content).startswith("damaged archive: "), name
        expected = ["a.png"] if name in ("header.tar", "short.tar") else []
        assert [m.path for m in sound if m.content == PICTURE][: len(expected)] == expected


def test_names_of_members_that_cannot_be(tmp_path):
    name = b"\xf6.png"
    raw = bytearray(tar_bytes({"o.png": PICTURE}, tarfile.USTAR_FORMAT))
    raw[: len(name)] = name
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "x.tar").write_bytes(raw)
    (member,) = read(tmp_path / "x.tar")
    assert member.path == "\\xf6.png" and "not UTF-8" in str(member.content)


def sparse_tar():
    """A GNU sparse file of 8 GiB in 1.5 kB."""
    header = bytearray(512)
    header[:5] = b"s.png"
    header[100:108], header[124:136], header[156:157] = b"0000644\0", b"00000001000\0", b"S"
    header[257:265] = b"ustar  \0"
    header[386:398], header[398:410] = b"00000000000\0", b"00000001000\0"
    header[483:495] = b"100000000000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + PICTURE[:512].ljust(512, b"\0") + bytes(1024)


def pax_tar():
    """A pax header that says that it has 3 GiB, of zeros."""
    header = bytearray(tar_bytes({"a.png": b""}, tarfile.USTAR_FORMAT)[:512])
    header[124:136], header[156:157] = b"%011o\0" % (3 << 30), b"x"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


BOMBS = {
    "sparse.tar": sparse_tar,
    "pax.tar.gz": lambda: gzip.compress(pax_tar() + bytes(64 << 20)),
    "large.tar.xz": lambda: lzma.compress(tar_bytes({"a.png": PICTURE + bytes(LARGEST_MEMBER)}), preset=0),
    "dictionary.tar.xz": lambda: lzma.compress(
        b"", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_archive_takes_little_memory(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    code = (
        "import resource, sys; from chexspark.ingestion.archives import archive_members\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for m in archive_members(sys.argv[1]): print(type(m.content).__name__, m.content)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    *members, kilobytes = result.stdout.splitlines()
    assert members and all(line.startswith("BadImageError") for line in members)
    assert int(kilobytes) < 150_000
    assert resource.RLIMIT_AS  # the module is of systems that have it


def test_a_zip_that_lies_about_its_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", PICTURE + bytes(64 << 20))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = content.index(mark) + offset
        content[place : place + 4] = struct.pack("<L", len(PICTURE))
    (tmp_path / "x.zip").write_bytes(content)
    (member,) = read(tmp_path / "x.zip")
    assert isinstance(member.content, BadImageError) or len(member.content) <= len(PICTURE)


def test_links_are_followed_and_what_leads_nowhere_is_told(tmp_path):
    folder, other = tmp_path / "set", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "b.png").write_bytes(PICTURE)
    (folder / "a.png").write_bytes(PICTURE)
    (folder / "linked.png").symlink_to(folder / "a.png")
    (folder / "there").symlink_to(other)
    (folder / "round").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (other / "._b.png").write_bytes(b"\0\5\x16\7")
    with open(os.fsencode(folder) + b"/\xf6.png", "wb") as file:
        file.write(PICTURE)
    found = {f.path[len(str(folder)) + 1 :]: f.fault for f in files_below(locate(str(folder)))}
    assert found == {"a.png": "", "linked.png": "", "there/b.png": "", "there/._b.png": "",
                     "gone.png": DANGLING, "\\xf6.png": NOT_UTF8}  # fmt: skip
    sources = find_sources((str(folder),))
    assert [f.name for f in sources.passed_over] == ["._b.png"]
    contents = {image.name: image.content for image in read_source_images(sources.files)}
    assert str(contents["gone.png"]) == DANGLING and str(contents["\\xf6.png"]) == NOT_UTF8
    assert contents["b.png"] == PICTURE and len(contents) == 5


@pytest.mark.parametrize("name", ["a [final] #1 50% ä", "x*y?", "q:r", "{a,b}", "[ab]", "a\\b"])
def test_a_name_that_is_there_is_a_name(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "[1].png").write_bytes(PICTURE)
    (folder / "2.png").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    for given in (name, f"./{name}", str(folder)):
        assert [f.name for f in find_sources((given,)).files] == ["2.png", "[1].png"]
    assert [f.name for f in find_sources((f"{name}/[1].png",)).files] == ["[1].png"]
    assert [f.name for f in find_sources((f"{name}/*.png",)).files] == ["2.png", "[1].png"]
    assert [f.name for f in find_sources((f"{name}/[0-9].png",)).files] == ["2.png"]
