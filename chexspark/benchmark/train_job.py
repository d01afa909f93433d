"""``train`` as a job of the installed package. Runs on the driver.

python -m chexspark.benchmark.train_job --data STORE --run RUN
"""

import sys

from chexspark import command_line
from chexspark.cluster.job import train
from chexspark.config import TrainConfig

if __name__ == "__main__":
    sys.exit(command_line.main(train, TrainConfig, __doc__))
