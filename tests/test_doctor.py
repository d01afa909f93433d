"""Examinations of a real session, with real faults; and the job."""

import dataclasses
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pyspark.cloudpickle
import pytest

from chexspark import doctor
from chexspark.cluster import diagnosis, place, probe, probe_job, slots
from chexspark.cluster.doctor import examine, settings_warnings
from chexspark.cluster.doors import Door
from chexspark.cluster.probe_job import sent_by_value, spark_failure
from chexspark.cluster.rendezvous import Rendezvous
from chexspark.errors import UserError
from chexspark.storage import locate

DOOR = Door("127.0.0.1", "127.0.0.1")
JOB = Path(__file__).parent.parent / "jobs" / "doctor.py"


@pytest.fixture
def look(spark, store, manifest):
    """Examine the session's two slots; settings may be changed."""

    def call(ranks=2, run=None, wait_seconds=60.0, **changes):
        given = {"store": store, "manifest": manifest} | changes
        return examine(spark, ranks, given["store"], run, given["manifest"], 16,
                       wait_seconds=wait_seconds)  # fmt: skip

    return call


def test_a_session_that_is_well(look, tmp_path):
    run = locate(str(tmp_path / "run"))
    found = look(run=run)
    assert found.faults == () and not run.exists()
    assert [r["rank"] for r in found.ranks] == [0, 1]
    assert all(r["reached"] == {1 - r["rank"]: []} for r in found.ranks)
    head, *lines = str(found).splitlines()
    assert head.split()[:4] == ["rank", "host", "executor", "device"] and len(lines) == 2
    assert lines[0].split()[1:4] == [socket.gethostname(), "driver", "CPU"]


def test_a_run_that_is_there_is_left_as_it_was(look, tmp_path):
    (tmp_path / "config.yaml").write_text("x")
    assert look(run=locate(str(tmp_path))).faults == ()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_store_that_is_not_there(look, tmp_path):
    (fault,) = look(store=locate(str(tmp_path / "store"))).faults
    assert "store cannot be read on" in fault and "FileNotFoundError" in fault


def test_another_store_of_the_same_name(look, manifest):
    other = dataclasses.replace(manifest, fingerprint="other")
    (fault,) = look(manifest=other).faults
    assert "another store is there than on the driver" in fault


@pytest.mark.parametrize("parent", ["/proc", __file__])
def test_a_run_that_cannot_be_written(look, parent):
    (fault,) = look(run=locate(f"{parent}/run")).faults
    assert fault.startswith(f"--run={parent}/run cannot be written by the driver")


def test_a_package_that_no_executor_has(look, monkeypatch):
    monkeypatch.setattr(place, "PACKAGES", (*place.PACKAGES, "no-such-package"))
    (fault,) = look().faults
    assert fault.startswith(f"no-such-package is missing on {socket.gethostname()}: give ")


def test_the_probe_runs_where_chexspark_is_missing(look):
    with sent_by_value(place):
        sent = pyspark.cloudpickle.dumps(place.look_around)
    look()
    assert pyspark.cloudpickle.list_registry_pickle_by_value() == set(), "it is undone"
    there = "import pickle, sys; sys.modules['chexspark'] = None; " \
            "print(pickle.loads(sys.stdin.buffer.read())(0, [])['versions'])"  # fmt: skip
    result = subprocess.run([sys.executable, "-c", there], input=sent, capture_output=True)
    assert b"'chexspark': None" in result.stdout, result.stderr


def test_an_executor_with_another_python(look, spark, monkeypatch):
    monkeypatch.setattr(spark.sparkContext, "pythonVer", "3.10")
    (fault,) = look().faults
    assert " is 3.11, the driver's is 3.10: set PYSPARK_PYTHON" in fault


def test_an_executor_without_python(look, spark, monkeypatch):
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "/no/python")
    (fault,) = look().faults
    assert fault.startswith("there is no /no/python on executor driver on ")


def test_an_environment_that_was_not_sent_along(look, spark, monkeypatch):
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "./env/bin/python")
    (fault,) = look().faults
    assert fault.startswith("there is no ./env/bin/python on executor driver on ")
    assert "--archives FILE#env" in fault


def test_an_environment_for_a_newer_linux(look, spark, monkeypatch, tmp_path):
    python, lacks = (
        tmp_path / "python",
        "libc.so.6: version `GLIBC_%s' not found (required by python)",
    )
    python.write_text(
        f'#!/bin/sh\necho "{lacks % 2.9}\n{lacks % 2.38}" >&2; exit 1\n'.replace("`", "\\`")
    )
    python.chmod(0o755)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(python))
    (fault,) = look().faults
    assert "needs glibc 2.38, which is not there: run ./build.sh pack on the oldest" in fault
    python.chmod(0o644)
    (fault,) = look().faults
    assert (
        f"{python} on executor driver on " in fault and "cannot be run (Permission denied)" in fault
    )


