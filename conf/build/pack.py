"""A Python environment that Spark's executors unpack: for hosts without Python and without chexspark.

Run by ``./build.sh pack`` with the Python of .venv and the tools of pack.lock::

    python conf/build/pack.py LOCK FOLDER [--gpu]

What goes in: the environment that is set up from conf/LOCK.lock (and conf/gpu.lock), this checkout.
What comes out: FOLDER/chexspark-env-LOCK.tar.gz, ``-gpu`` after LOCK, with ``bin/python``, ``bin/chexspark``
and ``chexspark-env.json`` at its root. It is tried in an empty folder before it gets its name.
"""

import argparse
import compileall
import json
import platform
import py_compile
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from base_python import NAME, copy_python, package_folder, write_command
from elf import elf_files, is_driver, least_glibc, links, patch
from isal import igzip_threaded
from packages import WANTED, closure, copy_package, locked_names

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "chexspark")

ENV_FILE = "chexspark-env.json"
LEVEL = 3  # of compression, the highest: zlib's 6 takes twice as long, for a twentieth of the size
WRITTEN = 315_532_800  # every file's time, 1980: the same contents make the same archive

IMPORTED = (
    "chexspark", "chexspark.commands", "tensorflow", "tensorboard.plugins.image", "tf_keras", "horovod.tensorflow", "pyspark", "py4j",
    "chexspark.ingestion.petastorm_metadata", "pyarrow.parquet", "fsspec", "numpy.testing", "pandas", "sklearn.metrics",
    "scipy.stats", "cv2", "PIL.Image", "h5py", "isal", "matplotlib.pyplot", "jinja2", "onnx",
    "onnxruntime", "tf2onnx", "pydicom", "gdcm", "mlflow", "optuna",
    "ssl", "sqlite3", "ctypes", "lzma", "bz2", "zlib", "readline", "curses", "uuid", "decimal",
    "crypt", "dbm", "multiprocessing.shared_memory", "xml.parsers.expat", "unittest.mock",
)  # fmt: skip

TRIAL = f"""\
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
assert pathlib.Path(sys.prefix) == root == pathlib.Path(sys.base_prefix), sys.prefix
for name in {IMPORTED!r}:
    place = getattr(importlib.import_module(name), "__file__", None)
    assert place is None or root in pathlib.Path(place).parents, place
"""


def say(text: str) -> None:
    """Tell a step, as build.sh does."""
    print(f"\033[1m{text}\033[0m", file=sys.stderr)


