"""The pickle in a torch checkpoint, read by an interpreter that knows tensors and nothing else.

A pickle is a program. Python's own interpreter imports what the program names and calls it; restricting its
`find_class` still leaves opcodes that set attributes and build objects. This one has only the two dozen opcodes with
which torch.save describes tensors, every value in it is plain data, and it calls nothing: what the program would
have called is compared with the three names of tensor rebuilding and otherwise refused by that name.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.text import snippet

MAX_BYTES = 1 << 20  # the 723 tensors of LLaMA-65B need a tenth of it
DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ADMITTED = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *(f"torch.{name}" for name in DTYPES)}


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor: `offset`, `shape` and `stride` count elements of the storage `key`. Unchecked."""

    key: str
    dtype: str
    storage_numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int


class _Refused(Exception):
    """Why the pickle is not one of tensors."""


def read(pickle: bytes | bytearray, path: str) -> dict[str, StoredTensor]:
    """Name -> place of every tensor of a state dict that torch.save pickled (protocols 2 to 4).

    Raises RecipeError, naming what was asked for, on anything but tensors in a dictionary.
    """
    check_size(len(pickle), path)
    try:
        value = _Machine().run(pickle)
        if not isinstance(value, dict):
            raise _Refused(f"it holds {_kind(value)} instead of a dictionary of tensors")
        for name, entry in value.items():
            if not isinstance(entry, StoredTensor):
                raise _Refused(f"{snippet(name)!r} is {_kind(entry)}, not a tensor")
    except _Refused as refused:
        raise RecipeError(
            f"{path} is refused: {refused}; only a plain state dict of tensors is read, and nothing in it is executed"
        ) from None
    except (ValueError, IndexError, KeyError, AttributeError, OverflowError):
        # what pickletools raises on bytes that are no pickle, and what an underflowing stack or a missing memo gives
        raise RecipeError(f"{path} is damaged: its pickle cannot be read; download it again") from None
    return value


def check_size(size: int, path: str) -> None:
    """Raises RecipeError on a pickle that is larger than any list of tensors."""
    if size > MAX_BYTES:
        raise RecipeError(f"{path}: its pickle has {size:,} bytes, a list of tensors needs at most {MAX_BYTES:,}")


def _kind(value: Any) -> str:
    return "the class " + value.name if isinstance(value, _Global) else f"a {type(value).__name__.lstrip('_')}"


class _Machine:
    """A stack of plain values, as in Python's pickle.py. Dictionary keys are strings only, so that hashing is cheap."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes | bytearray) -> Any:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("no STOP")

    def step(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(opcode[-1]))))
            case "TUPLE":
                values = self.since_mark()  # first: it changes which list the stack is
                self.stack.append(tuple(values))
            case "APPEND" | "APPENDS":
                values = self.pop(1) if opcode == "APPEND" else self.since_mark()
                _expect(self.stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.pop(2) if opcode == "SETITEM" else self.since_mark()
                _expect(self.stack[-1], dict).update(_pairs(values))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(_admitted(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, name = self.pop(2)
                self.stack.append(
                    _admitted(f"{module}.{name}" if {type(module), type(name)} == {str} else "a non-name")
                )
            case "BINPERSID":
                self.stack.append(_storage(self.stack.pop()))
            case "REDUCE":
                function, arguments = self.pop(2)
                self.stack.append(_rebuilt(function, _expect(arguments, tuple)))
            case "BUILD":
                # the _metadata that nn.Module.state_dict() hangs on its OrderedDict: of no use here
                _expect(self.stack.pop(), dict)
                _expect(self.stack[-1], dict)
            case _:
                raise _Refused(f"its pickle uses the opcode {opcode}, which tensors do not need")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Refused(f"its pickle has {_kind(value)} where tensors have a {kind.__name__}")
    return value


def _pairs(values: list[Any]) -> dict[str, Any]:
    if len(values) % 2:
        raise ValueError("a key without its value")
    return {_expect(key, str): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _admitted(name: str) -> _Global:
    if name not in ADMITTED:
        raise _Refused(f"its pickle asks for {snippet(name)}")
    return _Global(name)


def _storage(persistent_id: Any) -> _Storage:
    """torch.save's ("storage", class, key, device, elements)."""
    match persistent_id:
        case ("storage", _Global(name=name), str(key), str(), int(numel)) if name.removeprefix("torch.") in DTYPES:
            return _Storage(key, DTYPES[name.removeprefix("torch.")], numel)
    raise _Refused("its pickle describes a storage that torch.save would not write")


def _rebuilt(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What the admitted functions would give, without calling them."""
    match function, arguments:
        case _Global(name="collections.OrderedDict"), ():
            return {}
        case (
            _Global(name="torch._utils._rebuild_tensor_v2"),
            (_Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict(), *_),
        ) if all(type(size) is int for size in (*shape, *stride)):
            return StoredTensor(storage.key, storage.dtype, storage.numel, offset, shape, stride)
        case _Global(name="torch._utils._rebuild_parameter"), (StoredTensor() as tensor, bool(), dict()):
            return tensor
        case _Global(name=name), _:
            raise _Refused(f"its pickle calls {name} with arguments that torch.save would not write")
    raise _Refused(f"its pickle calls {_kind(function)}")
