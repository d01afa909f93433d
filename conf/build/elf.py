"""Shared libraries: which a folder of programs needs from the system, and how it gets its own.

glibc is the one library that an environment takes from its host, as the loader belongs to it; so the
host's must be as new as the newest symbol that any file here asks for. All others are copied into
``lib``, and files are told to look there first, by paths relative to themselves.

``ldd`` tells what is needed, pyelftools the versions of symbols, and patchelf writes the paths.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

GLIBC = {
    "libBrokenLocale.so.1", "libanl.so.1", "libc.so.6", "libdl.so.2", "libm.so.6", "libmvec.so.1",
    "libnsl.so.1", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libthread_db.so.1",
    "libutil.so.1",
}  # fmt: skip

# Symbols that are named after a feature of glibc instead of its version, and the version that has it.
FEATURES = {"GLIBC_ABI_DT_RELR": (2, 36)}

AT_ONCE = 100  # files that one call of ldd gets


class Linked(NamedTuple):
    """A library that a file asks for, and where it was found, if it was."""

    file: Path
    name: str
    path: Path | None


def is_glibc(name: str) -> bool:
    """Whether a library, by the name that programs ask for, belongs to glibc (or the kernel)."""
    return name in GLIBC or name.startswith(("ld-linux", "linux-vdso", "libnss_"))


def is_driver(name: str) -> bool:
    """Whether a library belongs to the driver of NVIDIA's GPUs, which only the host can have."""
    return name.startswith(("libcuda.so", "libnvidia-"))


def elf_files(folder: Path) -> list[Path]:
    """All programs and shared libraries in a folder, in order, without symbolic links."""
    return [path for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and is_elf(path)]  # fmt: skip


def is_elf(path: Path) -> bool:
    """Whether a file is a program or a shared library of Linux."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def links(files: Iterable[Path]) -> Iterator[Linked]:
    """The libraries that files need, and those that they need in turn, but for glibc's."""
    files = [str(file) for file in files]
    for start in range(0, len(files), AT_ONCE):
        # Two at the least, since ldd does not name the file where it gets one.
        part = [*files[start : start + AT_ONCE], "/dev/null"]
        # Not checked: it fails for what is linked statically.
        done = subprocess.run(["ldd", *part], capture_output=True, text=True)
        yield from read_ldd(done.stdout)


def read_ldd(text: str) -> Iterator[Linked]:
    """What ldd says of several files, but for glibc's libraries."""
    file = Path()
    for line in text.splitlines():
        if not line.startswith("\t"):
            file = Path(line.rstrip(":"))
        elif match := re.match(r"\t(\S+) => (/.*?|not found)(?: \(0x\w+\))?$", line):
            name, path = match.groups()
            if not is_glibc(name):
                yield Linked(file, name, None if path == "not found" else Path(path))


def glibc_version(symbols: str) -> tuple[int, ...] | None:
    """The glibc that a version of symbols (``GLIBC_2.28``) came with; None for another library's."""
    if match := re.fullmatch(r"GLIBC_(\d+(?:\.\d+)+)", symbols):
        return tuple(map(int, match[1].split(".")))
    return FEATURES.get(symbols)


def least_glibc(files: Iterable[Path]) -> tuple[tuple[int, ...], Path]:
    """The oldest glibc that all files run on, and a file that needs it."""
    needs = [
        (version, path)
        for path in files
        for version in map(glibc_version, asked_of(path))
        if version
    ]
    return max(needs)


def asked_of(path: Path) -> set[str]:
    """The versions of symbols that a file asks of the libraries it is linked with."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".gnu.version_r")
        if section is None:
            return set()
        return {one.name for _, versions in section.iter_versions() for one in versions}


def patch(path: Path, library_folder: str, needed: Iterable[str] = ()) -> None:
    """Let a file look for libraries in a folder, given from its own, and need further ones.

    The older DT_RPATH, not DT_RUNPATH: a host's LD_LIBRARY_PATH does not come before it, and the
    program's holds for all that the program loads.
    """
    path.chmod(0o755)
    words = [word for name in needed for word in ("--add-needed", name)]
    rpath = "/".join(filter(None, ("$ORIGIN", library_folder)))
    subprocess.run(
        ["patchelf", "--force-rpath", "--set-rpath", rpath, *words, str(path)], check=True
    )
