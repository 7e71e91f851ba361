"""DLPack: how array libraries hand arrays to one another without a copy.

A producer gives a Python capsule named ``dltensor`` that points to the structure DLManagedTensor of
dlpack.h; who takes it renames the capsule and calls the deleter when it is done. This is the form
without a version number, which every consumer takes.
"""

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["Tensor", "give", "take"]

_NAME: Final = b"dltensor"  # capsules point to these names: they have to stay
_TAKEN: Final = b"used_dltensor"
_KINDS: Final = {"i": 0, "u": 1, "f": 2, "b": 6}  # dlpack.h: DLDataTypeCode


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _DLTensor),
        ("manager", ctypes.c_void_p),
        ("deleter", _Deleter),
    )


# A capsule that is going away must not become a Python object again: its destructor has an address.
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.pythonapi["PyCapsule_New"]
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_named = ctypes.pythonapi["PyCapsule_IsValid"]
_is_named.restype, _is_named.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_pointer = ctypes.pythonapi["PyCapsule_GetPointer"]
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
_rename = ctypes.pythonapi["PyCapsule_SetName"]
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An array in some memory.

    Attributes:
        address: of the first element.
        shape: elements along each axis.
        strides: bytes from one element to the next along each axis; None for C order.
        device: type and number as DLPack has them.
        owner: keeps the memory while it is referred to.
    """

    address: int
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    device: tuple[int, int]
    owner: object
    strides: tuple[int, ...] | None = None


# Given away and not deleted yet: the address of the structure → all that has to stay.
_given: dict[int, tuple[object, ...]] = {}


def _forget(address: int, *, given: dict[int, tuple[object, ...]] = _given) -> None:
    given.pop(address, None)


def _forget_untaken(
    capsule: int,
    *,
    named: Any = _is_named,
    pointer: Any = _pointer,
    name: bytes = _NAME,
    forget: Any = _forget,
) -> None:
    if named(capsule, name):
        forget(pointer(capsule, name))


_delete, _destroy = _Deleter(_forget), _Destructor(_forget_untaken)
# A taker may let go of an array while the process ends, when this module has been freed: so both
# stay for ever, and what they call refers to nothing by the names of this module.
for _stays in (_delete, _destroy):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_stays))


def give(tensor: Tensor) -> Any:
    """A capsule for ``__dlpack__``; ``tensor.owner`` stays until the taker is done. C order."""
    dtype = np.dtype(tensor.dtype)
    shape = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
    steps = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    strides = (ctypes.c_int64 * len(steps))(*steps)
    managed = _Managed(deleter=_delete)
    inside = managed.tensor
    inside.data = tensor.address
    inside.device = _Device(*tensor.device)
    inside.ndim = len(tensor.shape)
    inside.dtype = _DataType(_KINDS[dtype.kind], 8 * dtype.itemsize, 1)
    inside.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    inside.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    address = ctypes.addressof(managed)
    _given[address] = (managed, shape, strides, tensor.owner)
    return _new(address, _NAME, _destroy)


def take(capsule: Any) -> Tensor:
    """The array in the capsule that a producer's ``__dlpack__`` gave.

    Raises:
        InputError: it is no such capsule, was taken before, or holds a type that NumPy lacks.
    """
    if not _is_named(id(capsule), _NAME):
        raise InputError(f"got {capsule!r}; expected a DLPack capsule that nobody took")
    managed = _Managed.from_address(_pointer(id(capsule), _NAME))
    inside = managed.tensor
    kinds = {code: kind for kind, code in _KINDS.items()}
    kind, bits = kinds.get(inside.dtype.code), inside.dtype.bits
    if kind is None or inside.dtype.lanes != 1 or bits not in (8, 16, 32, 64):
        raise InputError(
            f"got an array of DLPack's type {inside.dtype.code} with {bits} bits; expected whole "
            "numbers, floating-point numbers or booleans"
        )
    dtype = np.dtype(f"{kind}{bits // 8}")
    shape = tuple(inside.shape[: inside.ndim]) if inside.ndim else ()
    strides = None
    if inside.strides and inside.ndim:
        strides = tuple(step * dtype.itemsize for step in inside.strides[: inside.ndim])
    _rename(id(capsule), _TAKEN)
    return Tensor(
        address=(inside.data or 0) + inside.byte_offset,
        shape=shape,
        strides=strides,
        dtype=dtype,
        device=(inside.device.type, inside.device.number),
        owner=_Loan(managed),
    )


class _Loan:
    """Another library's array, given back when nothing refers to this object."""

    def __init__(self, managed: _Managed) -> None:
        if managed.deleter:
            weakref.finalize(self, managed.deleter, ctypes.addressof(managed)).atexit = False
