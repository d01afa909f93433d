"""The settings for clusters are settings that Spark knows, agree with each other, and with the pages about them."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pyspark
import pytest
import yaml

from chexspark.commands import COMMANDS
from chexspark.settings import flag

ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "conf" / "clusters"
MANAGERS = ("standalone", "yarn", "kubernetes")
FILES = sorted(CLUSTERS.rglob("*.conf"))
NAMES = [str(path.relative_to(CLUSTERS)) for path in FILES]
GPUS = CLUSTERS / "gpus.sh"
# Spark puts these keys together from parts; the last one is ours.
FAMILIES = re.compile(
    r"spark\.(executor|task|worker)\.resource\.gpu\.(amount|discoveryScript|vendor)"
    r"|spark\.kubernetes\.(driver|executor)\.(label|annotation)\..+"
    r"|spark\.kubernetes\.authenticate\.driver\.serviceAccountName|spark\.chexspark\.ports"
)
CODE_OF_SPARK = r"spark-(core|common-utils|network-common|kubernetes|yarn|launcher)[-_].*\.jar"
# pip's Spark 3.5 is built without Volcano's part.
OPTIONAL = "spark.kubernetes.scheduler.volcano.podGroupTemplateFile"


def properties(path: Path) -> dict[str, str]:
    """As Java reads them; a comment at the end of a line would be part of the value."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    found = dict(pairs)
    assert len(found) == len(pairs), f"{path}: a setting stands there twice"
    return found


SETTINGS = {name: properties(path) for name, path in zip(NAMES, FILES, strict=True)}


@pytest.fixture(scope="module")
def known():
    """Every text of Spark's classes that looks like a setting: a key stands there as a constant."""
    found = set()
    for jar in (Path(pyspark.__file__).parent / "jars").iterdir():
        if re.fullmatch(CODE_OF_SPARK, jar.name):
            with zipfile.ZipFile(jar) as classes:
                for name in classes.namelist():
                    if name.endswith(".class") and name.startswith("org/apache/spark/"):
                        found |= constants(classes.read(name))
    return found


def constants(code: bytes) -> set[str]:
    """Texts of a class file that begin with ``spark.``: tag, length, letters."""
    found = set()
    for match in re.finditer(rb"\x01(..)(spark\.[\w.]+)", code, re.S):
        length = int.from_bytes(match[1], "big")
        if length <= len(match[2]):
            found.add(match[2][:length].decode())
    return found


def test_every_setting_is_one_that_spark_knows(known):
    assert "spark.executor.cores" in known and "spark.executor.core" not in known
    for name, settings in SETTINGS.items():
        unknown = {k for k in settings if k not in known and not FAMILIES.fullmatch(k)}
        assert unknown - {OPTIONAL} == set(), name


@pytest.mark.parametrize("manager", MANAGERS)
def test_cpus_and_gpus_differ_in_sizes_and_in_gpus(manager):
    cpu, gpu = SETTINGS[f"{manager}/cpu.conf"], SETTINGS[f"{manager}/gpu.conf"]
    differ = {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)}
    of_gpus = {
        key for key in differ if "resource.gpu" in key or gpu.get(key, "").endswith("gpus.sh")
    }
    assert differ - of_gpus == {"spark.executor.cores", "spark.task.cpus"}
    assert not of_gpus & cpu.keys()
    assert gpu["spark.task.resource.gpu.amount"] == "1"


