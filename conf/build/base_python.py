"""The Python that .venv was made with, copied so that it finds itself wherever it is unpacked.

An interpreter finds its standard library from its own place, in ``lib/python3.11`` (``lib64`` on some
systems) above its ``bin``. So the same folders are made, and the interpreter itself is asked where it
looks for packages: Debian's differs from python.org's.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Of the standard library: packages that others installed, tests, windows, building. A Debian's
# sitecustomize is a setting of that host; NIS is a service that Python itself gives up.
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "sitecustomize.py", "EXTERNALLY-MANAGED",
    "test", "tests", "_test*.so", "_ctypes_test*.so", "_xxtestfuzz*.so", "xxlimited*.so",
    "idlelib", "tkinter", "turtledemo", "turtle.py", "_tkinter*.so", "nis.*.so",
    "config-*", "ensurepip", "pydoc_data",
)  # fmt: skip

STARTS_PYTHON = """\
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
' '''
"""


def copy_python(to: Path) -> None:
    """Copy interpreter and standard library into a new folder, with its names in ``bin``."""
    base, stdlib = Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))
    copied = to / stdlib.relative_to(base)
    shutil.copytree(stdlib, copied, ignore=LEFT_OUT)
    keep_to_itself(copied / "site.py")
    for path in copied.glob("_sysconfigdata_*.py"):
        path.write_text(without_prefix(path.read_text(), str(base)))
    (to / "bin").mkdir()
    shutil.copy(base / "bin" / NAME, to / "bin" / NAME)
    for name in ("python", "python3"):
        (to / "bin" / name).symlink_to(NAME)


def keep_to_itself(site: Path) -> None:
    """Let Python pass over what a host's users have in ~/.local, as it does in a venv."""
    old, new = "\nENABLE_USER_SITE = None\n", "\nENABLE_USER_SITE = False\n"
    text = site.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{site}: {old.strip()!r} is there {text.count(old)} times, not once")
    site.write_text(text.replace(old, new))


def without_prefix(text: str, prefix: str) -> str:
    """How Python was built, with its usual prefix instead of a folder of the machine that built it."""
    return text if prefix == "/usr" else re.sub(rf"{re.escape(prefix)}\b", "/usr/local", text)


def package_folder(env: Path) -> Path:
    """Where the interpreter of an environment looks for packages first."""
    code = "import site; print(site.getsitepackages()[0])"
    return Path(ask(env / "bin/python", code).strip())


def ask(python: Path, code: str) -> str:
    """What an interpreter prints, with nothing of this machine's environment."""
    command = [str(python), "-c", code]
    return subprocess.run(command, env={}, check=True, capture_output=True, text=True).stdout


def write_command(bin_folder: Path, name: str, module: str) -> None:
    """Write a command that runs a module's ``main`` with the Python beside it."""
    command = bin_folder / name
    command.write_text(
        f"{STARTS_PYTHON}import sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
    )
    command.chmod(0o755)