def test_what_a_newer_java_says_of_a_python_that_is_not_there():
    assert spark_failure(
        'java.io.IOException: Cannot run program "python3": Exec failed, error: 2'
    ).startswith(
        "python3 on the executors cannot be run: set spark.pyspark.python, or PYSPARK_PYTHON"
    )
    said = 'java.io.IOException: Cannot run program "./env/bin/python": Exec failed, error: %s \n\tat java'
    assert spark_failure(said % "2 (No such file or directory)").startswith(
        "there is no ./env/bin/"
    )
    assert "cannot be run (Permission denied)" in spark_failure(said % "13 (Permission denied)")


def test_a_driver_whose_clock_is_wrong(look, monkeypatch):
    late = vars(time) | {"time": lambda: time.time() + 3600}
    monkeypatch.setattr(probe_job, "time", types.SimpleNamespace(**late))
    (warning,) = [text for text in look().warnings if "clock" in text]
    assert re.match(r"the clock of \S+ is 3[56]\d\d s or more behind the driver's", warning)


def test_what_a_task_sees_of_its_host(look, monkeypatch, tmp_path):
    found = look()
    assert not [text for text in found.warnings if "clock" in text or "files" in text]
    assert all(r["driver_clock"][0] <= r["clock"] <= r["driver_clock"][1] for r in found.ranks)
    assert {r["glibc"] for r in found.ranks} == {platform.libc_ver()[1]}
    assert found.ranks[0]["glibc_needed"] is None and found.ranks[0]["open_files"] > 200
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / place.PACKED).write_text('{"glibc": "2.28"}')
    assert place.glibc_needed() == "2.28"
    (tmp_path / place.PACKED).write_text("[]")
    assert place.glibc_needed() is None


def test_settings_are_looked_at_on_a_cluster_alone(look, spark, monkeypatch):
    scala = spark.sparkContext._jsc.sc().conf()
    monkeypatch.setattr(spark.sparkContext, "_conf", spark.sparkContext.getConf())
    spark.sparkContext._conf.set("spark.speculation", "true")
    assert settings_warnings(spark) == []
    monkeypatch.setattr(spark.sparkContext, "master", "spark://a:7077")
    (warning,) = settings_warnings(spark)
    assert "--conf spark.speculation=false" in warning
    spark.sparkContext._conf.set("spark.speculation", "false")
    spark.sparkContext._conf.set("spark.dynamicAllocation.enabled", "true")
    assert settings_warnings(spark) == []
    scala.set("spark.dynamicAllocation.executorIdleTimeout", "500ms")
    try:
        (warning,) = settings_warnings(spark)
    finally:
        scala.remove("spark.dynamicAllocation.executorIdleTimeout")
    assert "given back after 0 s" in warning


def test_what_else_spark_says_becomes_one_line():
    assert spark_failure("Lost task 0.0 in stage 1.0 (TID 7) (10.0.0.2 executor 4): X\n  No module named 'pyspark'\n") == (
        f"pyspark is missing on executor 4 on 10.0.0.2: {diagnosis.SAME_ENVIRONMENT}"
    )  # fmt: skip
    line = spark_failure("An error occurred\njava.io.IOException: out of pipes\n\tat x.y\n")
    assert line.startswith("no rank can start on the executors (java.io.IOException: out of pipes)")


@pytest.mark.slow
def test_slots_that_other_work_holds(look, spark, wait_for):
    group = "other work"

    def hold():
        spark.sparkContext.setJobGroup(group, group, interruptOnCancel=True)
        try:
            spark.sparkContext.range(0, 1, numSlices=1).foreach(lambda _: time.sleep(600))
        except Exception as error:  # it is cancelled
            held.append(error)

    held, thread = [], threading.Thread(target=hold)
    thread.start()
    try:
        wait_for(lambda: spark.sparkContext.statusTracker().getJobIdsForGroup(group))
        found = look(wait_seconds=20.0)
    finally:
        spark.sparkContext.cancelJobGroup(group)
        thread.join()
    assert len(found.ranks) == 1 and held
    (fault,) = found.faults
    assert fault == (
        "--num-proc is 2, but only 1 of the ranks' tasks has started in 20 seconds: other work holds the "
        "slots of these executors; wait for it to end, lower --num-proc, or give a longer --wait-seconds"
    )