@pytest.mark.parametrize("name", [f"{m}/{kind}.conf" for m in MANAGERS for kind in ("cpu", "gpu")])
def test_what_the_settings_promise(name):
    settings = SETTINGS[name]
    promised = {
        "spark.speculation": "false", "spark.dynamicAllocation.enabled": "false",
        "spark.authenticate": "true", "spark.network.crypto.enabled": "true",
        "spark.network.crypto.cipher": "AES/GCM/NoPadding", "spark.network.crypto.saslFallback": "false",
        "spark.io.encryption.enabled": "true",
    }  # fmt: skip
    assert promised.items() <= settings.items()
    assert int(settings["spark.executor.cores"]) % int(settings["spark.task.cpus"]) == 0
    assert "secret" not in " ".join(settings)
    assert ("spark.executor.memoryOverhead" in settings) == (not name.startswith("standalone"))
    ranges = port_ranges(settings)
    assert max(end for _, end in ranges) < 32768, "the system gives those away"
    for (_, end), (begin, _) in itertools.pairwise(ranges):
        assert end < begin


def port_ranges(settings: dict[str, str]) -> list[tuple[int, int]]:
    """First and last port of each service, in their order."""
    more = int(settings["spark.port.maxRetries"])
    found = [
        (int(value), int(value) + more) for k, value in settings.items() if k.endswith(".port")
    ]
    first, last = map(int, settings["spark.chexspark.ports"].split("-"))
    return sorted([*found, (first, last)])


def test_managers_agree_on_what_is_no_affair_of_theirs():
    first, *others = [SETTINGS[f"{m}/cpu.conf"] for m in MANAGERS]
    shared = {
        k for k in first if re.search(r"port|crypto|authenticate$|encryption|task|speculation", k)
    }
    assert len(shared) > 10
    for other in others:
        assert {k: other[k] for k in shared} == {k: first[k] for k in shared}


def flags_of(command: str) -> set[str]:
    return {flag(field.name) for field in dataclasses.fields(COMMANDS[command].config)} | {
        "--recipe"
    }


def page(manager: str) -> str:
    return (CLUSTERS / manager / "README.md").read_text()


def commands(manager: str) -> str:
    return "\n".join(line[4:] for line in page(manager).splitlines() if line.startswith("    "))


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_page_names_its_files_and_they_are_there(manager):
    text, folder = page(manager), CLUSTERS / manager
    silent = {file.name for file in folder.iterdir() if file.name not in text}
    assert silent <= {"README.md", "entrypoint.sh"}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / link).exists(), link
    for path in re.findall(r"conf/clusters/[\w./]*\w", text):
        assert (ROOT / path).exists(), path
    assert f"conf/clusters/{manager}/README.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_page_has_commands_that_a_shell_reads_with_flags_that_exist(manager):
    code = commands(manager)
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)
    given = re.findall(r"(?:\$CHEXSPARK |chexspark |\$JOBS/)(\w+)(?:\.py)? (--.*)", code)
    names = ["ingest", "doctor", "train", "evaluate", "report"]
    assert [name for name, _ in given][:5] == names
    for name, flags in given:
        known = flags_of(name)
        assert set(re.findall(r"--[a-z-]+", flags)) <= known, name
    set_above = set(re.findall(r"^(?:export )?([A-Z_]+)=", code, re.M))
    assert set(re.findall(r"\$([A-Z_]+)", code)) <= set_above | {"HOME"}


@pytest.mark.parametrize("manager", ["standalone", "yarn"])
def test_a_firewall_has_the_ports_of_the_settings(manager):
    text = page(manager)
    for first, last in port_ranges(SETTINGS[f"{manager}/cpu.conf"]):
        assert f"{first}–{last}" in text or (first == 4040 and manager == "yarn")


