"""Which GPU a rank takes: the one that Spark assigned, and never one for two."""

import json
import subprocess
import sys

import pytest

from chexspark.errors import UserError

GPU_CLUSTER = """
import json, os, sys
from pyspark.sql import SparkSession
from chexspark.cluster.launch import run_ranks
from chexspark.cluster.slots import check_ranks

def claim(events):
    from chexspark.errors import UserError
    from chexspark.training.devices import assigned_gpus, claim_device
    gpus = assigned_gpus()
    try:
        device, _ = claim_device(int(os.environ["HOROVOD_LOCAL_RANK"]), 2, 1)
    except UserError as error:
        device = str(error)
    return gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), device

settings = {
    "worker.resource.gpu.amount": "2", "worker.resource.gpu.discoveryScript": sys.argv[1],
    "executor.resource.gpu.amount": "1", "task.resource.gpu.amount": "1",
    "executor.cores": "1", "executor.memory": "512m",
}
builder = SparkSession.builder.master("local-cluster[1,2,1024]")
for name, value in settings.items():
    builder = builder.config("spark." + name, value)
spark = builder.getOrCreate()
ranks = run_ranks(spark, claim, (), check_ranks(spark, 2), lambda event: None)
print(json.dumps(ranks))
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_each_rank_has_the_gpu_that_spark_assigned(tmp_path):
    script = tmp_path / "gpus.sh"
    announced = json.dumps({"name": "gpu", "addresses": ["103", "107"]})
    script.write_text(f"#!/bin/sh\necho '{announced}'\n")
    script.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", GPU_CLUSTER, str(script)], cwd=tmp_path,
                            capture_output=True, text=True, timeout=600)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = json.loads(result.stdout.strip().splitlines()[-1])
    assert sorted(gpus for gpus, *_ in ranks) == [["103"], ["107"]]
    for gpus, visible, device in ranks:
        # There is no such GPU here: TensorFlow looked for this one and no other.
        assert visible == gpus[0]
        assert device.startswith(
            f"Spark gave GPU {visible} to a rank, but TensorFlow finds no such"
        )


@pytest.mark.parametrize("visible", [1, 4])
def test_an_assigned_gpu_is_the_only_one_or_a_fault(visible):
    from chexspark.training.devices import choose_gpu

    assert choose_gpu(["5"], visible, local_rank=1, local_size=2) == 0
    with pytest.raises(UserError, match="Spark gave GPU 5 to a rank, but TensorFlow finds no"):
        choose_gpu(["5"], 0, local_rank=0, local_size=1)


def test_without_spark_s_scheduling_every_rank_of_a_host_takes_another():
    from chexspark.training.devices import choose_gpu

    assert [choose_gpu([], 3, rank, 3) for rank in range(3)] == [0, 1, 2]
    assert choose_gpu([], 0, 0, 8) is None
    with pytest.raises(UserError, match=r"3 ranks on a host with 2 GPUs, .*lower --num-proc"):
        choose_gpu([], 2, 0, 3)
