"""Files as ``torch.save`` writes them, opcode by opcode, without PyTorch; and a DenseNet-121 to put into them."""

import io
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
KINDS = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "<i8": "LongStorage",
         "bfloat16": "BFloat16Storage"}  # fmt: skip


class Global:
    """A name that is imported."""

    def __init__(self, path):
        self.path = path


class Call:
    """REDUCE or NEWOBJ, items and state."""

    def __init__(self, what, *arguments, items=None, state=None, new=False):
        self.what, self.arguments, self.items = what, arguments, items or {}
        self.state, self.new = state, new


class Persistent:
    """What is kept elsewhere."""

    def __init__(self, said):
        self.said = said


class Half(np.ndarray):
    """Float32 that is written as bfloat16."""


def ordered(items, state=None):
    return Call(Global("collections.OrderedDict"), items=items, state=state)


def number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


class Writer:
    """A pickle of protocol 2, with the numbers of its tensors aside."""

    def __init__(self, legacy=False, offset=0):
        self.legacy, self.offset = legacy, offset  # numbers before each tensor's, in its storage
        self.storages: dict[str, tuple[int, bytes]] = {}
        self.memo: dict[str, int] = {}

    def pickle(self, value) -> bytes:
        self.memo, self.parts, self.count = {}, [b"\x80\x02"], 0
        self.write(value)
        return b"".join([*self.parts, b"."])

    def remember(self, name=None):
        self.parts.append(b"r" + struct.pack("<I", self.count))
        if name:
            self.memo[name] = self.count
        self.count += 1

    def write(self, value):
        put = self.parts.append
        if value is None or value is True or value is False:
            put({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            put(number(value))
        elif isinstance(value, float):
            put(b"G" + struct.pack(">d", value))
        elif isinstance(value, (str, Global)):
            self.text(value)
        elif isinstance(value, tuple):
            put(b"(")
            for part in value:
                self.write(part)
            put(b"t")
            self.remember()
        elif isinstance(value, list):
            put(b"]")
            self.remember()
            put(b"(")
            for part in value:
                self.write(part)
            put(b"e")
        elif isinstance(value, dict):
            put(b"}")
            self.remember()
            self.items(value)
        elif isinstance(value, np.ndarray):
            self.write(self.tensor(value))
        elif isinstance(value, Persistent):
            self.write(value.said)
            put(b"Q")
        else:
            self.write(value.what)
            self.write(value.arguments)
            put(b"\x81" if value.new else b"R")
            self.remember()
            self.items(value.items)
            if value.state is not None:
                self.write(value.state)
                put(b"b")

    def text(self, value):
        name = value if isinstance(value, str) else f"global {value.path}"
        if name in self.memo:
            self.parts.append(b"j" + struct.pack("<I", self.memo[name]))
            return
        if isinstance(value, str):
            self.parts.append(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        else:
            module, _, last = value.path.rpartition(".")
            self.parts.append(f"c{module}\n{last}\n".encode())
        self.remember(name)

    def items(self, items):
        if items:
            self.parts.append(b"(")
            for key, value in items.items():
                self.write(key)
                self.write(value)
            self.parts.append(b"u")

    def tensor(self, array):
        key = str(len(self.storages) + (94_000 if self.legacy else 0))
        strides = tuple(step // array.itemsize for step in array.strides)
        base = array.transpose(sorted(range(array.ndim), key=lambda axis: -strides[axis]))
        assert base.flags.c_contiguous
        kind, content = array.dtype.str, base.tobytes()
        if isinstance(array, Half):
            kind, content = "bfloat16", (np.ascontiguousarray(base).view("<u4") >> 16).astype("<u2").tobytes()  # fmt: skip
        before = self.offset * (len(content) // max(array.size, 1))
        count = array.size + self.offset
        self.storages[key] = count, b"\xaa" * before + content
        said = ("storage", Global(f"torch.{KINDS[kind]}"), key, "cpu", count)
        storage = Persistent((*said, None) if self.legacy else said)
        hooks = ordered({})
        rebuild = Global("torch._utils._rebuild_tensor_v2")
        return Call(rebuild, storage, self.offset, tuple(array.shape), strides, False, hooks)


def parameter(array, writer):
    return Call(Global("torch._utils._rebuild_parameter"), writer.tensor(array), True, ordered({}))


def zip_file(value, writer=None, name="archive", order=b"little") -> bytes:
    """As PyTorch writes from 1.6 on."""
    writer, out = writer or Writer(), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{name}/data.pkl", writer.pickle(value))
        archive.writestr(f"{name}/byteorder", order)
        for key, (_, content) in writer.storages.items():
            archive.writestr(f"{name}/data/{key}", content)
        archive.writestr(f"{name}/version", b"3\n")
    return out.getvalue()


def legacy_file(value, writer=None) -> bytes:
    """As PyTorch wrote before 1.6."""
    writer = writer or Writer(legacy=True)
    machine = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"long": 4}}
    parts = [Writer().pickle(MAGIC), Writer().pickle(PROTOCOL), Writer().pickle(machine)]
    parts.append(writer.pickle(value))
    parts.append(Writer().pickle(sorted(writer.storages)))
    for key in sorted(writer.storages):
        count, content = writer.storages[key]
        parts += [struct.pack("<q", count), content]
    return b"".join(parts)


def module_of(state, writer, old=False):
    """A state as a whole module: objects within objects; `old`: of classes that are kept elsewhere."""

    def made(own, inner):
        path = "torch.nn.modules.container.Sequential"
        what = (
            Persistent(("module", Global(path), "/x.py", "class X: ...")) if old else Global(path)
        )
        inside = {"training": False, "_parameters": own["parameters"], "_buffers": own["buffers"],
                  "_backward_hooks": ordered({}), "_modules": ordered(inner)}  # fmt: skip
        inside |= {name: ordered(inside[name]) for name in ("_parameters", "_buffers")}
        return Call(what, state=inside, new=True)

    def build(part):
        own = {"parameters": {}, "buffers": {}}
        inner: dict[str, dict] = {}
        for name, array in part.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = array
            elif first.startswith(("running", "num_batches")):
                own["buffers"][first] = array
            else:
                own["parameters"][first] = parameter(array, writer)
        own["parameters"].setdefault("bias", None)
        return made(own, {name: build(inside) for name, inside in inner.items()})

    return build(state)


def modules(channels: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers of torchvision's DenseNet-121, with the shapes of their weights."""
    yield "features.conv0", (64, channels, 7, 7)
    yield "features.norm0", (64,)
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            place = f"features.denseblock{block}.denselayer{layer}"
            yield f"{place}.norm1", (width,)
            yield f"{place}.conv1", (128, width, 1, 1)
            yield f"{place}.norm2", (128,)
            yield f"{place}.conv2", (32, 128, 3, 3)
            width += 32
        if block < 4:
            yield f"features.transition{block}.norm", (width,)
            yield f"features.transition{block}.conv", (width // 2, width, 1, 1)
            width //= 2
    yield "features.norm5", (width,)
    yield "classifier", (outputs, width)


def made_state(images, outputs, seed=0):
    """A state whose statistics are about those of the images, float32 (images, channels, size, size)."""
    draws, state = np.random.default_rng(seed), {}
    for name, shape in modules(images.shape[1], outputs):
        if len(shape) == 1:
            state[f"{name}.weight"] = draws.uniform(0.5, 1.5, shape)
            state[f"{name}.bias"] = draws.normal(0, 0.2, shape)
            state[f"{name}.running_mean"], state[f"{name}.running_var"] = None, None
            state[f"{name}.num_batches_tracked"] = np.array(1000)
        else:
            deviation = (2 / np.prod(shape[1:])) ** 0.5
            state[f"{name}.weight"] = draws.normal(0, deviation, shape)
    state["classifier.bias"] = draws.normal(0, 0.5, outputs)
    logits(state, images, draws)
    return {n: a.astype("<i8" if "num_" in n else "<f4") for n, a in state.items()}


def convolved(x, kernel, stride=1, padding=0):
    """torch.nn.functional.conv2d, of one group and without a bias."""
    height, width = kernel.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, kernel, optimize=True)


def pooled(x, size, padding, reduce, outside):
    """torch's MaxPool2d and AvgPool2d of stride 2: what does not fill a window at the end is left out."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=outside)
    return reduce(np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::2, ::2], (4, 5))  # fmt: skip


def logits(state, images, draws=None):
    """torchvision's DenseNet-121 in its mode of evaluation, in float64; `draws`: statistics are set on the way."""

    def norm_relu(x, name):
        if draws:
            state[f"{name}.running_mean"] = x.mean((0, 2, 3)) + draws.normal(0, 0.1, x.shape[1])
            state[f"{name}.running_var"] = x.var((0, 2, 3)) * draws.uniform(0.5, 2, x.shape[1])
        weight, bias, mean, variance = (
            state[f"{name}.{part}"][:, None, None].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)

    def kernel(name):
        return state[f"{name}.weight"].astype(np.float64)

    x = convolved(images.astype(np.float64), kernel("features.conv0"), 2, 3)
    x = pooled(norm_relu(x, "features.norm0"), 3, 1, np.max, -np.inf)
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            place = f"features.denseblock{block}.denselayer{layer}"
            new = convolved(norm_relu(x, f"{place}.norm1"), kernel(f"{place}.conv1"))
            new = convolved(norm_relu(new, f"{place}.norm2"), kernel(f"{place}.conv2"), padding=1)
            x = np.concatenate([x, new], axis=1)
        if block < 4:
            place = f"features.transition{block}"
            x = pooled(convolved(norm_relu(x, f"{place}.norm"), kernel(f"{place}.conv")), 2, 0, np.mean, 0)  # fmt: skip
    features = norm_relu(x, "features.norm5").mean((2, 3))
    return features @ state["classifier.weight"].T + state["classifier.bias"]
