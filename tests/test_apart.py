import os
import subprocess
import sys

import psutil
import pytest

from chexspark.ingestion.apart import Apart, EndedError


def divided(number: int, by: int) -> float:
    """A quotient; the process ends of a negative number."""
    if number < 0:
        os.abort()
    return number / by


@pytest.fixture
def apart():
    function = Apart(divided)
    yield function
    function.end()


def test_it_answers_raises_and_begins_anew(apart):
    assert apart(6, 3) == 2
    process = apart.process.pid
    with pytest.raises(ZeroDivisionError):
        apart(6, 0)
    assert apart(9, 3) == 3 and apart.process.pid == process != os.getpid()
    with pytest.raises(EndedError):
        apart(-1, 3)
    assert apart(8, 2) == 4 and apart.process.pid != process


def test_the_process_ends_with_its_caller(wait_for):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from chexspark.ingestion.apart import Apart\n"
        "from operator import add\n"
        "apart = Apart(add); assert apart(2, 3) == 5\n"
        "print(apart.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, os.getcwd()], capture_output=True, text=True)
    wait_for(lambda: not psutil.pid_exists(int(done.stdout)))


def test_a_script_without_a_guard_is_run_once(tmp_path):
    """As people write them: `multiprocessing` would run it again in the process."""
    script = tmp_path / "mine.py"
    script.write_text(
        "print('begun')\nfrom operator import add\nfrom chexspark.ingestion.apart import Apart\n"
        "print(Apart(add)(2, 3))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["begun", "5"], done.stderr
