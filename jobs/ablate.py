"""`chexspark ablate`, as a file of a checkout: spark-submit jobs/ablate.py …"""

import sys

from chexspark.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command("ablate", sys.argv[1:]))
