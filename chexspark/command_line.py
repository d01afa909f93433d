"""What the scripts in jobs/ call. Runs on the driver.

In: one of the functions, its config class, the script's docstring. Out: an exit code:
0 done, 1 failed, 2 a mistake that the user can mend, said in one line, 130 stopped.
"""

import signal
import sys

from chexspark.arguments import parse_command_line
from chexspark.errors import RunFailed, Stopped, UserError
from chexspark.session import stop_session


def main(function, config_class, description: str) -> int:
    """Parse the command line, call the function without a session, return the exit code.

    SIGTERM is taken as Ctrl-C is.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = parse_command_line(config_class, description, sys.argv[1:])
        function(None, config)
    except UserError as error:
        print(f"chexspark: {error}", file=sys.stderr, flush=True)
        return 2
    except RunFailed as error:
        print(f"chexspark: {error}", file=sys.stderr, flush=True)
        return 1
    except Stopped as error:
        print(f"chexspark: {error}", file=sys.stderr, flush=True)
        return 130
    except KeyboardInterrupt:
        print("chexspark: stopped", file=sys.stderr, flush=True)
        return 130
    finally:
        stop_session()
    return 0
