"""Archives that are made to take memory take little."""

import gzip
import io
import lzma
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from chexspark.ingestion.archives import LARGEST_MEMBER
from chexspark.phantom import png

PICTURE = png(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))


def tar_bytes(members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


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
