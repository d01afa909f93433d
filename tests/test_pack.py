"""The environment that executors unpack: what goes in, what it needs of a host, and a host without it.

The slow tests make the archive (minutes) and run it where no Python and none of its libraries are.
"""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import chexspark

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build():
    """The modules of conf/build, which are no package."""
    sys.path.insert(0, str(ROOT / "conf/build"))
    names = ("pack", "elf", "packages", "base_python")
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    sys.path.remove(str(ROOT / "conf/build"))


def test_the_closure_follows_extras_and_markers(build):
    asked = {
        "job": ["Net[fast]>=1; python_version >= '3'", "plot; extra == 'report'", "test; extra == 'test'"],
        "net": ["a_b", "old; python_version < '3'", "turbo; extra == 'fast'", "libclang"],
        "a-b": ["job"],  # in a circle
        "plot": [], "turbo": [],
    }  # fmt: skip
    found = build.packages.closure(
        ["job[report]"], find=lambda name: SimpleNamespace(requires=asked[name])
    )
    assert found == ["a-b", "job", "net", "plot", "turbo"]


def test_what_jobs_need_is_in_the_closure_and_what_developers_need_is_not(build):
    names = set(build.packages.closure([build.packages.WANTED]))
    assert {"chexspark", "horovod", "tensorflow", "pyspark", "onnxruntime", "python-gdcm"} <= names
    assert {"optuna", "mlflow-skinny", "matplotlib", "py4j", "petastorm"} <= names
    assert not names & {"pytest", "hypothesis", "ipykernel", "nbclient", "cmake", "pip", "libclang"}


def test_the_extras_that_are_packed_are_all_but_those_of_tests(build):
    (extras,) = [r.extras for r in map(build.packages.Requirement, [build.packages.WANTED])]
    provided = set(build.packages.distribution("chexspark").metadata.get_all("Provides-Extra"))
    assert extras == provided - {"test"}


@pytest.mark.parametrize(
    "file, packed",
    [("tensorflow/__init__.py", True), ("tensorflow/include/a.h", False), ("../../../bin/pip", False),
     ("numpy/testing/__init__.py", True), ("numpy/_core/tests/test_a.py", False),
     ("mlflow/tests/a.py", True), ("pandas/_testing/a.py", True), ("pyspark/sql/__init__.py", True),
     ("pyspark/jars/a.jar", False), ("pyspark/python_a.py", True),
     ("horovod-0.28.1.dist-info/direct_url.json", False), ("a/__pycache__/b.cpython-311.pyc", False)],
)  # fmt: skip
def test_files_that_serve_at_run_time(build, file, packed):
    assert build.packages.is_packed(file) == packed


def test_a_package_is_copied_with_a_record_of_what_is_there(build, tmp_path):
    build.packages.copy_package("py4j", tmp_path)
    assert (tmp_path / "py4j/java_gateway.py").stat().st_size > 1000
    (record,) = tmp_path.glob("py4j-*.dist-info/RECORD")
    files = [line.rsplit(",", 2)[0] for line in record.read_text().splitlines()]
    assert files and all((tmp_path / file).is_file() for file in files)


def test_the_names_of_a_lock(build):
    names = build.packages.locked_names(ROOT / "conf/gpu.lock")
    assert "nvidia-nccl-cu12" in names and len(names) == 12


def test_which_libraries_are_glibcs(build):
    glibc = ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libresolv.so.2", "libnsl.so.1"]
    others = ["libcrypt.so.1", "libnsl.so.2", "libstdc++.so.6", "libgcc_s.so.1", "libcap.so.2"]
    assert all(map(build.elf.is_glibc, glibc)) and not any(map(build.elf.is_glibc, others))
    assert build.elf.is_driver("libcuda.so.1") and not build.elf.is_driver("libcudart.so.12")


def test_versions_of_glibc_are_compared_as_numbers(build, monkeypatch):
    version = build.elf.glibc_version
    assert version("GLIBC_2.9") < version("GLIBC_2.17") < version("GLIBC_2.28")
    assert version("GLIBC_2.2.5") == (2, 2, 5) and version("GLIBC_ABI_DT_RELR") == (2, 36)
    assert version("GLIBC_PRIVATE") is version("GLIBCXX_3.4.30") is version("GCC_3.0") is None
    symbols = {"a": {"GLIBC_2.9", "GLIBCXX_3.4"}, "b": {"GLIBC_2.28"}, "c": set()}
    monkeypatch.setattr(build.elf, "asked_of", symbols.get)
    assert build.elf.least_glibc("abc") == ((2, 28), "b")


def test_what_ldd_says(build):
    text = (
        "/a/x.so:\n\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/libz.so.1 (0x00007f)\n"
        "\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
        "/a/b c/y.so:\n\tlibq.so => not found\n/a/z.so:\n\tstatically linked\n"
    )
    assert [*build.elf.read_ldd(text)] == [
        (Path("/a/x.so"), "libz.so.1", Path("/lib/libz.so.1")),
        (Path("/a/b c/y.so"), "libq.so", None),
    ]
    import _ssl

    found = {link.name: link.path for link in build.elf.links([Path(_ssl.__file__)])}
    assert any(name.startswith("libssl") and path.exists() for name, path in found.items())
    assert "libc.so.6" not in found


def test_python_keeps_to_itself_and_tells_no_folder_of_the_builder(build, tmp_path):
    import site

    copy = tmp_path / "site.py"
    copy.write_text(Path(site.__file__).read_text())
    build.base_python.keep_to_itself(copy)
    assert "\nENABLE_USER_SITE = False\n" in copy.read_text()
    with pytest.raises(ValueError, match="is there 0 times, not once"):
        build.base_python.keep_to_itself(copy)
    told = build.base_python.without_prefix("'/home/a/py/lib', '/home/a/python'", "/home/a/py")
    assert told == "'/usr/local/lib', '/home/a/python'"
    assert build.base_python.without_prefix("/usr/lib", "/usr") == "/usr/lib"


