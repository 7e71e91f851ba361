"""Reading one matrix of numbers from a MATLAB file, format 5 (what MATLAB 5 to 7.2 write).

After "MAT-File Level 5 File Format" of The MathWorks: a header of 128 bytes, then elements of type,
length and data, padded to 8 bytes; matrices may be compressed by zlib. Label files hold one matrix
each, so nothing else is supported; SciPy, which could read them, would be 60 MB on a small machine.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError

__all__ = ["read_matrix"]

_HEADER: Final = 128
_COMPRESSED: Final = 15
_MATRIX: Final = 14
_INT8, _INT32, _UINT32 = 1, 5, 6
_NUMERIC: Final = range(6, 16)  # classes of arrays: double to uint64
_COMPLEX: Final = 0x0800
#: Types of data. MATLAB stores a matrix in the smallest type that holds its values.
_TYPES: Final = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
#: Largest unpacked size; no label map is larger.
_MOST_BYTES: Final = 2**29
_Order = Literal["<", ">"]


def read_matrix(path: Path, name: str) -> NDArray[Any]:
    """The numeric matrix called ``name``, in the type it is stored in.

    Raises:
        InputError: the file cannot be read, is damaged or of another format, or has no such matrix.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    order = _byte_order(data, path)
    found = []
    try:
        for kind, body in _elements(data[_HEADER:], order, padded=False):
            if kind == _COMPRESSED:
                inner = list(_elements(_unpacked(body), order, padded=True))
            else:
                inner = [(kind, body)]
            for inner_kind, inner_body in inner:
                if inner_kind == _MATRIX:
                    own_name, matrix = _matrix(inner_body, order)
                    if own_name == name and matrix is not None:
                        return matrix
                    found.append(own_name)
    except (struct.error, zlib.error, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    raise InputError(f"{path} has no matrix of real numbers {name!r}; found {found or 'nothing'}")


def _byte_order(data: bytes, path: Path) -> _Order:
    orders: dict[bytes, _Order] = {b"IM": "<", b"MI": ">"}
    order = orders.get(data[126:_HEADER])
    if len(data) < _HEADER or order is None:
        raise InputError(f"{path} is not a MATLAB file of format 5")
    (version,) = struct.unpack(f"{order}H", data[124:126])
    if version != 0x0100:
        raise InputError(
            f"{path} is a MATLAB file of another format ({version:#06x}, 7.3 is 0x0200); expected "
            "format 5: save it with -v7"
        )
    return order


def _elements(data: bytes, order: _Order, *, padded: bool) -> Iterator[tuple[int, bytes]]:
    """Type and data of each element; compressed ones at the top level are not padded."""
    position = 0
    while position < len(data):
        (first,) = struct.unpack_from(f"{order}I", data, position)
        if first >> 16:  # up to four bytes of data within the tag itself
            kind, length, start, step = first & 0xFFFF, first >> 16, position + 4, 8
            if length > 4:
                raise ValueError(f"an element of {length} bytes says it has four at most")
        else:
            (length,) = struct.unpack_from(f"{order}I", data, position + 4)
            kind, start = first, position + 8
            step = 8 + (-(-length // 8) * 8 if padded or kind != _COMPRESSED else length)
        if start + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off")
        yield kind, data[start : start + length]
        position += step


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, _MOST_BYTES)
    if not unpacker.eof:
        raise ValueError(f"compressed data are cut off or unpack to over {_MOST_BYTES:,} bytes")
    return unpacked


def _matrix(data: bytes, order: _Order) -> tuple[str, NDArray[Any] | None]:
    """Name and values; None for text, cells, structures, sparse and complex matrices."""
    parts = list(_elements(data, order, padded=True))
    if [kind for kind, _ in parts[:3]] != [_UINT32, _INT32, _INT8]:
        raise ValueError("a matrix does not begin with its flags, dimensions and name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
    name = parts[2][1].decode("ascii")
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX:
        return name, None
    if len(parts) != 4 or parts[3][0] not in _TYPES:
        raise ValueError(f"the matrix {name!r} has no values")
    values = np.frombuffer(parts[3][1], f"{order}{_TYPES[parts[3][0]]}")
    if min(shape, default=-1) < 0:
        raise ValueError(f"the matrix {name!r} has the dimensions {shape}")
    return name, values.reshape(shape, order="F")
