"""``chexspark COMMAND …``, ``python -m chexspark COMMAND …``. Runs on the driver.

``spark-submit`` takes Python only as a file that ends with .py, so it is given this one:
``spark-submit $(chexspark script) COMMAND …``.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))

HELP = """chexspark {version}: chest X-rays to an honestly evaluated CheXNet, on Spark

chexspark COMMAND …
spark-submit [its options] $(chexspark script) COMMAND …

{commands}
  script      print the path of the file that spark-submit takes

chexspark COMMAND --help lists a command's settings."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code, as `command_line.run_command` does."""
    from chexspark import __version__
    from chexspark.command_line import print_mistake, run_command
    from chexspark.commands import COMMANDS
    from chexspark.errors import closest

    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        lines = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
        print(HELP.format(version=__version__, commands="\n".join(lines)))
    elif name == "--version":
        print(f"chexspark {__version__}")
    elif name == "script":
        print(os.path.join(FOLDER, "__main__.py"))
    elif name in COMMANDS:
        return run_command(name, rest)
    else:
        valid = f"{closest(name, COMMANDS)} (commands: {', '.join(COMMANDS)})"
        return print_mistake(f"there is no command {name!r}{valid}")
    return 0


if __name__ == "__main__":
    if os.path.abspath(sys.path[0]) == FOLDER:
        del sys.path[0]  # run as a file: anybody's `import config` would find this package's
    sys.exit(main())
