"""Networks trained from several forms of images in turn. Runs as a process of its own.

In: the folder that `chexspark.benchmark.reader_data` wrote, networks, and ways of `readers`. Out: a line per turn
on standard output: {"network", "pipeline", "round", "images", "seconds", "waited"}. A network has one compiled step,
which all ways feed; threads and device are those of a training of one rank on this machine.

    python -m chexspark.benchmark.pipeline_turns FOLDER BATCH ROUNDS STEPS SECONDS NETWORK,… WAY,…
"""

import contextlib
import sys

import pyarrow as pa

from chexspark.benchmark.fed_steps import again_and_again, compiled_steps, train_fed
from chexspark.benchmark.readers import Ways
from chexspark.benchmark.results import Results
from chexspark.training.devices import claim_device


def main(
    folder: str, batch: str, rounds: str, count: str, seconds: str, networks: str, pipelines: str
) -> None:
    """Take all turns, of at least `count` steps and so many seconds, and tell them."""
    results = Results()
    pa.set_memory_pool(pa.system_memory_pool())  # as on a rank
    claim_device(0, 1, None)
    ways = Ways(folder, int(batch))
    for network in networks.split(","):
        steps = compiled_steps(network, ways.size, ways.findings, ways.batch)
        for number in range(int(rounds)):
            for pipeline in pipelines.split(","):
                batches = again_and_again(getattr(ways, pipeline), ways.batch)
                with contextlib.closing(batches):
                    fed = train_fed(steps, batches, int(count), float(seconds))
                results.tell(network=network, pipeline=pipeline, round=number, **fed._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
