"""`chexspark search`, as a file of a checkout: spark-submit jobs/search.py …"""

import sys

from chexspark.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command("search", sys.argv[1:]))
