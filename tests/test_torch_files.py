"""Files of PyTorch, and of strangers: nothing in them is done, and what is wrong is one line."""

import io
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
from torch_writer import Call, Global, Persistent, Writer, legacy_file, ordered, zip_file

from chexspark.command_line import run_command
from chexspark.errors import UserError
from chexspark.models import pickles
from chexspark.models.pickles import Made, Name, read_pickle
from chexspark.models.torch_files import opened_tensors
from chexspark.models.weights import check_weights


def tensors_of(content):
    with opened_tensors(io.BytesIO(content)) as found:
        return {name: np.asarray(tensor) for name, tensor in found.items()}


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_tensors_are_found_wherever_they_stand(write):
    a, b, c = (np.arange(n, dtype="<f4").reshape(2, -1) for n in (4, 6, 8))
    value = {"x": [a, (1, {"deep": b})], "args": Call(Global("argparse.Namespace"), state={"lr": 0.1}),
             "state": ordered({"c.weight": c, "n": np.array(7)}, {"_metadata": {}}), 3: a}  # fmt: skip
    found = tensors_of(write(value))
    assert list(found) == ["x.0", "x.1.1.deep", "state.c.weight", "state.n"]
    for name, expected in zip(found, (a, b, c, np.array(7)), strict=True):
        np.testing.assert_array_equal(found[name], expected)
    assert found["state.n"].dtype == np.int64


def test_pickles_of_every_protocol_are_the_values_that_they_say():
    value = {
        "a": [1, -2.5, 1 << 70, None, True, "é", b"\xff"],
        "b": (1, (2,), ()),
        "c": {"d": {}},
        "e": {4},
    }
    for protocol in range(6):
        found, stored = read_pickle(io.BytesIO(pickle.dumps(value, protocol)))
        members = found.pop("e")
        if isinstance(members, Made):  # protocols 0 to 3 call set([4])
            assert members.what.path.endswith(".set")
            members = members.arguments[0]
        expected = {n: v for n, v in value.items() if n != "e"}
        if protocol < 3:  # these call a codec for bytes
            found["a"].pop(), expected.update(a=value["a"][:-1])
        assert (found, members, stored) == (expected, [4], [])


class Evaluated:
    def __reduce__(self):
        return eval, ("__import__('foreign_pickle')",)