def test_dynamic_allocation_without_a_most_needs_a_number(spark, monkeypatch):
    monkeypatch.setattr(slots, "task_slots", lambda spark: slots.UNBOUNDED)
    assert slots.check_ranks(spark, 8) == 8
    with pytest.raises(UserError, match=r"--num-proc is missing, .*maxExecutors"):
        slots.check_ranks(spark, None)


def test_a_rendezvous_sends_away_who_comes_late_or_knows_no_token():
    with Rendezvous(DOOR, 2, 0.5, 5.0) as rendezvous:
        meeting = {
            "host": "127.0.0.1",
            "port": rendezvous.port,
            "token": rendezvous.token,
            "seconds": 1,
            "ports": [],
        }
        with pytest.raises(ConnectionError, match="hung up"):
            probe.gather(meeting | {"token": "guess"}, "start", 0, None)
        assert probe.gather(meeting, "start", 0, "here") == {0: "here"}
        assert probe.gather(meeting, "start", 1, "late") == {}
        assert probe.gather(meeting, "end", 0, "done") == {0: "done"}


def test_only_the_rank_itself_counts_as_reached():
    mine = {"host": "a", "address": "127.0.0.1"}
    with probe.listener("token", 1, "127.0.0.1", []) as port:
        theirs = mine | {"ports": [port]}
        assert probe.reach(mine, 1, theirs, port, "token")
        assert not probe.reach(mine, 2, theirs, port, "token"), "someone else answers there"
        assert not probe.reach(mine, 1, theirs, port, "other"), "someone else answers there"
        assert not probe.reach(mine | {"host": "b"}, 1, theirs, port, "token"), (
            "loopback leads home"
        )
        answers = {
            said_to(port, b"a question\n"),
            said_to(port, b"another\n"),
            said_to(port, b"\n"),
        }
        assert len(answers) == 3 and not any(b"token" in said for said in answers)
        with socket.create_connection(
            ("127.0.0.1", port)
        ):  # says nothing, and keeps nobody from asking
            assert probe.reach(mine, 1, theirs, port, "token")
    assert not probe.reach(mine, 1, theirs, port, "token"), "nobody listens any more"


def said_to(port, question):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(question)
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[" * 100_000, b"[]", b'{"round": "start", "rank": 2, "value": 1}',
        b'{"round": "start", "rank": -1, "value": 1}', b'{"round": "start", "rank": "0", "value": 1}',
        b'{"round": "start", "rank": true, "value": 1}', b'{"round": "other", "rank": 0, "value": 1}',
        b'{"round": ["start"], "rank": 0, "value": 1}',
    ],
)  # fmt: skip
def test_what_no_task_says_is_not_taken(line):
    with Rendezvous(DOOR, 2, 5.0, 5.0) as rendezvous:
        assert rendezvous.checked(line) is None
        assert said_to(rendezvous.port, rendezvous.token.encode() + b"\n" + line + b"\n") == b""
        assert rendezvous.checked(b'{"round": "start", "rank": 1, "value": 1}') == ("start", 1, 1)


def run_job(*flags):
    command = [sys.executable, str(JOB), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "{folder}"], "is not a chexspark store"),
        pytest.param(
            ["--data", "{store}", "--num-proc", "999"], "--num-proc is 999, but Spark has", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--data", "{store}", "--num-proc", "1", "--run", "/proc/run"], "--run /proc/run cannot be written",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_and_exit_code_2(store, tmp_path, flags, message):
    result = run_job(*[flag.format(store=store, folder=tmp_path) for flag in flags])
    assert result.returncode == 2, result.stderr
    # On a slow machine the progress line may have spoken before.
    *progress, line = result.stderr.strip().splitlines()
    assert line.startswith("chexspark: ") and message in line
    assert not [text for text in progress if "chexspark" in text or "Traceback" in text]


def test_the_job_says_how_many_can_start(store):
    result = run_job("--data", store, "--num-proc", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "1 rank can start"


@pytest.mark.slow
def test_the_notebook_s_function_gives_the_table(spark, store):
    table = doctor(spark, data=store.path, num_proc=2, model="densenet121", batch_size=2)
    assert table["rank"].tolist() == [0, 1] and table["device"].tolist() == ["CPU", "CPU"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ("--master spark://127.0.0.1:1 --conf spark.authenticate=true", "A secret key must be specified"),
        pytest.param("--master spark://127.0.0.1:1", "its master does not answer", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_spark_that_does_not_start_is_one_line(store, settings, message):
    command = [sys.executable, str(JOB), "--data", store.path, "--num-proc", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": f"{settings} pyspark-shell"},
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("chexspark: Spark does not start: ") and message in line
    assert "Traceback" not in result.stderr
