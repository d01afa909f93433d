"""Pickles read as data: what one says is told, and nothing of it is done. Anywhere.

In: a file open at the first byte of a pickle. Out: its value as plain containers, numbers and texts. Where
Python's own reader would import a name, call it or fill an object, there is a `Name`, a `Made` or a `Stored`
that says so: nothing is imported, called or looked up here, whatever the file names. The opcodes are cut by
`pickletools`, whose arguments are no longer than the file; each makes at most one value, and their number is
bounded.
"""

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

MOST_OPCODES = 2_000_000  # a DenseNet-121 whose optimizer is saved too has some 100,000
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    "INT", "LONG", "FLOAT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
OF_MARK = {"LIST": list, "FROZENSET": list, "TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = {"PROTO", "FRAME"}
KEYS = (str, int, float, bytes, type(None))  # of a dict; what has another key is passed over


@dataclass(eq=False, repr=False)
class Name:
    """What Python would import: ``collections.OrderedDict``."""

    path: str


@dataclass(eq=False, repr=False)
class Made:
    """What Python would make by calling `what`, and then fill with `items`, `members` and `state`."""

    what: Any
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    state: Any = None


@dataclass(eq=False, repr=False)
class Stored:
    """What the program that wrote the pickle keeps elsewhere; `said`: what finds it there."""

    said: Any


def read_pickle(file: IO[bytes]) -> tuple[Any, list[Stored]]:
    """The value of the pickle that begins here, and all `Stored` in it; the file stands behind it then.

    Sets are lists. Raises ValueError, LookupError or TypeError for what is no pickle, or one of another kind.
    """
    reading = Reading()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number >= MOST_OPCODES:
            raise ValueError(f"its pickle has more than {MOST_OPCODES:,} opcodes")
        if opcode.name == "STOP":
            return reading.stack.pop(), reading.stored
        reading.take(opcode.name, argument)
    raise ValueError("its pickle has no end")


class Reading:
    """The stack, the marks in it and the memo of a pickle, as its opcodes go by."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[Any, Any] = {}
        self.stored: list[Stored] = []

    def take(self, name: str, argument: Any) -> None:
        """Do what an opcode says to stack and memo. Raises ValueError for one that is not known here."""
        push = self.stack.append
        if name in LITERALS:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name in OF_MARK:
            values = self.to_mark()
            self.stack.append(OF_MARK[name](values))
        elif name in TUPLES:
            push(tuple(self.last(TUPLES[name])))
        elif name not in NOTHING:
            step = getattr(self, f"on_{name.lower()}", None)
            if step is None:
                raise ValueError(f"its pickle has {name}, which is not read here")
            step(argument)

    def to_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def last(self, count: int) -> list[Any]:
        """Take so many values from the top. Raises IndexError where there are fewer."""
        if len(self.stack) < count:
            raise IndexError("its pickle takes more than is there")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def on_mark(self, _: Any) -> None:
        """Begin a new stack above this one."""
        self.below.append(self.stack)
        self.stack = []

    def on_pop(self, _: Any) -> None:
        """Leave the last value, or the last mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def on_pop_mark(self, _: Any) -> None:
        """Leave all above the last mark."""
        self.to_mark()

    def on_dup(self, _: Any) -> None:
        """The last value once more."""
        self.stack.append(self.stack[-1])

    def on_dict(self, _: Any) -> None:
        """A dict of keys and values in turn."""
        values = self.to_mark()
        self.stack.append({})
        self.put_items(values)

    def put_items(self, values: list[Any]) -> None:
        """Put keys and values, in turn, into the last value. Raises ValueError where it cannot have any."""
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        if not isinstance(items, dict):
            raise ValueError("its pickle puts an item into what is no dict")
        pairs = zip(values[::2], values[1::2], strict=True)
        items.update((key, value) for key, value in pairs if isinstance(key, KEYS))

    def put_members(self, values: list[Any]) -> None:
        """Add to the last value, a list. Raises ValueError where it is none."""
        target = self.stack[-1]
        members = target.members if isinstance(target, Made) else target
        if not isinstance(members, list):
            raise ValueError("its pickle adds to what is no list")
        members.extend(values)

    def on_setitem(self, _: Any) -> None:
        """One item."""
        self.put_items(self.last(2))

    def on_setitems(self, _: Any) -> None:
        """Those above the mark."""
        self.put_items(self.to_mark())

    def on_append(self, _: Any) -> None:
        """One member."""
        self.put_members(self.last(1))

    def on_appends(self, _: Any) -> None:
        """Those above the mark."""
        self.put_members(self.to_mark())

    on_additems = on_appends

    def on_put(self, argument: Any) -> None:
        """Remember the last value."""
        self.memo[argument] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, _: Any) -> None:
        """Remember the last value under the next number."""
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, argument: Any) -> None:
        """What was remembered, itself and no copy."""
        self.stack.append(self.memo[argument])

    on_binget = on_long_binget = on_get

    def on_global(self, argument: str) -> None:
        """A name; `pickletools` has a space between module and name."""
        self.stack.append(Name(argument.replace(" ", ".")))

    def on_stack_global(self, _: Any) -> None:
        """A name whose parts lie on the stack. Raises ValueError where they are no texts."""
        parts = self.last(2)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("its pickle has a name that is no text")
        self.stack.append(Name(".".join(parts)))

    def on_reduce(self, _: Any) -> None:
        """What a call would make."""
        self.stack.append(Made(*self.last(2)))

    on_newobj = on_reduce

    def on_newobj_ex(self, _: Any) -> None:
        """The same, of a call with keywords, which are left out."""
        what, arguments, _ = self.last(3)
        self.stack.append(Made(what, arguments))

    def on_build(self, _: Any) -> None:
        """The state of what was made. Raises ValueError where nothing was."""
        (state,) = self.last(1)
        if not isinstance(self.stack[-1], Made):
            raise ValueError("its pickle gives a state to what has none")
        self.stack[-1].state = state

    def on_binpersid(self, _: Any) -> None:
        """What is kept elsewhere, by what the last value says."""
        self.on_persid(self.last(1)[0])

    def on_persid(self, argument: Any) -> None:
        """What is kept elsewhere."""
        self.stored.append(Stored(argument))
        self.stack.append(self.stored[-1])
