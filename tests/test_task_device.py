"""The device of a Spark task that runs a model."""

import subprocess
import sys

import pytest

from chexspark.errors import RunFailedError
from chexspark.evaluation.task_device import gpu_of_task
from chexspark.run.folder import RunFolder, model_and_digest


@pytest.mark.parametrize(
    "assigned, shown, visible, partition, number",
    [
        ([], [], 0, 3, None),  # no GPU
        ([], [], 2, 3, 1),  # GPUs that Spark does not deal out: in turn
        (["1"], [], 2, 0, 1),  # the assigned one, whatever the partition
        (["3"], ["2", "3"], 2, 0, 1),  # of those that the executor shows
        (["GPU-ab"], ["GPU-cd", "GPU-ab"], 2, 5, 1),  # by their serial numbers
        (["0", "1"], [], 2, 1, 0),  # the first of several
    ],
)
def test_which_gpu_is_a_task_s(assigned, shown, visible, partition, number):
    assert gpu_of_task(assigned, shown, visible, partition) == number


@pytest.mark.parametrize(
    "assigned, shown, visible",
    [(["0"], [], 0), (["2"], [], 2), (["0"], ["2", "3"], 2), (["3"], ["2", "3"], 1)],
)
def test_a_gpu_that_is_not_there_is_one_line(assigned, shown, visible):
    with pytest.raises(RunFailedError, match="to a task, but TensorFlow sees"):
        gpu_of_task(assigned, shown, visible, 0)


def test_models_lie_on_the_task_s_device(untrained_run):
    """With two CPUs in place of GPUs: weights and scores are where the task is to work."""
    place = untrained_run(0)
    code = f"""
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from chexspark.evaluation import inference
from chexspark.findings import FINDINGS
model = inference.Model(*{model_and_digest(RunFolder(place))!r}, FINDINGS, "vgg16", 32)
scorer = inference.Scorer((model,), FINDINGS, (), 4)
images = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
found = []
for device in ("CPU:0", "CPU:1"):
    inference.task_device = lambda: device
    found.append(inference.probabilities_of(images, scorer))
    kept = inference.load_keras(model, device)
    print({{w.device[-5:] for w in kept.weights}})
np.testing.assert_allclose(*found, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["{'CPU:0'}", "{'CPU:1'}"], done.stderr[-2000:]