def test_a_command_runs_the_python_beside_it(build, tmp_path):
    folder = tmp_path / "a folder" / "bin"
    folder.mkdir(parents=True)
    # Not a link: a venv's Python finds its packages by where it stands.
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    build.base_python.write_command(folder, "chexspark", "chexspark.__main__")
    (tmp_path / "link").symlink_to(folder / "chexspark")
    for command in (folder / "chexspark", tmp_path / "link"):
        done = subprocess.run([command, "--version"], capture_output=True, text=True, cwd="/")
        assert done.stdout == f"chexspark {chexspark.__version__}\n", done.stderr


def test_the_archive_is_the_same_again_and_plain_gzip(build, tmp_path):
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "bin/python3.11").write_bytes(os.urandom(3_000_000))
    (env / "bin/python3.11").chmod(0o700)
    (env / "bin/python").symlink_to("python3.11")
    (env / "a.json").write_text("{}")
    build.pack.write_archive(env, tmp_path / "1.tar.gz")
    os.utime(env / "a.json", (1, 1))
    build.pack.write_archive(env, tmp_path / "2.tar.gz")
    packed = (tmp_path / "1.tar.gz").read_bytes()
    assert packed == (tmp_path / "2.tar.gz").read_bytes()
    # Some readers, Java's among them, are content with the first member of several.
    assert gzip.decompress(packed) and packed.count(b"\x1f\x8b\x08\0\0\0\0\0") == 1
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        facts = [(m.name, oct(m.mode), m.uid, m.uname, m.mtime) for m in tar if not m.issym()]
        assert tar.extractfile("bin/python3.11").read() == (env / "bin/python3.11").read_bytes()
        assert tar.getmember("bin/python").linkname == "python3.11"
    always = (0, "root", build.pack.WRITTEN)
    assert facts == [("a.json", "0o644", *always), ("bin", "0o755", *always),
                     ("bin/python3.11", "0o755", *always)]  # fmt: skip


def test_an_archive_that_fails_its_trial_is_not_kept(build, tmp_path):
    with pytest.raises(RuntimeError), build.pack.aside(tmp_path / "a.tar.gz") as path:
        path.write_text("half")
        raise RuntimeError
    assert not [*tmp_path.iterdir()]
    with build.pack.aside(tmp_path / "a.tar.gz") as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """What ``./build.sh pack`` packs, unpacked as Spark does."""
    folder = tmp_path_factory.mktemp("pack")
    done = subprocess.run([ROOT / "build.sh", "pack", folder], capture_output=True, text=True,
                          env=os.environ | {"CHEXSPARK_VENV": sys.prefix})  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = folder.iterdir()
    assert f"--archives {archive}#env" in done.stdout
    assert archive.stat().st_size < 1.2e9 or archive.name.endswith("-gpu.tar.gz")
    (folder / "env").mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", folder / "env"], check=True)
    archive.unlink()
    return folder / "env"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_environment_says_what_it_is(env):
    about = json.loads((env / "chexspark-env.json").read_text())
    assert about["lock"] in ("spark-4", "spark-3.5") and about["chexspark"] == chexspark.__version__
    assert about["python"] == "{}.{}.{}".format(*sys.version_info) and about["gpu"] in (False, True)
    here = tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")))
    assert (2, 17) <= tuple(map(int, about["glibc"].split("."))) <= here


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_text_tells_of_the_machine_that_packed_it(env):
    done = subprocess.run(
        ["grep", "-rIlF", "--exclude-dir=mlflow", "-e", str(ROOT), "-e", sys.prefix,
         *(() if sys.base_prefix == "/usr" else ("-e", sys.base_prefix)), env],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "" and not [*env.rglob("direct_url.json")]


HOST_WITHOUT_PYTHON = r"""
set -e
cd "$1"
for folder in bin sbin lib lib64; do
  if [ -L /$folder ]; then ln -s "$(readlink /$folder)" $folder; else mkdir $folder; mount --rbind /$folder $folder; fi
done
mkdir usr proc dev tmp env nothing
mount --rbind /usr usr
mount --rbind /proc proc
mount --rbind /dev dev
mount --bind "$2" env
mount -o remount,bind,ro env
: >empty
for path in usr/local usr/lib/python3*; do [ ! -d $path ] || mount --bind nothing $path; done
for path in usr/bin/python* usr/bin/pypy*; do [ ! -f $path ] || mount --bind empty $path; done
for library in "$2"/lib/*.so*; do
  for path in $(find usr/lib usr/lib64 -name "${library##*/}*" -type f 2>/dev/null); do mount --bind empty "$path"; done
done
exec env -i HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /bin/sh -c '
  if python3 -c "" 2>/dev/null; then echo "there is a Python"; exit 1; fi
  test ! -s "$(find /usr/lib/*/ /usr/lib64/ -name "libstdc++.so.6" 2>/dev/null | head -1)" || exit 1
  /env/bin/chexspark --version && exec /env/bin/python -c "$0" /env' "$3"
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_on_a_host_without_python_and_without_its_libraries(build, env, tmp_path):
    """A host of this one's glibc and shell: Python's folders and the libraries are hidden, env is read-only."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces cannot be made here: it is root who may")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", HOST_WITHOUT_PYTHON, "sh", tmp_path, env, build.pack.TRIAL],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"chexspark {chexspark.__version__}\n"