def run(script: Path, folder: Path, *arguments, **variables):
    """A script that finds nothing but what is in a folder."""
    for tool in ("hostname", "awk", "sort"):
        if not (folder / tool).exists():
            (folder / tool).symlink_to(shutil.which(tool))
    environment = {"PATH": str(folder)} | variables
    command = ["/bin/bash" if "bash" in script.read_text()[:20] else "/bin/sh", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def tool(folder: Path, name: str, code: str):
    (folder / name).write_text(f"#!/bin/sh\n{code}\n")
    (folder / name).chmod(0o755)


def test_gpus_are_named_as_spark_reads_them(tmp_path):
    assert GPUS.stat().st_mode & 0o111 == 0o111
    tool(tmp_path, "nvidia-smi", "printf '0\\n1\\n10\\n'")
    done = run(GPUS, tmp_path)
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1", "10"]}, done.stderr


@pytest.mark.parametrize(
    "code, message",
    [
        (None, "there is no nvidia-smi on PATH"),
        ("echo 'No devices were found'", "names no GPUs, but says: No devices were found"),
        ("echo 'driver mismatch' >&2; exit 18", "nvidia-smi failed: driver mismatch"),
        ("true", "finds no GPU"),
    ],
)
def test_no_gpus_are_told_and_fail(tmp_path, code, message):
    if code:
        tool(tmp_path, "nvidia-smi", code)
    done = run(GPUS, tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpus.sh on ") and message in line


ENTRYPOINT = CLUSTERS / "kubernetes" / "entrypoint.sh"


def test_a_pod_becomes_an_executor_a_driver_or_a_command(tmp_path):
    for name in ("java", "chexspark"):
        tool(tmp_path, name, f'echo {name}; for word in "$@"; do echo "$word"; done')
    (tmp_path / "bin").mkdir()
    tool(tmp_path / "bin", "spark-submit", 'for word in "$@"; do echo "$word"; done')
    said = {
        "SPARK_HOME": str(tmp_path), "SPARK_DRIVER_URL": "url", "SPARK_EXECUTOR_ID": "7",
        "SPARK_EXECUTOR_CORES": "4", "SPARK_EXECUTOR_MEMORY": "2048m", "SPARK_APPLICATION_ID": "app",
        "SPARK_EXECUTOR_POD_IP": "10.0.0.7", "SPARK_EXECUTOR_POD_NAME": "pod-7",
        "SPARK_RESOURCE_PROFILE_ID": "0", "SPARK_JAVA_OPT_10": "-Dlast=x", "SPARK_JAVA_OPT_2": "-Da=b c",
        "SPARK_DRIVER_BIND_ADDRESS": "10.0.0.1",
    }  # fmt: skip
    words = run(ENTRYPOINT, tmp_path, "executor", **said).stdout.splitlines()
    assert words[:5] == ["java", "-Da=b c", "-Dlast=x", "-Xms2048m", "-Xmx2048m"]
    assert words[5:7] == ["-cp", f"{tmp_path}/conf:{tmp_path}/jars/*"]
    assert words[7].endswith(".KubernetesExecutorBackend")
    assert dict(zip(words[8::2], words[9::2], strict=True)) == {
        "--driver-url": "url", "--executor-id": "7", "--cores": "4", "--app-id": "app",
        "--hostname": "10.0.0.7", "--resourceProfileId": "0", "--podName": "pod-7",
    }  # fmt: skip
    words = run(ENTRYPOINT, tmp_path, "driver", "--class", "a b", **said).stdout.splitlines()
    assert words[:4] == ["--deploy-mode", "client", "--conf", "spark.driver.bindAddress=10.0.0.1"]
    assert words[-2:] == ["--class", "a b"]
    assert run(ENTRYPOINT, tmp_path, "doctor", "--help").stdout.split() == [
        "chexspark",
        "doctor",
        "--help",
    ]
    assert str(ENTRYPOINT.relative_to(ROOT)) in (ROOT / "Dockerfile").read_text()


def objects(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTERS / "kubernetes" / name).read_text()))