def test_what_a_pickle_would_run_is_not_run(tmp_path, monkeypatch, capsys):
    """Python's own reader does run it; here it is a `Made` of a `Name`."""
    (tmp_path / "foreign_pickle.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    for protocol in (0, 1, 2, 4):
        content = pickle.dumps({"a": Evaluated()}, protocol)
        found, _ = read_pickle(io.BytesIO(content))
        made = found["a"]
        assert isinstance(made, Made) and made.what.path.endswith(".eval")
        assert (
            made.arguments == ("__import__('foreign_pickle')",)
            and "foreign_pickle" not in sys.modules
        )
    pickle.loads(content)
    assert "foreign_pickle" in sys.modules, "Python's reader imports it"
    for name in ("posix.system", "os.system", "builtins.exec"):
        call = Call(Global(name), "echo", new=True, state={"__setstate__": Global(name)})
        for content in (zip_file({"a": call}), legacy_file({"a": call})):
            assert tensors_of(content) == {}
    instance = b"(S'x'\nios\nsystem\n."  # an opcode by which protocol 0 makes objects
    with pytest.raises(ValueError, match="has INST, which is not read here"):
        read_pickle(io.BytesIO(instance))
    assert not ran


def test_names_are_told_and_calls_are_kept():
    found, _ = read_pickle(io.BytesIO(pickle.dumps([io.BytesIO, np.float32], 4)))
    assert [type(each) for each in found] == [Name, Name] and found[0].path == "_io.BytesIO"


FULL = zip_file({"a": np.arange(1000, dtype="<f4")})
OLD = legacy_file({"a": np.arange(1000, dtype="<f4")})


def with_pickle(content, more=(), compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        for name, data in more:
            archive.writestr(name, data)
    return out.getvalue()


def tensor(offset=0, size=(2, 2), stride=(2, 1), key="0", count=4, kind="FloatStorage"):
    said = ("storage", Global(f"torch.{kind}"), key, "cpu", count)
    rebuild = Global("torch._utils._rebuild_tensor_v2")
    return Writer().pickle({"conv0.weight": Call(rebuild, Persistent(said), offset, size, stride)})


def bomb(levels=60):
    """Lists of the list before, twice: 2⁶⁰ of them, for who walks them all."""
    return b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(levels)
    ) + b"."  # fmt: skip


HOSTILE = {
    "broken": (FULL[: len(FULL) // 2], "damaged"),
    "broken pickle": (with_pickle(tensor()[:-9]), "not enough data|pickle exhausted"),
    "old, broken": (OLD[:-1000], "its storages end at byte"),
    "old, broken pickle": (OLD[:100], "pickle exhausted|expected"),
    "old, another protocol": (OLD.replace(struct.pack("<i", 1001), struct.pack("<i", 7), 1), "another protocol"),
    "old, an unknown type": (OLD.replace(b"FloatStorage", b"QuxxxStorage"), "no known type"),
    "beyond its storage": (with_pickle(tensor(offset=1)), "not within its storage, 0"),
    "strides beyond": (with_pickle(tensor(stride=(99, 1))), "not within its storage, 0"),
    "one number, many times": (with_pickle(tensor(size=(1 << 15, 1 << 15), stride=(0, 0))), "not within"),
    "negative": (with_pickle(tensor(stride=(-2, 1))), "a size that is none"),
    "axes without end": (with_pickle(tensor(size=(1,) * 9, stride=(1,) * 9)), "a size that is none"),
    "a huge storage": (with_pickle(tensor(count=1 << 31, kind="DoubleStorage")), "more than 2048 MiB"),
    "a storage of 2⁷⁰": (with_pickle(tensor(count=1 << 70)), "has no key, or no length"),
    "memo bomb": (with_pickle(bomb()), "no conv0.weight"),
    "a list in itself": (with_pickle(b"\x80\x02]q\x00h\x00a."), "no conv0.weight"),
    "deep lists": (with_pickle(b"\x80\x02" + b"]" * 900_000 + b"a" * 899_999 + b"."), "no conv0.weight"),
    "deep tuples": (with_pickle(b"\x80\x02)" + b"\x85" * 900_000 + b"."), "no conv0.weight"),
    "a far memo": (with_pickle(b"\x80\x02Nr\xff\xff\xff\xff."), "no conv0.weight"),
    "an empty memo": (with_pickle(b"\x80\x02j\x00\x00\x00\x00."), "damaged"),
    "an empty stack": (with_pickle(b"\x80\x02."), "damaged"),
    "no mark": (with_pickle(b"\x80\x02t."), "damaged"),
    "no end": (with_pickle(b"\x80\x02N"), "pickle exhausted"),
    "a text of 4 GiB": (with_pickle(b"\x80\x02X\xff\xff\xff\xffx."), "expected 4294967295 bytes"),
    "a number of many digits": (with_pickle(b"I" + b"9" * 100_000 + b"\n."), "Exceeds the limit"),
    "what is registered": (with_pickle(b"\x80\x02\x82\x01."), "has EXT1, which is not read here"),
    "state of a list": (with_pickle(b"\x80\x02]}b."), "gives a state to what has none"),
    "item of a list": (with_pickle(b"\x80\x02]NNs."), "puts an item into what is no dict"),
    "member of a dict": (with_pickle(b"\x80\x02}Na."), "adds to what is no list"),
    "no text in a name": (with_pickle(b"\x80\x04NN\x93."), "a name that is no text"),
    "two pickles": (with_pickle(tensor(), [("y/data.pkl", tensor())]), "has 2 members data.pkl"),
    "bomb of a pickle": (with_pickle(bytes(65 << 20), compression=zipfile.ZIP_DEFLATED), "more than 64 MiB"),
    "safetensors": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "damaged"),
    "safetensors, broken": (b"\x20\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[9],", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_file_ends_in_one_line(tmp_path, name):
    content, message = HOSTILE[name]
    path = tmp_path / ("m.safetensors" if name.startswith("safe") else "m.pth")
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        check_weights("densenet121", str(path))
    assert (
        "\n" not in str(caught.value)
        and f"--weights={path} is damaged, or not a" in caught.value.text
    )


@pytest.mark.parametrize("key", ["0", "../../../../etc/passwd", "/etc/passwd", "x" * 5000])
def test_a_storage_is_of_this_archive_and_takes_its_room_there(key):
    content = with_pickle(tensor(key=key))
    with pytest.raises(KeyError, match="no item named"):
        tensors_of(content)
    short = with_pickle(tensor(key=key), [(f"x/data/{key}", bytes(15))])
    with pytest.raises(ValueError, match="not as long as the pickle says"):
        tensors_of(short)
    packed = io.BytesIO(
        with_pickle(tensor(key=key), [(f"x/data/{key}", bytes(16))], zipfile.ZIP_DEFLATED)
    )
    with pytest.raises(ValueError, match="is compressed"):
        tensors_of(packed.getvalue())
    whole = with_pickle(tensor(key=key), [(f"x/data/{key}", bytes(16))])
    assert tensors_of(whole)["conv0.weight"].shape == (2, 2)


def test_opcodes_are_counted(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 10)
    with pytest.raises(ValueError, match="more than 10 opcodes"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 10 + b"N."))


def test_the_other_order_of_bytes():
    values = np.arange(4, dtype="<f4")
    content = zip_file({"a": values.view("<u4").byteswap().view("<f4")}, order=b"big")
    np.testing.assert_array_equal(tensors_of(content)["a"], values)


def test_a_view_of_a_storage_begins_where_it_says():
    """Of before PyTorch 0.4: the last part of a persistent id is the view's key, place and length."""
    said = ("storage", Global("torch.FloatStorage"), "7", "cpu", 6, ("8", 2, 4))
    rebuild = Global("torch._utils._rebuild_tensor")
    writer = Writer(legacy=True)
    writer.storages["7"] = 6, np.arange(6, dtype="<f4").tobytes()
    content = legacy_file({"a": Call(rebuild, Persistent(said), 1, (3,), (1,))}, writer)
    np.testing.assert_array_equal(tensors_of(content)["a"], [3, 4, 5])


def test_the_command_says_it_in_one_line(store, tmp_path, capsys):
    (tmp_path / "m.pth").write_bytes(OLD[:100])
    flags = [
        "--data",
        store.path,
        "--run",
        str(tmp_path / "run"),
        "--weights",
        str(tmp_path / "m.pth"),
    ]
    assert run_command("train", flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--weights {tmp_path}/m.pth is damaged" in said
    assert not (tmp_path / "run").exists()
