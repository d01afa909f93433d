"""What the commands and the scripts in jobs/ call. Runs on the driver.

In: a command's name and its flags. Out: an exit code: 0 done, 1 failed, 2 a mistake that the user
can mend, said in one line, 130 stopped.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from chexspark import errors
from chexspark.arguments import parse_command_line
from chexspark.commands import COMMANDS
from chexspark.errors import RunFailedError, StoppedError, UserError
from chexspark.output import show_output

# What a disk or its rights do to a job that writes: no fault of the code, whose trace would help nobody.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
LOST = (
    "??"  # what Java makes of a letter that its locale lacks, and of its two or more bytes in UTF-8
)


def run_command(name: str, arguments: list[str]) -> int:
    """Run one of `COMMANDS` with its flags; return the exit code."""
    command = COMMANDS[name]
    ways = [f"chexspark {name} {flags}" for flags in command.usage]
    submit = f"On a cluster: spark-submit $(chexspark script) {name} …"
    description = "\n".join([command.summary, "", *ways, "", submit])

    # Loaded after the flags are read, so that --help and a misspelled flag do not wait for Spark.
    def call(config: object) -> None:
        function: Any = command.load()
        function(None, config) if function.takes_spark else function(config)

    return main(call, command.config, description, arguments, f"chexspark {name}")


def main(
    function: Callable,
    config_class: type,
    description: str,
    arguments: list[str] | None = None,
    program: str | None = None,
) -> int:
    """Parse the flags, call the function with the config, return the exit code.

    `arguments`, `program`: by default the process's own. SIGTERM is taken as Ctrl-C is.
    """

    def call() -> None:
        given = sys.argv[1:] if arguments is None else arguments
        check_letters(given)
        function(parse_command_line(config_class, description, given, program))

    return exit_code_of(call)


def exit_code_of(call: Callable[[], None]) -> int:
    """Run what a command does, say what went wrong in one line, and return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    use_own_python()
    before, errors.at_command_line = errors.at_command_line, True
    was_there = session_is_there()
    try:
        show_output(always=True)
        call()
    except UserError as error:
        return print_mistake(error)
    except RunFailedError as error:
        print(f"chexspark: {error}", file=sys.stderr, flush=True)
        return 1
    except StoppedError as error:
        print(f"chexspark: {error}", file=sys.stderr, flush=True)
        return 130
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        print(f"chexspark: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("chexspark: stopped", file=sys.stderr, flush=True)
        return 130
    finally:
        errors.at_command_line = before
        if "chexspark.session" in sys.modules and not was_there:
            sys.modules["chexspark.session"].stop_session()
    return 0


def session_is_there() -> bool:
    """Whether this process has a Spark session; loads Spark only where it has been loaded."""
    loaded = sys.modules.get("chexspark.session")
    return loaded is not None and loaded.has_session()


def check_letters(given: list[str]) -> None:
    """Raise UserError where ``spark-submit`` has lost letters of an argument, which may be a name."""
    spoilt = [argument for argument in given if LOST in argument]
    if not spoilt or "PYSPARK_GATEWAY_PORT" not in os.environ:
        return
    from chexspark.session import java_has_all_letters, letters_of_java

    if not java_has_all_letters():
        raise UserError(
            f"{spoilt[0]}: spark-submit's Java runs in a locale of {letters_of_java()}, in which every other letter "
            "becomes ??: export LC_ALL=C.UTF-8"
        )


def print_mistake(error: object) -> int:
    """Say in one line what the user can mend; return the exit code."""
    print(f"chexspark: {error}", file=sys.stderr, flush=True)
    return 2


def use_own_python() -> None:
    """Without ``spark-submit``, tasks run in this Python: Spark would take PATH's ``python3``."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
