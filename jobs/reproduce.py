"""`chexspark reproduce`, as a file of a checkout: spark-submit jobs/reproduce.py …"""

import sys

from chexspark.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command("reproduce", sys.argv[1:]))
