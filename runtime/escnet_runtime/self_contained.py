"""Whether an ONNX file holds all its weights itself, read off its bytes; no ONNX library needed.

ONNX lets a tensor name another file to read its values from, by any path. The graphs of a bundle
keep their weights inside, and a graph that points elsewhere is refused before a library follows it.

ONNX is protobuf (``onnx.proto3``): a message is a run of fields, each a key (number and kind) and a
value. A tensor's other file stands in its field ``external_data``, whose entries have a key
"location". No reader of these files finds a path without that word, so a file without it is clean;
where it occurs, in a text perhaps, the messages are walked.
"""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["names_other_files"]

_WORD: Final = b"location"
_MOST_DEPTH: Final = 64
_Buffer: TypeAlias = memoryview

# Field numbers of onnx.proto3 that lead to tensors.
_MODEL: Final = {7: "graph", 20: "training", 25: "function"}
_TRAINING: Final = {1: "graph", 2: "graph"}
_FUNCTION: Final = {7: "node", 11: "attribute"}
_GRAPH: Final = {1: "node", 5: "tensor", 15: "sparse"}
_NODE: Final = {5: "attribute"}
_ATTRIBUTE: Final = {
    5: "tensor",
    6: "graph",
    10: "tensor",
    11: "graph",
    22: "sparse",
    23: "sparse",
}
_SPARSE: Final = {1: "tensor", 2: "tensor"}
_FIELDS: Final = {
    "model": _MODEL,
    "training": _TRAINING,
    "function": _FUNCTION,
    "graph": _GRAPH,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "sparse": _SPARSE,
}
_EXTERNAL_DATA: Final = 13  # of a tensor: the entries that name a file


def names_other_files(path: Path) -> bool:
    """Whether a tensor of the ONNX file ``path`` is to be read from another file.

    What is no ONNX file at all counts as naming none: the library that loads it will say so. One
    that is malformed and holds the word counts as naming some.

    Raises:
        OSError: ``path`` cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_WORD) < 0:
                return False
            with memoryview(content) as view:
                return _walk(view, "model", 0)


def _walk(message: _Buffer, kind: str, depth: int) -> bool:
    """Whether a message of a kind, or one inside it, names another file."""
    if depth > _MOST_DEPTH:
        return True  # nothing is nested like that, and stacks of libraries end
    inside = _FIELDS.get(kind, {})
    try:
        for number, value in _fields(message):
            if value is None:
                continue
            with value:
                if kind == "tensor" and number == _EXTERNAL_DATA:
                    return True
                if number in inside and _walk(value, inside[number], depth + 1):
                    return True
    except _MalformedError:
        return True
    return False


class _MalformedError(Exception):
    """The bytes are no protobuf message."""


def _fields(message: _Buffer) -> Iterator[tuple[int, _Buffer | None]]:
    """Number of each field, with its bytes if it has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key > _MOST_KEY:
            raise _MalformedError
        number, wire = key >> 3, key & 7
        if wire == _LENGTH:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise _MalformedError
            yield number, message[at : at + size]
            at += size
        elif wire in _SKIPS:
            at = _SKIPS[wire](message, at)
            yield number, None
        else:
            raise _MalformedError


def _varint(message: _Buffer, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _MalformedError
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError


_LENGTH: Final = 2
#: Keys have 32 bits. Some readers drop the bits of a longer one and take it for another field.
_MOST_KEY: Final = 2**32 - 1
_SKIPS: Final[dict[int, Callable[[_Buffer, int], int]]] = {
    0: lambda message, at: _varint(message, at)[1],
    1: lambda _, at: at + 8,
    5: lambda _, at: at + 4,
}