def build(env: Path, lock: str, gpu: bool) -> None:
    """Make the environment in a new folder. What it is stands in its ENV_FILE."""
    say(f"1/5 Python {platform.python_version()}")
    copy_python(env)
    packages = package_folder(env)
    names = closure([WANTED, *(locked_names(ROOT / "conf/gpu.lock") if gpu else ())])
    say(f"2/5 {len(names)} packages")
    for name in names:
        if name != "chexspark":
            copy_package(name, packages)
    add_chexspark(packages)
    write_command(env / "bin", "chexspark", "chexspark.__main__")
    say("3/5 shared libraries")
    add_libraries(env, packages)
    glibc, file = least_glibc(elf_files(env))
    facts = {
        "lock": lock,
        "gpu": gpu,
        "python": platform.python_version(),
        "glibc": ".".join(map(str, glibc)),
        "machine": platform.machine(),
        "chexspark": version("chexspark"),
    }
    (env / ENV_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    say(f"    glibc {facts['glibc']} is the oldest that it runs on ({file.relative_to(env)})")
    compile_all(env)


def add_chexspark(packages: Path) -> None:
    """Install the checkout as a wheel, built from a copy: a build leaves files in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            source.mkdir(exist_ok=True)
            copy(ROOT / name, source / name)
        subprocess.run(
            [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "wheel", "--no-deps",
             "--no-build-isolation", "--no-index", "--wheel-dir", folder, source],
            check=True,
        )  # fmt: skip
        (wheel,) = Path(folder).glob("chexspark-*.whl")
        zipfile.ZipFile(wheel).extractall(packages)


def add_libraries(env: Path, packages: Path) -> None:
    """Copy the system's libraries that files need into lib, and let all but wheels' look there.

    What wheels need of them the interpreter itself needs too, which loads it first: so wheels, and
    Horovod, which is compiled here, get it without being changed.
    """
    files = elf_files(env)
    here = {path.name for path in files}
    found, by_wheels = {}, set()
    for link in links(files):
        if link.path is None and link.name not in here and not is_driver(link.name):
            say(f"    {link.file.relative_to(env)} needs {link.name}, which is not on this machine")
        elif link.path and env not in link.path.parents:
            found[link.name] = link.path
            if packages in link.file.parents:
                by_wheels.add(link.name)
    library = env / "lib"
    library.mkdir(exist_ok=True)
    for name, path in sorted(found.items()):
        shutil.copy(path, library / name)
        patch(library / name, "")
    patch(env / "bin" / NAME, "../lib", sorted(by_wheels))
    for path in files:
        if path.parent.name == "lib-dynload":
            patch(path, "/".join([".."] * (len(path.parent.relative_to(env).parts)) + ["lib"]))
    say(f"    from this machine: {', '.join(sorted(found))}")


def compile_all(env: Path) -> None:
    """Compile every module, so that a container need not; without a look at the source's time."""
    compileall.compile_dir(
        env, quiet=2, workers=0, force=True, stripdir=str(env),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip


def write_archive(env: Path, path: Path) -> None:
    """Pack a folder's contents, in order and without times and owners, on all cores."""
    with (
        igzip_threaded.open(path, "wb", compresslevel=LEVEL, threads=-1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for member in sorted(env.rglob("*")):
            tar.add(member, str(member.relative_to(env)), recursive=False, filter=plain)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive that tells nothing of who packed it and when."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = WRITTEN
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def try_archive(path: Path) -> None:
    """Unpack an archive as Spark does and import all, with nothing of this machine's environment."""
    with tempfile.TemporaryDirectory(prefix=".trial.", dir=path.parent) as folder:
        root = Path(folder).resolve() / "env"
        root.mkdir()
        subprocess.run(["tar", "-xzf", path, "-C", root], check=True)
        for command in (
            [root / "bin/python", "-c", TRIAL, root],
            [root / "bin/chexspark", "--version"],
        ):
            done = subprocess.run(
                command,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{done.stderr}\nThe environment does not work, and is not kept.")


@contextmanager
def aside(path: Path):
    """A path beside another that takes its name at the end, and is removed if that is not reached."""
    other = path.with_name(f".{path.name}")
    try:
        yield other
        other.replace(path)
    finally:
        other.unlink(missing_ok=True)


def make_archive(archive: Path, lock: str, gpu: bool) -> None:
    """Make the environment, pack and try it, beside the archive: the temporary folder may be small."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        aside(archive) as packed,
        tempfile.TemporaryDirectory(prefix=".env.", dir=archive.parent) as folder,
    ):
        env = Path(folder).resolve() / "env"
        env.mkdir()
        build(env, lock, gpu)
        size = sum(path.lstat().st_size for path in env.rglob("*"))
        say(f"4/5 packing {size / 1e9:.1f} GB")
        write_archive(env, packed)
        shutil.rmtree(env)
        say("5/5 trying it in another folder")
        try_archive(packed)


def main() -> None:
    """Make, pack and try the environment; say how Spark gets it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lock")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", action="store_true")
    words = parser.parse_args()
    archive = words.folder / f"chexspark-env-{words.lock}{'-gpu' if words.gpu else ''}.tar.gz"
    try:
        make_archive(archive, words.lock, words.gpu)
    except OSError as error:
        print(f"build.sh: {error}", file=sys.stderr)
        sys.exit(2)
    say(f"{archive} is there, {archive.stat().st_size / 1e6:,.0f} MB. On a cluster:")
    print(
        f"spark-submit --master URL --archives {archive}#env \\\n"
        "  --conf spark.pyspark.python=./env/bin/python \\\n"
        f"  --conf spark.pyspark.driver.python={sys.prefix}/bin/python \\\n"
        "  $(chexspark script) train --data STORE --run RUN …"
    )
    say("Settings, and a page per cluster manager, are in conf/clusters")
    say(
        "With --deploy-mode cluster the driver runs in it too: leave spark.pyspark.driver.python out"
    )


if __name__ == "__main__":
    main()