def test_objects_of_kubernetes_belong_together():
    settings = SETTINGS["kubernetes/cpu.conf"]
    namespace, account, role, binding = objects("access.yaml")
    (policy,), (claim,) = objects("network.yaml"), objects("storage.yaml")
    name = settings["spark.kubernetes.namespace"]
    assert namespace["metadata"]["name"] == name
    for item in (account, role, binding, policy, claim):
        assert item["metadata"]["namespace"] == name
    account_name = settings["spark.kubernetes.authenticate.driver.serviceAccountName"]
    assert account["metadata"]["name"] == account_name
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account_name, "namespace": name}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not any("*" in rule["verbs"] + rule["resources"] for rule in role["rules"])
    closed = policy["spec"]["podSelector"]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": closed}]}]
    for template in ("driver", "executor"):
        (pod,) = objects(f"{template}.yaml")
        assert (
            ROOT / settings[f"spark.kubernetes.{template}.podTemplateFile"]
        ).name == f"{template}.yaml"
        assert closed["matchLabels"].items() <= pod["metadata"]["labels"].items()
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        user = pod["spec"]["securityContext"]["runAsUser"]
        assert f"useradd --uid {user}" in (ROOT / "Dockerfile").read_text()


def test_the_operator_s_application_says_what_settings_and_templates_say():
    settings = SETTINGS["kubernetes/cpu.conf"]
    (application,) = objects("application.yaml")
    spec = application["spec"]
    driver, executor = spec["driver"], spec["executor"]
    fields = {
        "spark.kubernetes.namespace": application["metadata"]["namespace"],
        "spark.kubernetes.authenticate.driver.serviceAccountName": driver["serviceAccount"],
        "spark.driver.memory": driver["memory"], "spark.executor.memory": executor["memory"],
        "spark.executor.memoryOverhead": executor["memoryOverhead"],
        "spark.executor.cores": str(executor["cores"]),
        "spark.executor.instances": str(executor["instances"]),
    }  # fmt: skip
    templates = {k: v for k, v in settings.items() if k.endswith("podTemplateFile")}
    assert spec["sparkConf"] | fields == {k: v for k, v in settings.items() if k not in templates}
    for name, part in (("driver", driver), ("executor", executor)):
        (pod,) = objects(f"{name}.yaml")
        assert part["template"] == {"metadata": pod["metadata"], "spec": pod["spec"]}
    job, flags = Path(spec["mainApplicationFile"]), spec["arguments"]
    assert (ROOT / "jobs" / job.name).exists()
    known = flags_of(job.stem)
    assert {word for word in flags if word.startswith("--")} <= known


def test_gangs_ask_for_what_the_pods_ask_for():
    settings = SETTINGS["kubernetes/cpu.conf"]
    each = mebibytes(settings["spark.executor.memory"]) + mebibytes(
        settings["spark.executor.memoryOverhead"]
    )
    driver = int(1.4 * mebibytes(settings["spark.driver.memory"]))
    gang = SETTINGS["kubernetes/yunikorn.conf"]
    prefix = "spark.kubernetes.driver.annotation.yunikorn.apache.org/"
    groups = {group["name"]: group for group in json.loads(gang[f"{prefix}task-groups"])}
    assert set(groups) == {
        gang[f"spark.kubernetes.{who}.annotation.yunikorn.apache.org/task-group-name"]
        for who in ("driver", "executor")
    }
    assert groups["driver"]["minResource"] == {"cpu": "1", "memory": f"{driver}Mi"}
    assert groups["executors"] == {
        "name": "executors", "minMember": int(settings["spark.executor.instances"]),
        "minResource": {"cpu": settings["spark.executor.cores"], "memory": f"{each}Mi"},
    }  # fmt: skip
    volcano, (group,) = SETTINGS["kubernetes/volcano.conf"], objects("volcano.yaml")
    assert (ROOT / volcano["spark.kubernetes.scheduler.volcano.podGroupTemplateFile"]).exists()
    assert group["spec"]["minResources"]["cpu"] == "9"
    assert (
        1024 * int(group["spec"]["minResources"]["memory"].removesuffix("Gi")) >= driver + 2 * each
    )
    for file in ("volcano.conf", "volcano.yaml", "yunikorn.conf"):
        assert (CLUSTERS / "kubernetes" / file).read_text().startswith("# Not run")


def mebibytes(text: str) -> int:
    """Of ``2g``."""
    return 1024 * int(text.removesuffix("g"))
