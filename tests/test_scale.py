"""How CPU time and memory grow with the number of ranks, on one machine; 16 ranks start."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from chexspark import ingest
from chexspark.phantom import write_release

ROOT = Path(__file__).parent.parent
RANKS = (1, 2, 4, 8, 16)
BATCH, STEPS = 4, 10
EACH = ("ranks", "driver", "java")


class Watcher:
    """CPU seconds and the most resident memory of a command's processes, by what they are."""

    def __init__(self, process):
        self.process, self.over = psutil.Process(process.pid), threading.Event()
        self.seconds, self.memory = {}, {}  # by kind and process
        self.thread = threading.Thread(target=self.watch)

    def kind(self, process):
        words = process.cmdline()
        if "horovod.spark.task.gloo_exec_fn" in words:
            return "ranks" if "python" in os.path.basename(words[0]) else None  # and not its shell
        if process.pid == self.process.pid:
            return "driver"
        return "java" if os.path.basename(words[0]) == "java" else None

    def watch(self):
        while not self.over.wait(0.2):
            with contextlib.suppress(psutil.Error):
                for process in [self.process, *self.process.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error, IndexError):
                        if kind := self.kind(process):
                            key, times = (kind, process.pid), process.cpu_times()
                            self.seconds[key] = times.user + times.system
                            self.memory[key] = max(
                                self.memory.get(key, 0), process.memory_info().rss
                            )

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()

    def of(self, kind, values):
        return [value for (found, _), value in values.items() if found == kind]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(2400)
def test_cost_by_the_number_of_ranks(spark, tmp_path, capfd):
    """Each rank has the same work, whatever their number: a step has more images where there are more ranks."""
    rows, drivers = [], []
    for ranks in RANKS:
        folder, count = tmp_path / str(ranks), ranks * BATCH * STEPS
        write_release(out=str(folder / "nih"), images=count + 20, size=32, seed=1)
        splits = ["patient,split"]
        names = sorted(path.name for path in (folder / "nih/images").iterdir())
        # A few patients to validate and to test on, whatever the number of the others.
        patients = sorted({int(name.split("_")[0]) for name in names})
        splits += [
            f"{p},{'val' if n < 4 else 'test' if n < 8 else 'train'}"
            for n, p in enumerate(patients)
        ]
        (folder / "split.csv").write_text("\n".join(splits) + "\n")
        ingest(
            spark, images=str(folder / "nih/images"), labels=str(folder / "nih/Data_Entry_2017.csv"),
            out=str(folder / "store"), size=32, split_file=str(folder / "split.csv"), rows_per_group=BATCH,
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, ROOT / "jobs/train.py", "--data", folder / "store", "--run", folder / "run",
             "--model", "vgg16", "--epochs", "2", "--batch-size", str(BATCH), "--threads", "1",
             "--num-proc", str(ranks)],
            env=os.environ | {"PYSPARK_SUBMIT_ARGS": f"--master local[{ranks}] pyspark-shell", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        with Watcher(process) as watcher:
            said = process.communicate()[0]
        assert process.returncode == 0, said
        seconds = {kind: watcher.of(kind, watcher.seconds) for kind in EACH}
        memory = {kind: max(watcher.of(kind, watcher.memory)) / 2**20 for kind in EACH}
        assert len(seconds["ranks"]) == ranks
        drivers.append(memory["driver"] + memory["java"])
        rows.append(
            f"{ranks:>5}{sum(seconds['ranks']) / ranks:>12.1f}{sum(seconds['driver']):>12.1f}"
            f"{sum(seconds['java']):>10.1f}" + "".join(f"{memory[kind]:>12.0f}" for kind in EACH)
        )
    # Events, results and addresses of sixteen ranks are small beside Python and Spark.
    assert max(drivers) < 1.5 * drivers[0], drivers
    with capfd.disabled():
        print("\nranks   CPU s/rank  CPU s driver  CPU s Java  MiB a rank  MiB driver  MiB Java")
        print("\n".join(rows))
