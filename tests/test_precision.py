"""The arithmetic of a run that leaves it to its hosts."""

import os

import pytest

from chexspark.cluster import place
from chexspark.cluster.precision import precision_warnings, settle_precision

X86 = "processor : {0}\nmodel name : a processor\nflags\t\t: fpu sse2 {1} avx512f\n"


def rank(host, bfloat16):
    return {"host": host, "bfloat16": bfloat16}


BOTH = (rank("a", True), rank("b", True))
ONE = (rank("a", True), rank("b", False), rank("c", False), rank("c", False))


def test_bfloat16_is_taken_where_all_ranks_have_it_and_what_is_asked_for_always():
    precision, why = settle_precision("auto", BOTH, own_network=False)
    assert precision == "mixed_bfloat16" and why.endswith("have it in hardware")
    assert settle_precision("auto", ONE, False) == (
        "float32", "precision float32: b, c have no bfloat16 in hardware")  # fmt: skip
    assert settle_precision("auto", BOTH, own_network=True)[0] == "float32"
    for asked in ("float32", "mixed_float16", "mixed_bfloat16"):
        assert settle_precision(asked, ONE, False) == (asked, "")


def test_hosts_that_have_to_emulate_it_are_named():
    (warning,) = precision_warnings("mixed_bfloat16", ONE)
    assert warning.startswith("b, c have no bfloat16 in hardware, which --precision=mixed_bfloat16")
    assert precision_warnings("mixed_bfloat16", BOTH) == precision_warnings("float32", ONE) == []


@pytest.mark.parametrize(
    "flags, has",
    [(("avx512_bf16", "avx512_bf16"), True), (("amx_bf16", "amx_bf16"), True),
     (("avx512_bf16", "avx2"), False), (("avx512_bf16_of_another_kind",), False), ((), False)])  # fmt: skip
def test_a_processor_says_so_by_its_flags(flags, has, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("\n".join(X86.format(number, flag) for number, flag in enumerate(flags)))
    monkeypatch.setattr(place, "PROCESSORS", str(file))
    assert place.has_bfloat16([]) is has


def test_gpus_say_so_by_their_compute_capability(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(place, "PROCESSORS", "/proc/cpuinfo")
    asked = tmp_path / "nvidia-smi"

    def smi(script):
        asked.write_text(f"#!/bin/sh\n{script}\n")
        asked.chmod(0o755)

    smi('[ "$4" = 0,1 ] && printf "8.0\\n9.0\\n"')
    assert place.has_bfloat16(["0", "1"])
    smi('printf "8.6\\n7.5\\n"')
    assert not place.has_bfloat16(["0", "1"]), "the weakest decides"
    for nothing in ("exit 9", "echo '[N/A]'", "true"):
        smi(nothing)
        assert not place.has_bfloat16(["0"])
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert not place.has_bfloat16(["0"])
